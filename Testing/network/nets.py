"""Small networks and random inputs for the network's tests."""

from __future__ import annotations

import torch

from cers.inference.tiny import ENCODER as RESNET
from cers.network.evidence import References
from cers.network.model import CersNet, NetworkConfig

CONVNEXT = {
    "kind": "transformers",
    "config": {
        "model_type": "convnext",
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "num_channels": 3,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}
SWIN = {
    "kind": "transformers",
    "config": {
        "model_type": "swin",
        "embed_dim": 8,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": 4,
        "image_size": 64,
        "num_channels": 3,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}
RATIONALE = 20


def make(encoder: dict = RESNET, labels: tuple[str, ...] = ("lesion",), seed: int = 0, **settings) -> CersNet:
    """An untrained network in eval mode whose batch normalisation has seen data, so that no two stages are trivially alike."""
    torch.manual_seed(seed)
    scales = 5 if encoder["kind"] == "efficientnet-lite0" else 4
    net = CersNet(
        NetworkConfig(
            labels=list(labels),
            encoder=encoder,
            widths=[8, 12, 16, 20][: scales - 1],
            deepest=24,
            key_channels=16,
            rationale=RATIONALE,
            align=12,
            **settings,
        )
    )
    net.train()
    with torch.no_grad():
        for _ in range(2):
            encoded = net.encode(torch.randn(4, 1, 64, 64))
            plain = net.decode_plain(encoded)
            stock = net.references(encoded, (torch.rand_like(plain) > 0.7).float(), unit(4))
            net.decode_evidence(encoded, plain.sigmoid(), unit(4), stock.gather(torch.tensor([[1, 2], [2, 3], [3, 0], [0, 1]])))
    return net.eval()


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, RATIONALE), dim=-1)


def blobs(n: int, labels: int, h: int, w: int) -> torch.Tensor:
    """Masks (n, labels, h, w), one rectangle each."""
    masks = torch.zeros(n, labels, h, w)
    for i in range(n):
        for label in range(labels):
            top, left = (5 + 7 * i + 11 * label) % (h - 12), (3 + 5 * i + 9 * label) % (w - 12)
            masks[i, label, top : top + 10, left : left + 8] = 1
    return masks


class Scene:
    """Queries (n, 1, h, w) with k references each, and both decoders' outputs."""

    def __init__(self, net: CersNet, n: int = 2, k: int = 3, h: int = 64, w: int = 64, seed: int = 1):
        torch.manual_seed(seed)
        self.net, self.n, self.k, labels = net, n, k, len(net.config.labels)
        self.x, self.rationale = torch.randn(n, 1, h, w), unit(n)
        self.reference_images, self.masks, self.reference_rationale = torch.randn(n * k, 1, h, w), blobs(n * k, labels, h, w), unit(n * k)
        self.index = torch.arange(n * k).reshape(n, k)
        self.sure = True  # pictures of noise do not bear each other's masks out

    def references(self) -> References:
        return self.net.references(self.net.encode(self.reference_images), self.masks, self.reference_rationale).gather(self.index)

    @torch.no_grad()
    def run(self, references: References | None | str = "own", valid: torch.Tensor | None = None, rows: slice = slice(None)):
        """(plain logits, evidence logits, weights)."""
        encoded = self.net.encode(self.x[rows])
        plain = self.net.decode_plain(encoded)
        references = self.references().gather(rows) if isinstance(references, str) else references
        counted = None
        if self.sure and references is not None:
            counted = torch.ones(references.dense.shape[:2]) if valid is None else valid.float()
        return plain, *self.net.decode_evidence(encoded, plain.sigmoid(), self.rationale[rows], references, valid, counted)
