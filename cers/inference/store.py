"""Installed models: one folder each, and which of them is in use. Needs the standard library only until a model is verified.

The store is a folder of the user's own (``CERS_MODELS`` names another one). Each model lies in a folder named by its name and a hash of
weights and configuration. ``in_use.json`` lists the models that were in use, the latest first; without it the shipped model is.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import CersError, InputError, ModelError
from ..resources import resource

ENVIRONMENT = "CERS_MODELS"
SHIPPED = "shipped"  # id of the model that comes with CERS
WEIGHTS, CONFIG, CARD, RESULT, PICTURES, RECORD = (
    "model.safetensors",
    "config.json",
    "MODEL_CARD.md",
    "result.json",
    "cases.png",
    "installed.json",
)
MODEL = "model"  # folder within a training run
IN_USE = "in_use.json"
MOST = {WEIGHTS: 4 << 30, CONFIG: 1 << 20, CARD: 4 << 20, RESULT: 8 << 20, PICTURES: 64 << 20}  # bytes
_KEPT = 20  # models that were in use and are remembered


@dataclass
class Entry:
    """An installed model, or the shipped one.

    hash: of weights, architecture and input size, "" where they cannot be read. dice: mean of its result, None where it has none.
    problem: why it cannot be used, "" otherwise. source: where it was installed from; installed: seconds since 1970.
    """

    id: str
    name: str
    folder: str
    hash: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    modality: str | None = None
    body_site: str | None = None
    size: int = 0
    bytes: int = 0
    installed: float = 0.0
    source: str = ""
    in_use: bool = False
    previous: bool = False
    shipped: bool = False
    has_result: bool = False
    dice: float | None = None
    problem: str = ""

    def to_dict(self) -> dict:
        return asdict(self)


def root() -> Path:
    """The folder of the installed models; it is made with the first one."""
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(chosen)
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "CERS" / "models"


# which is in use


def used() -> list[str]:
    """Ids of the models that were in use and are still there, the one in use first.

    Raises:
        ModelError: the list is damaged, or the one in use is gone.
    """
    path = root() / IN_USE
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))["models"]
        if not isinstance(ids, list) or not ids or not all(isinstance(i, str) and _is_id(i) for i in ids):
            raise ValueError
    except FileNotFoundError:
        return [SHIPPED]
    except OSError as error:
        raise ModelError(
            f"Which model is in use cannot be read from '{path}' ({error.strerror}). Check the permissions of the folder."
        ) from error
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"The list of models in use, '{path}', is damaged. Choose the model to use once more.") from None
    if not _there(ids[0]):
        raise ModelError(f"The model in use, '{ids[0]}', is no longer in '{root()}'. Choose another model to use.")
    return [i for i in ids if _there(i)]


def default_folder() -> Path:
    """The folder of the model in use, the shipped one unless another was chosen. Raises ModelError as ``used`` does."""
    return folder_of(used()[0])


def current() -> tuple[str, str, str]:
    """(id, folder, name) of the model in use, for a panel; quick. The folder of the shipped one is "". Raises ModelError."""
    identifier = used()[0]
    folder = folder_of(identifier)
    return identifier, "" if identifier == SHIPPED else str(folder), name_of(folder)


def folder_of(identifier: str) -> Path:
    """Raises ModelError: there is no such model."""
    if identifier == SHIPPED:
        return resource("model")
    if not _is_id(identifier) or not _there(identifier):
        raise ModelError(f"No model '{identifier}' is installed. Choose one of the list.")
    return root() / identifier


def use(identifier: str) -> Entry:
    """Make a model the one in use.

    Raises:
        ModelError: it is not there or cannot be used. InputError: the store cannot be written.
    """
    entry = find(identifier)
    if entry.problem:
        raise ModelError(f"The model '{entry.name}' cannot be used: {entry.problem}")
    try:
        before = used()
    except ModelError:  # that is what is mended here
        before = _ids_left()
    _write_used([entry.id, *(i for i in before if i != entry.id)])
    return find(entry.id)


def back() -> Entry:
    """Use the model again that was in use before; a second call returns to the later one.

    Raises:
        ModelError: there is none. InputError: the store cannot be written.
    """
    ids = used()
    if len(ids) < 2:
        raise ModelError("No other model was in use before this one.")
    return use(ids[1])


def _write_used(ids: list[str]) -> None:
    with writing(), atomic(root() / IN_USE) as temporary:
        temporary.write_text(json.dumps({"format": 1, "models": ids[:_KEPT]}, indent=1) + "\n", encoding="utf-8")


def _ids_left() -> list[str]:
    try:
        ids = json.loads((root() / IN_USE).read_text(encoding="utf-8"))["models"]
        return [i for i in ids if isinstance(i, str) and _is_id(i) and _there(i)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


# what there is


def models() -> list[Entry]:
    """The shipped model, then the installed ones, the youngest first; broken ones with their reason.

    Raises:
        InputError: the store is there and cannot be read.
    """
    try:
        ids = used()
    except ModelError:
        ids = [""]  # none is marked; who asks for the default is told why
    try:
        names = [e.name for e in os.scandir(root()) if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise InputError(f"The folder of models '{root()}' cannot be read ({error.strerror}). Check its permissions.") from error
    installed = [read_entry(name, root() / name) for name in names]
    found = [_shipped(), *sorted(installed, key=lambda e: (-e.installed, e.name))]
    for entry in found:
        entry.in_use, entry.previous = entry.id == ids[0], len(ids) > 1 and entry.id == ids[1]
    return found


def find(name: str) -> Entry:
    """The model of that id, name or hash (a part of it that only one has will do).

    Raises:
        ModelError: none or several are so called.
    """
    entries = models()
    for wanted in (
        lambda e: e.id == name,
        lambda e: e.hash == name,
        lambda e: e.name == name,
        lambda e: len(name) > 2 and (e.id.startswith(name) or e.hash.startswith(name) or name.lower() in e.name.lower()),
    ):
        found = [e for e in entries if wanted(e)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ModelError(f"Several models are called '{name}': {', '.join(e.id for e in found)}. Give one of these.")
    raise ModelError(f"No model '{name}' is installed. There is {', '.join(e.id for e in entries)}.")


def _shipped() -> Entry:
    try:
        folder = resource("model")
    except CersError as error:
        return Entry(SHIPPED, "CERS", "", shipped=True, problem=str(error))
    entry = read_entry(SHIPPED, folder)
    entry.shipped, entry.source, entry.installed = True, "comes with CERS", 0.0
    return entry


def read_entry(identifier: str, folder: Path) -> Entry:
    record = read_json(folder / RECORD) or {}
    entry = Entry(
        identifier,
        name_of(folder),
        str(folder),
        source=str(record.get("source") or ""),
        installed=float(record["installed"]) if isinstance(record.get("installed"), (int, float)) else 0.0,
    )
    try:
        entry.bytes = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
        check_files(folder)
        from .model import ModelConfig

        config = ModelConfig.read(folder / CONFIG)
        entry.name, entry.labels, entry.size = config.name, config.labels, config.size
        entry.modality, entry.body_site = config.modality, config.body_site
        check_weights(folder / WEIGHTS)
        entry.hash = _hash(folder)
        if record.get("hash") not in (None, entry.hash):
            entry.problem = "Its files have changed since it was installed. Delete it, and install it again."
    except (InputError, ModelError) as error:
        entry.problem = str(error)
    except OSError as error:
        entry.problem = f"Its files cannot be read ({error.strerror})."
    result = read_json(folder / RESULT)
    mean = (result or {}).get("mean")
    dice = mean.get("dice") if isinstance(mean, dict) else None
    entry.has_result = isinstance(dice, dict)
    value = dice.get("value") if isinstance(dice, dict) else None
    entry.dice = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    return entry


def name_of(folder: Path) -> str:
    config = read_json(folder / CONFIG) or {}
    return str(config.get("name") or folder.name)


# how it is done


def check_files(folder: Path) -> None:
    """Raises InputError: one of a model's files is a link or not a file."""
    if folder.is_symlink() and folder.name == MODEL:
        raise InputError(f"'{folder}' is a link. Give the folder that it points to.")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"There is no {name} in '{folder}'. Get the model again.")
    for name in (*MOST, RECORD):
        if (folder / name).is_symlink() or ((folder / name).exists() and not (folder / name).is_file()):
            raise InputError(f"'{folder / name}' is a link or not a plain file. Give a folder with the files themselves.")


def check_weights(path: Path) -> None:
    """Raises ModelError: the weights file is not whole. Its layout: length of a JSON table, the table with each tensor's place, data."""
    words = f"Its weights, {path.name}, are damaged or not whole. Get the model again."
    with open(path, "rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
        if not 2 <= length <= min(size - 8, 100 << 20):
            raise ModelError(words)
        try:
            table = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"]
            whole = ends and max(ends) == size - 8 - length
        except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
            whole = False
    if not whole:
        raise ModelError(words)


def _hash(folder: Path) -> str:
    facts = (folder / WEIGHTS).stat()
    return _hash_of(str(folder), (folder / CONFIG).read_text(encoding="utf-8"), facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _hash_of(folder: str, _config: str, _size: int, _changed: int) -> str:
    from .model import ModelConfig, model_hash

    return model_hash((Path(folder) / WEIGHTS).read_bytes(), ModelConfig.read(Path(folder) / CONFIG))


def _is_id(identifier: str) -> bool:
    return bool(identifier) and not identifier.startswith(".") and not set(identifier) & set("/\\:\0")


def _there(identifier: str) -> bool:
    return identifier == SHIPPED or (root() / identifier).is_dir()


def read_json(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    from ..case.io import atomic_path

    with atomic_path(path) as temporary:
        yield temporary


@contextmanager
def writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"The folder of models '{root()}' cannot be written ({error.strerror}). Make room, check its permissions, or name "
            f"another folder with {ENVIRONMENT}."
        ) from error
