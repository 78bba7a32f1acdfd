"""Episodes that only the references define: what is to be segmented is made up, so that the masks of the references must be read.

Intensities are 0..1, background 0, as before ``normalise``.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F

KINDS = ("blob", "decoy", "place", "band", "region")
SHARES = (0.2, 0.1, 0.15, 0.1, 0.45)


def _grid(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    line = torch.linspace(-1, 1, size)
    return torch.meshgrid(line, line, indexing="ij")


def ellipses(size: int, centre: np.ndarray, radii: np.ndarray, angle: np.ndarray) -> torch.Tensor:
    """Filled ellipses (n, 1, size, size) float; centre, radii (n, 2) in -1..1 as (row, column), angle (n,) in radians."""
    rows, columns = _grid(size)
    c, r, a = (torch.from_numpy(np.asarray(v, np.float32)) for v in (centre, radii, angle))
    y, x = rows[None] - c[:, 0, None, None], columns[None] - c[:, 1, None, None]
    cos, sin = a.cos()[:, None, None], a.sin()[:, None, None]
    inside = ((x * cos + y * sin) / r[:, 1, None, None]) ** 2 + ((y * cos - x * sin) / r[:, 0, None, None]) ** 2
    return (inside < 1).float()[:, None]


def make(images: torch.Tensor, masks: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn a group of similar pictures (n, 1, s, s) with masks (n, labels, s, s) into one task: pictures, task's masks, usual masks.

    Every label gets the same target; the usual masks are those of the lesion that is still to be seen.

    blob: a patch of one brightness and texture is pasted, anywhere, and is the target. decoy: the same, but the lesion is. place: an
    ellipse at one place of the body, or the bright or dark tissue in it. band: tissue of one band of brightness, perhaps in one part
    only. region: a connected structure of one picture, or of several alike, moved and bent a little for each member (after the
    self-supervised superpixel episodes of Ouyang et al., ECCV 2020).
    """
    kind = KINDS[rng.choice(len(KINDS), p=SHARES)]
    x, y, usual = {"blob": _paste, "decoy": _paste, "place": _place, "band": _band, "region": _region}[kind](
        images, masks, rng, kind == "decoy"
    )
    if rng.random() < 0.3:
        turns = int(rng.integers(1, 4))
        x, y, usual = (t.rot90(turns, (2, 3)) for t in (x, y, usual))
    if rng.random() < 0.2:  # inverted contrast, the background stays
        x = torch.where(x > 0.05, 1.1 - x.clamp(max=1), x)
    return x.contiguous(), y.contiguous(), usual.contiguous()


def _same(target: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    return target.expand(-1, masks.shape[1], -1, -1).float()


def _paste(x, masks, rng, decoy: bool):
    n, size = len(x), x.shape[-1]
    shape = ellipses(size, rng.uniform(-0.55, 0.55, (n, 2)), rng.uniform(0.06, 0.3, (n, 2)), rng.uniform(0, np.pi, n))
    soft = F.avg_pool2d(F.avg_pool2d(shape, 3, 1, 1), 3, 1, 1)
    noise = torch.from_numpy(rng.normal(size=(n, 1, 16, 16)).astype(np.float32)) * float(rng.uniform(0, 0.12))
    texture = F.interpolate(noise, (size, size), mode="bilinear", align_corners=False)
    strength, value = float(rng.uniform(0.5, 1)), float(rng.uniform(0.06, 1.1))
    x = (x * (1 - strength * soft) + (value + texture) * strength * soft).clamp(min=0)
    hard = soft > 0.5
    usual = masks * ~hard
    return x, usual if decoy else _same(hard, masks), usual


def _place(x, masks, rng, _):
    n, size = len(x), x.shape[-1]
    centre = rng.uniform(-0.5, 0.5, 2) + rng.normal(0, 0.03, (n, 2))
    radii = rng.uniform(0.08, 0.3, 2) * rng.uniform(0.75, 1.3, (n, 2))
    target = ellipses(size, centre, radii, rng.uniform(0, np.pi) + rng.normal(0, 0.2, n)) > 0
    if rng.random() < 0.6:
        soft, bright = _smooth(x), rng.random() < 0.5
        for m in range(n):
            inside = soft[m][target[m]]
            if len(inside):
                target[m] &= (soft[m] > inside.median()) == bright
    return x, _same(target, masks), masks


def _band(x, masks, rng, _):
    soft, low, width = _smooth(x), float(rng.uniform(0.1, 0.85)), float(rng.uniform(0.1, 0.2))
    target = torch.zeros_like(x, dtype=torch.bool)
    for m in range(len(x)):
        body = soft[m] > 0.08
        values = soft[m][body][::4]
        if len(values) > 10:
            a, b = torch.quantile(values, torch.tensor([low, min(1.0, low + width)]))
            target[m] = (soft[m] >= a) & (soft[m] < b) & body
    if rng.random() < 0.6:
        part = ellipses(x.shape[-1], rng.uniform(-0.5, 0.5, (1, 2)), rng.uniform(0.2, 0.6, (1, 2)), np.zeros(1)) > 0
        target &= part
    return x, _same(target, masks), masks


def _region(x, masks, rng, _):
    """The members are one picture, or for half of the tasks several alike, as neighbours in a pool are, each with that structure."""
    n, size = len(x), x.shape[-1]
    chosen, soft = int(rng.integers(n)), _smooth(x)[:, 0].numpy()
    target = _grow(soft[chosen], rng)
    if target is None:  # a picture without body
        return _place(x, masks, rng, _)
    found = {chosen: target}
    if rng.random() < 0.5:
        for m in range(n):
            if m != chosen and (there := _follow(soft[chosen], target, soft[m])) is not None:
                found[m] = there
    members = rng.permutation(np.resize(list(found), n)) if len(found) > n // 2 else np.full(n, chosen)
    every = torch.cat([x[members], torch.from_numpy(np.stack([found[int(m)] for m in members]))[:, None].float(), masks[members]], 1)
    angle, shift = rng.normal(0, 0.12, n), rng.normal(0, 0.06, (n, 2))
    scale = np.exp(rng.normal(0, 0.08, (n, 2)))
    matrix = torch.from_numpy(
        np.stack(
            [
                np.stack([scale[:, 0] * np.cos(angle), -np.sin(angle), shift[:, 0]], 1),
                np.stack([np.sin(angle), scale[:, 1] * np.cos(angle), shift[:, 1]], 1),
            ],
            1,
        ).astype(np.float32)
    )
    bend = torch.from_numpy(rng.normal(0, 0.04, (n, 2, 5, 5)).astype(np.float32))
    grid = F.affine_grid(matrix, (n, 1, size, size), align_corners=False)
    grid = grid + F.interpolate(bend, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    moved = F.grid_sample(every, grid, align_corners=False)
    target, usual = moved[:, 1:2] > 0.5, (moved[:, 2:] > 0.5).float()
    return moved[:, :1], _same(target, masks), usual


def _grow(picture: np.ndarray, rng) -> np.ndarray | None:
    """A connected structure (h, w) bool around a random place of the body, of 0.2 to 6 % of the picture; None where none is found."""
    body, size = np.argwhere(picture > 0.08), len(picture)
    if len(body) < 100:
        return None
    rows, columns = np.ogrid[:size, :size]
    image = sitk.GetImageFromArray(np.ascontiguousarray(picture, np.float32))
    for _ in range(8):
        row, column = (int(v) for v in body[rng.integers(len(body))])
        value, width = float(picture[row, column]), float(rng.uniform(0.03, 0.15))
        tall, wide = rng.uniform(0.05, 0.2, 2) * size  # a window, or it would run through half of the head
        near = ((rows - row) / tall) ** 2 + ((columns - column) / wide) ** 2 < 1
        grown = sitk.GetArrayFromImage(sitk.ConnectedThreshold(image, [(column, row)], value - width, value + width)) * near
        found = _largest(grown)
        if 0.002 < found.mean() < 0.06:
            return found
    return None


def _follow(picture: np.ndarray, target: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """A structure of one picture in another that is alike (all (h, w)): what is as bright, near its place; None where that is unlike it."""
    body, bodies = np.sort(picture[picture > 0.08]), other[other > 0.08]
    if len(bodies) < 100:
        return None
    ranks = np.searchsorted(body, np.quantile(picture[target], [0.05, 0.95])) / len(body)  # brightness differs from scanner to scanner
    low, high = np.quantile(bodies, ranks)
    reach = max(2, round(0.04 * len(target)))
    near = sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(target.astype(np.uint8)), [reach, reach]))
    found = _largest((other >= low) & (other <= high) & (near > 0))
    overlap, size = 2 * (found & target).sum() / (found.sum() + target.sum()), found.sum() / target.sum()
    return found if overlap > 0.4 and 0.4 < size < 2.5 else None


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest part (h, w) bool of a mask without threads and holes."""
    closed = sitk.BinaryFillhole(sitk.BinaryMorphologicalOpening(sitk.GetImageFromArray(mask.astype(np.uint8)), [1, 1]))
    return sitk.GetArrayFromImage(sitk.RelabelComponent(sitk.ConnectedComponent(closed), sortByObjectSize=True)) == 1


def _smooth(x: torch.Tensor) -> torch.Tensor:
    for _ in range(2):
        x = F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
    return x
