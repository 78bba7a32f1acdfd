"""Threads: NumPy's must not take the cores that torch needs, and are given back."""

from __future__ import annotations

import numpy as np  # noqa: F401  loads the library whose threads are counted
import pytest
from synthetic import phantom
from threadpoolctl import threadpool_info

from cers.errors import Cancelled
from cers.inference.device import numpy_on_one_thread


def threads() -> list[int]:
    return [row["num_threads"] for row in threadpool_info() if row["internal_api"] == "openblas" and "numpy" in row["filepath"]]


def test_numpy_gets_its_threads_back():
    before = threads()
    with pytest.raises(ZeroDivisionError), numpy_on_one_thread():
        assert threads() == [1] * len(before)
        with numpy_on_one_thread():
            assert threads() == [1] * len(before)
        assert threads() == [1] * len(before)
        raise ZeroDivisionError
    assert threads() == before


def test_a_run_leaves_the_threads_as_they_were(segmenter):
    before, seen = threads(), []

    def watch(fraction, message):
        seen.append(threads())
        if fraction > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        segmenter.segment(phantom()[0], progress=watch)
    assert seen and all(s == [1] * len(before) for s in seen) and threads() == before
