"""What can be measured of one lesion in one display slice: texture, boundary and context, as plain numbers.

Every intensity descriptor is relative to the body's own signal range (5th to 95th percentile inside the body), so that an image times a
positive factor plus an offset gives the same numbers. Lengths are in mm where the spacing is known, in pixels otherwise. A number that
is not defined (no surrounding tissue, a lesion of one pixel) is None, never NaN.
"""

from __future__ import annotations

import math

import numpy as np
import SimpleITK as sitk

from ..errors import InputError

DESCRIPTORS: dict[str, tuple[str, str]] = {
    # texture
    "contrast": ("%", "median lesion signal minus median signal of the surrounding ring, of the body's signal range"),
    "cnr": ("", "mean lesion signal minus mean ring signal, over the ring's standard deviation"),
    "level": ("%", "median lesion signal minus the body's median signal, of the body's signal range"),
    "variation": ("%", "standard deviation inside the lesion, of the body's signal range"),
    "glcm_contrast": ("", "co-occurrence contrast inside the lesion: 16 grey levels over the body, 4 directions, neighbours"),
    "glcm_entropy": ("bit", "co-occurrence entropy inside the lesion"),
    "glcm_homogeneity": ("", "co-occurrence homogeneity (inverse difference moment) inside the lesion, 0 to 1"),
    "rim_core": ("%", "mean signal of the lesion's outer part minus that of its core, of the body's signal range"),
    # boundary
    "edge_width": ("%", "width of the signal step across the contour, of the lesion's equivalent diameter"),
    "edge_width_mm": ("mm", "width of the signal step across the contour"),
    "edge_width_px": ("px", "width of the signal step across the contour, where the spacing is not known"),
    "edge_cnr": ("", "median step across the contour over the surrounding ring's standard deviation"),
    "faint_contour": ("%", "part of the contour whose step is below 10 % of the body's signal range"),
    "compactness": ("%", "4 pi area / perimeter^2 of the largest part; 100 for a disk"),
    "solidity": ("%", "area of the largest part over that of its convex hull"),
    "elongation": ("", "long over short axis of the largest part's equivalent ellipse"),
    # context
    "area_mm2": ("mm2", "area of the lesion in the slice"),
    "area_px": ("px", "area of the lesion in the slice in pixels, where the spacing is not known"),
    "diameter_mm": ("mm", "diameter of the disk of equal area"),
    "diameter_px": ("px", "diameter of the disk of equal area in pixels, where the spacing is not known"),
    "area_body": ("%", "area of the lesion over that of the body in the slice"),
    "components": ("", "number of separate parts that each hold at least 2 % of the lesion"),
    "side": ("%", "lesion centre from the body's midline, of half the body's width; positive towards image right (patient left)"),
    "height": ("%", "lesion centre below the top of the body's box, of its height"),
    "across": ("%", "lesion centre from the image-left edge of the body's box, of its width"),
    "depth": ("%", "distance of the lesion to the body's outer edge, of the body's equivalent diameter"),
    "depth_mm": ("mm", "distance of the lesion to the body's outer edge"),
    "depth_px": ("px", "distance of the lesion to the body's outer edge in pixels, where the spacing is not known"),
    "bright_ring": ("%", "part of the surrounding ring that is much brighter than the body's typical signal: fat, vessels, bone on CT"),
    "dark_ring": ("%", "part of the surrounding ring inside the body that is dark: fluid-like or bone-like on MR; MR only"),
    "air_ring": ("%", "part of the surrounding ring that is as dark as air or lies outside the body"),
}

_BODY_SIZE = 96       # pixels of the longer side on which the body is found: enough for an outline, and quick
_CROP_SIZE = 80       # pixels of the longer side on which the lesion is measured
_GREY_LEVELS = 16
_FAINT_STEP = 0.10    # a step across the contour below this part of the body's range is hard to see


def measure(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float] | None = None, *, modality: str | None = None,
            plane: str | None = None) -> dict[str, float | None]:
    """Measure one lesion in one display slice.

    Args:
        image: (rows, columns), any real dtype, finite; raw values in display orientation.
        mask: (rows, columns), nonzero inside the lesion.
        spacing: (row, column) pixel size in mm, None where not known.
        modality: DICOM code; "dark_ring" is given for MR and for an unknown modality only.
        plane: "sagittal" has no side.

    Returns:
        every name of ``DESCRIPTORS`` with its number or None.

    Raises:
        InputError: shapes differ, not 2-D, not finite, spacing not positive, or an empty mask.
    """
    image, mask = np.asarray(image), np.asarray(mask) != 0
    if image.ndim != 2 or image.shape != mask.shape:
        raise InputError(f"Image and mask must be 2-D and of one size to be described; they are {image.shape} and {mask.shape}.")
    if image.dtype.kind not in "biuf" or (image.dtype.kind == "f" and not np.isfinite(image).all()):
        raise InputError("The slice cannot be described because it holds values that are not finite numbers. Replace them and try again.")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        raise InputError("The mask is empty in this slice, so there is no lesion to describe. Choose a slice that contains the lesion.")
    if spacing is not None and not (len(spacing) == 2 and all(math.isfinite(s) and s > 0 for s in spacing)):
        raise InputError(f"The pixel size {tuple(spacing)} is not usable. Give (row, column) in mm, both above zero, or None.")
    pixel = (1.0, 1.0) if spacing is None else (float(spacing[0]), float(spacing[1]))

    image = _unit_range(image)
    body = _Body(image, pixel)
    area = float(mask.sum()) * pixel[0] * pixel[1]
    diameter = 2 * math.sqrt(area / math.pi)
    margin = [max(4, int(math.ceil(0.35 * diameter / p))) for p in pixel]
    top, bottom = max(0, rows[0] - margin[0]), min(image.shape[0], rows[-1] + 1 + margin[0])
    left, right = max(0, columns[0] - margin[1]), min(image.shape[1], columns[-1] + 1 + margin[1])
    window = (slice(top, bottom), slice(left, right))
    crop = _Crop(body.scale(image[window]), mask[window], pixel, diameter)

    out: dict[str, float | None] = dict.fromkeys(DESCRIPTORS)
    out.update(crop.texture(body))
    out.update(crop.boundary())
    out.update(crop.neighbours(body, dark=modality in (None, "MR")))
    unit = "px" if spacing is None else "mm"
    lengths = {"diameter": diameter, "edge_width": crop.edge_width, "depth": body.depth(mask)}
    for name, value in lengths.items():
        out[f"{name}_{unit}"] = value
    out["area_px" if spacing is None else "area_mm2"] = area
    if crop.edge_width is not None:
        out["edge_width"] = 100 * crop.edge_width / diameter
    out["area_body"] = 100 * area / body.area
    if lengths["depth"] is not None:
        out["depth"] = 100 * lengths["depth"] / (2 * math.sqrt(body.area / math.pi))
    r, c = (float((np.arange(n) + 0.5) @ mask.sum(1 - axis)) / float(mask.sum()) for axis, n in enumerate(mask.shape))
    out["height"], out["across"] = body.position(r, c)
    if plane != "sagittal":
        out["side"] = body.side(c)
    return {name: None if value is None or not math.isfinite(value) else round(float(value), 4) for name, value in out.items()}


def _unit_range(image: np.ndarray) -> np.ndarray:
    """(rows, columns) float32 from 0 to 1, so that neither units nor offsets matter; a constant background becomes 0.

    A background that is not the darkest value (a skull-stripped image with mean zero, an inverted picture) would pass for tissue.
    """
    values = image.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(high - low):
        raise InputError("The slice cannot be described because its values are too large for a computer's arithmetic. Rescale the image.")
    frame = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    background = float(np.median(frame))
    if background > low and (frame == background).mean() > 0.9 and (values == background).mean() > 0.1:
        same = values == background
        if not same.all():
            rest = values[~same]
            low, high = float(rest.min()), float(rest.max())
            # below all tissue, so that even the darkest of it stays apart
            low -= 0.15 * (high - low)
            values[same] = low
    return ((values - low) / (high - low)).astype(np.float32) if high > low else np.zeros(image.shape, np.float32)


class _Body:
    """The body in one slice, found on a coarse grid, and its signal range.

    low, median, span: background threshold, typical signal and the range from the 5th to the 95th percentile, in the image's units.
    """

    def __init__(self, image: np.ndarray, pixel: tuple[float, float]):
        self.shape = image.shape
        step = max(1.0, max(image.shape) / _BODY_SIZE)
        size = [max(1, round(n / step)) for n in image.shape]
        small = _shrink(image, size)
        self.factor = tuple(n / s for n, s in zip(image.shape, size))
        self.pixel = tuple(p * f for p, f in zip(pixel, self.factor))
        dark, bright = np.percentile(small, (1, 99))
        self.low = float(dark + 0.12 * (bright - dark))
        tissue = small > self.low
        if not tissue.any():
            tissue[:] = True
        self.mask = _largest_filled(tissue)
        if self.mask.mean() > 0.97:
            self.mask[:] = True         # a few dark pixels at the frame are no outline: the picture is a part of a body
        inside = small[self.mask & tissue]
        p5, self.median, p95 = (float(v) for v in np.percentile(inside if inside.size else small, (5, 50, 95)))
        span = p95 - p5
        self.span = span if span > 1e-6 else 1.0
        self.area = float(self.mask.sum()) * self.pixel[0] * self.pixel[1]
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        self.box = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
        self.air = (self.low - self.median) / self.span

    def scale(self, image: np.ndarray) -> np.ndarray:
        """Signal -> 0 at the body's median, 1 = the body's range."""
        return (image - np.float32(self.median)) / np.float32(self.span)

    def position(self, row: float, column: float) -> tuple[float, float]:
        """Percent of the body's box from its top and from its image-left edge; row and column in pixels of the full image."""
        r, c = row / self.factor[0], column / self.factor[1]
        top, bottom, left, right = self.box
        return 100 * (r - top) / (bottom - top), 100 * (c - left) / (right - left)

    def side(self, column: float) -> float:
        """Percent of half the body's width from its midline, positive towards image right."""
        left, right = self.box[2:]
        middle = float((np.arange(self.mask.shape[1]) + 0.5) @ self.mask.sum(0)) / float(self.mask.sum())
        return 100 * (column / self.factor[1] - middle) / max(0.5 * (right - left), 1e-6)

    def depth(self, mask: np.ndarray) -> float | None:
        """Shortest distance from the lesion to the outside of the body; None where no outside is seen."""
        if self.mask.all():
            return None
        lesion = _shrink(mask.astype(np.float32), self.mask.shape) >= 0.5
        if not lesion.any():
            r, c = np.argwhere(mask).mean(0)
            lesion[int((r + 0.5) / self.factor[0]), int((c + 0.5) / self.factor[1])] = True
        # only borders can be nearest, so all pairs are few enough
        a, b = _border_points(lesion) * self.pixel, _border_points(~self.mask) * self.pixel
        return max(0.0, math.sqrt(float(((a[:, None] - b[None]) ** 2).sum(2).min())) - 0.5 * min(self.pixel))


class _Crop:
    """The lesion and its surroundings, in body units (see ``_Body.scale``), on a grid of at most ``_CROP_SIZE`` pixels a side."""

    def __init__(self, image: np.ndarray, mask: np.ndarray, pixel: tuple[float, float], diameter: float):
        step = max(1.0, max(image.shape) / _CROP_SIZE)
        if step > 1:
            size = [max(1, round(n / step)) for n in image.shape]
            pixel = tuple(p * n / s for p, n, s in zip(pixel, image.shape, size))
            image, mask = _shrink(image, size), _shrink(mask.astype(np.float32), size) >= 0.5
        self.image, self.mask, self.pixel, self.diameter = image, mask, pixel, diameter
        self.unit = unit = math.sqrt(pixel[0] * pixel[1])
        signed = _signed_distance(mask, pixel)
        self.outside = np.maximum(signed, 0)                        # 0 inside, else distance to the lesion
        self.inside = np.where(mask, unit - signed, 0)              # 0 outside, else distance to the surroundings
        width = max(3 * unit, 0.2 * diameter)
        self.ring = (self.outside > 1.01 * unit) & (self.outside <= unit + width)
        self.edge_width: float | None = None
        self.ring_sd: float | None = None

    def texture(self, body: _Body) -> dict[str, float | None]:
        """First-order and co-occurrence descriptors of the lesion, and against its surroundings."""
        out: dict[str, float | None] = {}
        values = self.image[self.mask].astype(np.float64)
        out["level"] = 100 * float(np.median(values))
        out["variation"] = 100 * float(values.std()) if values.size > 1 else None
        tissue = self.image[self.ring & (self.image > body.air)].astype(np.float64)
        if tissue.size >= 4:
            out["contrast"] = 100 * float(np.median(values) - np.median(tissue))
            self.ring_sd = float(tissue.std())
            if self.ring_sd > 1e-6:
                out["cnr"] = float(values.mean() - tissue.mean()) / self.ring_sd
        out.update(_cooccurrence(self.image, self.mask))
        deepest = float(self.inside.max())
        if deepest > 3 * self.unit:
            depth = self.inside[self.mask]
            # the outermost pixel is half surroundings, so it says nothing of the rim
            rim, core = values[(depth > 1.01 * self.unit) & (depth <= 0.4 * deepest)], values[depth > 0.6 * deepest]
            if rim.size and core.size:
                out["rim_core"] = 100 * float(rim.mean() - core.mean())
        return out

    def boundary(self) -> dict[str, float | None]:
        """Edge width, contrast along the contour and shape. Sets ``edge_width``."""
        out: dict[str, float | None] = dict(_shape(self.mask, self.pixel))
        contour = self.mask & (self.inside <= 1.001 * self.unit)            # the lesion's own border pixels
        frame = np.zeros_like(contour)
        frame[1:-1, 1:-1] = True
        contour &= frame                                                    # the frame is no boundary
        reach = max(2, int(round(0.12 * self.diameter / self.unit)))
        near_in, near_out = self.mask & (self.inside > 0.5 * self.unit), ~self.mask & (self.outside > 0.5 * self.unit)
        weights_in, weights_out = _box(near_in, reach), _box(near_out, reach)
        ok = contour & (weights_in > 0.5) & (weights_out > 0.5)
        if not ok.any():
            return out
        inner = _box(np.where(near_in, self.image, 0), reach)[ok] / weights_in[ok]
        outer = _box(np.where(near_out, self.image, 0), reach)[ok] / weights_out[ok]
        step = np.abs(inner - outer)
        out["faint_contour"] = 100 * float((step < _FAINT_STEP).mean())
        if self.ring_sd and self.ring_sd > 1e-6:
            out["edge_cnr"] = float(np.median(step)) / self.ring_sd
        dr, dc = np.gradient(self.image, *self.pixel) if min(self.image.shape) > 1 else (None, None)
        if dr is not None:
            slope = _maximum(np.hypot(dr, dc))[ok]
            strong = step >= _FAINT_STEP / 2
            if strong.sum() >= 3:
                self.edge_width = float(np.median(step[strong] / np.maximum(slope[strong], 1e-6)))
        return out

    def neighbours(self, body: _Body, *, dark: bool) -> dict[str, float | None]:
        """What the surrounding ring consists of."""
        ring = self.image[self.ring]
        if ring.size < 4:
            return {}
        air = float((ring <= body.air).mean())
        out: dict[str, float | None] = {"air_ring": 100 * air, "bright_ring": 100 * float((ring > 0.45).mean())}
        if dark:
            out["dark_ring"] = 100 * float(((ring > body.air) & (ring <= 0.45 * body.air)).mean())
        return out


def _shrink(image: np.ndarray, size) -> np.ndarray:
    """Area-weighted reduction to ``size``; unlike strided sampling it treats a flipped image alike."""
    for axis in (0, 1):
        if image.shape[axis] != size[axis]:
            image = _weights(image.shape[axis], int(size[axis])) @ image if axis == 0 else image @ _weights(image.shape[1], int(size[1])).T
    return image


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


def _signed_distance(mask: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """Outside ``mask`` the distance to its nearest pixel centre; inside minus the distance to its nearest border pixel."""
    distance = sitk.SignedMaurerDistanceMapImageFilter()
    distance.SetSquaredDistance(False)
    distance.SetUseImageSpacing(True)
    return sitk.GetArrayFromImage(_run(distance, _itk(mask, pixel)))


def _components(mask: np.ndarray, *, diagonal: bool, pixel: tuple[float, float] = (1.0, 1.0)) -> sitk.Image:
    parts = sitk.ConnectedComponentImageFilter()
    parts.SetFullyConnected(diagonal)
    return _run(parts, _itk(mask, pixel))


def _border_points(mask: np.ndarray) -> np.ndarray:
    """(n, 2) row and column of the pixels with a neighbour (of 4) outside ``mask``."""
    padded = np.pad(mask, 1, mode="edge")
    kept = mask & ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])
    return np.argwhere(kept if kept.any() else mask)


def _largest_filled(mask: np.ndarray) -> np.ndarray:
    """Largest connected part with its holes filled (a hole is what the frame cannot reach)."""
    parts = sitk.GetArrayFromImage(_components(mask, diagonal=True))
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    holes = sitk.GetArrayFromImage(_components(~largest, diagonal=False))
    is_hole = np.ones(int(holes.max()) + 1, bool)
    for edge in (holes[0], holes[-1], holes[:, 0], holes[:, -1]):
        is_hole[edge] = False
    return is_hole[holes] | largest


def _shape(mask: np.ndarray, pixel: tuple[float, float]) -> dict[str, float]:
    """Parts, compactness, solidity and elongation of the largest part."""
    padded = np.pad(mask, 1)
    parts = _components(padded, diagonal=True, pixel=pixel)
    labels = sitk.GetArrayFromImage(parts)
    counts = np.bincount(labels.ravel())[1:]
    out: dict[str, float] = {"components": float((counts >= max(1.0, 0.02 * counts.sum())).sum())}
    largest = 1 + int(np.argmax(counts))
    if counts[largest - 1] < 8:
        return out
    stats = sitk.LabelShapeStatisticsImageFilter()
    _run(stats, parts)
    area = stats.GetPhysicalSize(largest)
    out["compactness"] = min(100.0, 100 * 4 * math.pi * area / stats.GetPerimeter(largest) ** 2)
    hull = _hull_area(labels == largest, pixel)
    out["solidity"] = min(100.0, 100 * area / hull)
    small, large = stats.GetPrincipalMoments(largest)
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
            while len(out) > 1 and sign * ((out[-1][0] - out[-2][0]) * (p[1] - out[-2][1])
                                           - (out[-1][1] - out[-2][1]) * (p[0] - out[-2][0])) <= 0:
                out.pop()
            out.append(p)
        return out

    y, x = np.array(chain(left, 1.0) + chain(right, -1.0)[-2:0:-1]).T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) * pixel[0] * pixel[1]


def _cooccurrence(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
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
    return {"glcm_contrast": float((p * difference).sum()), "glcm_homogeneity": float((p / (1 + difference)).sum()),
            "glcm_entropy": float(-(used * np.log2(used)).sum())}


def _box(image: np.ndarray, reach: int) -> np.ndarray:
    """Sum over the (2 reach + 1) square around each pixel, zero outside the frame."""
    total = np.zeros((image.shape[0] + 2 * reach + 1, image.shape[1] + 2 * reach + 1))
    total[reach + 1:reach + 1 + image.shape[0], reach + 1:reach + 1 + image.shape[1]] = image
    np.cumsum(total, 0, out=total)
    np.cumsum(total, 1, out=total)
    size = 2 * reach + 1
    # beyond the padded frame the running sum stays constant, so that clamped indices are right
    r0, c0 = np.arange(image.shape[0]), np.arange(image.shape[1])
    r1, c1 = np.minimum(r0 + size, total.shape[0] - 1), np.minimum(c0 + size, total.shape[1] - 1)
    return total[np.ix_(r1, c1)] - total[np.ix_(r0, c1)] - total[np.ix_(r1, c0)] + total[np.ix_(r0, c0)]


def _maximum(image: np.ndarray) -> np.ndarray:
    """Maximum over the 3x3 neighbourhood."""
    padded = np.pad(image, 1, mode="edge")
    rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    return np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
