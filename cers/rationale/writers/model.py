"""What every language model looks like to the batch: a request made of one case, and an answer to it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ...case import Case, Rationale
from .prompt import Prompt


@dataclass(frozen=True)
class Request:
    """Exactly what is given to the model. body: for an endpoint the very bytes that are sent. picture: PNG within it, None without."""

    system: str
    user: str
    body: bytes
    picture: bytes | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


@dataclass(frozen=True)
class Answer:
    """A model's text. Tokens as the model counted them, None where it did not say."""

    text: str
    seconds: float
    tokens_in: int | None = None
    tokens_out: int | None = None


class Stop:
    """A flag that also wakes who waits for it and calls back, for instance to close a connection."""

    def __init__(self):
        self._event, self._lock = threading.Event(), threading.Lock()
        self._callbacks: list[Callable[[], None]] = []

    def set(self) -> None:
        with self._lock:
            self._event.set()
            callbacks = list(self._callbacks)
        for callback in callbacks:
            callback()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; True if set."""
        return self._event.wait(seconds)

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        """Have ``callback`` called when the flag is set meanwhile; it may be called from any thread."""
        with self._lock:
            already = self._event.is_set()
            self._callbacks.append(callback)
        try:
            if already:
                callback()
            yield
        finally:
            with self._lock:
                self._callbacks.remove(callback)


class Model(Protocol):
    """A language model that writes. name: as kept with its rationales. parallel: requests it takes at a time."""

    name: str
    prompt: Prompt
    with_picture: bool
    parallel: int

    def request(self, case: Case, measured: Rationale) -> Request:
        """Make, but do not send, the request for one case."""

    def ask(self, request: Request, stop: Stop) -> Answer:
        """One try. WriterError: no usable answer; Cancelled: stopped."""


def answer_key(model: Model, case: dict) -> str:
    """Key of an answer: the case's content and what else of it reaches the prompt, model, prompt version, rules of the measured text.

    case: metadata as of ``Pool.list``.
    """
    from ..writer import VERSION

    facts = [
        case["content_hash"],
        *(case[k] for k in ("modality", "body_site", "plane", "spacing")),
        model.name,
        model.prompt.version,
        model.with_picture,
        VERSION,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
