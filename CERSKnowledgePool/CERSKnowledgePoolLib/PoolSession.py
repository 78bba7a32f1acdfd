"""The pool at work, reached through a worker process of its own. Knows no widget."""

from __future__ import annotations

from collections.abc import Callable

import qt
import slicer
from CERSSegmentLib.Signal import Signal
from CERSSegmentLib.WorkerClient import STOPPED, WorkerClient

POOL_SETTING = "CERS/PoolFolder"  # shared with CERS Segment: one pool is at work
ANNOTATOR_SETTING = "CERS/Annotator"  # shared, too: who is at work


class PoolSession:
    """Sends requests about one pool and drops answers about an earlier one.

    Signals: changed(): something in the pool was changed from here; failed(sentence); progressed(fraction, words); busy(bool): a long
    request runs.

    Attributes: folder: of the pool, "" = none; readOnly; epoch: another number with every pool that was opened.
    """

    def __init__(self, worker: WorkerClient | None = None):
        self.worker = worker or WorkerClient()
        self.changed, self.failed, self.progressed, self.busy = Signal(), Signal(), Signal(), Signal()
        self.folder, self.readOnly = "", False
        self.epoch, self._opened, self._long = 0, -1, ""

    @property
    def who(self) -> str | None:
        """The person at work, None where nobody gave a name."""
        return slicer.util.settingsValue(ANNOTATOR_SETTING, "") or None

    def setWho(self, name: str) -> None:
        qt.QSettings().setValue(ANNOTATOR_SETTING, name.strip())

    def open(self, folder: str, onDone: Callable[[dict], None], onError: Callable[[str], None], create: bool = False) -> None:
        """Makes another pool the one at work; onDone gets what ``pool_info`` says of it."""
        self._leave()
        self.folder, epoch = folder, self.epoch

        def failed(_code: str, sentence: str) -> None:
            if epoch == self.epoch:
                self.folder = ""
                onError(sentence)

        def opened(_result: dict) -> None:
            if epoch == self.epoch:
                self.worker.request("pool_info", {}, done, failed)

        def done(info: dict) -> None:
            if epoch == self.epoch:
                self.readOnly = bool(info["read_only"])
                onDone(info)

        self.worker.request("pool_create" if create else "open_pool", {"path": folder}, opened, failed)
        self._opened = self.worker.generation

    def close(self) -> None:
        """No pool is at work."""
        self._leave()
        self.folder = ""

    def _leave(self) -> None:
        """What still runs is about the pool before: its answer will be dropped, so nobody waits for it."""
        self.cancel()
        self.epoch += 1
        if self._long:
            self._long = ""
            self.busy.emit(False)

    def ask(
        self,
        method: str,
        params: dict | None = None,
        onResult: Callable[[dict], None] | None = None,
        onError: Callable[[str], None] | None = None,
    ) -> str:
        """A quick request; an error without a receiver goes to ``failed``."""
        return self._send(method, params, onResult, onError, None)

    def change(self, method: str, params: dict, onResult: Callable[[dict], None] | None = None) -> str:
        """A request that changes the pool; ``who`` is added."""

        def done(result: dict) -> None:
            if onResult is not None:
                onResult(result)
            self.changed.emit()

        return self._send(method, {**params, "who": self.who}, done, None, None)

    def work(self, method: str, params: dict, onResult: Callable[[dict], None], onError: Callable[[str], None] | None = None) -> bool:
        """A request that may take long, with progress; one at a time. False where another one runs."""
        if self._long:
            return False

        def over() -> None:
            self._long = ""
            self.busy.emit(False)

        def done(result: dict) -> None:
            over()
            onResult(result)

        def failed(sentence: str) -> None:
            over()
            (onError or self.failed.emit)(sentence)

        self.busy.emit(True)
        self._long = self._send(method, params, done, failed, self.progressed.emit)
        return True

    @property
    def working(self) -> bool:
        """A long request runs."""
        return bool(self._long)

    def cancel(self) -> None:
        """Stops the long request; what it has finished stays."""
        if self._long:
            self.worker.cancel(self._long)

    def stop(self) -> None:
        """Ends the worker."""
        self.epoch += 1
        self._long = ""
        self.worker.stop()

    def _send(self, method, params, onResult, onError, onProgress) -> str:
        epoch = self.epoch
        if self.folder and (self.worker.state == STOPPED or self._opened != self.worker.generation):
            # it is a new worker: requests are done in order
            self.worker.request("open_pool", {"path": self.folder}, None, lambda _code, sentence: self.failed.emit(sentence))
            self._opened = self.worker.generation

        def done(result: dict) -> None:
            if epoch == self.epoch and onResult is not None:
                onResult(result)

        def failed(_code: str, sentence: str) -> None:
            if epoch == self.epoch:
                (onError or self.failed.emit)(sentence)

        return self.worker.request(method, params or {}, done, failed, onProgress)
