"""The page of training: a form for a new run, the runs of a folder, and the chosen run in detail."""

from __future__ import annotations

from html import escape

import ctk
import qt
from CERSSegmentLib import InstallLogic
from slicer.i18n import tr as _

from cers.errors import CersError, InputError
from cers.training import runs

from . import TrainingLaunch
from .Pages import wrap
from .PoolSession import PoolSession
from .TrainingCheck import TrainingCheck, batchWords, html
from .TrainingForm import TrainingForm
from .TrainingRuns import LOOK_S, TrainingRuns
from .TrainingRunView import TrainingRunView


class TrainingPage:
    """Args: say(sentence, wrong): a line for the user."""

    def __init__(self, page, session: PoolSession, say):
        self.page, self.session, self.say = page, session, say
        self._problem = ""  # the error that is shown
        self._checked: dict | None = None  # settings that were checked, with what came of it
        self._report: dict | None = None
        self._startAfter = False
        layout = qt.QVBoxLayout(page)
        layout.setContentsMargins(4, 6, 4, 4)
        self._setUpNew(layout)
        self._setUpRuns(layout)
        self.view = TrainingRunView(page, layout, self.onSmaller)
        layout.addStretch(1)
        self.check = TrainingCheck(self._onStage, self._onReport, self._onCheckFailed)
        self.form.changed.connect(self._onForm)
        self.list.selected.connect(self._onSelected)
        self.list.updated.connect(self._showRun)
        self.list.wrong.connect(lambda sentence: self.say(sentence, wrong=bool(sentence)))
        self.confirm = self._ask
        self._timer = qt.QTimer()
        self._timer.setInterval(int(1000 * LOOK_S))
        self._timer.timeout.connect(self._onTimer)
        self._timer.start()
        self.root.currentPath = TrainingLaunch.runsFolder()
        self.list.setRoot(self.root.currentPath)
        self.root.currentPathChanged.connect(lambda *_path: self._onRoot())
        self.new.collapsed = bool(self.list.runs)
        for name, run in self.list.runs.items():
            if run.live:  # attach to what goes on
                self.list.select(name)
        self._onForm()
        self._onSelected()

    def _setUpNew(self, layout) -> None:
        self.new = ctk.ctkCollapsibleButton(self.page)
        self.new.text = _("New training")
        layout.addWidget(self.new)
        outer, box = qt.QVBoxLayout(self.new), qt.QWidget(self.new)
        outer.addWidget(box)  # folded as one, so that what is hidden within stays so
        inner = qt.QVBoxLayout(box)
        inner.setContentsMargins(0, 0, 0, 0)
        self.form = TrainingForm(inner, box)
        line = qt.QHBoxLayout()
        inner.addLayout(line)
        self.checkButton, self.startButton = qt.QPushButton(_("Check"), box), qt.QPushButton(_("Start"), box)
        self.checkButton.setToolTip(
            _("Counts the pictures, looks for leaks, and tries some steps to see how long they take; trains nothing")
        )
        self.startButton.setToolTip(_("Checks, then trains in the background; Slicer may be closed meanwhile"))
        self.checkButton.clicked.connect(lambda *_checked: self.onCheck())
        self.startButton.clicked.connect(lambda *_checked: self.onStart())
        line.addWidget(self.checkButton)
        line.addWidget(self.startButton, 1)
        self.result = qt.QLabel(box)
        wrap(self.result)
        self.result.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
        inner.addWidget(self.result)
        self.apply = qt.QPushButton(_("Use a smaller batch"), box)
        self.apply.setToolTip(_("Puts the smaller batch into the form"))
        self.apply.clicked.connect(lambda *_checked: self.onApply())
        self.apply.setVisible(False)
        inner.addWidget(self.apply)

    def _setUpRuns(self, layout) -> None:
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.root = ctk.ctkPathLineEdit(self.page)
        label = qt.QLabel(_("Runs in"), self.page)
        label.setBuddy(self.root)
        line.addWidget(label)
        self.root.filters = ctk.ctkPathLineEdit.Dirs
        self.root.sizeAdjustPolicy = ctk.ctkPathLineEdit.AdjustToMinimumContentsLength
        self.root.minimumContentsLength = 8
        self.root.toolTip = _("The folder in which runs are kept, each in a folder of its own; it is made with the first run")
        line.addWidget(self.root, 1)
        self.list = TrainingRuns(self.page)
        layout.addWidget(self.list.table)
        grid = qt.QGridLayout()  # all in one row do not fit into a narrow panel
        layout.addLayout(grid)
        self.stop, self.resume, self.duplicate, self.open, self.delete = buttons = [
            qt.QPushButton(words, self.page) for words in (_("Stop"), _("Resume"), _("Duplicate"), _("Open folder"), _("Delete…"))
        ]
        for button, tip, slot in zip(
            buttons,
            (
                _("Finishes the step, saves, and ends; Resume goes on from there"),
                _("Goes on from the last checkpoint"),
                _("Fills the form above with the settings of this run"),
                _("Shows the run's folder in the file manager"),
                _("Deletes the run with its checkpoints and its model"),
            ),
            (self.onStop, self.onResume, self.onDuplicate, self.onOpen, self.onDelete),
        ):
            button.setToolTip(tip)
            button.clicked.connect(lambda *_checked, slot=slot: slot())
            grid.addWidget(button, grid.count() // 3, grid.count() % 3)

    # life of the panel

    def cleanup(self) -> None:
        """The panel goes away; runs go on."""
        self._timer.stop()
        self.check.close()
        self.view.cleanup()

    def setPool(self, folder: str, labels: list[str]) -> None:
        """Another pool is open, "" = none."""
        self.form.setPool(folder, labels)

    def enter(self) -> None:
        """The page comes into view."""
        self.form.enter()
        self.list.again()

    def _onTimer(self) -> None:
        TrainingLaunch.reap()
        if self.page.isVisible():
            self.list.look()

    def _onRoot(self) -> None:
        qt.QSettings().setValue(TrainingLaunch.RUNS_SETTING, self.root.currentPath.strip())
        self.list.setRoot(self.root.currentPath.strip() or TrainingLaunch.runsFolder())
        self._judge()
        self._onSelected()

    # a new run

    def _judge(self) -> None:
        """Something was changed: an error that it was about goes, one that still holds stays."""
        if self._problem and self._problem != self.form.problem():
            self._problem = ""
            self.result.setText("")

    def _onForm(self) -> None:
        self._judge()
        if self._checked is not None and self.form.settings() != self._checked:
            self._checked = self._report = None
            self.result.setText("")
            self.apply.setVisible(False)
        if self.check.running:
            self.check.cancel()
            self.result.setText("")
        self._updateButtons()

    def onCheck(self) -> None:
        """Begins a check, or ends the one that runs."""
        self._startAfter = False
        if self.check.running:
            self.check.cancel()
            self.result.setText("")
            self._updateButtons()
            return
        self._beginCheck()

    def onStart(self) -> None:
        """Starts the run if its settings were found good, else checks them first."""
        if self.check.running:
            return
        settings = self.form.settings() if not self.form.problem() else None
        if settings is not None and settings == self._checked and self._report is not None and self._report["may_start"]:
            self._launch(settings)
        else:
            self._startAfter = True
            self._beginCheck()

    def _beginCheck(self) -> None:
        problem = self.form.problem() or missingPackages()
        if problem:
            self._wrong(problem)
            return
        self._checked = self._report = None
        self.apply.setVisible(False)
        try:
            self.check.start(self.list.root, self.form.settings())
        except InputError as error:
            self._wrong(str(error))
        self._updateButtons()

    def _onStage(self, words: str) -> None:
        self._problem = ""
        self.result.setText(words)

    def _onCheckFailed(self, sentence: str) -> None:
        self._wrong(sentence)
        self._updateButtons()

    def _wrong(self, sentence: str) -> None:
        self._startAfter, self._problem = False, sentence
        self.result.setText("<span style='color:#d64545'>✖</span> " + escape(sentence))

    def _onReport(self, settings: dict, report: dict) -> None:
        self._checked, self._report = settings, report
        words = html(report)
        estimate = report["estimate"] or {}
        leaky, tight = report["leaks"]["found"], estimate.get("fits") is False
        self.form.offerLeaks(leaky) if not (leaky and self.form.leaks.checked) else None
        start, self._startAfter = self._startAfter, False
        if start and report["may_start"] and not tight:
            self._launch(settings)
        elif start and tight:
            words += "<br>" + _("Press Start again to try it all the same.")
        if not start or tight or not report["may_start"]:
            self.result.setText(words)
        proposal = estimate.get("proposal")
        self.apply.setVisible(bool(proposal))
        if proposal:
            self.apply.setText(_("Use {batch}").format(batch=batchWords(proposal)))
        self._updateButtons()

    def onApply(self) -> None:
        """Takes the proposed batch over into the form."""
        proposal = ((self._report or {}).get("estimate") or {}).get("proposal")
        if proposal and self._checked is not None:
            self.form.fill({**self._checked, **proposal}, self.form.name.text)

    def _launch(self, settings: dict) -> None:
        self._begin(settings, self.form.name.text)

    def _begin(self, settings: dict, name: str) -> bool:
        try:
            folder = TrainingLaunch.start(self.list.root, name, settings)
        except CersError as error:
            self._wrong(str(error))
            self.say(str(error), wrong=True)
            return False
        self._checked = self._report = None
        self.result.setText("")
        self.form.name.setText("")
        self.say(_("The training '{name}' has been started. It goes on when Slicer is closed.").format(name=folder.name))
        self.list.again()
        self.list.select(folder.name)
        self.new.collapsed = True
        self._updateButtons()
        return True

    # runs

    def _onSelected(self) -> None:
        self._showRun()

    def _showRun(self) -> None:
        run = self.list.current
        self.view.show(run, self.list.histories.get(run.name) if run is not None else None)
        self._updateButtons()

    def _updateButtons(self) -> None:
        run = self.list.current
        self.stop.setEnabled(run is not None and run.live and run.state != "stopping")
        self.resume.setEnabled(run is not None and run.resumable)
        self.duplicate.setEnabled(run is not None)
        self.open.setEnabled(run is not None)
        self.delete.setEnabled(run is not None and not run.live)
        self.checkButton.setText(_("Stop the check") if self.check.running else _("Check"))
        self.startButton.setEnabled(not self.check.running)

    def _do(self, action) -> bool:
        """Does something to the chosen run and says what went wrong."""
        run = self.list.current
        if run is None:
            return False
        try:
            action(run)
        except CersError as error:
            self.say(str(error), wrong=True)
            self.list.again()
            self._showRun()
            return False
        self.list.again()
        self._showRun()
        return True

    def onStop(self) -> None:
        self._do(lambda run: runs.request_stop(run.folder))

    def onResume(self) -> None:
        if self._do(lambda run: TrainingLaunch.send(run.folder)):
            self.say(_("The training goes on. It takes some seconds to start."))

    def onDuplicate(self) -> None:
        def fill(run: runs.Run) -> None:
            try:
                self.form.fill(runs.settings(run.folder), run.name)
            except (TypeError, ValueError) as error:  # not what a run writes
                self.form.fill({})
                raise InputError(
                    _("The settings of the run '{name}' cannot be read. Fill in the form instead.").format(name=run.name)
                ) from error
            self.new.collapsed = False

        self._do(fill)

    def onSmaller(self) -> None:
        """Begins anew with the batch that was proposed when memory ran out."""
        run = self.list.current
        if run is not None and run.proposal:
            try:
                settings = {**runs.settings(run.folder), **run.proposal}
            except InputError as error:
                self.say(str(error), wrong=True)
                return
            self._begin(settings, run.name)

    def onOpen(self) -> None:
        self._do(lambda run: qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(run.folder))))

    def onDelete(self) -> None:
        run = self.list.current
        if (
            run is not None
            and self.confirm(_("Delete the run '{name}' with its checkpoints and its model? This cannot be undone.").format(name=run.name))
            and self._do(lambda chosen: TrainingLaunch.delete(chosen.folder))
        ):
            self.say(_("The run '{name}' has been deleted.").format(name=run.name))

    def _ask(self, question: str) -> bool:
        answer = qt.QMessageBox.question(self.page, _("Training"), question, qt.QMessageBox.Yes | qt.QMessageBox.No, qt.QMessageBox.No)
        return answer == qt.QMessageBox.Yes


def missingPackages() -> str:
    """A sentence where Python packages are missing, "" where all are there."""
    lacking = InstallLogic.missing()
    return (
        _("Training needs Python packages that are not installed: {names}. Install them in the module CERS Segment.").format(
            names=InstallLogic.describe(lacking)
        )
        if lacking
        else ""
    )
