"""The table of cases: any number of rows, of which only those in view are read and drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import qt
from slicer.i18n import tr as _

from .PoolSession import PoolSession

SIZE = 44  # pixels of a thumbnail
AHEAD = 12  # rows that are read beyond those in view
MOST_PICTURES = 1500  # rows that stay filled; those seen longest ago are emptied
MOST_AT_ONCE = 40
REVIEWS = {
    "unreviewed": lambda: "",
    "approved": lambda: "✔ " + _("approved"),
    "flagged": lambda: "⚑ " + _("flagged"),
    "excluded": lambda: "✖ " + _("excluded"),
}


class CaseTable:
    """Fills a QTableView as it is scrolled.

    Args:
        view: the QTableView. onSelection(): the selection changed. onOpen(case id): a row was double-clicked or Enter pressed.

    Attributes: ids: of the rows, in order.
    """

    def __init__(self, view, session: PoolSession, onSelection: Callable[[], None], onOpen: Callable[[str], None]):
        self.view, self.session, self._onOpen = view, session, onOpen
        self.ids: list[str] = []
        self._similarity: list[float] | None = None
        self._filled: set[int] = set()
        self._order: deque[int] = deque()
        self._round, self._waiting = 0, False
        self.model = qt.QStandardItemModel()
        names = [
            _("Case"),
            _("Labels"),
            _("Review"),
            _("Rationale"),
            _("Diagnosis"),
            _("Body site"),
            _("Modality"),
            _("Annotator"),
            _("Added"),
            _("Source"),
        ]
        self.model.setColumnCount(len(names))
        self.model.setHorizontalHeaderLabels(names)
        view.setModel(self.model)
        view.setIconSize(qt.QSize(SIZE, SIZE))
        view.verticalHeader().setDefaultSectionSize(SIZE + 4)
        view.verticalHeader().setVisible(False)
        for column, width in enumerate((128, 70, 84, 240, 100, 80, 66, 90, 84)):
            view.setColumnWidth(column, width)
        view.horizontalHeader().setStretchLastSection(True)
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(20)
        self._timer.timeout.connect(self._read)
        view.verticalScrollBar().valueChanged.connect(lambda *_value: self._soon())
        view.verticalScrollBar().rangeChanged.connect(lambda *_range: self._soon())
        view.selectionModel().selectionChanged.connect(lambda *_ranges: onSelection())
        view.activated.connect(lambda index: self._open(index.row()))

    def cleanup(self) -> None:
        self._timer.stop()
        self._round += 1

    def show(self, ids: list[str], similarity: list[float] | None = None) -> None:
        """Lists these cases; what was selected and is still there stays selected."""
        selected = self._firstSelected()
        self._round += 1
        self._waiting = False
        self.ids, self._similarity = list(ids), similarity
        self._filled.clear()
        self._order.clear()
        self.model.setRowCount(0)
        self.model.setRowCount(len(self.ids))
        if selected is not None:
            self.select(selected)
        self._soon()

    def refresh(self) -> None:
        """Reads the rows again that are in view."""
        self._round += 1
        self._waiting = False
        self._filled.clear()
        self._order.clear()
        self._soon()

    @property
    def anySelected(self) -> bool:
        """Whether a row is selected; quick also for thousands."""
        return bool(self.view.selectionModel().hasSelection)

    def _firstSelected(self) -> str | None:
        """Without a list of all that are selected, which takes its time with thousands."""
        model, nowhere = self.view.selectionModel(), qt.QModelIndex()
        rows = range(len(self.ids)) if self.anySelected else ()
        return next((self.ids[row] for row in rows if model.isRowSelected(row, nowhere)), None)

    def selected(self) -> list[str]:
        rows = sorted(index.row() for index in self.view.selectionModel().selectedRows())
        return [self.ids[row] for row in rows if row < len(self.ids)]

    def select(self, case_id: str) -> None:
        if case_id in self.ids:
            self.view.selectRow(self.ids.index(case_id))

    def _open(self, row: int) -> None:
        if 0 <= row < len(self.ids):
            self._onOpen(self.ids[row])

    def _soon(self) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def _inView(self) -> range:
        first = max(0, self.view.rowAt(0))
        last = self.view.rowAt(max(0, self.view.viewport().height - 1))
        return range(first, (last if last >= 0 else len(self.ids) - 1) + 1)

    def _read(self) -> None:
        """Asks for the rows in view, then for those around, never for more than one portion at a time."""
        if self._waiting or not self.ids or not self.session.folder:
            return
        seen = self._inView()
        around = [*seen, *range(seen.stop, seen.stop + AHEAD), *range(seen.start - AHEAD, seen.start)]
        rows = [n for n in around if 0 <= n < len(self.ids) and n not in self._filled][:MOST_AT_ONCE]
        if not rows:
            return
        self._waiting, current = True, self._round

        def failed(sentence: str) -> None:
            if current == self._round:
                self._waiting = False
                self.session.failed.emit(sentence)

        self.session.ask(
            "pool_rows", {"ids": [self.ids[n] for n in rows], "thumbnails": SIZE}, lambda result: self._fill(current, rows, result), failed
        )

    def _fill(self, current: int, rows: list[int], result: dict) -> None:
        if current != self._round:
            return
        self._waiting = False
        found = {row["id"]: n for n, row in enumerate(result["rows"])}
        pictures = np.load(result["thumbnails"], allow_pickle=False) if result.get("thumbnails") else None
        for number in rows:
            self._filled.add(number)
            self._order.append(number)
            n = found.get(self.ids[number])
            if n is None:
                self._set(number, 0, _("deleted"))
            else:
                self._row(number, result["rows"][n], None if pictures is None else pictures[n])
        while len(self._order) > MOST_PICTURES:
            old = self._order.popleft()
            self._filled.discard(old)
            self.model.setData(self.model.index(old, 0), None, qt.Qt.DecorationRole)
        self._soon()

    def _row(self, number: int, row: dict, picture) -> None:
        name = row["id"][:8] + (f"  {self._similarity[number]:.2f}" if self._similarity else "")
        texts = [
            name,
            ", ".join(row["labels"].values()),
            REVIEWS[row["review"]](),
            row.get("damaged") or row["first_line"],
            row["diagnosis"],
            row["body_site"],
            row["modality"],
            row["annotator"],
            (row["created"] or "")[:10],
            row["source"],
        ]
        for column, text in enumerate(texts):
            self._set(number, column, text or "")
        tip = row.get("damaged") or row["first_line"]
        self.model.setData(self.model.index(number, 3), tip, qt.Qt.ToolTipRole)
        if picture is not None:
            self.model.setData(self.model.index(number, 0), qt.QIcon(pixmapOf(picture)), qt.Qt.DecorationRole)

    def _set(self, row: int, column: int, text: str) -> None:
        self.model.setData(self.model.index(row, column), text)


def pixmapOf(picture: np.ndarray):
    """A qt.QPixmap of (rows, columns, 3) uint8, through a portable pixel map, whose bytes every Qt binding takes."""
    image = qt.QPixmap()
    image.loadFromData(qt.QByteArray(b"P6 %d %d 255\n" % picture.shape[1::-1] + np.ascontiguousarray(picture).tobytes()))
    return image
