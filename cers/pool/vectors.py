"""The vectors that models make of a pool's cases, kept by the model's hash: those of an old model are never mistaken for new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..errors import PoolError
from .database import Database

KINDS = ("image", "rationale", "thumbnail")


class VectorTable:
    """The part of ``Pool`` that keeps one unit vector per case, kind and model."""

    _db: Database

    def set_vectors(
        self, kind: str, model_hash: str, ids: Sequence[str], vectors: np.ndarray, versions: Mapping[str, int] | None = None
    ) -> None:
        """Keep one vector per case; they are scaled to unit length.

        Args:
            kind: "image", "rationale" or "thumbnail". model_hash: content hash of what made them.
            vectors: (n, d) finite, not zero. Cases deleted meanwhile are left out.
            versions: for "rationale" the version each vector was made from (see ``rationales``); default the current one.
        """
        vectors = np.asarray(vectors, np.float32)
        if kind not in KINDS:
            raise PoolError(f"Vectors of kind {kind!r} are not known; use one of {', '.join(KINDS)}.")
        if vectors.ndim != 2 or len(vectors) != len(ids):
            raise PoolError(f"One vector per case is needed; given were {len(ids)} cases and vectors of shape {vectors.shape}.")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(norms).all() or (norms == 0).any():
            raise PoolError(f"The {kind} vectors contain values that are not finite, or are zero. The model that made them is faulty.")
        if not len(ids):
            return
        with self._db.write() as db:
            rows = {
                r[0]: (r[1], r[2])
                for chunk in chunks(ids)
                for r in db.execute(f"SELECT id, number, rationale_version FROM cases WHERE id IN ({', '.join('?' * len(chunk))})", chunk)
            }
            keep = [n for n, case_id in enumerate(ids) if case_id in rows]
            targets = [(rows[ids[n]][0], (versions or {}).get(ids[n], rows[ids[n]][1])) for n in keep]
            self._insert_vectors(db, kind, model_hash, targets, (vectors / norms)[keep])

    @staticmethod
    def _insert_vectors(db, kind: str, model_hash: str, targets: Sequence[tuple[int, int]], vectors: np.ndarray) -> None:
        db.execute("INSERT OR IGNORE INTO vector_sets (kind, model_hash, dimension) VALUES (?, ?, ?)", (kind, model_hash, vectors.shape[1]))
        number, dimension = db.execute(
            "SELECT number, dimension FROM vector_sets WHERE kind = ? AND model_hash = ?", (kind, model_hash)
        ).fetchone()
        if dimension != vectors.shape[1]:
            raise PoolError(
                f"This pool's {kind} vectors of that model have {dimension} numbers, the new ones {vectors.shape[1]}. "
                "Two models must not share one hash."
            )
        db.executemany(
            "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)",
            [(number, case, version, v.tobytes()) for (case, version), v in zip(targets, vectors.astype("<f4"))],
        )
        db.execute("UPDATE vector_sets SET state = lower(hex(randomblob(8))) WHERE number = ?", (number,))

    _WHERE = "WHERE s.kind = ? AND s.model_hash = ? AND (s.kind <> 'rationale' OR v.rationale_version = c.rationale_version)"
    _FRESH = f"FROM vectors v JOIN vector_sets s ON s.number = v.set_number JOIN cases c ON c.number = v.case_number {_WHERE}"
    # CROSS JOIN keeps SQLite from walking through the whole set to find a few cases
    _FRESH_OF = (
        "FROM vector_sets s CROSS JOIN cases c CROSS JOIN vectors v ON v.set_number = s.number AND v.case_number = c.number " + _WHERE
    )

    def vectors(self, kind: str, model_hash: str, ids: Iterable[str] | None = None) -> tuple[list[str], np.ndarray]:
        """Ids in the order of addition and their unit vectors (n, d) float32; stale ones are left out. ``ids`` limits it to those cases."""
        found, parts = [], []
        with self._db.read() as db:
            known = db.execute("SELECT dimension FROM vector_sets WHERE kind = ? AND model_hash = ?", (kind, model_hash)).fetchone()
            for chunk in [None] if ids is None else chunks(ids):
                source, extra, values = (
                    (self._FRESH, "", []) if chunk is None else (self._FRESH_OF, f" AND c.id IN ({', '.join('?' * len(chunk))})", chunk)
                )
                for case_id, data in db.execute(f"SELECT c.id, v.data {source}{extra} ORDER BY c.number", (kind, model_hash, *values)):
                    found.append(case_id)
                    parts.append(data)
        dimension = known[0] if known else 0
        if any(len(data) != 4 * dimension for data in parts):
            raise PoolError(f"The pool database {self._db.path} is damaged: {kind} vectors differ in length. Restore it from a backup.")
        return found, np.frombuffer(b"".join(parts), "<f4").reshape(len(found), dimension)

    def stale(self, kind: str, model_hash: str) -> list[str]:
        """Cases that lack a vector, or whose rationale has changed since. For "rationale", cases that have no rationale are not counted."""
        condition = " WHERE c.rationale_version > 0 AND" if kind == "rationale" else " WHERE"
        with self._db.read() as db:
            return [
                r[0]
                for r in db.execute(
                    f"SELECT c.id FROM cases c{condition} c.number NOT IN (SELECT v.case_number {self._FRESH}) ORDER BY c.number",
                    (kind, model_hash),
                )
            ]

    def vector_state(self, kind: str, model_hash: str) -> str:
        """A word that every change of one kind's vectors replaces; "" where there are none yet."""
        with self._db.translated():
            row = (
                self._db.connection()
                .execute("SELECT state FROM vector_sets WHERE kind = ? AND model_hash = ?", (kind, model_hash))
                .fetchone()
            )
        return "" if row is None else row[0]


def chunks(ids: Iterable[str], size: int = 500) -> Iterable[Sequence[str]]:
    ids = [*ids]
    return (ids[n : n + size] for n in range(0, len(ids), size))
