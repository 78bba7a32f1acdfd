"""Augmentation keeps picture and mask together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cers.training import augment


def scene(size=128, at=(60, 88), radius=9, n=1):
    r, c = np.indices((size, size))
    head = ((r - size / 2) / (0.44 * size)) ** 2 + ((c - size / 2) / (0.4 * size)) ** 2 <= 1
    lesion = (r - at[0]) ** 2 + (c - at[1]) ** 2 <= radius**2
    image = np.where(head, 0.4, 0.0)
    image[lesion] = 0.95
    image, mask = (torch.from_numpy(a.astype(np.float32))[None, None].repeat(n, 1, 1, 1) for a in (image, lesion))
    return image, mask


@pytest.mark.parametrize(("side", "size"), [(128, 128), (128, 64), (96, 80), (256, 96)])
def test_warped_masks_are_binary_and_lie_on_the_lesion(side, size):
    rng = np.random.default_rng(0)
    image, mask = scene(side, at=(int(side * 0.45), int(side * 0.6)), radius=side // 12, n=8)
    x, y = augment.warp(image, mask, 2, size, rng)
    assert x.shape == y.shape == (8, 1, size, size)
    assert set(y.unique().tolist()) <= {0.0, 1.0}
    for n in range(8):
        bright = x[n] > 0.7
        assert 2 * (bright & (y[n] > 0)).sum() / (bright.sum() + y[n].sum()) > 0.85
    assert not torch.equal(y[0], y[4])


def test_a_group_is_warped_alike():
    image, mask = scene(n=8)
    _, y = augment.warp(image, mask, 2, 128, np.random.default_rng(3))

    def centres(part):
        return torch.stack([torch.nonzero(m[0]).float().mean(0) for m in part])

    a, b = centres(y[:4]), centres(y[4:])
    assert (a - a.mean(0)).norm(dim=1).max() < (a.mean(0) - b.mean(0)).norm() + 12
    assert (a - a.mean(0)).norm(dim=1).max() < 14


def test_intensities_stay_in_range_and_in_place():
    image, _ = scene(n=16)
    before = image.clone()
    x = augment.intensities(image, np.random.default_rng(0))
    assert torch.equal(image, before) and torch.isfinite(x).all() and x.min() >= 0 and x.max() <= 1.3
    for n in range(16):
        assert x[n][image[n] > 0.9].mean() > x[n][(image[n] > 0.3) & (image[n] < 0.5)].mean() > x[n][image[n] == 0].mean()
    again = augment.intensities(image, np.random.default_rng(0))
    assert torch.equal(x, again)


def test_a_stripped_skull_takes_the_mask_along():
    image, mask = scene(n=1)
    for seed in range(6):
        x, y = augment.strip_skull(image[0], mask[0], np.random.default_rng(seed))
        assert x.shape == y.shape == (1, 128, 128) and set(y.unique().tolist()) <= {0.0, 1.0}
        if y.any():
            bright = x > 0.7
            assert 2 * (bright & (y > 0)).sum() / (bright.sum() + y.sum()) > 0.8
    assert (image[0] > 0).sum() > 0


def test_a_slab_is_a_band_in_the_middle_of_the_frame():
    image, mask = scene(n=1)
    body, extents, cut = image[0] > 0.05, [], 0
    for seed in range(30):
        x, y = augment.slab(image[0], mask[0], np.random.default_rng(seed))
        assert x.shape == image[0].shape and y.shape == mask[0].shape
        shown = x[0] > 0.05
        rows, columns = torch.where(shown.any(1))[0], torch.where(shown.any(0))[0]
        lying = rows[-1] - rows[0] < columns[-1] - columns[0]
        along, whole = (rows, body[0].any(1).sum()) if lying else (columns, body[0].any(0).sum())
        extents.append(float(len(along) / whole))
        assert abs(float(along[0] + along[-1]) / 2 - 64) < 2, "in the middle"
        assert torch.equal(x > 0.7, y > 0), "the mask goes with its picture"
        cut += not y.any()
    assert 0.15 < min(extents) < 0.4 and 0.6 < max(extents) < 0.85 and 0 < cut < 30
    empty = torch.zeros(1, 128, 128)
    assert not augment.slab(empty, empty, np.random.default_rng(0))[0].any()


def test_mirroring_takes_the_lesion_away():
    image, mask = scene()
    x, y = augment.mirror_patch(image[0], mask[0], np.random.default_rng(0), remove=True)
    assert not y.any() and x.shape == image[0].shape
    assert x[mask[0] > 0].max() < 0.45 and abs(float(x[mask[0] > 0].mean()) - 0.4) < 0.02
    assert torch.equal(x[:, :20], image[0][:, :20])


@pytest.mark.parametrize(("at", "radius"), [((60, 64), 9), ((60, 70), 14), ((60, 88), 45), ((22, 120), 12)])
def test_nothing_is_mirrored_at_the_midline_or_beyond_the_body(at, radius):
    image, mask = scene(at=at, radius=radius)
    assert augment.mirror_patch(image[0], mask[0], np.random.default_rng(0), remove=True) is None


def test_an_empty_mask_has_nothing_to_remove():
    image, mask = scene()
    assert augment.mirror_patch(image[0], mask[0] * 0, np.random.default_rng(0), remove=True) is None
    assert augment.transplant(image[0], mask[0] * 0, np.random.default_rng(0)) is None


def test_a_decoy_leaves_lesion_and_mask():
    image, mask = scene()
    done = [augment.mirror_patch(image[0], mask[0], np.random.default_rng(seed), remove=False) for seed in range(40)]
    done = [d for d in done if d is not None]
    assert done
    for x, y in done:
        assert torch.equal(y, mask[0])
        assert x[mask[0] > 0].mean() > 0.9


def test_a_transplant_covers_the_lesion_with_tissue():
    image, mask = scene()
    for seed in range(10):
        done = augment.transplant(image[0], mask[0], np.random.default_rng(seed))
        if done is not None:
            x, y = done
            assert not y.any() and x[mask[0] > 0].max() < 0.5 and x[mask[0] > 0].mean() > 0.3
            break
    else:
        pytest.fail("no place was found in ten tries")


def test_a_crop_without_lesion_shows_body_only():
    image, mask = scene()
    x, y = next(d for d in (augment.crop_without_lesion(image[0], mask[0], np.random.default_rng(s)) for s in range(20)) if d is not None)
    assert x.shape == image[0].shape and not y.any()
    assert x.max() < 0.5 and (x > 0.05).float().mean() > 0.4
    everywhere = torch.ones_like(mask[0])
    assert augment.crop_without_lesion(image[0], everywhere, np.random.default_rng(0)) is None


def test_a_faded_lesion_is_fainter_and_the_rest_as_it_was():
    image, mask = scene(at=(64, 84))
    faded = augment.fade(image[0], mask[0], np.random.default_rng(0))
    inside = mask[0] > 0
    assert 0.4 < faded[inside].mean() < 0.8 < image[0][inside].mean()
    far = torch.nn.functional.max_pool2d(mask, 31, 1, 15)[0] == 0
    assert torch.allclose(faded[far], image[0][far])


def test_a_lesion_too_large_to_hide_is_not_faded():
    image, mask = scene(radius=45)
    assert torch.equal(augment.fade(image[0], mask[0], np.random.default_rng(0)), image[0])


def test_boxes_are_boxes_of_two_to_forty_percent():
    rng, shares = np.random.default_rng(0), []
    for _ in range(400):
        box = augment.cut_box(100, rng)
        rows, columns = box.any(1).nonzero()[:, 0], box.any(0).nonzero()[:, 0]
        if len(rows):
            assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert 0.28 < len(rows) / len(columns) < 3.6
            shares.append(float(box.float().mean()))
    assert 150 < len(shares) < 250 and 0.015 < min(shares) < 0.05 and 0.35 < max(shares) < 0.41
