"""Talks to the worker process: one JSON object per line each way, never blocking the application.

The worker is started with the first request and again, lazily, after it has ended. Requests made before it is ready wait in a queue.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import qt
import slicer
from slicer.i18n import tr as _

from . import Paths
from .Signal import Signal

PROTOCOL = 1
STOPPED, STARTING, READY = "stopped", "starting", "ready"
CLOSE_MS = 2000  # that a killed process has to be gone; it takes some hundredths of a second
_clients: weakref.WeakSet = weakref.WeakSet()


@dataclass
class _Pending:
    line: bytes
    onResult: Callable | None
    onError: Callable | None
    onProgress: Callable | None


class WorkerClient:
    """The worker process and the requests that it has not answered yet.

    Args:
        command: gives (program, arguments, environment); called at each start, so that it may raise RuntimeError with a sentence for
            the user.
        killAfter: ms that the worker has for the answer to a cancel. startWithin: ms that it has to report ready.

    Attributes:
        generation: grows with each start, so that a caller knows when the model and pool must be loaded again.
        folder: private temporary folder, also the worker's own; gone after ``stop``.
        ended: Signal(sentence) when the process ended by itself.
    """

    def __init__(self, command: Callable | None = None, killAfter: int = 2000, startWithin: int = 120000):
        self.command = command or workerCommand
        self.killAfter, self.startWithin = killAfter, startWithin
        self.generation, self.state, self.folder = 0, STOPPED, ""
        self.ended, self.stateChanged = Signal(), Signal()
        self.log: deque[str] = deque(maxlen=200)
        self._process, self._ending = None, []
        self._buffer, self._next = b"", 0
        self._pending: dict[str, _Pending] = {}
        self._killTimers: dict[str, object] = {}
        self._startTimer = _timer(self._onStartTimeout)

    def request(self, method: str, params: dict | None = None, onResult=None, onError=None, onProgress=None) -> str:
        """Sends a request and returns its id. Exactly one of onResult(dict) and onError(code, sentence) is called, later."""
        self._next += 1
        identifier = str(self._next)
        line = json.dumps({"id": identifier, "method": method, "params": params or {}}).encode() + b"\n"
        self._pending[identifier] = _Pending(line, onResult, onError, onProgress)
        if self.state == READY:
            self._process.write(qt.QByteArray(line))
        elif self.state == STOPPED:
            self._start()
        return identifier

    def cancel(self, identifier: str) -> None:
        """Asks the worker to stop a request; a worker that does not answer within ``killAfter`` ms is killed."""
        if identifier not in self._pending or identifier in self._killTimers:
            return
        if self.state != READY:
            self._end(_("Stopped."), "cancelled")
            return
        self._killTimers[identifier] = _timer(lambda: self._end(_("Stopped."), "cancelled"))
        self._killTimers[identifier].start(self.killAfter)
        self.request("cancel", {"request": identifier})

    def stop(self) -> None:
        """Ends the worker without waiting for it and removes the temporary folder. The client can be used again."""
        self._end(_("Stopped."), "cancelled")

    def close(self) -> None:
        """Ends the worker and waits until it is gone. For when the application or the module ends: no event tells of it any more then."""
        self.stop()
        for process in self._ending:
            process.blockSignals(True)  # it would call back into what is being taken down
            process.waitForFinished(CLOSE_MS)
        self._ending.clear()

    def privateFolder(self) -> str:
        """The private temporary folder (mode 700), made when needed."""
        if not self.folder:
            self.folder = tempfile.mkdtemp(prefix="cers-", dir=slicer.app.temporaryPath or None)
        return self.folder

    # process

    def _start(self) -> None:
        try:
            program, arguments, variables = self.command()
        except RuntimeError as error:
            sentence = str(error)  # answered later, as every other error
            qt.QTimer.singleShot(0, lambda: self._end(sentence, "worker"))
            return
        if self not in _clients:
            _clients.add(self)
            slicer.app.aboutToQuit.connect(closeAll)
        self.generation += 1
        self._buffer = b""
        process = self._process = qt.QProcess()
        environment = qt.QProcessEnvironment()
        for name, value in variables.items():
            environment.insert(name, value)
        for name in ("TMPDIR", "TEMP", "TMP", "CERS_CLIENTS_FOLDER"):  # by the last one it also goes when the application crashes
            environment.insert(name, self.privateFolder())
        process.setProcessEnvironment(environment)
        process.readyReadStandardOutput.connect(lambda: self._read(process))
        process.readyReadStandardError.connect(lambda: self._readLog(process))
        process.finished.connect(lambda *_arguments: self._onFinished(process))
        process.errorOccurred.connect(
            lambda error: self._onFinished(process, started=False) if error == qt.QProcess.FailedToStart else None
        )
        self._setState(STARTING)
        self._startTimer.start(self.startWithin)
        process.start(program, arguments)

    def _read(self, process) -> None:
        if process is not self._process:
            return
        self._buffer += process.readAllStandardOutput().data()
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            if process is not self._process:  # an answer's receiver may have stopped the worker
                return
            try:
                event = json.loads(line)
            except ValueError:
                self.log.append(line.decode(errors="replace"))
                continue
            if isinstance(event, dict):
                self._onEvent(event)

    def _readLog(self, process) -> None:
        self.log.extend(process.readAllStandardError().data().decode(errors="replace").splitlines())

    def _onEvent(self, event: dict) -> None:
        kind = event.get("type")
        if kind == "ready":
            if event.get("protocol") != PROTOCOL:
                self._end(
                    _("The installed CERS package is of another version than this module. Install the CERS extension again."), "worker"
                )
                return
            self._startTimer.stop()
            self._setState(READY)
            for pending in list(self._pending.values()):
                self._process.write(qt.QByteArray(pending.line))
            return
        identifier = str(event.get("id"))
        pending = self._pending.get(identifier)
        if pending is None:
            return
        if kind == "progress":
            if pending.onProgress and identifier not in self._killTimers:
                pending.onProgress(float(event.get("fraction") or 0), str(event.get("message") or ""))
            return
        del self._pending[identifier]
        self._dropTimer(identifier)
        if kind == "result" and pending.onResult:
            pending.onResult(event.get("result") or {})
        elif kind == "error" and pending.onError:
            pending.onError(str(event.get("code") or "error"), str(event.get("message") or _("The worker gave no reason.")))

    def _onStartTimeout(self) -> None:
        self._end(_("The worker did not start in time. Try again; if that does not help, restart Slicer."), "worker")

    def _onFinished(self, process, started: bool = True) -> None:
        if process in self._ending:  # ended by us; Python lets go of it when the event is over
            qt.QTimer.singleShot(0, lambda: process in self._ending and self._ending.remove(process))
        if process is not self._process:
            return
        if started:
            self._read(process)
            self._readLog(process)
        if process is self._process:
            sentence = crashSentence(list(self.log)) if started else startSentence()
            self._end(sentence, "worker")
            self.ended.emit(sentence)

    def _end(self, sentence: str, code: str) -> None:
        """Drops the process and answers every open request with an error."""
        process, self._process = self._process, None
        self._startTimer.stop()
        for identifier in list(self._killTimers):
            self._dropTimer(identifier)
        if process is not None and process.state() != qt.QProcess.NotRunning:
            self._ending.append(process)  # kept until it is gone: to delete it before would wait for it
            process.closeWriteChannel()
            process.kill()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = ""
        pending, self._pending = self._pending, {}
        self._setState(STOPPED)
        if code == "worker":
            logging.error("CERS worker: %s\n%s", sentence, "\n".join(list(self.log)[-20:]))
        for request in pending.values():
            if request.onError:
                request.onError(code, sentence)

    def _dropTimer(self, identifier: str) -> None:
        timer = self._killTimers.pop(identifier, None)
        if timer is not None:
            timer.stop()

    def _setState(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.stateChanged.emit(state)


def workerCommand() -> tuple[str, list[str], dict[str, str]]:
    """Program, arguments and environment of ``python -m cers serve``."""
    inherited = dict(os.environ)
    if Paths.chosenPython():  # Slicer's variables would lead it to Slicer's libraries, and it would not start
        inherited = {**slicer.util.startupEnvironment(), **{n: v for n, v in inherited.items() if n.startswith("CERS_")}}
    path = os.pathsep.join(p for p in (str(Paths.packageFolder()), inherited.get("PYTHONPATH", "")) if p)
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1", "PYTHONIOENCODING": "utf-8"}
    own["PYTHONSAFEPATH"] = "1"  # no code from the folder that the application was started in: that of a scene, perhaps
    return Paths.pythonExecutable(), ["-m", "cers", "serve"], {**inherited, **own}


def crashSentence(log: list[str]) -> str:
    """What to tell the user of a worker that ended by itself, judged by the last lines of its log."""
    for line in reversed(log[-40:]):
        if line.startswith(("ModuleNotFoundError", "ImportError")):
            reason = line.partition(":")[2].strip().rstrip(".")
            if python := Paths.chosenPython():
                words = _("A Python package is missing in '{python}', which was chosen for CERS: {reason}. Install it there.")
                return words.format(python=python, reason=reason)
            words = _(
                "A Python package is missing: {reason}. Install what CERS needs with the button at the top of the module CERS Segment."
            )
            return words.format(reason=reason)
        if line.startswith(("MemoryError", "RuntimeError: [enforce fail", "torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError")):
            return _("There was not enough memory. Close other programs, crop the volume, or choose another device under Advanced.")
    return _("The worker process ended unexpectedly. Perhaps memory ran out: close other programs or crop a large volume, then try again.")


def startSentence() -> str:
    """What to tell the user where no process could be started."""
    if python := Paths.chosenPython():
        return _("'{python}', which was chosen for CERS, could not be started. Give the path of a Python interpreter as {name}.").format(
            python=python, name=Paths.PYTHON_VARIABLE if os.environ.get(Paths.PYTHON_VARIABLE) else Paths.PYTHON_SETTING
        )
    return _("Python could not be started. Restart Slicer, or install it again.")


def closeAll() -> None:
    """Ends the workers of all clients; a process that outlives its QProcess is complained about, and calls into what is gone."""
    for client in list(_clients):
        client.close()


atexit.register(closeAll)  # where the application does not tell that it quits


def _timer(slot):
    timer = qt.QTimer()
    timer.setSingleShot(True)
    timer.timeout.connect(slot)
    return timer
