"""A volume prepared for the network along one plane, with what has been computed of its slices so far."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch

from ..case import PlaneView, Volume
from ..network.frame import Frame, Intensities, box_of, foreground, normalise, parts
from ..network.model import Encoded
from .volume import COARSE_MM, reach, sharpness, smooth_across

KEPT = 256  # encoded slices kept for re-runs; about 2.4 MB each at 224 px


@dataclass
class Plane:
    """Slices of one plane in the network's frame.

    raw: (n, rows, columns) in display order. frames: (n, 1, size, size) normalised. has_body: (n,) bool; slices without body are not
    decoded. plain, fused: (n, labels, size, size) probabilities of D_S (as D_R was trained with) and of D_R (calibrated), zero where not
    decoded. known: (n,) bool; slices of which ``fused`` says something: decoded, or without body. encoded: the latest encoded slices by
    index; pooled: unit image vectors of all of them.
    """

    view: PlaneView
    raw: np.ndarray
    frame: Frame
    frames: torch.Tensor
    has_body: np.ndarray
    spacing: tuple[float, float] | None
    plain: torch.Tensor
    fused: torch.Tensor
    known: np.ndarray
    encoded: OrderedDict[int, Encoded] = field(default_factory=OrderedDict)
    pooled: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def slice_mm(self) -> float | None:
        """Distance between slices in mm, None where not known."""
        return self.view.slice_spacing if self.spacing else None

    @property
    def sharpness(self) -> float:
        """How far its pixels are from square; see ``sharpness``."""
        return sharpness(self.spacing)

    @property
    def stride(self) -> int:
        """Slices from one to the next where they are decoded ``COARSE_MM`` apart; 1 where they are thicker, or not known."""
        return max(1, int(COARSE_MM / self.slice_mm)) if self.slice_mm else 1

    def shown(self, index: int) -> np.ndarray:
        """(labels, rows, columns) float32: D_R's probabilities of a slice in its own pixels, smoothed across its neighbours."""
        first, last = max(0, index - reach(self.slice_mm)), index + reach(self.slice_mm) + 1
        around = smooth_across(self.fused[first:last], self.slice_mm, self.known[first:last])
        return self.frame.paste(around[index - first : index - first + 1])[0]

    def bodies(self, step: int = 1) -> list[int]:
        """Every ``step``-th of the slices that show a part of the body."""
        return np.flatnonzero(self.has_body)[::step].tolist()

    def near(self, labelmap: np.ndarray | None, threshold: float, least_pixels: int) -> list[int]:
        """Slices of which nothing is known, within a stride of one that shows a part of the label map (k, j, i) or something of its own."""
        own = (self.fused >= threshold).any(1).flatten(1).sum(1).numpy() >= least_pixels
        reaches = np.zeros(len(self.raw), bool)
        if labelmap is not None:
            own |= self.view.slices(labelmap).any((1, 2))
        for i in np.flatnonzero(own):
            reaches[max(0, i - self.stride) : i + self.stride + 1] = True
        return np.flatnonzero(reaches & ~self.known).tolist()

    def probabilities(self) -> np.ndarray:
        """(labels, k, j, i) float32: D_R's, smoothed across slices, in the volume's own grid."""
        maps = smooth_across(self.fused, self.slice_mm, self.known)
        out = np.empty((maps.shape[1], *self.view.geometry.shape), np.float32)
        for part in parts(len(maps)):
            pasted = self.frame.paste(maps[part])
            for channel in range(len(out)):
                self.view.slices(out[channel])[part] = pasted[:, channel]
        return out

    @property
    def name(self) -> str:
        return self.view.plane

    def keep(self, index: int, encoded: Encoded) -> None:
        self.encoded[index] = encoded
        self.encoded.move_to_end(index)
        if index not in self.pooled:
            self.pooled[index] = encoded.pooled[0].float().cpu().numpy()
        while len(self.encoded) > KEPT:
            self.encoded.popitem(last=False)


def prepare(volume: Volume, plane: str, size: int, labels: int, modality: str | None) -> Plane:
    """Read a volume along a plane: permute, scale intensities over the whole volume, crop to the body, resample in-plane, normalise."""
    view = PlaneView(volume.geometry, plane)
    raw = view.slices(volume.array)
    body = foreground(raw, modality)
    frame, frames = to_frames(raw, view.spacing, size, modality, body)
    has_body = body.mean((1, 2)) > 0.01
    empty = torch.zeros(len(raw), labels, size, size)
    spacing = view.spacing if volume.spacing_known else None
    return Plane(view, raw, frame, frames, has_body, spacing, empty, empty.clone(), ~has_body)


def to_frames(
    raw: np.ndarray, spacing: tuple[float, float] | None, size: int, modality: str | None, body: np.ndarray | None = None
) -> tuple[Frame, torch.Tensor]:
    """Raw slices (n, rows, columns) of one image -> their common frame and the normalised input (n, 1, size, size).

    body: their foreground, where it is known.
    """
    body = foreground(raw, modality) if body is None else body
    frame = Frame.around(box_of(body), raw.shape[1:], spacing or (1.0, 1.0), size)
    scale = Intensities(raw, modality, body)
    return frame, torch.cat([normalise(frame.crop(scale(raw[part]))) for part in parts(len(raw))])
