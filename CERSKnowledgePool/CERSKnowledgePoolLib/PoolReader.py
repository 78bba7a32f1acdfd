"""Reads a pool for display. No Qt here, and no torch or faiss: cers.pool imports them only for searching."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from slicer.i18n import tr as _


class PoolUnreadable(Exception):
    """The pool or a case of it cannot be shown; the text is one sentence for the screen."""


@dataclass
class PoolContents:
    """All cases of a pool.

    Args:
        folder: of the pool. rows: one dict per case, in the order of addition, as ``cers.pool.Pool.list`` gives them.
        rationales: case id -> first line of its current rationale, for those that have one.
    """

    folder: Path
    rows: list[dict]
    rationales: dict[str, str] = field(default_factory=dict)

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
        return [r for r in self.rows if all(w in self._text(r) for w in wanted)] if wanted else self.rows

    def _text(self, row: dict) -> str:
        shown = [row["id"], *row["labels"].values(), *(row[n] or "" for n in ("modality", "body_site", "diagnosis", "plane", "source", "annotator", "review"))]
        return " ".join([*shown, self.rationales.get(row["id"], "")]).lower()


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


def readPool(folder) -> PoolContents:
    """Everything the table shows.

    Raises:
        PoolUnreadable: the folder holds no pool, or it is damaged or may not be read.
    """
    with _opened(folder) as pool:
        rows = pool.list()
        records = pool.rationales([r["id"] for r in rows])
    firsts = {case_id: (rationale.text.splitlines() or [""])[0] for case_id, (_version, rationale) in records.items()}
    return PoolContents(Path(folder), rows, firsts)


def readCase(folder, case_id: str):
    """One case with image, mask and rationale; its checksum is verified.

    Raises:
        PoolUnreadable: the case was deleted meanwhile, or is damaged.
    """
    with _opened(folder) as pool:
        return pool.get(case_id)
