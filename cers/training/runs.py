"""Run folders, seen from outside: which there are, how each stands, what it has told since. Needs the standard library only.

Whoever looks may start, look and end at any time: the folder is the truth. A run lives as long as its process holds the folder's lock.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..files import replace_file

STATUS, METRICS, CONFIG, SPLIT, LOG, STOP, LOCK = "status.json", "metrics.jsonl", "config.yaml", "split.json", "log.txt", "stop", "lock"
CHECKPOINTS, WEIGHTS, MODEL, EXAMPLES = "checkpoints", "model.safetensors", "model", "examples"
SETTINGS = "settings.json"  # the configuration once more, for programs that read no YAML
LAUNCH = "launch.json"  # of a process that was sent off and has not reported yet; the process takes it away
START = "start.safetensors"  # weights that a run begins with, where they were kept for it
OUTPUT = "output.txt"  # what that process says outside the log
BEGUN = "a process begins"  # first in the log of each
LIVE = ("launching", "starting", "running", "stopping")
ENDED = ("stopped", "finished", "failed")
# all that a run writes; nothing else is deleted with it
OWN = {STATUS, METRICS, CONFIG, SPLIT, LOG, STOP, LOCK, CHECKPOINTS, WEIGHTS, MODEL, EXAMPLES, SETTINGS, LAUNCH, START, OUTPUT, "cache"}
_SETTINGS = {"data", "method", "evidence"}  # together in the settings of no other program
SILENT_S = 600  # a run on another machine that says nothing for so long is taken for dead
TRASH = ".deleted-"


@dataclass
class Run:
    """How a run stands.

    state: launching (its process starts), starting (reads pictures), running, stopping, stopped, finished, failed (says why), or crashed
    (ended without a word). share: of the budget, 0..1. eta: seconds left. reason: why it failed or crashed, a sentence, "" otherwise.
    proposal: settings of a smaller batch, after it ran out of memory. updated: when it last spoke, seconds since 1970.
    """

    folder: Path
    state: str
    step: int = 0
    steps: int | None = None
    share: float = 0.0
    eta: float | None = None
    reason: str = ""
    phase: str = ""
    proposal: dict | None = None
    metrics: dict = field(default_factory=dict)
    updated: float = 0.0
    pid: int | None = None
    host: str = ""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def live(self) -> bool:
        """Its process is at work."""
        return self.state in LIVE

    @property
    def saved(self) -> bool:
        """There is a checkpoint."""
        return any((self.folder / CHECKPOINTS).glob("step_*"))

    @property
    def resumable(self) -> bool:
        return self.state in ("stopped", "failed", "crashed") and any((self.folder / n).exists() for n in (CONFIG, SETTINGS))


def read_run(folder: Path) -> Run | None:
    """How the run in a folder stands, None where the folder is not a run's."""
    folder = Path(folder)
    launch, status = _record(folder / LAUNCH), _record(folder / STATUS)
    if not _marked(folder, launch, status):
        return None
    facts = status or {}
    run = Run(
        folder,
        "crashed",
        step=_int(facts.get("step")),
        steps=_int(facts.get("steps")) or None,
        share=_number(facts.get("share")),
        eta=_number(facts.get("eta")) if facts.get("eta") is not None else None,
        phase=str(facts.get("phase") or ""),
        proposal=facts["proposal"] if isinstance(facts.get("proposal"), dict) else None,
        metrics=facts["metrics"] if isinstance(facts.get("metrics"), dict) else {},
        updated=_number(facts.get("updated")),
        pid=_int(facts.get("pid")) or None,
        host=str(facts.get("host") or ""),
    )
    told, held = facts.get("state"), locked(folder)
    if launch is not None and not held:
        run.updated = _number(launch.get("started"))
        run.eta, run.proposal = None, None
        if _elsewhere(launch) or alive(_int(launch.get("pid"))):
            run.state = "stopping" if (folder / STOP).exists() else "launching"
        else:
            run.reason = reason(folder)
    elif told in ENDED and not held:
        run.state, run.reason = told, str(facts.get("error") or "") if told == "failed" else ""
    elif held or (told in ("starting", "running") and _elsewhere(facts) and time.time() - run.updated < SILENT_S):
        run.state = "stopping" if (folder / STOP).exists() else told if told in ("starting", "running") else "starting"
    elif (folder / STOP).exists() and told in ("starting", "running"):
        run.state = "stopped"  # it was asked to end, and did
    elif status is None and launch is None and not any((folder / name).exists() for name in (STATUS, LOG)):
        run.state = "stopped"  # settings only: it was never begun
    else:
        run.reason = reason(folder)
    if not run.updated:
        with contextlib.suppress(OSError):  # the folder went away meanwhile
            run.updated = folder.stat().st_mtime
    return run


def list_runs(root: Path) -> list[Run]:
    """The runs in a folder, the youngest name last.

    Raises:
        InputError: the folder is there and cannot be read.
    """
    try:
        with os.scandir(root) as entries:
            folders = sorted(e.path for e in entries if not e.name.startswith(".") and e.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"The folder of runs '{root}' cannot be read ({error.strerror}). Choose another one.") from error
    runs = (read_run(Path(folder)) for folder in folders)
    return [run for run in runs if run is not None]


def locked(folder: Path) -> bool:
    """Whether a process trains in the folder. The lock is a process's own and goes with it, however it ends."""
    try:
        file = open(folder / LOCK, "rb")
    except OSError:
        return False
    with file:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def alive(pid: int) -> bool:
    """Whether a process of this number is there. Its number may have passed to another one: use it for moments only."""
    if pid <= 0:
        return False
    if os.name == "nt":  # os.kill would end it
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return False
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == 259  # STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


_CAUSES = (
    (r"failed: (.+)", "{0}"),
    (r"^Error: (.+)", "{0}"),
    (r"^(?:ModuleNotFoundError|ImportError): (.+)", "A Python package that training needs is missing: {0}. Install the packages of CERS."),
    (r"^(?:\S*OutOfMemoryError|MemoryError|RuntimeError: \[enforce fail)(.*)", "There was not enough memory."),
    (r".*No space left on device.*", "The disk is full."),
)


def reason(folder: Path) -> str:
    """Why a run ended that could not say so itself, from what it left."""
    for name, last in ((OUTPUT, 40), (LOG, 3)):
        if name == OUTPUT and _changed(folder / OUTPUT) < _changed(folder / STATUS):
            continue  # a process has spoken since that was started otherwise
        for line in reversed(Tail(folder / name, 20_000).read()[1][-last:]):
            if line.endswith(BEGUN):
                break  # above it are the words of an earlier process
            for pattern, words in _CAUSES:
                if found := re.search(pattern, line):
                    return words.format(*(g.strip().rstrip(".") for g in found.groups())).rstrip(".") + "."
    try:
        if shutil.disk_usage(folder).free < 20e6:
            return "The disk is full. Make room, then resume."
    except OSError:
        return "Its folder cannot be read any more."
    return "It ended without a word, as when a process is killed, or the computer runs out of memory or power."


class Tail:
    """The lines that a growing text file has got since the last look; reads only those.

    Args: start: of a file that is longer at the first look, only so many bytes at its end count. most: bytes of one look.
    """

    def __init__(self, path: Path, start: int | None = None, most: int = 1 << 18):
        self.path, self.start, self.most = Path(path), start, most
        self._at, self._file = 0, None

    def read(self) -> tuple[bool, list[str]]:
        """Whether the file was begun anew (or is gone), and its new whole lines."""
        try:
            with open(self.path, "rb") as file:
                facts = os.fstat(file.fileno())
                anew = self._file is not None and (facts.st_ino != self._file or facts.st_size < self._at)
                if anew or self._file is None:
                    self._at = max(0, facts.st_size - self.start) if self.start else 0
                self._file = facts.st_ino
                file.seek(self._at)
                block = file.read(self.most)
        except OSError:
            gone, self._file, self._at = self._file is not None, None, 0
            return gone, []
        end = block.rfind(b"\n") + 1 or len(block) * (len(block) == self.most)  # a line longer than a look comes in pieces
        self._at += end
        return anew, block[:end].decode("utf-8", errors="replace").splitlines()


class History:
    """The curves of a run, read from its metrics as they come.

    curves: {name: [(step, value), ...]} of loss, plain, null, retrieved and gain (retrieved minus null, both of the same validation).
    dice: last validation Dice of the decoder that the run is for, as of the weights that the model has; None before the first validation.
    """

    NAMES = ("loss", "plain", "null", "retrieved", "gain")

    def __init__(self, folder: Path):
        self._tail = Tail(Path(folder) / METRICS)
        self._clear()

    def _clear(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {name: [] for name in self.NAMES}
        self.dice: float | None = None

    def update(self) -> bool:
        """Whether something is new."""
        anew, lines = self._tail.read()
        if anew:
            self._clear()
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a line that a crash cut short
            if isinstance(record, dict) and _finite(record.get("step")):
                self._take(record)
        return anew or bool(lines)

    def _take(self, record: dict) -> None:
        step = int(record["step"])
        if isinstance(record.get("loss"), (int, float)):
            self.curves["loss"].append((step, float(record["loss"])))
        final = record.get("final")
        dice = final
        if not isinstance(final, dict):
            dice = {k.removeprefix("validation_"): v for k, v in record.items() if k.startswith("validation_")}
        dice = {k: float(v) for k, v in dice.items() if k in self.curves and _finite(v)}
        if "loss" in record or not dice:  # lines of losses repeat the last validation
            return
        for name, value in dice.items():
            self.curves[name].append((step, value))
        if {"retrieved", "null"} <= set(dice):
            self.curves["gain"].append((step, dice["retrieved"] - dice["null"]))
        self.dice = next(dice[name] for name in ("retrieved", "null", "plain") if name in dice)


def settings(folder: Path) -> dict:
    """The configuration of a run.

    Raises:
        InputError: it is not there or damaged.
    """
    record = _record(Path(folder) / SETTINGS)
    if not record:
        raise InputError(f"The settings of the run '{Path(folder).name}' cannot be read. Fill in the form instead.")
    return record


def examples(folder: Path) -> list[tuple[int, Path]]:
    """(step, picture) of the example predictions, in order."""
    found = []
    with contextlib.suppress(OSError):  # none yet
        for path in (Path(folder) / EXAMPLES).iterdir():
            if match := re.fullmatch(r"step_(\d+)\.png", path.name):
                found.append((int(match[1]), path))
    return sorted(found)


def new_folder(root: Path, name: str = "") -> Path:
    """A new, empty folder for a run, named by date and, if given, a name.

    Raises:
        InputError: it cannot be made.
    """
    clean = re.sub(r'[<>:"/\\|?*\x00-\x1f]', " ", name).strip(" .")[:60]
    base = clean or time.strftime("%Y-%m-%d %H.%M")
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = Path(root) / (base if number == 1 else f"{base} ({number})")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise InputError(f"No folder for the run can be made in '{root}' ({error.strerror}). Choose another folder for runs.") from error
    raise InputError(f"There are too many runs named '{base}' in '{root}'. Give the run another name.")


def write_record(path: Path, record: dict) -> None:
    """A JSON file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        replace_file(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"'{path}' could not be written ({error.strerror}). Make room, or choose another folder for runs.") from error


def request_stop(folder: Path) -> None:
    """Ask a run to finish its step, save and end. One that still prepares has nothing to save and is ended.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        (folder / STOP).touch()
    except OSError as error:
        raise InputError(f"The request to stop could not be written to '{folder}' ({error.strerror}).") from error
    facts = _record(folder / STATUS) or {}
    pid = _int(facts.get("pid"))  # 0 would be everybody
    if facts.get("state") == "starting" and pid > 0 and not _elsewhere(facts) and not (folder / LAUNCH).exists() and locked(folder):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # ended meanwhile
            os.kill(pid, signal.SIGTERM)


def remove(folder: Path) -> Path:
    """Take a run out of the list; returns the folder that is left to delete, which may take a while.

    Only what a run writes is taken (``OWN``). Where the folder holds other files it stays with them.

    Raises:
        InputError: it is no run, it trains, or it cannot be moved. Also after it was deleted, where other files were kept: names them.
    """
    folder = Path(folder)
    run = read_run(folder)
    if run is None:
        raise InputError(f"'{folder}' is no training run, so it was not deleted.")
    if run.live:
        raise InputError(f"The run '{folder.name}' is at work. Stop it first.")
    away = folder.with_name(f"{TRASH}{folder.name}-{time.time_ns()}")
    try:
        names = sorted(os.listdir(folder))
        foreign = [name for name in names if not own(name)]
        if not foreign:
            os.rename(folder, away)
            return away
        away.mkdir()
        for name in filter(own, names):
            os.rename(folder / name, away / name)
    except OSError as error:
        raise InputError(f"The run '{folder.name}' could not be deleted ({error.strerror}). Close what uses its files.") from error
    shutil.rmtree(away, ignore_errors=True)
    kept = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
    raise InputError(f"The run '{folder.name}' was deleted. Its folder stays, because it holds files that are not the run's: {kept}.")


def own(name: str) -> bool:
    """Whether a run writes a file or folder of this name; also those that a killed writer left half written."""
    return name in OWN or name == ".DS_Store" or half_written(name) or name.startswith(tuple(f".{own}." for own in OWN))


def half_written(name: str) -> bool:
    """Whether a file of this name is one that a killed writer left: CERS', or safetensors'."""
    return name.startswith(".cers-") or re.fullmatch(r"\.tmp\w{6}", name) is not None


def is_run(folder: Path) -> bool:
    """Whether something in the folder is CERS' own: other programs, too, keep a settings.json or a config.yaml."""
    return _marked(folder, _record(folder / LAUNCH), _record(folder / STATUS))


def _marked(folder: Path, launch: dict | None, status: dict | None) -> bool:
    if launch is not None and {"pid", "started"} <= set(launch):
        return True
    if status is not None and status.get("state") in (*LIVE, *ENDED) and "updated" in status:
        return True
    if (folder / STATUS).is_file() and (folder / METRICS).is_file():  # damaged, but no other program writes both
        return True
    if _SETTINGS <= set(_record(folder / SETTINGS) or ()):
        return True
    try:
        with open(folder / CONFIG, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 16)
    except OSError:
        return False
    return text.startswith("# hash ") or _SETTINGS <= set(re.findall(r"^(\w+):", text, re.M))


def _record(path: Path) -> dict | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _number(value) -> float:
    return float(value) if _finite(value) and not isinstance(value, bool) else 0.0


def _finite(value) -> bool:
    """JSON as Python reads it also has NaN and Infinity."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _int(value) -> int:
    return int(_number(value))


def _elsewhere(facts: dict) -> bool:
    return bool(facts.get("host")) and facts["host"] != socket.gethostname()
