"""The run folder: status, metrics, log, lock, stop request and checkpoints. Any process may read it; one may train in it."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..case.io import atomic_path
from ..errors import InputError, TrainingError
from ..files import let_others_read, lock, replace_file
from .config import TrainConfig
from .runs import (  # noqa: F401 - some for who trains
    BEGUN,
    CHECKPOINTS,
    CONFIG,
    EXAMPLES,
    LAUNCH,
    LOCK,
    LOG,
    METRICS,
    MODEL,
    SETTINGS,
    SPLIT,
    STATUS,
    STOP,
    WEIGHTS,
    examples,
    half_written,
    is_run,
    own,
)

log = logging.getLogger("cers.training")
# a loader's end is raised at any line of the trainer; within safetensors it is taken for an old torch, and the way for that warns
warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
STATE, TENSORS = {"step", "elapsed", "config", "memory"}, {"student", "teacher", "optimizer", "memory"}  # of a checkpoint
AGAIN_SECONDS = 1.0
STOPPING = b"\nStopping after this step, to save it. Press Ctrl-C again to stop at once: the steps since the last checkpoint are lost.\n"
LOCK_TRIES, LOCK_WAIT = 5, 0.05  # who looks whether a run lives holds the lock for an instant


_held: set = set()  # open lock files


def _let_go() -> None:
    """A forked process, which prepares pictures, must not keep the lock of a trainer that was killed."""
    for file in _held:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class RunFolder:
    """Exclusive use of a run folder, as a context manager.

    Raises:
        InputError: another process trains in it, or it cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.told: dict = {}  # step and share that were told last
        self._lock = None

    def __enter__(self) -> RunFolder:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / LOCK, "a+", encoding="utf-8")
        except OSError as error:
            raise InputError(f"The run folder '{self.folder}' cannot be written ({error.strerror}). Choose another one.") from error
        for left in range(LOCK_TRIES - 1, -1, -1):
            try:
                lock(self._lock)
                break
            except OSError as error:
                if not left:
                    self._lock.close()
                    raise InputError(
                        f"Another training is going on in '{self.folder}'. Stop it first, or choose another run folder."
                    ) from error
                time.sleep(LOCK_WAIT)
        _held.add(self._lock)
        for left in (self.folder / CHECKPOINTS).glob(".step_*"):
            shutil.rmtree(left, ignore_errors=True)
        return self

    def __exit__(self, *exc) -> None:
        if self._lock is not None:
            _held.discard(self._lock)
            self._lock.close()  # the lock goes with the file, and with the process however it ends

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def stop_requested(self) -> bool:
        return self.path(STOP).exists()

    def clear_stop(self) -> None:
        self.path(STOP).unlink(missing_ok=True)

    def admit(self, resume: bool) -> None:
        """InputError if a new run would be written over something."""
        if resume:
            return
        if self.checkpoints() or any(self.path(name).exists() for name in (MODEL, WEIGHTS)):
            raise InputError(f"The run folder '{self.folder}' already holds a run. Resume it, or choose another folder.")
        foreign = sorted(p.name for p in self.folder.iterdir() if not own(p.name) and not p.name.startswith("."))
        if not is_run(self.folder):  # then these, too, are another program's
            foreign += [name for name in (CONFIG, SETTINGS) if self.path(name).exists()]
        if foreign:
            raise InputError(f"The folder '{self.folder}' holds other files ({', '.join(foreign[:3])}). Choose a new or empty folder.")

    def begin(self, config: TrainConfig, resume: bool) -> None:
        """Forget requests to stop of earlier times; one that came since the process was sent off counts.

        The settings of a new run are kept before it reads pictures, which takes long, so that it can be resumed if it ends early.
        """
        try:
            sent = json.loads(self.path(LAUNCH).read_text(encoding="utf-8"))["started"]
            if self.path(STOP).stat().st_mtime < sent:
                self.clear_stop()
        except (OSError, ValueError, KeyError, TypeError):
            self.clear_stop()  # started by hand
        for place in (self.folder, self.folder / MODEL, self.folder / EXAMPLES):  # a run's own by now
            for left in place.glob(".*"):
                if half_written(left.name):
                    with suppress(OSError):
                        left.unlink()
        log.info(BEGUN)
        self.told = self._told_before() if resume else {}
        self.status("starting", **self.told)
        if not resume:
            self.settings(config)
        self.path(LAUNCH).unlink(missing_ok=True)

    def _told_before(self) -> dict:
        """How far an earlier process said that the run had come."""
        try:
            facts = json.loads(self.path(STATUS).read_text(encoding="utf-8"))
            return {k: facts[k] for k in ("step", "steps", "share", "metrics") if k in facts}
        except (OSError, ValueError, TypeError):
            return {}

    def write_json(self, name: str, record: dict) -> None:
        with self.room(name), atomic_path(self.path(name)) as temporary:
            temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def settings(self, config: TrainConfig) -> None:
        with self.room(CONFIG):
            config.write(self.path(CONFIG))
        self.write_json(SETTINGS, asdict(config))

    def status(self, state: str, **facts) -> None:
        """state: starting, running, stopped, finished or failed."""
        self.told = {k: facts[k] for k in ("step", "steps", "share", "metrics") if k in facts} or self.told
        self.write_json(
            STATUS, {"state": state, "pid": os.getpid(), "host": socket.gethostname(), "updated": round(time.time(), 1), **facts}
        )

    def metrics(self, record: dict) -> None:
        """One more line; a line that a crash cut short is ended first."""
        with self.room(METRICS):
            path = self.path(METRICS)
            whole = not path.exists() or not path.stat().st_size or path.read_bytes()[-1:] == b"\n"
            with open(path, "a", encoding="utf-8") as f:
                f.write(("" if whole else "\n") + json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop metrics and example pictures of steps that will be done again, and what an earlier run in the folder left of them."""
        for number, picture in examples(self.folder):
            if number > step:
                picture.unlink(missing_ok=True)
        path = self.path(METRICS)
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()  # a power cut may leave anything at the end
            kept = [line for line in lines if _step(line) <= step]
            with self.room(METRICS), atomic_path(path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def validated(self) -> float:
        """Share of the budget at the last point of the curve of validations, 0 before the first."""
        path, last = self.path(METRICS), 0.0
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            record = json.loads(line)  # ``forget_after`` has dropped what is none
            if "loss" not in record and isinstance(record.get("share"), (int, float)):
                last = float(record["share"])
        return last

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in (self.folder / CHECKPOINTS).glob("step_*") if (p / "state.json").is_file())

    def save(self, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict, keep: int) -> Path:
        """A checkpoint: one safetensors file per entry and state.json; it appears whole, then older ones go.

        Raises:
            TrainingError: the disk is full or cannot be written; earlier checkpoints stay.
        """
        root = self.folder / CHECKPOINTS
        final, temporary = root / f"step_{step:08d}", root / f".step_{step:08d}"
        with self.room("a checkpoint"):
            try:
                temporary.mkdir(parents=True, exist_ok=True)
                for name, record in tensors.items():
                    save_file({k: v.detach().cpu().contiguous().clone() for k, v in record.items()}, str(temporary / f"{name}.safetensors"))
                record = {"step": step, **state, "digests": _digests(temporary)}
                (temporary / "state.json").write_text(json.dumps(record), encoding="utf-8")
                for file in temporary.iterdir():
                    let_others_read(file)  # safetensors does not
                    with open(file, "rb+") as f:
                        os.fsync(f.fileno())
                if final.exists():
                    shutil.rmtree(final)
                replace_file(temporary, final)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for old in self.checkpoints()[: -max(1, keep)]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def save_weights(self, tensors: dict[str, torch.Tensor]) -> None:
        with self.room(WEIGHTS), atomic_path(self.path(WEIGHTS)) as temporary:
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, str(temporary))

    def load(self) -> tuple[dict, dict[str, dict[str, torch.Tensor]]] | None:
        """State and tensors of the newest checkpoint that can be read and is complete, None if there is none.

        Raises:
            InputError: a file of it is not the one that was saved with the others.
        """
        for folder in reversed(self.checkpoints()):
            try:
                state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                tensors = {p.stem: load_file(p) for p in folder.glob("*.safetensors")}
                found = _digests(folder)
            except (OSError, ValueError, SafetensorError):
                continue  # damaged, for instance by a power cut: the one before it is as good
            if isinstance(state, dict) and set(state) >= STATE and set(tensors) >= TENSORS:
                if state.get("digests", found) != found:
                    raise misfit(self.folder, state["step"])
                return state, tensors
        return None

    def room(self, what: str) -> _Room:
        """A context in which a disk that is full or faulty raises a TrainingError that says so."""
        return _Room(self, what)


class _Room:
    """Turns a full or failing disk into one clear sentence."""

    def __init__(self, run: RunFolder, what: str):
        self.run, self.what = run, what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, InputError) and isinstance(error.__cause__, OSError):  # from atomic_path
            error = error.__cause__
        if isinstance(error, (OSError, SafetensorError)):
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "space" in str(error).lower()
            last = self.run.checkpoints()
            kept = "no checkpoint has been written yet; make room and start again"
            if last:
                kept = f"the checkpoint {last[-1].name} is kept; resume from it when there is room"
            reason = "the disk is full" if full else f"of a fault of the disk ({error})"
            raise TrainingError(
                f"{self.what[0].upper()}{self.what[1:]} could not be written to '{self.run.folder}', because {reason}; {kept}."
            ) from error


def misfit(folder: Path, step: int) -> InputError:
    """Of a checkpoint whose files are not of one step of one run."""
    return InputError(
        f"The checkpoint of step {step} in '{folder}' does not fit its run, as if a file of it were another run's or another step's. "
        "Delete it to go on from the one before it, or start a new run."
    )


def _digests(checkpoint: Path) -> dict[str, str]:
    return {p.stem: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(checkpoint.glob("*.safetensors"))}


def _step(line: str) -> float:
    try:
        record = json.loads(line)
        return float("inf") if "final" in record else float(record["step"])  # the model of a finished run is measured again
    except (ValueError, KeyError, TypeError):
        return float("inf")


@contextmanager
def signals():
    """A function that tells whether the process was asked to end; the first request lets the step finish, a second Ctrl-C does not.

    A terminal and torchrun may each pass on one Ctrl-C, so that a second one counts after a moment only.
    """
    asked: list[float] = []

    def ask(number, _frame) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and asked and now - asked[0] > AGAIN_SECONDS:
            raise KeyboardInterrupt
        if number == signal.SIGINT and not asked:
            os.write(2, STOPPING)  # print is not safe in a handler
        asked.append(now)

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: the stop file still works
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
