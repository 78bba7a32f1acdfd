"""Where cases served as references: a date, a hash of the image, and how much each case counted. Nothing else of the image is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ..case import Evidence
from .database import Database
from .vectors import chunks

_QUERY = 16  # hex digits of an image's hash that are kept: enough to tell images apart, useless for anything else
_SWITCH = "record_uses"


class UsageTable:
    """The part of ``Pool`` that remembers which case was used for which image."""

    _db: Database
    read_only: bool

    @property
    def records_uses(self) -> bool:
        """Whether uses are written down: not where that was switched off, the pool may only be read, or is of an older format."""
        if self.read_only or self._db.version < 3:
            return False
        with self._db.read() as db:
            row = db.execute("SELECT value FROM settings WHERE key = ?", (_SWITCH,)).fetchone()
        return row is None or row[0] != "no"

    def set_records_uses(self, on: bool, *, forget: bool = False) -> None:
        """Switch the record of uses on or off; ``forget`` also deletes what was recorded."""
        with self._db.write(bump=False) as db:
            db.execute(
                "INSERT INTO settings VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (_SWITCH, "yes" if on else "no"),
            )
            if forget:
                db.execute("DELETE FROM uses")

    def record_uses(self, image_hash: str, model_hash: str, evidence: Iterable[Evidence], day: str | None = None) -> int:
        """Write down the references of one segmented image; returns how many cases. The same image, model and day count once.

        Args:
            image_hash: of the voxels. day: ISO date, today if None.
        """
        from .store import _now

        found = defaultdict(list)
        for e in evidence:
            for r in e.references:
                found[r.id].append(r)
        if not found or not self.records_uses:
            return 0
        day = day or _now()[:10]
        with self._db.write(bump=False) as db:  # no case changed: caches of the pool stay good
            db.executemany(
                "INSERT OR REPLACE INTO uses VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        case_id,
                        image_hash[:_QUERY],
                        model_hash,
                        day,
                        len(refs),
                        _mean(r.weight for r in refs),
                        _mean(r.influence for r in refs),
                    )
                    for case_id, refs in found.items()
                ],
            )
        return len(found)

    def uses(self, case_id: str, limit: int = 50) -> list[dict]:
        """Where a case was a reference, newest first: day, query (hash), model, slices, and the mean weight and influence in them, 0..1."""
        if self._db.version < 3:
            return []
        with self._db.read() as db:
            return [
                dict(r)
                for r in db.execute(
                    "SELECT day, query, model, slices, weight, influence FROM uses WHERE case_id = ? ORDER BY day DESC, query LIMIT ?",
                    (case_id, limit),
                )
            ]

    def use_counts(self, ids: Iterable[str] | None = None) -> dict[str, int]:
        """Number of different images for which each case was a reference; cases never used are left out."""
        if self._db.version < 3:
            return {}
        out = {}
        with self._db.read() as db:
            for chunk in [None] if ids is None else chunks(ids):
                where = "" if chunk is None else f" WHERE case_id IN ({', '.join('?' * len(chunk))})"
                out.update(
                    (r[0], r[1])
                    for r in db.execute(f"SELECT case_id, count(DISTINCT query) FROM uses{where} GROUP BY case_id", chunk or ())
                )
        return out

    def queries_recorded(self) -> tuple[int, str | None]:
        """How many different images are on record, and since which day."""
        if self._db.version < 3:
            return 0, None
        with self._db.read() as db:
            return tuple(db.execute("SELECT count(DISTINCT query), min(day) FROM uses").fetchone())


def _mean(values) -> float | None:
    known = [v for v in values if v is not None]
    return round(float(sum(known) / len(known)), 4) if known else None
