"""Figures of masks against closed forms, SimpleITK's own filters and all-pairs distances."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from cers.errors import InputError
from cers.evaluation.metrics import METRICS, compare_masks, dice, surface, surface_distances


def block(shape, *ranges) -> np.ndarray:
    out = np.zeros(shape, np.uint8)
    out[tuple(slice(*r) for r in ranges)] = 1
    return out


def ball(radius: float, shape=(41, 41, 41), spacing=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    grid = np.meshgrid(*((np.arange(n) - n // 2) * s - d for n, s, d in zip(shape, spacing, shift)), indexing="ij")
    return (sum(g**2 for g in grid) <= radius**2).astype(np.uint8)


def all_pairs(mask, expert, spacing) -> tuple[np.ndarray, np.ndarray]:
    """Surface distances without any distance map; masks must not touch the border."""
    a, b = (np.argwhere(surface(m > 0)) * np.array(spacing) for m in (mask, expert))
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    return distance.min(1), distance.min(0)


def test_shifted_square_in_a_picture():
    expert = block((1, 40, 40), (0, 1), (10, 20), (10, 20))
    found = compare_masks(np.roll(expert, 4, 2), expert)
    assert found["dice"] == pytest.approx(0.6) and found["iou"] == pytest.approx(60 / 140)
    assert found["hd95"] == 4.0 and found["volume_difference"] == 0 and found["relative_volume_difference"] == 0
    near = compare_masks(np.roll(expert, 1, 2), expert)
    assert near["hd95"] == 1.0 and near["surface_dice"] == 1.0  # every pixel of either outline lies within 1 px of the other
    assert 0 < found["surface_dice"] < 1


def test_a_picture_and_its_two_axes_give_the_same():
    expert = block((1, 30, 30), (0, 1), (5, 15), (4, 20))
    mask = np.roll(expert, (2, 3), (1, 2))
    assert compare_masks(mask, expert, (7.0, 1.0, 2.0), 2.0, 2.0) == compare_masks(mask[0], expert[0], (1.0, 2.0), 2.0)


@pytest.mark.parametrize("axis, distance", [(0, 10.0), (1, 2.0), (2, 1.0)])
def test_distances_are_in_mm_along_each_axis(axis, distance):
    expert = block((20, 30, 30), (6, 12), (8, 20), (8, 20))
    found = compare_masks(np.roll(expert, 2, axis), expert, (5.0, 1.0, 0.5), 2.0, 0.0025)
    assert found["hd95"] == pytest.approx(distance)
    assert (found["surface_dice"] == 1.0) == (distance <= 2.0)


def test_concentric_balls_on_anisotropic_voxels():
    spacing, small, large = (2.0, 1.0, 1.0), 8.0, 13.0
    shape = (21, 41, 41)
    mask, expert = ball(large, shape, spacing), ball(small, shape, spacing)
    found = compare_masks(mask, expert, spacing, 2.0, 0.002)
    assert found["hd95"] == pytest.approx(large - small, abs=1.5) and found["surface_dice"] == 0.0
    assert compare_masks(mask, expert, spacing, 8.0)["surface_dice"] == 1.0
    assert found["volume_difference"] == pytest.approx(4 / 3 * np.pi * (large**3 - small**3) / 1000, rel=0.05)
    assert found["relative_volume_difference"] == pytest.approx((large / small) ** 3 - 1, rel=0.07)


@pytest.mark.parametrize("seed", range(6))
def test_all_pairs_agree_with_the_distance_maps(seed):
    rng = np.random.default_rng(seed)
    shape, spacing = (9, 17, 15), (3.3, 0.7, 1.1)
    smooth = [sitk.GetArrayFromImage(sitk.DiscreteGaussian(sitk.GetImageFromArray(rng.normal(size=shape)), 2.0)) for _ in range(2)]
    mask, expert = (s > np.quantile(s, 0.75) for s in smooth)
    for m in (mask, expert):
        m[[0, -1]] = m[:, [0, -1]] = m[:, :, [0, -1]] = False
    there, back = all_pairs(mask, expert, spacing)
    found = surface_distances(mask, expert, spacing)
    assert np.allclose(np.sort(found[0]), np.sort(there), atol=1e-4) and np.allclose(np.sort(found[1]), np.sort(back), atol=1e-4)
    row = compare_masks(mask, expert, spacing, 1.5)
    assert row["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-4)
    assert row["surface_dice"] == pytest.approx(((there <= 1.5).sum() + (back <= 1.5).sum()) / (len(there) + len(back)))


def test_overlap_is_that_of_simpleitk():
    rng = np.random.default_rng(1)
    mask, expert = (rng.random((2, 6, 20, 20)) < 0.4).astype(np.uint8)
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(sitk.GetImageFromArray(expert), sitk.GetImageFromArray(mask))
    found = compare_masks(mask, expert)
    assert found["dice"] == pytest.approx(measure.GetDiceCoefficient()) == dice(mask, expert)
    assert found["iou"] == pytest.approx(measure.GetJaccardCoefficient())


def test_the_largest_distance_is_simpleitks_hausdorff_distance():
    spacing = (3.0, 1.0, 1.0)
    # the two lie apart, so that the distance of their regions, which the filter takes, is that of their surfaces
    mask, expert = (ball(5.0, (15, 41, 41), spacing, (0, 0, s)) for s in (-9.0, 8.0))
    images = [sitk.GetImageFromArray(m) for m in (mask, expert)]
    for image in images:
        image.SetSpacing(spacing[::-1])
    measure = sitk.HausdorffDistanceImageFilter()
    measure.Execute(*images)
    assert max(d.max() for d in surface_distances(mask, expert, spacing)) == pytest.approx(measure.GetHausdorffDistance(), abs=1e-4)


def test_the_image_border_ends_a_surface():
    whole = np.ones((4, 5, 6), np.uint8)
    there, back = surface_distances(whole, block((4, 5, 6), (0, 4), (0, 5), (0, 3)), (1.0, 1.0, 1.0))
    assert there.size == 4 * 5 * 6 - 2 * 3 * 4 and there.max() == 3.0 and back.max() == 1.0


@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 5, 1), (3, 1, 1), (1, 1, 1), (1, 6, 6)])
def test_thin_masks(shape):
    one = np.ones(shape, np.uint8)
    found = compare_masks(one, one, (5.0, 1.0, 2.0), 1.0)
    assert (found["dice"], found["hd95"], found["surface_dice"], found["lesion_f1"]) == (1.0, 0.0, 1.0, 1.0)


def test_a_row_of_voxels():
    mask, expert = block((1, 1, 9), (0, 1), (0, 1), (1, 3)), block((1, 1, 9), (0, 1), (0, 1), (5, 7))
    assert compare_masks(mask, expert, (5.0, 1.0, 0.5))["hd95"] == pytest.approx(1.975)


def test_empty_masks():
    none, some = np.zeros((1, 9, 9), np.uint8), block((1, 9, 9), (0, 1), (2, 5), (2, 5))
    both, missed, invented = compare_masks(none, none), compare_masks(none, some), compare_masks(some, none)
    assert set(both) == set(METRICS)
    assert (both["dice"], both["iou"], both["surface_dice"], both["volume_difference"]) == (1.0, 1.0, 1.0, 0.0)
    assert all(both[k] is None for k in ("hd95", "lesion_sensitivity", "lesion_precision", "lesion_f1", "relative_volume_difference"))
    assert (missed["dice"], missed["surface_dice"], missed["hd95"], missed["volume_difference"]) == (0.0, 0.0, None, -9.0)
    assert (missed["lesion_sensitivity"], missed["lesion_precision"], missed["lesion_f1"]) == (0.0, None, 0.0)
    assert missed["relative_volume_difference"] == -1.0
    assert (invented["lesion_sensitivity"], invented["lesion_precision"], invented["lesion_f1"]) == (None, 0.0, 0.0)
    assert invented["relative_volume_difference"] is None and invented["volume_difference"] == 9.0


def test_lesions_found_and_invented():
    size = (1, 60, 60)
    expert = block(size, (0, 1), (2, 8), (2, 8)) | block(size, (0, 1), (20, 30), (20, 30)) | block(size, (0, 1), (50, 55), (50, 55))
    mask = block(size, (0, 1), (4, 9), (4, 9)) | block(size, (0, 1), (20, 31), (20, 29)) | block(size, (0, 1), (40, 44), (2, 6))
    found = compare_masks(mask, expert)
    assert found["lesion_sensitivity"] == pytest.approx(2 / 3) and found["lesion_precision"] == pytest.approx(2 / 3)
    assert found["lesion_f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("columns, found", [(10, 1.0), (9, 0.0)])
def test_a_lesion_is_found_from_a_tenth_of_it(columns, found):
    expert = block((1, 30, 30), (0, 1), (10, 20), (10, 20))  # 100 pixels
    assert compare_masks(block((1, 30, 30), (0, 1), (10, 11), (10, 10 + columns)), expert)["lesion_sensitivity"] == found


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    expert = np.zeros((3, 5, 5), np.uint8)
    expert[1, 1, 1] = expert[2, 2, 2] = 1
    mask = np.zeros_like(expert)
    mask[1, 1, 1] = 1
    assert compare_masks(mask, expert)["lesion_sensitivity"] == 1.0


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(InputError, match="one grid"):
        compare_masks(np.zeros((1, 4, 4)), np.zeros((1, 4, 5)))
    with pytest.raises(InputError, match="positive spacings"):
        compare_masks(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), (1.0, 0.0, 1.0))
