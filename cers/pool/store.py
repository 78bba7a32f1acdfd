"""The knowledge pool: a folder of expert-annotated cases that several programs may use at once.

``pool.sqlite`` is the single source of truth, ``arrays/`` holds image and mask of each case in a file named by its checksum, and
``derived/`` holds what can be rebuilt. An array file is in place before its row is committed, so a kill at any moment leaves at
worst a file that no row names; such files are harmless and cleared later.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import threading
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path

import numpy as np

from ..case import Case, Rationale
from ..errors import InputError, PoolError
from . import arrays
from .care import CareTable
from .database import FILE, Database
from .query import QueryTable
from .records import COLUMN, TEXT, metadata_of, modality_code, parse_rationale
from .thumbnail import HASH as THUMBNAIL
from .thumbnail import image_hash, thumbnail
from .usage import UsageTable
from .vectors import VectorTable, chunks

REVIEWS = ("unreviewed", "approved", "flagged", "excluded")
FACETS = ("modality", "body_site", "plane", "diagnosis", "label", "review", "patient_id", "volume_id", "group", "source", "annotator")
_EDITABLE = ("plane", "patient_id", "volume_id", "group", "modality", "body_site", "diagnosis", "source", "annotator")


@dataclass(frozen=True)
class Fault:
    """Something ``Pool.verify`` found. id is None where it is not one case's fault."""

    id: str | None
    kind: str
    message: str


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Pool(VectorTable, QueryTable, CareTable, UsageTable):
    """A pool of cases in a folder. Safe for several threads and processes at once. Use as a context manager or call ``close``.

    Raises:
        PoolError: from every method, when the pool cannot be read or written, with what to do about it.
    """

    def __init__(self, folder: Path, database: Database):
        self.folder, self._db = folder, database
        self.read_only = database.read_only
        self.uid = self._setting("uid")
        self._hash: tuple[str, str] | None = None
        self._indexes: dict[tuple[str, str], object] = {}
        self._index_lock = threading.Lock()

    @classmethod
    def create(cls, folder: str | PathLike) -> Pool:
        """A new, empty pool in a folder that is empty or does not exist yet; an existing pool is opened as it is."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = bool(arrays.files(folder))  # looked for first: another process may make the pool and fill it just then
            foreign = [
                p.name for p in folder.iterdir() if not p.name.startswith((".", FILE)) and p.name not in ("arrays", "tmp", "derived")
            ]
        except OSError as error:
            raise PoolError(f"No pool can be made at {folder} ({error.strerror}). Choose a folder that you may write in.") from error
        if foreign and not (folder / FILE).exists():
            raise PoolError(
                f"{folder} already holds other files ({', '.join(sorted(foreign)[:3])}). Choose an empty or new folder for the pool."
            )
        if kept and not ((folder / FILE).exists() and (folder / FILE).stat().st_size):
            raise PoolError(
                f"{folder} holds the pictures of a pool that has lost its file {FILE}. Restore it from a backup, or choose another folder."
            )
        Database.create(folder, {"uid": uuid.uuid4().hex, "created": _now()})
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | PathLike, read_only: bool = False) -> Pool:
        """The pool in ``folder``. One that may not be written is opened for reading only, as with ``read_only``: see its attribute."""
        folder = Path(folder)
        if not (folder / FILE).is_file():
            raise PoolError(f"There is no pool at {folder}: the file {FILE} is missing. Choose a pool's folder, or create a new pool.")
        pool = cls(folder, Database(folder, read_only=read_only))
        if not pool.read_only:
            with suppress(OSError):  # tidying up may fail on media that turn out to be read-only
                arrays.remove_stale_temporaries(folder)
        return pool

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def __len__(self) -> int:
        with self._db.read() as db:
            return db.execute("SELECT count(*) FROM cases").fetchone()[0]

    def _setting(self, key: str) -> str:
        with self._db.translated():
            row = self._db.connection().execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise PoolError(f"The pool database {self._db.path} is damaged: its setting {key!r} is missing. Restore it from a backup.")
        return row[0]

    def at_once(self) -> AbstractContextManager:
        """All that is asked inside ``with`` is of one state of the pool. To be short: on a network drive it keeps writers waiting."""
        return self._db.read()

    @property
    def state(self) -> str:
        """A word that every change by anyone replaces; caches are good as long as it stays the same."""
        return self._setting("state")

    # ---- cases

    def add(self, case: Case) -> str:
        """Keep a case with its rationale; returns its id. A case whose content is already here is not added again: its id is returned."""
        return self._keep(case, case.content_hash)

    def _keep(self, case: Case, content: str) -> str:
        """``add`` under a content hash, which is that of the labels' first names where they were edited in another pool."""
        if case.review not in REVIEWS:
            raise InputError(f"A case's review must be one of {', '.join(REVIEWS)}, not {case.review!r}.")
        if case.image.dtype.kind not in "biuf" or case.image.size == 0:
            raise InputError(f"A case's image must hold real numbers; this one is of type {case.image.dtype} and shape {case.image.shape}.")
        if existing := self._find(content):
            return existing
        small = thumbnail(case.image)
        with self._db.translated():
            data, sha256 = arrays.pack(image=case.image, mask=case.mask)
            temporary = None if self.read_only else arrays.write_temporary(self.folder, data)
            try:
                with self._db.write() as db:
                    if existing := self._find(content):
                        return existing
                    arrays.publish(temporary, arrays.path_of(self.folder, sha256))  # inside the lock, so that no cleaner takes it
                    return self._insert(db, case, content, sha256, small)
            finally:
                if temporary is not None:
                    temporary.unlink(missing_ok=True)

    def find(self, sha256: str) -> list[str]:
        """Cases whose content (``Case.content_hash``) or picture alone (``image_hash``) has this hash."""
        with self._db.read() as db:
            return [
                r[0]
                for r in db.execute(
                    f"SELECT id FROM cases c WHERE content_hash = ?1 OR image_hash = ?1 OR {self._content} = ?1 ORDER BY number", (sha256,)
                )
            ]

    @property
    def _content(self) -> str:
        """SQL for the content hash with the labels' present names."""
        return "coalesce(c.edited_hash, c.content_hash)" if self._db.version > 1 else "c.content_hash"

    def _find(self, content_hash: str) -> str | None:
        with self._db.translated():
            row = (
                self._db.connection()
                .execute(
                    "SELECT id FROM cases WHERE content_hash = ?1 OR edited_hash = ?1"
                    if self._db.version > 1
                    else "SELECT id FROM cases WHERE content_hash = ?1",
                    (content_hash,),
                )
                .fetchone()
            )
        return None if row is None else row[0]

    def _insert(self, db, case: Case, content: str, sha256: str, small: np.ndarray) -> str:
        case_id = next(
            content[:n] for n in (16, 24, 32, 64) if db.execute("SELECT 1 FROM cases WHERE id = ?", (content[:n],)).fetchone() is None
        )
        meta = case.metadata()
        row = {
            "id": case_id,
            "content_hash": content,
            "image_hash": image_hash(case.image),
            "file": sha256,
            "rows": case.image.shape[0],
            "columns": case.image.shape[1],
            "labels": json.dumps(meta["labels"], ensure_ascii=False),
            "spacing": json.dumps(meta["spacing"]),
            "ijkToRAS": json.dumps(meta["ijkToRAS"]),
            "slice_index": None if case.slice_index is None else int(case.slice_index),
            **{COLUMN.get(name, name): None if meta[name] is None else str(meta[name]) for name in TEXT},
        }
        row["created"], row["modality"] = case.created or _now(), modality_code(case.modality)
        number = db.execute(f"INSERT INTO cases ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())).lastrowid
        if case.rationale is not None:
            self._insert_rationale(db, case_id, case.rationale)
        self._log(db, case_id, "added", {"source": case.source, "annotator": case.annotator, "content_hash": content}, case.annotator)
        self._insert_vectors(db, "thumbnail", THUMBNAIL, [(number, 0)], small[None])
        return case_id

    @staticmethod
    def _log(db, case_id: str, action: str, detail: dict, who: str | None = None) -> None:
        db.execute(
            "INSERT INTO provenance (case_id, action, detail, created, who) VALUES (?, ?, ?, ?, ?)",
            (case_id, action, json.dumps(detail, ensure_ascii=False), _now(), who),
        )

    def _row(self, db, case_id: str):
        row = db.execute("SELECT * FROM cases WHERE id = ?", (case_id,)).fetchone()
        if row is None:
            raise PoolError(f"There is no case {case_id} in this pool. It may have been deleted; list the pool again.")
        return row

    def get(self, case_id: str) -> Case:
        """The whole case, its file's checksum verified."""
        try:
            row, rationale, content = self._read(case_id)
        except PoolError:  # deleted by another process between row and file? Then the second try says so
            row, rationale, content = self._read(case_id)
        if set(content) != {"image", "mask"}:
            raise PoolError(f"The image file of case {case_id} does not hold an image and a mask. Delete the case and add it again.")
        meta = metadata_of(row)
        try:
            return Case(
                content["image"],
                content["mask"],
                {int(k): v for k, v in meta["labels"].items()},
                id=case_id,
                spacing=None if meta["spacing"] is None else tuple(meta["spacing"]),
                ijkToRAS=meta["ijkToRAS"],
                slice_index=meta["slice_index"],
                rationale=rationale,
                **{name: meta[name] for name in TEXT},
            )
        except (InputError, ValueError, TypeError) as error:
            raise PoolError(
                f"Case {case_id} of this pool is damaged ({str(error).rstrip('.')}). Delete the case, or restore pool.sqlite from a copy."
            ) from error

    def _read(self, case_id: str):
        with self._db.read() as db:
            row = self._row(db, case_id)
            return row, self._rationale(db, case_id), arrays.read(arrays.path_of(self.folder, row["file"]), row["file"], f"Case {case_id}")

    def meta(self, case_id: str) -> dict:
        """All of a case but its arrays, as JSON, with its current rationale."""
        with self._db.read() as db:
            row, rationale = self._row(db, case_id), self._rationale(db, case_id)
        return {**metadata_of(row), "rationale": None if rationale is None else rationale.to_dict()}

    def ids(self) -> list[str]:
        """All case ids, in the order they were added."""
        with self._db.read() as db:
            return [r[0] for r in db.execute("SELECT id FROM cases ORDER BY number")]

    def list(self, **facets) -> list[dict]:
        """Metadata of the cases that match, in the order they were added, without rationales and arrays.

        Args:
            facets: any of ``FACETS``; a value, None for "not known", or several values in a list of which one must match.
        """
        where, values = [], []
        for name, wanted in facets.items():
            if name not in FACETS:
                raise InputError(f"Cases cannot be listed by {name!r}. Use one of {', '.join(FACETS)}.")
            if name == "label":
                continue
            wanted = [*wanted] if isinstance(wanted, (list, tuple, set)) else [wanted]
            column = COLUMN.get(name, name)
            known = [modality_code(w) if name == "modality" else w for w in wanted if w is not None]
            where.append(f"({column} IN ({', '.join('?' * len(known))})" + (f" OR {column} IS NULL)" if None in wanted else ")"))
            values += known
        query = "SELECT * FROM cases" + (f" WHERE {' AND '.join(where)}" if where else "") + " ORDER BY number"
        with self._db.read() as db:
            rows = [metadata_of(r) for r in db.execute(query, values)]
        if "label" in facets:
            labels = facets["label"] if isinstance(facets["label"], (list, tuple, set)) else [facets["label"]]
            rows = [r for r in rows if set(labels) & set(r["labels"].values())]
        return rows

    def delete(self, case_id: str, *, who: str | None = None) -> None:
        """Take a case out of the pool for good, with its rationales, reviews and vectors. Its provenance stays. See also ``trash``."""
        with self._db.write() as db:
            row = self._row(db, case_id)
            self._remove(db, row)
            self._log(db, case_id, "deleted", {"content_hash": row["content_hash"]}, who)
        self._drop_files([row["file"]])

    @staticmethod
    def _remove(db, row) -> None:
        db.execute(
            "UPDATE vector_sets SET state = lower(hex(randomblob(8))) WHERE number IN "
            "(SELECT set_number FROM vectors WHERE case_number = ?)",
            (row["number"],),
        )
        db.execute("DELETE FROM cases WHERE number = ?", (row["number"],))

    def _drop_files(self, files: Iterable[str]) -> None:
        """Delete array files that no row names any more, after their rows: a kill in between leaves a file without a row only."""
        with self._db.write(bump=False) as db:
            for file in files:
                if (
                    db.execute("SELECT 1 FROM cases WHERE file = ?1 UNION ALL SELECT 1 FROM trash WHERE file = ?1", (file,)).fetchone()
                    is None
                ):
                    with suppress(OSError, PoolError):  # still open somewhere (Windows): cleared later; or no name of a pool's
                        arrays.path_of(self.folder, file).unlink(missing_ok=True)

    def update(self, case_id: str, **metadata) -> None:
        """Change a case's metadata (``modality``, ``body_site``, ``diagnosis``, ``patient_id``, ...); the change is logged."""
        self.edit([case_id], metadata)

    def review(self, case_id: str, review: str, *, reviewer: str | None = None, note: str | None = None) -> None:
        """Record a reviewer's verdict. An "excluded" case stays in the pool but is never used as evidence."""
        self.review_cases([case_id], review, who=reviewer, note=note)

    def history(self, case_id: str) -> list[dict]:
        """What was done with a case, oldest first: additions, changes, reviews and rationale versions."""
        with self._db.read() as db:
            done = [
                {"action": r["action"], "created": r["created"], **json.loads(r["detail"])}
                for r in db.execute(
                    "SELECT * FROM provenance WHERE case_id = ? AND action NOT IN ('reviewed', 'rationale') ORDER BY number", (case_id,)
                )
            ]
            reviews = [
                {"action": "reviewed", "created": r["created"], "review": r["review"], "reviewer": r["reviewer"], "note": r["note"]}
                for r in db.execute("SELECT * FROM reviews WHERE case_id = ? ORDER BY number", (case_id,))
            ]
            rationales = [
                {"action": "rationale", "created": r["created"], "version": r["version"], "writer": r["writer"]}
                for r in db.execute("SELECT * FROM rationales WHERE case_id = ? ORDER BY version", (case_id,))
            ]
        # each kind stays in the order in which it was written: the clocks of two computers differ
        return [*heapq.merge(done, reviews, rationales, key=lambda e: e["created"])]

    # ---- rationales

    def _insert_rationale(self, db, case_id: str, rationale: Rationale, created: str | None = None) -> int:
        version = 1 + db.execute("SELECT coalesce(max(version), 0) FROM rationales WHERE case_id = ?", (case_id,)).fetchone()[0]
        record = json.dumps(rationale.to_dict(), ensure_ascii=False, sort_keys=True)
        db.execute("INSERT INTO rationales VALUES (?, ?, ?, ?, ?)", (case_id, version, rationale.writer, record, created or _now()))
        db.execute("UPDATE cases SET rationale_version = ? WHERE id = ?", (version, case_id))
        return version

    def _rationale(self, db, case_id: str) -> Rationale | None:
        row = db.execute("SELECT record FROM rationales WHERE case_id = ? ORDER BY version DESC LIMIT 1", (case_id,)).fetchone()
        return None if row is None else parse_rationale(case_id, row[0])

    def add_rationale(self, case_id: str, rationale: Rationale, *, who: str | None = None, after: int | None = None) -> int | None:
        """Give a case a new rationale and return its version; earlier ones stay, and vectors made from them are stale from now on.

        after: the version that it is to follow; where another is there by now, nothing is changed, and None returned.
        """
        with self._db.write() as db:
            row = self._row(db, case_id)
            return self._next_rationale(db, row, rationale, who) if after in (None, row["rationale_version"]) else None

    def _next_rationale(self, db, row, rationale: Rationale, who: str | None) -> int:
        before = self._rationale(db, row["id"])
        version = self._insert_rationale(db, row["id"], rationale)
        self._log(
            db,
            row["id"],
            "rationale",
            {
                "version": [row["rationale_version"] or None, version],
                "writer": rationale.writer,
                "text": [before.text if before else None, rationale.text],
            },
            who or rationale.writer,
        )
        db.execute(
            "UPDATE vector_sets SET state = lower(hex(randomblob(8))) WHERE kind = 'rationale' AND number IN "
            "(SELECT set_number FROM vectors WHERE case_number = ?)",
            (row["number"],),
        )
        return version

    def rationales(self, ids: Iterable[str]) -> dict[str, tuple[int, Rationale]]:
        """Current version and rationale of many cases at once; a case without one, or not in the pool, is left out."""
        out = {}
        with self._db.read() as db:
            for chunk in chunks(ids):
                rows = db.execute(
                    "SELECT case_id, version, record FROM cases JOIN rationales ON case_id = id AND "
                    f"version = rationale_version WHERE case_id IN ({', '.join('?' * len(chunk))})",
                    chunk,
                )
                out.update((r[0], (r[1], parse_rationale(r[0], r[2]))) for r in rows)
        return out

    def readings(self, ids: Iterable[str]) -> dict[str, tuple[str, str | None]]:
        """Label names and modality of many cases at once: what decides, besides its pixels, how a network reads a case."""
        out = {}
        with self._db.read() as db:
            for chunk in chunks(ids):
                rows = db.execute(f"SELECT id, labels, modality FROM cases WHERE id IN ({', '.join('?' * len(chunk))})", chunk)
                out.update((r[0], (r[1], r[2])) for r in rows)
        return out

    def version_list(self, case_id: str) -> list[dict]:
        """Every version of a case's rationale as JSON, newest first: version, writer, created, record."""
        with self._db.read() as db:
            self._row(db, case_id)
            return [
                {**dict(r), "record": parse_rationale(case_id, r["record"]).to_dict()}
                for r in db.execute(
                    "SELECT version, writer, created, record FROM rationales WHERE case_id = ? ORDER BY version DESC", (case_id,)
                )
            ]

    def rationale_versions(self, case_id: str) -> list[Rationale]:
        """Every version of a case's rationale, oldest first."""
        with self._db.read() as db:
            self._row(db, case_id)
            return [
                parse_rationale(case_id, r[0])
                for r in db.execute("SELECT record FROM rationales WHERE case_id = ? ORDER BY version", (case_id,))
            ]

    # ---- derived

    def index(self, kind: str, model_hash: str):
        """``VectorIndex`` over the fresh vectors of one kind; kept in memory and under ``derived/``, rebuilt when they have changed."""
        from .index import load_or_build  # faiss must come after torch, and only where it is needed

        with self._index_lock:
            index = load_or_build(self, kind, model_hash, self._indexes.get((kind, model_hash)))
            self._indexes[kind, model_hash] = index
            return index

    def facets(self) -> list[tuple]:
        """What selection needs of every case: (id, patient_id, volume_id, group, modality, body_site, plane, review)."""
        with self._db.read() as db:
            return [
                tuple(r)
                for r in db.execute(
                    "SELECT id, patient_id, volume_id, group_id, modality, body_site, plane, review FROM cases ORDER BY number"
                )
            ]

    # ---- the whole

    def hash(self) -> str:
        """SHA-256 over ids, content, reviews and rationales; pools of the same cases have one hash, in whatever order they were added."""
        with self._db.read() as db:
            state = db.execute("SELECT value FROM settings WHERE key = 'state'").fetchone()[0]
            if self._hash is not None and self._hash[0] == state:
                return self._hash[1]
            h = hashlib.sha256()
            for row in db.execute(
                f"SELECT c.id, {self._content}, c.review, r.record FROM cases c LEFT JOIN rationales r "
                "ON r.case_id = c.id AND r.version = c.rationale_version ORDER BY c.id"
            ):
                h.update(json.dumps(list(row)).encode())
        self._hash = state, h.hexdigest()
        return self._hash[1]

    def unnamed(self) -> int:
        """How many files no case names: left by killed writers, or of cases that an older copy of the database does not know."""
        with self._db.read() as db:
            return len(self._unnamed(db))

    def _unnamed(self, db) -> list[Path]:
        known = {r[0] for r in db.execute("SELECT file FROM cases" + (" UNION SELECT file FROM trash" if self._db.version > 1 else ""))}
        return [path for sha256, path in arrays.files(self.folder).items() if sha256 not in known]

    def clean(self) -> int:
        """Delete files that no case names (see ``unnamed``); the number deleted."""
        count = arrays.remove_stale_temporaries(self.folder)
        with self._db.write(bump=False) as db:  # nobody can publish a file while we look
            for path in self._unnamed(db):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    count += 1
        return count

    def verify(self) -> list[Fault]:
        """Read everything and name every fault; an empty list is a sound pool. Changes nothing."""
        from .verify import verify

        return verify(self, self._db)
