"""The cases in the trash: any number of rows, of which only those in view are read."""

from __future__ import annotations

from collections.abc import Callable

import qt
from slicer.i18n import tr as _

from .PoolSession import PoolSession
from .RowsInView import RowsInView

AHEAD = 20  # rows that are read beyond those in view
MOST_AT_ONCE = 200
ROW = 22  # pixels


class TrashList(RowsInView):
    """One column. Args: view: the QTableView. onSelection(): the selection changed."""

    def __init__(self, view, session: PoolSession, onSelection: Callable[[], None]):
        super().__init__(view, session, onSelection)
        self._onSelection = onSelection
        self.model.setColumnCount(1)
        view.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        view.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        view.setSelectionMode(qt.QAbstractItemView.ExtendedSelection)
        view.setTabKeyNavigation(False)
        view.setWordWrap(False)
        view.setShowGrid(False)
        for header in (view.horizontalHeader(), view.verticalHeader()):
            header.setVisible(False)
        view.verticalHeader().setDefaultSectionSize(ROW)

    @property
    def numbers(self) -> list[int]:
        """Of the rows in the trash, newest first."""
        return self.keys

    def show(self, numbers: list[int]) -> None:
        """Lists these; nothing is selected."""
        self._list(numbers)
        self._onSelection()
        self._soon()

    def _wanted(self) -> list[int]:
        seen = self._inView()
        around = range(max(0, seen.start - AHEAD), min(len(self.numbers), seen.stop + AHEAD, seen.start + MOST_AT_ONCE))
        return [n for n in around if n not in self._filled]

    def _askFor(self, keys: list[int], onResult, onError) -> None:
        self.session.ask("pool_trash", {"numbers": keys}, onResult, onError)

    def _fill(self, rows: list[int], result: dict) -> None:
        entries = {entry["number"]: entry for entry in result["cases"]}
        for row in rows:
            entry = entries.get(self.numbers[row])
            self.model.setData(self.model.index(row, 0), _("no longer here") if entry is None else words(entry))


def words(entry: dict) -> str:
    """One case in the trash on one line."""
    case = entry["case"]
    parts = [
        entry["id"][:8],
        ", ".join(case["labels"].values()),
        case["source"],
        _("deleted {date}").format(date=entry["created"][:10]),
        entry["who"],
        entry["note"],
    ]
    return " · ".join(str(part) for part in parts if part)
