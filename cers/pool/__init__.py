"""The knowledge pool: expert-annotated cases in a folder, and the choice of references among them.

faiss is imported only when an index is first needed, hence after torch wherever both are used.
"""

from .selection import Query, Selection, SelectionConfig, Selector, select
from .store import FACETS, Fault, Pool
from .thumbnail import image_hash, thumbnail

__all__ = ["FACETS", "Fault", "Pool", "Query", "Selection", "SelectionConfig", "Selector", "image_hash", "select", "thumbnail"]
