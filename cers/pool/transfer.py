"""A pool, or some of its cases, as one zip file with checksums, and the merging of such a file or of another pool into a pool."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path

from ..case import Case, Rationale
from ..case.geometry import PLANES
from ..errors import CersError, InputError, PoolError
from ..files import let_others_read, replace_file
from . import arrays
from .database import FILE
from .records import TEXT
from .store import REVIEWS, Pool

FORMAT = 1
_MANIFEST = "manifest.json"
_LARGEST = {"manifest": 1 << 30, "array": 1 << 29}  # bytes; a file that claims more is not read
_COMPARED = ("labels", "review", "diagnosis", "modality", "body_site", "plane", "group")


@dataclass
class MergeReport:
    """What a merge did, or would do. added, present: ids; different: id -> fields in which the pool's own case, which stays, differs.

    trashed: ids of those that lie in the pool's trash and stay there; left: cases that a cancel kept out.
    """

    added: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    different: dict[str, list[str]] = field(default_factory=dict)
    trashed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    cancelled: bool = False
    left: int = 0

    def to_dict(self) -> dict:
        return asdict(self)


def export_pool(
    pool: Pool,
    path: str | PathLike,
    ids: Sequence[str] | None = None,
    *,
    progress: Callable[[float, str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> int:
    """Write cases (default all) with every rationale version and review to a zip file; how many. Vectors are left out.

    The file appears at its place only when it is whole. What a killed export to it left long ago is cleared.

    Raises:
        PoolError: a case is damaged or gone. InputError: the file cannot be written. Cancelled.
    """
    from ..errors import Cancelled

    path, ids = Path(path), pool.ids() if ids is None else list(dict.fromkeys(ids))
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name a .zip file to export to.")
    temporary = None
    try:
        begin = f".{path.name[:40]}-"
        arrays.remove_stale(path.parent.glob(f"{glob.escape(begin)}*.part"))  # of an export that was killed
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=begin, suffix=".part")
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            cases, written = [], set()
            for n, case_id in enumerate(ids):
                if cancel is not None and cancel():
                    raise Cancelled
                if progress is not None:
                    progress(n / len(ids), f"Exporting {n} of {len(ids)}")
                record, name, data = pool.record(case_id)
                cases.append({**record, "file": name})
                if name not in written:
                    written.add(name)
                    archive.writestr(f"arrays/{name}.npz", data)  # compressed already
            manifest = json.dumps({"format": FORMAT, "pool": pool.uid, "cases": cases}, ensure_ascii=False, sort_keys=True).encode()
            archive.writestr(_MANIFEST, manifest, zipfile.ZIP_DEFLATED)
            archive.writestr(_MANIFEST + ".sha256", hashlib.sha256(manifest).hexdigest() + "\n")
        let_others_read(temporary)
        replace_file(temporary, path)
        temporary = None
    except OSError as error:
        raise InputError(f"The file {path} could not be written ({error.strerror}). Choose another folder, or free some space.") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return len(ids)


def merge(
    pool: Pool,
    source: str | PathLike,
    *,
    dry_run: bool = False,
    who: str | None = None,
    progress: Callable[[float, str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> MergeReport:
    """Add the cases of an exported file, or of another pool's folder, that are not here yet.

    What is here is never changed, and what was deleted here stays in the trash.

    A damaged case is named and does not stop the others; what was merged before a cancel stays.

    Args:
        dry_run: only say what would be done.

    Raises:
        InputError: not an export of a pool, damaged, or of a newer version. PoolError: the pool cannot be written.
    """
    source, report = Path(source), MergeReport()
    deleted = {entry["case"]["content_hash"]: entry["id"] for entry in pool.trashed()}
    with _reader(pool, source) as (records, read):
        for n, record in enumerate(records):
            if cancel is not None and cancel():
                report.cancelled, report.left = True, len(records) - n
                break
            if progress is not None:
                progress(n / len(records), f"{'Checking' if dry_run else 'Merging'} {n} of {len(records)}")
            meta = record.get("case", {}) if isinstance(record, dict) else {}
            name = str(meta.get("id", f"number {n + 1}"))
            try:
                _one(pool, record, read, report, deleted, dry_run, who)
            except PoolError:
                raise
            except (CersError, KeyError, TypeError, ValueError, AttributeError) as error:
                text = str(error) if isinstance(error, CersError) else f"its record is not complete ({error})."
                report.faults.append(f"Case {name}: {text}")
    return report


def _one(
    pool: Pool, record: dict, read: Callable[[str], bytes], report: MergeReport, deleted: dict[str, str], dry_run: bool, who: str | None
) -> None:
    if "fault" in record:
        raise InputError(record["fault"])
    meta = record["case"]
    here = pool.find(meta["content_hash"]) or pool.find(meta.get("edited_hash") or meta["content_hash"])
    if here:
        own = pool.meta(here[0])
        report.present.append(here[0])
        other = [name for name in _COMPARED if own[name] != meta[name]]
        mine, theirs = own["rationale"], record["rationales"][-1]["record"] if record["rationales"] else None
        if theirs is not None and (mine or {}).get("text") != theirs.get("text"):
            other.append("rationale")
        if other:
            report.different[here[0]] = other
        return
    _check(meta, record["reviews"])
    if meta["content_hash"] in deleted:
        report.trashed.append(deleted[meta["content_hash"]])
        return
    content = _unpack(read(record["file"]), record["file"])
    fields = {name: meta[name] for name in TEXT}
    # the rationales' JSON is checked here, so that nothing unreadable enters the pool
    rationales = [(Rationale.from_dict(r["record"]), str(r["created"])) for r in record["rationales"]]
    case = Case(
        content["image"],
        content["mask"],
        {int(k): v for k, v in meta["labels"].items()},
        **fields,
        spacing=tuple(meta["spacing"]) if meta["spacing"] else None,
        ijkToRAS=meta["ijkToRAS"],
        slice_index=meta["slice_index"],
    )
    if case.content_hash != (meta.get("edited_hash") or meta["content_hash"]):
        raise InputError("its picture, mask and labels do not belong together.")
    if dry_run:
        report.added.append(meta["id"])
        return
    report.added.append(pool.add_record(case, rationales, record["reviews"], meta["content_hash"], who))


def _check(meta: dict, reviews: list[dict]) -> None:
    """Raises InputError: the record holds what no pool writes. Its arrays, numbers and rationales are checked where they are read."""
    texts = [meta[name] for name in TEXT] + [entry[name] for entry in reviews for name in ("reviewer", "note", "created")]
    if (
        any(text is not None and not isinstance(text, str) for text in texts)
        or meta["plane"] not in (None, *PLANES)
        or any(entry["review"] not in REVIEWS or entry["created"] is None for entry in reviews)
        or not re.fullmatch("[0-9a-f]{64}", meta["content_hash"])
        or (meta["slice_index"] is not None and not 0 <= meta["slice_index"] < 1 << 31)
    ):
        raise InputError("its record holds something that no pool writes. Export it once more.")


def _unpack(data: bytes, sha256: str) -> dict:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError("its image file is damaged: the checksum does not match. Export it once more.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.npz"
        path.write_bytes(data)
        try:
            content = arrays.read(path, sha256, "the case")
        except PoolError as error:
            raise InputError(str(error)) from error
    if set(content) != {"image", "mask"}:
        raise InputError("its image file does not hold an image and a mask.")
    return content


@contextmanager
def _reader(pool: Pool, source: Path) -> Iterator[tuple[Sequence[dict] | _Records, Callable[[str], bytes]]]:
    """The records of a source and a way to read an array file of it by its checksum."""
    if source.is_dir():
        with Pool.open(source, read_only=True) as other:
            if other.uid == pool.uid and source.resolve() == pool.folder.resolve():
                raise InputError("A pool cannot be merged into itself. Choose another pool.")
            yield _Records(other), lambda name: _file(arrays.path_of(source, name))
        return
    try:
        with zipfile.ZipFile(source) as archive:
            manifest = _member(archive, _MANIFEST, "manifest")
            if hashlib.sha256(manifest).hexdigest() != _member(archive, _MANIFEST + ".sha256", "manifest").decode().strip():
                raise InputError(f"{source.name} is damaged: the checksum of its list of cases does not match. Export it once more.")
            content = json.loads(manifest)
            if content["format"] > FORMAT:
                raise InputError(f"{source.name} was exported by a newer CERS. Update CERS to merge it.")
            yield content["cases"], lambda name: _member(archive, f"arrays/{name}.npz", "array")
    except OSError as error:
        raise InputError(f"The file {source} cannot be read ({error.strerror or error}). Check its name.") from error
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, EOFError, RecursionError) as error:
        raise InputError(
            f"{source.name} is not an export of a pool, or is damaged ({error}). It needs the file {_MANIFEST}, as written by "
            f"'cers pool export', or choose a pool's folder with {FILE}."
        ) from error


class _Records:
    """Another pool's records, read one at a time."""

    def __init__(self, pool: Pool):
        self.pool, self.ids = pool, pool.ids()

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[dict]:
        for case_id in self.ids:
            try:
                record, name, _ = self.pool.record(case_id)
            except PoolError as error:
                yield {"case": {"id": case_id}, "fault": str(error)}
                continue
            yield {**record, "file": name}


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"its image file cannot be read ({error.strerror}).") from error


def _member(archive: zipfile.ZipFile, name: str, kind: str) -> bytes:
    """A file of the archive, its size checked before it is unpacked."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise InputError(f"the file {name} is missing from the archive.") from None
    if info.file_size > _LARGEST[kind]:
        raise InputError(f"the file {name} of the archive is too large ({info.file_size >> 20} MB).")
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise InputError(f"the file {name} of the archive is damaged ({error}).") from error
