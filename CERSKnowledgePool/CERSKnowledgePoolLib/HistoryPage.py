"""The page of the audit and of the trash."""

from __future__ import annotations

import os

import qt
from slicer.i18n import tr as _

from .CasePage import auditRows
from .PoolSession import PoolSession
from .TrashList import TrashList

SHOWN = 200
WIDTHS = 118, 70, 70, 220, 60  # of the columns, in pixels


class HistoryPage:
    """Args: onOpen(case id): show a case."""

    def __init__(self, page, session: PoolSession, onOpen, say):
        self.page, self.session, self.onOpen, self.say = page, session, onOpen, say
        layout = qt.QVBoxLayout(page)
        layout.setContentsMargins(4, 6, 4, 4)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.who = qt.QLineEdit(page)
        label = qt.QLabel(_("Your name:"), page)
        label.setBuddy(self.who)
        line.addWidget(label)
        self.who.setText(session.who or "")
        self.who.setPlaceholderText(_("written beside every change"))
        self.who.setToolTip(_("Kept on this machine and written into the pool with what you change"))
        self.who.textChanged.connect(lambda text: session.setWho(self.who.text))
        line.addWidget(self.who, 1)
        self.export = qt.QPushButton(_("Export as table…"), page)
        self.export.setToolTip(_("Writes every change as a CSV file: who, when, what, before and after"))
        self.export.clicked.connect(lambda *_checked: self.onExport())
        line.addWidget(self.export)
        self.audit = qt.QTableView(page)
        self.audit.setAccessibleName(_("History"))
        self.audit.setToolTip(_("The last changes, newest first; double-click one to see its case. The export holds them all"))
        self.audit.setMinimumHeight(180)
        self.audit.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        self.audit.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        self.audit.setSelectionMode(qt.QAbstractItemView.SingleSelection)
        self.audit.setAlternatingRowColors(True)
        self.audit.setTabKeyNavigation(False)
        self.audit.setWordWrap(False)
        self.audit.setHorizontalScrollMode(qt.QAbstractItemView.ScrollPerPixel)
        self.audit.verticalHeader().setVisible(False)
        self.audit.verticalHeader().setDefaultSectionSize(24)
        self.model = qt.QStandardItemModel()
        self.audit.setModel(self.model)
        self.model.setColumnCount(len(WIDTHS))
        self.model.setHorizontalHeaderLabels([_("When"), _("Who"), _("Case"), _("What"), _("Comment")])
        for column, width in enumerate(WIDTHS):
            self.audit.setColumnWidth(column, width)
        self.audit.horizontalHeader().setStretchLastSection(True)
        self.audit.activated.connect(lambda index: self._open(index.row()))
        self.rows: list[tuple[str, str, str, str, str]] = []
        layout.addWidget(self.audit, 2)
        self.nothing = qt.QLabel(_("Nothing has been done in this pool yet."), page)
        layout.addWidget(self.nothing)
        self.trashLabel = qt.QLabel(page)
        layout.addWidget(self.trashLabel)
        view = qt.QTableView(page)
        view.setAccessibleName(_("Trash"))
        view.setToolTip(_("Deleted cases; choose some to restore them or to delete them for good (Ctrl+A: all)"))
        self.trash = TrashList(view, session, lambda: self._updateButtons())
        layout.addWidget(view, 1)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        line.addStretch(1)
        self.restore, self.purge = qt.QPushButton(_("Restore"), page), qt.QPushButton(_("Delete for good…"), page)
        self.restore.setToolTip(_("Brings the chosen cases back into the pool"))
        self.purge.setToolTip(_("Deletes the chosen cases and their pictures; this cannot be undone"))
        self.restore.clicked.connect(lambda *_checked: self.onRestore())
        self.purge.clicked.connect(lambda *_checked: self.onPurge())
        line.addWidget(self.restore)
        line.addWidget(self.purge)
        self.confirm = self._ask
        self.askPath = self._askPath
        self.clear()

    def cleanup(self) -> None:
        self.trash.cleanup()

    def clear(self) -> None:
        self._showAudit({"entries": []})
        self.trash.show([])
        self.trashLabel.setText("")

    def again(self) -> None:
        """Reads audit and trash again."""
        if self.who.text.strip() != (self.session.who or ""):  # CERS Segment asks for the name, too
            self.who.blockSignals(True)
            self.who.setText(self.session.who or "")
            self.who.blockSignals(False)
        if self.session.folder:
            self.session.ask("pool_audit", {"limit": SHOWN}, self._showAudit)
            self.session.ask("pool_trash", {"numbers": []}, self._showTrash)

    def _showAudit(self, result: dict) -> None:
        self.rows = auditRows(result["entries"])
        self.model.setRowCount(len(self.rows))
        for number, row in enumerate(self.rows):
            for column, text in enumerate(row):
                index = self.model.index(number, column)
                self.model.setData(index, text[:8] if column == 2 else text)
                if column > 2:
                    self.model.setData(index, text, qt.Qt.ToolTipRole)
        self.nothing.setVisible(not self.rows)

    def _open(self, number: int) -> None:
        if 0 <= number < len(self.rows):
            self.onOpen(self.rows[number][2])

    def _showTrash(self, result: dict) -> None:
        count = len(result["numbers"])
        self.trash.show(result["numbers"])
        self.trashLabel.setText(_("The trash is empty.") if not count else _("Trash: {count}").format(count=f"{count:,}"))

    def _updateButtons(self) -> None:
        some = self.trash.anySelected and not self.session.readOnly
        self.restore.setEnabled(some)
        self.purge.setEnabled(some)
        self.export.setEnabled(bool(self.session.folder))

    def onRestore(self) -> None:
        numbers = self.trash.selected()
        self.say((_("Restoring one case…") if len(numbers) == 1 else _("Restoring {count} cases…")).format(count=f"{len(numbers):,}"))
        self.session.change(
            "pool_restore",
            {"numbers": numbers},
            lambda result: self.say(_("Restored: {count}").format(count=f"{len(result['ids']):,}")),
        )

    def onPurge(self) -> None:
        numbers = self.trash.selected()
        cases = _("one case") if len(numbers) == 1 else _("{count} cases").format(count=f"{len(numbers):,}")
        if self.confirm(_("Delete {cases} for good? This cannot be undone.").format(cases=cases)):
            self.say(_("Deleting {cases} for good…").format(cases=cases))
            self.session.change(
                "pool_purge",
                {"numbers": numbers},
                lambda result: self.say(_("Deleted for good: {count}").format(count=f"{result['deleted']:,}")),
            )

    def _ask(self, question: str) -> bool:
        answer = qt.QMessageBox.question(self.page, _("Trash"), question, qt.QMessageBox.Yes | qt.QMessageBox.No, qt.QMessageBox.No)
        return answer == qt.QMessageBox.Yes

    def _askPath(self) -> str:
        return qt.QFileDialog.getSaveFileName(
            self.page, _("Export as table"), os.path.join(os.path.expanduser("~"), "pool audit.csv"), "CSV (*.csv)"
        )

    def onExport(self) -> None:
        path = self.askPath()

        def written(result: dict) -> None:
            words = _("Wrote one line to {path}.") if result["lines"] == 1 else _("Wrote {count} lines to {path}.")
            self.say(words.format(count=f"{result['lines']:,}", path=result["path"]))

        if path:
            self.session.ask("pool_audit", {"path": path}, written)
