"""Several processes on one batch (torchrun): each takes whole groups, and statistics and gradients are those of the whole batch."""

from __future__ import annotations

import os
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
import torch.nn as nn

from ..errors import InputError

PATIENCE = timedelta(days=1)  # the others wait while process 0 reads pictures, or measures; one that is gone ends the wait at once


def start(device: str) -> tuple[int, int]:
    """Rank and number of processes; joins the group that torchrun announces in the environment.

    Raises:
        InputError: the group cannot be joined.
    """
    told = os.environ.get("WORLD_SIZE", "1")
    if told == "1":
        return 0, 1
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
        except (ValueError, RuntimeError) as error:
            why = " ".join(str(error).split()).rstrip(".")[:200]
            raise InputError(
                f"The {told} processes that the environment announces (WORLD_SIZE) could not join for one training ({why}). Start them "
                "with torchrun, or unset WORLD_SIZE to train in one process."
            ) from error
    return dist.get_rank(), dist.get_world_size()


def finish() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def lost(error: BaseException) -> bool:
    """Whether an error says that another process of the group is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _many() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, on any device (``nn.SyncBatchNorm`` needs a GPU)."""

    def forward(self, x):
        if not self.training or not _many():
            return super().forward(x)
        wide = x.float()
        count = x.numel() / x.shape[1]
        sums = torch.cat([wide.sum((0, 2, 3)), (wide * wide).sum((0, 2, 3)), wide.new_full((1,), count)])
        sums = differentiable.all_reduce(sums)
        c, total = x.shape[1], sums[-1].detach()
        mean = sums[:c] / total
        variance = (sums[c : 2 * c] / total - mean * mean).clamp(min=0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.detach(), self.momentum)
            self.running_var.lerp_(variance.detach() * total / (total - 1).clamp(min=1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (wide * scale[None, :, None, None] + (self.bias - mean * scale)[None, :, None, None]).to(x.dtype)


def share_batch_norm(module: nn.Module) -> nn.Module:
    """Let every batch normalisation of a module count over all processes; in place, names and weights stay."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SharedBatchNorm2d
    return module


def average_gradients(parameters) -> None:
    """Mean gradient over the processes; those without one count as 0, so that all processes agree on which there are."""
    if not _many():
        return
    parameters = list(parameters)
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for p in parameters:
        part = flat[start : start + p.numel()].view_as(p)
        if p.grad is not None:
            p.grad.copy_(part)
        start += p.numel()


def mean_in_place(tensor: torch.Tensor) -> None:
    if _many():
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()


def gather(x: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, each with its gradient; (n, ...) -> (n·processes, ...)."""
    return torch.cat(differentiable.all_gather(x.contiguous())) if _many() else x


def gather_plain(x: torch.Tensor) -> torch.Tensor:
    """As ``gather``, without gradient and for any type."""
    if not _many():
        return x
    out = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(out, x.contiguous())
    return torch.cat(out)


def agree(values: list[float]) -> list[float]:
    """The values of process 0, so that all take the same decision."""
    if not _many():
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    if dist.get_backend() == "nccl":
        tensor = tensor.cuda()
    dist.broadcast(tensor, 0)
    return tensor.tolist()


def any_of(flag: bool) -> bool:
    """Whether the flag is up in any process."""
    if not _many():
        return flag
    tensor = torch.tensor([float(flag)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor.item())


def all_have(digits: str) -> bool:
    """Whether all processes have the same 16 hex digits."""
    values = [float(int(digits[at : at + 8], 16)) for at in (0, 8)]
    return not any_of(agree(values) != values)


def wait() -> None:
    if _many():
        dist.barrier()


def sharded(rows: np.ndarray, rank: int, world: int, work) -> np.ndarray:
    """``work(rows)`` -> (n, d) float32, each process doing its part of the rows; all get the whole result."""
    if world == 1:
        return work(rows)
    size = -(-len(rows) // world)
    mine = rows[rank * size : (rank + 1) * size]
    padded = np.concatenate([mine, np.repeat(rows[:1], size - len(mine))]) if len(mine) < size else mine
    part = torch.from_numpy(work(padded))
    if dist.get_backend() == "nccl":
        part = part.cuda()
    return gather_plain(part).cpu().numpy()[: len(rows)]
