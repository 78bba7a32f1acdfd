"""The network: one encoder, a plain decoder D_S, and an evidence decoder D_R with MCAM.

Method: "Beyond Visual Cues: CoT-Enhanced Reasoning for Semi-supervised Medical Image Segmentation", arXiv 2606.17958; here the
references enter with their masks and their rationale, each weighted by a gate.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..errors import InputError, ModelError
from . import probe
from .decoder import Decoder
from .encoder import build_encoder
from .evidence import KEY_LEVELS, LAYOUT, Evidence, References, alike, missed, moments, moments_of, place, prototypes, resize_masks, unknown

HEADS = 4  # of the attention to a clinical text


@dataclass
class NetworkConfig:
    """Architecture, as stored with the weights.

    labels: names of the output channels, in order. widths: decoder channels, finest level first, one per encoder scale but the
    deepest. rationale: dimension of the text embedding. align: dimension shared by image and rationale in the contrastive loss.
    place: what references whose masks lie in one place add to D_R's logit there, and take away elsewhere (``evidence.place``); 0: nothing.
    probe: how far the linear probe fitted to the references counts in D_R's logit (``probe.answer``); 0: there is none. Both only as far
    as D_S does not know what the references show (``evidence.unknown``).
    """

    labels: list[str] = field(default_factory=lambda: ["lesion"])
    encoder: dict = field(default_factory=lambda: {"kind": "efficientnet-lite0"})
    widths: list[int] = field(default_factory=lambda: [16, 24, 48, 96])
    deepest: int = 128
    key_channels: int = 64
    rationale: int = 384
    align: int = 128
    place: float = 4.0
    probe: float = 8.0

    def to_dict(self) -> dict:
        return asdict(self)

    def check(self) -> None:
        """ModelError if no network can be built of these settings."""
        if not isinstance(self.labels, (list, tuple)) or not self.labels or not all(isinstance(name, str) for name in self.labels):
            raise ModelError(f"A network needs a list of label names, not {self.labels!r}.")
        if not isinstance(self.encoder, dict) or not isinstance(self.widths, (list, tuple)):
            raise ModelError("A network needs 'encoder' as a table and 'widths' as a list.")
        for name, value in [
            *(("widths", w) for w in self.widths),
            *((n, getattr(self, n)) for n in ("deepest", "key_channels", "rationale", "align")),
        ]:
            if not isinstance(value, int) or value < 1:
                raise ModelError(f"A network's '{name}' must be a whole number of 1 or more, not {value!r}.")
        for name in ("place", "probe"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ModelError(f"A network's '{name}' must be a number of 0 or more, not {value!r}.")
        if self.deepest % HEADS:
            raise ModelError(f"A network's 'deepest' must be a multiple of {HEADS}, not {self.deepest}.")


@dataclass
class Encoded:
    """One pass of the encoder over (n, 1, H, W): all that both decoders and later re-runs need. size: (H, W) before padding."""

    features: list[torch.Tensor]
    deepest: torch.Tensor
    keys: list[torch.Tensor]
    layout: torch.Tensor
    pooled: torch.Tensor
    aligned: torch.Tensor
    size: tuple[int, int]
    padded: tuple[int, int]

    def rows(self, index) -> Encoded:
        """The chosen images of the batch."""
        return Encoded(
            [f[index] for f in self.features],
            self.deepest[index],
            [k[index] for k in self.keys],
            self.layout[index],
            self.pooled[index],
            self.aligned[index],
            self.size,
            self.padded,
        )


class TextAttention(nn.Module):
    """Cross-attention of image positions to the tokens of a short clinical text, added to the deepest map. No text, no change."""

    def __init__(self, channels: int, text: int, heads: int = HEADS):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, kdim=text, vdim=text, batch_first=True)
        self.norm, self.strength = nn.LayerNorm(channels), nn.Parameter(torch.tensor(0.1))

    def forward(self, x: torch.Tensor, tokens: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """x (n, c, h, w); tokens (n, t, d); present (n, t) bool. Rows without any token stay as they are."""
        some = present.any(1)
        keep = present | ~some[:, None]  # attention over no key at all is undefined
        query = self.norm(x.flatten(2).transpose(1, 2))
        y = self.attention(query, tokens, tokens, key_padding_mask=~keep, need_weights=False)[0].transpose(1, 2).unflatten(2, x.shape[-2:])
        return x + self.strength * y * some[:, None, None, None]


class CersNet(nn.Module):
    """See module docstring. Images are (n, 1, H, W), normalised (``frame.normalise``), of any size from 32 px."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        config.check()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        channels, labels = self.encoder.channels, len(config.labels)
        if len(config.widths) != len(channels) - 1:
            raise ModelError(
                f"The encoder has {len(channels)} scales, so 'widths' needs {len(channels) - 1} numbers, not {len(config.widths)}."
            )
        self.reduce = nn.Conv2d(channels[-1], config.deepest, 1)
        self.text = TextAttention(config.deepest, config.rationale)
        self.plain = Decoder(channels, config.widths, config.deepest, labels, evidence=False)
        self.fused = Decoder(channels, config.widths, config.deepest, labels, evidence=True)
        d, skips = config.key_channels, channels[-2::-1]
        self.key_deep = nn.Conv2d(channels[-1], d, 1)
        self.key_skip = nn.ModuleList(nn.Conv2d(c, d, 1) for c in skips[:KEY_LEVELS])
        self.key_mix = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(d), nn.ReLU(), nn.Conv2d(d, d, 3 if level < 2 else 1, padding=1 if level < 2 else 0))
            for level in range(KEY_LEVELS)
        )
        self.evidence = Evidence(config.widths[::-1], labels, d, config.rationale)
        summary = channels[-1] + channels[-2]
        self.align_image, self.align_text = nn.Linear(summary, config.align), nn.Linear(config.rationale, config.align)
        self.align_scale = nn.Parameter(torch.tensor(2.66))
        # running mean of the pooled features in training; without it all cosines crowd near 1
        self.register_buffer("centre", torch.zeros(summary))

    def encode(self, x: torch.Tensor, tokens=None, present=None) -> Encoded:
        """Features, keys and embeddings of (n, 1, H, W); optional text tokens (n, t, r) with ``present`` (n, t) bool."""
        if x.dim() != 4 or x.shape[1] != 1 or min(x.shape[-2:]) < 32:
            raise InputError(f"The network needs (n, 1, height, width) of at least 32 pixels; it got {tuple(x.shape)}.")
        size, coarsest = tuple(x.shape[-2:]), self.encoder.strides[-1]
        x = F.pad(x, (0, -size[1] % coarsest, 0, -size[0] % coarsest), mode="replicate")
        features = self.encoder(x)
        deepest = self.reduce(features[-1])
        if tokens is not None:
            deepest = self.text(deepest, tokens, present)
        keys, coarse = [], self.key_deep(features[-1])
        for skip, project, mix in zip(features[-2::-1], self.key_skip, self.key_mix):
            coarse = mix(project(skip) + F.interpolate(coarse, skip.shape[-2:], mode="bilinear", align_corners=False))
            keys.append(coarse)
        layout = F.normalize(F.adaptive_avg_pool2d(keys[0], LAYOUT).flatten(1), dim=1)
        raw = torch.cat([features[-1].mean((2, 3)), features[-2].mean((2, 3))], 1)
        aligned = F.normalize(self.align_image(raw), dim=1)
        deep = features[-1].shape[1]
        if self.training:
            with torch.no_grad():
                self.centre.lerp_(raw.float().mean(0), 0.02)
        centred = raw - self.centre
        pooled = torch.cat([F.normalize(centred[:, :deep], dim=1), F.normalize(centred[:, deep:], dim=1), aligned], 1) / 3**0.5
        return Encoded(features, deepest, keys, layout, pooled, aligned, size, tuple(x.shape[-2:]))

    def decode_plain(self, encoded: Encoded) -> torch.Tensor:
        """D_S: logits (n, labels, H, W)."""
        return self._crop(self.plain(encoded.features, encoded.deepest, encoded.padded), encoded)

    def references(self, encoded: Encoded, masks: torch.Tensor, rationale: torch.Tensor) -> References:
        """Reference records of encoded images with masks (n, labels, H, W) and rationale embeddings (n, r; zeros where absent)."""
        masks = F.pad(masks.float(), (0, encoded.padded[1] - masks.shape[-1], 0, encoded.padded[0] - masks.shape[-2]))
        foreground, background = prototypes(encoded.keys, masks)
        with torch.autocast(masks.device.type, enabled=False):
            second, first = moments(encoded.keys, masks)
            separation = self.evidence.separation(second, first)
        of_keys = (encoded.keys[0], foreground, background, second, first, separation, encoded.layout, encoded.pooled)
        return References(*of_keys, masks, rationale, *self._probed(encoded, masks))

    def _probed(self, encoded: Encoded, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What ``_told`` needs of each reference; empty in training, where D_R is to learn to do without."""
        n, labels = masks.shape[:2]
        second, first, lacking = masks.new_zeros(n, labels, 0, 0), masks.new_zeros(n, labels, 0), masks.new_zeros(n, labels)
        if not self.training and (self.config.place or self.config.probe):
            with torch.no_grad():
                lacking = missed(self.decode_plain(encoded).sigmoid().float(), self._crop(masks, encoded))
        if not self.training and self.config.probe:
            with torch.autocast(masks.device.type, enabled=False):
                size = tuple(encoded.keys[-1].shape[-2:])
                second, first = (m.detach() for m in moments_of(probe.seen(encoded.features, size), resize_masks(masks, size)))
        return second, first, lacking

    def decode_evidence(
        self,
        encoded: Encoded,
        plain: torch.Tensor,
        rationale: torch.Tensor,
        references: References | None = None,
        valid: torch.Tensor | None = None,
        counted: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """D_R: logits (n, labels, H, W), and the gate's weights (n, k).

        Args:
            plain: D_S's probabilities (n, labels, H, W). rationale: the query's, (n, r), zeros where it has none.
            references: of (n, k), or None for the null reference. valid: (n, k) bool, all True if left out.
            counted: (n, k), how far each reference counts; by how far they bear each other out if left out (``Evidence.counted``).
        """
        if references is not None and valid is None:
            valid = torch.ones(references.dense.shape[:2], dtype=torch.bool, device=plain.device)
        if references is not None and counted is None and not self.evidence.training:
            counted = self.evidence.counted(self.evidence.agreement(references, valid), valid)
        plain = F.pad(plain.detach(), (0, encoded.padded[1] - plain.shape[-1], 0, encoded.padded[0] - plain.shape[-2]))
        sizes = [f.shape[-2:] for f in encoded.features[-2::-1]]
        maps, weights = self.evidence(encoded.keys, encoded.layout, encoded.pooled, plain, rationale, references, valid, sizes, counted)
        logits = self.fused(encoded.features, encoded.deepest, encoded.padded, maps)
        # not in training: D_R is to learn to find by look
        if references is not None and counted is not None and (self.config.place or self.config.probe):
            logits = logits + self._told(encoded, references, counted * valid).to(logits.dtype)
        return self._crop(logits, encoded), weights

    def _told(self, encoded: Encoded, references: References, counted: torch.Tensor) -> torch.Tensor:
        """What place and probe add to D_R's logit, (n, labels, H, W), as far as D_S does not know what the references show."""
        r, told = references, references.masks.new_zeros(len(counted), *references.masks.shape[2:])
        news = unknown(r.missed, counted)
        if not news.any():
            return told
        with torch.autocast(counted.device.type, enabled=False):
            together = alike(r.masks, counted)
            if self.config.place:
                told = self.config.place * place(r.masks, counted, together)
            if self.config.probe:
                size = tuple(encoded.keys[-1].shape[-2:])
                found = probe.answer(encoded.features, size, r.probed_second, r.probed_first, counted, together)
                told = told + self.config.probe * F.interpolate(
                    found.unflatten(-1, size), encoded.padded, mode="bilinear", align_corners=False
                )
        return news[..., None, None] * told

    def align(self, encoded: Encoded, rationale: torch.Tensor) -> torch.Tensor:
        """Image-CoT contrastive loss (CLIP, Radford et al., ICML 2021) of a batch with rationale embeddings (n, r)."""
        text = F.normalize(self.align_text(rationale), dim=1)
        logits = encoded.aligned @ text.T * self.align_scale.exp().clamp(max=100)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    @staticmethod
    def _crop(logits: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        return logits[..., : encoded.size[0], : encoded.size[1]]
