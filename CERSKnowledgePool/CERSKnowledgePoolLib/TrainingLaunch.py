"""Sends a training off as a process of its own, which goes on when the application is closed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import qt
import slicer
from CERSSegmentLib.WorkerClient import workerCommand
from slicer.i18n import tr as _

from cers.errors import InputError, TrainingError
from cers.training import runs

RUNS_SETTING = "CERS/RunsFolder"
PICTURES = ".pictures"  # prepared ones, shared by the runs of a folder
START = runs.START
_sent: list[subprocess.Popen] = []


def runsFolder() -> str:
    """Where runs live: the folder that the user chose, or one among the user's documents. It is made when it is needed."""
    documents = qt.QStandardPaths.writableLocation(qt.QStandardPaths.DocumentsLocation) or str(Path.home())
    return slicer.util.settingsValue(RUNS_SETTING, "") or os.path.join(documents, "CERS training")


def start(root: str, name: str, settings: dict) -> Path:
    """A new run; its folder.

    Raises:
        CersError: the folder cannot be made or written, or there is no Python to train with.
    """
    folder = runs.new_folder(Path(root), name)
    try:
        runs.write_record(folder / runs.SETTINGS, {**settings, "initial": _kept(folder, settings.get("initial"))})
        send(folder)
    except (InputError, TrainingError):
        shutil.rmtree(folder, ignore_errors=True)  # it holds nothing but the settings, which the form has, too
        raise
    return folder


def _kept(folder: Path, initial):
    """The weights that a run begins with as a file of its own, so that it goes on whatever becomes of the model they are of."""
    if not initial or initial in ("imagenet", "random"):
        return initial
    try:
        return str(shutil.copyfile(initial, folder / START))
    except OSError as error:
        raise InputError(
            _("The weights '{file}' to start from cannot be read or copied ({reason}). Start from another model.").format(
                file=initial, reason=error.strerror
            )
        ) from error


def send(folder: Path) -> None:
    """Starts the process of a run that is new or that goes on.

    Raises:
        CersError: it trains already, its folder cannot be written, or there is no Python to train with.
    """
    run = runs.read_run(folder)
    if run is not None and run.live:  # or about to be: its process takes some seconds to lock the folder
        raise InputError(_("The run '{name}' is at work already.").format(name=folder.name))
    try:
        program, _serve, environment = workerCommand()
    except RuntimeError as error:
        raise TrainingError(str(error)) from error
    begin = ["--resume", str(folder)]
    if not (folder / runs.CONFIG).exists():
        begin = ["--config", str(folder / runs.SETTINGS), "--out", str(folder)]
    command = [program, "-m", "cers", "train", *begin, "--cache", str(folder.parent / PICTURES)]
    if os.name == "nt":  # a group of its own and no console, so that neither a closed window nor Ctrl-C reaches it
        own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    else:
        own = {"start_new_session": True}
    try:
        with contextlib.suppress(FileNotFoundError):
            (folder / runs.STOP).unlink()
        with open(folder / runs.OUTPUT, "wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=str(folder.parent),
                env=environment,
                **own,
            )
    except OSError as error:
        raise TrainingError(
            _("The training could not be started in '{folder}': {reason}.").format(folder=folder, reason=error.strerror or str(error))
        ) from error
    _sent.append(process)
    try:
        runs.write_record(folder / runs.LAUNCH, {"pid": process.pid, "host": socket.gethostname(), "started": round(time.time(), 3)})
    except InputError:
        process.kill()
        raise


def reap() -> None:
    """Takes notice of processes that have ended, so that the system forgets them."""
    _sent[:] = [process for process in _sent if process.poll() is None]


def delete(folder: Path) -> None:
    """Deletes a run; what takes long goes on in the background.

    Raises:
        InputError: it trains, or cannot be moved.
    """
    away = runs.remove(folder)
    threading.Thread(target=shutil.rmtree, args=(away, True), name="cers delete run").start()
