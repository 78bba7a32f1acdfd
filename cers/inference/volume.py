"""From probabilities in a volume's grid to its label map."""

from __future__ import annotations

import numpy as np
import torch

ACROSS_MM = 2.0         # standard deviation of the smoothing across slices


def reach(spacing_mm: float | None) -> int:
    """How many slices to either side have a say in the mask of one: none where slices are thick, or their distance is not known."""
    return int(2 * ACROSS_MM / spacing_mm) if spacing_mm else 0


def smooth_across(maps: torch.Tensor, spacing_mm: float | None) -> torch.Tensor:
    """Probabilities (n, labels, h, w) of the slices of one plane -> the same, averaged across slices with a Gaussian of ``ACROSS_MM``.

    Slices are decoded one by one; where they lie closer than anatomy changes, what one sees its neighbours should see. Slices
    thicker than twice the standard deviation stay as they are. At the ends the weights of the slices that exist sum to 1.
    """
    r = min(reach(spacing_mm), len(maps) - 1)
    if r < 1:
        return maps
    weights = torch.exp(-0.5 * (torch.arange(-r, r + 1) * spacing_mm / ACROSS_MM) ** 2).to(maps)
    out, total = torch.zeros_like(maps), torch.zeros(len(maps), 1, 1, 1).to(maps)
    for shift, weight in zip(range(-r, r + 1), weights):
        to, source = slice(max(0, -shift), len(maps) - max(0, shift)), slice(max(0, shift), len(maps) + min(0, shift))
        out[to] += weight * maps[source]
        total[to] += weight
    return out / total


def to_labelmap(probabilities: np.ndarray, labels: dict[int, str], threshold: float) -> np.ndarray:
    """(labels, k, j, i) -> (k, j, i) uint8: the most probable label where it reaches the threshold, else 0."""
    best = probabilities.argmax(0)
    values = np.array(list(labels), np.uint8)
    return np.where(probabilities.max(0) >= threshold, values[best], 0).astype(np.uint8)


def drop_small_parts(labelmap: np.ndarray, least_voxels: float) -> np.ndarray:
    """Set connected parts (full connectivity, labels together) of fewer than ``least_voxels`` voxels to 0."""
    if least_voxels <= 1 or not labelmap.any():
        return labelmap
    import SimpleITK as sitk

    parts = sitk.ConnectedComponent(sitk.GetImageFromArray((labelmap > 0).astype(np.uint8)), True)
    kept = sitk.GetArrayFromImage(sitk.RelabelComponent(parts, minimumObjectSize=int(np.ceil(least_voxels)))) > 0
    return np.where(kept, labelmap, 0).astype(labelmap.dtype)
