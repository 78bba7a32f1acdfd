"""Depthwise convolution whose gradients are fast on a CPU, too.

oneDNN computes depthwise gradients far slower than the convolution itself: with stride its gradient of the input takes up to 35 times as
long, in bfloat16 that of a 5x5 kernel 30 to 90 times. Both have quick equals. The gradient of the input is a plain convolution with the
turned kernel, of the output's gradient with zeros put between where there is a stride; that of the kernel is taken in float32.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


def _bordered(x: torch.Tensor, left: int, right: int, stride: int = 1) -> torch.Tensor:
    """x (n, c, h, w) with zeros around it and, for a stride, between; always channels last, which ``F.pad`` would not keep."""
    n, c, h, w = x.shape
    sides = [left + (side - 1) * stride + 1 + right for side in (h, w)]
    out = torch.empty(n, c, *sides, dtype=x.dtype, memory_format=torch.channels_last).zero_()
    out[:, :, left : left + stride * h : stride, left : left + stride * w : stride] = x
    return out


class _Depthwise(torch.autograd.Function):
    """x (n, c, h, w), weight (c, 1, k, k) -> (n, c, h', w'), with zeros of (before, after) around x."""

    @staticmethod
    def forward(ctx, x, weight, stride: int, before: int, after: int):
        ctx.side = x.shape[2:]
        symmetric = before == after
        x = x.contiguous(memory_format=torch.channels_last) if symmetric else _bordered(x, before, after)
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.before, ctx.padding = stride, before, before if symmetric else 0
        return F.conv2d(x, weight, None, stride, ctx.padding, 1, len(weight))

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        stride, padding, (c, _, k, _) = ctx.stride, ctx.padding, weight.shape
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            turned, first = weight.flip(2, 3), k - 1 - ctx.before
            if stride == 1:
                of_x = F.conv2d(gradient, turned, None, 1, first, 1, c)
            else:
                spread = _bordered(gradient, first, k - 1, stride)
                of_x = F.conv2d(spread, turned, None, 1, 0, 1, c)[:, :, : ctx.side[0], : ctx.side[1]].contiguous(
                    memory_format=torch.channels_last
                )
        if ctx.needs_input_grad[1]:
            of_weight = torch.ops.aten.convolution_backward(
                gradient.float(),
                x.float(),
                weight.float(),
                None,
                [stride] * 2,
                [padding] * 2,
                [1, 1],
                False,
                [0, 0],
                c,
                [False, True, False],
            )[1].to(weight.dtype)
        return of_x, of_weight, None, None, None


class DepthwiseConv2d(nn.Conv2d):
    """One square kernel per channel, without bias, with the "same" padding of TensorFlow: at a stride the odd pixel is right and below."""

    def __init__(self, channels: int, kernel: int, stride: int = 1):
        super().__init__(channels, channels, kernel, stride, groups=channels, bias=False)
        self.before, self.after = (kernel - stride) // 2, (kernel - stride) - (kernel - stride) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, stride = self.weight, self.stride[0]
        # a bias comes in where batch normalisation was folded in, for inference
        if x.device.type != "cpu" or not torch.is_grad_enabled() or self.bias is not None:
            symmetric = self.before == self.after
            x = x if symmetric else F.pad(x, (self.before, self.after) * 2)
            return F.conv2d(x, weight, self.bias, stride, self.before if symmetric else 0, 1, self.groups)
        if torch.is_autocast_enabled("cpu"):
            x, weight = (t.to(torch.get_autocast_dtype("cpu")) for t in (x, weight))
        return _Depthwise.apply(x, weight, stride, self.before, self.after)
