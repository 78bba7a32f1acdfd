"""A table of any number of rows, of which only those in view are read from the pool."""

from __future__ import annotations

from collections.abc import Callable

import qt

from .PoolSession import PoolSession


class RowsInView:
    """Fills a QTableView as it is scrolled, a portion at a time; a subclass says which rows (``_wanted``) and how (``_askFor``, ``_fill``).

    Args:
        view: the QTableView. onSelection(): the selection changed.

    Attributes: keys: what the pool knows each row by, in order.
    """

    def __init__(self, view, session: PoolSession, onSelection: Callable[[], None]):
        self.view, self.session = view, session
        self.keys: list = []
        self._filled: set[int] = set()
        self._round, self._waiting = 0, False
        self.model = qt.QStandardItemModel()
        view.setModel(self.model)
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

    @property
    def anySelected(self) -> bool:
        """Whether a row is selected; quick also for thousands."""
        return bool(self.view.selectionModel().hasSelection)

    def selected(self) -> list:
        rows = sorted(index.row() for index in self.view.selectionModel().selectedRows())
        return [self.keys[row] for row in rows if row < len(self.keys)]

    def _list(self, keys: list) -> None:
        """Empty rows for these; nothing is selected."""
        self._forget()
        self.keys = list(keys)
        self.model.setRowCount(0)
        self.model.setRowCount(len(self.keys))

    def _forget(self) -> None:
        """What is on its way, and what was read, no longer counts."""
        self._round += 1
        self._waiting = False
        self._filled.clear()

    def _soon(self) -> None:
        if not self._timer.isActive():
            self._timer.start()

    def _inView(self) -> range:
        first = max(0, self.view.rowAt(0))
        last = self.view.rowAt(max(0, self.view.viewport().height - 1))
        return range(first, (last if last >= 0 else len(self.keys) - 1) + 1)

    def _read(self) -> None:
        """Asks for the wanted rows that are not filled yet, never for more than one portion at a time."""
        if self._waiting or not self.keys or not self.session.folder:
            return
        rows = self._wanted()
        if not rows:
            return
        self._waiting, current = True, self._round

        def failed(sentence: str) -> None:
            if current == self._round:
                self._waiting = False
                self.session.failed.emit(sentence)

        self._askFor([self.keys[n] for n in rows], lambda result: self._answered(current, rows, result), failed)

    def _answered(self, current: int, rows: list[int], result: dict) -> None:
        if current != self._round:
            return
        self._waiting = False
        self._filled.update(rows)
        self._fill(rows, result)
        self._soon()

    def _wanted(self) -> list[int]:
        """The rows to be read next."""
        raise NotImplementedError

    def _askFor(self, keys: list, onResult: Callable[[dict], None], onError: Callable[[str], None]) -> None:
        raise NotImplementedError

    def _fill(self, rows: list[int], result: dict) -> None:
        raise NotImplementedError
