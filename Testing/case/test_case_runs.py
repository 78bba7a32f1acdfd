"""Masks of slices as runs of pixels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cers.case.runs import from_runs, to_runs


@pytest.mark.parametrize("seed", range(5))
def test_there_and_back(seed):
    mask = np.random.default_rng(seed).random((13, 9)) > (0.0, 0.3, 0.5, 0.9, 1.0)[seed]
    runs = json.loads(json.dumps(to_runs(mask)))
    assert np.array_equal(from_runs(runs, mask.shape), mask) and sum(runs[1::2]) == mask.sum()


def test_a_view_in_any_order_is_taken_row_by_row():
    mask = np.arange(12).reshape(3, 4)[::-1, ::-1].T % 3
    assert np.array_equal(from_runs(to_runs(mask), mask.shape), mask > 0)
    assert to_runs(np.array([[0, 1, 1], [1, 0, 1]])) == [1, 3, 5, 1]


@pytest.mark.parametrize("runs", [[1], [0, 7], [-1, 2], [0, -1], [0.5, 2], ["a", "b"], [0, 2, 5]])
def test_what_is_no_mask_is_refused(runs):
    with pytest.raises(ValueError):
        from_runs(runs, (2, 3))
