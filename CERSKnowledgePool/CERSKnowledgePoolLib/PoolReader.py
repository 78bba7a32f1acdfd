"""Reads a pool for display. No Qt here, and no torch or faiss: cers.pool imports them only for searching."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from slicer.i18n import tr as _


SEARCHED = ("modality", "body_site", "diagnosis", "plane", "source", "annotator", "review")


class PoolUnreadable(Exception):
    """The pool or a case of it cannot be shown; the text is one sentence for the screen."""


@dataclass
class PoolContents:
    """All cases of a pool.

    Args:
        folder: of the pool. rows: one dict of metadata per case, in the order of addition.
        rationales: case id -> first line of its current rationale, for those that have one.
    """

    folder: Path
    rows: list[dict] = field(default_factory=list)
    rationales: dict[str, str] = field(default_factory=dict)
    _words: list[str] = field(default_factory=list, repr=False)

    def append(self, meta: dict) -> None:
        """Add a case. Args: meta: as ``cers.pool.Pool.meta`` gives it."""
        statements = (meta["rationale"] or {}).get("statements") or ()
        if statements:
            part = statements[0]["part"]
            self.rationales[meta["id"]] = f"{part.capitalize()}: " + " ".join(s["text"] for s in statements if s["part"] == part)
        row = {name: value for name, value in meta.items() if name != "rationale"}
        self.rows.append(row)
        shown = [row["id"], *row["labels"].values(), *(row[n] or "" for n in SEARCHED), self.rationales.get(row["id"], "")]
        self._words.append(" ".join(shown).lower())

    @property
    def patients(self) -> int:
        """Number of patients that are told apart."""
        return len({r["patient_id"] for r in self.rows if r["patient_id"]})

    def counts(self, name: str) -> list[tuple[str, int]]:
        """How many cases have each value of a field ("modality", "body_site", ...), most frequent first; '' = not known."""
        return Counter(row[name] or "" for row in self.rows).most_common()

    def matching(self, words: str) -> list[dict]:
        """Rows that contain every one of the words anywhere in what the table shows."""
        wanted = words.lower().split()
        return [r for r, text in zip(self.rows, self._words) if all(w in text for w in wanted)] if wanted else self.rows


def _pool():
    """``cers.pool``, also from a checkout, where the package lies beside the module's folder."""
    root = next((p for p in Path(__file__).resolve().parents if (p / "cers" / "__init__.py").is_file()), None)
    if root is not None and str(root) not in sys.path:
        sys.path.append(str(root))  # appended, so that nothing else is hidden
    try:
        import cers.pool
    except ImportError as error:
        raise PoolUnreadable(_("Pools cannot be read because a part is missing ({error}). Install the CERS extension again.").format(error=error)) from error
    return cers.pool


@contextmanager
def _opened(folder):
    pool = _pool()  # before the except clause below needs its sibling
    from cers.errors import CersError

    try:
        with pool.Pool.open(folder, read_only=True) as opened:
            yield opened
    except CersError as error:
        raise PoolUnreadable(str(error)) from error
    except OSError as error:
        raise PoolUnreadable(_("The folder {folder} cannot be read ({error}). Check that you may read it and that its disk is connected.")
                             .format(folder=folder, error=error.strerror or error)) from error


class Reading:
    """Reads a pool a little at a time, so that a large one does not hold up the application.

    Attributes: contents: what has been read. total: number of cases, 0 until the first step.
    """

    def __init__(self, folder):
        self.contents, self.total = PoolContents(Path(folder)), 0
        self._cases = self._read()

    def _read(self) -> Iterator[None]:
        with _opened(self.contents.folder) as pool:
            from cers.errors import PoolError

            ids = pool.ids()
            self.total = len(ids)
            for case_id in ids:
                try:
                    self.contents.append(pool.meta(case_id))
                except PoolError:
                    if case_id in pool.ids():  # else it has just been deleted by someone else
                        raise
                yield

    def step(self, seconds: float) -> bool:
        """Read for about so long; True when all has been read.

        Raises:
            PoolUnreadable: the folder holds no pool, or it is damaged or may not be read.
        """
        end = time.monotonic() + seconds
        for _case in self._cases:
            if time.monotonic() > end:
                return False
        return True


def readPool(folder) -> PoolContents:
    """Everything the table shows, at once.

    Raises:
        PoolUnreadable: the folder holds no pool, or it is damaged or may not be read.
    """
    reading = Reading(folder)
    reading.step(float("inf"))
    return reading.contents


def readCase(folder, case_id: str):
    """One case with image, mask and rationale; its checksum is verified.

    Raises:
        PoolUnreadable: the case was deleted meanwhile, or is damaged.
    """
    with _opened(folder) as pool:
        return pool.get(case_id)
