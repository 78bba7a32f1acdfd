"""A mask of one slice as the runs of its pixels: short enough to travel and to be kept with the evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def to_runs(mask: np.ndarray) -> list[int]:
    """First pixel and length of every run of pixels that are not 0, one after the other, row by row; [] for none."""
    flat = np.concatenate([[0], np.asarray(mask).ravel() != 0, [0]]).astype(np.int8)
    starts, ends = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    return np.stack([starts, ends - starts], 1).ravel().tolist()


def from_runs(runs: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """The mask (rows, columns) bool of its runs.

    Raises:
        ValueError: the runs are not whole numbers in pairs, or do not lie within the slice.
    """
    out, pairs = np.zeros(shape[0] * shape[1], bool), np.asarray(runs if len(runs) else np.zeros(0, int))
    if len(pairs) % 2 or pairs.dtype.kind not in "iu":
        raise ValueError("runs are pairs of whole numbers")
    for start, length in pairs.reshape(-1, 2).tolist():
        if start < 0 or length < 0 or start + length > out.size:
            raise ValueError(f"a run of {length} pixels from {start} does not lie in a slice of {out.size}")
        out[start : start + length] = True
    return out.reshape(shape)
