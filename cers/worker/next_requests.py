"""The requests of the list of what to label next: rank a folder, and read a saved mask back."""

from __future__ import annotations

from collections.abc import Callable

from ..case import Geometry
from ..case.io import read_mask
from ..errors import ProtocolError
from .methods import Methods, _matrix, params
from .server import Job


@params(folder_=str, modality=str, body_site=str, cache=str)
def rank(self: Methods, job: Job, given: dict) -> dict:
    """The unlabelled volumes of a folder, those first whose label would help the open pool most."""
    from ..inference.next import rank_next

    return rank_next(
        given["folder"],
        self._pool(),
        self._model(),
        embedder=self._text(),
        modality=given.get("modality"),
        body_site=given.get("body_site"),
        cache=given.get("cache"),
        progress=job.progress,
        cancel=job.cancelled.is_set,
    ).to_dict()


@params(path_=str, ijkToRAS_=list, shape_=list)
def mask(self: Methods, job: Job, given: dict) -> dict:
    """A mask that was saved with ``add_case``, in the grid of its volume."""
    shape = given["shape"]
    if len(shape) != 3 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape):
        raise ProtocolError("'shape' must be three whole numbers: slices, rows and columns.")
    labelmap, labels = read_mask(given["path"], Geometry(_matrix(given["ijkToRAS"]), tuple(shape)))
    return {"labelmap": self._save("saved-mask", labelmap), "labels": {str(value): name for value, name in labels.items()}}


TABLE: dict[str, Callable] = {"next_rank": rank, "next_mask": mask}
