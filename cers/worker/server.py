"""Lines in, lines out: who asks what, in which order it is done, and that every request gets exactly one answer.

Threads: a reader parses stdin and answers hello and cancel at once; the main thread does the work in order; a watcher notices when the
parent has died without closing the pipe. What the requests do is in ``methods``, which is imported when the first one needs it.
"""

from __future__ import annotations

import json
import math
import os
import queue
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from .. import __version__
from ..errors import Cancelled, CersError, InputError, ProtocolError

PROTOCOL = 1
MAX_LINE = 16 * 2**20  # bytes; arrays travel as files, so that no honest request comes near
_THROTTLE = 0.05  # s between two progress events of one request
CLIENTS_FOLDER = "CERS_CLIENTS_FOLDER"  # a client's own folder for temporary files, the worker's among them
_GRACE = 1.5  # s that a running request has to stop when the worker must end


class Job:
    """A request that has not been answered yet."""

    def __init__(self, server: Server, identifier, method: str, params: dict):
        self.id, self.method, self.params = identifier, method, params
        self.cancelled = threading.Event()
        self._server, self._last = server, 0.0

    def progress(self, fraction: float, message: str) -> None:
        """Tell the client how far the work is, 0..1, in words; at most about 20 times a second."""
        now = time.monotonic()
        if now - self._last >= _THROTTLE:
            self._last = now
            fraction = min(max(float(fraction), 0.0), 1.0)
            self._server.progress(self.id, round(fraction, 4), str(message))

    def check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled


class Server:
    """One client on one pair of streams.

    Args:
        stdin, stdout: binary streams. folder: private folder for arrays; its owner removes it.
        methods: maps a method's name to ``f(job, params) -> dict``; called once, when the first request needs it.
    """

    def __init__(self, stdin, stdout, folder: Path, methods: Callable[[], dict[str, Callable]]):
        self._in, self._out, self.folder, self._load = stdin, stdout, folder, methods
        self._write = threading.Lock()
        self._open_lock = threading.Lock()
        self._open: dict[object, Job] = {}
        self._seen: set = set()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._idle = threading.Event()
        self._shutdown_id = None
        self._methods: dict[str, Callable] | None = None

    def run(self) -> None:
        """Serve until stdin closes or shutdown is asked for."""
        self._send({"type": "ready", "protocol": PROTOCOL, "version": __version__, "pid": os.getpid(), "folder": str(self.folder)})
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        while (job := self._jobs.get()) is not None:
            if self._is_open(job):
                self._work(job)
        self._idle.set()
        self._finish()

    # reader thread

    def _read(self) -> None:
        while not self._ending.is_set():
            line = self._in.readline(MAX_LINE + 1)
            if not line:
                break
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = self._in.readline(MAX_LINE)
                self._error(None, "protocol", f"A request line is longer than {MAX_LINE // 2**20} MiB. Send arrays as .npy files.")
            elif line.strip():
                try:
                    self._receive(line)
                except ProtocolError as error:
                    self._error(None, "protocol", str(error))
        self._end()

    def _receive(self, line: bytes) -> None:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            raise ProtocolError("A line is not valid JSON. Send one JSON object per line.") from None
        if not isinstance(request, dict):
            raise ProtocolError('A line is not a JSON object. Send {"id": ..., "method": ..., "params": {...}}.')
        identifier = request.get("id")
        if (
            isinstance(identifier, bool)
            or not isinstance(identifier, (str, int))
            or len(str(identifier)) > 200
            or not _sendable(identifier)
        ):
            raise ProtocolError("A request has no usable id. Give each request a text or a whole number of its own as id.")
        if identifier in self._seen:  # answering under this id would be a second answer to the first request
            raise ProtocolError(f"The id {json.dumps(identifier)} was used before. Give each request an id of its own.")
        self._seen.add(identifier)
        method, params = request.get("method"), request.get("params")
        job = Job(self, identifier, method, {} if params is None else params)
        with self._open_lock:
            self._open[identifier] = job
        if not isinstance(method, str) or method not in METHODS:
            self._error(identifier, "protocol", f"There is no method {json.dumps(method)[:100]}. Use one of {', '.join(METHODS)}.")
        elif not isinstance(job.params, dict):
            self._error(identifier, "protocol", "params must be a JSON object.")
        elif method in _AT_ONCE and (fault := _wrong(method, job.params)):
            self._error(identifier, "protocol", fault)
        elif method == "hello":
            self._hello(job)
        elif method == "cancel":
            self._cancel(job)
        elif method == "shutdown":
            self._shutdown_id = identifier
            self._ending.set()
        else:
            self._jobs.put(job)

    def _hello(self, job: Job) -> None:
        wanted = job.params.get("protocol")
        if wanted != PROTOCOL:
            self._error(
                job.id,
                "protocol",
                f"This worker speaks protocol {PROTOCOL}, not {json.dumps(wanted)[:40]}. Use a client of the same version.",
            )
        else:
            self._answer(
                job.id,
                {"protocol": PROTOCOL, "version": __version__, "pid": os.getpid(), "folder": str(self.folder), "methods": list(METHODS)},
            )

    def _cancel(self, job: Job) -> None:
        wanted = job.params.get("request")
        with self._open_lock:
            target = self._open.get(wanted) if isinstance(wanted, (str, int)) and wanted != job.id else None
        if target is not None:
            target.cancelled.set()
            if target is not self._current:
                self._error(target.id, Cancelled.code, str(Cancelled()))  # it waits in the queue: over at once
        self._answer(job.id, {"cancelled": target is not None})

    def _end(self) -> None:
        """No more requests: stop what runs, and end for certain even if it does not stop."""
        self._ending.set()
        with self._open_lock:
            waiting = [job for job in self._open.values() if job.id != self._shutdown_id]
        for job in waiting:
            job.cancelled.set()
        self._jobs.put(None)
        if not self._idle.wait(_GRACE):
            for job in waiting:
                self._error(job.id, Cancelled.code, str(Cancelled()))
            self._finish()
            leave(self.folder)

    def _finish(self) -> None:
        with self._open_lock:
            waiting = [job.id for job in self._open.values() if job.id != self._shutdown_id]
        for identifier in waiting:
            self._error(identifier, Cancelled.code, str(Cancelled()))
        if self._shutdown_id is not None:
            self._answer(self._shutdown_id, {})

    # work thread

    _current: Job | None = None

    def _work(self, job: Job) -> None:
        self._current = job
        try:
            job.check()
            if self._methods is None:
                self._methods = self._load()
            result = self._methods[job.method](job, job.params)
            job.check()
        except CersError as error:
            self._error(job.id, error.code, str(error))
        except ImportError as error:
            traceback.print_exc()
            self._error(
                job.id,
                "packages",
                f"A Python package that CERS needs is missing or damaged ({error}). Install it and start the worker again.",
            )
        except MemoryError:
            traceback.print_exc()
            self._error(job.id, "memory", "There was not enough memory. Close other programs, or crop the volume.")
        except Exception as error:  # whatever it is, the client gets its one answer and the next request its turn
            traceback.print_exc()
            if "out of memory" in str(error).lower():
                self._error(job.id, "memory", "The device ran out of memory. Choose the CPU, or crop the volume.")
            else:
                self._error(
                    job.id,
                    "internal",
                    f"Something unexpected went wrong in '{job.method}' ({type(error).__name__}); the worker's log has the details.",
                )
        else:
            self._answer(job.id, result)
        finally:
            self._current = None

    # answers

    def _is_open(self, job: Job) -> bool:
        with self._open_lock:
            return job.id in self._open

    def progress(self, identifier, fraction: float, message: str) -> None:
        with self._open_lock:
            if identifier in self._open:
                self._send({"id": identifier, "type": "progress", "fraction": fraction, "message": message})

    def _answer(self, identifier, result: dict) -> None:
        self._close({"id": identifier, "type": "result", "result": result})

    def _error(self, identifier, code: str, message: str) -> None:
        self._close({"id": identifier, "type": "error", "code": code, "message": " ".join(message.split())})

    def _close(self, event: dict) -> None:
        """Send an answer, unless its request has had one."""
        with self._open_lock:
            if event["id"] is None or self._open.pop(event["id"], None) is not None:
                self._send(event)

    def _send(self, event: dict) -> None:
        line = json.dumps(_plain(event), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
        try:
            with self._write:
                self._out.write(line)
                self._out.flush()
        except (OSError, ValueError):  # the client is gone: there is nobody left to work for
            leave(self.folder)


_AT_ONCE = {"hello": "protocol", "cancel": "request", "shutdown": None}  # and the parameter that each takes


def _wrong(method: str, given: dict) -> str:
    """What is wrong with the parameters of a method that is answered at once; '' where nothing is."""
    own = _AT_ONCE[method]
    if method != "hello" and own is not None and given.get(own) is None:  # hello has words of its own for a wrong version
        return f"'{method}' needs the parameter '{own}'."
    unknown = [name for name in given if name != own]
    if unknown and (method != "hello" or given.get(own) == PROTOCOL):
        return f"'{method}' has no parameter {json.dumps(unknown[0])[:100]}. It takes {own or 'none'}."
    return ""


def _sendable(identifier: str | int) -> bool:
    """Whether an answer can carry this id: half of a surrogate pair is no text."""
    return not any("\ud800" <= c <= "\udfff" for c in str(identifier))


METHODS = (
    "hello",
    "load_model",
    "open_pool",
    "segment",
    "resegment",
    "slice",
    "describe",
    "embed",
    "search",
    "case",
    "add_case",
    "export_report",
    "cancel",
    "shutdown",
    "pool_create",
    "pool_info",
    "pool_query",
    "pool_rows",
    "pool_case",
    "pool_edit",
    "pool_rationale",
    "pool_review",
    "pool_delete",
    "pool_restore",
    "pool_purge",
    "pool_trash",
    "pool_audit",
    "pool_health",
    "pool_harm",
    "pool_map",
    "pool_uses",
    "pool_export",
    "pool_merge",
    "pool_import_folder",
    "pool_import_volume",
    "pool_import_report",
    "next_rank",
    "next_mask",
    "model_list",
    "model_install",
    "model_use",
    "model_export",
    "model_delete",
    "model_compare",
    "rationale_overview",
    "rationale_plan",
    "rationale_write",
    "rationale_report",
    "rationale_compare",
    "rationale_consents",
    "rationale_grant",
    "rationale_withdraw",
    "rationale_log",
    "rationale_import",
)


def serve() -> int:
    """Run the worker on this process's stdin and stdout; the exit code."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints of libraries, also those of C code, go to the log and never between the answers
    sys.stdout = sys.stderr
    folder = Path(tempfile.gettempdir(), f"cers-worker-{secrets.token_hex(8)}")  # named before a signal can ask for its end
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: leave(folder))
    folder.mkdir(0o700)
    threading.Thread(target=_watch_parent, args=(os.getppid(), folder), name="watcher", daemon=True).start()
    try:
        Server(sys.stdin.buffer, answers, folder, lambda: _methods(folder)).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    leave(folder)


def leave(folder: Path) -> None:
    """End this process now, with nothing left behind, of a client neither that crashed; libraries' threads must not delay it."""
    whole = Path(os.environ.get(CLIENTS_FOLDER, ""))
    shutil.rmtree(whole if folder.parent == whole else folder, ignore_errors=True)
    sys.stderr.flush()
    os._exit(0)


def _methods(folder: Path) -> dict[str, Callable]:
    from .methods import Methods

    return Methods(folder).table()


def _watch_parent(parent: int, folder: Path) -> None:
    while os.name == "posix":  # elsewhere a dead parent closes stdin, which the reader sees
        time.sleep(0.5)
        if os.getppid() != parent:
            leave(folder)


def _plain(value):
    """JSON types only; numbers that JSON lacks (NaN, infinite) become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise InputError(f"A result of type {type(value).__name__} cannot be sent.")
