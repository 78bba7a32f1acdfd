"""A very small, untrained model for tests: the real architecture with a real transformers backbone, in a second on any machine."""

from __future__ import annotations

from pathlib import Path

# a ResNet of transformers with eight channels at its finest scale
ENCODER = {
    "kind": "transformers",
    "config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 24, 32],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "num_channels": 1,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}


def tiny_model(folder: str | Path, labels: tuple[str, ...] = ("tumor",), size: int = 96, seed: int = 0) -> Path:
    """Write a model folder with random weights; returns it. Its masks mean nothing."""
    import torch

    from ..network.model import CersNet, NetworkConfig
    from .model import ModelConfig, save_model

    torch.manual_seed(seed)
    network = NetworkConfig(
        labels=list(labels),
        encoder=ENCODER,
        widths=[8, 12, 16],
        deepest=24,
        key_channels=16,
        align=16,
    )
    net = CersNet(network)
    with torch.no_grad():  # masks of some size, so that all steps after the first have work
        net.eval()
        encoded = net.encode(torch.randn(4, 1, size, size))
        plain = net.decode_plain(encoded)
        fused, _ = net.decode_evidence(encoded, plain.sigmoid(), torch.zeros(4, network.rationale))
        for decoder, logits in ((net.plain, plain), (net.fused, fused)):
            decoder.out.bias -= torch.quantile(logits.transpose(0, 1).flatten(1)[:, ::7], 0.85, dim=1)
    config = ModelConfig(
        network.to_dict(),
        {str(n): name for n, name in enumerate(labels, 1)},
        size=size,
        modality="MR",
        body_site="brain",
        selection={"visual_threshold": -0.9, "visual_high": 0.9, "cot_threshold": 0.0},
        name="tiny untrained model",
    )
    return save_model(folder, net.state_dict(), config, card="# Untrained model for tests\n", half=False)
