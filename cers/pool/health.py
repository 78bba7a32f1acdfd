"""What speaks against a pool: pictures that occur twice, masks that contradict each other, words against numbers, gaps."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from ..case import Case
from ..errors import Cancelled, CersError
from ..rationale import measure
from ..words import counted
from .agreement import disagreements
from .selection import SelectionConfig
from .store import Pool
from .thumbnail import HASH as THUMBNAIL

KINDS = ("duplicate", "contradiction", "rationale", "doubt", "contradicted", "harm", "gap", "alone", "unused", "unknown", "damaged")
_BLOCK = 1024  # cases that are compared with all others at a time
_AGREE = 0.5  # Dice of two masks of one picture below which they contradict each other
_FEW_CASES, _FEW_PATIENTS = 5, 3
_MOST = 500  # findings of one kind
_ENOUGH_IMAGES = 20  # on record, before a case that was no reference for any of them is worth a word


@dataclass(frozen=True)
class Finding:
    """Something to look at. kind: one of ``KINDS``; ids: the cases concerned, which may be none; message: one sentence with what to do."""

    kind: str
    ids: list[str]
    message: str

    def to_dict(self) -> dict:
        return asdict(self)


Progress = Callable[[float, str], None]


def check_health(
    pool: Pool, *, near: float = SelectionConfig.near_duplicate, progress: Progress | None = None, cancel: Callable[[], bool] | None = None
) -> list[Finding]:
    """Look for what lowers the worth of a pool as evidence; nothing is changed. Excluded cases are left out.

    Args:
        near: correlation of thumbnails from which two pictures count as one.

    Raises:
        PoolError: the pool cannot be read. Cancelled.
    """

    def step(fraction: float, message: str) -> None:
        if cancel is not None and cancel():
            raise Cancelled
        if progress is not None:
            progress(fraction, message)

    step(0.0, "Reading the pool")
    cases = {m["id"]: m for m in pool.list() if m["review"] != "excluded"}
    twins = near_duplicates(pool, list(cases), near, lambda f: step(0.05 + 0.4 * f, "Comparing pictures"))
    out = _duplicates(twins, cases)
    out += _contradictions(pool, twins, cases, lambda f: step(0.45 + 0.15 * f, "Comparing masks"))
    out += _rationales(pool, cases, lambda f: step(0.6 + 0.3 * f, "Comparing words with measurements"))
    step(0.9, "Looking for gaps")
    out += _gaps(cases) + _alone(pool, cases, lambda f: step(0.9 + 0.1 * f, "Looking for gaps")) + _unused(pool, cases)
    out += _unknown(cases)
    return [f for kind in KINDS for f in [f for f in out if f.kind == kind][:_MOST]]


def near_duplicates(
    pool: Pool, ids: list[str], near: float, step: Callable[[float], None] | None = None, of: list[str] | None = None
) -> list[tuple[str, str, float]]:
    """Pairs of cases whose pictures are nearly the same, with the correlation of their thumbnails.

    Args:
        of: compare these cases with all in ``ids`` rather than all with all.
    """
    found, vectors = pool.vectors("thumbnail", THUMBNAIL, ids)
    known = np.any(vectors, axis=1) if len(found) else np.zeros(0, bool)
    found, vectors = [i for i, k in zip(found, known) if k], np.ascontiguousarray(vectors[known])
    wanted = None if of is None else {n for n, i in enumerate(found) if i in set(of)}
    pairs = []
    for start in range(0, len(found), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(found)))
        if wanted is not None:
            rows = np.array([r for r in rows if r in wanted], int)
        if step is not None:
            step(start / len(found))
        if not len(rows):
            continue
        first = 0 if wanted is not None else start
        scores = vectors[rows] @ vectors[first:].T
        for a, b in np.argwhere(scores >= near):
            one, other = int(rows[a]), int(b) + first
            if one != other and (one < other or (wanted is not None and other not in wanted)):
                pairs.append((found[one], found[other], float(min(1.0, scores[a, b]))))
    return pairs


def _apart(a: dict, b: dict) -> bool:
    """Whether two cases count as of different patients, so that one may serve as evidence for the other."""
    if any(a[k] and a[k] == b[k] for k in ("patient_id", "volume_id", "group")):
        return False
    return True


def _duplicates(twins, cases) -> list[Finding]:
    """Near-duplicates of different patients, those that hang together as one finding."""
    parent: dict[str, str] = {}

    def root(i: str) -> str:
        while parent.setdefault(i, i) != i:
            i = parent[i]
        return i

    across = [(a, b, s) for a, b, s in twins if _apart(cases[a], cases[b])]
    for a, b, _ in across:
        parent[root(a)] = root(b)
    groups: dict[str, list[str]] = defaultdict(list)
    for i in parent:
        groups[root(i)].append(i)
    best: dict[str, float] = defaultdict(float)
    for a, _, score in across:
        best[root(a)] = max(best[root(a)], score)
    return [
        Finding(
            "duplicate",
            sorted(ids),
            f"{len(ids)} cases of different patients show nearly the same picture (similarity "
            f"{best[r]:.3f}). "
            "Give them one patient, or exclude all but one.",
        )
        for r, ids in sorted(groups.items(), key=lambda g: -best[g[0]])
    ]


def _contradictions(pool: Pool, twins, cases, step) -> list[Finding]:
    out = []
    pairs = [
        (a, b)
        for a, b, _ in twins
        if not (
            cases[a]["volume_id"] and cases[a]["volume_id"] == cases[b]["volume_id"] and cases[a]["slice_index"] != cases[b]["slice_index"]
        )
        and cases[a]["shape"] == cases[b]["shape"]
        and _names(cases[a]) & _names(cases[b])
    ]
    for n, (a, b) in enumerate(pairs[: 4 * _MOST]):
        step(n / len(pairs))
        try:
            dice = _dice(pool.get(a), pool.get(b), _names(cases[a]) & _names(cases[b]))
        except CersError as error:
            out.append(Finding("damaged", [a, b], str(error)))
            continue
        if dice < _AGREE:
            out.append(
                Finding(
                    "contradiction",
                    [a, b],
                    f"Two cases show nearly the same picture but their masks have little in common "
                    f"(Dice {dice:.2f}). Correct or exclude one of them.",
                )
            )
    return out


def _names(case: dict) -> set[str]:
    return {name.casefold() for name in case["labels"].values()}


def _dice(a: Case, b: Case, names: set[str]) -> float:
    one, other = (np.isin(c.mask, [v for v, name in c.labels.items() if name.casefold() in names]) for c in (a, b))
    total = int(one.sum()) + int(other.sum())
    return 1.0 if not total else 2.0 * int((one & other).sum()) / total


def _rationales(pool: Pool, cases, step) -> list[Finding]:
    out, ids = [], list(cases)
    for start in range(0, len(ids), 100):
        current = pool.rationales(ids[start : start + 100])
        for n, (case_id, (_, rationale)) in enumerate(current.items()):
            step((start + n) / len(ids))
            try:
                measured = rationale.descriptors or measured_of(pool, case_id)
            except CersError as error:
                out.append(Finding("damaged", [case_id], str(error)))
                continue
            if wrong := disagreements(rationale, measured):
                out.append(
                    Finding("rationale", [case_id], f"The rationale says {'; '.join(wrong[:3])}. Check the picture and correct the words.")
                )
    bare = [i for i, m in cases.items() if not m["rationale_version"]]
    if bare:
        out.append(Finding("rationale", bare, f"{counted(len(bare))} without a rationale: such cases are compared by their picture only."))
    return out


def measured_of(pool: Pool, case_id: str) -> dict[str, float | None]:
    """The measured numbers of a case whose present rationale has none: of an earlier version, else measured now."""
    for version in reversed(pool.rationale_versions(case_id)):
        if version.descriptors:
            return version.descriptors
    case = pool.get(case_id)
    return measure(case.image, case.mask > 0, case.spacing, modality=case.modality, plane=case.plane) if case.mask.any() else {}


def _gaps(cases) -> list[Finding]:
    """Kinds of case of which there are too few to choose from once a query's own patient is left out."""
    groups: dict[tuple, list[str]] = defaultdict(list)
    for i, m in cases.items():
        for label in set(m["labels"].values()):
            groups[m["body_site"] or "", m["modality"] or "", label].append(i)
    out = []
    for (site, modality, label), ids in sorted(groups.items(), key=lambda g: len(g[1])):
        patients = Counter(cases[i]["patient_id"] or cases[i]["volume_id"] or i for i in ids)
        what = " ".join(w for w in (site, modality) if w) or "unknown body site and modality"
        if len(ids) < _FEW_CASES or len(patients) < _FEW_PATIENTS:
            out.append(
                Finding(
                    "gap",
                    ids,
                    f"Only {counted(len(ids))} of {counted(len(patients), 'patient')} for “{label}” ({what}). Add more, "
                    "or images of this kind will be segmented with little evidence.",
                )
            )
    return out


def _alone(pool: Pool, cases, step) -> list[Finding]:
    """Cases that none of another patient resembles, by the vectors of the model used last."""
    model = pool.last_model()
    if model is None:
        return []
    ids, vectors = pool.vectors("image", model, list(cases))
    owner = np.array([cases[i]["patient_id"] or cases[i]["volume_id"] or i for i in ids])
    alone = []
    for start in range(0, len(ids), _BLOCK):
        step(start / len(ids))
        scores = vectors[start : start + _BLOCK] @ vectors.T
        scores[owner[start : start + _BLOCK, None] == owner[None]] = -1
        alone += [ids[start + int(n)] for n in np.flatnonzero(scores.max(1) < SelectionConfig.visual_threshold)]
    if not alone or len(set(owner.tolist())) < 2:
        return []
    return [
        Finding(
            "alone",
            alone,
            f"{counted(len(alone))} that no case of another patient resembles: an image like these has no "
            "reference. Add similar cases, or check that these belong here.",
        )
    ]


def _unused(pool: Pool, cases) -> list[Finding]:
    """Cases that have been here as long as uses are recorded and were never a reference."""
    images, since = pool.queries_recorded()
    if images < _ENOUGH_IMAGES:
        return []
    used = pool.use_counts()
    ids = [i for i, m in cases.items() if i not in used and (m["created"] or "")[:10] <= since]
    return (
        [
            Finding(
                "unused",
                ids,
                f"{counted(len(ids))} never served as a reference in {counted(images, 'image')} segmented since {since}. That is no fault; "
                "but if the images were like these, see whether modality, body site and masks are right.",
            )
        ]
        if ids
        else []
    )


def _unknown(cases) -> list[Finding]:
    out = []
    nobody = [i for i, m in cases.items() if not (m["patient_id"] or m["volume_id"] or m["group"])]
    if nobody:
        out.append(
            Finding(
                "unknown",
                nobody,
                f"{counted(len(nobody))} without patient, volume or group: whether they may serve as evidence for "
                "one another cannot be told. Enter the patient.",
            )
        )
    for name, words in (("modality", "modality"), ("body_site", "body site")):
        if ids := [i for i, m in cases.items() if not m[name]]:
            out.append(
                Finding(
                    "unknown", ids, f"{counted(len(ids))} without {words}. Enter it, so that only images of that kind get them as evidence."
                )
            )
    return out
