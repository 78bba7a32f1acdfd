"""Batches drawn ahead by processes of their own, so that a GPU does not wait for pictures to be augmented."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader, Dataset, Sampler

from .batches import Batch

AHEAD = 3  # batches that each process keeps ready
GRACE = 60  # seconds in which the trainer finishes its step
ENOUGH = 4  # processes that keep a GPU busy: a batch of 20 pictures takes one about 0.1 s, and the network on an H100 about as long


def processes(wanted: int, device: str, world: int = 1) -> int:
    """How many draw for one trainer of ``world`` on this machine: as ``wanted``, or if that is 0 as many as the device needs."""
    if wanted or device == "cpu":
        return wanted
    return max(1, min(ENOUGH, ((os.cpu_count() or 1) - 1) // world))


def threads(wanted: int, device: str, loaders: int) -> int:
    """How many threads the trainer itself uses: as ``wanted``; if that is 0, all (0), but beside a GPU's loaders the cores that they leave.

    With more, every small operation on the processor waits for the loaders, many times longer than it takes.
    """
    if wanted or device == "cpu" or not loaders:
        return wanted
    return max(1, (os.cpu_count() or 1) - loaders)


def lost(error: BaseException) -> bool:
    """Whether an error says that a process was ended that draws batches; torch raises it wherever the trainer happens to be."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


class _Steps(Sampler):
    """The steps from one on, each with what decides its draws, up to the first before which the image vectors are renewed."""

    def __init__(self, first: int, plan: Callable[[int], tuple | None]):
        self.first, self.plan = first, plan

    def __iter__(self) -> Iterator[tuple]:
        step = self.first
        while (found := self.plan(step)) is not None:
            yield (step, *found)
            step += 1


class _Draws(Dataset):
    """Batches by step, as map-style data."""

    def __init__(self, draw: Callable[..., Batch]):
        self.draw = draw

    def __getitem__(self, key: tuple) -> Batch:
        return self.draw(*key)


class Ahead:
    """Draws of coming steps, the same as those drawn when needed.

    Args:
        processes: how many draw. draw: (step, semi, share of made-up tasks) -> batch; is sent to the processes. plan: step -> (semi, share
            of made-up tasks), or None where something has to be renewed before that step; asked in this process, some steps ahead.
    """

    def __init__(self, processes: int, draw: Callable[..., Batch], plan: Callable[[int], tuple | None]):
        self.processes, self.draw, self.plan = processes, draw, plan
        self._batches: Iterator[Batch] | None = None
        self._next = -1

    def take(self, step: int) -> Batch | None:
        """The batch of a step; None, once, where something has to be renewed first."""
        if self._batches is None or step != self._next:
            steps = _Steps(step, self.plan)
            self._batches = iter(
                DataLoader(
                    _Draws(self.draw),
                    None,
                    sampler=steps,
                    num_workers=self.processes,
                    prefetch_factor=AHEAD,
                    collate_fn=_same,
                    worker_init_fn=_leave_signals,
                )
            )
        self._next = step + 1
        batch = next(self._batches, None)
        if batch is None:
            self._batches, self._next = None, -1
        return batch

    def close(self) -> None:
        """End the processes."""
        self._batches = None


def _leave_signals(_worker: int) -> None:
    """A terminal, ``timeout`` or a cluster's queue ends a whole group of processes, but the trainer needs the batch of the step it is in.

    So a process of its own ends some time after it was asked to, unless the trainer ends it earlier.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))


def _same(batch: Batch) -> Batch:
    return batch
