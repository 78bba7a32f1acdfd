"""A result that a person corrected, kept as reference cases. What the model had proposed is on record, and earlier versions stay."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import numpy as np

from ..case import PlaneView, Volume
from ..case.terminology import same_meaning
from ..errors import InputError, PoolError
from .importer import import_volume
from .store import Pool

ACTION = "corrected"
_SUPERSEDED = "Replaced by a later correction"


@dataclass
class CorrectionReport:
    """What was kept.

    ids: all cases of the correction in display order; added: those that are new; replaced: cases of the same volume that are no longer used
    as evidence; dice: overlap of proposal and correction over the whole volume, 0..1, None without a proposal.
    """

    ids: list[str]
    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    dice: float | None = None

    def to_dict(self) -> dict:
        return asdict(self)


def add_correction(
    pool: Pool,
    volume: Volume,
    mask: np.ndarray,
    labels: Mapping[int, str],
    *,
    annotator: str,
    proposed: np.ndarray | None = None,
    model: str | None = None,
    max_slices: int = 12,
    **metadata,
) -> CorrectionReport:
    """Add the lesion slices of a corrected volume as cases, each with a rationale measured on the corrected mask.

    Cases of the same volume (the same voxels in the same place) and the same structures whose mask is another one by now are kept but
    excluded from use as evidence, and so is what an earlier correction called otherwise in the same shape; a mask that is in the pool
    already is not added twice, and is used again, reviewed as it was, if a correction had replaced it. Other cases stay as they are.

    Args:
        mask: (k, j, i) label map on the volume's grid. labels: value -> name. annotator: who corrected it.
        proposed: (k, j, i) label map that the model had given. model: hash of that model.
        metadata: as for ``import_volume``.

    Raises:
        InputError: masks of another size, an empty mask, no annotator. PoolError: the pool cannot be written.
    """
    if pool.read_only:
        raise PoolError(f"The pool {pool.folder} can only be read, so nothing was added. Choose a pool in a folder that you may write in.")
    if not annotator.strip():
        raise InputError("The annotator's name is missing. It is kept with the case; write it and try again.")
    mask = np.asarray(mask)
    if proposed is not None and np.shape(proposed) != mask.shape:
        raise InputError("What the model proposed and the correction are not of one size. Segment the volume again, then correct it.")
    name = volume.volume_id or volume.content_hash[:16]
    before = {
        case["id"]: case["review"]
        for case in pool.list(volume_id=name)
        if any(same_meaning(a, b) for a in case["labels"].values() for b in labels.values())
    }
    ids = list(dict.fromkeys(import_volume(pool, volume, mask, labels, annotator=annotator.strip(), max_slices=max_slices, **metadata)))
    report = CorrectionReport(ids, [i for i in ids if i not in before])
    if proposed is not None:
        both = int(((np.asarray(proposed) > 0) & (mask > 0)).sum())
        report.dice = 2 * both / (np.count_nonzero(proposed) + np.count_nonzero(mask))
    _record(pool, volume, report, proposed, model)
    for case_id in ids:
        if before.get(case_id) == "excluded" and (review := _before_superseded(pool, case_id)):
            pool.review(case_id, review, reviewer=annotator, note="This version is the current one again")
            report.added.append(case_id)
    # last: a kill before this leaves two versions in use, and adding the same correction again finishes it
    for case_id, review in {**before, **_renamed(pool, name, ids)}.items():
        if case_id not in ids and review != "excluded":
            pool.review(case_id, "excluded", reviewer=annotator, note=f"{_SUPERSEDED} ({ids[0]})")
            report.replaced.append(case_id)
    return report


def proposal(pool: Pool, case_id: str) -> np.ndarray | None:
    """(rows, columns) bool: what the model had proposed for a corrected case, None if that is not on record."""
    entry = next((e for e in reversed(pool.history(case_id)) if e["action"] == ACTION and e.get("proposal")), None)
    if entry is None:
        return None
    shape = pool.meta(case_id)["shape"]
    bits = np.frombuffer(zlib.decompress(base64.b64decode(entry["proposal"])), np.uint8)
    return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape).astype(bool)


def _renamed(pool: Pool, volume_id: str, ids: list[str]) -> dict[str, str]:
    """id -> review of the cases that earlier corrections of the volume gave, of the same shape in the same slice as one of ``ids``."""
    shapes, out = {(case.plane, case.slice_index): case.mask > 0 for case in map(pool.get, ids)}, {}
    for case in pool.list(volume_id=volume_id):
        shape = shapes.get((case["plane"], case["slice_index"]))
        if shape is not None and any(entry["action"] == ACTION for entry in pool.history(case["id"])):
            with suppress(PoolError):  # a damaged one is no evidence anyway
                if np.array_equal(pool.get(case["id"]).mask > 0, shape):
                    out[case["id"]] = case["review"]
    return out


def _record(pool: Pool, volume: Volume, report: CorrectionReport, proposed: np.ndarray | None, model: str | None) -> None:
    """Proposal, overlap and model of each new case, in the record of what was done with it."""
    details = {}
    for case_id in report.added:
        meta, detail = pool.meta(case_id), {"model": model, "dice": report.dice}
        if proposed is not None:
            slices = PlaneView(volume.geometry, meta["plane"] or "axial").slices(proposed)
            drawn = slices[meta["slice_index"] or 0] > 0
            detail["proposal"] = base64.b64encode(zlib.compress(np.packbits(drawn).tobytes(), 9)).decode()
            detail["note"] = f"Dice {report.dice:.3f} with what the model had proposed"
        details[case_id] = detail
    pool.record_action(ACTION, details)


def _before_superseded(pool: Pool, case_id: str) -> str | None:
    """The review that a case had before a correction replaced it; None where a reviewer excluded it."""
    reviews = [e for e in pool.history(case_id) if e["action"] == "reviewed"]
    if not reviews or not (reviews[-1]["note"] or "").startswith(_SUPERSEDED):
        return None
    return reviews[-2]["review"] if len(reviews) > 1 else "unreviewed"
