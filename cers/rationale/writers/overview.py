"""Who wrote the rationales of a pool, and which of its cases have none or an old one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..writer import VERSION
from .batch import PERSON

if TYPE_CHECKING:
    from ...pool import Pool


@dataclass
class Overview:
    """missing: ids of cases without rationale. stale: with one measured by earlier rules. writers: name -> cases whose text it wrote.

    written: (case id, writer, sentences that gave way to measured ones) of every current text of a language model.
    """

    cases: int = 0
    missing: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    writers: dict[str, int] = field(default_factory=dict)
    written: list[tuple[str, str, int]] = field(default_factory=list)

    def to_dict(self) -> dict:
        return {**vars(self), "written": [{"id": i, "writer": w, "replaced": n} for i, w, n in self.written]}


def overview(pool: Pool) -> Overview:
    """Look at the current rationale of every case."""
    from .table import WRITER

    ids = pool.ids()
    current = pool.rationales(ids)
    out = Overview(len(ids))
    for case_id in ids:
        if case_id not in current:
            out.missing.append(case_id)
            continue
        rationale = current[case_id][1]
        out.writers[rationale.writer] = out.writers.get(rationale.writer, 0) + 1
        if rationale.writer == "measured":
            if rationale.version != VERSION:
                out.stale.append(case_id)
        elif rationale.writer not in (PERSON, WRITER):
            out.written.append((case_id, rationale.writer, sum(s.note is not None and not s.unmeasured for s in rationale.statements)))
    return out
