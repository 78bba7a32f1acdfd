"""Rationale tables (CSV) that others wrote -> rationale versions of cases in a pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ...words import counted
from ..parse import CoTRow, read_cot_csv, to_rationale
from .batch import MEASURED, PERSON
from .claims import marked
from .verify import contradicting

if TYPE_CHECKING:
    from ...pool import Pool

WRITER = "imported"


@dataclass
class TableReport:
    """What an import of a table did. unmatched: rows whose image is not in the pool; unchanged: had this text before.

    kept, replaces: writer -> its texts that stay, or give way; measured ones, which can be had again, do not count.
    contradicting: sentences of the new texts that clearly contradict their case's descriptors; unmeasured: those that claim what was not
    measured, and are marked so. faults: (line, what is wrong).
    """

    ids: list[str] = field(default_factory=list)
    rows: int = 0
    unmatched: int = 0
    unchanged: int = 0
    persons: int = 0
    contradicting: int = 0
    unmeasured: int = 0
    sentences: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)
    kept: dict[str, int] = field(default_factory=dict)
    replaces: dict[str, int] = field(default_factory=dict)
    cancelled: bool = False

    def to_dict(self) -> dict:
        return {**vars(self), "faults": [{"line": line, "message": message} for line, message in self.faults]}


def import_table(
    pool: Pool,
    csv: str | PathLike,
    *,
    version: str | None = None,
    over_persons: bool = False,
    over_others: bool = False,
    dry_run: bool = False,
    progress: Callable[[float, str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> TableReport:
    """Give cases the rationales of a table, as new versions of the writer "imported"; done twice, it adds nothing twice.

    A row belongs to the case whose source file has its image's name, or whose id it is. A case keeps its measured descriptors, to
    which the imported text is compared; the text itself is taken as it is, with a mark where it claims what was not measured.

    Args:
        version: kept with the texts, to tell tables apart; default the file's name.
        over_persons: also where a person wrote the current text. over_others: also where a language model or another table gave it.
        dry_run: say what would be done, and change nothing.

    Raises:
        InputError: not a rationale table. PoolError: the pool cannot be written.
    """
    rows = read_cot_csv(csv)
    version = version or Path(csv).stem
    listed = pool.list()
    by_name: dict[str, list[dict]] = {}
    for row in listed:
        for name in {row["id"], row["source"] or "", _stem(row["source"] or "")} - {""}:
            by_name.setdefault(name, []).append(row)
    spelled = {name.casefold(): name for name in by_name}
    report = TableReport(rows=len(rows))
    first: dict[str, CoTRow] = {}  # of each case
    for n, row in enumerate(rows):
        if cancel is not None and cancel():
            report.cancelled = True
            break
        if progress is not None:
            progress(n / len(rows), f"Row {n + 1} of {len(rows)}")
        cases = by_name.get(row.image) or by_name.get(_stem(row.image)) or []
        near = spelled.get(row.image.casefold()) or spelled.get(_stem(row.image).casefold())
        if not cases and near:  # to Windows and macOS they are one name
            report.faults.append((row.line, f"no case comes from '{row.image}', but one does from '{near}'. Write it so."))
        elif not cases:
            report.unmatched += 1
        elif len(cases) > 1:
            report.faults.append((row.line, f"{len(cases)} cases come from '{row.image}'. Write the case's id in its place."))
        elif row.missing:
            report.faults.append((row.line, f"'{row.image}' lacks {', '.join(row.missing)}. Complete the row."))
        elif (before := first.setdefault(cases[0]["id"], row)).parts != row.parts:
            report.faults.append((row.line, f"'{row.image}' has another text in line {before.line}. Keep one of them."))
        elif before is not row:
            report.unchanged += 1
        else:
            _take(pool, cases[0], to_rationale(row, WRITER, version=version), over_persons, over_others, dry_run, report)
    if progress is not None and not report.cancelled:
        progress(1.0, counted(len(report.ids), "rationale"))
    return report


def _take(pool: Pool, case: dict, rationale, over_persons: bool, over_others: bool, dry_run: bool, report: TableReport) -> None:
    versions = pool.rationale_versions(case["id"])
    measured = next((v.statements for v in reversed(versions) if v.writer == "measured"), [])
    rationale = marked(rationale, measured, case["plane"])
    if any((v.writer, v.version, v.text) == (WRITER, rationale.version, rationale.text) for v in versions):
        report.unchanged += 1
        return
    if versions and versions[-1].writer == PERSON and not over_persons:
        report.persons += 1
        return
    before = versions[-1].writer if versions else MEASURED
    same = versions and (before, versions[-1].version) == (WRITER, rationale.version)  # a table that was mended since
    if before not in (PERSON, MEASURED) and not same and not over_others:
        report.kept[before] = report.kept.get(before, 0) + 1
        return
    if before != MEASURED:
        report.replaces[before] = report.replaces.get(before, 0) + 1
    rationale.descriptors = next((dict(v.descriptors) for v in reversed(versions) if v.descriptors), {})
    if not dry_run:
        pool.add_rationale(case["id"], rationale)
    report.ids.append(case["id"])
    report.sentences += len(rationale.statements)
    report.unmeasured += sum(s.unmeasured for s in rationale.statements)
    report.contradicting += len(contradicting(rationale, rationale.descriptors, case["plane"]))


def _stem(name: str) -> str:
    """File name without its folder and image ending; a name without such an ending stays whole, dots and all."""
    from ...pool.importer import SUFFIXES

    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return next((base[: -len(s)] for s in SUFFIXES if base.lower().endswith(s)), base)
