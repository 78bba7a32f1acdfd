"""Smoothing across slices: what it must do to flicker, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cers.inference.volume import ACROSS_MM, reach, smooth_across


def test_thick_slices_and_unknown_distances_stay_as_they_are():
    maps = torch.rand(5, 1, 4, 4)
    assert smooth_across(maps, 6.5) is maps
    assert smooth_across(maps, None) is maps
    assert smooth_across(maps[:1], 1.0) is not None and torch.equal(smooth_across(maps[:1], 1.0), maps[:1])


def test_a_missed_slice_within_a_lesion_is_found_and_a_lone_false_one_is_not():
    maps = torch.zeros(21, 1, 2, 2)
    maps[5:16, :, 0, 0] = 0.9
    maps[10, :, 0, 0] = 0.1              # one slice of a lesion missed
    maps[10, :, 1, 1] = 0.9              # one slice with a finding of its own
    out = smooth_across(maps, 1.0)
    assert out[10, 0, 0, 0] > 0.5 and out[10, 0, 1, 1] < 0.5


@pytest.mark.parametrize("spacing", [0.5, 1.0, 1.7])
def test_inside_a_stack_it_is_a_gaussian(spacing):
    maps = torch.rand(60, 2, 3, 3)
    out = smooth_across(maps, spacing).numpy()
    kernel = np.exp(-0.5 * (np.arange(-reach(spacing), reach(spacing) + 1) * spacing / ACROSS_MM) ** 2)
    expected = np.apply_along_axis(np.convolve, 0, maps.numpy(), kernel / kernel.sum(), "same")
    middle = slice(reach(spacing), 60 - reach(spacing))
    np.testing.assert_allclose(out[middle], expected[middle], atol=1e-5)


def test_a_constant_stays_constant_to_the_ends():
    assert torch.allclose(smooth_across(torch.full((7, 1, 2, 2), 0.7), 1.0), torch.tensor(0.7))


def test_a_window_around_a_slice_gives_what_the_whole_stack_gives():
    maps, r = torch.rand(30, 1, 3, 3), reach(1.0)
    whole = smooth_across(maps, 1.0)
    for index in (0, 1, 14, 28, 29):
        first = max(0, index - r)
        assert torch.allclose(smooth_across(maps[first : index + r + 1], 1.0)[index - first], whole[index])
