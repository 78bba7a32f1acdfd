"""Means with their uncertainty: seeded bootstrap, by group of related cases where groups are known (Field & Welsh, JRSS B 2007)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from ..kin import Kin

DRAWS, FEWER = 2000, 1000  # of a mean; of any other statistic, which takes longer
MEANS = f"95 % percentile bootstrap, {DRAWS} draws, seed 0"
INTERVALS = f"95 % percentile bootstrap, {DRAWS} draws ({FEWER} of the calibration error and AUROC), seed 0"


def interval(values: Sequence[float | None], groups: Sequence[Hashable | None] | None = None, draws: int = DRAWS, seed: int = 0) -> dict:
    """Mean with its 95 % percentile bootstrap interval.

    Args:
        values: one per case; None where it is not defined, which is left out and counted.
        groups: of each case; whole groups are drawn. A case without a group (None) is one of its own.

    Returns:
        value, low, high (None where there is no value; the latter also where all are of one group, which says nothing of other groups), n:
        values that went in, undefined: those left out (only if there are any).
    """
    kept = [n for n, v in enumerate(values) if v is not None]
    out: dict = {"value": None, "low": None, "high": None, "n": len(kept)}
    if kept:
        numbers = np.array([values[n] for n in kept], float)
        rows = clusters(None if groups is None else [groups[n] for n in kept], len(kept))
        sums, counts = np.bincount(rows, numbers), np.bincount(rows)
        out["value"] = round(float(numbers.mean()), 4)
        if len(sums) > 1:
            drawn = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
            low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), (2.5, 97.5))
            out |= {"low": round(float(low), 4), "high": round(float(high), 4)}
    if len(kept) < len(values):
        out["undefined"] = len(values) - len(kept)
    return out


def clusters(groups: Sequence[Hashable | None] | None, count: int) -> np.ndarray:
    """(count,) number of each case's cluster, from 0; without groups each case is its own."""
    if groups is None:
        return np.arange(count)
    numbers: dict = {}
    return np.array([numbers.setdefault(("case", n) if g is None else ("group", g), len(numbers)) for n, g in enumerate(groups)], int)


def related(keys: Sequence[Sequence[str]]) -> list[str | None]:
    """The group of each case, where cases may be kin in several ways: those with a key in common, directly or through others, are of one.
    It is called by the first key of its first case.

    Args:
        keys: of each case, for instance its group and its patient; a case without any has no group (None).
    """
    kin = Kin()
    for own in keys:
        for key in own:
            kin.join(own[0], key)
    names: dict[str, str] = {}
    return [names.setdefault(kin.root(own[0]), own[0]) if own else None for own in keys]


def counts(groups: Sequence[str | None]) -> dict[str, int]:
    """How many groups there are, and cases without one."""
    return {"groups": len(set(groups) - {None}), "cases_without_group": groups.count(None)}


def bootstrap(
    statistic: Callable[[np.ndarray], float | None],
    count: int,
    groups: Sequence[Hashable | None] | None = None,
    draws: int = FEWER,
    seed: int = 0,
) -> tuple[float | None, float | None]:
    """95 % interval of any statistic of case rows (an integer array with repeats); draws for which it is None are left out.

    Returns:
        (low, high), None where fewer than half of the draws give a value, or all cases are of one group.
    """
    if not count:
        return None, None
    rows = clusters(groups, count)
    if rows.max() == 0:
        return None, None
    members = [np.flatnonzero(rows == c) for c in range(rows.max() + 1)]
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        value = statistic(np.concatenate([members[c] for c in rng.integers(0, len(members), len(members))]))
        if value is not None:
            found.append(value)
    if len(found) < draws / 2:
        return None, None
    low, high = np.percentile(found, (2.5, 97.5))
    return round(float(low), 4), round(float(high), 4)


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Probability that a positive case has the higher score, ties counting half (Mann-Whitney); None where one class is missing."""
    score, positive = np.asarray(score, float), np.asarray(positive, bool)
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return None
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # the mean rank of equal scores
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))
