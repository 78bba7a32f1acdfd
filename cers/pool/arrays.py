"""Image and mask of a case as one compressed file, named by its own SHA-256.

A file's name is the checksum of its bytes, so two writers of one case can never disagree, and damage shows.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError

import numpy as np

from ..errors import PoolError
from ..files import let_others_read, replace_file

_STALE_SECONDS = 3600  # a temporary file this old has lost its writer
# numpy reads headers with ``ast``, whose depth counter all threads of an interpreter share before Python 3.13: one at a time
_PARSING = threading.Lock()
_NAME = re.compile(r"[0-9a-f]{64}\.npz")
LARGEST = 1 << 30  # bytes that a file may unpack to


# what numpy and zipfile make of bytes that are no such file, or claim what they do not hold
UNREADABLE = (ValueError, KeyError, EOFError, OSError, RuntimeError, MemoryError, TokenError, zipfile.BadZipFile, zlib.error)


def pack(**arrays: np.ndarray) -> tuple[bytes, str]:
    """Compressed .npz bytes of plain numeric arrays and their SHA-256."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # numpy before 2.1, as Slicer 5.10 has it, would take allow_pickle for one more array
    data = buffer.getvalue()
    return data, hashlib.sha256(data).hexdigest()


def path_of(folder: Path, sha256: str) -> Path:
    """Where the file of that checksum lies.

    Raises:
        PoolError: it is no checksum; a pool from elsewhere might name a file outside its folder, which would be read or deleted.
    """
    if not _NAME.fullmatch(f"{sha256}.npz"):
        raise PoolError(
            f"The pool {folder} names an image file {str(sha256)[:80]!r}, which no pool has. Restore pool.sqlite from a backup."
        )
    return folder / "arrays" / sha256[:2] / f"{sha256}.npz"


def write_temporary(folder: Path, data: bytes) -> Path:
    """Write ``data`` durably to a new file in the pool's temporary folder; the caller moves it to its place or deletes it."""
    (folder / "tmp").mkdir(exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder / "tmp", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        let_others_read(name)  # a pool may be shared
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


def publish(temporary: Path, final: Path) -> None:
    """Move a temporary file to its place in one step that also survives a power cut."""
    final.parent.mkdir(parents=True, exist_ok=True)
    replace_file(temporary, final)
    if os.name == "posix":  # a new name is durable once its directory is
        handle = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path: Path, sha256: str, what: str) -> dict[str, np.ndarray]:
    """The arrays of a file whose checksum must be ``sha256``.

    Raises:
        PoolError: missing, unreadable or damaged; names ``what``.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PoolError(
            f"{what} has lost its image file {path.name}. Restore it from a backup, or delete the case and add it again."
        ) from None
    except OSError as error:
        raise PoolError(
            f"The image file of {what} cannot be read ({error.strerror}). Check the disk and the folder's permissions."
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise PoolError(
            f"The image file {path.name} of {what} is damaged: its checksum does not match. "
            "Restore it from a backup, or delete the case and add it again."
        )
    try:
        with _PARSING, np.load(io.BytesIO(data), allow_pickle=False) as file:
            if (size := sum(info.file_size for info in file.zip.infolist())) > LARGEST:
                raise ValueError(f"it would unpack to {size >> 20} MB")
            return {name: file[name] for name in file.files}
    except UNREADABLE as error:
        raise PoolError(f"The image file {path.name} of {what} is not a valid array file ({error}).") from error


def remove_stale_temporaries(folder: Path) -> int:
    """Delete what killed writers left in the temporary folder long ago; the number of files removed."""
    place = folder / "tmp"
    return 0 if place.is_symlink() else remove_stale(place.glob("*.part"))  # elsewhere such files are somebody else's


def remove_stale(paths: Iterable[Path]) -> int:
    """Delete those of some temporary files that are so old that they have lost their writer; how many."""
    count = 0
    for path in paths:
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
                count += 1
        except FileNotFoundError:
            continue  # another process was quicker
    return count


def files(folder: Path) -> dict[str, Path]:
    """Every array file present, by the checksum in its name. Foreign files are not touched or listed."""
    return {p.stem: p for p in (folder / "arrays").glob("??/*.npz") if _NAME.fullmatch(p.name)}
