"""Reads a whole pool and names every fault."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import CersError
from . import arrays
from .records import parse_rationale
from .thumbnail import image_hash

if TYPE_CHECKING:
    from .database import Database
    from .store import Fault, Pool


def verify(pool: Pool, database: Database) -> list[Fault]:
    """See ``Pool.verify``. Kinds: database, array (file missing or damaged), case, rationale, vector."""
    from .store import Fault

    faults = []
    try:
        with database.read() as db:
            problems = [r[0] for r in db.execute("PRAGMA integrity_check(20)")]
            orphans = [tuple(r) for r in db.execute("PRAGMA foreign_key_check")]
            dimensions = [
                tuple(r)
                for r in db.execute(
                    "SELECT c.id, s.kind, length(v.data), 4 * s.dimension FROM vectors v JOIN vector_sets s ON s.number = v.set_number "
                    "JOIN cases c ON c.number = v.case_number WHERE length(v.data) <> 4 * s.dimension"
                )
            ]
            records = [tuple(r) for r in db.execute("SELECT case_id, version, record FROM rationales ORDER BY case_id, version")]
        ids = pool.ids()
    except CersError as error:
        return [Fault(None, "database", str(error))]
    faults += [
        Fault(None, "database", f"The database reports: {p}. Restore {database.path.name} from a backup.") for p in problems if p != "ok"
    ]
    faults += [
        Fault(None, "database", f"A row of {table} belongs to no case. Restore {database.path.name} from a backup.")
        for table, *_ in orphans
    ]
    faults += [
        Fault(case_id, "vector", f"The {kind} vector of case {case_id} has {have} bytes where {want} belong.")
        for case_id, kind, have, want in dimensions
    ]
    for case_id, version, record in records:
        try:
            parse_rationale(case_id, record)
        except CersError as error:
            faults.append(Fault(case_id, "rationale", f"Version {version}: {error}"))
    unreadable = {f.id for f in faults if f.kind == "rationale"}
    for case_id in ids:
        if case_id not in unreadable:
            with database.translated():
                faults += _case(pool, database, case_id)
    return faults


def _case(pool: Pool, database: Database, case_id: str) -> list[Fault]:
    faults = _look(pool, database, case_id)
    if not faults:
        return []
    if pool.read_only:
        return _look(pool, database, case_id)
    with database.write(bump=False):  # others may have deleted or added it just then: look again while they wait
        return _look(pool, database, case_id)


def _look(pool: Pool, database: Database, case_id: str) -> list[Fault]:
    from .store import Fault

    content = "coalesce(edited_hash, content_hash)" if database.version > 1 else "content_hash"
    row = (
        database.connection().execute(f"SELECT file, {content} AS content_hash, image_hash FROM cases WHERE id = ?", (case_id,)).fetchone()
    )
    if row is None:
        return []  # deleted meanwhile by someone else
    try:
        arrays.read(arrays.path_of(pool.folder, row["file"]), row["file"], f"Case {case_id}")
    except CersError as error:
        return [Fault(case_id, "array", str(error))]
    try:
        case = pool.get(case_id)
    except CersError as error:
        return [Fault(case_id, "case", f"Case {case_id}: {error}")]
    if (case.content_hash, image_hash(case.image)) != (row["content_hash"], row["image_hash"]):
        return [
            Fault(
                case_id,
                "case",
                f"Case {case_id} does not hold the picture, mask and labels that were added under this id. Delete it and add it again.",
            )
        ]
    return []
