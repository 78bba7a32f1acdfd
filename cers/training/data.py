"""Training pictures as one memory-mapped cache of network frames, each with its group, so that splits never leak."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..case import PlaneView
from ..case.io import pseudonym, read_mask, read_volume
from ..errors import InputError
from ..files import replace_file
from ..network.frame import Frame, body_box, foreground, scale_intensities
from ..pool.records import modality_code
from ..pool.table import composed, image_name, read_rows
from ..pool.thumbnail import SIZE, thumbnail

CACHE_VERSION = "3"
ABANDONED_SECONDS = 3600  # after which a file that nobody has written to is that of a process that was killed
SPLITS = ("train", "validation", "test")


@dataclass
class Slices:
    """Pictures of one split in the network's frame.

    images, masks: (n, size, size) uint8, intensities 0..255 and 0/1, memory-mapped. table: one dict per picture with at least
    ``image`` (name), ``group`` and ``file``. key: changes with the pictures; names what is derived from them. thumbnails: (n, 1024)
    float32, of the whole pictures.
    """

    images: np.ndarray
    masks: np.ndarray
    thumbnails: np.ndarray
    table: list[dict]
    key: str = ""

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> np.ndarray:
        return np.array([row[name] for row in self.table])


def brisc(folder: Path, split: str, cache: Path, size: int = 256) -> Slices:
    """A split ("train" or "test") of a folder in BRISC layout: images/SPLIT/*.jpg, masks/SPLIT/*.png, cases.csv.

    Raises:
        InputError: no table or no such split; or a listed picture or mask is absent, cannot be used, or differs in size from its partner.
    """
    folder, cache = Path(folder), Path(cache)
    table = [row for row in _table(folder / "cases.csv") if row["split"] == split]
    if not table:
        raise InputError(f"{folder / 'cases.csv'} lists no picture of the split '{split}'.")
    files = list(zip(_listed(folder / "images" / split, table, ".jpg"), _listed(folder / "masks" / split, table, ".png")))
    for row, (picture, _) in zip(table, files):
        row["file"] = str(picture)
    # sizes and dates of the files, so that a cache never stands for other pictures of the same names
    marks = [[path.name, *_mark(path)] for pair in files for path in pair]
    kinds = [modality_code(row.get("modality")) for row in table]  # decides how grey values are read
    key = hashlib.sha256(json.dumps([CACHE_VERSION, split, size, marks, *([kinds] if any(kinds) else [])]).encode()).hexdigest()[:16]
    paths = [cache / f"{key}_{kind}.npy" for kind in ("images", "masks", "thumbnails")]
    if not all(map(whole, paths)):
        arrays = [np.zeros((len(table), size, size), np.uint8) for _ in range(2)] + [np.zeros((len(table), SIZE * SIZE), np.float32)]
        for n, (picture, outline) in enumerate(files):
            volume = read_volume(picture)
            image, mask = volume.array[0], read_mask(outline, volume.geometry)[0][0] > 0
            frame = Frame.around(body_box(image[None], kinds[n]), image.shape, (1.0, 1.0), size)
            arrays[0][n] = (frame.crop(scale_intensities(image[None], kinds[n]))[0, 0].numpy() * 255).round().astype(np.uint8)
            arrays[1][n] = frame.crop(mask[None].astype(np.float32))[0, 0].numpy() > 0.5
            arrays[2][n] = thumbnail(image)
        for path, array in zip(paths, arrays):
            keep(path, array)
    return Slices(*(np.load(p, mmap_mode="r") for p in paths), table, key)


def _listed(folder: Path, table: list[dict], ending: str) -> list[Path]:
    """The files of the pictures of a table, in its order."""
    there = {composed(path.name): path for path in folder.iterdir()} if folder.is_dir() else {}
    return [there.get(f"{row['image']}{ending}", folder / f"{row['image']}{ending}") for row in table]


def lesion_free(volumes: list[str], cache: Path, size: int = 256) -> np.ndarray:
    """Slices without a lesion, along all three planes, of MR volumes: (n, size, size) uint8, memory-mapped.

    volumes: files of volumes known to show no lesion, or "IMAGE=MASK": then the slices that the mask does not meet.

    Raises:
        InputError: a file cannot be read, or no slice is without a lesion.
    """
    check_free(volumes)
    key = hashlib.sha256(
        json.dumps([CACHE_VERSION, size, [[p, *_mark(Path(p))] for v in volumes for p in v.split("=")]]).encode()
    ).hexdigest()[:16]
    stored = Path(cache) / f"{key}_lesion_free.npy"
    if not whole(stored):
        out = []
        for image, _, outline in (v.partition("=") for v in volumes):
            volume = read_volume(image)
            mask = read_mask(outline, volume.geometry)[0] if outline else np.zeros(volume.array.shape, np.uint8)
            for plane in ("axial", "coronal", "sagittal"):
                view = PlaneView(volume.geometry, plane)
                raw = view.slices(volume.array)
                shown = (foreground(raw).mean((1, 2)) > 0.02) & ~view.slices(mask).any((1, 2))
                frame = Frame.around(body_box(raw), raw.shape[1:], view.spacing, size)
                out.append((frame.crop(scale_intensities(raw)[shown])[:, 0].numpy() * 255).round().astype(np.uint8))
        if not any(map(len, out)):
            raise InputError("The volumes of lesion_free have no slice without a lesion. Give others, or leave the setting out.")
        keep(stored, np.concatenate(out))
    return np.load(stored, mmap_mode="r")


def free_mark(volumes: list[str]) -> str:
    """Changes with what the files of the setting lesion_free hold; "" for none. InputError where one is not there."""
    check_free(volumes)
    parts = [[_content(Path(p)) for p in volume.split("=")] for volume in volumes]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16] if parts else ""


def _content(path: Path) -> list[str]:
    """Hashes of a file, or of all files of a DICOM folder, by their names."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def check_free(volumes: list[str]) -> None:
    """InputError where a file of the setting lesion_free is not there."""
    for path in (p for volume in volumes for p in volume.split("=")):
        if not Path(path).exists():
            raise InputError(f"'{path}' of the setting lesion_free does not exist. Check its path.")


def _table(path: Path, splits: tuple[str, ...] = SPLITS, blank: str | None = None) -> list[dict]:
    """The rows of a table, each with a split that is known. blank: what an empty cell of the split means, None if it must not be.

    Images are named without the ending of their file, columns in lower case; an empty cell is "", a patient a pseudonym.

    Raises:
        InputError: not readable, a column is missing, a line is wrong, an image is listed twice, or a split is another one: its pictures
            would be in no part at all.
    """
    if not path.is_file():
        raise InputError(f"{path} cannot be read. Give a folder with images/, masks/ and cases.csv.")
    header, rows = read_rows(path)
    if missing := {"split", "group"} - set(header):
        raise InputError(f"{path} lacks the column {', '.join(sorted(missing))}.")
    out, seen = [], set()
    for row in rows:
        if row.problem:
            raise InputError(f"Line {row.line} of the table: {row.problem}")
        said = row.values.get("split", "")
        values = {**dict.fromkeys(header, ""), **row.values, "image": image_name(row.image), "split": said.lower() or blank}
        if values["split"] not in splits:
            raise InputError(f"In {path}, {row.image} is of the split '{said}'. Write one of {', '.join(splits)}.")
        if values.get("patient"):
            values["patient"] = pseudonym(values["patient"])
        # pictures lie in a folder for each split, so that two splits may use one name
        place = (values["split"] if blank is None else None, values["image"])
        if place in seen:
            raise InputError(f"Line {row.line} of the table: {row.image} is listed twice.")
        seen.add(place)
        out.append(values)
    return out


@contextmanager
def room(cache: Path) -> Iterator[None]:
    """One sentence where prepared pictures cannot be kept."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"The prepared pictures could not be written to '{cache}' ({error.strerror or error}). Make room, or choose another cache."
        ) from error


def keep(path: Path, array: np.ndarray) -> None:
    """An array of the cache, whole or not at all.

    Raises:
        InputError: no room, or no right to write there.
    """
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
    with room(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob("*.tmp.npy"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    left.unlink()
        try:
            np.save(temporary, array)
            replace_file(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def whole(path: Path) -> bool:
    """Whether an array of the cache is there and can be read; one that a power cut or a full disk cut short is made again."""
    try:
        return np.load(path, mmap_mode="r") is not None
    except (OSError, ValueError, EOFError):
        return False


def _mark(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path.name} is listed in cases.csv but is not in {path.parent}.") from error
    return stat.st_size, stat.st_mtime_ns
