"""A map of a pool: its cases as points in the plane, so that what looks alike lies together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .records import labels_of
from .store import Pool
from .thumbnail import HASH as THUMBNAIL

FACETS = ("label", "modality", "body_site", "diagnosis", "annotator", "review")
_SEVERAL = " + "  # between the labels of a case that has more than one


@dataclass(frozen=True)
class PoolMap:
    """Points of cases.

    ids: in the order of addition. points: (n, 2) float32, the first two principal components of the vectors, centred.
    source: "model" where they come from the network used last, "pictures" where no network has read the pool yet.
    explained: share of the vectors' variance that the two axes show, 0..1. missing: cases without a vector, which are not on the map.
    """

    ids: list[str]
    points: np.ndarray
    source: str
    explained: float
    missing: int


def project(pool: Pool) -> PoolMap:
    """The map of all cases that have a vector. The same vectors give the same map; axes point where most of their weight lies."""
    model = pool.last_model()
    source, kind, key = ("pictures", "thumbnail", THUMBNAIL) if model is None else ("model", "image", model)
    ids, vectors = pool.vectors(kind, key)
    points, explained = principal(vectors)
    return PoolMap(ids, points, source, explained, len(pool) - len(ids))


def principal(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """(n, d) vectors -> (n, 2) float32 first two principal components, and the share of the variance that they show."""
    n, d = vectors.shape
    points = np.zeros((n, 2), np.float32)
    if n < 2 or d < 1:
        return points, 0.0
    centred = vectors - vectors.mean(0)
    if d <= n:  # the smaller of the two Gram matrices gives the same axes
        values, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
        axes = axes[:, ::-1][:, :2]
    else:
        values, own = np.linalg.eigh((centred @ centred.T).astype(np.float64))
        axes = centred.T @ own[:, ::-1][:, :2]
        axes = axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    axes = axes * np.where(axes[np.abs(axes).argmax(0), range(axes.shape[1])] < 0, -1, 1)  # the sign is free: fix it
    points[:, : axes.shape[1]] = centred @ axes
    total = float(values.sum())
    return points, float(values[::-1][:2].sum() / total) if total > 0 else 0.0


def values(pool: Pool, ids: list[str]) -> dict[str, list[str]]:
    """What colours the points: facet -> the value of each case in the order of ``ids``, "" where not known."""
    known = {row[0]: row[1:] for row in pool.columns(("id", "labels", *FACETS[1:]))}
    blank = ("{}", *[None] * (len(FACETS) - 1))
    rows = [known.get(i, blank) for i in ids]  # a case may be deleted between two reads
    out = {name: [row[n] or "" for row in rows] for n, name in enumerate(FACETS) if n}
    names: dict[str, str] = {}
    for i, row in zip(ids, rows):
        if row[0] not in names:  # as it is kept: few differ
            names[row[0]] = _SEVERAL.join(sorted(set(labels_of({"id": i, "labels": row[0]}).values())))
    return {"label": [names[row[0]] for row in rows], **out}
