"""What references say about a query: mask priors, prototype similarities, a classifier fitted to them, rationale, and a gate on how far to
trust each."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn as nn
import torch.nn.functional as F

KEY_LEVELS = 3  # decoder levels (coarsest first) that have keys; finer ones inherit the similarities
LAYOUT = 4  # side of the coarse grid that compares where things lie in two frames
# a reference of which the others explain less than the first of its own mask counts nothing, from the second on whole (``agreement``)
AGREED = (0.15, 0.35)
# a reference whose mask has less than the first Dice with those of the others says nothing of the place, from the second on all it can
PLACED = (0.4, 0.7)
# share of what is drawn in the references that D_S misses: up to the first it knows what they show, from the second on it does not
MISSED = (0.2, 0.4)
# maps per label and level: prior mean and maximum, foreground, background, difference, dense foreground and background, fitted
MAPS = 8


@dataclass
class References:
    """References of a batch of queries, or a stock to gather from. Leading dimensions ``*`` are (n,) or (queries, k).

    dense (*, d, h, w): keys of the coarsest level. foreground (*, levels, labels, d), background (*, levels, d): unit prototypes.
    second (*, levels, labels, d + 1, d + 1), first (*, levels, labels, d + 1): moments of the keys, see ``moments``.
    separation (*): see ``Evidence.separation``. layout (*, d * LAYOUT²): unit. pooled (*, e): unit image embedding.
    masks (*, labels, H, W): in the reference's frame. rationale (*, r): unit text embedding, zeros where absent.
    probed_second (*, labels, p, p), probed_first (*, labels, p): moments for ``probe.answer``; missed (*, labels): see ``missed``; p is 0
    where the network has no probe.
    """

    dense: torch.Tensor
    foreground: torch.Tensor
    background: torch.Tensor
    second: torch.Tensor
    first: torch.Tensor
    separation: torch.Tensor
    layout: torch.Tensor
    pooled: torch.Tensor
    masks: torch.Tensor
    rationale: torch.Tensor
    probed_second: torch.Tensor
    probed_first: torch.Tensor
    missed: torch.Tensor

    def gather(self, index: torch.Tensor) -> References:
        """References of each query from a stock (n, ...) by index (queries, k)."""
        return References(*(getattr(self, f.name)[index] for f in fields(self)))

    def cast(self, dtype: torch.dtype) -> References:
        return References(*(getattr(self, f.name).to(dtype) for f in fields(self)))

    @classmethod
    def stack(cls, parts: list[References]) -> References:
        """Join along a new leading dimension."""
        return cls(*(torch.stack([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    @classmethod
    def join(cls, parts: list[References]) -> References:
        """Join along the first dimension."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def row(self, n: int) -> References:
        return References(*(getattr(self, f.name)[n] for f in fields(self)))


def resize_masks(masks: torch.Tensor, size) -> torch.Tensor:
    """(*, labels, H, W) -> (*, labels, *size) by area."""
    flat = F.adaptive_avg_pool2d(masks.flatten(0, -4) if masks.dim() > 4 else masks, size)
    return flat.reshape(*masks.shape[:-2], *size)


def _shrunk(masks: torch.Tensor, sizes) -> dict[tuple[int, int], torch.Tensor]:
    """Masks (*, labels, H, W) by area at each of the sizes; a coarser one from the next finer where they divide: the same, but quick."""
    out, last = {}, masks
    for size in sorted({tuple(s) for s in sizes}, reverse=True):
        whole = all(a % b == 0 for a, b in zip(last.shape[-2:], size))
        out[size] = last = resize_masks(last if whole else masks, size)
    return out


def ramp(value: torch.Tensor, bounds: tuple[float, float]) -> torch.Tensor:
    """0 up to the first bound, 1 from the second on."""
    return ((value - bounds[0]) / (bounds[1] - bounds[0])).clamp(0, 1)


@torch.no_grad()
def missed(plain: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """How much of a reference's mask (n, labels, H, W) D_S misses, in 0..1: 1 - Dice of its probabilities there; (n, labels)."""
    both = (plain * masks).sum((2, 3))
    return 1 - 2 * both / (plain.sum((2, 3)) + masks.sum((2, 3))).clamp(min=1e-6)


@torch.no_grad()
def unknown(missed: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """How far references (n, k, labels) show what D_S does not know, in 0..1, (n, labels); of those that count (n, k).

    What the network has learned needs neither to be told the place nor a probe: they would only be a coarser answer.
    """
    share = counted / counted.sum(1, keepdim=True).clamp(min=1e-6)
    return ramp(torch.einsum("nk,nkl->nl", share, missed.float()), MISSED)


@torch.no_grad()
def alike(masks: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """How far each of the references' masks (n, k, labels, H, W) lies where the others do: (n, labels, k), their mean Dice.

    Of those that count (n, k) at all; 0 where there are no others.
    """
    flat = (masks.float() * (counted > 0)[..., None, None, None]).flatten(3).transpose(1, 2)  # (n, labels, k, p)
    area = flat.sum(-1)
    dice = 2 * flat @ flat.transpose(2, 3) / (area[..., None] + area[..., None, :]).clamp(min=1)
    others = ((counted > 0).float().sum(-1) - 1).clamp(min=1)
    return (dice * (1 - torch.eye(dice.shape[-1], device=dice.device))).sum(-1) / others[:, None, None]


@torch.no_grad()
def place(masks: torch.Tensor, counted: torch.Tensor, together: torch.Tensor | None = None) -> torch.Tensor:
    """What masks that lie in one place say of the place: (n, labels, H, W) in -1..1, for D_R's logits.

    The vote of the references' masks (n, k, labels, H, W), each by how far its Dice with those of the others lies within ``PLACED`` and by
    how far it counts (n, k). Where masks lie here and there, as of lesions that D_R has to find by their look, it is 0, and so of one
    alone. Not learned, so that it also holds for what was never trained. together: their ``alike``, worked out here if left out.
    """
    together = alike(masks, counted) if together is None else together
    weight = ramp(together, PLACED) * counted[:, None]  # (n, labels, k)
    vote = torch.einsum("nlk,nklhw->nlhw", weight, masks.float()) / weight.sum(-1).clamp(min=1e-6)[..., None, None]
    sure = weight.sum(-1) / (counted > 0).float().sum(-1, keepdim=True).clamp(min=1)
    return sure[..., None, None] * (2 * vote - 1)


def prototypes(keys: list[torch.Tensor], masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit foreground (n, levels, labels, d), background (n, levels, d) prototypes of keys (n, d, h, w) under masks (n, labels, H, W)."""
    foreground, background = [], []
    for key in keys:
        m = resize_masks(masks, key.shape[-2:]).flatten(2)
        k = key.flatten(2)
        foreground.append(F.normalize(torch.einsum("nlp,ndp->nld", m, k) / (m.sum(-1)[..., None] + 1e-3), dim=-1))
        rest = (1 - m.amax(1)).clamp(min=0)
        background.append(F.normalize(torch.einsum("np,ndp->nd", rest, k) / (rest.sum(-1)[..., None] + 1e-3), dim=-1))
    return torch.stack(foreground, 1), torch.stack(background, 1)


def _with_one(key: torch.Tensor) -> torch.Tensor:
    """Keys (n, d, h, w) -> (n, h·w, d + 1): unit, with a one appended that carries the offset."""
    unit = F.normalize(key.float().flatten(2), dim=1).transpose(1, 2)
    return torch.cat([unit, torch.ones_like(unit[..., :1])], 2)


def moments(keys: list[torch.Tensor], masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a ridge regression of +1 inside and -1 outside the mask needs of each reference; those of several references simply add.

    Inside and outside count alike, however small the lesion. Returns second moments (n, levels, labels, d + 1, d + 1) and the difference
    of the means (n, levels, labels, d + 1). A closed-form learner on learned features: Bertinetto et al., ICLR 2019.
    """
    second, first = [], []
    for key in keys:
        both, difference = moments_of(_with_one(key), resize_masks(masks, key.shape[-2:]))
        second.append(both)
        first.append(difference)
    return torch.stack(second, 1), torch.stack(first, 1)


def moments_of(x: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments (n, labels, d, d) and (n, labels, d) of positions (n, h·w, d) under masks (n, labels, h, w); see ``moments``."""
    m = masks.flatten(2).float()
    rest = (1 - m.amax(1, keepdim=True)).clamp(min=0)
    inside, outside = (weight / (weight.sum(-1, keepdim=True) + 1e-3) for weight in (m, rest))
    both = torch.einsum("nlpd,npe->nlde", torch.einsum("nlp,npd->nlpd", inside + outside, x), x)
    return both, torch.einsum("nlp,npd->nld", inside - outside, x)


class Evidence(nn.Module):
    """Turns references into one evidence map per decoder level, a learned null map where they are not trusted or absent.

    The gate gives each reference a logit from how alike the scans lie and look, how their rationales compare, and how the
    reference's mask and prototypes agree with the plain decoder's mask. Softmax over these and a fixed null logit of 0 yields
    weights that sum to at most 1; the rest is the trust in the null reference. All sums over references are symmetric.

    Args:
        widths: channels of the decoder levels, coarsest first. labels, key_channels, rationale: dimensions.
    """

    def __init__(self, widths, labels: int, key_channels: int, rationale: int):
        super().__init__()
        self.labels = labels
        self.project_rationale = nn.Linear(rationale, 32)
        self.compare_rationale = nn.Linear(rationale, 16)
        self.gate = nn.Sequential(nn.Linear(10 + 16, 48), nn.ReLU(), nn.Linear(48, 1))
        self.layout_scale = nn.Parameter(torch.tensor(4.0))
        self.ridge = nn.Parameter(torch.full((KEY_LEVELS,), -3.5))
        self.read = nn.ModuleList(
            nn.Sequential(nn.Conv2d(MAPS * labels + 1, w, 3, padding=1), nn.ReLU(), nn.Conv2d(w, w, 1)) for w in widths
        )
        self.modulate = nn.ModuleList(nn.Linear(32, 2 * w) for w in widths)
        self.null = nn.ParameterList(nn.Parameter(torch.randn(w) * 0.1) for w in widths)

    def forward(self, keys, layout, pooled, plain, rationale, references: References | None, valid, sizes, counted=None):
        """
        Args:
            keys: query keys (n, d, h, w) per key level, coarsest first. layout (n, ...), pooled (n, e): unit vectors.
            plain: (n, labels, H, W) probabilities of D_S, without gradient. rationale: (n, r), zeros where the query has none.
            references: of (n, k), or None. valid: (n, k) bool. sizes: (h, w) of each decoder level, coarsest first.
            counted: (n, k), see ``counted``; None to have it worked out here. In training all count, for it is there that the keys
                learn to tell lesions from the rest, and the gate to weigh.

        Returns:
            maps (n, width, h, w) per level, and weights (n, k) of the references.
        """
        n = plain.shape[0]
        if references is None or valid.shape[1] == 0:
            # laid out, so that sums over them are the very same as with references that are not trusted
            maps = [null[None, :, None, None].expand(n, -1, *size).contiguous() for null, size in zip(self.null, sizes)]
            return maps, plain.new_zeros(n, 0)
        masks = _shrunk(references.masks, [*sizes, *(key.shape[-2:] for key in keys), references.dense.shape[-2:]])
        similar = [self._prototype_maps(keys[level], references, level) for level in range(KEY_LEVELS)]
        if counted is None:
            counted = valid.float() if self.training else self.counted(self.agreement(references, valid), valid)
        weights, logits = self._weights(similar, layout, pooled, plain, rationale, references, masks, valid, counted)
        trust = weights.sum(1)
        share = weights / (trust[:, None] + 1e-6)
        # a reference's prior also counts alone, by its own trust, so that one good reference is not averaged away
        own = logits.sigmoid() * counted
        dense = self._dense_maps(keys[0], references, masks, share)
        fitted = self._fitted_maps(keys, references, share)
        text = torch.einsum("nk,nkr->nr", share, self.project_rationale(references.rationale) * _present(references.rationale))
        maps = []
        for level, size in enumerate(sizes):
            prior = masks[tuple(size)]
            mean = torch.einsum("nk,nklhw->nlhw", share, prior)
            most = (own[:, :, None, None, None] * prior).amax(1)
            foreground, background = (torch.einsum("nk,nklhw->nlhw", share, m) for m in similar[min(level, KEY_LEVELS - 1)])
            near = [_to(m, size) for m in (foreground, background, 4 * (foreground - background), *dense)]
            x = torch.cat(
                [
                    mean,
                    most,
                    *near,
                    trust[:, None, None, None].expand(-1, 1, *size),
                    _to(fitted[min(level, KEY_LEVELS - 1)], size).to(mean.dtype),
                ],
                1,
            )
            scale, shift = self.modulate[level](text)[..., None, None].chunk(2, 1)
            read = self.read[level](x) * (1 + scale) + shift
            t = trust[:, None, None, None]
            maps.append(t * read + (1 - t) * self.null[level][None, :, None, None])
        return maps, weights

    def _prototype_maps(self, key, references, level):
        unit = F.normalize(key, dim=1)
        foreground = torch.einsum("ndhw,nkld->nklhw", unit, references.foreground[:, :, level])
        background = torch.einsum("ndhw,nkd->nkhw", unit, references.background[:, :, level])
        return foreground, background[:, :, None].expand_as(foreground)

    def _fit(self, second: torch.Tensor, first: torch.Tensor, level: int) -> torch.Tensor:
        """Ridge regression at one key level from moments (*, d + 1, d + 1) and (*, d + 1): weights (*, d + 1)."""
        eye = torch.eye(second.shape[-1], device=second.device)
        return torch.linalg.solve(second + self.ridge[level].exp() * eye, first[..., None])[..., 0]

    def separation(self, second: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """How well its own mask can be told from the rest of a reference: (n,) in 0..1 from the moments, at the finest keys, best label.

        Half the distance of the mean scores of inside and outside. A mask that does not belong to the picture does not separate it.
        """
        second, first = second[:, -1].float(), first[:, -1].float()
        return (self._fit(second, first, -1) * first).sum(-1).amax(1) / 2

    @torch.no_grad()
    def agreement(self, references: References, valid: torch.Tensor) -> torch.Tensor:
        """How well the others of a query's references explain a reference's own mask: (n, k) from -1 to 1, NaN where there are no others.

        As ``separation``, but of the regression fitted to the others (leave one out). Masks that do not belong to their pictures, or
        that show another structure, come out near 0; one that is empty has 0. Not learned: it also holds for what was never trained.
        """
        drawn = (references.masks.flatten(3).amax(-1) > 0) & valid[..., None]  # (n, k, labels)
        with torch.autocast(drawn.device.type, enabled=False):
            each = drawn[..., None].float()
            second, first = references.second[:, :, -1].float() * each[..., None], references.first[:, :, -1].float() * each
            others = (each.sum(1, keepdim=True) - each).clamp(min=1)
            rest = (second.sum(1, keepdim=True) - second) / others[..., None], (first.sum(1, keepdim=True) - first) / others
            explained = (self._fit(*rest, -1) * first).sum(-1) / 2
        known = drawn & (drawn.sum(1, keepdim=True) > 1)
        best = explained.masked_fill(~known, -2).amax(-1).masked_fill(~known.any(-1), float("nan"))
        return best.masked_fill(~drawn.any(-1), 0.0)

    @staticmethod
    def counted(agreement: torch.Tensor, valid: torch.Tensor, sure: torch.Tensor | None = None) -> torch.Tensor:
        """How far each reference counts, (n, k) in 0..1, by its agreement. One alone counts whole, as do those that are ``sure`` (n, k)."""
        agreed = ramp(agreement, AGREED).nan_to_num(1.0)
        return valid * (agreed if sure is None else torch.where(sure, 1.0, agreed))

    def _fitted_maps(self, keys, references, share):
        """Per key level the score (n, labels, h, w) of a ridge regression on the positions of all references, each by its share."""
        maps = []
        with torch.autocast(share.device.type, enabled=False):
            second = torch.einsum("nk,nkvlde->nvlde", share.float(), references.second.float())
            first = torch.einsum("nk,nkvld->nvld", share.float(), references.first.float())
            for level, key in enumerate(keys):
                weights = self._fit(second[:, level], first[:, level], level)
                scores = torch.einsum("npd,nld->nlp", _with_one(key), weights)
                maps.append(scores.clamp(-2, 2).unflatten(-1, key.shape[-2:]))
        return maps

    def _dense_maps(self, key, references, masks, share):
        """Highest cosine of each query position to any foreground and any background position of each reference, averaged by share."""
        q, r = F.normalize(key.flatten(2), dim=1), F.normalize(references.dense.flatten(3), dim=2)
        cosine = torch.einsum("ndp,nkdr->nkpr", q, r)
        masks = masks[tuple(references.dense.shape[-2:])].flatten(3)
        least = (0.8 * masks.amax(-1, keepdim=True)).clamp(min=1e-3, max=0.3)  # a small lesion fills no whole cell
        inside, outside = masks >= least, masks.amax(2, keepdim=True).expand_as(masks) < 0.1
        out = []
        for chosen in (inside, outside):
            best = torch.stack([cosine.masked_fill(~chosen[:, :, label, None], -1).amax(-1) for label in range(self.labels)], 2)
            best = torch.where(chosen.any(-1)[..., None], best, torch.zeros_like(best))
            out.append(torch.einsum("nk,nklp->nlp", share, best).unflatten(-1, key.shape[-2:]))
        return out

    def _weights(self, similar, layout, pooled, plain, rationale, references, masks, valid, counted):
        foreground, background = similar[1]
        size = foreground.shape[-2:]
        mask = masks[tuple(size)].amax(2).flatten(2)  # (n, k, p)
        pass1 = F.adaptive_avg_pool2d(plain.amax(1, keepdim=True), size).flatten(2)  # (n, 1, p)
        margin = (foreground - background).amax(2).flatten(2)
        area, area1 = mask.mean(-1), pass1.mean(-1).expand(-1, mask.shape[1])
        overlap = 2 * (mask * pass1).sum(-1) / (mask.sum(-1) + pass1.sum(-1) + 1e-3)
        on_mask = (margin * pass1).sum(-1) / (pass1.sum(-1) + 1e-3)
        both = _present(references.rationale) * _present(rationale)[:, None]
        near = torch.einsum("nd,nkd->nk", layout, references.layout)
        numbers = torch.stack(
            [
                near,
                torch.einsum("ne,nke->nk", pooled, references.pooled),
                torch.einsum("nr,nkr->nk", rationale, references.rationale) * both[..., 0],
                both[..., 0],
                overlap,
                references.separation,
                margin.amax(-1),
                on_mask,
                4 * area.sqrt(),
                4 * area1.sqrt(),
            ],
            -1,
        )
        words = self.compare_rationale(references.rationale) * self.compare_rationale(rationale)[:, None] * both * 4
        logits = self.gate(torch.cat([numbers, words], -1))[..., 0] + self.layout_scale * near
        # what one loses goes to the others, and what all lose to the null reference
        logits = (logits + counted.clamp(min=1e-6).log()).masked_fill(~valid, -1e4)
        return torch.cat([logits.new_zeros(len(logits), 1), logits], 1).softmax(1)[:, 1:] * counted, logits


def _present(rationale: torch.Tensor) -> torch.Tensor:
    """1 where there is a rationale, 0 where its vector is all zeros; (*, 1)."""
    return (rationale.abs().amax(-1, keepdim=True) > 0).to(rationale.dtype)


def _to(maps: torch.Tensor, size) -> torch.Tensor:
    return maps if tuple(maps.shape[-2:]) == tuple(size) else F.interpolate(maps, size, mode="bilinear", align_corners=False)
