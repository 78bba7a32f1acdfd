"""The panel: a pool's folder, its cases in a table, and the chosen case in detail."""

from __future__ import annotations

from html import escape

import qt
import slicer
from slicer.i18n import tr as _

from .PoolReader import PoolContents, PoolUnreadable

POOL_SETTING = "CERS/PoolFolder"  # shared with CERS Segment: one pool is at work
MOST_ROWS = 100  # more rows than anyone reads would only make the table slow
STEP = 0.02  # seconds that reading may hold up the application at a time
PICTURE = 260  # pixels
COLUMNS = ("id", "labels", "modality", "body_site", "plane", "source", "annotator", "review", "rationale")


class PoolWidget:
    """Controls the form.

    Args:
        ui: the form's widgets by name. logic: has ``startReading`` and ``readCase``.
    """

    def __init__(self, ui, logic):
        self.ui, self.logic = ui, logic
        self.contents: PoolContents | None = None
        self._shown: list[str] = []
        self._setUpTable()
        # the picture is remade only when it is shown: the folder may be typed letter by letter
        self._typing = qt.QTimer()
        self._typing.setSingleShot(True)
        self._typing.setInterval(250)
        self._typing.timeout.connect(self.reload)
        self._reading, self._wanted = None, None
        self._ticking = qt.QTimer()
        self._ticking.setInterval(0)
        self._ticking.timeout.connect(self._readOn)
        self._stored = slicer.util.settingsValue(POOL_SETTING, "") or ""
        ui.poolPath.currentPath = self._stored
        ui.poolPath.currentPathChanged.connect(lambda *_path: self._typing.start())
        ui.reloadButton.clicked.connect(lambda *_checked: self.reload())
        ui.filterEdit.textChanged.connect(lambda *_text: self._fillTable())
        ui.caseTable.itemSelectionChanged.connect(self._showCase)
        self.reload()

    def enter(self) -> None:
        """The user opened the module: the pool may have been changed or another one chosen elsewhere."""
        stored = slicer.util.settingsValue(POOL_SETTING, "") or ""
        if stored != self._stored:
            self._stored = stored
            self.ui.poolPath.currentPath = stored
        self.reload()

    def cleanup(self) -> None:
        """The module is destroyed."""
        self._typing.stop()
        self._ticking.stop()
        self._reading = None

    @property
    def busy(self) -> bool:
        """The chosen pool has not been shown yet."""
        return self._typing.isActive() or self._reading is not None

    def reload(self) -> None:
        """Reads the chosen pool again and shows it, or says in the panel why that is not possible."""
        self._typing.stop()
        folder = self.ui.poolPath.currentPath.strip()
        self._wanted = self._chosen() or self._wanted
        if folder:
            self._reading = self.logic.startReading(folder)
            self._ticking.start()
            self._readOn()
        else:
            self._stored = ""
            qt.QSettings().remove(POOL_SETTING)
            self._finish(None, _("Choose the folder of a pool to see its cases."))

    def _readOn(self) -> None:
        if self._reading is None:
            self._ticking.stop()
            return
        try:
            done = self._reading.step(STEP)
        except PoolUnreadable as error:
            self._finish(None, str(error), wrong=True)
            return
        contents = self._reading.contents
        if not done:
            self._say(_("Reading: {done} of {total} cases").format(done=len(contents.rows), total=self._reading.total))
            return
        self._stored = str(contents.folder)
        qt.QSettings().setValue(POOL_SETTING, self._stored)
        if not self._typing.isActive():  # else the field already holds something else
            self.ui.poolPath.addCurrentPathToHistory()
        self._finish(contents, self._summary(contents))

    def _finish(self, contents: PoolContents | None, text: str, wrong: bool = False) -> None:
        self._ticking.stop()
        self._reading, self.contents = None, contents
        self._say(text, wrong)
        self._fillTable(self._wanted)
        self._wanted = None

    def _say(self, text: str, wrong: bool = False) -> None:
        mark = '<span style="color:#d64545">✖</span> ' if wrong else ""
        self.ui.statusLabel.setText(mark + escape(text).replace("\n", "<br>"))

    @staticmethod
    def _summary(contents: PoolContents) -> str:
        if not contents.rows:
            return _("This pool is empty. Fill it with the command: cers pool import")

        def listed(name: str) -> str:
            return ", ".join(f"{value or _('not known')} {count}" for value, count in contents.counts(name)[:6])

        cases = _("1 case") if len(contents.rows) == 1 else _("{count} cases").format(count=len(contents.rows))
        patients = _("patients not recorded") if not contents.patients else _("patients: {count}").format(count=contents.patients)
        first = f"{cases}, {patients}"
        return "\n".join([first, _("Modality: {counts}").format(counts=listed("modality")),
                          _("Body site: {counts}").format(counts=listed("body_site")), _("Review: {counts}").format(counts=listed("review"))])

    # table

    def _setUpTable(self) -> None:
        table = self.ui.caseTable
        names = [_("Case"), _("Labels"), _("Modality"), _("Body site"), _("Plane"), _("Source"), _("Annotator"), _("Review"), _("Rationale")]
        table.setColumnCount(len(COLUMNS))
        table.setHorizontalHeaderLabels(names)
        table.verticalHeader().setVisible(False)
        table.verticalHeader().setDefaultSectionSize(24)
        table.horizontalHeader().setStretchLastSection(True)

    def _fillTable(self, chosen: str | None = None) -> None:
        table, contents = self.ui.caseTable, self.contents
        chosen = chosen or self._chosen()
        found = contents.matching(self.ui.filterEdit.text) if contents else []
        rows = found[:MOST_ROWS]
        table.blockSignals(True)
        table.setSortingEnabled(False)
        table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, text in enumerate(self._texts(row)):
                item = qt.QTableWidgetItem(text)
                if column in (0, len(COLUMNS) - 1):
                    item.setToolTip(row["id"] if column == 0 else text)
                item.setData(qt.Qt.UserRole, row["id"])
                table.setItem(number, column, item)
        if rows:
            table.resizeColumnsToContents()
        table.blockSignals(False)
        self._shown = [row["id"] for row in rows]
        has = bool(contents and contents.rows)
        for widget in (self.ui.filterEdit, table, self.ui.caseButton):
            widget.setVisible(has)
        note = ""
        if has and not rows:
            note = _("No case matches these words.")
        elif len(found) > len(rows):
            note = _("The first {shown} of {found} cases are listed. Type words to find others.").format(shown=len(rows), found=len(found))
        self.ui.noteLabel.setText(note)
        self.ui.noteLabel.setVisible(bool(note))
        table.clearSelection()
        if rows:
            table.selectRow(self._shown.index(chosen) if chosen in self._shown else 0)
        self._showCase()

    def _texts(self, row: dict) -> list[str]:
        first = self.contents.rationales.get(row["id"], "")
        return [row["id"][:8], ", ".join(row["labels"].values()), *(row[n] or "" for n in COLUMNS[2:-1]), first]

    def _chosen(self) -> str | None:
        items = self.ui.caseTable.selectedItems()
        return items[0].data(qt.Qt.UserRole) if items else None

    # detail

    def _showCase(self) -> None:
        chosen = self._chosen()
        self.ui.pictureLabel.clear()
        self.ui.caseText.clear()
        if chosen is None:
            return
        try:
            case = self.logic.readCase(str(self.contents.folder), chosen)
        except PoolUnreadable as error:
            self.ui.caseText.setPlainText(str(error))
            return
        from CERSSegmentLib.Pictures import Picture, pixmap, windowed

        picture = Picture(windowed(case.image, None), case.mask, case.spacing or (1.0, 1.0), title=case.id).trimmed()
        self.ui.pictureLabel.setPixmap(pixmap(picture, PICTURE, PICTURE))
        self.ui.caseText.setHtml(self._caseHtml(case))

    def _caseHtml(self, case) -> str:
        facts = [(_("Labels"), ", ".join(case.labels.values())), (_("Diagnosis"), case.diagnosis), (_("Modality"), case.modality),
                 (_("Body site"), case.body_site), (_("Plane"), case.plane), (_("Source"), case.source), (_("Annotator"), case.annotator),
                 (_("Review"), case.review), (_("Added"), (case.created or "")[:10])]
        lines = "".join(f"<tr><td><b>{escape(name)}</b>&nbsp;&nbsp;</td><td>{escape(str(value))}</td></tr>" for name, value in facts if value)
        table = f"<p><b>{escape(case.id)}</b></p><table cellspacing='0'>{lines}</table>"
        if case.rationale is None:
            return table + f"<p>{escape(_('This case has no rationale.'))}</p>"
        parts = []
        for line in case.rationale.text.splitlines():
            name, colon, rest = line.partition(": ")
            parts.append(f"<p><b>{escape(name)}.</b> {escape(rest)}</p>" if colon else f"<p>{escape(line)}</p>")
        writer = _("Written by: {writer}").format(writer=case.rationale.writer)
        return table + "".join(parts) + f"<p><i>{escape(writer)}</i></p>"
