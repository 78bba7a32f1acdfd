"""Slices as pictures: grey values for the screen, sharp outlines, PNG and SVG."""

from __future__ import annotations

import base64
import io

import numpy as np

from ..network.frame import scale_intensities

MOST_PIXELS = 2048  # of a picture's longer side in a report


def display(stack: np.ndarray, modality: str | None = None) -> np.ndarray:
    """Raw values (n, rows, columns) or (rows, columns) -> uint8, with the grey scale that the network sees."""
    stack = np.asarray(stack)
    scaled = scale_intensities(stack if stack.ndim == 3 else stack[None], modality)
    scaled = np.rint(scaled * 255).astype(np.uint8)
    return scaled if stack.ndim == 3 else scaled[0]


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines of a mask (rows, columns), each (points, 2) as (x, y), pixel (r, c) covering c..c+1, r..r+1.

    Corners are cut halfway, as marching squares does; holes are outlines of their own, running the other way round.
    """
    inside = np.pad(np.asarray(mask) > 0, 1)
    step: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def edges(where: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> None:
        for row, column in np.argwhere(where) - 1:
            step.setdefault((column + start[0], row + start[1]), []).append((column + end[0], row + end[1]))

    edges(inside & ~np.roll(inside, 1, 0), (0, 0), (1, 0))  # top edges to the right, and so on round: inside stays on the right
    edges(inside & ~np.roll(inside, -1, 1), (1, 0), (1, 1))
    edges(inside & ~np.roll(inside, -1, 0), (1, 1), (0, 1))
    edges(inside & ~np.roll(inside, 1, 1), (0, 1), (0, 0))
    loops = []
    while step:
        start = next(iter(step))
        points, at, previous = [start], start, None
        while True:
            ways = step[at]
            # two pixels that touch at a corner: turn right, so that they stay separate outlines
            way = ways[0] if len(ways) == 1 or previous is None else min(ways, key=lambda w: _turn(previous, at, w))
            ways.remove(way)
            if not ways:
                del step[at]
            previous, at = at, way
            if at == start:
                break
            points.append(at)
        corners = np.array(points, float)
        loops.append((corners + np.roll(corners, -1, 0)) / 2)
    return loops


def _turn(a, b, c) -> int:
    """-1 right, 0 straight, 1 left, for y downwards."""
    cross = (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])
    return -1 if cross > 0 else (1 if cross < 0 else 0)


def svg_path(mask: np.ndarray) -> str:
    """The outlines as the ``d`` of an SVG path, in pixels; straight runs are joined."""
    parts = []
    for loop in outlines(mask):
        ahead, behind = np.roll(loop, -1, 0) - loop, loop - np.roll(loop, 1, 0)
        loop = loop[np.abs(ahead - behind).sum(1) > 1e-9] if len(loop) > 2 else loop
        parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in loop) + "Z")
    return "".join(parts)


def trim(image: np.ndarray, mask: np.ndarray, margin: float = 0.04) -> tuple[slice, slice]:
    """The part of a uint8 picture that is not empty border."""
    seen = (image > 12) | (mask > 0)
    box = []
    for axis, size in ((1, image.shape[0]), (0, image.shape[1])):
        used = np.flatnonzero(seen.any(axis=axis))
        if not used.size:
            return slice(None), slice(None)
        extra = int(np.ceil(margin * size))
        box.append(slice(max(0, int(used[0]) - extra), min(size, int(used[-1]) + 1 + extra)))
    return box[0], box[1]


def png(image: np.ndarray) -> bytes:
    """(rows, columns) uint8 as a grey PNG, coarser where it has more pixels than a screen."""
    from PIL import Image

    out, picture = io.BytesIO(), Image.fromarray(np.ascontiguousarray(image))
    if max(picture.size) > MOST_PIXELS:
        picture = picture.resize([max(1, round(n * MOST_PIXELS / max(picture.size))) for n in picture.size], Image.Resampling.BOX)
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def data_uri(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")
