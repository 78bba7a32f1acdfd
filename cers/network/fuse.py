"""Batch normalisation folded into the convolution before it: the same numbers, fewer passes over memory. For inference only."""

from __future__ import annotations

import torch.nn as nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .decoder import Block


def fuse(net: nn.Module) -> nn.Module:
    """Fold in place every batch normalisation that directly follows a convolution. The network must be in eval mode."""
    for module in net.modules():
        if isinstance(module, Block):
            module.conv1, module.norm1 = fuse_conv_bn_eval(module.conv1, module.norm1), nn.Identity()
            module.conv2, module.norm2 = fuse_conv_bn_eval(module.conv2, module.norm2), nn.Identity()
        elif isinstance(module, nn.Sequential):
            for n in range(len(module) - 1):
                if isinstance(module[n], nn.Conv2d) and isinstance(module[n + 1], nn.BatchNorm2d):
                    module[n], module[n + 1] = fuse_conv_bn_eval(module[n], module[n + 1]), nn.Identity()
    return net
