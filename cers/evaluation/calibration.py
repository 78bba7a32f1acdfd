"""Whether probabilities are to be believed: reliability, expected calibration error, and the temperature that mends them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from .statistics import bootstrap

BINS = 15
_CHUNK = 1 << 22  # voxels at a time, so that a large volume is never held in double precision


class Reliability:
    """Probabilities against how often they came true, in ``BINS`` bins of equal width, kept case by case.

    Expected calibration error (ECE): the mean over voxels of |share of lesion - mean probability| of a voxel's bin (Naeini et al., AAAI
    2015; here for the probability of a lesion, not of the more likely class).
    """

    def __init__(self) -> None:
        self._cases: list[np.ndarray] = []

    def add(self, probability: np.ndarray, lesion: np.ndarray, further: bool = False) -> None:
        """One case: probabilities 0..1 of its voxels and whether each is lesion, of one shape. further: another label of the last case."""
        total, probability, lesion = np.zeros((3, BINS)), np.ravel(probability), np.ravel(lesion)
        for start in range(0, probability.size, _CHUNK):
            p = probability[start : start + _CHUNK].astype(np.float64)
            y = lesion[start : start + _CHUNK] != 0
            place = np.minimum((p * BINS).astype(int), BINS - 1)
            total += np.stack([np.bincount(place, weights, BINS) for weights in (None, p, y)])
        if further:
            self._cases[-1] += total
        else:
            self._cases.append(total)

    def __len__(self) -> int:
        return len(self._cases)

    def ece(self) -> float | None:
        """Of all cases; None without voxels."""
        return _ece(np.stack(self._cases)) if self._cases else None

    def summary(self, groups: Sequence[Hashable | None] | None = None) -> dict | None:
        """ECE with its bootstrap interval over the cases that have voxels, and the curve: voxels, mean probability and share of lesion of
        every bin; None without voxels. groups: of each case that was added."""
        value = self.ece()
        if value is None:
            return None
        kept = [n for n, case in enumerate(self._cases) if case[0].any()]  # near a lesion there are none where both masks are empty
        stacked = np.stack([self._cases[n] for n in kept])
        groups = None if groups is None else [groups[n] for n in kept]
        low, high = bootstrap(lambda rows: _ece(stacked[rows]), len(stacked), groups)
        count, p, y = stacked.sum(0)
        curve = [
            {"voxels": int(n), "probability": round(a / n, 4) if n else None, "lesion": round(b / n, 4) if n else None}
            for n, a, b in zip(count, p, y)
        ]
        return {"ece": {"value": round(value, 4), "low": low, "high": high, "n": len(stacked)}, "bins": curve}


def _ece(cases: np.ndarray) -> float | None:
    """Of (cases, 3, bins): voxels, sum of their probabilities, number of lesion voxels."""
    count, p, y = cases.sum(0)
    return float(np.abs(p - y).sum() / count.sum()) if count.sum() else None


def without_temperature(probability: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities of one slice as they were before their logits were divided by a temperature (but for interpolation)."""
    p = np.clip(np.asarray(probability, np.float64), 1e-7, 1 - 1e-7)
    return 1 / (1 + ((1 - p) / p) ** temperature)


def near_lesion(mask: np.ndarray, expert: np.ndarray) -> tuple[slice, ...] | None:
    """The box around both masks, enlarged by half its size (at least 2 voxels) on every side; None where both are empty.

    Most of an image is background that no network doubts; within the box calibration says something.
    """
    used = np.nonzero((np.asarray(mask) != 0) | (np.asarray(expert) != 0))
    if not used[0].size:
        return None
    box = []
    for axis in used:
        low, high = int(axis.min()), int(axis.max()) + 1
        margin = max(2, (high - low) // 2)
        box.append(slice(max(0, low - margin), high + margin))
    return tuple(box)


def fit_temperature(logits, target) -> float:
    """Temperature that minimises the cross-entropy of pixels (Guo et al., ICML 2017), by golden-section search in 0.3..5.

    Args:
        logits, target: torch tensors of one shape; target 0 or 1. Of validation images, never of training or test ones.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    def loss(log_t: float) -> float:
        return float(binary_cross_entropy_with_logits(logits / np.exp(log_t), target))

    low, high, ratio = np.log(0.3), np.log(5.0), (5**0.5 - 1) / 2
    while high - low > 1e-3:
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return round(float(np.exp((low + high) / 2)), 3)
