"""Files that appear whole or not at all. Needs the standard library only."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

# s: Windows replaces nothing that somebody reads just then, as a panel that follows a training does, or a virus scanner
PATIENCE = 2.0 if os.name == "nt" else 0.0


def ending(path: Path) -> str:
    """The ending of a name, counting .seg.nrrd and .nii.gz as one."""
    name = path.name.lower()
    return next((s for s in (".seg.nrrd", ".nii.gz") if name.endswith(s)), path.suffix.lower())


def existing_folder(path: str | os.PathLike, what: str) -> Path:
    """The path of a folder that is there; ``what`` lies in it, for the message.

    Raises:
        InputError: nothing is there, or a file.
    """
    path = Path(path)
    if path.is_file():
        raise InputError(f"{path} is a file. Give the folder of {what} that it lies in.")
    if not path.is_dir():
        raise InputError(f"The folder of {what}, {path}, does not exist. Check its name.")
    return path


def replace_file(source: str | Path, target: str | Path) -> None:
    """``os.replace``, also while another process reads the target for a moment."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.02)


def let_others_read(temporary: str | Path) -> None:
    """Give a file that ``mkstemp`` made, which only its owner reads, the rights of any new file."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)


def lock(file) -> None:
    """An exclusive lock on an open file that ends with the file, and with the process; OSError if another has it."""
    if os.name == "nt":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` with the same ending; it replaces ``path`` at the end, and is removed after any error."""
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=".cers-", suffix=ending(path), dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            let_others_read(temporary)
            with open(temporary, "rb+") as done:  # Windows refuses what is open for reading only
                os.fsync(done.fileno())
            replace_file(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"'{path}' could not be written: {error.strerror or error}.") from error
