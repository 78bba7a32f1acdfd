"""The request ``add_case``: a corrected result becomes reference cases that the next segmentation can use."""

from __future__ import annotations

from ..case import Geometry, Volume
from ..errors import ProtocolError
from .methods import Methods, _matrix, params
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
)
def add_case(self: Methods, job: Job, given: dict) -> dict:
    """Keeps the lesion slices of a volume with a person's mask, and their vectors; the whole mask in the file ``keep`` if given."""
    from ..inference.embedding import embed_pool
    from ..pool.corrections import add_correction

    pool, labels = self._pool(), _labels(given["labels"])
    array, mask = self._load(given["image"], "image"), self._load(given["mask"], "mask")
    volume = Volume(
        array,
        Geometry(_matrix(given["ijkToRAS"]), array.shape if array.ndim == 3 else (0, 0, 0)),
        **{key: given[key] for key in ("modality", "body_site", "patient_id", "volume_id") if given.get(key)},
        spacing_known=given.get("spacing_known") is not False,
    )
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
    embedded = (
        0
        if self.model is None
        else embed_pool(
            self.model, pool, self._text(), lambda fraction, words: job.progress(0.5 + 0.5 * fraction, words), job.cancelled.is_set
        )
    )
    return {**report.to_dict(), "cases": len(pool), "embedded": embedded}


def _labels(given: dict) -> dict[int, str]:
    try:
        return {int(value): str(name) for value, name in given.items()}
    except ValueError:
        raise ProtocolError("'labels' must map whole numbers, written as texts, to names.") from None
