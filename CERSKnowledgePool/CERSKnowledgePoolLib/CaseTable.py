"""The table of cases: any number of rows, of which only those in view are read and drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import qt
from slicer.i18n import tr as _

from .PoolSession import PoolSession
from .RowsInView import RowsInView

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


class CaseTable(RowsInView):
    """Args: view: the QTableView. onSelection(): the selection changed. onOpen(case id): a row was double-clicked or Enter pressed."""

    def __init__(self, view, session: PoolSession, onSelection: Callable[[], None], onOpen: Callable[[str], None]):
        super().__init__(view, session, onSelection)
        self._onOpen = onOpen
        self._similarity: list[float] | None = None
        self._order: deque[int] = deque()
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
        view.setIconSize(qt.QSize(SIZE, SIZE))
        view.verticalHeader().setDefaultSectionSize(SIZE + 4)
        view.verticalHeader().setVisible(False)
        for column, width in enumerate((128, 70, 84, 240, 100, 80, 66, 90, 84)):
            view.setColumnWidth(column, width)
        view.activated.connect(lambda index: self._open(index.row()))

    @property
    def ids(self) -> list[str]:
        """Of the rows, in order."""
        return self.keys

    def show(self, ids: list[str], similarity: list[float] | None = None) -> None:
        """Lists these cases. Where they are those that are listed already, all that were selected stay so; else the first one that is
        still there."""
        if list(ids) == self.ids and similarity == self._similarity:
            self.refresh()
            return
        selected, self._similarity = self._firstSelected(), similarity
        self._list(ids)
        if selected is not None:
            self.select(selected)
        self._soon()

    def refresh(self) -> None:
        """Reads the rows again that are in view."""
        self._forget()
        self._soon()

    def _forget(self) -> None:
        super()._forget()
        self._order.clear()

    def _firstSelected(self) -> str | None:
        """Without a list of all that are selected, which takes its time with thousands."""
        model, nowhere = self.view.selectionModel(), qt.QModelIndex()
        rows = range(len(self.ids)) if self.anySelected else ()
        return next((self.ids[row] for row in rows if model.isRowSelected(row, nowhere)), None)

    def select(self, case_id: str) -> None:
        if case_id in self.ids:
            self.view.selectRow(self.ids.index(case_id))

    def _open(self, row: int) -> None:
        if 0 <= row < len(self.ids):
            self._onOpen(self.ids[row])

    def _wanted(self) -> list[int]:
        """Those in view, then those around."""
        seen = self._inView()
        around = [*seen, *range(seen.stop, seen.stop + AHEAD), *range(seen.start - AHEAD, seen.start)]
        return [n for n in around if 0 <= n < len(self.ids) and n not in self._filled][:MOST_AT_ONCE]

    def _askFor(self, keys: list[str], onResult, onError) -> None:
        self.session.ask("pool_rows", {"ids": keys, "thumbnails": SIZE}, onResult, onError)

    def _fill(self, rows: list[int], result: dict) -> None:
        found = {row["id"]: n for n, row in enumerate(result["rows"])}
        pictures = np.load(result["thumbnails"], allow_pickle=False) if result.get("thumbnails") else None
        for number in rows:
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
