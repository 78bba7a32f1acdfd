"""Work that the screen can wait some milliseconds for, done in small portions between the application's events."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

import qt

from .Task import SLICE_MS


class Later:
    """Does pieces of work in the order they were asked for, as many at a time as fit between two looks at the event queue."""

    def __init__(self):
        self._work: dict[Hashable, Callable[[], None]] = {}
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._next)

    def do(self, key: Hashable, work: Callable[[], None]) -> None:
        """Does ``work`` soon, in place of what was asked for under the same ``key`` and has not been done yet."""
        self._work[key] = work
        if not self._timer.isActive():
            self._timer.start(0)

    def forget(self, key: Hashable) -> None:
        """Leaves out what was asked for under ``key``."""
        self._work.pop(key, None)

    def stop(self) -> None:
        """Leaves out everything."""
        self._work.clear()
        self._timer.stop()

    def _next(self) -> None:
        until = time.monotonic() + SLICE_MS / 1000
        while self._work:
            self._work.pop(next(iter(self._work)))()
            if time.monotonic() > until:
                break
        if self._work:
            self._timer.start(0)
