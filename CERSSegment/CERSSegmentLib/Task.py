"""Long work written as one straight function, run in small pieces between the application's events.

A task is a generator. It yields None to give the application time, or a ``Call`` to the worker, whose result the yield returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import qt

from cers.errors import Cancelled, CersError

SLICE_MS = 12  # well below what a person notices, and leaves room for one piece that takes longer than planned


@dataclass
class Call:
    """A request to the worker."""

    method: str
    params: dict = field(default_factory=dict)


class WorkerError(CersError):
    """An error that the worker reported; its sentence is fit for the screen."""

    def __init__(self, code: str, sentence: str):
        super().__init__(sentence)
        self.code = code


class Task:
    """Runs a generator to its end.

    Args:
        generator: see the module's description. Its return value goes to onDone(value).
        onError: called with the exception (Cancelled when stopped). onProgress: called with (fraction, words) of the running call.
    """

    def __init__(self, generator: Generator, worker, onDone: Callable, onError: Callable, onProgress: Callable | None = None):
        self._generator, self._worker = generator, worker
        self._onDone, self._onError, self._onProgress = onDone, onError, onProgress
        self._request, self._cancelled = None, False
        self.running = True
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._step)
        self._timer.start(0)

    def cancel(self) -> None:
        """Stops the task; onError gets Cancelled, at the latest when the worker has been killed."""
        self._cancelled = True
        if self._request is not None:
            self._worker.cancel(self._request)

    def _step(self) -> None:
        until = time.monotonic() + SLICE_MS / 1000
        while self.running and self._request is None:
            self._advance(None, Cancelled() if self._cancelled else None)
            if time.monotonic() > until:
                break
        if self.running and self._request is None:
            self._timer.start(0)

    def _advance(self, value, error: Exception | None) -> None:
        try:
            wanted = self._generator.throw(error) if error is not None else self._generator.send(value)
        except StopIteration as end:
            self._finish(self._onDone, end.value)
        except Exception as problem:  # handed on, not swallowed: onError decides what the user reads
            self._finish(self._onError, problem)
        else:
            if wanted is not None:
                self._call(wanted)

    def _finish(self, callback: Callable, value) -> None:
        self.running = False
        callback(value)

    def _call(self, call: Call) -> None:
        self._request = self._worker.request(
            call.method,
            call.params,
            onResult=lambda result: self._resume(result, None),
            onError=lambda code, sentence: self._resume(None, Cancelled() if code == "cancelled" else WorkerError(code, sentence)),
            onProgress=self._onProgress,
        )

    def _resume(self, value, error: Exception | None) -> None:
        self._request = None
        if self._cancelled and error is None:
            error = Cancelled()
        self._advance(value, error)
        if self.running and self._request is None:
            self._timer.start(0)
