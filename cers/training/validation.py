"""Dice and logits on held-out pictures, with the training pictures as references."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..network.frame import normalise
from ..network.model import CersNet
from .losses import hard_dice

K = 4
STOCK = 400  # labelled pictures at most that serve as the pool of a validation


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


def some(rows: np.ndarray, limit: int) -> np.ndarray:
    """At most ``limit`` of the rows, always the same ones."""
    return rows[np.random.default_rng(0).permutation(len(rows))[:limit]] if len(rows) > limit else rows


@torch.no_grad()
def held_out(trainer, rows: np.ndarray, others: bool = False, batch: int = 8):
    """For batches of held-out pictures: rows, logits and the truth. Logits are by name: plain (D_S), null (D_R without references) and
    retrieved (with), where the method has them; with ``others`` also random (with references drawn by lot)."""
    c, net, data, split, device = trainer.config, trainer.teacher, trainer.data, trainer.split, trainer.device
    choices: dict[str, np.ndarray] = {}
    if c.referring and len(rows):
        stock = split.labelled
        if len(stock) > STOCK:
            stock = np.sort(np.random.default_rng(1).permutation(stock)[:STOCK])
        if others:
            choices["random"] = stock[np.random.default_rng(2).integers(len(stock), size=(len(rows), min(K, len(stock))))]
        keys = pooled(net, data, stock, c.size, device)
        score = pooled(net, data, rows, c.size, device) @ keys.T
        choices["retrieved"] = stock[np.argsort(-score, axis=1, kind="stable")[:, : min(K, len(stock))]]
        place = trainer.memory.place
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        encoded = net.encode(frames(data, part, c.size, device))
        found = {"plain": net.decode_plain(encoded)}
        mask = found["plain"].sigmoid()
        blank = torch.zeros(len(part), net.config.rationale, device=device)
        if c.fused:
            found["null"] = net.decode_evidence(encoded, mask, blank)[0]
        for name, references in choices.items():
            unique, index = np.unique(references[start : start + batch].ravel(), return_inverse=True)
            expert = torch.from_numpy(trainer.memory.expert[[place[int(r)] for r in unique]]).to(device)
            stock = net.references(net.encode(frames(data, unique, c.size, device)), masks(data, unique, c.size, device), expert)
            found[name] = net.decode_evidence(encoded, mask, blank, stock.gather(torch.from_numpy(index.reshape(len(part), -1))))[0]
        yield part, found, masks(data, part, c.size, device)


def validate(trainer, limit: int, each=None) -> dict:
    """Mean Dice of D_S (plain), of D_R without references (null) and with (retrieved), where the method has them.

    each: called with the rows, the best logits there are and the truth of each batch.
    """
    scores: dict[str, list] = {}
    for rows, found, truth in held_out(trainer, some(trainer.split.validation, limit)):
        if each:
            each(rows, list(found.values())[-1], truth)
        for name, logits in found.items():
            scores.setdefault(name, []).append(hard_dice(logits, truth))
    return {name: round(float(torch.cat(v).mean()), 4) for name, v in scores.items()}
