"""The result of a training run on held-out pictures, in the form of ``cers evaluate``, with the evidence ablation; and two models compared.

Beyond the keys of ``cers.evaluation.run`` a result has ``run`` (``on``: test or validation; ``of``: how many pictures that part has;
``decoder``: whose masks the figures are of; split and training settings) and ``ablation`` (``arms``: Dice by kind of evidence;
``differences``: paired, each ``arm``, ``minus`` and its mean with interval). ``tile`` of a case is its place in the sheet of pictures.
"""

from __future__ import annotations

import hashlib

import numpy as np

from .. import __version__
from ..errors import InputError, ModelError
from ..inference.packing import anonymous
from ..inference.store import RESULT, Entry, read_json
from .calibration import BINS, Reliability, near_lesion
from .compare import compare_results
from .metrics import LEAST_OVERLAP, compare_masks
from .metrics import dice as dice_of
from .run import KIND, PICTURE_TOLERANCE, _means, over_labels
from .statistics import INTERVALS, counts, interval
from .tables import span

ARMS = ("plain", "null", "random", "retrieved")  # D_S; D_R without references, with any of the pool, with the chosen ones
ARM_NAMES = {"plain": "plain decoder", "null": "without references", "random": "random references", "retrieved": "retrieved references"}
_DIFFERENCES = (("retrieved", "null"), ("retrieved", "random"), ("retrieved", "plain"), ("null", "plain"))


class Cases:
    """Collects held-out pictures one by one.

    Args:
        labels: names, in channel order. temperature: that the model divides its logits by.
    """

    def __init__(self, labels: list[str], temperature: float):
        self.labels, self.temperature, self.rows = labels, temperature, []
        self._sets = {name: Reliability() for name in ("everywhere", "near_lesion", "before", "before_near_lesion")}

    def add(self, about: dict, logits: dict[str, np.ndarray], expert: np.ndarray) -> float:
        """One picture; its Dice.

        Args:
            about: image, group, diagnosis and the like. logits: arm -> (labels, rows, columns), the last arm being the one that serves.
            expert: (labels, rows, columns), not zero is lesion.
        """
        expert = np.asarray(expert) != 0
        best = logits[list(logits)[-1]]
        by_label = {}
        for n, (name, channel, drawn) in enumerate(zip(self.labels, best, expert)):
            row = compare_masks(channel > 0, drawn, (1.0, 1.0), PICTURE_TOLERANCE)
            by_label[name] = {k: None if v is None else round(v, 6) for k, v in row.items()}
            self._calibrate(channel, drawn, n > 0)
        case = {
            **about,
            "expert": hashlib.sha256(str(expert.shape).encode() + expert.tobytes()).hexdigest()[:16],
            **over_labels(by_label),
        }
        if len(by_label) > 1:
            case["labels"] = by_label
        case["arms"] = {
            arm: round(float(np.mean([dice_of(a > 0, b) for a, b in zip(values, expert)])), 6) for arm, values in logits.items()
        }
        self.rows.append(case)
        return case["dice"]

    def _calibrate(self, logits: np.ndarray, drawn: np.ndarray, further: bool) -> None:
        box = near_lesion(logits > 0, drawn)
        for temperature, everywhere, near in ((self.temperature, "everywhere", "near_lesion"), (1.0, "before", "before_near_lesion")):
            p = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64) / temperature, -60, 60)))
            self._sets[everywhere].add(p, drawn, further)
            self._sets[near].add(p[box] if box else np.empty(0), drawn[box] if box else np.empty(0), further)

    def result(self, name: str, model: str, run: dict) -> dict:
        """The whole result. model: hash. Raises InputError: there is no case."""
        if not self.rows:
            raise InputError("There is no held-out picture to measure on.")
        groups = [c.get("group") for c in self.rows]
        several = self.labels if len(self.labels) > 1 else []
        out = {
            "kind": KIND,
            "format": 1,
            "name": name,
            "cers": __version__,
            "model": model,
            "model_name": name,
            "pool": None,
            "pool_cases": None,
            "planes": None,
            "images": len(self.rows),
            "labels": several or None,
            "units": {"hd95": "px", "volume_difference": "px", "surface_tolerance": f"{PICTURE_TOLERANCE:g} px"},
            "rules": {
                "lesion_overlap": LEAST_OVERLAP,
                "bins": BINS,
                "intervals": INTERVALS,
                **counts(groups),
            },
            "mean": _means(self.rows, groups),
        }
        if several:
            out["by_label"] = {label: _means([c["labels"][label] for c in self.rows], groups) for label in several}
        kinds = sorted({c.get("diagnosis") for c in self.rows} - {None, ""})
        if kinds:
            out["by_diagnosis"] = {
                k: _means([c for c in self.rows if c.get("diagnosis") == k], [c.get("group") for c in self.rows if c.get("diagnosis") == k])
                for k in kinds
            }
        out["calibration"] = {"temperature": self.temperature, **{k: r.summary(groups) for k, r in self._sets.items()}}
        return {
            **out,
            "failure": None,
            "training_images": 0,
            "leak": None,
            "left": {},
            "not_in_table": 0,
            "faults": {},
            "run": run,
            "ablation": _ablation(self.rows, groups),
            "cases": self.rows,
        }


def _ablation(rows: list[dict], groups: list) -> dict:
    arms = [a for a in ARMS if a in rows[0]["arms"]]
    dice = {a: [r["arms"][a] for r in rows] for a in arms}
    pairs = [(a, b) for a, b in _DIFFERENCES if a in arms and b in arms]
    return {
        "arms": {a: interval(dice[a], groups) for a in arms},
        "differences": [{"arm": a, "minus": b, **interval([x - y for x, y in zip(dice[a], dice[b])], groups)} for a, b in pairs],
    }


def ablation_rows(result: dict) -> list[tuple[str, str, int]]:
    """(kind of evidence, mean Dice with interval, n), then the paired differences."""
    found = result.get("ablation") or {"arms": {}, "differences": []}
    return [(f"Dice, {ARM_NAMES[a]}", span(row), row["n"]) for a, row in found["arms"].items()] + [
        (f"{ARM_NAMES[d['arm']]} minus {ARM_NAMES[d['minus']]}", span(d), d["n"]) for d in found["differences"]
    ]


def read_model_result(entry: Entry) -> dict | None:
    """The result of a model, None where it was not measured.

    Raises:
        ModelError: it is damaged.
    """
    from pathlib import Path

    path = Path(entry.folder) / RESULT
    if not entry.folder or not path.exists():
        return None
    found = read_json(path)
    if found is None or found.get("kind") != KIND or not isinstance(found.get("mean"), dict) or not isinstance(found.get("cases"), list):
        raise ModelError(f"The result of the model '{entry.name}' is damaged. Measure it again with 'cers evaluate'.")
    return found


def compare_models(first: Entry, second: Entry) -> dict:
    """Both models' figures, and the paired difference (second minus first) where they were measured on the same cases.

    Returns:
        first, second: id, name, and mean, on, images where there is a result; difference (None if they cannot be paired), cases, reason:
        why they cannot.
    """
    results, sides = [], []
    for entry in (first, second):
        result = read_model_result(entry)
        results.append(result)
        sides.append(
            {
                "id": entry.id,
                "name": entry.name,
                "mean": result and result["mean"],
                "on": result and (result.get("run") or {}).get("on"),
                "images": result and result.get("images"),
            }
        )
    out = {"first": sides[0], "second": sides[1], "difference": None, "cases": 0, "reason": ""}
    missing = [side["name"] for side, result in zip(sides, results) if result is None]
    if first.id == second.id:
        return {**out, "reason": "This is one and the same model. Choose another one to compare with."}
    if missing:
        words = f"The model '{missing[0]}' comes without figures of single cases, so the two cannot be compared case by case."
        return {**out, "reason": f"{words} Run 'cers evaluate' with each of them on the same images, then 'cers compare'."}
    if any(r.get("anonymous") for r in results):
        results = [anonymous(r) for r in results]
    try:
        found = compare_results(*results)
    except (InputError, KeyError, TypeError) as error:
        words = "The two were not measured on the same cases, so only their means are shown."
        return {**out, "reason": str(error) if isinstance(error, InputError) and "not of the same cases" not in str(error) else words}
    return {**out, **{k: found[k] for k in ("difference", "cases", "units", "rules")}}
