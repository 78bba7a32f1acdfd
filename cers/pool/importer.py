"""Cases from annotated images: a volume in memory, folders of images and masks with an optional table, or DICOM with DICOM SEG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from ..case import Case, PlaneView, Volume, acquisition_plane
from ..case.geometry import PLANES
from ..case.identity import identifying
from ..case.io import Unnamed, pseudonym, read_mask, read_volume, unnamed_values
from ..errors import CersError, InputError, PoolError
from ..files import existing_folder
from ..rationale import describe
from ..words import counted
from .dicom import read_dicom_seg
from .records import modality_code
from .store import Pool
from .table import SUFFIXES, Row, composed, read_table

# endings by which people tell mask from image when both carry the case's name
_MASK = ("_mask", "_masks", "_seg", "_segmentation", "_label", "_labels", "-mask", "-seg", "-label", "-labels")
_IMAGE = ("_image", "_img", "-image", "_0000")
_METADATA = ("patient_id", "group", "modality", "body_site", "diagnosis", "annotator", "source", "review")


@dataclass(frozen=True)
class ImportFault:
    """One item that could not be imported. line: of the table, None without one."""

    item: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.item}{f' (line {self.line})' if self.line else ''}: {self.message}"


class DryRun:
    """Stands in for a pool in an import that shall only say what it would do."""

    def __init__(self, pool: Pool):
        self.pool = pool

    def ids(self) -> list[str]:
        return self.pool.ids()

    def trashed(self) -> list[dict]:
        return self.pool.trashed()

    def find(self, sha256: str) -> list[str]:
        return self.pool.find(sha256)

    def add(self, case: Case) -> str:
        """The id of a case that is here already, else its content hash."""
        here = self.pool.find(content := case.content_hash)
        return here[0] if here else content


class Intake:
    """Stands in for a pool in an import: what was deleted there stays in the trash.

    ids: of the cases that are in the pool now; added: how many of them are new; present: how many of the cases given were here already, or
    came twice; trashed: ids of those in the trash; labels: names in all of them. ``next_image`` begins them anew.
    """

    def __init__(self, pool: Pool | DryRun):
        self.pool, self._here = pool, set(pool.ids())
        self._deleted = {entry["case"]["content_hash"]: entry["id"] for entry in pool.trashed()}
        self.next_image()

    def next_image(self) -> None:
        self.ids, self.added, self.present, self.trashed, self.labels = [], 0, 0, [], set()

    def add(self, case: Case) -> str:
        self.labels |= set(case.labels.values())
        if self._deleted and (content := case.content_hash) in self._deleted and not self.pool.find(content):
            self.trashed.append(self._deleted[content])
            return self._deleted[content]
        case_id = self.pool.add(case)
        self.added += case_id not in self._here
        self.present += case_id in self._here
        self._here.add(case_id)
        self.ids.append(case_id)
        return case_id


@dataclass
class ImportReport:
    """What an import did.

    ids: cases now in the pool from these files, in order; added: how many of them are new. present: how many were here already, or came
    from an earlier image of this import; repeated: images that gave nothing else. giving: how many images gave something new.
    trashed: ids of those that lie in the pool's trash and stay there. left: images that a cancel kept out.
    items: (image, its cases, the names of their labels). identity: header field that may tell who a patient is -> (images that have it,
    up to three of its values); the values are for the screen of the person who imports, never for a log.
    """

    ids: list[str] = field(default_factory=list)
    added: int = 0
    giving: int = 0
    present: int = 0
    repeated: list[str] = field(default_factory=list)
    trashed: list[str] = field(default_factory=list)
    images: int = 0
    faults: list[ImportFault] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    cancelled: bool = False
    left: int = 0
    items: list[tuple[str, int, list[str]]] = field(default_factory=list)
    identity: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def note_cases(self, image: str, intake: Intake) -> None:
        self.ids += intake.ids
        self.added += intake.added
        self.giving += intake.added > 0
        self.present += intake.present
        self.trashed += intake.trashed
        if intake.present and not (intake.added or intake.trashed):
            self.repeated.append(image)

    def note_identity(self, fields: Mapping[str, str]) -> None:
        for name, value in fields.items():
            count, values = self.identity.get(name, (0, []))
            self.identity[name] = count + 1, values if value in values else [*values, value][:3]

    def to_dict(self) -> dict:
        """Without the values of identifying fields."""
        return {
            "identity": {name: count for name, (count, _) in self.identity.items()},
            "items": [{"item": name, "cases": cases, "labels": labels} for name, cases, labels in self.items],
            "ids": self.ids,
            "added": self.added,
            "present": self.present,
            "repeated": self.repeated,
            "trashed": self.trashed,
            "images": self.images,
            "cancelled": self.cancelled,
            "left": self.left,
            "unlisted": self.unlisted,
            "faults": [{"item": f.item, "line": f.line, "message": f.message} for f in self.faults],
        }


def import_volume(
    pool: Pool | DryRun | Intake,
    volume: Volume,
    mask: np.ndarray,
    labels: Mapping[int, str],
    *,
    plane: str | None = None,
    max_slices: int = 12,
    min_pixels: int = 10,
    **metadata,
) -> list[str]:
    """Add a volume's lesion slices as cases, each with its measured rationale.

    Slices are spread evenly over the lesion and include the one with the largest area, of the whole and of each label.

    Args:
        mask: (k, j, i) label map on the volume's grid. labels: value -> name.
        plane: slices to take; default the planes in which a segmentation reads such a volume by itself: all three of a whole head, the
            acquisition plane of a slab. For a picture it only says how the picture was taken.
        max_slices: of each plane at most.
        min_pixels: smaller lesion areas are left out, unless the whole lesion is that small.
        metadata: patient_id, group, modality, body_site, diagnosis, annotator, source, review; override the volume's own.

    Returns:
        ids of the cases, plane by plane in display order; those that were in the pool before are included.

    Raises:
        InputError: mask of another size, empty, or with unnamed labels. PoolError: the pool cannot be written.
    """
    mask = np.asarray(mask)
    if mask.shape != volume.geometry.shape:
        raise InputError(
            f"The mask has {_size(mask.shape)} voxels, but the image {volume.name!r} has {_size(volume.geometry.shape)}. "
            "Both must lie on one grid."
        )
    if unknown := set(metadata) - set(_METADATA):
        raise InputError(f"Cases have no field {', '.join(sorted(unknown))}. Known are {', '.join(_METADATA)}.")
    if plane is not None and plane not in PLANES:
        raise InputError(f"The plane must be one of {', '.join(PLANES)}, not {plane!r}.")
    if max_slices < 1:
        raise InputError("At least one slice must be taken from each volume.")
    if not mask.any():
        raise InputError(f"The mask of {volume.name!r} is empty, so there is nothing to keep as a reference.")
    own = {"modality": volume.modality, "body_site": volume.body_site, "patient_id": volume.patient_id, "source": volume.name}
    own |= {k: v for k, v in metadata.items() if v is not None}
    own["modality"] = modality_code(own["modality"])
    own["volume_id"] = volume.volume_id or volume.content_hash[:16]
    views = [PlaneView(volume.geometry, "axial" if volume.is_picture else name) for name in _planes(volume, plane)]
    return [i for view in views for i in _add_slices(pool, volume, mask, labels, view, plane, max_slices, min_pixels, own)]


def _planes(volume: Volume, plane: str | None) -> list[str]:
    """The plane asked for, else those that a segmentation of the volume reads by itself, that of acquisition first."""
    first = plane or acquisition_plane(volume.geometry)
    return [first, *(p for p in PLANES if p != first)] if plane is None and volume.worth_crossing else [first]


def _add_slices(pool, volume: Volume, mask, labels, view: PlaneView, plane: str | None, max_slices, min_pixels, own: dict) -> list[str]:
    images, masks = view.slices(volume.array), view.slices(mask)
    area = np.count_nonzero(masks, axis=(1, 2))
    largest = {}  # of each label: area and slice
    for value in labels:
        of_label = np.count_nonzero(masks == value, axis=(1, 2))
        largest[value] = int(of_label.max()), int(of_label.argmax())
    musts = [n for pixels, n in sorted(largest.values(), reverse=True) if pixels]
    ids = []
    for n in spread(area, max_slices, min_pixels, musts):
        image, small = np.ascontiguousarray(images[n]), np.ascontiguousarray(masks[n])
        present = {int(v): str(labels[v]) for v in np.unique(small).tolist() if v in labels}
        spacing = tuple(view.spacing) if volume.spacing_known else None
        shown = plane if volume.is_picture else view.plane
        ids.append(
            pool.add(
                Case(
                    image,
                    small,
                    present,
                    spacing=spacing,
                    ijkToRAS=view.slice_ijkToRAS(n) if volume.spacing_known else None,
                    plane=shown,
                    slice_index=None if volume.is_picture else n,
                    rationale=describe(image, small > 0, spacing, modality=own["modality"], plane=shown),
                    **own,
                )
            )
        )
    return ids


def spread(area: np.ndarray, most: int, least: int, musts: Sequence[int] = ()) -> list[int]:
    """Up to ``most`` slices evenly over those with an area of at least ``least`` pixels; among them the largest, and ``musts`` as far as
    there is room."""
    candidates = np.flatnonzero(area >= least)
    if not len(candidates):
        candidates = np.array([np.argmax(area)])
    largest = int(np.argmax(area[candidates]))
    picks = np.array([largest])
    if most > 1:
        picks = np.unique(np.rint(np.linspace(0, len(candidates) - 1, min(most, len(candidates)))).astype(int))
    picks[np.argmin(np.abs(picks - largest))] = largest
    chosen, fixed = {int(candidates[p]) for p in picks}, {int(candidates[largest])}
    for must in musts:
        free = chosen - fixed - {must}
        if must not in chosen and len(chosen) >= most:
            if not free:
                continue
            chosen.remove(min(free, key=lambda n: (abs(n - must), n)))
        chosen.add(must)
        fixed.add(must)
    return sorted(chosen)


def import_folder(
    pool: Pool | DryRun,
    images: str | PathLike,
    masks: str | PathLike,
    csv: str | PathLike | None = None,
    *,
    progress: Callable[[float, str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    defaults: Mapping[str, str] | None = None,
    max_slices: int = 12,
    keep_identity: bool = False,
) -> ImportReport:
    """Add all pairs of image and mask that belong together by file name.

    ``case7.nii.gz`` belongs to ``case7.nii.gz``, ``case7_mask.nrrd``, ``case7-label.png`` and so on; both may lie in one folder.
    A folder of DICOM files inside ``images`` counts as an image of the folder's name, a .dcm file inside ``masks`` as its DICOM SEG.
    With a table only its images are imported.
    What is wrong with one item is reported and does not stop the others; what was imported stays. What was deleted here stays in the trash.

    Args:
        csv: table with a column ``image`` and any of those of ``cers.pool.table.COLUMNS``.
        defaults: metadata (modality, body_site, label, ...) for all cases of which neither the table nor the image or mask says it.
        keep_identity: keep what the headers say of the patient in the field ``source``. The patient's own field is a pseudonym either way,
            so that later images of the same patient are recognised.

    Raises:
        InputError: a folder or the table cannot be used at all. PoolError: the pool cannot be written.
    """
    report = ImportReport()
    pairs, faults = pair(existing_folder(images, "images"), existing_folder(masks, "masks"))
    rows = read_table(Path(csv)) if csv is not None else None
    if rows is None:
        report.faults += [ImportFault(name, message) for name, message in sorted(faults.items())]
        jobs = [(Row(name, None, {}), files) for name, files in sorted(pairs.items())]
    else:
        jobs = list(_listed(rows, pairs, faults, report))
    intake = Intake(pool)
    if progress is not None:
        progress(0.0, "Looking which labels the masks hold")
    several = _several([files[1] for row, files in jobs if not (row.values.get("label") or (defaults or {}).get("label"))], cancel)
    for n, (row, (image, mask)) in enumerate(jobs):
        if cancel is not None and cancel():
            report.cancelled, report.left = True, len(jobs) - n
            break
        if progress is not None:
            progress(n / len(jobs), f"Importing {row.image}")
        with _collect(report, row):
            volume, person = read_volume(image), identifying(image)
            dicom = mask.suffix.lower() == ".dcm"
            array, labels = read_dicom_seg(mask, volume.geometry, series=image) if dicom else read_mask(mask, volume.geometry)
            said = {k for k in ("modality", "body_site") if getattr(volume, k)}
            fields = {**{k: v for k, v in (defaults or {}).items() if k not in said}, **row.values}
            called = fields.pop("label", None)
            if isinstance(labels, Unnamed):
                labels = _renamed(Unnamed(labels, several), called)
            elif row.values.get("label"):
                labels = _renamed(labels, called)
            patient = fields.pop("patient", None)
            intake.next_image()
            import_volume(
                intake,
                volume,
                array,
                labels,
                plane=fields.pop("plane", None),
                max_slices=max_slices,
                **{
                    "source": source_of(image, person if keep_identity else None),
                    **fields,
                    "patient_id": pseudonym(patient) if patient else None,
                },
            )
            report.note_identity(person)
            report.items.append((row.image, len(intake.ids), sorted(intake.labels)))
            report.note_cases(row.image, intake)
            report.images += 1
    report.ids = list(dict.fromkeys(report.ids))
    if progress is not None and not report.cancelled:
        progress(1.0, f"{counted(report.added)} added from {counted(report.giving, 'image')}")
    return report


def source_of(image: Path, person: Mapping[str, str] | None) -> str | None:
    """Where a case came from: the file's name, but not that of a DICOM folder, which often is a person's; with ``person`` all of it."""
    if person is None:
        return None if image.is_dir() else image.name
    return "; ".join([image.name, *(f"{name} {value}" for name, value in person.items())])


def import_dicom(pool: Pool, images: str | PathLike, segmentation: str | PathLike, *, max_slices: int = 12, **metadata) -> list[str]:
    """Add the lesion slices of a DICOM image series that a DICOM SEG file outlines. Metadata as for ``import_volume``."""
    volume = read_volume(images)
    mask, labels = read_dicom_seg(segmentation, volume.geometry, series=images)
    return import_volume(pool, volume, mask, labels, max_slices=max_slices, **metadata)


def pair(images: Path, masks: Path, mixed: bool = False) -> tuple[dict[str, tuple[Path, Path]], dict[str, str]]:
    """(name -> (image, mask)), (name -> what is wrong) of all files that are images in two folders, which may be one.

    mixed: the folder of images holds masks, too, though not those that are looked for.
    """
    one = images.resolve() == masks.resolve()
    found, wrong = {"image": {}, "mask": {}}, {}
    for kind, folder in (("image", images), ("mask", masks)):
        for path in sorted(folder.iterdir()):
            name = composed(path.stem) if kind == "mask" and path.suffix.lower() == ".dcm" else _stem(path)
            if name is None or path.name.startswith("."):
                continue
            is_mask = f"_{name.lower()}".endswith(_MASK) or path.name.lower().endswith(".seg.nrrd")
            if (one and is_mask != (kind == "mask")) or (mixed and is_mask and kind == "image"):
                continue
            found[kind].setdefault(name, []).append(path)
    pairs, left = {}, dict(found["mask"])
    for exact in (True, False):  # an exact name is served first, so that "a_0000" never takes the mask of "a"
        for name, paths in found["image"].items():
            match = _match(name, left, exact)
            if name in pairs or match is None:
                continue
            mask = left.pop(match)
            if len(paths) > 1 or len(mask) > 1:
                twins = ", ".join(p.name for p in (paths if len(paths) > 1 else mask))
                wrong[name] = f"several files have this name ({twins}). Keep one of them."
            pairs[name] = paths[0], mask[0]
    if one and len(found["image"]) == len(left) == 1 and not pairs and _core(next(iter(left)), _MASK) == "":
        (name, (image,)), (_, (mask,)) = found["image"].popitem(), left.popitem()  # "t1c.nii.gz" and "label.nii.gz", alone
        return {name: (image, mask)}, wrong
    wrong |= {name: "there is no mask of this name. Add one, or take the image out." for name in set(found["image"]) - set(pairs)}
    wrong |= {name: "this mask has no image of its name." for name in left if name not in wrong}
    return {name: files for name, files in pairs.items() if name not in wrong}, wrong


def _match(name: str, masks: Mapping[str, object], exact: bool) -> str | None:
    if exact:
        return name if name in masks else None
    core = _core(name, _IMAGE)
    return next((m for m in masks if _core(m, _MASK) == core), None)


def _core(name: str, endings: tuple[str, ...]) -> str:
    name = composed(f"_{name}")  # so that "image" and "label" alone are a pair, too
    ending = next((e for e in endings if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def _stem(path: Path) -> str | None:
    """The name without its ending; None for what is not an image. A folder may be a DICOM series."""
    if path.is_dir():
        return composed(path.name)
    ending = next((s for s in SUFFIXES if path.name.lower().endswith(s)), None)
    return None if ending is None else composed(path.name[: -len(ending)])


def _listed(rows: list[Row], pairs: Mapping, faults: Mapping, report: ImportReport) -> Iterator[tuple[Row, tuple[Path, Path]]]:
    """The table's rows that have their files; the others become faults, and what the table does not list is named."""
    seen: dict[str, int] = {}
    for row in rows:
        name = _stem(Path(row.image)) or row.image
        problem = row.problem or faults.get(name)
        if name in seen:
            problem = f"it is listed already in line {seen[name]}. Keep one of the two lines."
        elif problem is None and name not in pairs:
            near = next((f", but one called '{other}'. Write it so" for other in pairs if other.casefold() == name.casefold()), "")
            problem = f"there is no image of this name in the folder{near}."
        seen.setdefault(name, row.line)
        if problem is None:
            yield row, pairs[name]
        else:
            report.faults.append(ImportFault(row.image or "(no name)", problem, row.line))
    report.unlisted = sorted(set(pairs) - set(seen))


def _several(masks: list[Path], cancel) -> bool:
    """Whether masks without names hold more than one value between them: then each is a label, also where it is alone in its mask."""
    found: set[int] = set()
    for mask in masks:
        if cancel is not None and cancel():
            break
        if mask.suffix.lower() != ".dcm":
            found |= unnamed_values(mask)
        if len(found) > 1:
            return True
    return False


def _renamed(labels: dict[int, str], wish: str | None) -> dict[int, str]:
    """Labels under the table's names: "tumor" for a mask of one label, or "1=core; 2=edema"."""
    if not wish:
        return labels
    if "=" not in wish:
        if len(labels) > 1:
            raise InputError(
                f"its mask has {len(labels)} labels ({', '.join(map(str, sorted(labels)))}), so one name, {wish!r}, is not "
                "enough. Write for instance 1=core; 2=edema."
            )
        return {value: wish.strip() for value in labels}
    out = dict(labels)
    for part in wish.split(";"):
        value, _, name = part.partition("=")
        if not value.strip().isdigit() or not name.strip():
            raise InputError(f"its label {wish!r} is not understood. Write a name, or for instance 1=core; 2=edema.")
        out[int(value)] = name.strip()
    return out


@contextmanager
def _collect(report: ImportReport, row: Row) -> Iterator[None]:
    """What is wrong with an item becomes a fault; what is wrong with the pool ends the import."""
    try:
        yield
    except PoolError:
        raise
    except CersError as error:
        report.faults.append(ImportFault(row.image, str(error), row.line))
    except OSError as error:
        report.faults.append(ImportFault(row.image, f"the file cannot be read ({error.strerror or error}).", row.line))


def _size(shape) -> str:
    return " x ".join(str(n) for n in shape[::-1])
