"""The knowledge pool: expert-annotated cases in a folder, and the choice of references among them.

Importing this package is cheap. faiss is imported only when an index is first needed, hence after torch wherever both are used;
the importers, which need image libraries, when first named.
"""

from typing import TYPE_CHECKING

from .selection import NO_CLOSE_CASE, Query, Selection, SelectionConfig, Selector, select
from .store import FACETS, Fault, Pool
from .thumbnail import image_hash, thumbnail

if TYPE_CHECKING:
    from .importer import ImportFault, ImportReport, import_dicom, import_folder, import_volume

__all__ = [
    "FACETS", "Fault", "ImportFault", "ImportReport", "NO_CLOSE_CASE", "Pool", "Query", "Selection", "SelectionConfig", "Selector",
    "image_hash", "import_dicom", "import_folder", "import_volume", "select", "thumbnail",
]


def __getattr__(name: str):
    if name in __all__:
        from . import importer

        return getattr(importer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
