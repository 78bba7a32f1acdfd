"""What a run trains on: a folder in BRISC layout, a folder of volumes, or a pool, and folders of unlabelled images; all become frames."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..case import PlaneView, Volume, acquisition_plane
from ..case.io import PICTURES, Unnamed, atomic_path, read_mask, read_volume
from ..case.terminology import same_meaning
from ..errors import InputError
from ..network.frame import Frame, body_box, foreground, scale_intensities
from ..pool import Pool
from ..pool.database import FILE as DATABASE
from ..pool.records import modality_code
from ..pool.table import composed
from ..pool.thumbnail import thumbnail
from .data import CACHE_VERSION, SPLITS, _mark, _table, brisc, keep, room, whole

IMAGES = (*PICTURES, ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
OTHER = "unlabelled"
MOST_LABELS = 255  # of masks that are kept as uint8, with 0 for none


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

    images, masks: (n, side, side) uint8; masks hold 0 or 1 + the position in ``labels`` as they were read. table: one dict per picture with
    ``image`` (name), ``item`` (picture or volume it is of), ``group``, ``kin`` (all that it may share with others: group, patient, volume),
    ``split`` (train, validation, test or unlabelled), ``file`` and what else the source tells; ``lost`` counts the labels of a slice that
    are too small for the frame, not told of pictures or by an older cache. key: changes with whatever is known of the
    pictures and with the dates of their files; mark: what ``fingerprint`` shall be. kind: pictures, volumes or pool.
    """

    images: Stack
    masks: Stack
    table: list[dict]
    labels: list[str]
    key: str
    kind: str
    modality: str | None = None
    set_aside: list[str] = field(default_factory=list)
    mark: str = ""

    def __post_init__(self):
        self._values = list(range(1, len(self.labels) + 1))  # in the masks, by channel

    def follow(self, labels: list[str]) -> None:
        """Put the labels into the order in which others name the same ones: that of the channels of weights to begin with."""
        order = [next((n for n, own in enumerate(self.labels) if own == name or same_meaning(own, name)), -1) for name in labels]
        if sorted(order) == list(range(len(self.labels))):
            self.labels, self._values = [self.labels[n] for n in order], [self._values[n] for n in order]

    def fingerprint(self) -> str:
        """Changes with the pictures, their names and their masks; not with where their files lie, nor with the dates of these."""
        if not self.mark:
            whole = hashlib.sha256(json.dumps([[r["image"] for r in self.table], sorted(zip(self._values, self.labels))]).encode())
            for part in (*self.images.parts, *self.masks.parts):
                whole.update(np.ascontiguousarray(part))
            self.mark = whole.hexdigest()[:16]
        return self.mark

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> np.ndarray:
        return np.array([row.get(name) or "" for row in self.table])

    def places(self) -> np.ndarray:
        """(n,) of each picture a name of its item that no other has, also where two splits or folders use one name; sorted as items are."""
        files: dict = {}
        return np.array([f"{row['item']}\n{files.setdefault(row.get('file'), len(files))}" for row in self.table])

    def onehot(self, rows) -> np.ndarray:
        """Masks (n, labels, side, side) float32 of rows."""
        masks = self.masks[rows]
        return (masks[:, None] == np.array(self._values, np.uint8)[:, None, None]).astype(np.float32)


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
    for number, folder in enumerate(unlabelled):
        data = _join(data, _unlabelled(Path(folder), number, frame, plane, cache, data.modality))
    return data


def _brisc(source: Path, frame: int, cache: Path) -> Dataset:
    table = _table(source / "cases.csv")
    splits = [s for s in SPLITS if any(row["split"] == s for row in table)]
    if "train" not in splits:
        raise InputError(f"{source / 'cases.csv'} lists no picture of the split 'train'.")
    parts = [brisc(source, split, cache, frame) for split in splits]
    rows, aside = [], []
    for split, part in zip(splits, parts):
        for row, small in zip(part.table, part.thumbnails):
            twin = split == "test" and row.get("twin_in_train") == "1"
            if twin:
                aside.append(row["image"])
            rows.append(
                {
                    **row,
                    "item": row["image"],
                    "group": row["group"] or row["image"],
                    "kin": [f"group {row['group'] or row['image']}", *_patient(row)],
                    "split": "twin" if twin else split,
                    "thumbnail": small,
                }
            )
    key = hashlib.sha256("".join(p.key for p in parts).encode()).hexdigest()[:16]
    told = [modality_code(row.get("modality")) for row in rows]
    modality = only(told) if any(told) else "MR"
    return Dataset(Stack([p.images for p in parts]), Stack([p.masks for p in parts]), rows, ["tumor"], key, "pictures", modality, aside)


def _volumes(source: Path, frame: int, plane: str, cache: Path) -> Dataset:
    outlines = next((source / name for name in ("labels", "masks") if (source / name).is_dir()), None)
    if outlines is None:
        raise InputError(f"'{source}' has images/ but neither labels/ nor masks/. Put a label map of the same name beside each image.")
    files = _images(source / "images")
    table = source / "cases.csv"
    notes = {row["image"]: row for row in _table(table, (*SPLITS, OTHER), "train")} if table.exists() else {}
    if notes and (lost := sorted(set(notes) - {_stem(f) for f in files})):
        near = next((f", where one is called {_stem(f)}" for f in files if _stem(f).casefold() == lost[0].casefold()), "")
        raise InputError(f"{lost[0]} is listed in cases.csv but is not in {source / 'images'}{near}.")
    drawn = {_stem(f): f for f in sorted(outlines.iterdir()) if f.is_file() and f.name.lower().endswith(IMAGES)}
    pairs = []
    for file in files:
        mask = drawn.get(_stem(file))
        if mask is None:
            raise InputError(f"{file.name} has no label map in '{outlines}'. Add one, or move the image to a folder of unlabelled ones.")
        pairs.append((file, mask))

    # what the table says of an image decides how its grey values are read
    said = {name: {k: row[k] for k in ("modality", "body_site") if row.get(k)} for name, row in notes.items()}

    def slices():
        for file, mask in pairs:
            yield from _slices(file, mask, frame, plane, **said.get(_stem(file), {}))

    data = _stored(["volumes", frame, plane, [_name_mark(f) for pair in pairs for f in pair], said], slices, cache, "volumes")
    _locate(data, files)
    if len({row["item"] for row in data.table}) == len(data):
        data.kind = "pictures"  # one slice each: copies of one picture are looked for
    for row in data.table:
        own = {k: v for k, v in notes.get(row["item"], {}).items() if v and k not in ("image", "modality", "body_site")}
        row.update({"split": "train", **own})
        row["group"] = row.get("group") or row["item"]
        row["kin"] = [f"group {row['group']}", *_patient(row), *row["kin"]]
    return data


def _patient(row: dict) -> list[str]:
    """What images of a patient that the table names have in common, as pool cases carry it."""
    return [f"patient {row['patient']}"] if row.get("patient") else []


def _pool(source: Path, frame: int, cache: Path) -> Dataset:
    with Pool.open(source, read_only=True) as pool:
        with pool.at_once():  # of the pictures themselves nothing can change
            known = {meta["id"]: meta for meta in pool.list() if meta["review"] != "excluded"}
            marks = [pool.hash(), pool.facets()]  # a patient that was mended counts, too
        ids = list(known)
        if not ids:
            raise InputError(f"The pool '{source}' holds no case to train with. Add annotated cases first.")

        def slices():
            for case_id in ids:
                case, meta = pool.get(case_id), known[case_id]
                spacing = case.spacing or (1.0, 1.0)
                box = Frame.around(body_box(case.image[None], meta["modality"]), case.image.shape, spacing, frame)
                areas = {name: case.mask == int(value) for value, name in meta["labels"].items()}
                masks = {name: box.crop(area[None].astype(np.float32))[0, 0].numpy() > 0.5 for name, area in areas.items()}
                told = [(what, meta[field]) for what, field in (("patient", "patient_id"), ("volume", "volume_id"), ("group", "group"))]
                kin = [f"{what} {name}" for what, name in told if name] or [f"case {case_id}"]
                yield (
                    _bytes(box, scale_intensities(case.image[None], meta["modality"]))[0],
                    masks,
                    {
                        "image": case_id,
                        "item": meta["volume_id"] or case_id,
                        "group": str(meta["group"] or meta["patient_id"] or meta["volume_id"] or case_id),
                        "kin": kin,
                        "plane": meta["plane"],
                        "split": "train",
                        "modality": meta["modality"],
                        "body_site": meta["body_site"],
                        "digest": case_id,
                        "lost": _lost(areas, masks),
                        "thumbnail": thumbnail(case.image),
                    },
                )

        data = _stored(["pool", frame, *marks], slices, cache, "pool")
    # of what they show, which label each area is included; what else is known of them may change
    places = (
        [{value: _position(name, data.labels) for value, name in known[row]["labels"].items()} for row in ids]
        if len(data.labels) > 1
        else ""
    )
    data.mark = hashlib.sha256(("".join(ids) + (places and json.dumps(places, sort_keys=True))).encode()).hexdigest()[:16]
    return data


def _unlabelled(folder: Path, number: int, frame: int, plane: str, cache: Path, modality: str | None) -> Dataset:
    """number: of the folder, as two may use one name for different images. modality: of the labelled pictures, for files that do not
    say theirs."""
    files = _images(folder)

    def slices():
        for file in files:
            yield from _slices(file, None, frame, plane, otherwise=modality)

    data = _stored(["unlabelled", frame, plane, [_name_mark(f) for f in files], modality], slices, cache, "pictures")
    _locate(data, files)
    for row in data.table:
        row.update({"split": OTHER, "group": f"{OTHER} {number}:{row['item']}"})
        row["kin"] = [f"group {row['group']}", *row["kin"]]
    return data


def _locate(data: Dataset, files: list[Path]) -> None:
    """Where the files lie now; the cache may be of the time when they lay elsewhere."""
    here = {_stem(file): str(file) for file in files}
    for row in data.table:
        row["file"] = here[row["item"]]


def _slices(
    file: Path,
    outline: Path | None,
    frame: int,
    plane: str,
    modality: str | None = None,
    body_site: str | None = None,
    otherwise: str | None = None,
) -> Iterator[tuple[np.ndarray, dict, dict]]:
    """Frames, masks and table rows of the slices of an image that show body; masks by name, or by value where the file has no names."""
    try:
        volume = read_volume(file, modality=modality, body_site=body_site)
    except InputError as error:
        if file.name in str(error):
            raise
        raise InputError(f"'{file}' cannot be used. {error}") from error
    volume.modality = volume.modality or otherwise
    mask, names = read_mask(outline, volume.geometry, apart=True) if outline else (np.zeros(volume.array.shape, np.uint8), {})
    view = PlaneView(volume.geometry, acquisition_plane(volume.geometry) if plane == "acquisition" else plane)
    raw, drawn = view.slices(volume.array), view.slices(mask)
    box = Frame.around(body_box(raw, volume.modality), raw.shape[1:], view.spacing, frame)
    scaled = scale_intensities(raw, volume.modality)
    shown = np.flatnonzero((foreground(raw, volume.modality).mean((1, 2)) > 0.02) | drawn.any((1, 2)))
    middle = thumbnail(raw[len(raw) // 2]).tolist()
    kin = kin_of(volume)
    called = (lambda v: v) if isinstance(names, Unnamed) else (lambda v: names.get(v, f"label {v}"))
    present = [int(v) for v in np.unique(mask) if v]
    for k in shown:
        areas = {called(v): drawn[k] == v for v in present}
        masks = {name: box.crop(area[None].astype(np.float32))[0, 0].numpy() > 0.5 for name, area in areas.items()}
        yield (
            _bytes(box, scaled[k : k + 1])[0],
            masks,
            {
                "image": f"{_stem(file)}:{k}",
                "item": _stem(file),
                "kin": kin,
                "plane": view.plane,
                "file": str(file),
                "modality": volume.modality,
                "body_site": volume.body_site,
                "middle": middle,
                "thumbnail": thumbnail(raw[k]),
                "lost": _lost(areas, masks),
            },
        )


def _lost(areas: dict, masks: dict) -> int:
    """How many labels of a slice are too small for the frame: less than half of each of its pixels is theirs."""
    return sum(bool(area.any() and not masks[name].any()) for name, area in areas.items())


def kin_of(volume: Volume) -> list[str]:
    """What a volume has in common with others, as pool cases of it carry it."""
    return [f"volume {volume.volume_id or volume.content_hash[:16]}", *([f"patient {volume.patient_id}"] if volume.patient_id else [])]


def _bytes(box: Frame, scaled: np.ndarray) -> np.ndarray:
    return (box.crop(scaled)[:, 0].numpy() * 255).round().astype(np.uint8)


def _stored(what: list, slices, cache: Path, kind: str) -> Dataset:
    """The slices from the cache, made and stored if they are not there, or without the thumbnail of each as by earlier versions."""
    key = hashlib.sha256(json.dumps([CACHE_VERSION, 4, what], default=str).encode()).hexdigest()[:16]
    paths = [cache / f"{key}_{name}.npy" for name in ("images", "masks", "thumbnails")]
    record = cache / f"{key}.json"
    if not (all(map(whole, paths)) and _readable(record)):
        images, masks, thumbnails, rows, names = [], [], [], [], []
        for image, drawn, row in slices():
            out = np.zeros(image.shape, np.uint8)
            for name, area in drawn.items():
                if (position := _position(name, names)) >= MOST_LABELS:
                    raise InputError(f"The masks have more than {MOST_LABELS} labels of different names. Give masks with fewer of them.")
                out[area] = position + 1
            images.append(image)
            masks.append(out)
            thumbnails.append(row.pop("thumbnail"))
            rows.append(row)
        if not rows:
            raise InputError("None of the images shows anything to train with.")
        order, names = _named(names)
        masks = [order[mask] for mask in masks]
        for path, arrays in zip(paths, (images, masks, thumbnails)):
            keep(path, np.stack(arrays))
        with room(cache), atomic_path(record) as temporary:
            temporary.write_text(json.dumps({"rows": rows, "names": names}), encoding="utf-8")
    stored = json.loads(record.read_text(encoding="utf-8"))
    modality = only(row.get("modality") for row in stored["rows"])
    images, masks, thumbnails = (np.load(p, mmap_mode="r") for p in paths)
    for row, small in zip(stored["rows"], thumbnails):
        row["thumbnail"] = small
    return Dataset(Stack([images]), Stack([masks]), stored["rows"], stored["names"], key, kind, modality)


def _readable(record: Path) -> bool:
    try:
        return {"rows", "names"} <= set(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False


def _position(name: str | int, names: list[str | int]) -> int:
    """Where a label is in the list, by what it means, as a segmentation matches them; it is added if it is new."""
    for n, known in enumerate(names):
        if name == known or (isinstance(name, str) and isinstance(known, str) and same_meaning(name, known)):
            return n
    names.append(name)
    return len(names) - 1


def _named(names: list[str | int]) -> tuple[np.ndarray, list[str]]:
    """Labels of all files together, those without a name in the order of their values and called so; and where each of ``names`` goes.

    Returns:
        table (256,) uint8 from 1 + position in ``names`` to 1 + position in the names returned; the names.
    """
    called = Unnamed(sorted(n for n in names if isinstance(n, int)), several=len(names) > 1)
    given = [n for n in names if isinstance(n, str)]
    out, table = list(given), np.zeros(256, np.uint8)
    for name in called.values():
        _position(name, out)
    for n, name in enumerate(names):
        table[n + 1] = _position(called.get(name, name), out) + 1
    return table, out


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
        hashlib.sha256((a.fingerprint() + b.fingerprint()).encode()).hexdigest()[:16],
    )


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"There is no folder '{folder}'.")
    if inner := sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")):
        raise InputError(
            f"'{folder}' holds the folder '{inner[0]}', but training reads files only. Convert DICOM to NIfTI, or import it into a pool."
        )
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".") and f.name.lower().endswith(IMAGES))
    seen: dict[str, Path] = {}
    for file in files:
        if (other := seen.setdefault(_stem(file), file)) is not file:
            raise InputError(f"'{folder}' holds two images of one name, {other.name} and {file.name}. Rename one, or take it away.")
    if not files:
        raise InputError(f"'{folder}' holds no image (NIfTI, NRRD, MetaImage, PNG or JPG).")
    return files


def _stem(file: Path) -> str:
    return composed(next((file.name[: -len(end)] for end in IMAGES if file.name.lower().endswith(end)), file.stem))


def _name_mark(file: Path) -> list:
    return [file.name, *_mark(file)]
