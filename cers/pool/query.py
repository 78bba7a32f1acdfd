"""Finding cases by facets, words and measured numbers, counting them, and reading them page by page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from ..rationale import DESCRIPTORS
from .database import Database
from .records import labels_of, metadata_of
from .vectors import chunks

COUNTED = ("body_site", "modality", "label", "diagnosis", "annotator", "review")
_WORDS = ("id", "labels", "modality", "body_site", "diagnosis", "plane", "source", "annotator", "review")


class QueryTable:
    """The part of ``Pool`` that lists cases."""

    _db: Database
    folder: Path

    def matching(
        self,
        facets: Mapping[str, object] | None = None,
        words: str = "",
        ranges: Mapping[str, tuple[float | None, float | None]] | None = None,
    ) -> list[str]:
        """Ids of the cases that match everything asked, in the order of addition.

        Args:
            facets: as for ``list``. words: each must occur in what is known of the case, its rationale included; case does not matter.
            ranges: descriptor -> (least, most), None for no limit; a case in which it was not measured does not match.
        """
        ids = [row["id"] for row in self.list(**(facets or {}))]
        if wanted := words.casefold().split():
            texts = self._texts(ids)
            ids = [i for i in ids if all(w in texts.get(i, "") for w in wanted)]
        for name, (low, high) in (ranges or {}).items():
            values = self.descriptor(name)
            ids = [i for i in ids if (v := values.get(i)) is not None and (low is None or v >= low) and (high is None or v <= high)]
        return ids

    def _texts(self, ids: Sequence[str]) -> dict[str, str]:
        """What words are looked for in, by id, folded to one case."""
        columns = ", ".join(f"coalesce(c.{name}, '')" for name in _WORDS)
        wanted = set(ids)
        with self._db.read() as db:
            rows = db.execute(
                f"SELECT c.id, {columns}, json_extract(r.record, '$.text') FROM cases c LEFT JOIN rationales r "
                "ON r.case_id = c.id AND r.version = c.rationale_version"
            )
            return {r[0]: " ".join([*r[1:-1], r[-1] or ""]).casefold() for r in rows if r[0] in wanted}

    def descriptor(self, name: str) -> dict[str, float]:
        """One measured number of every case that has it."""
        if name not in DESCRIPTORS:
            raise InputError(f"There is no measured descriptor {name!r}. Known are {', '.join(DESCRIPTORS)}.")
        with self._db.read() as db:
            rows = db.execute(
                f"SELECT c.id, json_extract(r.record, '$.descriptors.{name}') FROM cases c JOIN rationales r "
                "ON r.case_id = c.id AND r.version = c.rationale_version"
            )
            return {r[0]: float(r[1]) for r in rows if isinstance(r[1], (int, float))}

    def counts(self, ids: Iterable[str] | None = None) -> dict[str, dict[str, int]]:
        """How many cases have each value of each of ``COUNTED``, most frequent first; "" = not known. ``ids``: of these cases only."""
        wanted = None if ids is None else set(ids)
        counters = {name: Counter() for name in COUNTED}
        columns = [name for name in COUNTED if name != "label"]
        with self._db.read() as db:
            for row in db.execute(f"SELECT id, labels, {', '.join(columns)} FROM cases ORDER BY number"):
                if wanted is not None and row["id"] not in wanted:
                    continue
                for name in columns:
                    counters[name][row[name] or ""] += 1
                counters["label"].update(set(labels_of(row).values()))
        return {name: dict(counter.most_common()) for name, counter in counters.items()}

    def rows(self, ids: Sequence[str]) -> list[dict]:
        """What a table shows of cases, in the order of ``ids``, without deleted ones: metadata, the rationale's "writer", "first_line"."""
        found = {}
        with self._db.read() as db:
            for chunk in chunks(ids):
                for row in db.execute(
                    "SELECT c.*, r.writer AS writer, json_extract(r.record, '$.text') AS text FROM cases c "
                    "LEFT JOIN rationales r ON r.case_id = c.id AND r.version = c.rationale_version "
                    f"WHERE c.id IN ({', '.join('?' * len(chunk))})",
                    chunk,
                ):
                    found[row["id"]] = {**metadata_of(row), "writer": row["writer"], "first_line": (row["text"] or "").partition("\n")[0]}
        return [found[i] for i in ids if i in found]

    def columns(self, names: Sequence[str]) -> list[tuple]:
        """Some facts of every case as they are kept (labels as JSON), in the order of addition: much quicker than ``list`` for many."""
        known = {"id", "labels", *COUNTED} - {"label"}
        if unknown := set(names) - known:
            raise InputError(f"{', '.join(sorted(unknown))} of cases cannot be listed. Use {', '.join(sorted(known))}.")
        with self._db.read() as db:
            return [tuple(r) for r in db.execute(f"SELECT {', '.join(names)} FROM cases ORDER BY number")]

    def last_model(self) -> str | None:
        """Hash of the model whose image vectors were begun last, None where there are none."""
        with self._db.read() as db:
            last = db.execute("SELECT model_hash FROM vector_sets WHERE kind = 'image' ORDER BY number DESC LIMIT 1").fetchone()
        return None if last is None else last[0]

    def info(self) -> dict:
        """The pool at a glance: cases, patients, without_rationale, without_patient, trashed, bytes on disk, network (whether it lies on
        a network drive), and the embeddings of the model used last: ``stale`` is how many cases lack one, None where no model has been
        used yet.
        """
        with self._db.read() as db:
            cases, patients, bare, nobody = db.execute(
                "SELECT count(*), count(DISTINCT patient_id), coalesce(sum(rationale_version = 0), 0), "
                "coalesce(sum(patient_id IS NULL AND volume_id IS NULL), 0) FROM cases"
            ).fetchone()
            trashed = db.execute("SELECT count(*) FROM trash").fetchone()[0] if self._db.version > 1 else 0
        last = self.last_model()
        return {
            "cases": cases,
            "patients": patients,
            "without_rationale": bare,
            "without_patient": nobody,
            "trashed": trashed,
            "network": self._db.network,
            "stale": None if last is None else len(self.stale("image", last)),
            "bytes": _size(self.folder),
        }


def _size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:  # deleted just now
                continue
    return total
