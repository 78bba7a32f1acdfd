"""The list of what to label next: ranks a folder, loads its volumes one by one and remembers how far each of them is."""

from __future__ import annotations

import os
from collections.abc import Generator

import qt
import slicer
from slicer.i18n import tr as _

from cers.errors import InputError

from . import Correction, SegmentationResult, VolumeInput
from .LabelNextState import DONE, TODO, WORK, LabelNextState
from .Parameter import POOL_SETTING
from .SegmentationLogic import ERROR, GOOD, IDLE, INFO, WARNING, SegmentationLogic, modelOf, rejectFolders
from .Task import Call

FOLDER_SETTING = "CERS/LabelNextFolder"
ATTRIBUTE = "CERS.LabelNext"  # on a volume node that the list loaded: the volume's id
STATES = {TODO: lambda: _("to do"), WORK: lambda: _("● in work"), DONE: lambda: _("✔ finished")}
ROWS, ROW = 5, 24  # that the table shows at least, and the pixels of one


class LabelNext:
    """Controls the part "Label next" of the panel.

    Args:
        ui: the form's widgets. logic: runs one thing at a time. parameter(): the present parameters. say(kind, sentence).
    """

    def __init__(self, ui, logic: SegmentationLogic, parameter, say):
        self.ui, self.logic, self.parameter, self.say = ui, logic, parameter, say
        self.state: LabelNextState | None = None
        self.rows: list[dict] = []
        self.folder = ""
        self._key: tuple = ()
        self._chosen: dict[str, str] = {}  # by pool: a list that comes back has its choice back
        self._ranking, self._besides = False, ""
        table = ui.nextTable
        table.setColumnCount(3)
        table.setHorizontalHeaderLabels([_("Volume"), _("State"), _("Need")])
        header = table.horizontalHeader()
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        header.setSectionResizeMode(1, qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(2, qt.QHeaderView.ResizeToContents)
        table.verticalHeader().setVisible(False)
        table.verticalHeader().setDefaultSectionSize(ROW)
        table.setMinimumHeight((ROWS + 1) * ROW)
        table.setTextElideMode(qt.Qt.ElideMiddle)
        ui.nextFolder.currentPath = slicer.util.settingsValue(FOLDER_SETTING, "") or ""
        table.itemSelectionChanged.connect(lambda: self._onSelection())
        table.itemActivated.connect(lambda *_item: self.open(self.selected()))
        ui.nextFolder.currentPathChanged.connect(lambda *_path: self.update())
        ui.rankButton.clicked.connect(lambda *_checked: self.onRank())
        ui.backButton.clicked.connect(lambda *_checked: self.step(-1))
        ui.openButton.clicked.connect(lambda *_checked: self.open(self.selected()))
        ui.forwardButton.clicked.connect(lambda *_checked: self.step(1))
        ui.doneButton.clicked.connect(lambda *_checked: self.onDone())
        ui.nextButton.contentsCollapsed.connect(lambda *_collapsed: self.refresh())
        logic.stateChanged.connect(lambda _state: self.update())
        logic.added.connect(self._onAdded)
        self.update()

    # what is kept

    def refresh(self) -> None:
        """Shows the list of the present pool and annotator, as it is by now, where the part is open."""
        if not self.ui.nextButton.collapsed and self.parameter() is not None:
            self._read()
            self._fill()

    def _read(self) -> None:
        pool, annotator = key = (self.parameter().poolFolder, self.ui.annotatorEdit.text.strip())
        before, self._key = self._key, key
        if key == before and self.state is not None:
            self.state.read()
            return
        self.state = LabelNextState(pool, annotator) if pool and os.path.isdir(pool) else None
        ranking = self.state.ranking() if self.state else {}
        if (pool,) == before[:1] and not ranking:
            return  # another annotator goes on with the list that is shown
        self.folder, self.rows = str(ranking.get("folder") or ""), _rows(ranking)
        if self.folder and not self.ui.nextFolder.currentPath:
            self.ui.nextFolder.currentPath = self.folder
        self._besides = str(ranking.get("besides") or "")

    def remember(self, identifier: str, state: str, mask: str = "") -> bool:
        """Writes a state; says so where that fails."""
        try:
            self.state.set(identifier, state, mask)
        except InputError as error:
            self.say(WARNING, str(error))
            return False
        finally:
            self._fill()
        return True

    # rank

    def onRank(self) -> None:
        """Starts to rank, or stops it."""
        if self.logic.state != IDLE:
            self.logic.cancel()
            return
        self._read()
        parameter, folder = self.parameter(), os.path.abspath(self.ui.nextFolder.currentPath)
        problem = self._problem() or rejectFolders(parameter)
        if problem:
            self.say(ERROR, problem)
            return
        slicer.app.userSettings().setValue(FOLDER_SETTING, folder)
        slicer.app.userSettings().setValue(POOL_SETTING, parameter.poolFolder)
        self._ranking = True
        self.logic.run(self._rank(parameter, folder), lambda report: self._onRanked(folder, report))

    def _rank(self, parameter, folder: str) -> Generator[object, object, dict]:
        self.logic.progressed.emit(0.01, _("Looking for volumes"))
        yield
        yield from self.logic.prepare(modelOf(parameter), parameter.poolFolder)
        return (
            yield Call("next_rank", {"folder": folder, "modality": parameter.modality or None, "body_site": parameter.bodySite or None})
        )

    def _onRanked(self, folder: str, report: dict) -> None:
        self.folder = folder
        self.state.read()
        rows = [{"path": v["path"], "id": v["id"], "score": v["score"], "reason": v["reason"]} for v in report["volumes"]]
        listed = {r["path"] for r in rows}
        rows += [
            {"path": path, "id": identifier, "score": 0.0, "reason": report["labelled"].get(path, "")}
            for path, identifier in sorted(report["ids"].items())
            if path not in listed and self.state.entry(identifier).state != TODO
        ]
        # stable: within both halves the order of the ranking stays
        self.rows = sorted(rows, key=lambda r: self.state.entry(r["id"]).state == DONE)
        besides = []
        if report["labelled"]:
            count = len(report["labelled"])
            besides.append(_("One is labelled already.") if count == 1 else _("{count} are labelled already.").format(count=count))
        if report["faults"]:
            names = sorted(report["faults"])
            besides.append(_("Not readable: {names}.").format(names=", ".join(names[:3]) + (" …" if len(names) > 3 else "")))
        self._besides = " ".join(besides)
        self.ui.nextSummary.setToolTip("\n".join(f"{name}: {why}" for name, why in sorted(report["faults"].items())[:20]))
        try:
            self.state.keepRanking({"folder": folder, "rows": self.rows, "besides": self._besides})
        except InputError as error:
            self.say(WARNING, str(error))
        else:
            self.say(GOOD, _("Ranked. Choose a volume and press Open."))
        self._fill()
        if self.rows:
            self.ui.nextTable.selectRow(0)

    # open

    def step(self, by: int) -> None:
        """Opens the next or previous volume of the list."""
        here = self.selected()
        if here is None:
            self.open(0 if self.rows else None)
        elif 0 <= here + by < len(self.rows):
            self.ui.nextTable.selectRow(here + by)
            self.open(here + by)

    def open(self, row: int | None) -> None:
        """Loads a volume of the list, with the mask that was saved of it, and makes it the input; one that is loaded already is shown."""
        if row is None or self.logic.state != IDLE or self.state is None:
            return
        entry = self.rows[row]
        identifier, path = entry["id"], os.path.join(self.folder, *entry["path"].split("/"))
        volume = _loaded(identifier)
        if volume is None:
            if not os.path.exists(path):
                self.say(ERROR, _("'{path}' is no longer there. Rank the folder again.").format(path=path))
                return
            try:
                volume = _load(path)
            except RuntimeError:
                self.say(ERROR, _("'{path}' could not be loaded. Open it with Slicer's own Add Data to see why.").format(path=path))
                return
            volume.SetAttribute(ATTRIBUTE, identifier)
        segmentation = Correction.resultOf(volume)
        self._show(volume, segmentation)
        saved = "" if segmentation is not None else self.state.mask(identifier)
        if self.state.entry(identifier).state == TODO:
            self.remember(identifier, WORK)
        if saved:
            self.logic.run(self._reopen(volume, saved), lambda made: self._onReopened(volume, made), [volume])
        elif not VolumeInput.reject(volume):
            self.say(
                INFO,
                _("{name} is open. Press Segment, correct the result, then press Add to pool.").format(name=volume.GetName())
                if segmentation is None
                else _("{name} is open with its result, as you left it.").format(name=volume.GetName()),
            )

    def _reopen(self, volume, path: str) -> Generator[object, object, object]:
        self.logic.progressed.emit(0.1, _("Reading the saved mask"))
        yield
        geometry = VolumeInput.worldGeometry(volume)
        answer = yield Call("next_mask", {"path": path, "ijkToRAS": geometry.ijkToRAS.tolist(), "shape": [int(n) for n in geometry.shape]})
        labelmap, box = yield from SegmentationResult.read(answer["labelmap"])
        return (yield from SegmentationResult.make(volume, labelmap, box, {int(v): name for v, name in answer["labels"].items()}))

    def _onReopened(self, volume, segmentation) -> None:
        self._show(volume, segmentation)
        self.say(GOOD, _("{name} is open with the mask that was saved. Add to pool keeps a further version.").format(name=volume.GetName()))

    def _show(self, volume, segmentation) -> None:
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            if node.GetDisplayNode() is not None and Correction.volumeOf(node) is not None and _idOf(Correction.volumeOf(node)):
                node.SetDisplayVisibility(node is segmentation)  # results of the other volumes of the list do not lie over this one
        self.ui.outputSelector.setCurrentNode(segmentation)
        self.ui.inputSelector.setCurrentNode(volume)

    # finished

    def maskPath(self, volume) -> str:
        """Where the whole mask of a volume of the list goes when it is added to the pool, '' for another volume."""
        if not _idOf(volume):
            return ""
        self._read()
        return self.state.newMask(_idOf(volume)) if self.state is not None else ""

    def _onAdded(self, volume, kept: str) -> None:
        if kept and self.state is not None and _idOf(volume):
            self.remember(_idOf(volume), DONE, kept)

    def onDone(self) -> None:
        """Marks the chosen volume as finished without a mask, for instance because it shows no lesion; or puts it back."""
        row = self.selected()
        if row is not None and self.state is not None:
            done = self.state.entry(self.rows[row]["id"]).state == DONE
            self.remember(self.rows[row]["id"], TODO if done else DONE)

    # table

    def selected(self) -> int | None:
        """The chosen row."""
        rows = [index.row() for index in self.ui.nextTable.selectionModel().selectedRows()]
        return rows[0] if rows and rows[0] < len(self.rows) else None

    def _fill(self) -> None:
        table, chosen = self.ui.nextTable, self._chosen.get(self._key[0])
        blocked = table.blockSignals(True)
        try:
            table.setRowCount(len(self.rows))
            for n, row in enumerate(self.rows):
                entry = self.state.entry(row["id"]) if self.state else None
                words = STATES[entry.state if entry else TODO]()
                if entry and entry.state != TODO and entry.who != self.state.annotator:
                    words = f"{words} ({entry.who or _('someone')})"
                for column, text in enumerate((f"{n + 1}. {row['path']}", words, f"{float(row.get('score') or 0):.2f}")):
                    item = qt.QTableWidgetItem(text)
                    item.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled)
                    item.setToolTip(row["path"] if column == 0 else row.get("reason", ""))
                    table.setItem(n, column, item)
        finally:
            table.blockSignals(blocked)
        self._summarise()
        here = next((n for n, row in enumerate(self.rows) if row["id"] == chosen), None)
        if here is not None:
            table.selectRow(here)
        self._onSelection()

    def _summarise(self) -> None:
        done = sum(bool(self.state) and self.state.entry(row["id"]).state == DONE for row in self.rows)
        count = len(self.rows) - done
        words = [(_("1 volume to label.") if count == 1 else _("{count} volumes to label.")).format(count=count)]
        words += [_("{count} finished.").format(count=done)] * bool(done) + [self._besides] * bool(self._besides)
        self.ui.nextSummary.setText(" ".join(words) if self.folder else "")

    def _onSelection(self) -> None:
        row = self.selected()
        if row is not None:
            self._chosen[self._key[0]] = self.rows[row]["id"]
        self.ui.nextReason.setText(self.rows[row].get("reason", "") if row is not None else "")
        self.ui.nextReason.setVisible(row is not None)
        self.update()

    def _problem(self) -> str:
        """Why the folder cannot be ranked, '' if nothing speaks against it."""
        parameter, folder = self.parameter(), self.ui.nextFolder.currentPath
        if parameter is None or not parameter.poolFolder:
            return _("Choose a pool under Inputs: the list is ranked by what helps that pool most.")
        if not folder or not os.path.isdir(folder):
            return _("Choose the folder with the volumes that are not labelled yet.")
        return ""

    def update(self) -> None:
        """Enables what can be done now."""
        idle, row, problem = self.logic.state == IDLE, self.selected(), self._problem()
        self._ranking = self._ranking and not idle
        ui, count = self.ui, len(self.rows)
        ui.rankButton.setText(_("Cancel") if self._ranking else _("Rank"))
        ui.rankButton.setEnabled(self._ranking or (idle and not problem))
        ui.rankButton.setToolTip(problem or _("Looks at each volume once and lists first what helps the pool most; a second time is quick"))
        for widget in (ui.nextTable, ui.nextReason, ui.stepFrame):
            widget.setVisible(bool(count) and (widget is not ui.nextReason or row is not None))
        if not self.folder:
            ui.nextSummary.setText(problem)
        ui.nextSummary.setVisible(bool(ui.nextSummary.text))
        ui.backButton.setEnabled(idle and row is not None and row > 0)
        ui.openButton.setEnabled(idle and row is not None)
        ui.forwardButton.setEnabled(idle and bool(count) and (row is None or row + 1 < count))
        done = row is not None and self.state is not None and self.state.entry(self.rows[row]["id"]).state == DONE
        ui.doneButton.setEnabled(idle and row is not None)
        ui.doneButton.setText(_("Not finished") if done else _("Finished"))


def _rows(ranking: dict) -> list[dict]:
    """The rows of a ranking that was kept; what somebody broke by hand is left out."""
    rows = ranking.get("rows")
    return [r for r in rows if isinstance(r, dict) and {"path", "id", "reason"} <= set(r)] if isinstance(rows, list) else []


def _idOf(volume) -> str:
    return (volume.GetAttribute(ATTRIBUTE) or "") if volume is not None else ""


def _loaded(identifier: str):
    """The volume node of the scene that the list loaded for a volume, None if there is none."""
    return next((n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if _idOf(n) == identifier), None)


def _load(path: str):
    """A volume node from a file or a folder of DICOM files."""
    properties = {}
    if os.path.isdir(path):
        files = sorted(os.path.join(root, name) for root, _folders, names in os.walk(path) for name in names)
        if not files:
            raise RuntimeError(path)
        path, properties = files[0], {"singleFile": False}
    return slicer.util.loadVolume(path, properties)
