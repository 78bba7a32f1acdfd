"""A plain client of the worker, for scripts and tests. Needs the standard library and numpy.

>>> with Worker() as worker:
...     worker.call("load_model")
...     worker.call("open_pool", path="pool")
...     result = worker.segment(array, ijkToRAS)
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import CersError, ProtocolError
from .server import PROTOCOL


class WorkerError(CersError):
    """An error that the worker answered; ``code`` is the worker's."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class Request:
    """A request on its way. ``result`` waits for the answer."""

    def __init__(self, worker: Worker, identifier: str, progress: Callable[[float, str], None] | None):
        self.id, self._worker, self._progress = identifier, worker, progress
        self._answers: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self._answer: dict | None = None

    def result(self, timeout: float | None = 600) -> dict:
        """The result.

        Raises:
            WorkerError: the worker answered with an error, or ended. TimeoutError: no answer within ``timeout`` s.
        """
        if self._answer is None:
            try:
                self._answer = self._answers.get(timeout=timeout)
            except queue.Empty:
                raise TimeoutError(f"The worker has not answered request {self.id} within {timeout} s.") from None
        if self._answer["type"] == "error":
            raise WorkerError(self._answer["code"], self._answer["message"])
        return self._answer["result"]

    def cancel(self) -> bool:
        """Ask the worker to stop; True if the request was still open. ``result`` then raises WorkerError with code "cancelled"."""
        return self._worker.call("cancel", request=self.id)["cancelled"]


class Worker:
    """A worker process of one's own.

    Args:
        command: program and arguments, default this Python's ``-m cers serve``. log: called with each line of the worker's stderr.

    Attributes:
        ready: the ready event. faults: error events that belong to no request.
    """

    def __init__(self, command: list[str] | None = None, *, log: Callable[[str], None] | None = None, start_timeout: float = 60):
        places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in places if p)}
        self.process = subprocess.Popen(
            command or [sys.executable, "-m", "cers", "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self.faults: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self.log: deque[str] = deque(maxlen=1000)
        self._say, self._lock = log, threading.Lock()
        self._open: dict[str, Request] = {}
        self._count = 0
        self._started: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._read, self._read_log)]
        for thread in self._threads:
            thread.start()
        try:
            self.ready = self._started.get(timeout=start_timeout)
        except queue.Empty:
            self.process.kill()
            raise WorkerError("worker", "The worker did not start in time.") from None
        if self.ready.get("protocol") != PROTOCOL:
            self.close()
            raise ProtocolError(f"The worker could not be started, or speaks another protocol. Its log: {' '.join(self.log)[-500:]}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def send(self, method: str, progress: Callable[[float, str], None] | None = None, **params) -> Request:
        """Send a request without waiting. progress is called with (fraction, message) from a thread of the client."""
        with self._lock:
            self._count += 1
            request = self._open[str(self._count)] = Request(self, str(self._count), progress)
        self.write(json.dumps({"id": request.id, "method": method, "params": params}).encode() + b"\n")
        return request

    def call(self, method: str, **params) -> dict:
        """Send a request and wait for its result."""
        return self.send(method, **params).result()

    def segment(self, array: np.ndarray, ijkToRAS: np.ndarray, progress: Callable[[float, str], None] | None = None, **params) -> dict:
        """Segment an array (k, j, i); the label map comes back as an array under "labelmap"."""
        path = Path(self.ready["folder"]) / f"input-{id(array)}.npy"
        np.save(path, array, allow_pickle=False)
        try:
            result = self.send("segment", progress, image=str(path), ijkToRAS=np.asarray(ijkToRAS, float).tolist(), **params).result()
        finally:
            path.unlink(missing_ok=True)
        return {**result, "labelmap": np.load(result["labelmap"], allow_pickle=False)}

    def write(self, line: bytes) -> None:
        """Raw bytes to the worker's stdin."""
        try:
            with self._lock:
                self.process.stdin.write(line)
                self.process.stdin.flush()
        except (OSError, ValueError):
            self._fail("The worker has ended.")

    def close(self, timeout: float = 5) -> int:
        """Close the worker's stdin, wait for its end and return its exit code; it is killed if it does not end in time."""
        try:
            self.process.stdin.close()
        except OSError:  # bytes that were still to be written have nobody to read them
            pass
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            for thread in self._threads:
                thread.join(1)

    def _read(self) -> None:
        for line in self.process.stdout:
            event = json.loads(line)
            if event["type"] == "ready":
                self._started.put(event)
                continue
            with self._lock:
                ends = event["type"] in ("result", "error")
                request = self._open.pop(event["id"], None) if ends else self._open.get(event["id"])
            if request is None:
                self.faults.put(event)
            elif ends:
                request._answers.put(event)
            elif request._progress:
                request._progress(event["fraction"], event["message"])
        self._started.put({})
        self._fail("The worker has ended.")

    def _read_log(self) -> None:
        for line in self.process.stderr:
            text = line.decode(errors="replace").rstrip()
            self.log.append(text)
            if self._say:
                self._say(text)

    def _fail(self, message: str) -> None:
        with self._lock:
            open_requests, self._open = list(self._open.values()), {}
        for request in open_requests:
            request._answers.put({"type": "error", "code": "worker", "message": message})
