"""The requests that show, mend, check and fill the open pool."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..case import Geometry, Volume
from ..errors import CersError, PoolError, ProtocolError
from .methods import Methods, _matrix, label_names, params
from .server import Job

_SOURCE = "3D Slicer scene"  # never the volume's name, which often is a person's
_MOST_FOUND = 200  # cases that a search by meaning or by picture gives
_MOST_ROWS = 500
_LARGEST_THUMBNAIL = 256  # pixels of a side: 500 of them are 100 MB
_TWINS = 0.97  # correlation of thumbnails from which a case's page names another one as alike


@params(path_=str)
def create(self: Methods, job: Job, given: dict) -> dict:
    from ..pool import Pool

    Pool.create(given["path"]).close()
    return self.open_pool(job, {"path": given["path"]})


@params()
def info(self: Methods, job: Job, given: dict) -> dict:
    pool = self._pool()
    return {**pool.info(), "counts": pool.counts(), "path": str(pool.folder), "read_only": pool.read_only, "state": pool.state}


@params(facets=dict, words=str, ranges=dict, meaning=str, image=str, spacing=list, modality=str)
def query(self: Methods, job: Job, given: dict) -> dict:
    """Ids of cases; best first where a meaning or an image is given, else in the order of addition."""
    pool, meaning, scores = self._pool(), (given.get("meaning") or "").strip(), None
    ids = pool.matching(given.get("facets"), given.get("words") or "", _ranges(given.get("ranges") or {}))
    if ids and (meaning or given.get("image")):
        scores = dict(self._alike(job, given, meaning or None, max(1, len(pool))))
    if scores is not None:
        ids = sorted((i for i in ids if i in scores), key=lambda i: -scores[i])[:_MOST_FOUND]
    return {"ids": ids, "total": len(pool), "similarity": None if scores is None else [round(scores[i], 4) for i in ids]}


@params(ids_=list, thumbnails=int)
def rows(self: Methods, job: Job, given: dict) -> dict:
    pool, ids, size = self._pool(), _ids(given), given.get("thumbnails")
    if len(ids) > _MOST_ROWS:
        raise ProtocolError(f"At most {_MOST_ROWS} rows can be asked for at a time.")
    if size is not None and not 0 <= size <= _LARGEST_THUMBNAIL:
        raise ProtocolError(f"'thumbnails' must be at most {_LARGEST_THUMBNAIL} pixels; null gives none.")
    found = pool.rows(ids)
    if not size:
        return {"rows": found, "thumbnails": None}
    pictures = np.zeros((len(found), size, size, 3), np.uint8)
    for n, row in enumerate(found):
        job.check()
        try:
            pictures[n] = _thumbnail(pool.get(row["id"]), size)
        except CersError as error:
            row["damaged"] = str(error)
    return {"rows": found, "thumbnails": self._save("thumbnails", pictures)}


def _thumbnail(case, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the slice with the expert's contour in its colour. Needs no torch, so that a table fills at once."""
    from PIL import Image

    image = case.image.astype(np.float32)
    low, high = (float(v) for v in np.percentile(image, (1, 99.5)))
    picture = np.clip((image - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    seen = (picture > 12) | (case.mask > 0)
    if seen.any():  # without the empty border
        box = np.ix_(*(np.arange(at[0], at[-1] + 1) for at in (np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0)))))
        picture, mask = picture[box], case.mask[box] > 0
    else:
        mask = case.mask > 0
    tall, wide = (n * s for n, s in zip(picture.shape, case.spacing or (1.0, 1.0)))
    scale = size / max(tall, wide)
    shape = (max(1, round(wide * scale)), max(1, round(tall * scale)))
    small = np.asarray(Image.fromarray(picture).resize(shape, Image.Resampling.BILINEAR))
    inside = np.pad(np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(shape, Image.Resampling.BOX)) > 127, 1)
    core = inside[1:-1, 1:-1]
    edge = core & ~(inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:])
    out = np.zeros((size, size, 3), np.uint8)
    top, left = (size - small.shape[0]) // 2, (size - small.shape[1]) // 2
    view = out[top : top + small.shape[0], left : left + small.shape[1]]
    view[:] = small[..., None]
    view[edge] = (51, 217, 255)
    return out


@params(id_=str)
def page(self: Methods, job: Job, given: dict) -> dict:
    """Everything about one case: its arrays as they are kept, versions, audit, cases alike, other slices of its volume."""
    from ..pool.health import near_duplicates

    pool = self._pool()
    case = pool.get(given["id"])
    twins = near_duplicates(pool, pool.ids(), _TWINS, of=[case.id])
    alike = sorted(((a if b == case.id else b, score) for a, b, score in twins), key=lambda t: -t[1])[:12]
    same = pool.list(volume_id=case.volume_id, plane=case.plane) if case.volume_id and case.slice_index is not None else []
    return {
        "case": pool.rows([case.id])[0],
        "rationale": None if case.rationale is None else case.rationale.to_dict(),
        "uses": pool.uses(case.id, 20),
        "use_count": pool.use_counts([case.id]).get(case.id, 0),
        "versions": pool.version_list(case.id),
        "audit": pool.audit([case.id], limit=100),
        "alike": [{**row, "similarity": dict(alike)[row["id"]]} for row in pool.rows([i for i, _ in alike])],
        "slices": [m["id"] for m in sorted(same, key=lambda m: m["slice_index"] or 0)],
        "image": self._save("page", case.image),
        "mask": self._save("page-mask", case.mask),
    }


@params(ids_=list, changes=dict, rename=dict, who=str, note=str)
def edit(self: Methods, job: Job, given: dict) -> dict:
    """Change metadata of cases; the answer holds the requests that take the change back."""
    pool, ids, changes, names = self._pool(), _ids(given), given.get("changes") or {}, given.get("rename") or {}
    if not all(v is None or isinstance(v, str) for v in changes.values()) or not all(isinstance(v, str) for v in names.values()):
        raise ProtocolError("'changes' must map fields to texts or null, and 'rename' labels to texts.")
    before = {row["id"]: row for row in pool.rows(ids)}
    changed = pool.edit(ids, changes, rename=names, who=given.get("who"), note=given.get("note"))
    groups: dict[tuple, list[str]] = {}
    for i, row in before.items():
        back = [(new.strip(), old) for old, new in names.items() if old in row["labels"].values() and new.strip() != old]
        groups.setdefault((tuple((name, row[name]) for name in changes), tuple(back)), []).append(i)
    undo = [{"ids": own, "changes": dict(fields), "rename": dict(back)} for (fields, back), own in groups.items()]
    return {"changed": changed, "undo": undo}


@params(id_=str, parts_=dict, version=int, who=str)
def rationale(self: Methods, job: Job, given: dict) -> dict:
    if not all(isinstance(t, str) for t in given["parts"].values()):
        raise ProtocolError("'parts' must map the parts of a rationale to texts.")
    return {"version": self._pool().edit_rationale(given["id"], given["parts"], version=given.get("version"), who=given.get("who"))}


@params(ids_=list, review_=str, who=str, note=str)
def review(self: Methods, job: Job, given: dict) -> dict:
    self._pool().review_cases(_ids(given), given["review"], who=given.get("who"), note=given.get("note"))
    return {}


@params(ids_=list, who=str, note=str)
def delete(self: Methods, job: Job, given: dict) -> dict:
    return {"numbers": self._pool().trash(_ids(given), who=given.get("who"), note=given.get("note"))}


@params(numbers_=list, who=str)
def restore(self: Methods, job: Job, given: dict) -> dict:
    return {"ids": self._pool().restore(_numbers(given["numbers"]), who=given.get("who"))}


@params(numbers=list, who=str)
def purge(self: Methods, job: Job, given: dict) -> dict:
    numbers = given.get("numbers")
    return {"deleted": self._pool().purge(None if numbers is None else _numbers(numbers), who=given.get("who"))}


@params(numbers=list)
def trash(self: Methods, job: Job, given: dict) -> dict:
    pool, numbers = self._pool(), given.get("numbers")
    return {"numbers": pool.trash_numbers(), "cases": pool.trashed(None if numbers is None else _numbers(numbers))}


@params(path=str, ids=list, limit=int)
def audit(self: Methods, job: Job, given: dict) -> dict:
    pool, ids = self._pool(), given.get("ids")
    if given.get("path") is not None:
        return {"path": given["path"], "lines": pool.export_audit(given["path"], ids)}
    return {"entries": pool.audit(ids, limit=given.get("limit"))}


@params()
def health(self: Methods, job: Job, given: dict) -> dict:
    from ..pool.health import check_health

    pool = self._pool()
    findings = check_health(pool, progress=job.progress, cancel=job.cancelled.is_set)
    return {"findings": [f.to_dict() for f in findings], "cases": len(pool)}


@params(cases=int)
def harm(self: Methods, job: Job, given: dict) -> dict:
    """Cases whose use as a reference makes the masks of others worse. Needs the model; without one the shipped model is loaded."""
    from ..inference.harm import check_harm

    self._pool()
    if self.model is None:
        self.load_model(job, {})
    return check_harm(
        self._segmenter(job), budget=_number(given, "cases", 100), progress=job.progress, cancel=job.cancelled.is_set
    ).to_dict()


@params()
def map_(self: Methods, job: Job, given: dict) -> dict:
    """Every case as a point, with what may colour it."""
    from ..pool.map import project, values

    pool = self._pool()
    state = pool.state
    if self.map is None or self.map[0] != (str(pool.folder), state):
        found = project(pool)
        self.map = (str(pool.folder), state), found, values(pool, found.ids)
    _, found, facets = self.map
    return {
        "ids": found.ids,
        "points": self._save("map", found.points),
        "facets": facets,
        "source": found.source,
        "explained": round(found.explained, 4),
        "missing": found.missing,
    }


@params(record=bool, forget=bool)
def uses(self: Methods, job: Job, given: dict) -> dict:
    """Whether uses are recorded, and how many; or switch that on or off."""
    pool = self._pool()
    if given.get("record") is not None:
        pool.set_records_uses(given["record"], forget=bool(given.get("forget")))
    images, since = pool.queries_recorded()
    return {"records": pool.records_uses, "images": images, "since": since}


@params(path_=str, ids=list)
def export(self: Methods, job: Job, given: dict) -> dict:
    from ..pool.transfer import export_pool

    return {
        "path": given["path"],
        "cases": export_pool(self._pool(), given["path"], given.get("ids"), progress=job.progress, cancel=job.cancelled.is_set),
    }


@params(path_=str, dry_run=bool, who=str)
def merge(self: Methods, job: Job, given: dict) -> dict:
    from ..pool.transfer import merge as merge_into

    self.imported = None
    self.imported = merge_into(
        _writable(self, given),
        given["path"],
        dry_run=bool(given.get("dry_run")),
        who=given.get("who"),
        progress=job.progress,
        cancel=job.cancelled.is_set,
    ).to_dict()
    return self.imported


@params(
    images_=str,
    masks_=str,
    csv=str,
    modality=str,
    body_site=str,
    annotator=str,
    diagnosis=str,
    label=str,
    max_slices=int,
    dry_run=bool,
    keep_identity=bool,
)
def import_folder(self: Methods, job: Job, given: dict) -> dict:
    from ..pool.importer import DryRun
    from ..pool.importer import import_folder as fill

    self.imported = None
    pool = _writable(self, given)
    defaults = {name: given[name] for name in ("modality", "body_site", "annotator", "diagnosis", "label") if given.get(name)}
    report = fill(
        DryRun(pool) if given.get("dry_run") else pool,
        given["images"],
        given["masks"],
        given.get("csv"),
        progress=job.progress,
        cancel=job.cancelled.is_set,
        defaults=defaults,
        max_slices=_number(given, "max_slices", 12),
        keep_identity=bool(given.get("keep_identity")),
    )
    found = {name: {"images": count, "values": values} for name, (count, values) in report.identity.items()}  # for the screen
    self.imported = {**report.to_dict(), "identity": found}
    return self.imported


@params(
    image_=str,
    mask_=str,
    ijkToRAS_=list,
    labels_=dict,
    modality=str,
    body_site=str,
    patient_id=str,
    volume_id=str,
    diagnosis=str,
    annotator=str,
    source=str,
    spacing_known=bool,
    max_slices=int,
    dry_run=bool,
)
def import_volume(self: Methods, job: Job, given: dict) -> dict:
    from ..pool.importer import DryRun, Intake
    from ..pool.importer import import_volume as fill

    self.imported = None
    pool = _writable(self, given)
    array, mask = self._load(given["image"], "image"), self._load(given["mask"], "mask")
    known = {key: given[key] for key in ("modality", "body_site", "patient_id", "volume_id") if given.get(key)}
    volume = Volume(
        array,
        Geometry(_matrix(given["ijkToRAS"]), array.shape if array.ndim == 3 else (0, 0, 0)),
        **known,
        spacing_known=given.get("spacing_known") is not False,
    )
    labels = label_names(given["labels"])
    intake = Intake(DryRun(pool))
    said = {key: given.get(key) for key in ("diagnosis", "annotator")}
    fill(intake, volume, mask, labels, max_slices=_number(given, "max_slices", 12), source=given.get("source") or _SOURCE, **said)
    job.check()
    if not given.get("dry_run"):
        intake = Intake(pool)
        fill(intake, volume, mask, labels, max_slices=_number(given, "max_slices", 12), source=given.get("source") or _SOURCE, **said)
    self.imported = {"ids": intake.ids, "added": intake.added, "present": intake.present, "trashed": intake.trashed}
    return self.imported


@params(forget=bool)
def import_report(self: Methods, job: Job, given: dict) -> dict:
    """The last import or merge of this worker, also a cancelled one, whose own answer says only that; or forget it, before the next."""
    report = self.imported
    if given.get("forget"):
        self.imported = None
    return {"report": report, "cases": len(self._pool())}


def _number(given: dict, name: str, default: int) -> int:
    """A whole number of a request; null is "not given", but zero is not."""
    return default if given.get(name) is None else given[name]


def _ids(given: dict) -> list[str]:
    if not given["ids"] or not all(isinstance(i, str) for i in given["ids"]):
        raise ProtocolError("'ids' must be a list of case ids.")
    return given["ids"]


def _numbers(numbers: list) -> list[int]:
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise ProtocolError("'numbers' must be a list of whole numbers.")
    return numbers


def _ranges(given: dict) -> dict[str, tuple[float | None, float | None]]:
    for name, limits in given.items():
        if not isinstance(limits, list) or len(limits) != 2 or not all(v is None or isinstance(v, (int, float)) for v in limits):
            raise ProtocolError(f"The range of '{name}' must be [least, most], with null for no limit.")
    return {name: (limits[0], limits[1]) for name, limits in given.items()}


def _writable(self: Methods, given: dict):
    """The pool, unless something shall be written and it may not be."""
    pool = self._pool()
    if pool.read_only and not given.get("dry_run"):
        raise PoolError(f"The pool {pool.folder} may only be read here. Choose one that you may write in.")
    return pool


TABLE: dict[str, Callable] = {
    "pool_create": create,
    "pool_info": info,
    "pool_query": query,
    "pool_rows": rows,
    "pool_case": page,
    "pool_edit": edit,
    "pool_rationale": rationale,
    "pool_review": review,
    "pool_delete": delete,
    "pool_restore": restore,
    "pool_purge": purge,
    "pool_trash": trash,
    "pool_audit": audit,
    "pool_health": health,
    "pool_harm": harm,
    "pool_map": map_,
    "pool_uses": uses,
    "pool_export": export,
    "pool_merge": merge,
    "pool_import_folder": import_folder,
    "pool_import_volume": import_volume,
    "pool_import_report": import_report,
}
