"""The list of runs in a folder, kept up to date by looking at the folder: every window shows the same."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path

import qt
from CERSSegmentLib.Signal import Signal
from slicer.i18n import tr as _

from cers.errors import InputError
from cers.training import runs

from .TrainingCheck import duration

ROWS_SHOWN, ROW_HEIGHT = (2, 6), 24
LOOK_S, LIST_S = 1.0, 4.0  # how often live runs and the whole list are looked at
SLICE_S = 0.015  # of one look at histories
STATES = {
    "launching": lambda: _("starting"),
    "starting": lambda: _("preparing"),
    "running": lambda: _("training"),
    "stopping": lambda: _("stopping"),
    "stopped": lambda: _("stopped"),
    "finished": lambda: _("finished"),
    "failed": lambda: _("failed"),
    "crashed": lambda: _("crashed"),
}
COLOURS = {
    "running": "#2a7de1",
    "starting": "#2a7de1",
    "launching": "#2a7de1",
    "stopping": "#b8860b",
    "stopped": "#b8860b",
    "finished": "#2e9e5b",
    "failed": "#d64545",
    "crashed": "#d64545",
}


class TrainingRuns:
    """A table of runs, newest first.

    Signals: selected(): another run was chosen; updated(): the chosen run stands otherwise than before; wrong(sentence).

    Attributes: runs: by name of the folder. histories: their curves.
    """

    def __init__(self, page):
        self.selected, self.updated, self.wrong = Signal(), Signal(), Signal()
        self.root = ""
        self.runs: dict[str, runs.Run] = {}
        self.histories: dict[str, runs.History] = {}
        self._listed, self._problem, self._names = 0.0, "", []
        self._shown: list[tuple[tuple[str, ...], list]] = []  # words and items of each row
        titles = (_("Run"), _("State"), _("Done"), _("Time left"), _("Dice"), _("Last news"))
        self.table = qt.QTableWidget(0, len(titles), page)
        self.table.setAccessibleName(_("Runs"))
        self.table.setHorizontalHeaderLabels(list(titles))
        self.table.horizontalHeaderItem(4).setToolTip(_("Of the last validation: what is trained last is what the model gets"))
        self.table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        self.table.setSelectionMode(qt.QAbstractItemView.SingleSelection)
        self.table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        self.table.setAlternatingRowColors(True)
        self.table.setTabKeyNavigation(False)
        self.table.setHorizontalScrollBarPolicy(qt.Qt.ScrollBarAlwaysOff)
        self.table.setToolTip(_("Runs in the folder above, also those that another window of Slicer or the command line started"))
        self.table.verticalHeader().setVisible(False)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        header.setHighlightSections(False)
        self.table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        self.table.itemSelectionChanged.connect(lambda: self.selected.emit())
        self._fill()

    def setRoot(self, root: str) -> None:
        """Shows the runs of another folder."""
        root = os.path.abspath(os.path.expanduser(root)) if root else ""  # trainings and their checks work in folders of their own
        if root != self.root:
            self.root, self._listed = root, 0.0
            self.runs, self.histories = {}, {}
            self._fill()
            self.look()

    @property
    def current(self) -> runs.Run | None:
        row = self.table.currentRow()
        if not self.table.selectedItems() or not 0 <= row < len(self._names):
            return None
        return self.runs.get(self._names[row])

    def select(self, name: str) -> None:
        """Makes a run the chosen one."""
        if name in self._names:
            self.table.selectRow(self._names.index(name))
            self.table.scrollToItem(self.table.item(self._names.index(name), 0))

    def again(self) -> None:
        """Looks at everything now."""
        self._listed = 0.0
        self.look()

    def look(self) -> None:
        """Looks at what may have changed; a few ms."""
        if not self.root:
            return
        current = self.current
        if time.monotonic() - self._listed > LIST_S:
            self._listed = time.monotonic()
            try:
                found = {run.name: run for run in runs.list_runs(Path(self.root))}
                problem = ""
            except InputError as error:
                found, problem = {}, str(error)
            if problem != self._problem:
                self._problem = problem
                self.wrong.emit(problem)
        else:
            found = dict(self.runs)
            for name, run in self.runs.items():
                if run.live or (current is not None and name == current.name):
                    again = runs.read_run(run.folder)
                    found.pop(name)
                    if again is not None:
                        found[name] = again
        new = self._readHistories(found)
        if found != self.runs or new:
            self.runs = found
            self._fill()
        if current is not None and (self.runs.get(current.name) != current or current.name in new):
            self.updated.emit()

    def _readHistories(self, found: dict[str, runs.Run]) -> set[str]:
        """Reads on in metrics, those of live runs first; the names of runs that have news."""
        new, begun = set(), time.monotonic()
        for name in list(self.histories):
            if name not in found:
                del self.histories[name]
        unread = [n for n in found if n not in self.histories or found[n].live or found[n] != self.runs.get(n)]
        for name in sorted(unread, key=lambda n: not found[n].live):
            history = self.histories.setdefault(name, runs.History(found[name].folder))
            if history.update():
                new.add(name)
            if time.monotonic() - begun > SLICE_S:
                break
        return new

    def _fill(self) -> None:
        chosen = self.current
        names = sorted(self.runs, key=lambda n: (self.runs[n].live, self.runs[n].updated), reverse=True)
        if set(names) == set(self._names):
            names = self._names  # no rows that jump under the mouse
        rows = [self._words(self.runs[n]) for n in names]
        self.table.blockSignals(True)
        self.table.setRowCount(len(rows))
        height = ROW_HEIGHT * (1 + max(ROWS_SHOWN[0], min(ROWS_SHOWN[1], len(rows)))) + 8
        self.table.setMinimumHeight(height)
        self.table.setMaximumHeight(height)
        if names != self._names:
            self._shown = []
        self._names = names
        for r, (words, name) in enumerate(zip(rows, names)):
            if r >= len(self._shown):
                self._shown.append(((), self._newRow(r, len(words))))
            before, items = self._shown[r]
            if words != before:  # to set what is there already would lay out the table anew
                self._show(items, words, self.runs[name])
                self._shown[r] = words, items
        del self._shown[len(rows) :]
        self.table.clearSelection()
        if chosen is not None and chosen.name in names:
            self.table.selectRow(names.index(chosen.name))
        self.table.blockSignals(False)
        if chosen is not None and chosen.name not in names:
            self.selected.emit()

    def _newRow(self, row: int, count: int) -> list:
        items = [qt.QTableWidgetItem() for _n in range(count)]  # the table has them, too; Python must not let go first
        for column, item in enumerate(items):
            if column >= 2:
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            self.table.setItem(row, column, item)
        return items

    def _show(self, items: list, words: tuple[str, ...], run: runs.Run) -> None:
        for item, text in zip(items, words):
            item.setText(text)
            item.setToolTip(run.reason or str(run.folder))
        items[1].setForeground(qt.QBrush(qt.QColor(COLOURS[run.state])))

    def _words(self, run: runs.Run) -> tuple[str, ...]:
        history = self.histories.get(run.name)
        dice = f"{history.dice:.3f}" if history is not None and history.dice is not None else "–"
        share = f"{100 * min(1.0, run.share):.0f} %" if run.share or run.state in ("running", "stopping") else "–"
        left = duration(run.eta) if run.state == "running" and run.eta is not None else "–"
        return run.name, STATES[run.state](), share, left, dice, when(run.updated)


def when(seconds: float) -> str:
    """A point in time, today's without the date."""
    if not seconds:
        return "–"
    try:
        moment = datetime.fromtimestamp(seconds)
    except (OverflowError, ValueError, OSError):  # a damaged record
        return "–"
    return moment.strftime("%H:%M") if moment.date() == datetime.now().date() else moment.strftime("%Y-%m-%d")
