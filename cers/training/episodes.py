"""Which pictures are trained together: groups of similar scans, each picture a query whose references are the others of its group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..network.frame import normalise
from ..rationale import TextEmbedder, describe
from .data import Slices

NEAR_DUPLICATE = 0.99


def split_by_group(table: list[dict], fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers for training and validation; a near-duplicate ``group`` lies wholly on one side."""
    groups = sorted({row["group"] for row in table})
    chosen = set(np.random.default_rng(seed).permutation(groups)[: round(len(groups) * fraction)])
    held = np.array([row["group"] in chosen for row in table])
    return np.flatnonzero(~held), np.flatnonzero(held)


@torch.no_grad()
def scan_vectors(encoder: torch.nn.Module, images: np.ndarray, size: int = 128, batch: int = 32) -> np.ndarray:
    """Unit vectors (n, d) that compare how scans look and where things lie in them: 4x4 pooled, centred encoder features."""
    encoder.eval()
    out = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(np.asarray(images[start : start + batch], np.float32) / 255)[:, None]
        x = normalise(torch.nn.functional.interpolate(x, (size, size), mode="area"))
        out.append(torch.nn.functional.adaptive_avg_pool2d(encoder(x)[-2], 4).flatten(1).numpy())
    vectors = np.concatenate(out)
    vectors -= vectors.mean(0)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def neighbours(vectors: np.ndarray, images: np.ndarray, groups: np.ndarray, count: int = 12) -> np.ndarray:
    """(n, count) nearest other scans, none of the same group and none whose 32x32 thumbnail correlates above 0.99.

    Where there are fewer than ``count``, they repeat.

    Raises:
        InputError: a scan has no unrelated other one at all.
    """
    side = images.shape[-1] // 32
    thumbs = np.asarray(images, np.float32).reshape(len(images), 32, side, 32, side).mean((2, 4)).reshape(len(images), -1)
    thumbs -= thumbs.mean(1, keepdims=True)
    thumbs /= np.linalg.norm(thumbs, axis=1, keepdims=True) + 1e-6
    out = np.empty((len(images), count), np.int64)
    for n in range(len(images)):
        score = vectors @ vectors[n]
        score[(groups == groups[n]) | (thumbs @ thumbs[n] > NEAR_DUPLICATE)] = -9
        nearest = np.argsort(-score, kind="stable")[:count]
        nearest = nearest[score[nearest] > -9]
        if not len(nearest):
            raise InputError("There are too few unrelated pictures to train with: one of them has no other that is not its near-duplicate.")
        out[n] = np.resize(nearest, count)
    return out


def rationale_vectors(slices: Slices, embedder: TextEmbedder, masks: np.ndarray | None = None) -> np.ndarray:
    """(n, d) embeddings of the measured rationale of each picture under its expert mask, or under ``masks``; zeros for an empty mask."""
    masks = slices.masks if masks is None else masks
    some = [n for n in range(len(slices)) if masks[n].any()]
    texts = [describe(np.asarray(slices.images[n]), np.asarray(masks[n]) > 0, None, modality="MR", plane=slices.table[n].get("plane")).compact
             for n in some]
    out = np.zeros((len(slices), embedder.dimension), np.float32)
    out[some] = embedder.encode(texts)
    return out


class Episodes:
    """Draws batches of ``groups`` x ``members`` similar scans and says who may refer to whom.

    Of the queries, ``null`` meet no reference and ``random`` meet ones of other groups, so that D_R works without evidence and the
    gate sees bad evidence. No query refers to its own picture, nor to a near-duplicate where ``related`` (one name per training row) tells.
    """

    def __init__(self, rows: np.ndarray, near: np.ndarray, rng: np.random.Generator, groups: int = 4, members: int = 5,
                 null: float = 0.25, random: float = 0.15, related: np.ndarray | None = None):
        self.related = np.arange(len(rows)) if related is None else np.unique(related, return_inverse=True)[1]
        self.drawn: np.ndarray | None = None
        self.rows, self.near, self.rng, self.groups, self.members, self.null, self.random = rows, near, rng, groups, members, null, random

    def draw(self) -> np.ndarray:
        """Positions into the training rows, (groups·members,)."""
        anchors = self.rng.integers(len(self.rows), size=self.groups)
        self.drawn = np.concatenate([[a, *self.rng.choice(self.near[a], self.members - 1, replace=False)] for a in anchors])
        return self.drawn

    def references(self) -> tuple[torch.Tensor, torch.Tensor]:
        """index (n, k) into the batch drawn last and valid (n, k), k = members - 1."""
        n, k = self.groups * self.members, self.members - 1
        index, valid = np.zeros((n, k), np.int64), np.zeros((n, k), bool)
        for q in range(n):
            first = q // self.members * self.members
            own = [j for j in range(first, first + self.members) if j != q]
            other = [j for j in range(n) if j // self.members != q // self.members]
            draw = self.rng.random()
            pool = other if draw < self.random else own
            index[q] = self.rng.permutation(pool)[:k]
            valid[q, : self.rng.integers(1, k + 1)] = not self.random <= draw < self.random + self.null
        if self.drawn is not None:
            kin = self.related[self.drawn]
            valid &= kin[index] != kin[:, None]
        return torch.from_numpy(index), torch.from_numpy(valid)


def cached(path: Path, make) -> np.ndarray:
    """The array at ``path``, made and stored if it is not there."""
    if path.exists():
        return np.load(path)
    array = make()
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, array)
    temporary.replace(path)
    return array
