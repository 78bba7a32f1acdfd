"""Caring for a pool: edits, reviews, new rationale versions, the trash, and the record of who did what.

Each method is one transaction over all cases named, so that a batch is done wholly or not at all.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from ..case import PARTS, Case, Rationale, Statement
from ..case.geometry import PLANES
from ..errors import InputError, PoolError
from ..files import let_others_read, replace_file
from . import arrays
from .database import Database
from .records import COLUMN, metadata_of, modality_code
from .vectors import chunks

AUDIT_COLUMNS = ("created", "who", "action", "case", "field", "before", "after", "note")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")
_LONGEST = 4000  # characters of one part of a rationale


class CareTable:
    """The part of ``Pool`` that changes what is there."""

    _db: Database
    folder: Path

    def edit(
        self,
        ids: Iterable[str],
        changes: Mapping[str, str | None],
        *,
        rename: Mapping[str, str] | None = None,
        who: str | None = None,
        note: str | None = None,
    ) -> int:
        """Change metadata and label names of cases; returns how many really changed. What was before stays in the audit.

        Args:
            changes: field (modality, body_site, plane, diagnosis, ...) -> new value, None for "not known".
            rename: label name -> new name, in those cases that have it.

        Raises:
            InputError: a field that cannot be changed, a plane that is not known, two labels of one name. PoolError: no such case, or
                with these labels a case would be the same as another one.
        """
        from .store import _EDITABLE

        if unknown := set(changes) - set(_EDITABLE):
            raise InputError(f"{', '.join(sorted(unknown))} of a case cannot be changed. Only {', '.join(_EDITABLE)} can.")
        changes = {name: str(value).strip() or None if value is not None else None for name, value in changes.items()}
        if "modality" in changes:
            changes["modality"] = modality_code(changes["modality"])
        if changes.get("plane") not in (None, *PLANES):
            raise InputError(f"The plane must be one of {', '.join(PLANES)}, not {changes['plane']!r}.")
        if any(not str(new).strip() for new in (rename or {}).values()):
            raise InputError("A label needs a name.")
        with self._db.write() as db:
            return sum(self._edit(db, self._row(db, case_id), changes, rename or {}, who, note) for case_id in dict.fromkeys(ids))

    def _edit(self, db, row, changes: Mapping[str, str | None], rename: Mapping[str, str], who: str | None, note: str | None) -> bool:
        before = metadata_of(row)
        detail = {name: [before[name], value] for name, value in changes.items() if before[name] != value}
        for name in detail:
            db.execute(f"UPDATE cases SET {COLUMN.get(name, name)} = ? WHERE number = ?", (changes[name], row["number"]))
        if "modality" in detail:  # it decides how a picture is normalised, so that its vectors are of the past
            self._forget_vectors(db, row["number"], "image")
        labels = {value: rename.get(name, name).strip() for value, name in before["labels"].items()}
        if labels != before["labels"]:
            if len(set(labels.values())) < len(labels):
                raise InputError(f"Two labels of case {row['id']} would have the same name. Give each label a name of its own.")
            content = arrays.read(arrays.path_of(self.folder, row["file"]), row["file"], f"Case {row['id']}")
            new = Case(content["image"], content["mask"], {int(v): name for v, name in labels.items()}).content_hash
            if twin := db.execute(
                "SELECT id FROM cases WHERE (content_hash = ?1 OR edited_hash = ?1) AND number <> ?2", (new, row["number"])
            ).fetchone():
                raise PoolError(f"With these labels case {row['id']} would be the same as case {twin[0]}. Delete one of the two instead.")
            db.execute(
                "UPDATE cases SET labels = ?, edited_hash = ? WHERE number = ?",
                (json.dumps(labels, ensure_ascii=False), None if new == row["content_hash"] else new, row["number"]),
            )
            detail["labels"] = [", ".join(before["labels"].values()), ", ".join(labels.values())]
        if detail:
            self._log(db, row["id"], "changed", {**detail, **({"note": note} if note else {})}, who)
        return bool(detail)

    @staticmethod
    def _forget_vectors(db, number: int, kind: str) -> None:
        sets = [
            r[0]
            for r in db.execute(
                "SELECT s.number FROM vector_sets s JOIN vectors v ON v.set_number = s.number WHERE s.kind = ? AND v.case_number = ?",
                (kind, number),
            )
        ]
        for found in sets:
            db.execute("DELETE FROM vectors WHERE set_number = ? AND case_number = ?", (found, number))
            db.execute("UPDATE vector_sets SET state = lower(hex(randomblob(8))) WHERE number = ?", (found,))

    def review_cases(self, ids: Iterable[str], review: str, *, who: str | None = None, note: str | None = None) -> None:
        """Record a reviewer's verdict on cases. Those "excluded" stay in the pool but are never used as evidence."""
        from .store import REVIEWS, _now

        if review not in REVIEWS:
            raise InputError(f"A review must be one of {', '.join(REVIEWS)}, not {review!r}.")
        with self._db.write() as db:
            for case_id in dict.fromkeys(ids):
                before = self._row(db, case_id)["review"]
                db.execute("UPDATE cases SET review = ? WHERE id = ?", (review, case_id))
                db.execute(
                    "INSERT INTO reviews (case_id, review, reviewer, note, created) VALUES (?, ?, ?, ?, ?)",
                    (case_id, review, who, note, _now()),
                )
                self._log(db, case_id, "reviewed", {"review": [before, review], "note": note}, who)

    def edit_rationale(self, case_id: str, parts: Mapping[str, str], *, version: int | None = None, who: str | None = None) -> int:
        """Keep a person's wording as a new version; returns its number, or the present one where nothing differs.

        Sentences that stood in any version keep the measurement they rest on; the measured numbers of the case stay with it.

        Args:
            parts: part (texture, boundary, context, summary) -> its text; parts that are not named stay as they are.
            version: that was current when the text was read for editing, 0 for none; None: whichever is.

        Raises:
            PoolError: ``version`` is no longer current. InputError: no such part, too long, or nothing is left.
        """
        if unknown := set(parts) - set(PARTS):
            raise InputError(f"A rationale has no part {', '.join(sorted(unknown))}. Its parts are {', '.join(PARTS)}.")
        if long := [p for p, text in parts.items() if len(text) > _LONGEST]:
            raise InputError(f"The {long[0]} of a rationale may have {_LONGEST} characters. Shorten it.")
        with self._db.write() as db:
            row, before = self._row(db, case_id), self._rationale(db, case_id)
            if version is not None and version != row["rationale_version"]:
                raise PoolError(
                    f"Version {row['rationale_version']} of this rationale was saved meanwhile. Read the case again, then save again."
                )
            past = self.rationale_versions(case_id)[::-1]  # newest first
            statements = [
                s
                for part in PARTS
                for s in (
                    _statements(part, parts[part], past)
                    if part in parts
                    else [s for s in before.statements if s.part == part]
                    if before
                    else []
                )
            ]
            if not statements:
                raise InputError("The rationale would be empty. Write at least one sentence.")
            if before is not None and statements == before.statements:
                return row["rationale_version"]
            return self._next_rationale(db, row, Rationale(statements, dict(before.descriptors) if before else {}, "person", "1"), who)

    def persons(self, ids: Iterable[str]) -> dict[str, str]:
        """Who wrote the current rationale of these cases, where a person did and gave a name."""
        out: dict[str, str] = {}
        if self._db.version < 2:  # who did what was not noted then
            return out
        with self._db.read() as db:
            for chunk in chunks(ids):
                rows = db.execute(
                    "SELECT case_id, who FROM provenance WHERE number IN (SELECT max(number) FROM provenance WHERE action = 'rationale' "
                    f"AND case_id IN ({', '.join('?' * len(chunk))}) GROUP BY case_id) AND json_extract(detail, '$.writer') = 'person'",
                    chunk,
                )
                out.update((case_id, who) for case_id, who in rows if who not in (None, "person"))
        return out

    # ---- trash

    def trash(self, ids: Iterable[str], *, who: str | None = None, note: str | None = None) -> list[int]:
        """Take cases out of use but keep all of them, so that ``restore`` brings them back; their numbers in the trash."""
        from .store import _now

        numbers = []
        with self._db.write() as db:
            for case_id in dict.fromkeys(ids):
                row = self._row(db, case_id)
                record = {
                    "case": dict(row),
                    **{
                        table: [dict(r) for r in db.execute(f"SELECT * FROM {table} WHERE case_id = ?", (case_id,))]
                        for table in ("rationales", "reviews")
                    },
                }
                number = db.execute(
                    "INSERT INTO trash (case_id, file, record, who, note, created) VALUES (?, ?, ?, ?, ?, ?)",
                    (case_id, row["file"], json.dumps(record, ensure_ascii=False), who, note, _now()),
                ).lastrowid
                db.execute(
                    "INSERT INTO trash_vectors SELECT ?, set_number, rationale_version, data FROM vectors WHERE case_number = ?",
                    (number, row["number"]),
                )
                self._remove(db, row)
                self._log(db, case_id, "trashed", {"note": note}, who)
                numbers.append(number)
        return numbers

    def trash_numbers(self) -> list[int]:
        """The numbers of what lies in the trash, newest first."""
        if self._db.version < 2:
            return []
        with self._db.read() as db:
            return [r[0] for r in db.execute("SELECT number FROM trash ORDER BY number DESC")]

    def trashed(self, numbers: Iterable[int] | None = None) -> list[dict]:
        """What lies in the trash, newest first: number, id, who, note, created, and the case's metadata under "case".

        Args:
            numbers: only these; one that is not there is left out.
        """
        if self._db.version < 2:
            return []
        with self._db.read() as db:
            rows = [
                row
                for chunk in chunks(self.trash_numbers() if numbers is None else sorted(set(numbers), reverse=True))
                for row in db.execute(f"SELECT * FROM trash WHERE number IN ({', '.join('?' * len(chunk))}) ORDER BY number DESC", chunk)
            ]
        return [
            {
                "number": r["number"],
                "id": r["case_id"],
                "who": r["who"],
                "note": r["note"],
                "created": r["created"],
                "case": metadata_of(json.loads(r["record"])["case"]),
            }
            for r in rows
        ]

    def restore(self, numbers: Iterable[int], *, who: str | None = None) -> list[str]:
        """Bring cases back from the trash with rationales, reviews and vectors; their ids.

        Raises:
            PoolError: a number that is not in the trash, or the same case has been added again meanwhile.
        """
        ids = []
        with self._db.write() as db:
            for number in dict.fromkeys(numbers):
                row = self._in_trash(db, number)
                record = json.loads(row["record"])
                case = record["case"]
                hashes = case["content_hash"], case.get("edited_hash") or case["content_hash"]  # the second with its present label names
                if db.execute(
                    "SELECT 1 FROM cases WHERE id = ?1 OR content_hash IN (?2, ?3) OR edited_hash IN (?2, ?3)", (case["id"], *hashes)
                ).fetchone():
                    raise PoolError(f"Case {case['id']} has been added again meanwhile and cannot be restored. Empty the trash of it.")
                for table, rows in (("cases", [case]), ("rationales", record["rationales"]), ("reviews", record["reviews"])):
                    for values in rows:
                        db.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", [*values.values()])
                db.execute(
                    "INSERT INTO vectors SELECT set_number, ?, rationale_version, data FROM trash_vectors WHERE trash_number = ?",
                    (case["number"], number),
                )
                db.execute(
                    "UPDATE vector_sets SET state = lower(hex(randomblob(8))) WHERE number IN "
                    "(SELECT set_number FROM trash_vectors WHERE trash_number = ?)",
                    (number,),
                )
                db.execute("DELETE FROM trash WHERE number = ?", (number,))
                self._log(db, case["id"], "restored", {}, who)
                ids.append(case["id"])
        return ids

    def purge(self, numbers: Iterable[int] | None = None, *, who: str | None = None) -> int:
        """Delete cases of the trash for good, all of them by default; how many. Their audit stays."""
        with self._db.write() as db:
            wanted = [r[0] for r in db.execute("SELECT number FROM trash")] if numbers is None else [*dict.fromkeys(numbers)]
            rows = [self._in_trash(db, number) for number in wanted]
            for row in rows:
                db.execute("DELETE FROM trash WHERE number = ?", (row["number"],))
                self._log(db, row["case_id"], "deleted", {"content_hash": json.loads(row["record"])["case"]["content_hash"]}, who)
        if rows:
            self._drop_files({row["file"] for row in rows})
        return len(rows)

    @staticmethod
    def _in_trash(db, number: int):
        row = db.execute("SELECT * FROM trash WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise PoolError("This case is no longer in the trash. It may have been restored or deleted meanwhile; list the trash again.")
        return row

    # ---- whole records, for another pool

    def record(self, case_id: str) -> tuple[dict, str, bytes]:
        """All of a case but its vectors: its rows as JSON, the checksum of its array file, and that file's bytes.

        Raises:
            PoolError: no such case, or its file is damaged.
        """
        with self._db.read() as db:
            row = self._row(db, case_id)
            rationales = [*db.execute("SELECT record, created FROM rationales WHERE case_id = ? ORDER BY version", (case_id,))]
            reviews = [
                dict(r)
                for r in db.execute("SELECT review, reviewer, note, created FROM reviews WHERE case_id = ? ORDER BY number", (case_id,))
            ]
            path = arrays.path_of(self.folder, row["file"])
            arrays.read(path, row["file"], f"Case {case_id}")
            data = path.read_bytes()
        edited = row["edited_hash"] if self._db.version > 1 else None
        return (
            {
                "case": {**metadata_of(row), "edited_hash": edited},
                "reviews": reviews,
                "rationales": [{"record": json.loads(r["record"]), "created": r["created"]} for r in rationales],
            },
            row["file"],
            data,
        )

    def add_record(
        self, case: Case, rationales: Sequence[tuple[Rationale, str]], reviews: Sequence[Mapping], content_hash: str, who: str | None = None
    ) -> str:
        """Add a case of another pool with all its rationale versions (with the time of each) and reviews; its id.

        ``content_hash``: as it was first added there.
        """
        with self._db.write() as db:
            if existing := self._find(case.content_hash) or self._find(content_hash):
                return existing
            case_id = self._keep(case, content_hash)
            for rationale, created in rationales:
                self._insert_rationale(db, case_id, rationale, created)
            for entry in reviews:
                db.execute(
                    "INSERT INTO reviews (case_id, review, reviewer, note, created) VALUES (?, ?, ?, ?, ?)",
                    (case_id, *(entry[k] for k in ("review", "reviewer", "note", "created"))),
                )
            if case.content_hash != content_hash:
                db.execute("UPDATE cases SET edited_hash = ? WHERE id = ?", (case.content_hash, case_id))
            self._log(db, case_id, "merged", {}, who)
        return case_id

    # ---- audit

    def record_action(self, action: str, details: Mapping[str, Mapping], who: str | None = None) -> None:
        """Write down what was done with cases: id -> what is to be known of it, as JSON; "note" is what the audit shows."""
        with self._db.write() as db:
            for case_id, detail in details.items():
                self._log(db, case_id, action, dict(detail), who)

    def audit(self, ids: Sequence[str] | None = None, *, limit: int | None = None) -> list[dict]:
        """Who did what when, newest first; one entry per field that changed, with ``AUDIT_COLUMNS`` as keys.

        Args:
            ids: of these cases only, also deleted ones. limit: entries at most.
        """
        out: list[dict] = []
        with self._db.read() as db:
            for chunk in [None] if ids is None else chunks(ids):
                where = "" if chunk is None else f" WHERE case_id IN ({', '.join('?' * len(chunk))})"
                for row in db.execute(f"SELECT * FROM provenance{where} ORDER BY number DESC", chunk or ()):
                    out += _entries(dict(row))
                    if limit is not None and len(out) >= limit and ids is None:
                        return out[:limit]
        if ids is not None:
            out.sort(key=lambda entry: entry["number"], reverse=True)
        return out[:limit]

    def export_audit(self, path: str | PathLike, ids: Sequence[str] | None = None) -> int:
        """Write the audit as CSV in UTF-8, oldest first; the number of lines. A file that is there is replaced in one step."""
        entries = self.audit(ids)[::-1]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, AUDIT_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(entry[name]) for name in AUDIT_COLUMNS} for entry in entries)
        write_file(path, text.getvalue().encode("utf-8-sig"))  # the mark lets spreadsheets see the encoding
        return len(entries)


def write_file(path: str | PathLike, data: bytes) -> None:
    """Write a file beside its place and move it there.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        let_others_read(temporary)
        replace_file(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InputError(f"The file {path} could not be written ({error.strerror}). Choose another folder, or free some space.") from error


def _statements(part: str, text: str, past: Sequence[Rationale]) -> list[Statement]:
    """Sentences of a part; one that stood there in a version, newest first, keeps its measurement and its short form."""
    known: dict[str, Statement] = {}
    for rationale in past:
        known |= {s.text: s for s in rationale.statements if s.part == part and s.text not in known}
    text, out = " ".join(text.split()), []
    while text:
        same = next((s for s in known if text.startswith(s) and text[len(s) : len(s) + 1] in ("", " ")), None)
        if same is None:
            first, *rest = _SENTENCE.split(text, maxsplit=1)
            out.append(Statement(part, first))
        else:
            out.append(known[same])
            rest = [text[len(same) :]]
        text = rest[0].strip() if rest else ""
    return out


def _entries(row: dict) -> list[dict]:
    """One audit entry for each field that a row of the provenance changed."""
    detail = json.loads(row["detail"])
    note = detail.pop("note", None)
    base = {
        "number": row["number"],
        "created": row["created"],
        "who": row.get("who"),
        "action": row["action"],
        "case": row["case_id"],
        "field": None,
        "before": None,
        "after": None,
        "note": note,
    }
    changed = [
        {**base, "field": name, "before": value[0], "after": value[1]}
        for name, value in detail.items()
        if isinstance(value, list) and len(value) == 2
    ]
    if changed:
        return changed
    source = detail.get("source")
    return [{**base, "note": note or source}]


def _cell(value) -> str:
    """A cell of a table; what a spreadsheet would take for a formula is quoted."""
    text = "" if value is None else str(value)
    return f"'{text}" if text[:1] in "=+-@\t\r" and text[:1] else text
