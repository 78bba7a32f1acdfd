"""The depthwise convolution that trains quickly on a CPU is the ordinary one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cers.network.depthwise import DepthwiseConv2d


def ordinary(layer: DepthwiseConv2d, x: torch.Tensor) -> torch.Tensor:
    total = layer.kernel_size[0] - layer.stride[0]
    return F.conv2d(F.pad(x, (total // 2, total - total // 2) * 2), layer.weight, None, layer.stride, 0, 1, layer.groups)


@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [
        (3, 1, (9, 11)),
        (5, 1, (6, 6)),
        (7, 1, (24, 20)),
        (3, 2, (32, 32)),
        (3, 2, (20, 26)),
        (5, 2, (16, 18)),
        (5, 2, (64, 40)),
        (7, 1, (3, 5)),
    ],
)
def test_values_and_both_gradients_are_those_of_conv2d(kernel, stride, size):
    torch.manual_seed(0)
    layer = DepthwiseConv2d(6, kernel, stride).double()
    x = torch.randn(3, 6, *size, dtype=torch.double, requires_grad=True)
    inputs = (x, layer.weight)
    y = layer(x)
    g = torch.randn_like(y)
    found = torch.autograd.grad(y, inputs, g)
    wanted = torch.autograd.grad(ordinary(layer, x), inputs, g)
    assert torch.allclose(y, ordinary(layer, x))
    with torch.no_grad():
        assert torch.allclose(layer(x), y)
    assert torch.allclose(found[0], wanted[0])
    # that of the kernel is taken in single precision
    assert torch.allclose(found[1], wanted[1], rtol=1e-4, atol=1e-4)


def test_channels_last_stays_and_autocast_computes_in_bfloat16():
    layer = DepthwiseConv2d(8, 3, 2)
    x = torch.randn(2, 8, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and layer.weight.grad.dtype == torch.float32
    exact = torch.autograd.grad(ordinary(layer, x).sum(), (x, layer.weight))
    assert torch.allclose(x.grad, exact[0], atol=0.05)
    assert torch.allclose(layer.weight.grad, exact[1], rtol=0.02, atol=0.5)


def test_only_what_asks_for_a_gradient_gets_one():
    layer = DepthwiseConv2d(4, 5, 2).requires_grad_(False)
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad.abs().sum() > 0
