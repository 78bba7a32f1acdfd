"""From slices to the network's frame and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cers.network.frame import CT_WINDOW, Frame, body_box, foreground, normalise, scale_intensities

SIZE = 224


def disk(shape, centre, radii) -> np.ndarray:
    r, c = np.ogrid[: shape[0], : shape[1]]
    return ((r - centre[0]) / radii[0]) ** 2 + ((c - centre[1]) / radii[1]) ** 2 <= 1


def dice(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def head(shape=(120, 100), seed=0) -> np.ndarray:
    """(3, rows, columns): an ellipse of tissue with a bright lesion, on zero."""
    rng = np.random.default_rng(seed)
    tissue = disk(shape, (shape[0] / 2, shape[1] / 2), (shape[0] * 0.4, shape[1] * 0.38))
    stack = np.where(tissue, rng.normal(400, 40, (3, *shape)), 0).astype(np.float32)
    stack[:, disk(shape, (shape[0] * 0.4, shape[1] * 0.6), (8, 7))] = 900
    return stack


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((240, 240), (1.0, 1.0)),
        ((97, 130), (1.0, 1.0)),
        ((512, 512), (0.45, 0.45)),
        ((64, 64), (3.0, 3.0)),
        ((40, 200), (5.0, 1.0)),
        ((200, 40), (1.0, 5.0)),
        ((301, 99), (0.7, 1.9)),
        ((224, 224), (1.0, 1.0)),
        ((33, 47), (4.0, 4.0)),
    ],
)
@pytest.mark.parametrize("box", ["whole", "middle", "corner", "opposite corner"])
def test_a_mask_survives_the_way_there_and_back(shape, spacing, box):
    rows, columns = shape
    box = {
        "whole": (0, rows, 0, columns),
        "middle": (rows // 5, rows - rows // 5, columns // 6, columns - columns // 4),
        "corner": (0, rows * 2 // 3, 0, columns * 2 // 3),
        "opposite corner": (rows // 3, rows, columns // 3, columns),
    }[box]
    centre, radii = ((box[0] + box[1] - 1) / 2, (box[2] + box[3] - 1) / 2), ((box[1] - box[0]) * 0.42, (box[3] - box[2]) * 0.42)
    mask = disk(shape, centre, radii)
    frame = Frame.around(box, shape, spacing, SIZE)
    small = frame.crop(mask[None].astype(np.float32))
    assert small.shape == (1, 1, SIZE, SIZE)
    back = frame.paste(small)
    assert back.shape == (1, 1, *shape)
    assert dice(back[0, 0] > 0.5, mask) > 0.97
    # and the hard mask that the network would be scored on
    assert dice(frame.paste((small > 0.5).float())[0, 0] > 0.5, mask) > 0.95


def test_the_frame_is_square_in_millimetres():
    shape, spacing = (40, 200), (5.0, 1.0)
    mask = disk(shape, (19.5, 99.5), (12, 60))  # a circle of 60 mm
    frame = Frame.around((0, 40, 0, 200), shape, spacing, SIZE)
    small = frame.crop(mask[None].astype(np.float32))[0, 0].numpy() > 0.5
    assert abs(small.any(1).sum() - small.any(0).sum()) <= 4
    assert frame.height * spacing[0] == pytest.approx(frame.width * spacing[1], rel=0.03)


def test_the_whole_box_is_in_the_frame_even_where_that_leaves_the_slice():
    frame = Frame.around((0, 100, 0, 60), (100, 60), (1.0, 1.0), 64)
    assert frame.left < 0 and frame.left + frame.width > 60
    picture = frame.crop(np.ones((1, 100, 60), np.float32))[0, 0]
    assert picture[:, 0].max() == 0 and picture[:, -1].max() == 0 and picture[32, 32] == 1


def test_a_point_comes_back_where_it_was():
    """To half a pixel, at every place, also in strongly anisotropic pixels."""
    shape = (60, 150)
    frame = Frame.around((5, 58, 10, 149), shape, (2.5, 1.0), SIZE)
    for row, column in ((8, 12), (30, 75), (55, 140), (20, 100)):
        mask = disk(shape, (row, column), (3, 6))
        back = frame.paste(frame.crop(mask[None].astype(np.float32)))[0, 0]
        r, c = np.indices(shape)
        assert abs((back * r).sum() / back.sum() - row) < 0.5
        assert abs((back * c).sum() / back.sum() - column) < 0.5


def test_outside_the_frame_is_zero():
    frame = Frame.around((50, 70, 50, 70), (120, 120), (1.0, 1.0), 64)
    back = frame.paste(torch.ones(2, 1, 64, 64))
    inside = np.zeros((120, 120), bool)
    inside[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width] = True
    assert (back[:, :, ~inside] == 0).all() and (back[:, :, inside] > 0.99).all()


@pytest.mark.parametrize(("a", "b"), [(1, 0), (0.001, 0), (37, 0), (1, 1000), (2.5, -512), (0.01, -3)])
def test_intensities_do_not_depend_on_gain_and_offset(a, b):
    stack = head()
    once, changed = scale_intensities(stack), scale_intensities(stack * np.float32(a) + np.float32(b))
    assert np.abs(once - changed).max() < 2e-3
    assert once.min() == 0 and once.max() == 1
    assert body_box(stack) == body_box(stack * np.float32(a) + np.float32(b))
    assert (normalise(torch.from_numpy(once[:, None])) - normalise(torch.from_numpy(changed[:, None]))).abs().max() < 0.02


def test_skull_stripped_and_z_normalised_images_keep_a_dark_background():
    """Tissue around 0 with negative values, background exactly 0: it must not become mid-grey."""
    stack = head()
    tissue = stack > 0
    z = np.where(tissue, (stack - stack[tissue].mean()) / stack[tissue].std(), 0).astype(np.float32)
    scaled = scale_intensities(z)
    assert (scaled[~tissue] == 0).all()
    assert np.corrcoef(scaled[tissue], stack[tissue])[0, 1] > 0.97
    box, raw = body_box(z), body_box(stack)
    assert max(abs(x - y) for x, y in zip(box, raw)) <= 2
    shifted = scale_intensities(z - 7)
    assert np.abs(shifted - scaled).max() < 1e-3


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float16, np.float64, bool])
def test_any_real_voxel_type(dtype):
    stack = (head() / 4 > 50) if dtype is bool else (head() / 4).clip(0, 250).astype(dtype)
    scaled = scale_intensities(stack)
    assert scaled.dtype == np.float32 and scaled.min() == 0 and scaled.max() == 1
    assert np.isfinite(scaled).all()


def test_ct_uses_a_fixed_window():
    stack = np.full((2, 80, 80), -1000, np.int16)
    stack[:, 20:60, 15:70] = 40
    stack[:, 30:40, 30:40] = 1200
    scaled = scale_intensities(stack, "CT")
    assert scaled[0, 0, 0] == 0 and scaled[0, 35, 35] == 1
    assert scaled[0, 25, 20] == pytest.approx((40 - CT_WINDOW[0]) / (CT_WINDOW[1] - CT_WINDOW[0]))
    assert body_box(stack, "CT") == (20, 60, 15, 70)
    assert foreground(stack, "CT").sum() == 2 * 40 * 55


def test_a_constant_image_is_harmless():
    stack = np.full((2, 50, 60), 7.0, np.float32)
    assert np.isfinite(scale_intensities(stack)).all()
    assert not foreground(stack).any()
    assert body_box(stack) == (0, 50, 0, 60)
    x = normalise(torch.zeros(1, 1, 32, 32))
    assert torch.isfinite(x).all()


def test_one_outlier_does_not_darken_the_image():
    stack = head()
    stack[0, 60, 50] = 1e7
    assert np.abs(scale_intensities(stack)[1:] - scale_intensities(head())[1:]).max() < 0.05


def test_body_box_ignores_a_few_bright_pixels_of_noise():
    stack = np.concatenate([head(), head(seed=1), head(seed=2)])
    clean = body_box(stack)
    stack[0, 2, 3] = 900
    assert body_box(stack) == clean


def test_an_image_cropped_inside_the_body_is_all_body():
    """No background anywhere: the frame must not close in on what differs from the tissue at the border."""
    whole = np.concatenate([head((200, 180)), head((200, 180), seed=3)])
    part = whole[:, 60:140, 50:130]
    assert (part[:, [0, -1]] > 0).all()
    assert foreground(part).mean() > 0.9 and body_box(part) == (0, 80, 0, 80)
    assert np.corrcoef(scale_intensities(part).ravel(), part.ravel())[0, 1] > 0.97


def test_a_bright_noisy_background_is_still_background():
    """As in an inverted picture."""
    rng = np.random.default_rng(0)
    stack = 1000 - head() + rng.normal(0, 3, (3, 120, 100)).astype(np.float32)
    inside = head() > 0
    assert (foreground(stack) == inside).mean() > 0.97


def test_normalised_body_has_mean_zero_and_variance_one():
    x = torch.from_numpy(scale_intensities(head())[:, None])
    y, body = normalise(x), x > 0.05
    for n in range(3):
        assert abs(float(y[n][body[n]].mean())) < 0.05 and float(y[n][body[n]].std()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_a_tall_stack_read_backwards_or_across_is_scaled_as_a_whole(dtype):
    """Large volumes are read some slices at a time, as views of an array; the map must be that of all of them."""
    rng = np.random.default_rng(0)
    stack = np.concatenate([head(seed=n) * (1 + n / 20) for n in range(14)])  # 42 slices of rising signal, 504,000 values
    stack = (stack + (stack > 0) * rng.normal(0, 5, stack.shape)).astype(dtype)
    body = foreground(stack)
    inside = stack[body].astype(np.float32)
    low, high = np.percentile(inside[:: max(1, inside.size // 400_000)], (0.5, 99.5))
    low = min(low, float(stack[0, 0, 0]))
    expected = np.clip((stack.astype(np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    assert np.abs(scale_intensities(stack) - expected).max() < 1e-6
    across = np.ascontiguousarray(stack.transpose(1, 2, 0)[::-1]).transpose(2, 0, 1)[:, ::-1]  # the same values, strided and flipped
    assert not across.flags.c_contiguous and (across == stack).all()
    assert (foreground(across) == body).all() and (scale_intensities(across) == scale_intensities(stack)).all()
