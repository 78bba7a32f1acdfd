"""Dice and logits on held-out pictures, with the training pictures as references."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..network.frame import normalise
from ..network.model import CersNet
from .losses import hard_dice

K = 4
STOCK = 400             # labelled pictures at most that serve as the pool of a validation


def frames(data, rows: np.ndarray, size: int, device: str = "cpu") -> torch.Tensor:
    """Stored pictures as network input (n, 1, size, size)."""
    x = torch.from_numpy(data.images[rows]).float()[:, None] / 255
    return normalise(F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)).to(device)


def masks(data, rows: np.ndarray, size: int, device: str = "cpu") -> torch.Tensor:
    """Stored masks (n, labels, size, size), 0 or 1."""
    return (F.interpolate(torch.from_numpy(data.onehot(rows)), (size, size), mode="area") > 0.5).float().to(device)


@torch.no_grad()
def pooled(net: CersNet, data, rows: np.ndarray, size: int, device: str = "cpu", batch: int = 16) -> np.ndarray:
    """Unit image vectors (n, e)."""
    parts = [frames(data, rows[s : s + batch], size, device) for s in range(0, len(rows), batch)]
    return np.concatenate([net.encode(x).pooled.float().cpu().numpy() for x in parts])


@torch.no_grad()
def held_out(trainer, limit: int, batch: int = 8):
    """For batches of up to ``limit`` validation pictures: rows, D_S's and D_R's logits (D_R without, then with references) and the truth."""
    c, net, data, split, device = trainer.config, trainer.teacher, trainer.data, trainer.split, trainer.device
    rows = split.validation
    if len(rows) > limit:
        rows = rows[np.random.default_rng(0).permutation(len(rows))[:limit]]
    references = None
    if c.referring and len(rows):
        stock = split.labelled
        if len(stock) > STOCK:
            stock = np.sort(np.random.default_rng(1).permutation(stock)[:STOCK])
        keys = pooled(net, data, stock, c.size, device)
        score = pooled(net, data, rows, c.size, device) @ keys.T
        references = stock[np.argsort(-score, axis=1, kind="stable")[:, : min(K, len(stock))]]
        place = trainer.memory.place
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        encoded = net.encode(frames(data, part, c.size, device))
        plain = net.decode_plain(encoded)
        blank = torch.zeros(len(part), net.config.rationale, device=device)
        null = net.decode_evidence(encoded, plain.sigmoid(), blank)[0] if c.fused else None
        fused = None
        if references is not None:
            flat = references[start : start + batch].ravel()
            unique, index = np.unique(flat, return_inverse=True)
            expert = torch.from_numpy(trainer.memory.expert[[place[int(r)] for r in unique]]).to(device)
            stock = net.references(net.encode(frames(data, unique, c.size, device)), masks(data, unique, c.size, device), expert)
            fused = net.decode_evidence(encoded, plain.sigmoid(), blank, stock.gather(torch.from_numpy(index.reshape(len(part), -1))))[0]
        yield part, plain, null, fused, masks(data, part, c.size, device)


def validate(trainer, limit: int, each=None) -> dict:
    """Mean Dice of D_S (plain), of D_R without references (null) and with (retrieved), where the method has them.

    each: called with the rows, the best logits there are and the truth of each batch.
    """
    scores: dict[str, list] = {"plain": [], "null": [], "retrieved": []}
    for rows, plain, null, fused, truth in held_out(trainer, limit):
        if each:
            each(rows, next(x for x in (fused, null, plain) if x is not None), truth)
        for name, logits in zip(scores, (plain, null, fused)):
            if logits is not None:
                scores[name].append(hard_dice(logits, truth))
    return {name: round(float(torch.cat(v).mean()), 4) for name, v in scores.items() if v}
