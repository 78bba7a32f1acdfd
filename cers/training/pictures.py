"""Example predictions of a validation round as one small picture."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from ..case.io import atomic_path
from .runfolder import EXAMPLES, RunFolder

COUNT, COLUMNS, SIDE = 8, 4, 120
TRUTH, FOUND, BOTH = (60, 220, 90), (255, 150, 40), (255, 240, 120)  # of the expert, of the model, where their outlines meet


class Examples:
    """Collects the first ``COUNT`` pictures of a validation, at most a quarter of them without a lesion; called with each batch."""

    def __init__(self, data):
        self.data = data
        self.tiles: list[np.ndarray] = []
        self._empty = 0

    def __call__(self, rows: np.ndarray, logits: torch.Tensor, truth: torch.Tensor) -> None:
        """rows (n,): of the dataset. logits, truth (n, labels, s, s)."""
        for row, found, drawn in zip(rows, logits, truth):
            empty = not bool(drawn.any())
            if len(self.tiles) < COUNT and not (empty and self._empty >= COUNT // 4):
                self._empty += empty
                self.tiles.append(tile(self.data.images[int(row)], (found > 0).any(0).cpu().numpy(), (drawn > 0.5).any(0).cpu().numpy()))

    def write(self, run: RunFolder, step: int) -> None:
        """``examples/step_N.png`` of the run, nothing if there was no picture."""
        if not self.tiles:
            return
        path = run.path(EXAMPLES) / f"step_{step:08d}.png"
        with run.room("an example picture"):
            path.parent.mkdir(exist_ok=True)
            with atomic_path(path) as temporary:
                Image.fromarray(sheet(self.tiles, COLUMNS)).save(temporary, "PNG")


def sheet(tiles: list[np.ndarray], columns: int) -> np.ndarray:
    """Tiles, of which there is at least one, in rows from the upper left: (rows * SIDE, columns * SIDE, 3) uint8."""
    columns = min(columns, len(tiles))
    out = np.zeros((-(-len(tiles) // columns) * SIDE, columns * SIDE, 3), np.uint8)
    for n, picture in enumerate(tiles):
        r, c = divmod(n, columns)
        out[r * SIDE : (r + 1) * SIDE, c * SIDE : (c + 1) * SIDE] = picture
    return out


def tile(image: np.ndarray, found: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8: a grey picture with the outlines of two masks of any size."""
    out = np.repeat(_scaled(image, Image.Resampling.BILINEAR)[..., None], 3, 2)
    edges = [_edge(_scaled(mask.astype(np.uint8), Image.Resampling.NEAREST) > 0) for mask in (found, drawn)]
    for where, colour in ((edges[0], FOUND), (edges[1], TRUTH), (edges[0] & edges[1], BOTH)):
        out[where] = colour
    return out


def _scaled(array: np.ndarray, how) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize((SIDE, SIDE), how))


def _edge(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of a mask."""
    p = np.pad(mask, 1)
    return mask & ~(p[:-2, 1:-1] & p[2:, 1:-1] & p[1:-1, :-2] & p[1:-1, 2:])
