"""Losses of both stages. All are means, so that they do not grow with picture size, batch or number of labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dice_bce_each(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Soft Dice (smoothed by 1 pixel, so that empty masks have a slope) + binary cross-entropy, per picture: (n, l, h, w) -> (n,)."""
    p = logits.sigmoid()
    overlap = (p * target).sum((2, 3))
    dice = (2 * overlap + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)
    return (1 - dice).mean(1) + F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2, 3))


def dice_bce(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of ``dice_bce_each`` over the pictures."""
    return dice_bce_each(logits, target).mean()


def hard_dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Dice of masks at 0.5 as ``cers.evaluation`` has it: mean over the labels, of which one that is empty on both sides counts 1; (n,)."""
    p = (logits > 0).float()
    total = p.sum((2, 3)) + target.sum((2, 3))
    return torch.where(total > 0, 2 * (p * target).sum((2, 3)) / total.clamp(min=1), torch.ones_like(total)).mean(1)


def sharpen(p: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Probabilities pushed towards 0 and 1: p^(1/T) / (p^(1/T) + (1 - p)^(1/T)), computed through the logit (Wu et al., MedIA 2022)."""
    return (torch.logit(p.float(), eps=1e-6) / temperature).sigmoid()


def confident(p: torch.Tensor, threshold: float) -> torch.Tensor:
    """1 where a probability is at least ``threshold`` or at most 1 - ``threshold``."""
    return ((p >= threshold) | (p <= 1 - threshold)).to(p.dtype)


def consistency(p: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | float = 1.0) -> torch.Tensor:
    """Mean over all pixels of weight · (p - target)²; the target has no gradient. Pixels that are not confident count as agreeing."""
    return (weight * (p.float() - target.detach()) ** 2).mean()


def pseudo_label(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Soft Dice loss, smoothed as ``dice_bce``, with the hard labels of ``target`` probabilities, over the pixels whose weight is 1."""
    p, y = weight * logits.float().sigmoid(), weight * (target > 0.5)
    return 1 - ((2 * (p * y).sum((2, 3)) + 1) / (p.sum((2, 3)) + y.sum((2, 3)) + 1)).mean()


def ramp(share: float) -> float:
    """Weight 0.007..1 of unsupervised terms over the share 0..1 of their ramp (Laine & Aila, ICLR 2017)."""
    return float(torch.exp(torch.tensor(-5.0 * (1 - min(max(share, 0.0), 1.0)) ** 2)))
