"""Models in and out of the store: install from a run, a folder or a zip file; export; delete."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ..errors import Cancelled, InputError, ModelError
from ..files import replace_file
from .store import (
    CARD,
    CONFIG,
    MODEL,
    MOST,
    PICTURES,
    RECORD,
    RESULT,
    WEIGHTS,
    Entry,
    atomic,
    check_files,
    check_weights,
    find,
    name_of,
    read_entry,
    read_json,
    root,
    writing,
)

_STAGING, _TRASH, _STALE = ".installing-", ".deleted-", 3600
_BLOCK = 1 << 20


def install(
    source: str | os.PathLike,
    name: str | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Entry:
    """Copy a model into the store; it appears there whole and verified, or not at all. One that is there already stays.

    Args:
        source: a training run's folder, a model's folder, or a zip file of one. name: that it shall have here, where its own shall
            not do; that of the source where it has none.

    Raises:
        InputError: no model there, a file that is no plain file or too large, or the store cannot be written. ModelError: it cannot be
        loaded. Cancelled.
    """
    source = Path(source)
    say = progress or (lambda fraction, words: None)

    def check() -> None:
        if cancel and cancel():
            raise Cancelled

    staging = None
    try:
        with writing():
            root().mkdir(parents=True, exist_ok=True)
            _sweep()
            staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root()))
        say(0.05, "Copying the model")
        (_unpack if source.is_file() else _copy)(source, staging, check)
        config, name = read_json(staging / CONFIG), (name or "").strip()
        if name or (config is not None and not str(config.get("name") or "").strip()):
            _rename(staging, name or (source.stem if source.is_file() else source.resolve().name))
        say(0.4, "Verifying the model")
        check()
        digest = _verify(staging)
        check()
        say(0.9, "Installing the model")
        with writing():
            return find(_place(staging, digest, source))
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def export(identifier: str, path: str | os.PathLike, pictures: bool = False) -> Path:
    """Write a model as one zip file. Names and pictures of its test cases stay here: case names are replaced by hashes.

    Args:
        pictures: add the pictures and names of cases all the same.

    Raises:
        ModelError: no such model. InputError: the file cannot be written.
    """
    from ..case.io import check_output

    entry, path = find(identifier), check_output(path, (".zip",))
    folder = Path(entry.folder)
    if entry.problem:
        raise ModelError(f"The model '{entry.name}' cannot be exported: {entry.problem}")
    top = PurePosixPath(_slug(entry.name))
    try:
        with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for file in (WEIGHTS, CONFIG, CARD, *([PICTURES] if pictures else [])):
                if (folder / file).is_file():
                    how = zipfile.ZIP_DEFLATED if file in (CONFIG, CARD) else zipfile.ZIP_STORED
                    archive.write(folder / file, str(top / file), how)
            result = read_json(folder / RESULT)
            if result is not None:
                text = json.dumps(result if pictures else anonymous(result), ensure_ascii=False)
                archive.writestr(str(top / RESULT), text, zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise InputError(
            f"The file '{path}' could not be written ({error.strerror}). Choose another folder, or free some space."
        ) from error
    return path


def anonymous(result: dict) -> dict:
    """A result without names of cases, which may be names of people: hashes take their place, so that results still pair."""
    cases = [
        {
            **{k: v for k, v in case.items() if k != "file"},
            "image": _pseudonym(str(case.get("image"))),
            "group": None if case.get("group") is None else _pseudonym(str(case["group"])),
        }
        for case in result.get("cases", [])
        if isinstance(case, dict)
    ]
    return {**result, "cases": cases, "anonymous": True}


def _pseudonym(name: str) -> str:
    return name if re.fullmatch(r"case-[0-9a-f]{16}", name) else "case-" + hashlib.sha256(name.encode()).hexdigest()[:16]


def delete(identifier: str) -> str:
    """Delete an installed model, also a broken one; its name.

    Raises:
        InputError: it is in use, comes with CERS, or cannot be moved. ModelError: there is none.
    """
    entry = find(identifier)
    if entry.shipped:
        raise InputError("The model that comes with CERS cannot be deleted.")
    if entry.in_use:
        raise InputError(f"The model '{entry.name}' is in use. Use another one first, then delete it.")
    away = root() / f"{_TRASH}{time.time_ns()}"
    try:
        os.rename(root() / entry.id, away)
    except OSError as error:
        raise InputError(f"The model '{entry.name}' could not be deleted ({error.strerror}). Close what uses its files.") from error
    shutil.rmtree(away, ignore_errors=True)  # what is left goes with the next installation
    return entry.name


def _copy(source: Path, staging: Path, check: Callable[[], None]) -> None:
    folder = source if (source / CONFIG).is_file() else source / MODEL
    if not source.is_dir() or not (folder / CONFIG).is_file():
        raise InputError(
            f"There is no model in '{source}'. Choose a finished training run, a folder with {CONFIG} and {WEIGHTS}, or a zip "
            "file that CERS wrote."
        )
    check_files(folder)
    for file, most in MOST.items():
        if (folder / file).is_file():
            try:
                with open(folder / file, "rb") as given:
                    _pour(given, staging / file, most, file, check)
            except OSError as error:
                raise InputError(
                    f"'{folder / file}' could not be copied ({error.strerror}). Free some space, or check the file."
                ) from error


def _unpack(source: Path, staging: Path, check: Callable[[], None]) -> None:
    try:
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                path = PurePosixPath(info.filename.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or re.match(r"^[A-Za-z]:", str(path)):
                    raise InputError(
                        f"'{source.name}' was not installed: its entry '{info.filename}' points outside of it. Get the file again."
                    )
                if stat.S_ISLNK(info.external_attr >> 16):
                    raise InputError(f"'{source.name}' was not installed: its entry '{info.filename}' is a link. Get the file again.")
                if info.is_dir() or path.name not in MOST or len(path.parts) > 2:
                    continue
                if (staging / path.name).exists():
                    raise InputError(f"'{source.name}' holds several models or '{path.name}' twice. Give a zip file of one model.")
                if info.file_size > MOST[path.name]:
                    raise InputError(f"'{path.name}' in '{source.name}' is too large ({info.file_size >> 20} MB).")
                with archive.open(info) as given:
                    _pour(given, staging / path.name, MOST[path.name], path.name, check)
    except OSError as error:
        raise InputError(f"'{source}' could not be unpacked ({error.strerror or error}). Free some space, or check the file.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InputError(f"'{source.name}' is not a zip file of a model, or is damaged. Get it again.") from error
    config = read_json(staging / CONFIG)
    if config is None or not (staging / WEIGHTS).is_file():
        raise InputError(f"There is no model in '{source.name}': it needs {CONFIG} and {WEIGHTS}.")
    network = config.get("network")
    encoder = network.get("encoder") if isinstance(network, dict) else None
    if config.get("text_encoder") or (isinstance(encoder, dict) and encoder.get("path")):
        raise InputError(
            f"The model in '{source.name}' needs further files that are not in it (an encoder's folder). It was not installed."
        )


def _pour(given, target: Path, most: int, name: str, check: Callable[[], None]) -> None:
    """Copies a stream to a new file in blocks, at most ``most`` bytes, and onto the disk."""
    done = 0
    with open(target, "xb") as out:
        while block := given.read(_BLOCK):
            check()
            done += len(block)
            if done > most:
                raise InputError(f"'{name}' is too large for a model (above {most >> 20} MB).")
            out.write(block)
        out.flush()
        os.fsync(out.fileno())


def _rename(staging: Path, name: str) -> None:
    config = read_json(staging / CONFIG) or {}
    (staging / CONFIG).write_text(json.dumps({**config, "name": " ".join(name.split())[:100]}, indent=1) + "\n", encoding="utf-8")


def _verify(folder: Path) -> str:
    """The hash of a model that loads."""
    from .model import load_model

    check_weights(folder / WEIGHTS)
    try:
        return load_model(folder).hash
    except ModelError as error:  # its words are about a folder that goes away
        raise ModelError(str(error).replace(f"{folder}{os.sep}", "").replace(f"'{folder}'", "the model's folder")) from error
    except MemoryError:
        raise ModelError("The model's architecture needs more memory than there is. It was not installed.") from None


def _place(staging: Path, digest: str, source: Path) -> str:
    """Gives the staged model its place; its id."""
    config = (staging / CONFIG).read_bytes()
    identifier = f"{_slug(name_of(staging))}-{hashlib.sha256(digest.encode() + config).hexdigest()[:12]}"
    target = root() / identifier
    record = {"hash": digest, "installed": round(time.time(), 3), "source": str(source)}
    (staging / RECORD).write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    if target.exists() and not read_entry(identifier, target).problem:
        for file in (CARD, RESULT, PICTURES):  # of the same weights, perhaps measured since
            if (staging / file).exists():
                replace_file(staging / file, target / file)
        return identifier
    if target.exists():
        os.rename(target, root() / f"{_TRASH}{time.time_ns()}")
    staging.chmod(0o755)  # mkdtemp's folders are closed to others
    os.rename(staging, target)
    return identifier


def _sweep() -> None:
    """Removes what an installation or deletion left that was cut short."""
    for path in root().iterdir():
        if path.name.startswith(_TRASH) or (path.name.startswith(_STAGING) and time.time() - path.stat().st_mtime > _STALE):
            shutil.rmtree(path, ignore_errors=True)


def _slug(name: str) -> str:
    return re.sub(r"[^\w]+", "-", name).strip("-_")[:40] or "model"
