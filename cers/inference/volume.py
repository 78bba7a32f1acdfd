"""From probabilities in a volume's grid to its label map."""

from __future__ import annotations

import numpy as np
import torch

ACROSS_MM = 2.0  # standard deviation of the smoothing across slices
COARSE_MM = 3.0  # slices across the acquisition are decoded about so far apart at first
BESIDE_MM2 = 100.0  # 1 cm2; pixels, where their size is not known
RIM_MM = 1.5  # by which borders may differ without a word
MARGIN = 0.1  # of the two thresholds, above and below the model's own, where several planes are fused


def reach(spacing_mm: float | None) -> int:
    """How many slices to either side have a say in the mask of one: none where slices are thick, or their distance is not known."""
    return int(2 * ACROSS_MM / spacing_mm) if spacing_mm else 0


def smooth_across(maps: torch.Tensor, spacing_mm: float | None, known: np.ndarray | None = None) -> torch.Tensor:
    """Probabilities (n, labels, h, w) of the slices of one plane -> the same, averaged across slices with a Gaussian of ``ACROSS_MM``.

    Slices are decoded one by one; where they lie closer than anatomy changes, what one sees its neighbours should see. Slices
    thicker than twice the standard deviation stay as they are. At the ends the weights of the slices that exist sum to 1, and so do those
    of the slices that are ``known`` (n,) where not all are: the others are made of their neighbours.
    """
    r = min(reach(spacing_mm), len(maps) - 1)
    if r < 1:
        return maps
    weights = torch.exp(-0.5 * (torch.arange(-r, r + 1) * spacing_mm / ACROSS_MM) ** 2).to(maps)
    there = torch.ones(len(maps)) if known is None else torch.from_numpy(known).float()
    there = there.to(maps)[:, None, None, None]
    out, total = torch.zeros_like(maps), torch.zeros_like(there)
    for shift, weight in zip(range(-r, r + 1), weights):
        to, source = slice(max(0, -shift), len(maps) - max(0, shift)), slice(max(0, shift), len(maps) + min(0, shift))
        out[to] += weight * there[source] * maps[source]
        total[to] += weight * there[source]
    return out / total.clamp(min=1e-12)


def to_labelmap(probabilities: np.ndarray, labels: dict[int, str], threshold: float) -> np.ndarray:
    """(labels, k, j, i) -> (k, j, i) uint8: the most probable label where it reaches the threshold, else 0."""
    values = np.array(list(labels), np.uint8)
    out = np.zeros(probabilities.shape[1:], np.uint8)
    for k in range(len(out)):  # one by one: argmax takes 8 bytes a voxel
        there = strongest(probabilities[:, k]) >= threshold
        if there.any():
            out[k] = np.where(there, values[probabilities[:, k].argmax(0)], 0)
    return out


def strongest(probabilities: np.ndarray) -> np.ndarray:
    """(labels, ...) -> (...): the largest over the labels; not copied where there is one label only."""
    return probabilities[0] if len(probabilities) == 1 else probabilities.max(0)


def sharpness(spacing: tuple[float, float] | None) -> float:
    """How far a plane's pixels (mm, mm) are from a square: 1 where they are, 0.1 where one side is ten times the other."""
    return min(spacing) / max(spacing) if spacing else 1.0


def bounds(threshold: float) -> tuple[float, float]:
    """The lower and the upper threshold where planes are fused: ``MARGIN`` away from the model's own, but always within 0..1."""
    return max(threshold - MARGIN, threshold / 2), min(threshold + MARGIN, (1 + threshold) / 2)


def fuse_planes(maps: list[np.ndarray], sharp: list[float], labels: dict[int, str], threshold: float):
    """Probabilities of the planes, each (labels, k, j, i), as one: their mean, that by sharpness, and the label map (k, j, i) uint8.

    Whether there is a lesion, all planes say alike: a part is kept where their mean somewhere exceeds the threshold by ``MARGIN``, or
    every one of them reaches it, as in a lesion so small that its mean is never that sure. Where it ends, the planes with square pixels
    say most: up to where the mean by sharpness falls below the threshold by as much (hysteresis, Canny, PAMI 1986). One plane alone is
    taken at its threshold.
    """
    if len(maps) == 1:
        return maps[0], maps[0], to_labelmap(maps[0], labels, threshold)
    mean = _mean(maps, [1.0] * len(maps))
    weighted = mean if len(set(sharp)) == 1 else _mean(maps, sharp)
    low, high = bounds(threshold)
    sure = (strongest(mean) >= high) | (votes(maps, threshold) == len(maps))
    return mean, weighted, keep_seeded(to_labelmap(weighted, labels, low), sure)


def votes(maps: list[np.ndarray], threshold: float) -> np.ndarray:
    """(k, j, i) uint8: how many of the planes reach the threshold."""
    out = np.zeros(maps[0].shape[1:], np.uint8)
    for m in maps:
        out += strongest(m) >= threshold
    return out


def _mean(maps: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """Weighted mean, added up in place: large volumes do not fit into memory several times."""
    out = maps[0] * np.float32(weights[0] / sum(weights))
    for m, weight in zip(maps[1:], weights[1:]):
        out += m * np.float32(weight / sum(weights))
    return out


def fuse_slice(
    mean: np.ndarray, weighted: np.ndarray, every: np.ndarray, beside: np.ndarray, labels: dict[int, str], threshold: float
) -> np.ndarray:
    """``fuse_planes`` for one slice alone: both means (labels, rows, columns) -> label map (rows, columns) uint8.

    Args:
        every: (rows, columns) bool; where all planes reach the threshold.
        beside: (rows, columns) bool; where the slices on either side hold a part that is kept: what touches it is kept, too.
    """
    low, high = bounds(threshold)
    grown = to_labelmap(weighted[:, None], labels, low)
    return keep_seeded(grown, ((strongest(mean) >= high) | every | _around(beside, 1))[None])[0]


def _around(mask: np.ndarray, pixels: int) -> np.ndarray:
    """(rows, columns) bool: the mask and what lies within so many pixels of it, diagonals included."""
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(mask.astype(np.uint8)), [pixels, pixels], sitk.sitkBox)) > 0


def keep_seeded(labelmap: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Set connected parts (full connectivity, labels together) without a seed to 0."""
    if not labelmap.any():
        return labelmap
    import SimpleITK as sitk

    image = sitk.ConnectedComponent(sitk.GetImageFromArray((labelmap > 0).astype(np.uint8)), True)
    parts = sitk.GetArrayViewFromImage(image)
    kept = np.zeros(parts.max() + 1, bool)
    kept[parts[seeds]] = True
    kept[0] = False
    return np.where(kept[parts], labelmap, 0).astype(labelmap.dtype)


def left_out(alone: np.ndarray, masks: np.ndarray, spacing: tuple[float, float] | None) -> np.ndarray:
    """(n, rows, columns) bool: what slices show in their own plane and the fused mask does not hold.

    A rim of ``RIM_MM`` on either side of a border is no finding (opened with a box of that size), nor is less than ``BESIDE_MM2`` beside
    the mask: where a lesion ends, planes differ.

    Args:
        alone, masks: (n, rows, columns) bool; the slices' own masks, and the fused one. spacing: (row, column) in mm, None if not known.
    """
    import SimpleITK as sitk

    more = alone & ~masks
    some = np.flatnonzero(more.any((1, 2)))
    if not len(some):
        return more
    rows, columns = (round(RIM_MM / s) for s in spacing) if spacing else (1, 1)
    opened = sitk.BinaryMorphologicalOpening(sitk.GetImageFromArray(more[some].astype(np.uint8)), [columns, rows, 0], sitk.sitkBox)
    out = np.zeros_like(more)
    out[some] = sitk.GetArrayFromImage(opened) > 0
    pixel = spacing[0] * spacing[1] if spacing else 1.0
    for n in some:
        if not out[n].any() or not masks[n].any():
            continue
        parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(out[n].astype(np.uint8)), True))
        small = np.bincount(parts.ravel()) * pixel < BESIDE_MM2
        small[~np.isin(np.arange(len(small)), parts[_around(masks[n], 2)])] = False
        out[n] &= ~small[parts]
    return out


def drop_small_parts(labelmap: np.ndarray, least_voxels: float) -> np.ndarray:
    """Set connected parts (full connectivity, labels together) of fewer than ``least_voxels`` voxels to 0."""
    if least_voxels <= 1 or not labelmap.any():
        return labelmap
    import SimpleITK as sitk

    parts = sitk.ConnectedComponent(sitk.GetImageFromArray((labelmap > 0).astype(np.uint8)), True)
    large = sitk.RelabelComponent(parts, minimumObjectSize=int(np.ceil(least_voxels)))
    kept = sitk.GetArrayViewFromImage(large) > 0
    return np.where(kept, labelmap, 0).astype(labelmap.dtype)


def soft_difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice with squared sums (Milletari et al., 3DV 2016) of probabilities (n, labels, h, w) and (labels, h, w): (n,), 0..1.

    With plain sums an unsure mask would differ from itself.
    """
    return (a - b).square().sum((1, 2, 3)) / (a.square().sum((1, 2, 3)) + b.square().sum()).clamp(min=1e-6)
