"""Whether a score that comes with a mask tells failed masks from good ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from .statistics import auroc, bootstrap

FAILURE = 0.5  # a mask with a Dice below this has failed
FEW = 5  # fewer failures, or fewer good masks, make no interval, and an interval of fewer groups is too narrow


def detection(
    score: Sequence[float | None], dice: Sequence[float], groups: Sequence[Hashable | None] | None = None, failure: float = FAILURE
) -> dict:
    """AUROC of a score as a detector of failed masks, low scores meaning failure.

    Args:
        score: per case, None where there is none: left out and counted. dice: of the same cases.

    Returns:
        value, low, high of the AUROC (None where no mask failed or all did; the latter also where fewer than ``FEW`` failed or did not:
        such an interval would be too narrow), n, failures, undefined.
    """
    kept = [n for n, s in enumerate(score) if s is not None]
    s, failed = np.array([score[n] for n in kept], float), np.array([dice[n] < failure for n in kept], bool)
    value = auroc(-s, failed)
    low, high = (
        (None, None)
        if value is None or min(failed.sum(), (~failed).sum()) < FEW
        else bootstrap(lambda rows: auroc(-s[rows], failed[rows]), len(kept), None if groups is None else [groups[n] for n in kept])
    )
    return {
        "value": None if value is None else round(value, 4),
        "low": low,
        "high": high,
        "n": len(kept),
        "failures": int(failed.sum()),
        "undefined": len(score) - len(kept),
    }


def choose_threshold(score: Sequence[float | None], dice: Sequence[float], failure: float = FAILURE) -> dict | None:
    """The score below which a mask is best called doubtful: the largest Youden index (share of failures caught + share of good masks
    spared - 1), of several the lowest. Choose it on validation cases; on test cases it flatters itself.

    Returns:
        threshold, caught, spared; None where no mask failed or all did.
    """
    kept = [n for n, v in enumerate(score) if v is not None]
    s, failed = np.array([score[n] for n in kept], float), np.array([dice[n] < failure for n in kept], bool)
    if not failed.any() or failed.all():
        return None
    values = np.unique(s)
    candidates = np.concatenate([values[:1], (values[:-1] + values[1:]) / 2, values[-1:] + 1e-6])
    caught = np.array([(s[failed] < t).mean() for t in candidates])
    spared = np.array([(s[~failed] >= t).mean() for t in candidates])
    best = int(np.argmax(np.round(caught + spared, 9)))
    return {
        "threshold": round(float(candidates[best]), 6),
        "caught": round(float(caught[best]), 4),
        "spared": round(float(spared[best]), 4),
    }
