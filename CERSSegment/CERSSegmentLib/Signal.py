"""Plain-Python events, so that logic needs no Qt class and tests need no event loop."""

from __future__ import annotations

from collections.abc import Callable


class Signal:
    """Calls every connected function with the arguments of ``emit``, in the order of connection."""

    def __init__(self):
        self._slots: list[Callable] = []

    def connect(self, slot: Callable) -> None:
        if slot not in self._slots:
            self._slots.append(slot)

    def disconnect(self, slot: Callable) -> None:
        if slot in self._slots:
            self._slots.remove(slot)

    def emit(self, *arguments) -> None:
        for slot in list(self._slots):  # a slot may disconnect itself
            slot(*arguments)
