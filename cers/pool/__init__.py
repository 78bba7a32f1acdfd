"""The knowledge pool: expert-annotated cases in a folder, and the choice of references among them.

Importing this package is cheap. faiss is imported only when an index is first needed, hence after torch wherever both are used, and
under macOS never; the importers, which need image libraries, when first named.
"""

from typing import TYPE_CHECKING

from .selection import NO_CLOSE_CASE, Query, Selection, SelectionConfig, Selector, select
from .store import FACETS, Fault, Pool
from .thumbnail import image_hash, thumbnail

if TYPE_CHECKING:
    from .health import Finding, check_health
    from .importer import ImportFault, ImportReport, import_dicom, import_folder, import_volume
    from .transfer import MergeReport, export_pool, merge

_LATER = {"Finding": "health", "check_health": "health", "MergeReport": "transfer", "export_pool": "transfer", "merge": "transfer"}
__all__ = [
    "FACETS",
    "Fault",
    "Finding",
    "ImportFault",
    "ImportReport",
    "MergeReport",
    "NO_CLOSE_CASE",
    "Pool",
    "Query",
    "Selection",
    "SelectionConfig",
    "Selector",
    "check_health",
    "export_pool",
    "image_hash",
    "import_dicom",
    "import_folder",
    "import_volume",
    "merge",
    "select",
    "thumbnail",
]


def __getattr__(name: str):
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f".{_LATER.get(name, 'importer')}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
