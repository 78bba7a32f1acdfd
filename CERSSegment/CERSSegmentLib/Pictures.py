"""Slices as pictures with sharp contours, at any size."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import qt
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

EXPERT = (0.2, 0.85, 1.0)  # contour drawn by an expert: far from every lesion colour, also for the colour-blind
LEFT_OUT = (1.0, 1.0, 1.0)  # dashed: what a plane shows and the mask leaves out
MARGIN = 0.04  # of the picture, kept around what is not background
SIZES = 3  # that a picture is kept in: panel, board, enlarged


@dataclass
class Picture:
    """A slice with a mask.

    Args:
        image: (rows, columns) uint8. mask: (rows, columns), 0 = background. spacing: (row, column) pixel size, in any unit.
        colour: (r, g, b) 0..1 of the contour. title: for the enlarged view. dashed: (rows, columns) bool, outlined in dashes; or None.
    """

    image: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float] = (1.0, 1.0)
    colour: tuple[float, float, float] = EXPERT
    title: str = ""
    dashed: np.ndarray | None = None
    _lines: list | None = field(default=None, repr=False)
    _pixmaps: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def lines(self) -> list[np.ndarray]:
        """Contour lines, each (points, 2) as (column, row) in pixels, pixel centres at whole numbers."""
        if self._lines is None:
            self._lines = contours(self.mask)
        return self._lines

    def trimmed(self) -> Picture:
        """Without the empty border, so that a small picture shows more of the body."""
        seen = (self.image > 12) | (self.mask > 0)
        if self.dashed is not None:
            seen |= self.dashed
        if not seen.any():
            return self
        box = []
        for axis, size in ((1, self.image.shape[0]), (0, self.image.shape[1])):
            used = np.flatnonzero(seen.any(axis=axis))
            margin = int(np.ceil(MARGIN * size))
            box.append(slice(max(0, int(used[0]) - margin), min(size, int(used[-1]) + 1 + margin)))
        part = tuple(box)
        dashed = None if self.dashed is None else self.dashed[part]
        return Picture(self.image[part], self.mask[part], self.spacing, self.colour, self.title, dashed)


def windowed(image: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """(rows, columns) of any real type to uint8; ``window`` is (lowest, highest) grey value shown, None = 1st to 99.5th percentile."""
    image = np.asarray(image, np.float32)
    low, high = window if window is not None else np.percentile(image, (1, 99.5))
    return np.clip((image - low) * (255.0 / max(float(high) - float(low), 1e-6)), 0, 255).astype(np.uint8)


def contours(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of everything in a mask that is not 0, halfway between the pixels inside and outside."""
    inside = np.pad(np.asarray(mask) > 0, 1).astype(np.uint8)
    if not inside.any():
        return []
    image = vtk.vtkImageData()
    image.SetDimensions(inside.shape[1], inside.shape[0], 1)
    image.SetOrigin(-1, -1, 0)
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(inside * 2).ravel(), deep=True))
    edges = vtk.vtkFlyingEdges2D()
    edges.SetInputData(image)
    edges.SetValue(0, 1.0)
    strips = vtk.vtkStripper()
    strips.SetInputConnection(edges.GetOutputPort())
    strips.JoinContiguousSegmentsOn()
    strips.SetMaximumLength(inside.size)
    strips.Update()
    lines = strips.GetOutput().GetLines()
    if lines.GetNumberOfCells() == 0:
        return []
    points = vtk_to_numpy(strips.GetOutput().GetPoints().GetData())[:, :2]
    starts, indices = vtk_to_numpy(lines.GetOffsetsArray()), vtk_to_numpy(lines.GetConnectivityArray())
    return [points[indices[a:b]].copy() for a, b in zip(starts[:-1], starts[1:])]


def fitted(picture: Picture, width: int, height: int) -> tuple[int, int]:
    """The largest (width, height) in screen pixels with the slice's true proportions that fits."""
    rows, columns = picture.image.shape
    wide, high = columns * picture.spacing[1], rows * picture.spacing[0]
    scale = min(width / wide, height / high)
    return max(1, round(wide * scale)), max(1, round(high * scale))


def shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """(rows, columns) uint8 averaged over squares of ``factor`` pixels; Qt's smooth scaling alone takes several times as long.

    The edge is repeated to fill the last squares, which shifts nothing by more than a pixel of the small picture.
    """
    if factor < 2:
        return np.ascontiguousarray(image)
    rows, columns = (-(-n // factor) for n in image.shape)
    padded = np.pad(image, ((0, rows * factor - image.shape[0]), (0, columns * factor - image.shape[1])), mode="edge")
    return padded.reshape(rows, factor, columns, factor).mean(axis=(1, 3), dtype=np.float32).astype(np.uint8)


def drawn(picture: Picture, width: int, height: int, ratio: float = 1.0) -> bool:
    """Whether ``pixmap`` has this picture at hand in this size."""
    return (width, height, True, ratio) in picture._pixmaps


def pixmap(picture: Picture, width: int, height: int, contour: bool = True, ratio: float = 1.0):
    """A qt.QPixmap of exactly (width, height), the slice in its middle on black, with its contour. The last few sizes are kept.

    Args:
        ratio: pixels of the screen for one of (width, height): 2 on a screen of high resolution, where the picture is drawn so much finer.
    """
    size = (width, height, contour, ratio)
    if size not in picture._pixmaps:
        while len(picture._pixmaps) >= SIZES:
            del picture._pixmaps[next(iter(picture._pixmaps))]
        canvas = picture._pixmaps[size] = _draw(picture, round(width * ratio), round(height * ratio), contour, ratio)
        canvas.setDevicePixelRatio(ratio)
    return picture._pixmaps[size]


def _draw(picture: Picture, width: int, height: int, contour: bool, ratio: float):
    rows, columns = picture.image.shape
    wide, high = fitted(picture, width, height)
    small = shrunk(picture.image, min(rows // high, columns // wide))
    image = qt.QImage()
    # through a portable grey map: its bytes are taken over alike by every Qt binding
    image.loadFromData(qt.QByteArray(b"P5 %d %d 255\n" % small.shape[::-1] + small.tobytes()))
    left, top = (width - wide) // 2, (height - high) // 2
    canvas = qt.QPixmap(width, height)
    canvas.fill(qt.QColor(0, 0, 0))
    painter = qt.QPainter(canvas)
    painter.drawPixmap(left, top, qt.QPixmap.fromImage(image.scaled(wide, high, qt.Qt.IgnoreAspectRatio, qt.Qt.SmoothTransformation)))
    if contour:
        painter.setRenderHint(qt.QPainter.Antialiasing, True)
        thickness = (1.4 if max(width, height) < 300 * ratio else 2.2) * ratio
        dashes = [] if picture.dashed is None else contours(picture.dashed)
        for lines, colour, dashed in ((picture.lines, picture.colour, False), (dashes, LEFT_OUT, True)):
            path = qt.QPainterPath()
            for line in lines:
                x, y = left + (line[:, 0] + 0.5) * (wide / columns), top + (line[:, 1] + 0.5) * (high / rows)
                path.moveTo(float(x[0]), float(y[0]))
                for n in range(1, len(x)):
                    path.lineTo(float(x[n]), float(y[n]))
            _stroke(painter, path, (0.0, 0.0, 0.0), thickness + 1.4 * ratio, dashed)  # a dark rim keeps it readable over bright tissue
            _stroke(painter, path, colour, thickness, dashed)
    painter.end()
    return canvas


def placeholder(width: int, height: int, words: str, palette):
    """A quiet picture of (width, height) that says why there is none."""
    canvas = qt.QPixmap(width, height)
    canvas.fill(palette.color(qt.QPalette.Base))
    painter = qt.QPainter(canvas)
    painter.setPen(qt.QPen(palette.color(qt.QPalette.Text)))
    painter.setOpacity(0.6)
    painter.drawText(qt.QRect(4, 4, width - 8, height - 8), qt.Qt.AlignCenter | qt.Qt.TextWordWrap, words)
    painter.end()
    return canvas


def _stroke(painter, path, colour, thickness: float, dashed: bool = False) -> None:
    pen = qt.QPen(qt.QColor(*(round(255 * c) for c in colour)))
    pen.setWidthF(thickness)
    if dashed:
        pen.setStyle(qt.Qt.DashLine)
    painter.strokePath(path, pen)
