"""The cases in the trash: any number of rows, of which only those in view are read."""

from __future__ import annotations

from collections.abc import Callable

import qt
from slicer.i18n import tr as _

from .PoolSession import PoolSession

AHEAD = 20  # rows that are read beyond those in view
ROW = 22  # pixels


class TrashList:
    """Fills a QTableView of one column as it is scrolled.

    Args:
        view: the QTableView. onSelection(): the selection changed.

    Attributes: numbers: of the rows in the trash, newest first.
    """

    def __init__(self, view, session: PoolSession, onSelection: Callable[[], None]):
        self.view, self.session, self._onSelection = view, session, onSelection
        self.numbers: list[int] = []
        self._filled: set[int] = set()
        self._round, self._waiting = 0, False
        self.model = qt.QStandardItemModel()
        self.model.setColumnCount(1)
        view.setModel(self.model)
        view.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        view.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        view.setSelectionMode(qt.QAbstractItemView.ExtendedSelection)
        view.setTabKeyNavigation(False)
        view.setWordWrap(False)
        view.setShowGrid(False)
        for header in (view.horizontalHeader(), view.verticalHeader()):
            header.setVisible(False)
        view.verticalHeader().setDefaultSectionSize(ROW)
        view.horizontalHeader().setStretchLastSection(True)
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(20)
        self._timer.timeout.connect(self._read)
        view.verticalScrollBar().valueChanged.connect(lambda *_value: self._soon())
        view.verticalScrollBar().rangeChanged.connect(lambda *_range: self._soon())
        view.selectionModel().selectionChanged.connect(lambda *_ranges: onSelection())

    def cleanup(self) -> None:
        self._timer.stop()
        self._round += 1

    def show(self, numbers: list[int]) -> None:
        """Lists these; nothing is selected."""
        self._round += 1
        self._waiting = False
        self.numbers = list(numbers)
        self._filled.clear()
        self.model.setRowCount(0)
        self.model.setRowCount(len(self.numbers))
        self._onSelection()
        self._soon()

    @property
    def anySelected(self) -> bool:
        """Whether a row is selected; quick also for thousands."""
        return bool(self.view.selectionModel().hasSelection)

    def selected(self) -> list[int]:
        rows = sorted(index.row() for index in self.view.selectionModel().selectedRows())
        return [self.numbers[row] for row in rows if row < len(self.numbers)]

    def _soon(self) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def _read(self) -> None:
        """Asks for the rows in view and some around, one portion at a time."""
        if self._waiting or not self.numbers or not self.session.folder:
            return
        first = max(0, self.view.rowAt(0))
        last = self.view.rowAt(max(0, self.view.viewport().height - 1))
        last = last if last >= 0 else len(self.numbers) - 1
        around = range(max(0, first - AHEAD), min(len(self.numbers), last + 1 + AHEAD, first + 200))
        rows = [n for n in around if n not in self._filled]
        if not rows:
            return
        self._waiting, current = True, self._round

        def failed(sentence: str) -> None:
            if current == self._round:
                self._waiting = False
                self.session.failed.emit(sentence)

        self.session.ask("pool_trash", {"numbers": [self.numbers[n] for n in rows]}, lambda found: self._fill(current, rows, found), failed)

    def _fill(self, current: int, rows: list[int], found: dict) -> None:
        if current != self._round:
            return
        self._waiting = False
        entries = {entry["number"]: entry for entry in found["cases"]}
        for row in rows:
            self._filled.add(row)
            entry = entries.get(self.numbers[row])
            self.model.setData(self.model.index(row, 0), _("no longer here") if entry is None else words(entry))
        self._soon()


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
