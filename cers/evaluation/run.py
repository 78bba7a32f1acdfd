"""Evaluate masks of a folder of images against the expert's: one result, as JSON keeps it.

The result has ``mean`` (metric -> value, low, high, n), ``cases``, ``leak``, ``calibration``, ``failure``, ``model`` and ``pool`` (hashes),
``left`` (files without a partner) and ``faults`` (files that cannot be used).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .. import __version__
from ..case import Prediction, Volume
from ..case.io import Unnamed
from ..case.pitfalls import check_steps
from ..errors import Cancelled, CersError, InputError, ModelError, PoolError
from ..pool import Pool
from .calibration import BINS, Reliability, near_lesion, without_temperature
from .failure import FAILURE, choose_threshold, detection
from .items import Found, Item, read_labels
from .leak import LeakCheck
from .metrics import LEAST_OVERLAP, METRICS, compare_masks
from .statistics import INTERVALS, counts, interval, related

KIND = "cers evaluation"
TRAINING = "train"  # what a table's column split calls images to learn from
PICTURE_TOLERANCE, VOLUME_TOLERANCE = 1.0, 2.0  # of the surface Dice, in px and mm
Progress = Callable[[float, str], None]


def check_leaks(found: Found, pool: Pool, progress: Progress | None = None) -> tuple[dict, dict[str, str]]:
    """The leak report of the images that can be read, and name -> message of those that cannot."""
    check, faults = LeakCheck(pool), {}
    for n, item in enumerate(found.items):
        if progress:
            progress(n / len(found.items), f"Looking for leaks: {item.name}")
        try:
            volume = item.read()
        except (CersError, OSError) as error:
            faults[item.name] = _reason(error)
            continue
        check.add(item.name, volume, volume.patient_id, item.group)
    return check.report(), faults


@dataclass
class Evaluation:
    """Runs through the images.

    Args:
        found: from ``find_items``. segmenter: makes the masks; None where the items have predictions of their own.
        labels: value -> name of the labels that are compared one by one; None compares all that is not zero. With a segmenter its
            model says them.
    """

    found: Found
    segmenter: object = None
    planes: str = "auto"
    labels: Mapping[int, str] | None = None

    def __post_init__(self):
        if self.segmenter is not None:
            known = self.segmenter.model.labels
            self.labels = known if len(known) > 1 else None
        self.decoded: set[str] = set()  # the planes that were taken
        self.size: str | None = None  # the unit of what masks hold: a single slice has no volume, a picture no mm
        self.spots, self.spots_near, self.before, self.before_near = (Reliability() for _ in range(4))

    def run(
        self,
        *,
        name: str | None = None,
        leak: dict | None = None,
        faults: Mapping[str, str] | None = None,
        skip: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> dict:
        """The result.

        Args:
            leak, faults: from ``check_leaks``; images with a fault are not read again. skip: name -> why an image is left out on purpose.

        Raises:
            InputError: not one image could be evaluated. PoolError, ModelError, Cancelled: the whole evaluation ends.
        """
        left, faults, cases = {**self.found.left, **(skip or {})}, dict(faults or {}), []
        todo = [i for i in self.found.items if i.name not in faults and i.name not in left]
        for n, item in enumerate(todo):
            if progress:
                progress(n / len(todo), f"Evaluating {item.name}")
            try:
                cases.append(self._case(item))
            except (PoolError, ModelError, Cancelled):
                raise
            except (CersError, OSError) as error:
                faults[item.name] = _reason(error)
        if not cases:
            first = next(iter(faults.items()), None) or next(iter(left.items()), ("", "nothing is left to evaluate."))
            raise InputError(f"No image could be evaluated; {first[0]}: {first[1]}")
        for case, group in zip(cases, related([c["group"] for c in cases])):
            case["group"] = group
        return self._result(name, cases, leak, left, faults)

    # ---- one image

    def _case(self, item: Item) -> dict:
        volume = item.read()
        size = "px" if not volume.spacing_known else "mm²" if volume.geometry.single else "ml"
        if self.size not in (None, size):
            raise InputError(f"its masks are measured in {size}, those before it in {self.size}. Evaluate both kinds apart.")
        if size == "ml" and volume.geometry.sheared:
            raise InputError(
                "its geometry is sheared, as with a tilted gantry, so that distances would be wrong. Resample the image and its masks to "
                "a grid with right angles, for instance in Slicer."
            )
        one_by_one = self.labels is not None
        with _of("expert mask"):
            expert, names = read_labels(item.mask, volume, item.image, one_by_one)
        prediction, found_names = None, {}
        if item.prediction is not None:
            with _of("prediction"):
                mask, found_names = read_labels(item.prediction, volume, item.image, one_by_one)
                if not one_by_one and len(names) < 2 and isinstance(found_names, Unnamed):
                    check_steps(mask, found_names, item.prediction)
        else:
            prediction = self.segmenter.segment(volume, self.planes, influence=False)
            mask, found_names = prediction.labelmap, prediction.labels
            self.decoded.add(prediction.provenance["settings"]["planes"])
        drawn = (expert > 0 if self.labels is None else expert).tobytes()
        case = {
            "image": item.name,
            "group": item.kin(volume),
            "diagnosis": item.diagnosis,
            "expert": hashlib.sha256(str(expert.shape).encode() + drawn).hexdigest()[:16],
        }
        channels = self._channels(mask, self.labels or {} if prediction else found_names, expert, names)
        by_label = {label: self._measure(a, b, volume) for label, a, b in channels}
        self.size = size
        case |= over_labels(by_label)
        if len(by_label) > 1:
            case["labels"] = by_label
        if prediction is not None:
            case |= self._trust(prediction)
            for channel, (_, a, b) in enumerate(channels):
                self._calibrate(prediction.probabilities[channel], a, b, channel > 0)
        return case

    def _channels(self, mask, mask_names, expert, expert_names) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """(label, mask, expert mask) of every label, in order."""
        if self.labels is None:
            label = next(iter(self.segmenter.model.labels.values())) if self.segmenter is not None else "lesion"
            return [(label, mask > 0, expert > 0)]
        mask, expert = _by_value(mask, mask_names, self.labels, "mask"), _by_value(expert, expert_names, self.labels, "expert mask")
        return [(label, mask == value, expert == value) for value, label in self.labels.items()]

    @staticmethod
    def _measure(mask: np.ndarray, expert: np.ndarray, volume: Volume) -> dict[str, float | None]:
        geometry = volume.geometry
        if volume.spacing_known:
            voxel = geometry.pixel_mm2 if geometry.single else geometry.voxel_ml
            row = compare_masks(mask, expert, geometry.spacing[::-1], VOLUME_TOLERANCE, voxel)
        else:
            row = compare_masks(mask, expert, (1.0, 1.0, 1.0), PICTURE_TOLERANCE)
        return {k: None if v is None else round(v, 6) for k, v in row.items()}

    @staticmethod
    def _trust(prediction: Prediction) -> dict:
        """Scores that come with the mask, averaged over its slices by their size; over all decoded slices where it is empty."""
        lesions = [e for e in prediction.evidence if e.pixels]
        shown, weights = (lesions, [e.pixels for e in lesions]) if lesions else (prediction.evidence, [1] * len(prediction.evidence))
        if not shown:
            return {"coverage": None, "confidence": None, "agreement": None, "references": 0, "seconds": prediction.seconds["total"]}
        confident = [e.confidence for e in lesions]  # a slice with a mask has one
        return {
            "coverage": round(float(np.average([e.coverage.value for e in shown], weights=weights)), 4),
            "confidence": round(float(np.average(confident, weights=weights)), 4) if confident else None,
            "agreement": round(1 - float(np.average([e.disagreement for e in shown], weights=weights)), 4),
            "references": sum(len(e.references) for e in shown),
            "seconds": prediction.seconds["total"],
        }

    def _calibrate(self, probability: np.ndarray, mask: np.ndarray, expert: np.ndarray, further: bool) -> None:
        temperature, box = self.segmenter.model.config.temperature, near_lesion(mask, expert)
        sets = [(self.spots, self.spots_near, probability)]
        if min(probability.shape) == 1:  # an average over slices or planes has no temperature of its own to take back
            sets.append((self.before, self.before_near, without_temperature(probability, temperature)))
        for everywhere, near, p in sets:
            everywhere.add(p, expert, further)
            near.add(p[box] if box else np.empty(0), expert[box] if box else np.empty(0), further)

    # ---- all of them

    def _result(self, name, cases: list[dict], leak, left, faults) -> dict:
        picture, segmenter = self.size == "px", self.segmenter
        groups = [c["group"] for c in cases]
        pool = segmenter.pool if segmenter is not None else None
        several = list(self.labels.values()) if self.labels is not None else []
        out = {
            "kind": KIND,
            "format": 1,
            "name": name,
            "cers": __version__,
            "model": segmenter.model.hash if segmenter else None,
            "model_name": segmenter.model.config.name if segmenter else None,
            "pool": pool.hash() if pool is not None else None,
            "pool_cases": len(pool) if pool is not None else None,
            "planes": " or ".join(sorted(self.decoded)) if segmenter else None,
            "images": len(cases),
            "labels": several or None,
            "units": {
                "hd95": "px" if picture else "mm",
                "volume_difference": self.size,
                "surface_tolerance": f"{PICTURE_TOLERANCE:g} px" if picture else f"{VOLUME_TOLERANCE:g} mm",
            },
            "rules": {
                "lesion_overlap": LEAST_OVERLAP,
                "failure_dice": FAILURE,
                "bins": BINS,
                "intervals": INTERVALS,
                **counts(groups),
            },
            "mean": _means(cases, groups),
        }
        if several:
            out["by_label"] = {label: _means([c["labels"][label] for c in cases], groups) for label in several}
        kinds = sorted({c["diagnosis"] for c in cases} - {None})
        if kinds:
            out["by_diagnosis"] = {
                k: _means([c for c in cases if c["diagnosis"] == k], [c["group"] for c in cases if c["diagnosis"] == k]) for k in kinds
            }
        out["calibration"] = self._calibration(groups) if segmenter else None
        out["failure"] = self._failure(cases, groups, pool) if segmenter else None
        splits = {item.name: item.split for item in self.found.items}
        out["training_images"] = sum(splits[c["image"]] == TRAINING for c in cases)
        return {**out, "leak": leak, "left": left, "not_in_table": self.found.untold, "faults": faults, "cases": cases}

    def _calibration(self, groups) -> dict:
        parts = {"everywhere": self.spots, "near_lesion": self.spots_near, "before": self.before, "before_near_lesion": self.before_near}
        return {
            "temperature": self.segmenter.model.config.temperature,
            **{k: r.summary(groups) if len(r) in (0, len(groups)) else None for k, r in parts.items()},
        }

    @staticmethod
    def _failure(cases: list[dict], groups, pool) -> dict:
        dice = [c["dice"] for c in cases]
        out = {"below": FAILURE, "failures": sum(d < FAILURE for d in dice)}
        for score in (("coverage",) if pool is not None else ()) + ("confidence", "agreement"):
            values = [c[score] for c in cases]
            out[score] = {"auroc": detection(values, dice, groups), "best_threshold_here": choose_threshold(values, dice)}
        return out


@contextmanager
def _of(what: str) -> Iterator[None]:
    """Says of a fault which of an image's files it is in, for they often have one name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def _means(rows: list[dict], groups) -> dict:
    return {m: interval([r[m] for r in rows], groups) for m in METRICS}


def over_labels(by_label: Mapping[str, dict]) -> dict[str, float | None]:
    """Every metric of a case, the mean over its labels."""
    out = {m: _mean([row[m] for row in by_label.values()]) for m in METRICS}
    if any(row["hd95"] is None and row["dice"] < 1 for row in by_label.values()):
        out["hd95"] = None  # a label that was missed has no distance; without it the mean would be better for it
    return out


def _mean(values: list[float | None]) -> float | None:
    kept = [v for v in values if v is not None]
    return round(sum(kept) / len(kept), 6) if kept else None


def _by_value(labelmap: np.ndarray, names: Mapping[int, str], labels: Mapping[int, str], what: str) -> np.ndarray:
    """A label map with the values of ``labels``: by name, or by value where no name fits.

    Raises:
        InputError: it has a value that is neither.
    """
    wanted = {name.lower(): value for value, name in labels.items()}
    present = [int(v) for v in np.unique(labelmap) if v]
    if isinstance(names, Unnamed):
        names = Unnamed(present, several=True)  # as a model calls its labels that learned from masks without names
    named = {v: wanted.get(str(names.get(v, "")).lower()) for v in present}
    if not any(n is not None for n in named.values()):
        named = {v: v if v in labels else None for v in present}
    if unknown := [v for v, to in named.items() if to is None]:
        raise InputError(
            f"the {what} has the label {unknown[0]} ({names.get(unknown[0], 'without a name')}), which is none of "
            f"{', '.join(f'{v} {n}' for v, n in labels.items())}."
        )
    out = np.zeros_like(labelmap)
    for value, to in named.items():
        out[labelmap == value] = to
    return out


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, CersError) else f"the file cannot be read ({getattr(error, 'strerror', None) or error})."
