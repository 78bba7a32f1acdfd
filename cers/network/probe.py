"""A linear probe fitted to a query's references: which positions look, at every scale of the encoder, and lie as those under their masks.

In closed form and without a learned parameter, on features that the decoders see but that no key was trained to tell apart, so that it also
holds for what was never trained. A ridge regression as in ``evidence.moments``, whose keys are few and trained.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from .evidence import ramp

WIDTH = 256  # channels to which those of all scales are projected at random, which keeps distances (Johnson and Lindenstrauss, 1984)
SPOTS, SPREAD = 6, 0.12  # of the frame's side: how many Gaussian spots tell a position, and how wide each is
RIDGE = 0.03
EVEN = 0.5  # score (outside -1, inside +1) that speaks neither for nor against
# how far references must count, and how many of them, before the probe is heard and until it is whole. Of those that count not at all
# neither says anything: such a reference is as if it were not there
BORNE_OUT = (0.8, 1.0)
SEVERAL = (1, 3)
# mean Dice of the references' masks with each other: below the first they lie here and there, and nothing is fitted to where a position
# lies; from the second on it counts whole
ONE_PLACE = (0.05, 0.3)


@lru_cache(maxsize=4)
def _projection(channels: int) -> torch.Tensor:
    """(channels, WIDTH), the same everywhere: RandomState is frozen."""
    drawn = np.random.RandomState(0).standard_normal((channels, WIDTH)) / WIDTH**0.5
    return torch.from_numpy(drawn.astype(np.float32))


@lru_cache(maxsize=8)
def _spots(size: tuple[int, int]) -> torch.Tensor:
    """(h·w, SPOTS²): how near each position is to each spot."""
    centres = torch.linspace(0, 1, SPOTS)
    y, x = (torch.exp(-((torch.linspace(0, 1, n)[:, None] - centres) ** 2) / (2 * SPREAD**2)) for n in size)
    return torch.einsum("ya,xb->yxab", y, x).flatten(2).flatten(0, 1)


def _scales(features: list[torch.Tensor], size: tuple[int, int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every scale brought to ``size``, (n, c, h·w), and its length at each position, (n, 1, h·w); n is 1 for one picture several times."""
    out = []
    if not any(f.stride(0) for f in features):  # as when each of a picture's references is left out
        features = [f[:1] for f in features]
    for f in features:
        f = f.float()
        small = F.adaptive_avg_pool2d(f, size) if f.shape[-1] > size[-1] else F.interpolate(f, size, mode="bilinear", align_corners=False)
        small = small.flatten(2)
        out.append((small, small.norm(dim=1, keepdim=True).clamp(min=1e-12)))
    return out


@torch.no_grad()
def seen(features: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """What is known of each position: features (n, c, h, w) of every scale, brought to ``size`` -> (n, h·w, WIDTH + SPOTS² + 1)."""
    x = torch.cat([small / length for small, length in _scales(features, size)], 1).transpose(1, 2)
    x = x @ _projection(x.shape[-1]).to(x.device) / len(features) ** 0.5
    spots = _spots(tuple(size)).to(x.device).expand(len(x), -1, -1)
    return torch.cat([x, spots, torch.ones_like(x[..., :1])], 2).expand(len(features[0]), -1, -1)


def _score(features: list[torch.Tensor], size: tuple[int, int], weights: torch.Tensor) -> torch.Tensor:
    """``seen`` times weights (n, labels, d) -> (n, labels, h·w), without working out what is seen, which takes six times as long."""
    scales = _scales(features, size)
    channels = [small.shape[1] for small, _ in scales]
    look, spots, offset = weights.split([WIDTH, SPOTS**2, 1], -1)
    look = look @ _projection(sum(channels)).to(look.device).T / len(features) ** 0.5
    score = spots @ _spots(tuple(size)).to(spots.device).T + offset
    for part, (small, length) in zip(look.split(channels, -1), scales):
        score = score + part @ small / length
    return score


@torch.no_grad()
def answer(features: list[torch.Tensor], size: tuple[int, int], second, first, counted, together) -> torch.Tensor:
    """What the probe says of each position, (n, labels, h·w): above 0 for the label, 0 where no reference counts.

    Args:
        features: of the queries, (n, c, h, w) of every scale, looked at in ``size``.
        second, first: moments of what is ``seen`` of the references, (n, k, labels, d, d) and (n, k, labels, d).
        counted: (n, k), how far each reference counts, 0 for one that is not there. together (n, labels, k): see ``evidence.alike``.
    """
    counted = counted.float()
    total, squares = counted.sum(1, keepdim=True), (counted**2).sum(1, keepdim=True)
    share = counted / total.clamp(min=1e-6)
    second, first = torch.einsum("nk,nklde->nlde", share, second), torch.einsum("nk,nkld->nld", share, first)
    there = (counted > 0).float()[:, None]
    spots = ramp((together * there).sum(-1) / there.sum(-1).clamp(min=1), ONE_PLACE)[..., None]
    scale = torch.ones_like(first)  # of the columns: as if the features had been scaled before they were fitted
    scale[..., -1 - SPOTS**2 : -1] = spots
    eye = torch.eye(second.shape[-1], device=second.device)
    # not torch.linalg.solve: with two threads and matrices of 200 and more, MKL's LU of a batch may fail or never end
    factor = torch.linalg.cholesky(second * scale[..., None] * scale[..., None, :] + RIDGE * eye)
    weights = scale * torch.cholesky_solve((first * scale)[..., None], factor)[..., 0]
    score = _score(features, size, weights).clamp(-2, 2) - EVEN
    heard = ramp(squares / total.clamp(min=1e-6), BORNE_OUT) * ramp(total**2 / squares.clamp(min=1e-6), SEVERAL)
    return heard[..., None] * score
