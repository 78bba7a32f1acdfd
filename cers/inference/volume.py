"""From probabilities in a volume's grid to its label map."""

from __future__ import annotations

import numpy as np
import torch

ACROSS_MM = 2.0  # standard deviation of the smoothing across slices
COARSE_MM = 3.0  # slices across the acquisition are decoded about so far apart at first
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
    best = probabilities.argmax(0)
    values = np.array(list(labels), np.uint8)
    return np.where(probabilities.max(0) >= threshold, values[best], 0).astype(np.uint8)


def sharpness(spacing: tuple[float, float] | None) -> float:
    """How far a plane's pixels (mm, mm) are from a square: 1 where they are, 0.1 where one side is ten times the other."""
    return min(spacing) / max(spacing) if spacing else 1.0


def fuse_planes(maps: list[np.ndarray], sharp: list[float], labels: dict[int, str], threshold: float):
    """Probabilities of the planes, each (labels, k, j, i), as one: their mean, that by sharpness, and the label map (k, j, i) uint8.

    Whether there is a lesion, all planes say alike: a part is kept where their mean somewhere exceeds the threshold by ``MARGIN``. Where
    it ends, the planes with square pixels say most: up to where the mean by sharpness falls below the threshold by as much (hysteresis,
    Canny, PAMI 1986). One plane alone is taken at its threshold.
    """
    mean = np.mean(maps, axis=0, dtype=np.float32)
    if len(maps) == 1:
        return mean, mean, to_labelmap(mean, labels, threshold)
    weighted = mean if len(set(sharp)) == 1 else np.average(maps, axis=0, weights=sharp).astype(np.float32)
    return mean, weighted, keep_seeded(to_labelmap(weighted, labels, threshold - MARGIN), mean.max(0) >= threshold + MARGIN)


def fuse_slice(mean: np.ndarray, weighted: np.ndarray, beside: np.ndarray, labels: dict[int, str], threshold: float) -> np.ndarray:
    """``fuse_planes`` for one slice alone: both means (labels, rows, columns) -> label map (rows, columns) uint8.

    Args:
        beside: (rows, columns) bool; where the slices on either side hold a part that is kept: what touches it is kept, too.
    """
    grown = to_labelmap(weighted[:, None], labels, threshold - MARGIN)
    import SimpleITK as sitk

    near = sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(beside.astype(np.uint8)), [1, 1], sitk.sitkBox)) > 0
    return keep_seeded(grown, ((mean.max(0) >= threshold + MARGIN) | near)[None])[0]


def keep_seeded(labelmap: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Set connected parts (full connectivity, labels together) without a seed to 0."""
    if not labelmap.any():
        return labelmap
    import SimpleITK as sitk

    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray((labelmap > 0).astype(np.uint8)), True))
    kept = np.zeros(parts.max() + 1, bool)
    kept[parts[seeds]] = True
    kept[0] = False
    return np.where(kept[parts], labelmap, 0).astype(labelmap.dtype)


def left_out(probabilities: np.ndarray, labelmap: np.ndarray, threshold: float, least_voxels: float) -> np.ndarray:
    """(k, j, i) bool: parts that one plane's probabilities (labels, k, j, i) show and of which the label map holds nothing.

    Parts of fewer than ``least_voxels`` are not looked at, as in the label map itself.
    """
    alone = (probabilities.max(0) >= threshold).astype(np.uint8)
    return (drop_small_parts(alone, least_voxels) > keep_seeded(alone, labelmap > 0)).astype(bool)


def drop_small_parts(labelmap: np.ndarray, least_voxels: float) -> np.ndarray:
    """Set connected parts (full connectivity, labels together) of fewer than ``least_voxels`` voxels to 0."""
    if least_voxels <= 1 or not labelmap.any():
        return labelmap
    import SimpleITK as sitk

    parts = sitk.ConnectedComponent(sitk.GetImageFromArray((labelmap > 0).astype(np.uint8)), True)
    kept = sitk.GetArrayFromImage(sitk.RelabelComponent(parts, minimumObjectSize=int(np.ceil(least_voxels)))) > 0
    return np.where(kept, labelmap, 0).astype(labelmap.dtype)
