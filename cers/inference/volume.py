"""From probabilities in a volume's grid to its label map."""

from __future__ import annotations

import numpy as np


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
