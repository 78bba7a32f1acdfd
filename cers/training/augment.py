"""Augmentation of groups of training frames: what a group shares keeps its references meaningful, the rest is per picture."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def _uniform(rng, low, high, *shape) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))


def _dilate(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Maximum of (c, h, w) over squares of ``size``, an odd number: rows, then columns, by maxima of twice the width each time."""
    for dim in (1, 2):
        reach, width = size // 2, 1
        border = maps.new_full((), float("-inf")).expand([reach if d == dim else n for d, n in enumerate(maps.shape)])
        maps = torch.cat([border, maps, border], dim)
        while width < size:
            step = min(width, size - width)
            maps = torch.maximum(maps.narrow(dim, 0, maps.shape[dim] - step), maps.narrow(dim, step, maps.shape[dim] - step))
            width += step
    return maps


def warp(images: torch.Tensor, masks: torch.Tensor, groups: int, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip, rotate, scale and shift (groups·n, 1, h, w); one transform per group with a small jitter per picture.

    Returns images and masks of side ``size``; images anti-aliased where they shrink by two or more.
    """
    total = len(images)
    n = total // groups

    def draw(jitter=0.2):
        return (_uniform(rng, -1, 1, groups, 1) + jitter * _uniform(rng, -1, 1, groups, n)).reshape(-1)

    angle, scale, shift_x, shift_y = 0.3 * draw(), 1.12 + 0.25 * draw(), 0.1 * draw(), 0.1 * draw()
    flip = torch.from_numpy(np.where(rng.random((groups, 1)) < 0.5, -1.0, 1.0).astype(np.float32)).expand(groups, n).reshape(-1)
    matrix = torch.zeros(total, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = scale * angle.cos() * flip, -scale * angle.sin()
    matrix[:, 1, 0], matrix[:, 1, 1] = scale * angle.sin() * flip, scale * angle.cos()
    matrix[:, 0, 2], matrix[:, 1, 2] = shift_x, shift_y
    over = 2 if images.shape[-1] >= 2 * size else 1
    grid = F.affine_grid(matrix, (total, 1, over * size, over * size), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    masks = F.grid_sample(masks, grid, align_corners=False)
    if over > 1:
        images, masks = F.avg_pool2d(images, over), F.avg_pool2d(masks, over)
    return images, (masks > 0.5).float()


def intensities(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Gamma, brightness limits, smooth shading, blur and noise on (n, 1, h, w) in 0..1; each picture of its own."""
    n = len(images)
    x = images.clamp(0, 1) ** torch.exp(_uniform(rng, -0.45, 0.45, n, 1, 1, 1))
    x = (x / _uniform(rng, 0.75, 1.25, n, 1, 1, 1)).clamp(0, 1.3)
    shading = F.interpolate(_uniform(rng, -1, 1, n, 1, 3, 3), x.shape[-2:], mode="bicubic", align_corners=False)
    x = x * (1 + 0.2 * _uniform(rng, 0, 1, n, 1, 1, 1) * shading)
    soft = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    x = torch.where(torch.from_numpy(rng.random((n, 1, 1, 1)) < 0.2), soft, x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    return (x + noise * 0.03 * _uniform(rng, 0, 1, n, 1, 1, 1)).clamp(0, 1.3)


def cut_box(size: int, rng: np.random.Generator) -> torch.Tensor:
    """(size, size) bool: in half of the draws true in a box of 2 to 40 % of the picture, up to 3.3 times as long as wide (UniMatch)."""
    box = torch.zeros(size, size, dtype=torch.bool)
    if rng.random() < 0.5:
        area, ratio = rng.uniform(0.02, 0.4) * size**2, np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
        height, width = (max(1, min(size, round(side))) for side in (np.sqrt(area * ratio), np.sqrt(area / ratio)))
        top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
        box[top : top + height, left : left + width] = True
    return box


def thick_slices(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur (1, h, w) along one axis as a reformat across slices two to nine pixels thick has it."""
    h, w = image.shape[-2:]
    factor = float(rng.uniform(2, 9))
    small = (round(h / factor), w) if rng.random() < 0.5 else (h, round(w / factor))
    smooth = F.interpolate(image[None], small, mode="area")
    return F.interpolate(smooth, (h, w), mode="bilinear", align_corners=False)[0]


def slab(image: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep a band of the body of (1, h, w), a fifth to four fifths of it, in the middle of the frame: a plane across a scan of few slices.

    The band lies along the rows or the columns; mask (labels, h, w) is cut alike.
    """
    axis = 1 if rng.random() < 0.7 else 2
    body = torch.where((image > 0.05).any(3 - axis)[0])[0]
    if not len(body):
        return image, mask
    first, whole = int(body[0]), int(body[-1] - body[0]) + 1
    kept = max(8, round(whole * float(rng.uniform(0.2, 0.8))))
    start = first + int(rng.integers(0, max(1, whole - kept + 1)))
    inside = torch.zeros(image.shape[axis])
    inside[start : start + kept] = 1
    inside = inside[:, None] if axis == 1 else inside[None]
    shift = image.shape[axis] // 2 - (start + kept // 2)
    return torch.roll(image * inside, shift, axis), torch.roll(mask * inside, shift, axis)


def strip_skull(image: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Blank an outer band of the body of (1, h, w) and enlarge what is left, as in skull-stripped scans; depth and zoom are random.

    The closed body outline is eroded; crude on purpose: what matters is that nothing outside the brain is needed.
    """
    closed = _dilate((image > 0.05).float(), 13)
    reach = 6 + int(rng.integers(8, 24))
    inside = 1 - _dilate(F.pad(1 - closed, (1, 1, 1, 1), value=1.0), 2 * reach + 1)[..., 1:-1, 1:-1]
    image = image * F.avg_pool2d(inside[None], 3, 1, 1)[0]
    side = int(image.shape[-1] * rng.uniform(0.72, 0.95))
    start = (image.shape[-1] - side) // 2
    return _enlarge(image, mask * inside, start, start, side)


def _enlarge(image, mask, top: int, left: int, side: int):
    size = image.shape[-2:]
    cut = (slice(None), slice(top, top + side), slice(left, left + side))
    image = F.interpolate(image[cut][None], size, mode="bilinear", align_corners=False)[0]
    return image, (F.interpolate(mask[cut][None], size, mode="bilinear", align_corners=False)[0] > 0.5).float()


def crop_without_lesion(image: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A random square part of (1, h, w) that shows body but no lesion, enlarged to the full frame; None if eight tries find none.

    Together with ``mirror_patch`` it teaches that a picture may hold no lesion.
    """
    size = image.shape[-1]
    for _ in range(8):
        side = int(size * rng.uniform(0.4, 0.75))
        top, left = (int(rng.integers(0, size - side)) for _ in range(2))
        part = (slice(None), slice(top, top + side), slice(left, left + side))
        if not mask[part].any() and float((image[part] > 0.05).float().mean()) > 0.5:
            return _enlarge(image, mask, top, left, side)
    return None


def transplant(image: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Cover the lesion of (1, h, w) with tissue from elsewhere in the picture, with a soft edge; None where no place fits."""
    grown = _dilate(mask, 15)
    if not 0 < float(grown.mean()) < 0.12:
        return None
    size = image.shape[-1]
    for _ in range(10):
        shift = (int(rng.integers(-size // 3, size // 3)), int(rng.integers(-size // 3, size // 3)))
        source = torch.roll(grown, shift, (-2, -1))
        if not (source * grown).any() and float((image * source > 0.08).float().sum()) > 0.95 * float(grown.sum()):
            soft = F.avg_pool2d(grown[None], 9, 1, 4)[0]
            return image * (1 - soft) + torch.roll(image, (-shift[0], -shift[1]), (-2, -1)) * soft, torch.zeros_like(mask)
    return None


def fade(image: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Make the lesion of (1, h, w) fainter: mix in what the picture would show without it. As it is where that cannot be told."""
    done = mirror_patch(image, mask, rng, remove=True) or transplant(image, mask, rng)
    share = float(rng.uniform(0.3, 0.75))
    return image if done is None else image * (1 - share) + done[0] * share


def mirror_patch(
    image: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator, remove: bool
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Replace a region of (1, h, w) by the tissue opposite of it, with a soft edge.

    remove: the region is the lesion, and the result is a lesion-free picture with an empty mask: BRISC has none, and volumes are
    full of them. Otherwise a random region elsewhere, the mask stays: so that the soft edge itself does not come to mean
    "no lesion". None where the opposite side touches the lesion or the region is too large.
    """
    grown = _dilate(mask, 15)
    if not remove:
        h, w = mask.shape[-2:]
        shift = (int(rng.integers(-h // 3, h // 3)), int(rng.integers(-w // 3, w // 3)))
        region = torch.roll(grown, shift, (-2, -1))
        if (region * _dilate(mask, 9)).any():
            return None
    else:
        region = grown
    source = region.flip(-1)
    if (source * grown).any() or not 0 < float(region.mean()) < 0.15:
        return None
    # both sides must be body, else there is nothing to mirror
    if float((image * source > 0.05).float().sum()) < 0.9 * float(source.sum()):
        return None
    soft = F.avg_pool2d(region[None], 7, 1, 3)[0]
    out = image * (1 - soft) + image.flip(-1) * soft
    return out, torch.zeros_like(mask) if remove else mask
