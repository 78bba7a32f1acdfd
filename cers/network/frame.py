"""From display slices to the network's square frame and back: intensities, body box, resampling.

Every image meets the network the same way, whether it is a training picture, a pool case or a slice of a volume: body in the
middle of a square frame, in-plane isotropic, intensities scaled by robust percentiles of the body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

MARGIN = 0.04  # free border around the body, as a fraction of the frame
CT_WINDOW = (-160.0, 240.0)  # HU; soft tissue


def foreground(stack: np.ndarray, modality: str | None = None) -> np.ndarray:
    """Body against background of (n, rows, columns) raw values, as bool of the same shape.

    The background level is the median of the frame's border; in CT it is air. A value is body where it differs from that
    level by more than 8 % of the robust range, so that skull-stripped images with negative values work too. Where the border
    shows tissue (an image cropped inside the body: neither dark nor of one level), the background is the darkest there is.
    """
    stack = np.asarray(stack)
    if modality == "CT":
        return stack > -500
    border = np.concatenate([stack[:, 0].ravel(), stack[:, -1].ravel(), stack[:, :, 0].ravel(), stack[:, :, -1].ravel()])
    border = border.astype(np.float32, copy=False)
    low, high = np.percentile(_sample(stack), (0.5, 99.5))
    level, span = np.median(border), max(float(high - low), 1e-6)
    if level > low + 0.15 * span and (np.abs(border - level) < 0.02 * span).mean() < 0.5:
        level = low
    out = np.empty(stack.shape, bool)
    for part in parts(len(stack)):
        np.greater(np.abs(stack[part].astype(np.float32, copy=False) - level), 0.08 * span, out=out[part])
    return out


def parts(n: int, size: int = 16):
    """Slices of a stack, some at a time: large volumes do not fit into memory several times."""
    return (slice(start, start + size) for start in range(0, n, size))


def _sample(values: np.ndarray, limit: int = 400_000) -> np.ndarray:
    """At most about ``limit`` of the values, evenly spread, as float32."""
    step = max(1, values.size // limit)
    flat = values.ravel() if step == 1 or values.flags.c_contiguous else values.flat
    return flat[::step].astype(np.float32, copy=False)


class Intensities:
    """The map of raw values to 0..1 that a whole stack (n, rows, columns) shares; calling it gives float32.

    MR and others: 0.5 and 99.5 percentile of the body; CT: a soft-tissue window. A constant background that lies inside the
    body's range (z-normalised, skull-stripped volumes) is set to 0.
    """

    def __init__(self, stack: np.ndarray, modality: str | None = None, body: np.ndarray | None = None):
        """body: the stack's foreground, where it is known."""
        self.background: float | None = None
        if modality == "CT":
            self.low, self.high = CT_WINDOW
            return
        stack = np.asarray(stack)
        inside = self._inside(stack, foreground(stack) if body is None else body)
        self.low, self.high = (float(v) for v in np.percentile(inside, (0.5, 99.5)))
        background = np.float32(stack[0, 0, 0])
        exact = sum(int((stack[part].astype(np.float32, copy=False) == background).sum()) for part in parts(len(stack)))
        if exact > 0.2 * stack.size and self.low < background:
            self.background = float(background)
        else:
            self.low = min(self.low, float(background))

    @staticmethod
    def _inside(stack: np.ndarray, body: np.ndarray) -> np.ndarray:
        """What ``_sample`` would give of the values of the body, which are not copied for it."""
        count = int(body.sum())
        if not count:
            return _sample(stack)
        step, seen, found = max(1, count // 400_000), 0, []
        for part in parts(len(stack)):
            values = stack[part][body[part]]
            found.append(values[-seen % step :: step].astype(np.float32, copy=False))
            seen += len(values)
        return np.concatenate(found)

    def __call__(self, stack: np.ndarray) -> np.ndarray:
        stack = np.asarray(stack, np.float32)
        out = np.clip((stack - self.low) / max(self.high - self.low, 1e-6), 0, 1)
        if self.background is not None:
            out[stack == np.float32(self.background)] = 0
        return out


def scale_intensities(stack: np.ndarray, modality: str | None = None) -> np.ndarray:
    """Raw values (n, rows, columns) -> float32 in 0..1, by one map for the whole stack (``Intensities``)."""
    return Intensities(stack, modality)(stack)


def body_box(stack: np.ndarray, modality: str | None = None) -> tuple[int, int, int, int]:
    """(row0, row1, column0, column1), end exclusive, that holds the body over all slices of (n, rows, columns)."""
    return box_of(foreground(stack, modality))


def box_of(body: np.ndarray) -> tuple[int, int, int, int]:
    """``body_box`` of a foreground (n, rows, columns) that is known."""
    union = body.mean(0) > (0.5 / len(body) if len(body) > 1 else 0)
    rows = np.flatnonzero(union.mean(1) > 0.02)
    columns = np.flatnonzero(union.mean(0) > 0.02)
    if not len(rows) or not len(columns):
        return 0, body.shape[1], 0, body.shape[2]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


@dataclass(frozen=True)
class Frame:
    """The square of a slice that the network sees.

    Args:
        shape: (rows, columns) of the slice. top, left, height, width: crop in pixels; it may reach outside the slice, where
            the frame is filled with 0. size: side of the network's input in pixels.
    """

    shape: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    size: int

    @classmethod
    def around(cls, box: tuple[int, int, int, int], shape: tuple[int, int], spacing: tuple[float, float], size: int) -> Frame:
        """The frame that holds a body box with a margin and is square in mm."""
        row0, row1, column0, column1 = box
        side = max((row1 - row0) * spacing[0], (column1 - column0) * spacing[1]) * (1 + 2 * MARGIN)
        height, width = max(1, round(side / spacing[0])), max(1, round(side / spacing[1]))
        return cls(tuple(shape), round((row0 + row1 - height) / 2), round((column0 + column1 - width) / 2), height, width, size)

    @property
    def pixel(self) -> tuple[float, float]:
        """Slice pixels per frame pixel, (rows, columns)."""
        return self.height / self.size, self.width / self.size

    def _overlap(self):
        r0, r1 = max(self.top, 0), min(self.top + self.height, self.shape[0])
        c0, c1 = max(self.left, 0), min(self.left + self.width, self.shape[1])
        return slice(r0, r1), slice(c0, c1), slice(r0 - self.top, r1 - self.top), slice(c0 - self.left, c1 - self.left)

    def crop(self, stack: np.ndarray) -> torch.Tensor:
        """(n, rows, columns) -> (n, 1, size, size) float32, linear with anti-aliasing. Masks: give 0/1, threshold the result."""
        rows, columns, to_rows, to_columns = self._overlap()
        out = np.zeros((len(stack), 1, self.height, self.width), np.float32)
        out[:, 0, to_rows, to_columns] = stack[:, rows, columns]
        return F.interpolate(torch.from_numpy(out), (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)

    def paste(self, maps: torch.Tensor) -> np.ndarray:
        """(n, c, size, size) -> (n, c, rows, columns) float32 in the slice's own pixels; 0 outside the frame."""
        rows, columns, from_rows, from_columns = self._overlap()
        large = F.interpolate(
            maps.float(),
            (self.height, self.width),
            mode="bilinear",
            align_corners=False,
            antialias=self.height < self.size or self.width < self.size,
        ).numpy()
        out = np.zeros((*large.shape[:2], *self.shape), np.float32)
        out[..., rows, columns] = large[..., from_rows, from_columns]
        return out


def normalise(x: torch.Tensor) -> torch.Tensor:
    """(n, 1, h, w) in 0..1 -> zero mean and unit variance over each image's body (values above 0.05)."""
    body = (x > 0.05).float()
    n = body.sum((2, 3), keepdim=True).clamp(min=16)
    mean = (x * body).sum((2, 3), keepdim=True) / n
    var = (((x - mean) ** 2) * body).sum((2, 3), keepdim=True) / n
    return ((x - mean) / (var.sqrt() + 0.02)).clamp(-4, 6)
