"""Operations on small 2-D arrays that the descriptors are made of."""

from __future__ import annotations

import math

import numpy as np
import SimpleITK as sitk

_GREY_LEVELS = 16


def shrink(image: np.ndarray, size) -> np.ndarray:
    """Area-weighted reduction to ``size``; unlike strided sampling it treats a flipped image alike."""
    for axis in (0, 1):
        if image.shape[axis] != size[axis]:
            image = _weights(image.shape[axis], int(size[axis])) @ image if axis == 0 else image @ _weights(image.shape[1], int(size[1])).T
    return image


def shrink_mask(mask: np.ndarray, size) -> np.ndarray:
    """``shrink`` of a mask: pixels covered by half; of a thin or small one those covered most, so that its area stays about right."""
    cover = shrink(mask.astype(np.float32), size)
    area = max(1, int(round(float(cover.sum()))))
    small = cover >= 0.5
    if small.sum() < 0.7 * area:
        # the tolerance keeps ties together, which summation order would break differently in a flipped image
        small = cover >= np.partition(cover.ravel(), -area)[-area] - 1e-5
        small &= cover > 1e-4
    return small


_WEIGHTS: dict[tuple[int, int], np.ndarray] = {}


def _weights(n: int, m: int) -> np.ndarray:
    """(m, n) overlap of m equal bins with n pixels, rows summing to 1."""
    found = _WEIGHTS.get((n, m))
    if found is None:
        edges = np.arange(m + 1) * (n / m)
        pixels = np.arange(n)
        overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        found = (np.clip(overlap, 0, None) * (m / n)).astype(np.float32)
        if len(_WEIGHTS) > 512:
            _WEIGHTS.clear()
        _WEIGHTS[n, m] = found
    return found


def _itk(mask: np.ndarray, pixel: tuple[float, float] = (1.0, 1.0)) -> sitk.Image:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing((float(pixel[1]), float(pixel[0])))
    return image


def _run(filter_: sitk.ImageFilter, image: sitk.Image) -> sitk.Image:
    """Execute on one thread: slices are small, and starting threads costs more than the work."""
    filter_.SetNumberOfThreads(1)
    filter_.SetNumberOfWorkUnits(1)
    return filter_.Execute(image)


def signed_distance(mask: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """Outside ``mask`` the distance to its nearest pixel centre; inside minus the distance to its nearest border pixel."""
    distance = sitk.SignedMaurerDistanceMapImageFilter()
    distance.SetSquaredDistance(False)
    distance.SetUseImageSpacing(True)
    return sitk.GetArrayFromImage(_run(distance, _itk(mask, pixel)))


def _components(mask: np.ndarray, *, diagonal: bool, pixel: tuple[float, float] = (1.0, 1.0)) -> sitk.Image:
    parts = sitk.ConnectedComponentImageFilter()
    parts.SetFullyConnected(diagonal)
    return _run(parts, _itk(mask, pixel))


def border_points(mask: np.ndarray) -> np.ndarray:
    """(n, 2) row and column of the pixels with a neighbour (of 4) outside ``mask``."""
    padded = np.pad(mask, 1, mode="edge")
    kept = mask & ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])
    return np.argwhere(kept if kept.any() else mask)


def largest_filled(mask: np.ndarray) -> np.ndarray:
    """Largest connected part with its holes filled (a hole is what the frame cannot reach)."""
    parts = sitk.GetArrayFromImage(_components(mask, diagonal=True))
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    holes = sitk.GetArrayFromImage(_components(~largest, diagonal=False))
    is_hole = np.ones(int(holes.max()) + 1, bool)
    for edge in (holes[0], holes[-1], holes[:, 0], holes[:, -1]):
        is_hole[edge] = False
    return is_hole[holes] | largest


def shape(mask: np.ndarray, pixel: tuple[float, float]) -> dict[str, float]:
    """Parts, and compactness, solidity and elongation of the largest part; holes in it are no part of its outline."""
    padded = np.pad(mask, 1)
    counts = np.bincount(sitk.GetArrayFromImage(_components(padded, diagonal=True)).ravel())[1:]
    out: dict[str, float] = {"components": float((counts >= max(1.0, 0.02 * counts.sum())).sum())}
    if counts.max() < 8:
        return out
    largest = largest_filled(padded)
    stats = sitk.LabelShapeStatisticsImageFilter()
    _run(stats, _itk(largest, pixel))
    area = stats.GetPhysicalSize(1)
    out["compactness"] = min(100.0, 100 * 4 * math.pi * area / stats.GetPerimeter(1) ** 2)
    hull = _hull_area(largest, pixel)
    out["solidity"] = min(100.0, 100 * area / hull)
    small, large = stats.GetPrincipalMoments(1)
    if small > 0:
        out["elongation"] = math.sqrt(large / small)
    return out


def _hull_area(mask: np.ndarray, pixel: tuple[float, float]) -> float:
    """Area of the convex hull of the pixels' edge midpoints (corners would overstate small round lesions)."""
    rows = np.flatnonzero(mask.any(1))
    lines = mask[rows]
    left, right = lines.argmax(1) - 0.5, mask.shape[1] - 0.5 - lines[:, ::-1].argmax(1)
    caps = [(float(rows[n] + d), float(0.5 * (left[n] + right[n]))) for n, d in ((0, -0.5), (-1, 0.5))]

    def chain(columns: np.ndarray, sign: float) -> list[tuple[float, float]]:
        """Outermost points from the upper cap to the lower; sign +1 for the left side, -1 for the right."""
        out = [caps[0]]
        for p in [*zip(rows.tolist(), columns.tolist()), caps[1]]:
            while (
                len(out) > 1
                and sign * ((out[-1][0] - out[-2][0]) * (p[1] - out[-2][1]) - (out[-1][1] - out[-2][1]) * (p[0] - out[-2][0])) <= 0
            ):
                out.pop()
            out.append(p)
        return out

    y, x = np.array(chain(left, 1.0) + chain(right, -1.0)[-2:0:-1]).T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) * pixel[0] * pixel[1]


def cooccurrence(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Symmetric co-occurrence of direct neighbours inside the lesion; grey levels span the body's median -1 to +1 range."""
    levels = np.clip((image + 1) * (_GREY_LEVELS / 2), 0, _GREY_LEVELS - 1).astype(np.intp)
    total = np.zeros(_GREY_LEVELS * _GREY_LEVELS)
    h, w = mask.shape
    for dr, dc in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = (slice(0, h - dr), slice(max(0, -dc), w - max(0, dc)))
        b = (slice(dr, h), slice(max(0, dc), w + min(0, dc)))
        both = mask[a] & mask[b]
        total += np.bincount(levels[a][both] * _GREY_LEVELS + levels[b][both], minlength=total.size)
    if not total.any():
        return {}
    p = total.reshape(_GREY_LEVELS, _GREY_LEVELS)
    p = (p + p.T) / (2 * p.sum())
    difference = np.subtract.outer(np.arange(_GREY_LEVELS), np.arange(_GREY_LEVELS)) ** 2
    used = p[p > 0]
    return {
        "glcm_contrast": float((p * difference).sum()),
        "glcm_homogeneity": float((p / (1 + difference)).sum()),
        "glcm_entropy": float(-(used * np.log2(used)).sum()),
    }


def integral(image: np.ndarray) -> np.ndarray:
    """(rows + 1, columns + 1) running sums from the top left."""
    total = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    np.cumsum(image, 0, out=total[1:, 1:])
    return np.cumsum(total, 1, out=total)


def box(integral: np.ndarray, reach: int) -> np.ndarray:
    """Sum over the (2 reach + 1) square around each pixel, as far as it lies in the frame; from ``integral``."""
    rows, columns = (np.arange(n - 1) for n in integral.shape)
    r0, r1 = np.maximum(rows - reach, 0), np.minimum(rows + reach + 1, rows.size)
    c0, c1 = np.maximum(columns - reach, 0), np.minimum(columns + reach + 1, columns.size)
    band = integral[r1] - integral[r0]
    return band[:, c1] - band[:, c0]
