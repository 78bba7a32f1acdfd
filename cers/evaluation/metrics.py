"""Figures that compare a mask with an expert's on the same grid.

Where a mask is empty: both empty is full agreement (Dice, IoU and surface Dice 1); one empty is none (0). HD95 needs a surface on both
sides and is None otherwise. Lesion sensitivity needs an expert lesion, precision a predicted one, F1 either; they are None otherwise.

Surface: voxels of the mask with a face neighbour outside it, the border of the image counting as outside. Distances run between voxel
centres. HD95: the larger of the two directed 95th percentiles. Surface Dice: share of both surfaces' voxels that lie within the tolerance
of the other surface (after Nikolov et al., JMIR 2021, doi:10.2196/26151, with voxels in place of surface elements).

Lesion: a connected part, voxels that touch at a corner included. An expert's lesion is found where the mask covers at least 10 % of it;
a predicted lesion is right where at least 10 % of it lies on expert lesions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError

METRICS = (
    "dice",
    "iou",
    "hd95",
    "surface_dice",
    "lesion_sensitivity",
    "lesion_precision",
    "lesion_f1",
    "volume_difference",
    "relative_volume_difference",
)
LEAST_OVERLAP = 0.1


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks; 1 where both are empty."""
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def compare_masks(
    mask: np.ndarray,
    expert: np.ndarray,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    tolerance: float = 1.0,
    unit_volume: float | None = None,
) -> dict[str, float | None]:
    """All of ``METRICS`` of a mask against the expert's.

    Args:
        mask, expert: (k, j, i) or (rows, columns); not zero is lesion.
        spacing: of the array's axes in that order, in the unit that HD95 and ``tolerance`` shall have.
        unit_volume: of one voxel, for ``volume_difference`` (mask - expert); default the product of ``spacing``.

    Raises:
        InputError: the masks differ in shape, or the spacing does not fit them.
    """
    mask, expert = np.asarray(mask) != 0, np.asarray(expert) != 0
    if mask.shape != expert.shape:
        raise InputError(f"The mask's size {mask.shape} differs from the expert mask's {expert.shape}. Both must lie on one grid.")
    if len(spacing) != mask.ndim or min(spacing) <= 0:
        raise InputError(f"A mask of {mask.ndim} axes needs {mask.ndim} positive spacings, not {tuple(spacing)}.")
    unit_volume = float(np.prod(spacing)) if unit_volume is None else unit_volume
    size, expert_size, both = int(mask.sum()), int(expert.sum()), int((mask & expert).sum())
    overlap = dice(mask, expert)
    difference = (size - expert_size) * unit_volume
    return {
        "dice": overlap,
        "iou": overlap / (2 - overlap),
        **_surface(mask, expert, spacing, tolerance),
        **_lesions(mask, expert, both),
        "volume_difference": difference,
        "relative_volume_difference": (size - expert_size) / expert_size if expert_size else None,
    }


def surface_distances(mask: np.ndarray, expert: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distances of each surface voxel of the mask to the expert's surface, and the reverse; empty arrays where either mask is empty."""
    mask, expert = np.asarray(mask) != 0, np.asarray(expert) != 0
    either = mask | expert
    if not mask.any() or not expert.any():
        return np.empty(0), np.empty(0)
    # an axis of one voxel has no surface across it; the margin makes the image's border part of the surface
    flat = tuple(axis for axis in range(mask.ndim) if mask.shape[axis] == 1)
    box = tuple(0 if axis in flat else slice(int(used.min()), int(used.max()) + 1) for axis, used in enumerate(np.nonzero(either)))
    kept = [s for axis, s in enumerate(spacing) if axis not in flat]
    if not kept:  # a single voxel, in both
        return np.zeros(1), np.zeros(1)
    first, second = (surface(np.pad(m[box], 1)) for m in (mask, expert))
    return _distance_to(second, kept)[first], _distance_to(first, kept)[second]


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask with a face neighbour outside it; the mask must not touch the array's border."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
    return mask & ~inner


def _distance_to(points: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance of every voxel's centre to the nearest of the points. A single row is given a second axis, which SimpleITK needs."""
    import SimpleITK as sitk

    shape = points.shape
    if points.ndim == 1:
        points, spacing = np.pad(points[None], ((1, 1), (0, 0))), (spacing[0], *spacing)
    image = sitk.GetImageFromArray(points.astype(np.uint8))
    image.SetSpacing([float(s) for s in spacing][::-1])
    distance = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    found = np.abs(sitk.GetArrayFromImage(distance))
    return found[1] if found.shape != shape else found


def _surface(mask, expert, spacing, tolerance: float) -> dict[str, float | None]:
    if not mask.any() or not expert.any():
        return {"hd95": None, "surface_dice": float(mask.any() == expert.any())}
    there, back = surface_distances(mask, expert, spacing)
    # a distance of exactly the tolerance lies within it, in spite of single precision
    within = sum(int((d <= tolerance * (1 + 1e-5)).sum()) for d in (there, back))
    return {"hd95": float(max(np.percentile(there, 95), np.percentile(back, 95))), "surface_dice": within / (there.size + back.size)}


def _lesions(mask, expert, both: int) -> dict[str, float | None]:
    sensitivity, precision = _share_hit(expert, mask, both), _share_hit(mask, expert, both)
    if sensitivity is None and precision is None:
        f1 = None
    elif not sensitivity or not precision:
        f1 = 0.0
    else:
        f1 = 2 * sensitivity * precision / (sensitivity + precision)
    return {"lesion_sensitivity": sensitivity, "lesion_precision": precision, "lesion_f1": f1}


def _share_hit(mask, other, both: int) -> float | None:
    """Share of a mask's connected parts of which the other mask covers enough."""
    import SimpleITK as sitk

    if not mask.any():
        return None
    if not both:
        return 0.0
    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True))
    size, covered = np.bincount(parts[mask]), np.bincount(parts[mask], weights=other[mask])
    return float((covered[1:] >= LEAST_OVERLAP * size[1:]).mean())
