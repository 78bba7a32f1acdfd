"""What is kept of the last segmented volume, and small helpers of its slices."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from .. import __version__
from ..case import Evidence, Prediction, Rationale, Volume
from ..errors import Cancelled
from ..pool import Selection
from .planes import Plane
from .volume import ACROSS_MM, COARSE_MM, MARGIN

BATCH = 8
UNCONFIRMED = 0.5  # most that references count where decoding without any finds nothing, of what the model was trained for


@dataclass
class SliceResult:
    """One slice decoded anew. mask (rows, columns) uint8 label map; probability (labels, rows, columns) float32, calibrated."""

    mask: np.ndarray
    probability: np.ndarray
    evidence: Evidence


@dataclass
class Slice:
    """What steps 3 and 4 found for one slice."""

    rationale: Rationale | None = None
    vector: np.ndarray | None = None
    selection: Selection | None = None
    weights: list[float] = field(default_factory=list)
    agreement: list[float | None] = field(default_factory=list)
    influence: list[float] | None = None


@dataclass
class Session:
    """The last segmented volume, kept so that single slices can be decoded again with other references."""

    volume: Volume
    planes: dict[str, Plane]
    slices: dict[tuple[str, int], Slice]
    modality: str | None
    body_site: str | None
    tokens: torch.Tensor | None
    image_hash: str
    weighted: np.ndarray | None = None  # probabilities (labels, k, j, i) float16 fused by sharpness, where several planes were
    votes: np.ndarray | None = None  # (k, j, i) uint8: how many of several planes show something
    prediction: Prediction | None = None
    labelmap: np.ndarray | None = None  # of the first result; that of the prediction follows slices that are decoded again


def provenance(session: Session, model, pool, text_encoder: str, *, planes: str, text: bool, influence: bool) -> dict:
    """What a result was made of: hashes of image, model, pool and text encoder, and every setting. planes: as they were asked for."""
    return {
        "cers": __version__,
        "image": session.image_hash,
        "model": model.hash,
        "model_name": model.config.name,
        "pool": pool.hash() if pool is not None else None,
        "text_encoder": text_encoder,
        "settings": {
            "planes": "three" if len(session.planes) > 1 else "acquisition",
            "planes_asked": planes,
            "size": model.config.size,
            "device": model.device,
            "threads": torch.get_num_threads(),
            "threshold": model.config.threshold,
            "minimum_ml": model.config.minimum_ml,
            "across_mm": ACROSS_MM,
            "coarse_mm": COARSE_MM,
            "margin": MARGIN,
            "unconfirmed": UNCONFIRMED,
            "temperature": model.config.temperature,
            "modality": session.modality,
            "body_site": session.body_site,
            "clinical_text": text,
            "influence": influence,
            "selection": model.selection.to_dict(),
        },
    }


def batches(keys):
    """Batches of (plane, index), each of one plane, with the share of all that lies before it."""
    start = 0
    while start < len(keys):
        batch = [k for k in keys[start : start + BATCH] if k[0] == keys[start][0]]
        yield start / len(keys), batch
        start += len(batch)


def join(rows):
    """Encoded slices joined to one batch; features of one slice several times are not copied, by which the probe knows it."""
    if len(rows) == 1:
        return rows[0]
    first = rows[0]
    same = all(r is first for r in rows)
    return type(first)(
        [f[0].expand(len(rows), -1, -1, -1) if same else torch.cat(f) for f in zip(*(r.features for r in rows))],
        torch.cat([r.deepest for r in rows]),
        [torch.cat(k) for k in zip(*(r.keys for r in rows))],
        torch.cat([r.layout for r in rows]),
        torch.cat([r.pooled for r in rows]),
        torch.cat([r.aligned for r in rows]),
        first.size,
        first.padded,
    )


class Clock:
    """Seconds per step, progress and cancelling in one place."""

    def __init__(self, progress=None, cancel=None):
        self.progress, self.cancel, self.seconds = progress, cancel, {}

    def say(self, fraction: float, message: str) -> None:
        if self.progress:
            self.progress(fraction, message)
        self.check()

    def check(self) -> None:
        if self.cancel and self.cancel():
            raise Cancelled()

    @contextmanager
    def step(self, name: str, message: str | None = None, fraction: float | None = None):
        if message is not None:
            self.say(fraction, message)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
