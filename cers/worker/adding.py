"""The request ``add_case``: a corrected result becomes reference cases that the next segmentation can use."""

from __future__ import annotations

import contextlib

from ..case import Geometry, Volume
from ..errors import Cancelled, CersError, InputError
from .methods import Methods, _matrix, label_names, params
from .server import Job

SOURCE = "corrected in 3D Slicer"  # never the volume's name, which often is a person's


@params(
    image_=str,
    mask_=str,
    ijkToRAS_=list,
    labels_=dict,
    annotator_=str,
    proposed=str,
    modality=str,
    body_site=str,
    patient_id=str,
    volume_id=str,
    diagnosis=str,
    spacing_known=bool,
    keep=str,
    made_for=str,
)
def add_case(self: Methods, job: Job, given: dict) -> dict:
    """Keeps the lesion slices of a volume with a person's mask, and their vectors; the whole mask in the file ``keep`` if given.

    ``made_for``: hash of the volume that was segmented. Once the slices are kept, a cancel or a fault takes nothing back: vectors that are
    missing, ``embedded`` is then null, are made by the next segmentation.
    """
    from ..inference.embedding import embed_pool
    from ..pool.corrections import add_correction

    pool, labels = self._pool(), label_names(given["labels"])
    array, mask = self._load(given["image"], "image"), self._load(given["mask"], "mask")
    volume = Volume(
        array,
        Geometry(_matrix(given["ijkToRAS"]), array.shape if array.ndim == 3 else (0, 0, 0)),
        **{key: given[key] for key in ("modality", "body_site", "patient_id", "volume_id") if given.get(key)},
        spacing_known=given.get("spacing_known") is not False,
    )
    if given.get("made_for") not in (None, volume.content_hash):
        raise InputError(
            "The volume shows something else than what was segmented, perhaps another time point, so nothing was added. Show what was "
            "segmented, or segment again what is shown, and correct that."
        )
    volume.volume_id = volume.volume_id or volume.content_hash[:16]
    proposed = None if given.get("proposed") is None else self._load(given["proposed"], "proposed")
    job.check()
    job.progress(0.2, "Describing and keeping the slices")
    report = add_correction(
        pool,
        volume,
        mask,
        labels,
        annotator=given["annotator"],
        proposed=proposed,
        source=SOURCE,
        diagnosis=given.get("diagnosis"),
        model=None if self.model is None else self.model.hash,
    )
    if given.get("keep") is not None:
        from ..case.io import write_segmentation

        write_segmentation(given["keep"], mask, volume.geometry, labels)
    embedded = None
    if self.model is not None:

        def told(fraction: float, words: str) -> None:
            job.progress(0.5 + 0.5 * fraction, words)

        with contextlib.suppress(Cancelled, CersError):
            embedded = embed_pool(self.model, pool, self._text(), told, job.cancelled.is_set)
    return {**report.to_dict(), "cases": len(pool), "embedded": embedded}
