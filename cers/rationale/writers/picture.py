"""The picture that leaves the machine: the body alone, without header, names or texts burnt in beside it."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from ...case import Case
from ..descriptors import body_outline
from ..pixels import border_points, largest_filled, shrink_mask, signed_distance

SIZE = 512  # pixels of the longer side
_COARSE = 96  # grid on which thin structures are told from the body
_THICK = 0.4  # of the body's largest inscribed disk: into what is not the body's trunk, a disk of this size does not fit
_FRAME = 0.06  # of the picture's sides: kept out where no outline of the body is seen


def kept_region(image: np.ndarray, mask: np.ndarray, modality: str | None = None) -> np.ndarray:
    """(rows, columns) bool: what may be shown; everything else is blanked.

    That is the body's trunk: lines of text that touch it are cut off, and with them what is as thin as they (an ear, a nose). Where the
    body fills the frame, text cannot be told from tissue; then only the lesion and its surroundings are kept, and never the picture's
    margin.
    """
    mask = mask != 0
    body = body_outline(image, modality)
    if body.all():
        return _surroundings(mask)
    step = max(1.0, max(body.shape) / _COARSE)
    size = [max(1, round(n / step)) for n in body.shape]
    coarse = np.pad(shrink_mask(body, size), 1)
    inside = -signed_distance(coarse, (1.0, 1.0))
    radius = _THICK * float(inside.max())
    if radius < 2:
        return _surroundings(mask)
    # opening by a disk, as two distance maps: to the outside, and to where the disk fits
    thick = signed_distance(inside >= radius, (1.0, 1.0)) <= radius
    thick = largest_filled(thick & coarse)[1:-1, 1:-1]
    rows, columns = (np.minimum((np.arange(n) * s / n).astype(int), s - 1) for n, s in zip(body.shape, size))
    return (thick[np.ix_(rows, columns)] & body) | mask


def _surroundings(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    out = np.zeros(mask.shape, bool)
    if not rows.size:
        return out
    reach = math.ceil(2 * math.sqrt(mask.sum() / math.pi))
    window = []
    for found, n in ((rows, mask.shape[0]), (columns, mask.shape[1])):
        margin = math.ceil(_FRAME * n)
        window.append(slice(max(margin, found[0] - reach), max(margin, min(n - margin, found[-1] + 1 + reach))))
    out[tuple(window)] = True
    return out | mask


def redacted_png(case: Case) -> bytes:
    """The case's slice as an 8-bit PNG of at most ``SIZE`` pixels a side: body only, cropped to it, lesion outlined in red, no metadata."""
    keep = kept_region(case.image, case.mask, case.modality)
    rows, columns = np.flatnonzero(keep.any(1)), np.flatnonzero(keep.any(0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if rows.size else (slice(None), slice(None))
    image, keep, mask = case.image[window].astype(np.float64), keep[window], case.mask[window] != 0
    low, high = np.percentile(image[keep], (0.5, 99.5)) if keep.any() else (0.0, 1.0)
    grey = np.where(keep, np.clip((image - low) / max(high - low, 1e-12), 0, 1) * 255, 0).astype(np.uint8)
    height, width = (n * p for n, p in zip(grey.shape, case.spacing or (1.0, 1.0)))  # square pixels
    scale = SIZE / max(height, width) if case.spacing else min(1.0, SIZE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shown = np.array(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
    rgb = np.repeat(shown[..., None], 3, 2)
    small = np.array(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 127
    if small.any():
        r, c = border_points(small).T
        rgb[r, c] = (255, 0, 0)
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG", optimize=True)
    return out.getvalue()
