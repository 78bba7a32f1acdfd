"""The page of all cases: filters, search, the table, and what can be done with the cases chosen."""

from __future__ import annotations

import os

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from cers.rationale import DESCRIPTORS

from .CaseTable import CaseTable
from .Pages import wrap
from .PoolSession import PoolSession

FACETS = {
    "body_site": lambda: _("Body site"),
    "modality": lambda: _("Modality"),
    "label": lambda: _("Label"),
    "diagnosis": lambda: _("Diagnosis"),
    "annotator": lambda: _("Annotator"),
    "review": lambda: _("Review"),
}
ANY = "\0any"


class CasesPage:
    """Args: page: an empty widget. onOpen(case id): show a case. say(sentence, wrong): a line for the user."""

    def __init__(self, page, session: PoolSession, onOpen, say):
        self.session, self.say, self._counts = session, say, {}
        self._subset: list[str] | None = None  # a list that stays as it is when a case changes: of a finding, or of a search, best first
        self._scores: list[float] | None = None  # of the search
        self._asked, self._searching = 0, False
        layout = qt.QVBoxLayout(page)
        layout.setContentsMargins(4, 6, 4, 4)
        grid = qt.QGridLayout()
        layout.addLayout(grid)
        self.combos = {}
        for n, (name, title) in enumerate(FACETS.items()):
            combo = self.combos[name] = qt.QComboBox(page)
            combo.setToolTip(_("Show only cases with this value: {name}").format(name=title()))
            combo.setAccessibleName(title())
            combo.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
            combo.setMinimumContentsLength(5)
            combo.currentIndexChanged.connect(lambda *_index: self._soon())
            grid.addWidget(combo, n // 3, n % 3)
        self.words = qt.QLineEdit(page)
        self.words.setAccessibleName(_("Find cases"))
        self.words.setPlaceholderText(_("Find cases: words that occur in them"))
        self.words.setClearButtonEnabled(True)
        self.words.setToolTip(_("Every word must occur in the case's fields or rationale; Enter searches by meaning"))
        self.words.textChanged.connect(lambda *_text: self._soon())
        self.words.returnPressed.connect(self.findMeaning)
        self.meaning = qt.QPushButton(_("By meaning"), page)
        self.meaning.setToolTip(_("Finds the cases whose rationale is closest to what you wrote, also in other words (Enter)"))
        self.meaning.clicked.connect(lambda *_checked: self.findMeaning())
        self.alike = qt.QPushButton(_("Like the slice shown"), page)
        self.alike.setToolTip(_("Finds the cases that look most like the slice in the red view"))
        self.alike.clicked.connect(lambda *_checked: self.findAlike())
        line = _row(layout, self.words, self.meaning, self.alike)
        line.setStretch(0, 1)
        self.descriptor = qt.QComboBox(page)
        self.descriptor.setAccessibleName(_("Measurement"))
        self.descriptor.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        self.descriptor.setMinimumContentsLength(11)
        self.descriptor.addItem(_("Any measurement"), "")
        for name, (unit, words) in DESCRIPTORS.items():
            self.descriptor.addItem(name.replace("_", " ") + (f" ({unit})" if unit else ""), name)
            self.descriptor.setItemData(self.descriptor.count - 1, words, qt.Qt.ToolTipRole)
        self.descriptor.setToolTip(_("Show only cases in which this number lies between two limits"))
        self.least, self.most = qt.QLineEdit(page), qt.QLineEdit(page)
        for edit, words in ((self.least, _("at least")), (self.most, _("at most"))):
            edit.setPlaceholderText(words)
            edit.setAccessibleName(words)
            edit.setToolTip(_("A limit for the measurement on the left; may be left empty"))
            edit.setMaximumWidth(80)
            edit.setEnabled(False)
            edit.textChanged.connect(lambda *_text: self._soon())
        self.descriptor.currentIndexChanged.connect(lambda *_index: self._onDescriptor())
        self.all = qt.QPushButton(_("Show all"), page)
        self.all.setToolTip(_("Removes every filter"))
        self.all.clicked.connect(lambda *_checked: self.showAll())
        line = _row(layout, self.descriptor, self.least, self.most, self.all)
        line.setStretch(0, 1)
        self.found = qt.QLabel(page)
        wrap(self.found)
        layout.addWidget(self.found)
        self.view = qt.QTableView(page)
        self.view.setAccessibleName(_("Cases"))
        self.view.setMinimumHeight(260)
        self.view.setAlternatingRowColors(True)
        self.view.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        self.view.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        self.view.setSelectionMode(qt.QAbstractItemView.ExtendedSelection)
        self.view.setVerticalScrollMode(qt.QAbstractItemView.ScrollPerPixel)
        self.view.setHorizontalScrollMode(qt.QAbstractItemView.ScrollPerPixel)
        self.view.setWordWrap(False)
        self.view.setToolTip(_("Double-click a case to see all of it; choose several with Shift or Ctrl"))
        layout.addWidget(self.view, 1)
        self.note = qt.QLineEdit(page)
        self.note.setAccessibleName(_("Comment"))
        self.note.setPlaceholderText(_("Comment (optional)"))
        self.note.setToolTip(_("Kept in the history with what you do to the chosen cases"))
        self.buttons = {}
        for key, words, tip in (
            ("approved", _("Approve"), _("These cases are right")),
            ("flagged", _("Flag"), _("These cases need a second look")),
            ("excluded", _("Exclude"), _("Never use these cases as evidence; they stay in the pool")),
            ("delete", _("Delete"), _("Moves these cases to the trash, from which they can be restored")),
        ):
            button = self.buttons[key] = qt.QPushButton(words, page)
            button.setToolTip(tip)
            button.clicked.connect(lambda *_checked, key=key: self.act(key))
        layout.addWidget(self.note)
        _row(layout, *self.buttons.values())
        self.table = CaseTable(self.view, session, self._onSelection, onOpen)
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(200)
        self._timer.timeout.connect(self.query)
        self._onSelection()

    def cleanup(self) -> None:
        self._timer.stop()
        self.table.cleanup()

    @property
    def waiting(self) -> bool:
        """A filter has not been answered yet."""
        return self._timer.isActive() or self._asked > 0

    def setCounts(self, counts: dict) -> None:
        """Fills the filters with the values that occur; what was chosen stays."""
        self._counts, gone = counts, False
        for name, combo in self.combos.items():
            chosen = combo.itemData(combo.currentIndex)
            combo.blockSignals(True)
            combo.clear()
            combo.addItem(FACETS[name]() + _(": any"), ANY)
            for value, number in counts.get(name, {}).items():
                combo.addItem(f"{value or _('not known')} ({number})", value)
            combo.setCurrentIndex(max(0, combo.findData(chosen)) if chosen is not None else 0)
            combo.blockSignals(False)
            gone = gone or (chosen is not None and combo.findData(chosen) < 0)
        if gone and counts and self._subset is None:
            self.query()  # nothing is left of what was filtered for

    def clear(self) -> None:
        """No pool is shown."""
        self._asked, self._searching, self._subset = 0, False, None
        self._timer.stop()
        self.setCounts({})
        self.table.show([])
        self.found.setText("")

    def showOnly(self, ids: list[str], why: str) -> None:
        """Lists these cases, whatever the filters."""
        self._timer.stop()
        self._searching = False
        self._keep(ids)
        self.found.setText(why)

    def _keep(self, ids: list[str], scores: list[float] | None = None) -> None:
        """Lists these cases until something else is asked for."""
        self._subset, self._scores = list(ids), scores
        self.table.show(ids, scores)

    def showAll(self) -> None:
        self._subset, self._searching = None, False
        for widget in (*self.combos.values(), self.descriptor, self.words, self.least, self.most):
            widget.blockSignals(True)
        for combo in (*self.combos.values(), self.descriptor):
            combo.setCurrentIndex(0)
        for edit in (self.words, self.least, self.most):
            edit.setText("")
        for widget in (*self.combos.values(), self.descriptor, self.words, self.least, self.most):
            widget.blockSignals(False)
        self._onDescriptor()
        self.query()

    def _soon(self) -> None:
        self._subset, self._searching = None, False
        self._timer.start()

    def _onDescriptor(self) -> None:
        chosen = bool(self.descriptor.itemData(self.descriptor.currentIndex))
        for edit in (self.least, self.most):
            edit.setEnabled(chosen)
        self._soon()

    def _filters(self) -> dict | None:
        """Parameters of ``pool_query``; None, with a sentence said, where a limit is no number."""
        facets = {}
        for name, combo in self.combos.items():
            value = combo.itemData(combo.currentIndex)
            if value not in (ANY, None):
                facets[name] = value if value else [None]
        params = {"facets": facets}
        name = self.descriptor.itemData(self.descriptor.currentIndex)
        if name:
            try:
                limits = [float(e.text.replace(",", ".")) if e.text.strip() else None for e in (self.least, self.most)]
            except ValueError:
                self.found.setText(_("The limits must be numbers."))
                return None
            if limits != [None, None]:
                params["ranges"] = {name: limits}
        return params

    def query(self) -> None:
        """Asks for the cases that match the filters."""
        self._timer.stop()
        params = self._filters()
        if params is not None and self.session.folder:
            self._ask({**params, "words": self.words.text}, "")

    def findMeaning(self) -> None:
        """The cases whose rationale is closest to the words."""
        params = self._filters()
        if not self.words.text.strip():
            self.found.setText(_("Write what the lesion is like, for instance: sharp edge, bright rim."))
        elif params is not None and self.session.folder:
            self._timer.stop()
            self._long({**params, "meaning": self.words.text}, _("closest in meaning first"))

    def findAlike(self) -> None:
        """The cases that look like the slice in the red view."""
        array, spacing, modality = sliceShown()
        params = self._filters()
        if array is None:
            self.found.setText(_("Show an image in the red slice view first."))
            return
        if params is None or not self.session.folder:
            return
        if self.session.working:  # a search that has not begun yet would read the slice written for this one
            self.found.setText(_("Something else is running. Wait for it, or cancel it."))
            return
        path = os.path.join(self.session.worker.privateFolder(), "search.npy")
        np.save(path, array)
        self._timer.stop()
        self.session.ask("load_model", {}, None, lambda sentence: None)  # where it fails, the search below says so
        self._long({**params, "image": path, "spacing": spacing, "modality": modality}, _("most alike first"))

    def _long(self, params: dict, words: str) -> None:
        def shown(result: dict) -> None:
            if not self._searching:
                return  # something else has been asked for since
            self._searching = False
            self._show(result, words)
            self._subset, self._scores = result["ids"], result.get("similarity")

        def failed(sentence: str) -> None:
            if self._searching:
                self._searching = False
                self._failed(sentence)

        self.found.setText(_("Searching…"))
        if self.session.work("pool_query", params, shown, failed):
            self._searching = True
        else:
            self.found.setText(_("Something else is running. Wait for it, or cancel it."))

    def _ask(self, params: dict, words: str) -> None:
        self._asked += 1
        number = self._asked

        def shown(result: dict) -> None:
            if number == self._asked:  # else the filters have changed since
                self._asked, self._subset = 0, None
                self._show(result, words)

        def failed(sentence: str) -> None:
            self._asked = 0
            self._failed(sentence)

        self.session.ask("pool_query", params, shown, failed)

    def _show(self, result: dict, words: str) -> None:
        self.table.show(result["ids"], result.get("similarity"))
        count, total = len(result["ids"]), result["total"]
        if not count:
            text = _("No case matches.") if total else ""
        elif count == total and not words:
            text = _("All {total} cases").format(total=f"{total:,}") if total > 1 else _("One case")
        else:
            text = (_("The only case") if total == 1 else _("{count} of {total} cases")).format(count=f"{count:,}", total=f"{total:,}")
        self.found.setText(f"{text}, {words}" if words and count else text)

    def _failed(self, sentence: str) -> None:
        self.found.setText(sentence)

    def _onSelection(self) -> None:
        some = self.table.anySelected if hasattr(self, "table") else False
        for button in self.buttons.values():
            button.setEnabled(some and not self.session.readOnly)
        self.note.setEnabled(some and not self.session.readOnly)

    def again(self) -> None:
        """Something was changed: reads what is shown again."""
        if self._subset is not None:
            self.table.refresh()
        elif not self._searching:  # else what was searched for would be replaced
            self.query()

    def act(self, what: str) -> None:
        """Approve, flag, exclude or delete the chosen cases."""
        ids, said = self.table.selected(), self.note.text
        note = said.strip() or None
        if not ids:
            return
        if what == "delete":
            moving = _("Moving one case to the trash…") if len(ids) == 1 else _("Moving {count} cases to the trash…")
            self.say(moving.format(count=f"{len(ids):,}"))  # thousands take some seconds

            def deleted(result: dict) -> None:
                self._noteKept(said)
                self._deleted(ids, result["numbers"])

            self.session.change("pool_delete", {"ids": ids, "note": note}, deleted)
        else:

            def reviewed(_result: dict) -> None:
                self._noteKept(said)
                words = _("One case: {review}.") if len(ids) == 1 else _("{count} cases: {review}.")
                self.say(words.format(count=f"{len(ids):,}", review=what))

            self.session.change("pool_review", {"ids": ids, "review": what, "note": note}, reviewed)

    def _noteKept(self, said: str) -> None:
        """A comment is let go once it is kept: a change may be refused, and what was written meanwhile is another one."""
        if self.note.text == said:
            self.note.setText("")

    def _deleted(self, ids: list[str], numbers: list[int]) -> None:
        before, scores = self._subset, self._scores
        if before is not None:
            gone = set(ids)
            left = [n for n, i in enumerate(before) if i not in gone]
            self._keep([before[n] for n in left], None if scores is None else [scores[n] for n in left])
            left = self._subset

        def restored(_result: dict) -> None:
            if before is not None and self._subset is left:  # else something else is shown by now
                self._keep(before, scores)

        words = _("One case is in the trash.") if len(ids) == 1 else _("{count} cases are in the trash.")
        self.say(
            words.format(count=f"{len(ids):,}"),
            undo=lambda: self.session.change("pool_restore", {"numbers": numbers}, restored),
        )


def sliceShown():
    """The slice in the red view: (rows, columns) in display order, (row, column) spacing in mm or None, modality; all None without one."""
    from CERSSegmentLib import VolumeInput

    from cers.case import PlaneView

    logic = slicer.app.applicationLogic().GetSliceLogicByLayoutName("Red") if slicer.app.layoutManager() is not None else None
    volume = logic.GetBackgroundLayer().GetVolumeNode() if logic is not None else None
    if volume is None or VolumeInput.reject(volume):
        return None, None, None
    node, geometry = logic.GetSliceNode(), VolumeInput.worldGeometry(volume)
    matrix = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())
    plane = ("sagittal", "coronal", "axial")[int(np.argmax(np.abs(matrix[:3, 2])))]
    view = PlaneView(geometry, plane)
    return (
        np.ascontiguousarray(view.slices(slicer.util.arrayFromVolume(volume))[view.nearest(matrix[:3, 3])]),
        list(view.spacing) if VolumeInput.spacingKnown(volume) else None,
        VolumeInput.origin(volume)["modality"],
    )


def _row(layout, *widgets):
    line = qt.QHBoxLayout()
    for widget in widgets:
        line.addWidget(widget)
    layout.addLayout(line)
    return line
