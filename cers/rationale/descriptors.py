"""What can be measured of one lesion in one display slice: texture, boundary and context, as plain numbers.

Every intensity descriptor is relative to the body's own signal range (5th to 95th percentile inside the body), so that an image times a
positive factor plus an offset gives the same numbers. Lengths are in mm where the spacing is known, in pixels otherwise. A number that
is not defined (no surrounding tissue, a lesion of one pixel) is None, never NaN.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import InputError
from .pixels import border_points, box, cooccurrence, integral, largest_filled, shape, shrink, shrink_mask, signed_distance

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

_BODY_SIZE = 96  # pixels of the longer side on which the body is found: enough for an outline, and quick
_CROP_SIZE = 80  # pixels of the longer side on which the lesion is measured
_CT_AIR = -200.0  # HU; no tissue but lung is darker
_FAINT_STEP = 0.10  # a step across the contour below this part of the body's range is hard to see


def measure(
    image: np.ndarray,
    mask: np.ndarray,
    spacing: tuple[float, float] | None = None,
    *,
    modality: str | None = None,
    plane: str | None = None,
) -> dict[str, float | None]:
    """Measure one lesion in one display slice.

    Args:
        image: (rows, columns), any real dtype, finite; raw values in display orientation.
        mask: (rows, columns), nonzero inside the lesion.
        spacing: (row, column) pixel size in mm, None where not known.
        modality: DICOM code; CT is taken to be in Hounsfield units, and "dark_ring" is given for MR and for an unknown modality only.
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

    image, body = _look(image, pixel, modality)
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
    height, across = body.position(r, c, plane in ("coronal", "sagittal"))
    # the middle between two parts is no place of the lesion
    out["height"] = height if mask[int(r)].any() else None
    if mask[:, int(c)].any():
        out["across"] = across
        out["side"] = None if plane == "sagittal" else body.side(c)
    return {name: None if value is None or not math.isfinite(value) else round(float(value), 4) for name, value in out.items()}


def body_outline(image: np.ndarray, modality: str | None = None) -> np.ndarray:
    """(rows, columns) bool: the body in one display slice as ``measure`` sees it; everywhere True where it fills the frame."""
    body = _look(image, (1.0, 1.0), modality)[1]
    rows, columns = (np.minimum((np.arange(n) * s / n).astype(int), s - 1) for n, s in zip(image.shape, body.mask.shape))
    return body.mask[np.ix_(rows, columns)]


def _look(image: np.ndarray, pixel: tuple[float, float], modality: str | None) -> tuple[np.ndarray, _Body]:
    """The slice from 0 to 1 as of ``_unit_range``, and the body in it."""
    air = math.inf
    if modality == "CT" and image.min() < -20:
        # scanners mark what lies outside their field of view by values far below air, which would make air look like tissue
        image = np.maximum(image, -1000)
        # where the frame lies within the body its darkest values are fat, and no air; not so where air was cut to one value
        air = _CT_AIR if (image == image.min()).mean() < 0.005 else air
    scaled, low, high = _unit_range(image)
    return scaled, _Body(scaled, pixel, (air - low) / (high - low) if high > low else air)


def _unit_range(image: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(rows, columns) float32 from 0 to 1, so that neither units nor offsets matter, and the values that became 0 and 1.

    A constant background becomes 0: one that is not the darkest value (a skull-stripped image with mean zero, an inverted picture)
    would pass for tissue.
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
    return ((values - low) / (high - low)).astype(np.float32) if high > low else np.zeros(image.shape, np.float32), low, high


def _grid(shape: tuple[int, int], pixel: tuple[float, float], most: int) -> list[int]:
    """Rows and columns of a grid of at most ``most`` pixels a side, as long as they are wide where the image is fine enough."""
    least = max(n * p for n, p in zip(shape, pixel)) / most
    return [max(1, round(n / max(1.0, least / p))) for n, p in zip(shape, pixel)]


class _Body:
    """The body in one slice, found on a coarse grid, and its signal range.

    low, median, span: background threshold, typical signal and the range from the 5th to the 95th percentile, in the image's units.
    air: signal above which nothing is background.
    """

    def __init__(self, image: np.ndarray, pixel: tuple[float, float], air: float):
        self.shape = image.shape
        size = _grid(image.shape, pixel, _BODY_SIZE)
        small = shrink(image, size)
        self.factor = tuple(n / s for n, s in zip(image.shape, size))
        self.pixel = tuple(p * f for p, f in zip(pixel, self.factor))
        dark, bright = np.percentile(small, (1, 99))
        self.low = min(float(dark + 0.12 * (bright - dark)), air)
        tissue = small > self.low
        if not tissue.any():
            tissue[:] = True
        self.mask = largest_filled(tissue)
        if self.mask.mean() > 0.97:
            self.mask[:] = True  # a few dark pixels at the frame are no outline: the picture is a part of a body
        inside = small[self.mask & tissue]
        p5, self.median, p95 = (float(v) for v in np.percentile(inside if inside.size else small, (5, 50, 95)))
        span = p95 - p5
        self.span = span if span > 1e-6 else 1.0
        self.area = float(self.mask.sum()) * self.pixel[0] * self.pixel[1]
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        self.box = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
        high, wide = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
        edges = {
            "top": (self.mask[0], wide),
            "bottom": (self.mask[-1], wide),
            "left": (self.mask[:, 0], high),
            "right": (self.mask[:, -1], high),
        }
        # a body that only touches the frame does so over less than half of its extent
        self.cut = {edge for edge, (line, extent) in edges.items() if line.sum() > 0.5 * extent}
        self.air = (self.low - self.median) / self.span

    def scale(self, image: np.ndarray) -> np.ndarray:
        """Signal -> 0 at the body's median, 1 = the body's range."""
        return (image - np.float32(self.median)) / np.float32(self.span)

    def position(self, row: float, column: float, below: bool) -> tuple[float | None, float | None]:
        """Percent of the body's box from its top and from its image-left edge; row and column in pixels of the full image.

        None where the frame cuts the body there, so that nobody knows where it ends. below: the body goes on below the slice (neck).
        """
        r, c = row / self.factor[0], column / self.factor[1]
        top, bottom, left, right = self.box
        return (
            None if self.cut & ({"top"} if below else {"top", "bottom"}) else 100 * (r - top) / (bottom - top),
            None if self.cut & {"left", "right"} else 100 * (c - left) / (right - left),
        )

    def side(self, column: float) -> float | None:
        """Percent of half the body's width from its midline, positive towards image right; None where the frame cuts a side off."""
        if self.cut & {"left", "right"}:
            return None
        left, right = self.box[2:]
        middle = float((np.arange(self.mask.shape[1]) + 0.5) @ self.mask.sum(0)) / float(self.mask.sum())
        return 100 * (column / self.factor[1] - middle) / max(0.5 * (right - left), 1e-6)

    def depth(self, mask: np.ndarray) -> float | None:
        """Shortest distance from the lesion to the outside of the body; None where the frame lies within it, and dark parts are no air."""
        if self.mask.all() or len(self.cut) > 2:
            return None
        lesion = shrink_mask(mask, self.mask.shape)
        # only borders can be nearest, so all pairs are few enough
        a, b = border_points(lesion) * self.pixel, border_points(~self.mask) * self.pixel
        return max(0.0, math.sqrt(float(((a[:, None] - b[None]) ** 2).sum(2).min())) - 0.5 * min(self.pixel))


class _Crop:
    """The lesion and its surroundings, in body units (see ``_Body.scale``), on a grid of at most ``_CROP_SIZE`` pixels a side."""

    def __init__(self, image: np.ndarray, mask: np.ndarray, pixel: tuple[float, float], diameter: float):
        size = _grid(image.shape, pixel, _CROP_SIZE)
        if tuple(size) != image.shape:
            pixel = tuple(p * n / s for p, n, s in zip(pixel, image.shape, size))
            image, mask = shrink(image, size), shrink_mask(mask, size)
        self.image, self.mask, self.pixel, self.diameter = image, mask, pixel, diameter
        self.unit = unit = math.sqrt(pixel[0] * pixel[1])
        signed = signed_distance(mask, pixel)
        self.outside = np.maximum(signed, 0)  # 0 inside, else distance to the lesion
        self.inside = np.where(mask, unit - signed, 0)  # 0 outside, else distance to the surroundings
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
        out.update(cooccurrence(self.image, self.mask))
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
        out: dict[str, float | None] = dict(shape(self.mask, self.pixel))
        contour = self.mask & (self.inside <= 1.001 * self.unit)  # the lesion's own border pixels
        frame = np.zeros_like(contour)
        frame[1:-1, 1:-1] = True
        contour &= frame  # the frame is no boundary
        self._integrals = [integral(a) for a in (self.mask, np.where(self.mask, self.image, 0), self.image)]
        reach = max(2, int(round(0.12 * self.diameter / self.unit)))
        step, both = self._step(reach)
        ok = contour & both
        if not ok.any():
            return out
        out["faint_contour"] = 100 * float((np.abs(step[ok]) < _FAINT_STEP).mean())
        if self.ring_sd and self.ring_sd > 1e-6:
            out["edge_cnr"] = float(np.median(np.abs(step[ok]))) / self.ring_sd
        self.edge_width = self._edge_width()
        return out

    def _step(self, reach: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean lesion signal minus mean outer signal in the square of ``reach`` pixels around each pixel, and where both are there."""
        n_in, inner, everything = (box(total, reach) for total in self._integrals)
        rows, columns = (np.minimum(np.arange(n) + reach, n - 1) - np.maximum(np.arange(n) - reach, 0) + 1 for n in self.mask.shape)
        n_out = np.outer(rows, columns) - n_in
        both = (n_in > 0.5) & (n_out > 0.5)
        return np.where(both, inner / np.maximum(n_in, 1) - (everything - inner) / np.maximum(n_out, 1), 0.0), both

    def _edge_width(self) -> float | None:
        """Height of the mean signal profile across the contour over its steepest slope; one pixel at least, None without a visible step.

        The profile is the mean over shells of equal distance to the contour, so that noise averages out. Where the lesion is darker than
        its surroundings the profile is turned over, so that bright and dark stretches of one contour do not cancel.
        """
        reach = max(3, int(round(0.25 * self.diameter / self.unit)))
        step, both = self._step(reach)
        distance = np.where(self.mask, 0.5 * self.unit - self.inside, self.outside - 0.5 * self.unit)
        bins = np.floor(distance / self.unit + 1e-6).astype(np.intp) + reach
        used = both & (np.abs(step) >= _FAINT_STEP / 2) & (bins >= 0) & (bins < 2 * reach)
        count = np.bincount(bins[used], minlength=2 * reach)
        shells = np.flatnonzero(count >= 3)
        if shells.size < 3 or not (shells < reach).any() or not (shells >= reach).any():
            return None
        profile = np.bincount(bins[used], (np.sign(step) * self.image)[used], minlength=2 * reach)[shells] / count[shells]
        slope = (profile[:-1] - profile[1:]) / (np.diff(shells) * self.unit)
        # a drawn contour may lie a little off the edge
        near = np.abs(shells[:-1] + 1 - reach) <= max(2, 0.1 * self.diameter / self.unit)
        steepest = float(slope[near].max()) if near.any() else 0.0
        height = float(profile[shells < reach].max() - profile[shells >= reach].min())
        return max(self.unit, height / steepest) if steepest > 1e-6 and height > 0 else None

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
