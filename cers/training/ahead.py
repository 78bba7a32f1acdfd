"""Batches drawn ahead by processes of their own, so that a GPU does not wait for pictures to be augmented."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader, Dataset, Sampler

from .batches import Batch

AHEAD = 3  # batches that each process keeps ready


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
                    _Draws(self.draw), None, sampler=steps, num_workers=self.processes, prefetch_factor=AHEAD, collate_fn=_same
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


def _same(batch: Batch) -> Batch:
    return batch
