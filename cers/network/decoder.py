"""Decoder blocks: the plain ones of D_S, and MCAM, which brings the evidence stream into D_R."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from .depthwise import DepthwiseConv2d


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class MCAM(nn.Module):
    """Multi-scale coordinate attention module: gates a reference stream and mixes it into the main one.

    Coordinate attention (Hou et al., CVPR 2021): [main; reference] is pooled along rows and along columns, passes one shared 1x1
    convolution, and yields two sigmoid maps that gate the reference stream. Then both streams are mixed at two scales, a private
    7x7 depthwise convolution each and one 5x5 shared by both, followed by 1x1-GELU-1x1, and added to the main stream.

    Shapes: main (n, c, h, w), reference (n, c, h, w) -> (n, c, h, w).
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(8, channels // 2)
        self.squeeze = nn.Sequential(nn.Conv2d(2 * channels, hidden, 1), nn.ReLU())
        self.gate_rows, self.gate_columns = nn.Conv2d(hidden, channels, 1), nn.Conv2d(hidden, channels, 1)
        self.main7 = DepthwiseConv2d(channels, 7)
        self.reference7 = DepthwiseConv2d(channels, 7)
        self.shared5 = DepthwiseConv2d(channels, 5)
        self.mix = nn.Sequential(nn.Conv2d(2 * channels, channels, 1), nn.GELU(), nn.Conv2d(channels, channels, 1))

    def forward(self, main: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        h, w = main.shape[2:]
        # sums, then divided: the gradient of a mean divides at full size; joined when they are small
        rows, columns = (torch.cat([x.sum(axis, keepdim=True) for x in (main, reference)], 1) / n for axis, n in ((3, w), (2, h)))
        pooled = torch.cat([rows, columns.transpose(2, 3)], 2)
        rows, columns = self.squeeze(pooled).split([h, pooled.shape[2] - h], 2)
        gated = reference * self.gate_rows(rows).sigmoid() * self.gate_columns(columns.transpose(2, 3)).sigmoid()
        main_scales = self.main7(main) + self.shared5(main)
        reference_scales = self.reference7(gated) + self.shared5(gated)
        return main + self.mix(torch.cat([main_scales, reference_scales], 1))


class Decoder(nn.Module):
    """U-shaped decoder over encoder features; with ``evidence`` it is D_R (MCAM at every level), without it D_S.

    Args:
        channels: of the encoder features, finest first. widths: of the decoder levels, finest first, one per feature but the deepest.
        labels: output channels.
    """

    def __init__(self, channels, widths, deepest: int, labels: int, evidence: bool):
        super().__init__()
        self.blocks = nn.ModuleList()
        inputs = deepest
        for skip, width in zip(channels[-2::-1], widths[::-1]):
            self.blocks.append(Block(inputs + skip, width))
            inputs = width
        self.mcam = nn.ModuleList(MCAM(width) for width in widths[::-1]) if evidence else None
        self.out = nn.Conv2d(inputs, labels, 1)

    def forward(self, features, deepest, size, evidence=None) -> torch.Tensor:
        """Features (finest first), reduced deepest map and, for D_R, an evidence map per level (coarsest first) -> (n, labels, *size)."""
        x = deepest
        for level, (block, skip) in enumerate(zip(self.blocks, features[-2::-1])):
            x = block(torch.cat([F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False), skip], 1))
            if self.mcam is not None:
                x = self.mcam[level](x, evidence[level])
        return F.interpolate(self.out(x), size, mode="bilinear", align_corners=False)
