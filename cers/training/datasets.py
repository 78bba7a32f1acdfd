"""What a run trains on: a folder in BRISC layout, a folder of volumes, or a pool, and folders of unlabelled images; all become frames."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..case import PlaneView, acquisition_plane
from ..case.io import PICTURES, read_mask, read_volume
from ..errors import InputError
from ..network.frame import Frame, body_box, foreground, scale_intensities
from ..pool import Pool
from ..pool.database import FILE as DATABASE
from ..pool.thumbnail import thumbnail
from .data import CACHE_VERSION, _mark, _table, brisc

IMAGES = (*PICTURES, ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
OTHER = "unlabelled"


def only(values) -> str | None:
    """The one value that is given; None where there is none, or where they differ: a model of several kinds of image is made for none."""
    found = {value for value in values if value}
    return found.pop() if len(found) == 1 else None


class Stack:
    """Several memory-mapped arrays (n, h, w) read as one; indexed by an array of rows, or by one row."""

    def __init__(self, parts: list[np.ndarray]):
        self.parts, self.starts = parts, np.cumsum([0, *(len(p) for p in parts)])
        self.shape = (int(self.starts[-1]), *parts[0].shape[1:])

    def __reduce__(self):
        """For another process: by the names of the files."""
        return _stack, ([str(p.filename) if isinstance(p, np.memmap) else p for p in self.parts],)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        single, rows = np.ndim(rows) == 0, np.atleast_1d(rows)
        part = np.searchsorted(self.starts, rows, "right") - 1
        out = np.empty((len(rows), *self.shape[1:]), self.parts[0].dtype)
        for n, (p, row) in enumerate(zip(part, rows)):
            out[n] = self.parts[p][row - self.starts[p]]
        return out[0] if single else out


def _stack(parts: list[str | np.ndarray]) -> Stack:
    return Stack([np.load(p, mmap_mode="r") if isinstance(p, str) else p for p in parts])


@dataclass
class Dataset:
    """Pictures in the network's frame.

    images, masks: (n, side, side) uint8; masks hold 0 or 1 + the position in ``labels``. table: one dict per picture with ``image``
    (name), ``item`` (picture or volume it is of), ``group``, ``split`` (train, validation, test or unlabelled), ``file`` and what else the
    source tells. key: changes with the pictures. kind: pictures, volumes or pool.
    """

    images: Stack
    masks: Stack
    table: list[dict]
    labels: list[str]
    key: str
    kind: str
    modality: str | None = None
    set_aside: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> np.ndarray:
        return np.array([row.get(name) or "" for row in self.table])

    def onehot(self, rows) -> np.ndarray:
        """Masks (n, labels, side, side) float32 of rows."""
        masks = self.masks[rows]
        return (masks[:, None] == np.arange(1, len(self.labels) + 1, dtype=np.uint8)[:, None, None]).astype(np.float32)


def open_dataset(source: str | Path, unlabelled: list[str], frame: int, plane: str, cache: Path) -> Dataset:
    """Read a source and further unlabelled folders, through a cache of frames.

    Raises:
        InputError: the source is none of the known layouts, or one of its files cannot be used.
    """
    source, cache = Path(source), Path(cache)
    if not source.is_dir():
        raise InputError(
            f"There is no data folder '{source}'. Give a folder with images, masks and cases.csv, a folder of volumes, or a pool."
        )
    if (source / DATABASE).exists():
        data = _pool(source, frame, cache)
    elif (source / "images" / "train").is_dir():
        data = _brisc(source, frame, cache)
    elif (source / "images").is_dir():
        data = _volumes(source, frame, plane, cache)
    else:
        raise InputError(
            f"'{source}' has neither images/, nor images/train/ with cases.csv, nor a pool's {DATABASE}. Give another data folder."
        )
    for folder in unlabelled:
        data = _join(data, _unlabelled(Path(folder), frame, plane, cache))
    return data


def _brisc(source: Path, frame: int, cache: Path) -> Dataset:
    table = _table(source / "cases.csv")
    splits = [s for s in ("train", "validation", "test") if any(row["split"] == s for row in table)]
    if "train" not in splits:
        raise InputError(f"{source / 'cases.csv'} lists no picture of the split 'train'.")
    parts = [brisc(source, split, cache, frame) for split in splits]
    rows, aside = [], []
    for split, part in zip(splits, parts):
        for row in part.table:
            twin = split == "test" and row.get("twin_in_train") == "1"
            if twin:
                aside.append(row["image"])
            rows.append(
                {
                    **row,
                    "item": row["image"],
                    "split": "twin" if twin else split,
                    "file": str(source / "images" / split / f"{row['image']}.jpg"),
                }
            )
    key = hashlib.sha256("".join(p.key for p in parts).encode()).hexdigest()[:16]
    return Dataset(Stack([p.images for p in parts]), Stack([p.masks for p in parts]), rows, ["tumor"], key, "pictures", "MR", aside)


def _volumes(source: Path, frame: int, plane: str, cache: Path) -> Dataset:
    outlines = next((source / name for name in ("labels", "masks") if (source / name).is_dir()), None)
    if outlines is None:
        raise InputError(f"'{source}' has images/ but neither labels/ nor masks/. Put a label map of the same name beside each image.")
    files = _images(source / "images")
    notes = {row["image"]: row for row in _table(source / "cases.csv")} if (source / "cases.csv").exists() else {}
    if notes and (lost := sorted(set(notes) - {_stem(f) for f in files})):
        raise InputError(f"{lost[0]} is listed in cases.csv but is not in {source / 'images'}.")
    pairs = []
    for file in files:
        mask = next((outlines / f"{_stem(file)}{end}" for end in IMAGES if (outlines / f"{_stem(file)}{end}").exists()), None)
        if mask is None:
            raise InputError(f"{file.name} has no label map in '{outlines}'. Add one, or move the image to a folder of unlabelled ones.")
        pairs.append((file, mask))

    def slices():
        for file, mask in pairs:
            yield from _slices(file, mask, frame, plane)

    data = _stored(["volumes", frame, plane, [_name_mark(f) for pair in pairs for f in pair]], slices, cache, "volumes")
    for row in data.table:
        row.update({"split": "train", "group": row["item"], **notes.get(row["item"], {})})
    return data


def _pool(source: Path, frame: int, cache: Path) -> Dataset:
    with Pool.open(source, read_only=True) as pool:
        ids = [row for row in pool.ids() if (pool.meta(row).get("review") or "") != "excluded"]
        if not ids:
            raise InputError(f"The pool '{source}' holds no case to train with. Add annotated cases first.")

        def slices():
            for case_id in ids:
                case = pool.get(case_id)
                spacing = case.spacing or (1.0, 1.0)
                box = Frame.around(body_box(case.image[None], case.modality), case.image.shape, spacing, frame)
                masks = {
                    name: box.crop((case.mask == value)[None].astype(np.float32))[0, 0].numpy() > 0.5 for value, name in case.labels.items()
                }
                group = case.patient_id or case.volume_id or case.group or case_id
                yield (
                    _bytes(box, scale_intensities(case.image[None], case.modality))[0],
                    masks,
                    {
                        "image": case_id,
                        "item": case.volume_id or case_id,
                        "group": str(group),
                        "plane": case.plane,
                        "split": "train",
                        "modality": case.modality,
                        "body_site": case.body_site,
                        "digest": case_id,
                        "thumbnail": thumbnail(case.image).tolist(),
                    },
                )

        data = _stored(["pool", frame, pool.hash()], slices, cache, "pool")
    return data


def _unlabelled(folder: Path, frame: int, plane: str, cache: Path) -> Dataset:
    files = _images(folder)

    def slices():
        for file in files:
            yield from _slices(file, None, frame, plane)

    data = _stored(["unlabelled", frame, plane, [_name_mark(f) for f in files]], slices, cache, "pictures")
    for row in data.table:
        row.update({"split": OTHER, "group": f"{OTHER}:{row['item']}"})
    return data


def _slices(file: Path, outline: Path | None, frame: int, plane: str) -> Iterator[tuple[np.ndarray, dict, dict]]:
    """Frames, masks by name and table rows of the slices of an image that show body."""
    volume = read_volume(file)
    mask, names = read_mask(outline, volume.geometry) if outline else (np.zeros(volume.array.shape, np.uint8), {})
    view = PlaneView(volume.geometry, acquisition_plane(volume.geometry) if plane == "acquisition" else plane)
    raw, drawn = view.slices(volume.array), view.slices(mask)
    box = Frame.around(body_box(raw, volume.modality), raw.shape[1:], view.spacing, frame)
    scaled = scale_intensities(raw, volume.modality)
    shown = np.flatnonzero((foreground(raw, volume.modality).mean((1, 2)) > 0.02) | drawn.any((1, 2)))
    small = thumbnail(raw[len(raw) // 2]).tolist()
    for k in shown:
        masks = {
            names.get(int(v), f"label {v}"): box.crop((drawn[k] == v)[None].astype(np.float32))[0, 0].numpy() > 0.5
            for v in np.unique(mask)
            if v
        }
        yield (
            _bytes(box, scaled[k : k + 1])[0],
            masks,
            {
                "image": f"{_stem(file)}:{k}",
                "item": _stem(file),
                "plane": view.plane,
                "file": str(file),
                "modality": volume.modality,
                "body_site": volume.body_site,
                "thumbnail": small,
            },
        )


def _bytes(box: Frame, scaled: np.ndarray) -> np.ndarray:
    return (box.crop(scaled)[:, 0].numpy() * 255).round().astype(np.uint8)


def _stored(what: list, slices, cache: Path, kind: str) -> Dataset:
    """The slices from the cache, made and stored if they are not there."""
    key = hashlib.sha256(json.dumps([CACHE_VERSION, 3, what], default=str).encode()).hexdigest()[:16]
    paths = [cache / f"{key}_{name}.npy" for name in ("images", "masks")]
    record = cache / f"{key}.json"
    if not all(p.exists() for p in (*paths, record)):
        cache.mkdir(parents=True, exist_ok=True)
        images, masks, rows, names = [], [], [], []
        for image, drawn, row in slices():
            out = np.zeros(image.shape, np.uint8)
            for name, area in drawn.items():
                if name not in names:
                    names.append(name)
                out[area] = names.index(name) + 1
            images.append(image)
            masks.append(out)
            rows.append(row)
        if not rows:
            raise InputError("None of the images shows anything to train with.")
        for path, arrays in zip(paths, (images, masks)):
            temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
            np.save(temporary, np.stack(arrays))
            os.replace(temporary, path)
        temporary = record.with_name(f"{record.stem}.{os.getpid()}.tmp.json")
        temporary.write_text(json.dumps({"rows": rows, "names": names}), encoding="utf-8")
        os.replace(temporary, record)
    stored = json.loads(record.read_text(encoding="utf-8"))
    modality = only(row.get("modality") for row in stored["rows"])
    return Dataset(*(Stack([np.load(p, mmap_mode="r")]) for p in paths), stored["rows"], stored["names"], key, kind, modality)


def _join(a: Dataset, b: Dataset) -> Dataset:
    key = hashlib.sha256((a.key + b.key).encode()).hexdigest()[:16]
    return Dataset(
        Stack([*a.images.parts, *b.images.parts]),
        Stack([*a.masks.parts, *b.masks.parts]),
        a.table + b.table,
        a.labels,
        key,
        a.kind,
        a.modality,
        a.set_aside,
    )


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"There is no folder '{folder}'.")
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".") and f.name.lower().endswith(IMAGES))
    if not files:
        raise InputError(f"'{folder}' holds no image (NIfTI, NRRD, MetaImage, PNG or JPG).")
    return files


def _stem(file: Path) -> str:
    return next((file.name[: -len(end)] for end in IMAGES if file.name.lower().endswith(end)), file.stem)


def _name_mark(file: Path) -> list:
    return [file.name, *_mark(file)]
