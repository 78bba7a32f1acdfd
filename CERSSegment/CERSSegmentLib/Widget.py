"""The module's panel: ties the .ui form to parameters, logic, evidence and board."""

from __future__ import annotations

import os
import re
import time

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from cers.errors import CersError, InputError

from . import Correction, EvidenceRecord, InstallLogic, SegmentationResult, VolumeInput
from .EvidenceBoard import EvidenceBoard
from .EvidenceController import EvidenceController
from .EvidenceWidget import EvidenceWidget
from .FieldNames import nameFields
from .LabelNext import LabelNext
from .Parameter import POOL_SETTING, Parameter, modelInUse, parameterNode
from .Said import Said
from .SegmentationLogic import CANCELLING, ERROR, GOOD, IDLE, INFO, WARNING, SegmentationLogic, rejectAdding, rejectFolders

DEVICES = (
    ("auto", lambda: _("Automatic")),
    ("cpu", lambda: _("Processor (CPU)")),
    ("cuda", lambda: _("NVIDIA GPU (CUDA)")),
    ("mps", lambda: _("Apple GPU (MPS)")),
)
PLANES = (
    ("auto", lambda: _("Automatic")),
    ("acquisition", lambda: _("Plane of acquisition (quick)")),
    ("three", lambda: _("Three planes, fused (invents less)")),
)
MODALITIES = (
    ("", lambda: _("As in the image")),
    ("MR", lambda: "MR"),
    ("CT", lambda: "CT"),
    ("US", lambda: "US"),
    ("MG", lambda: "MG"),
    ("PT", lambda: "PT"),
)
DOUBLE_CLICK = 0.5  # seconds in which a second press of Segment belongs to the first, and does not stop the run
BODY_SITES = ("", "brain", "head and neck", "breast", "lung", "liver", "pancreas", "kidney", "prostate", "bone")


class Widget(VTKObservationMixin):
    """Controls the form.

    Args:
        form: the loaded .ui, with its scene set. ui: its widgets by name. logic: for tests; made when not given.
    """

    def __init__(self, form, ui, logic: SegmentationLogic | None = None):
        VTKObservationMixin.__init__(self)
        self.form, self.ui, self.said = form, ui, Said(ui.statusLabel)
        self.logic = logic or SegmentationLogic()
        self.controller = EvidenceController(self.logic)
        self.evidence = EvidenceWidget(form, self.controller)
        self.board = EvidenceBoard(self.controller)
        self.parameter: Parameter | None = None
        self.keeper = EvidenceRecord.Keeper()
        self.shortcuts: list = []
        self._loading = False
        self._pressed = 0.0  # when Segment was pressed last
        self._results: dict = {}  # segmentation node -> evidence of its result, and of the one that the previous-button brings back
        self._output = None  # the segmentation whose evidence is shown
        self._told = ""  # what the last run said of its result
        self.reportPath = self._askReportPath  # replaced in tests
        ui.evidenceButton.layout().addWidget(self.evidence.widget)
        self._fillChoices()
        self.labelNext = LabelNext(ui, self.logic, lambda: self.parameter, self.say)
        nameFields(form)
        self._connect()
        self._onScene()
        self._onState(self.logic.state)
        self.say(INFO, "")
        ui.installFrame.setVisible(False)

    # set-up

    def _fillChoices(self) -> None:
        for combo, entries in ((self.ui.deviceCombo, DEVICES), (self.ui.planesCombo, PLANES), (self.ui.modalityCombo, MODALITIES)):
            for value, name in entries:
                combo.addItem(name(), value)
        for site in BODY_SITES:
            self.ui.bodySiteCombo.addItem(site)
        for edit, words in (
            (self.ui.bodySiteCombo.lineEdit(), _("As in the image")),
            (self.ui.poolPath.comboBox().lineEdit(), _("None: without references")),
        ):
            edit.setPlaceholderText(words)
        self._showModel()
        self._showAnnotator()

    def _showAnnotator(self) -> None:
        """Who is at work: the knowledge pool asks for it, too."""
        self.ui.annotatorEdit.setText(slicer.util.settingsValue(Correction.ANNOTATOR_SETTING, "") or "")

    def _showModel(self) -> None:
        """Names the model that serves where none is chosen here."""
        try:
            folder, name = modelInUse()
            words = _("In use: {name}").format(name=name) if folder else _("The model that comes with CERS: {name}").format(name=name)
        except CersError as error:
            words = str(error)
        edit = self.ui.modelPath.comboBox().lineEdit()
        edit.setPlaceholderText(words)
        edit.setToolTip(words)  # the field is narrow

    def _connect(self) -> None:
        ui, store = self.ui, lambda *_arguments: self._store()
        for signal in (
            ui.inputSelector.currentNodeIDChanged,
            ui.outputSelector.currentNodeIDChanged,
            ui.textEdit.textChanged,
            ui.poolPath.currentPathChanged,
            ui.modelPath.currentPathChanged,
            ui.deviceCombo.currentTextChanged,
            ui.planesCombo.currentTextChanged,
            ui.modalityCombo.currentTextChanged,
            ui.bodySiteCombo.currentTextChanged,
            ui.threadsSpin.valueChanged,
        ):
            signal.connect(store)
        ui.segmentButton.clicked.connect(lambda *_arguments: self.onSegment())
        ui.previousButton.clicked.connect(lambda *_arguments: self.onPrevious())
        ui.correctButton.clicked.connect(lambda *_arguments: self.onCorrect())
        ui.addButton.clicked.connect(lambda *_arguments: self.onAdd())
        ui.annotatorEdit.editingFinished.connect(
            lambda: slicer.app.userSettings().setValue(Correction.ANNOTATOR_SETTING, ui.annotatorEdit.text.strip())
        )
        for signal in (ui.annotatorEdit.textChanged, ui.nextFolder.currentPathChanged, ui.nextTable.itemSelectionChanged):
            signal.connect(lambda *_arguments: self._judge())
        ui.installButton.clicked.connect(lambda *_arguments: self.onInstall())
        ui.wheelsButton.clicked.connect(lambda *_arguments: self.onInstallOffline())
        self.logic.stateChanged.connect(self._onState)
        self.logic.progressed.connect(self._onProgress)
        self.logic.said.connect(self.say)
        self.logic.finished.connect(self._onFinished)
        self.logic.sliceChanged.connect(lambda _key: self._keepEvidence())
        self.logic.kept.connect(self._onKept)
        self.logic.missingPackages.connect(self._updateInstall)
        self.evidence.boardRequested.connect(self._toggleBoard)
        self.evidence.exportRequested.connect(self.onExport)
        self.board.shownChanged.connect(lambda shown: self.evidence.board.setChecked(shown))
        scene = slicer.mrmlScene
        for event, slot in (
            (scene.StartCloseEvent, self._onSceneClose),
            (scene.EndCloseEvent, self._onSceneClosed),
            (scene.EndImportEvent, self._onScene),
            (scene.EndRestoreEvent, self._onScene),
            (scene.NodeRemovedEvent, self._onNodeRemoved),
        ):
            self.addObserver(scene, event, slot)

    def enter(self) -> None:
        """The user opened the module."""
        self._updateInstall()
        self._showModel()
        self._showAnnotator()
        if not self.shortcuts:
            window = slicer.util.mainWindow() or self.form
            for keys, step in (("N", 1), ("Shift+N", -1)):
                shortcut = qt.QShortcut(qt.QKeySequence(keys), window)
                shortcut.activated.connect(lambda step=step: self.controller.step(step))
                self.shortcuts.append(shortcut)
        self._enableShortcuts(True)
        self.controller.changed.emit()  # the result may have been changed by hand meanwhile

    def exit(self) -> None:
        """The user left the module: the layout is given back, a run goes on."""
        self._enableShortcuts(False)
        self.board.hide()

    def cleanup(self) -> None:
        """The module is destroyed."""
        self._enableShortcuts(False)
        self.removeObservers()
        self.keeper.finish()
        self.controller.observeViews(False)
        self.board.cleanup()
        self.logic.shutdown()

    def _enableShortcuts(self, on: bool) -> None:
        for shortcut in self.shortcuts:
            shortcut.setEnabled(on)

    # parameters

    def _onScene(self, *_arguments) -> None:
        """A scene was opened, closed or imported: takes over its parameters."""
        node = parameterNode()
        if self.parameter is None or self.parameter.node is not node:
            if self.parameter is not None and self.hasObserver(self.parameter.node, "ModifiedEvent", self._load):
                self.removeObserver(self.parameter.node, "ModifiedEvent", self._load)
            self.parameter = Parameter(node)
            self.addObserver(node, "ModifiedEvent", self._load)
            if not node.GetParameterCount():
                self._beginWithPool()
        self._load()
        self._restoreEvidence()

    def _onSceneClosed(self, *_arguments) -> None:
        """The scene is empty. A singleton outlives it, reset: it begins like a new one."""
        self._onScene()
        if not self.parameter.poolFolder:
            self._beginWithPool()
            self.labelNext.refresh()

    def _beginWithPool(self) -> None:
        self.parameter.poolFolder = slicer.util.settingsValue(POOL_SETTING, "") or ""

    def _load(self, *_arguments) -> None:
        """Parameter node to form."""
        if self._loading or self.parameter is None:
            return
        self._loading = True
        try:
            ui, p = self.ui, self.parameter
            ui.inputSelector.setCurrentNode(p.inputVolume)
            ui.outputSelector.setCurrentNode(p.outputSegmentation)
            for widget, text in ((ui.textEdit, p.text), (ui.bodySiteCombo.lineEdit(), p.bodySite)):
                if widget.text != text:
                    widget.setText(text)
            for widget, path in ((ui.poolPath, p.poolFolder), (ui.modelPath, p.modelFolder)):
                if widget.currentPath != path:
                    widget.currentPath = path
            for combo, value in ((ui.deviceCombo, p.device), (ui.planesCombo, p.planes), (ui.modalityCombo, p.modality)):
                combo.setCurrentIndex(max(0, combo.findData(value)))
            ui.threadsSpin.setValue(p.threads)
        finally:
            self._loading = False
        self.labelNext.refresh()
        self._onOutput()
        self._judge()
        self._updateButtons()

    def _store(self) -> None:
        """Form to parameter node."""
        if self._loading or self.parameter is None:
            return
        ui, p = self.ui, self.parameter
        before, pool = p.inputVolume, p.poolFolder
        self._loading = True
        modifying = p.node.StartModify()
        try:
            p.inputVolume, p.outputSegmentation = ui.inputSelector.currentNode(), ui.outputSelector.currentNode()
            p.text, p.bodySite = ui.textEdit.text, ui.bodySiteCombo.currentText.strip()
            p.poolFolder, p.modelFolder = ui.poolPath.currentPath or "", ui.modelPath.currentPath or ""
            p.device, p.planes, p.modality = (c.itemData(c.currentIndex) for c in (ui.deviceCombo, ui.planesCombo, ui.modalityCombo))
            p.threads = ui.threadsSpin.value
        finally:
            p.node.EndModify(modifying)
            self._loading = False
        if p.inputVolume is not before and self.logic.state == IDLE:
            self._onInput()
        if p.poolFolder != pool:
            self.labelNext.refresh()
        self._onOutput()
        self._judge()
        self._updateButtons()

    def _onInput(self) -> None:
        """Chooses the result of the volume chosen, so that another volume's is not written over, and says what speaks against it."""
        volume, output = self.parameter.inputVolume, self.parameter.outputSegmentation
        mine = output is None or bool(SegmentationResult.ownSegments(output))  # an empty one, or a person's, was chosen on purpose
        if volume is not None and mine and Correction.volumeOf(output) is not volume:
            self.parameter.outputSegmentation = Correction.resultOf(volume)
        problem = VolumeInput.reject(volume) if volume is not None else ""
        self.say(ERROR if problem else INFO, problem or VolumeInput.note(volume))

    # actions

    def onSegment(self) -> None:
        """The one button: starts, or stops what runs."""
        if self.logic.state != IDLE:
            if time.monotonic() - self._pressed >= DOUBLE_CLICK:
                self.logic.cancel()
            return
        self._pressed = time.monotonic()
        if self.parameter.poolFolder:
            slicer.app.userSettings().setValue(POOL_SETTING, self.parameter.poolFolder)
        self.logic.segment(self.parameter)

    def onPrevious(self) -> None:
        """Swaps the result with the one before."""
        segmentation = self.parameter.outputSegmentation
        if SegmentationResult.restorePrevious(segmentation):
            current, earlier = self._results.get(segmentation, (None, None))
            self._results[segmentation] = earlier, current
            self.controller.setModel(earlier if earlier is not None and earlier.alive else None)
            if self.controller.model is not None:
                self._keepEvidence()
            else:
                self.keeper.forget(segmentation)
            self.say(GOOD, _("The previous result is back. Press the button again to return to the newer one."))

    def _onKept(self) -> None:
        """What the button brings back is now the same run's result, as a person had changed it."""
        model = self.controller.model
        self._results[model.segmentation] = model, model

    def onCorrect(self) -> None:
        """Opens the Segment Editor on the result."""
        segmentation = self.parameter.outputSegmentation
        problem = Correction.reject(segmentation)
        if not problem and not Correction.openEditor(segmentation):
            problem = _("This application has no Segment Editor.")
        if problem:
            self.say(ERROR, problem)
        else:
            self.say(INFO, _("Correct the result in the Segment Editor, then come back to CERS Segment and press Add to pool."))

    def onAdd(self) -> None:
        """Keeps the result, as it is now, as reference cases. The slice in view and everything else stay as they are."""
        if self.parameter.poolFolder:
            slicer.app.userSettings().setValue(POOL_SETTING, self.parameter.poolFolder)
        keep = self.labelNext.maskPath(Correction.volumeOf(self.parameter.outputSegmentation))
        self.logic.addToPool(self.parameter, self.controller.model, self.ui.annotatorEdit.text, keep)

    def onExport(self) -> None:
        """Asks where to and writes the report."""
        path = self.reportPath()
        if path:
            self.logic.exportReport(self.controller.model, path)

    def onInstall(self) -> None:
        """The one install step, after the user's consent."""
        self._install("")

    def onInstallOffline(self) -> None:
        """The same from a folder of wheel files."""
        folder = qt.QFileDialog.getExistingDirectory(self.form, _("Folder with wheel files"))
        if folder:
            self._install(folder)

    def _install(self, folder: str) -> None:
        self.ui.installFrame.setEnabled(False)
        self.logic.worker.close()  # Windows replaces no file that is in use
        try:
            done = InstallLogic.install(InstallLogic.missing(), folder, log=lambda words: self._sayNow(INFO, words))
            left = InstallLogic.missing()
            if done and left:
                words = _("Not installed: {names}. Try again; if that does not help, the Python console shows why.")
                self.say(ERROR, words.format(names=InstallLogic.describe(left)))
            elif done:
                self.logic.worker.stop()
                self.say(GOOD, _("The packages are installed. Press Segment to go on."))
        except InstallLogic.InstallError as error:
            self.say(ERROR, str(error))
        finally:
            self.ui.installFrame.setEnabled(True)
        self._updateInstall()

    def _toggleBoard(self) -> None:
        (self.board.hide if self.board.shown else self.board.show)()
        self.evidence.board.setChecked(self.board.shown)

    def _askReportPath(self) -> str:
        name = self.controller.model.volume.GetName() if self.controller.model and self.controller.model.volume else "report"
        name = re.sub(r'[\\/:*?"<>|]', "_", name)  # names of series have slashes
        place = os.path.join(os.path.expanduser("~"), f"{name} evidence.html")
        return qt.QFileDialog.getSaveFileName(self.form, _("Export report"), place, "HTML (*.html)")

    # what happens

    def say(self, kind: str, sentence: str) -> None:
        """Shows one sentence below the button."""
        self.said.say(kind, sentence)

    def _judge(self) -> None:
        """Something was changed: an error that it was about goes, one that still holds stays."""
        p, annotator = self.parameter, self.ui.annotatorEdit.text
        if self.logic.state == IDLE and p is not None:
            self.said.judge(lambda: {VolumeInput.reject(p.inputVolume), rejectFolders(p), rejectAdding(p, annotator)})

    def _sayNow(self, kind: str, sentence: str) -> None:
        self.say(kind, sentence)
        slicer.app.processEvents()

    def _onProgress(self, fraction: float, words: str) -> None:
        self.ui.progressBar.setValue(round(1000 * fraction))
        self.say(INFO, words + "…")

    def _onState(self, state: str) -> None:
        self.ui.segmentButton.setText({IDLE: _("Segment"), CANCELLING: _("Stopping…")}.get(state, _("Cancel")))
        self.ui.progressBar.setVisible(state != IDLE)
        self.ui.progressBar.setValue(0)
        if state == CANCELLING:
            self.say(INFO, _("Stopping…"))
        for widget in (self.ui.inputsButton, self.ui.advancedButton):
            widget.setEnabled(state == IDLE)
        if state == IDLE and self.parameter is not None:
            self._onOutput()  # a script may have chosen another during the run
        self._updateButtons()

    def _onFinished(self, model) -> None:
        earlier, _before = self._results.get(model.segmentation, (None, None))
        self._results[model.segmentation] = model, earlier
        self._told = self.ui.statusLabel.text
        self._output = self.parameter.outputSegmentation = model.segmentation
        self.ui.evidenceButton.collapsed = False
        self._updateButtons()
        self._keepEvidence()

    def _keepEvidence(self) -> None:
        """Has the evidence saved with the scene."""
        if self.controller.model is not None:
            self.keeper.keep(self.controller.model)

    def _onOutput(self) -> None:
        """Shows the evidence of another segmentation that was chosen."""
        if self.parameter.outputSegmentation is not self._output and not slicer.mrmlScene.IsBatchProcessing():
            self._forgetTold()
            self._restoreEvidence()

    def _forgetTold(self) -> None:
        """Takes away what was said of a result that is not the one chosen any more."""
        if self._told and self.ui.statusLabel.text == self._told:
            self.say(INFO, "")

    def _restoreEvidence(self) -> None:
        """Shows the evidence of the segmentation chosen: of a run, or as it came with a scene; none where none is known."""
        if self.logic.state != IDLE:
            return
        self._output = segmentation = self.parameter.outputSegmentation
        model, _earlier = self._results.get(segmentation, (None, None))
        if model is None:
            try:
                model = EvidenceRecord.restore(segmentation)
            except InputError as error:
                self.say(WARNING, str(error))
        if model is not None and not model.alive:
            model = None
        if model is self.controller.model:
            return
        self.controller.setModel(model, move=False)
        if model is not None:
            self._results.setdefault(segmentation, (model, None))
            self.ui.evidenceButton.collapsed = False
            if model.pool and not os.path.isdir(model.pool):
                words = _("The pool '{path}' of this evidence is not there, so its references are shown without pictures.")
                self.say(WARNING, words.format(path=model.pool))

    def _onSceneClose(self, *_arguments) -> None:
        self.logic.cancel(_("The scene was closed, so the run was stopped."))
        self._results, self._output = {}, None
        self._forgetTold()
        self.keeper.stop()
        self.controller.setModel(None)

    def _onNodeRemoved(self, *_arguments) -> None:
        self.logic.checkNodes()
        self._results = {node: models for node, models in self._results.items() if node.GetScene() is not None}
        if self._output is not None and self._output.GetScene() is None:
            self._forgetTold()
        if self.controller.model is not None and not self.controller.model.alive:
            self.controller.setModel(None)
        qt.QTimer.singleShot(0, EvidenceRecord.forgetOrphans)
        self._updateButtons()

    def _updateButtons(self) -> None:
        if self.parameter is None:
            return
        state, volume = self.logic.state, self.parameter.inputVolume
        problem = VolumeInput.reject(volume)
        self.ui.segmentButton.setEnabled(state != CANCELLING and (state != IDLE or not problem))
        self.ui.segmentButton.setToolTip(problem if state == IDLE and problem else _("Segment the volume and show the evidence"))
        self.ui.previousButton.setVisible(SegmentationResult.previous(self.parameter.outputSegmentation) is not None)
        self.ui.previousButton.setEnabled(state == IDLE)
        problem = Correction.reject(self.parameter.outputSegmentation)
        self.ui.correctFrame.setVisible(
            self.parameter.outputSegmentation is not None and bool(SegmentationResult.ownSegments(self.parameter.outputSegmentation))
        )
        for button, words in (
            (self.ui.correctButton, _("Opens the Segment Editor on this result")),
            (self.ui.addButton, _("Keeps this result, as it is now, as reference cases in the pool")),
        ):
            button.setEnabled(state == IDLE and not problem)
            button.setToolTip(problem or words)

    def _updateInstall(self) -> None:
        missing = InstallLogic.missing()
        self.ui.installFrame.setVisible(bool(missing))
        if missing:
            self.ui.installLabel.setText(
                _("CERS needs some Python packages that this Slicer does not have yet: {names}.").format(
                    names=InstallLogic.describe(missing)
                )
            )
