"""Smoothing across slices: what it must do to flicker, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cers.inference.volume import ACROSS_MM, bounds, fuse_planes, fuse_slice, keep_seeded, left_out, reach, sharpness, smooth_across


def test_thick_slices_and_unknown_distances_stay_as_they_are():
    maps = torch.rand(5, 1, 4, 4)
    assert smooth_across(maps, 6.5) is maps
    assert smooth_across(maps, None) is maps
    assert smooth_across(maps[:1], 1.0) is not None and torch.equal(smooth_across(maps[:1], 1.0), maps[:1])


def test_a_missed_slice_within_a_lesion_is_found_and_a_lone_false_one_is_not():
    maps = torch.zeros(21, 1, 2, 2)
    maps[5:16, :, 0, 0] = 0.9
    maps[10, :, 0, 0] = 0.1  # one slice of a lesion missed
    maps[10, :, 1, 1] = 0.9  # one slice with a finding of its own
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


LABELS = {1: "tumor"}


def plane(*places: tuple[slice, float]) -> np.ndarray:
    """Probabilities (1, 1, 4, 12) that are the given ones in the given columns."""
    maps = np.zeros((1, 1, 4, 12), np.float32)
    for columns, value in places:
        maps[..., columns] = value
    return maps


def test_one_plane_is_taken_at_its_threshold():
    maps = np.random.default_rng(0).random((1, 3, 4, 5)).astype(np.float32)
    mean, _, labelmap = fuse_planes([maps], [0.1], LABELS, 0.5)
    assert np.array_equal(mean, maps) and np.array_equal(labelmap, (maps[0] >= 0.5).astype(np.uint8))


def test_what_only_the_sharp_plane_sees_is_no_lesion_but_it_says_where_a_lesion_ends():
    sharp = plane((slice(0, 4), 0.95), (slice(8, 11), 0.95))  # a lesion, and a false finding apart from it
    blurred = plane((slice(0, 2), 0.95))  # the lesion, cut short
    mean, _, labelmap = fuse_planes([sharp, blurred, blurred], [1.0, 0.12, 0.12], LABELS, 0.5)
    assert labelmap[0, 0].tolist() == [1] * 4 + [0] * 8
    assert np.allclose(mean, (sharp + 2 * blurred) / 3)


def test_planes_alike_grow_a_sure_part_and_drop_an_unsure_one():
    sure, unsure = (slice(0, 2), 0.7), (slice(8, 10), 0.65)  # of which one plane shows nothing
    three = [plane(sure, (slice(2, 4), 0.45), unsure)] * 2 + [plane(sure, (slice(2, 4), 0.45), (slice(8, 10), 0.4))]
    *_, labelmap = fuse_planes(three, [1.0] * 3, LABELS, 0.5)
    assert labelmap[0, 0].tolist() == [1] * 4 + [0] * 8


def test_parts_that_touch_at_a_corner_are_one_and_labels_stay():
    labelmap = np.zeros((3, 4, 4), np.uint8)
    labelmap[0, 0, 0], labelmap[1, 1, 1], labelmap[2, 3, 3] = 2, 1, 1
    seeds = np.zeros((3, 4, 4), bool)
    seeds[0, 0, 0] = seeds[0, 3, 0] = True  # the second lies on nothing
    kept = keep_seeded(labelmap, seeds)
    assert kept[0, 0, 0] == 2 and kept[1, 1, 1] == 1 and kept.sum() == 3
    assert not keep_seeded(labelmap, seeds & False).any()


def test_sharpness_is_the_ratio_of_the_sides():
    assert sharpness(None) == sharpness((0.8, 0.8)) == 1 and sharpness((6.5, 0.65)) == pytest.approx(0.1)


def test_what_is_not_known_is_made_of_its_neighbours():
    maps, known = torch.full((12, 1, 2, 2), 0.7), np.ones(12, bool)
    known[[1, 2, 4, 5, 7, 8, 11]] = False
    maps[~known] = 100.0  # must not be looked at
    assert torch.allclose(smooth_across(maps, 1.0, known), torch.tensor(0.7))
    step = torch.linspace(0, 1, 12)[:, None, None, None].expand(12, 1, 2, 2)
    whole, part = smooth_across(step, 1.0), smooth_across(step, 1.0, known)
    assert (whole - part)[2:10].abs().max() < 0.06, "a ramp stays a ramp"


def test_what_one_plane_shows_and_the_mask_does_not_hold_is_left_out():
    alone, masks = np.zeros((6, 40, 40), bool), np.zeros((6, 40, 40), bool)
    alone[1:4, 2:12, 2:12] = True
    masks[1:4, 3:11, 3:11] = True  # the same lesion within a tighter border: its rim is no finding
    alone[3, 20:30, 20:30] = True  # nothing of it in the mask
    alone[4, 2:30, 2:30], masks[4, 2:6, 2:6] = True, True  # a mask that holds a corner of it must not silence the rest
    alone[5, 0, 0:30] = True  # a line
    alone[0, 10:20, 10:20], masks[0, 10:20, 10:16] = True, True  # 40 mm2 more beside the mask: planes differ where a lesion ends
    left = left_out(alone, masks, (1.0, 1.0))
    assert left.dtype == bool and left.sum((1, 2))[[0, 1, 2, 5]].tolist() == [0] * 4
    assert left[3].sum() == 100 and left[3, 20:30, 20:30].all() and 700 < left[4].sum() <= 28 * 28 - 16
    assert not (left & masks).any() and not (left & ~alone).any()
    assert left_out(alone, masks, None)[3].sum() == 100 and left_out(alone, masks, (6.5, 0.8))[3].any()
    assert not left_out(alone & masks, masks, (1.0, 1.0)).any()


def test_a_part_of_which_all_planes_are_just_sure_is_kept():
    """A small lesion, whose mean is nowhere far above the threshold; a part of which only the mean is, just, is not."""
    maps = [np.zeros((1, 5, 9, 9), np.float32) for _ in range(3)]
    for m, value in zip(maps, (0.52, 0.58, 0.51)):
        m[0, 2, 1:3, 1:3] = value
    for m, value in zip(maps, (0.8, 0.8, 0.1)):
        m[0, 2, 6:8, 6:8] = value
    _, _, labelmap = fuse_planes(maps, [1.0] * 3, LABELS, 0.5)
    assert labelmap.sum() == 4 and labelmap[2, 1:3, 1:3].all()


def test_a_slice_alone_is_fused_by_the_same_rules():
    """Every slice of a random volume: by itself, with what is kept beside it, it has what it has in the volume."""
    rng = np.random.default_rng(3)
    maps = [smooth_across(torch.from_numpy(rng.random((9, 1, 24, 24)).astype(np.float32)), 1.0).numpy()[:, 0][None] for _ in range(3)]
    mean, weighted, labelmap = fuse_planes(maps, [1.0, 0.5, 0.5], LABELS, 0.5)
    every = np.min([m[0] for m in maps], 0) >= 0.5
    assert (every & (mean[0] < 0.6)).any(), "some parts are kept by the second rule only"
    for k in range(1, 8):
        beside = (labelmap[[k - 1, k + 1]] > 0).any(0)
        alone = fuse_slice(mean[:, k], weighted[:, k], every[k], beside, LABELS, 0.5)
        assert np.array_equal(alone, labelmap[k])


@pytest.mark.parametrize("threshold", [0.01, 0.05, 0.5, 0.95, 0.99])
def test_bounds_lie_within_the_probabilities(threshold):
    low, high = bounds(threshold)
    assert 0 < low < threshold < high < 1
    maps = [np.zeros((1, 4, 4, 4), np.float32) for _ in range(3)]
    for m in maps:
        m[0, 1] = 0.999
    assert fuse_planes(maps, [1.0, 0.1, 0.1], LABELS, threshold)[2].sum() == 16
