"""Which cases do harm: every case is segmented with references from the rest of its pool. That judges its own mask, and each reference.

A case whose mask has little to do with what is drawn there, while others of the pool are drawn well, is doubtful. A reference's gain on one
case is the Dice with all references chosen minus the Dice without that one; where its mean over the cases that it served is clearly below
zero, it makes masks worse. And where the references chosen beside it contradict its mask again and again (``Evidence.agreement``), it
would not count in decoding. How well each finds wrong masks: ``benchmarks.harm``.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from ..case import Case, Geometry, Volume
from ..case.geometry import PLANES
from ..errors import Cancelled, CersError, InputError
from ..network.evidence import AGREED
from ..pool import Pool
from ..pool.care import write_file
from ..pool.health import Finding
from .embedding import case_frame, embed_pool
from .segmenter import Segmenter

LEAST_USES = 3  # cases that a reference must have served before it is judged
HARM = -0.02  # mean gain in Dice from which it is named
_SURE = 1.0  # and the mean must lie so many standard errors below zero
DOUBT = 0.25  # of the pool's median Dice: from there on a case's own mask is named
_LEAST_MEDIAN = 0.3  # below this median the model itself is in doubt, not the masks
_LEAST_TRIALS = 10
_FORMAT = 3
# what decides, besides the model, which references a case gets; verdicts other than "excluded", and notes, do not
_DECIDES = ("id", "content_hash", "labels", "patient_id", "volume_id", "group", "modality", "body_site", "plane", "rationale_version")
# RAS directions of a display slice's columns, rows and the axis across, by plane
_AXES = {
    "axial": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "coronal": ((-1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "sagittal": ((0, -1, 0), (0, 0, -1), (1, 0, 0)),
}


@dataclass
class Trial:
    """One case segmented without itself. with_evidence, without: Dice, 0..1; gains: reference id -> Dice that it added; agreement:
    reference id -> how far the other references lead to its mask (-1..1), where that could be checked."""

    with_evidence: float
    without: float
    gains: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)


@dataclass
class HarmReport:
    """Trials by case id; ``total`` of the pool's cases could be tried. faults: id -> why it could not be."""

    trials: dict[str, Trial]
    total: int
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def evidence_gain(self) -> float | None:
        """Mean Dice with references minus that without, over the trials in which there were any; None where there were none."""
        gains = [t.with_evidence - t.without for t in self.trials.values() if t.gains]
        return float(np.mean(gains)) if gains else None

    def findings(self) -> list[Finding]:
        """Cases whose own mask is in doubt, then those that others contradict, then those that do harm; the worst of each first."""
        return self._doubtful() + self._contradicted() + self._harmful()

    def served(self, what: str) -> dict[str, dict[str, float]]:
        """``gains`` or ``agreement`` the other way round: reference id -> case that it served -> value."""
        out: dict[str, dict[str, float]] = defaultdict(dict)
        for case_id, trial in self.trials.items():
            for reference, value in getattr(trial, what).items():
                out[reference][case_id] = value
        return out

    def mean(self, what: str) -> dict[str, float]:
        """Mean of ``gains`` or ``agreement`` of each reference that has served often enough to be judged."""
        return {i: float(np.mean([*by_case.values()])) for i, by_case in self.served(what).items() if len(by_case) >= LEAST_USES}

    def _doubtful(self) -> list[Finding]:
        drawn = {i: t.with_evidence for i, t in self.trials.items()}
        median = float(np.median([*drawn.values()])) if drawn else 0.0
        if len(drawn) < _LEAST_TRIALS or median < _LEAST_MEDIAN:
            return []
        return [
            Finding(
                "doubt",
                [i],
                f"Case {i[:8]}: what the rest of the pool leads to here has a Dice of {drawn[i]:.2f} with its mask; half of the "
                f"cases reach {median:.2f} or more. Look whether its mask is right.",
            )
            for i in sorted(drawn, key=drawn.get)
            if drawn[i] < DOUBT * median
        ]

    def _contradicted(self) -> list[Finding]:
        mean = self.mean("agreement")
        return [
            Finding(
                "contradicted",
                [i],
                f"Case {i[:8]}: the references chosen beside it contradict its mask (agreement {mean[i]:.2f} on average). "
                "Look whether it shows what its label says.",
            )
            for i in sorted(mean, key=mean.get)
            if mean[i] < AGREED[0]
        ]

    def _harmful(self) -> list[Finding]:
        found = []
        for reference, by_case in self.served("gains").items():
            gains = np.array([*by_case.values()])
            mean = float(gains.mean())
            if len(gains) >= LEAST_USES and mean <= HARM and mean <= -_SURE * float(gains.std(ddof=1)) / len(gains) ** 0.5:
                worst = sorted((i for i in by_case if by_case[i] < 0), key=by_case.get)[:20]
                found.append(
                    (
                        mean,
                        Finding(
                            "harm",
                            [reference, *worst],
                            f"Case {reference[:8]} lowers the Dice of the cases that it serves by "
                            f"{-mean:.3f} on average ({len(gains)} cases). Check its mask and labels, or exclude it.",
                        ),
                    )
                )
        return [f for _, f in sorted(found, key=lambda t: t[0])]

    def to_dict(self) -> dict:
        return {
            "findings": [f.to_dict() for f in self.findings()],
            "tried": len(self.trials),
            "total": self.total,
            "evidence_gain": self.evidence_gain,
            "faults": self.faults,
        }


def check_harm(
    segmenter: Segmenter,
    *,
    budget: int = 100,
    progress: Callable[[float, str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> HarmReport:
    """Try up to ``budget`` cases that have not been tried yet with this model and these cases; all trials so far are reported.

    Trials are kept in the pool's ``derived`` folder where it may be written, also those done before a cancel.

    Raises:
        InputError: no pool, or fewer than two usable cases. PoolError: see ``embed_pool``. Cancelled.
    """
    pool = segmenter.pool
    if pool is None:
        raise InputError("There is no pool to check. Open one first.")
    if budget < 1:
        raise InputError("At least one case must be tried.")
    embed_pool(segmenter.model, pool, segmenter.embedder, lambda f, m: progress(0.1 * f, m) if progress else None, cancel)
    usable = {m["id"]: m for m in pool.list() if m["review"] != "excluded"}
    if len(usable) < 2:
        raise InputError("The pool has fewer than two usable cases, so that none can be segmented with the others. Import more.")
    key = _key(segmenter, usable.values())
    trials = {i: t for i, t in _load(pool, key).items() if i in usable}
    groups = defaultdict(list)
    for i, m in usable.items():
        if m["group"]:
            groups[m["group"]].append(i)
    report = HarmReport(trials, len(usable))
    # in an order that has nothing to do with that of addition, but is the same each time: a part of it is a fair sample
    todo = sorted((i for i in usable if i not in trials), key=lambda i: zlib.crc32(i.encode()))[:budget]
    try:
        for n, case_id in enumerate(todo):
            if cancel and cancel():
                raise Cancelled
            if progress:
                progress(0.1 + 0.9 * n / len(todo), f"Segmenting case {n + 1} of {len(todo)} without itself")
            try:
                trials[case_id] = try_case(segmenter, pool.get(case_id), groups.get(usable[case_id]["group"], []))
            except Cancelled:
                raise
            except CersError as error:  # one damaged case must not hide what the others tell
                report.faults[case_id] = str(error)
    finally:
        _save(pool, key, trials)
    return report


@torch.inference_mode()
def try_case(segmenter: Segmenter, case: Case, barred: list[str]) -> Trial:
    """Segment one case as if it were new: never with itself, its patient, volume or group (``barred`` ids), and judge each reference.

    Dice is that of the model's labels together, in the network's frame.
    """
    before = segmenter.session
    try:
        segmenter.segment(case_volume(case), influence=False)
        session = segmenter.session
        ((name, plane),) = session.planes.items()
        key = (name, 0)
        if key not in session.slices:
            return Trial(0.0, 0.0)
        found = session.slices[key]
        found.selection = segmenter._select(session, key, (), tuple({case.id, *barred}))
        ids = found.selection.ids
        references = segmenter._references(session, [key])
        wanted = [(key, ids), (key, []), *((key, ids[:n] + ids[n + 1 :]) for n in range(len(ids)) if len(ids) > 1)]
        probabilities, _, agreement = segmenter._fused(session, wanted, references, {})
        masks = (probabilities > segmenter.model.config.threshold).any(1).numpy()
    finally:
        segmenter.session = before
    truth = (case_frame(case, segmenter.model)[1][0] > 0.5).any(0).numpy()
    dices = [_dice(mask, truth) for mask in masks]
    others = dices[2:] if len(ids) > 1 else dices[1:2] * len(ids)  # without the only reference there are none
    agreed = {i: round(a, 5) for i, a in zip(ids, agreement[0].tolist()) if not math.isnan(a)}
    return Trial(dices[0], dices[1], {i: round(dices[0] - d, 5) for i, d in zip(ids, others)}, agreed)


def case_volume(case: Case) -> Volume:
    """A case as a volume of one slice that is read in the plane and orientation in which the case is kept."""
    rows, columns = case.spacing or (1.0, 1.0)
    matrix = np.eye(4)
    axes = np.array(_AXES[case.plane if case.plane in PLANES else "axial"], float)
    matrix[:3, :3] = (axes * [[columns], [rows], [2 * max(rows, columns)]]).T
    return Volume(
        case.image[None],
        Geometry(matrix, (1, *case.image.shape)),
        name="case",
        modality=case.modality,
        body_site=case.body_site,
        patient_id=case.patient_id,
        volume_id=case.volume_id,
        spacing_known=case.spacing is not None,
    )


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return 1.0 if not total else round(2 * int((a & b).sum()) / total, 5)


def _key(segmenter: Segmenter, usable: Iterable[dict]) -> str:
    model, uid = segmenter.model, segmenter.pool.uid
    cases = sorted(json.dumps([meta[name] for name in _DECIDES], sort_keys=True) for meta in usable)
    state = hashlib.sha256("\n".join(cases).encode()).hexdigest()
    return f"{_FORMAT} {model.hash} {segmenter.embedder.hash} {uid} {state} {json.dumps(model.selection.to_dict(), sort_keys=True)}"


def _path(pool: Pool, key: str):
    return pool.folder / "derived" / f"harm-{hashlib.sha256(key.split()[1].encode()).hexdigest()[:16]}.json"


def _load(pool: Pool, key: str) -> dict[str, Trial]:
    try:
        kept = json.loads(_path(pool, key).read_text("utf-8"))
        return {i: Trial(**t) for i, t in kept["trials"].items()} if kept["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, or of no use: it is only a cache
        return {}


def _save(pool: Pool, key: str, trials: dict[str, Trial]) -> None:
    if not pool.read_only and trials:
        path = _path(pool, key)
        with suppress(OSError, InputError):  # only a cache: a full disk must not take the result away
            path.parent.mkdir(exist_ok=True)
            write_file(path, json.dumps({"key": key, "trials": {i: asdict(t) for i, t in trials.items()}}).encode())
