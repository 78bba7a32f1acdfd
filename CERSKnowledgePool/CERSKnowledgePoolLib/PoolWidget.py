"""The panel: which pool is at work, what it holds at a glance, and the pages."""

from __future__ import annotations

import os
from html import escape

import qt
import slicer
from CERSSegmentLib.FieldNames import nameFields
from slicer.i18n import tr as _

from .CasePage import CasePage
from .CasesPage import CasesPage
from .HealthPage import HealthPage
from .HistoryPage import HistoryPage
from .ImportPage import ImportPage
from .MapPage import MapPage
from .ModelsPage import ModelsPage
from .Pages import Pages, wrap
from .PoolSession import POOL_SETTING, PoolSession
from .RationalesPage import RationalesPage
from .TrainingPage import TrainingPage

CASES, CASE, MAP, HEALTH, RATIONALES, IMPORT, HISTORY, TRAINING, MODELS = range(9)
OF_POOL = (CASES, CASE, MAP, HEALTH, RATIONALES, IMPORT, HISTORY)  # pages that show nothing without a pool


class PoolWidget:
    """Controls the form.

    Args:
        ui: the form's widgets by name. session: the pool at work.
    """

    def __init__(self, ui, session: PoolSession):
        self.ui, self.session = ui, session
        self.info: dict | None = None
        self._opening, self._undo = False, None
        self.cases = CasesPage(ui.casesPage, session, self.openCase, self.say)
        self.case = CasePage(ui.casePage, session, self.openCase, self._neighbour, self.say)
        self.map = MapPage(ui.mapPage, session, self.openCase)
        self.health = HealthPage(ui.healthPage, session, self._onFinding)
        self.rationales = RationalesPage(ui.rationalesPage, session, self.cases.table.selected, self.openCase, self.say)
        self.importing = ImportPage(ui.importPage, session, self.say)
        self.history = HistoryPage(ui.historyPage, session, self.openCase, self.say)
        self.training = TrainingPage(ui.trainingPage, session, self.say)
        self.models = ModelsPage(ui.modelsPage, session, self.say)
        self._typing = qt.QTimer()  # the folder may be typed letter by letter
        self._typing.setSingleShot(True)
        self._typing.setInterval(250)
        self._typing.timeout.connect(self.reload)
        self._changes = qt.QTimer()  # several changes at once are shown once
        self._changes.setSingleShot(True)
        self._changes.setInterval(20)
        self._changes.timeout.connect(self._afterChange)
        session.changed.connect(self._onChanged)
        session.failed.connect(self._onFailed)
        session.progressed.connect(self._onProgress)
        session.busy.connect(self._onBusy)
        self._stored = slicer.util.settingsValue(POOL_SETTING, "") or ""
        ui.poolPath.currentPath = self._stored
        ui.poolPath.currentPathChanged.connect(lambda *_path: self._typing.start())
        ui.reloadButton.clicked.connect(lambda *_checked: self.reload())
        ui.createButton.clicked.connect(lambda *_checked: self.create())
        ui.cancelButton.clicked.connect(lambda *_checked: session.cancel())
        ui.undoButton.clicked.connect(lambda *_checked: self.undo())
        self.tabs = Pages(
            ui.pages,
            [
                (ui.casesPage, _("Cases"), _("All cases: filter, search, review")),
                (ui.casePage, _("Case"), _("One case with picture and rationale")),
                (ui.mapPage, _("Map"), _("All cases as points, alike ones close together")),
                (ui.healthPage, _("Health"), _("What speaks against the pool")),
                (ui.rationalesPage, _("Rationales"), _("Who writes the rationales, what would be sent, and what was")),
                (ui.importPage, _("Import"), _("Bring cases in and out")),
                (ui.historyPage, _("History"), _("Who did what; the trash")),
                (ui.trainingPage, _("Training"), _("Train a model in the background, and watch it")),
                (ui.modelsPage, _("Models"), _("What a model can do, which one is in use, models in and out")),
            ],
            5,
        )
        self.tabs.changed.connect(self._onPage)
        for label in (ui.statusLabel, ui.messageLabel):
            label.setTextFormat(qt.Qt.RichText)  # what is shown there is escaped
            wrap(label)
        nameFields(ui.pages.parentWidget())
        self._onBusy(False)
        self.say("")
        self._showNothing(_("Choose the folder of a pool, or make a new one."))
        if self._stored:
            self.reload()

    def enter(self) -> None:
        """The user opened the module: the pool may have been changed or another one chosen elsewhere."""
        stored = slicer.util.settingsValue(POOL_SETTING, "") or ""
        if stored != self._stored:
            self._stored = stored
            self.ui.poolPath.currentPath = stored
        if not self._opening:
            self.reload()

    def cleanup(self) -> None:
        """The module is destroyed."""
        self._typing.stop()
        self._changes.stop()
        self.cases.cleanup()
        self.map.cleanup()
        self.health.cleanup()
        self.rationales.cleanup()
        self.importing.cleanup()
        self.history.cleanup()
        self.training.cleanup()
        self.models.cleanup()
        self.session.stop()

    @property
    def busy(self) -> bool:
        """The chosen pool, or the last change of it, has not been shown yet."""
        return self._typing.isActive() or self._opening or self._changes.isActive() or self.cases.waiting or self.map.waiting

    # pool

    def reload(self) -> None:
        """Opens the chosen pool again and shows it, or says in the panel why that is not possible."""
        self._typing.stop()
        folder = self._chosen()
        if not folder:
            self._stored = ""
            qt.QSettings().remove(POOL_SETTING)
            self._opening = False
            self.session.close()
            self._showNothing(_("Choose the folder of a pool, or make a new one."))
        elif folder == self.session.folder and self.info is not None:
            self._refresh()
        else:
            self._open(folder, False)

    def create(self) -> None:
        """Makes a new pool in a folder that the user chooses."""
        folder = self.askFolder()
        if folder:
            self.ui.poolPath.currentPath = folder
            self._typing.stop()
            self._open(self._chosen(), True)

    def _chosen(self) -> str:
        """The folder in the field, "" for none, as a whole path: trainings, and the application next time, run in other folders."""
        folder = self.ui.poolPath.currentPath.strip()
        return os.path.abspath(os.path.expanduser(folder)) if folder else ""

    def askFolder(self) -> str:
        return qt.QFileDialog.getExistingDirectory(self.ui.pages, _("Empty folder for the new pool"))

    def _open(self, folder: str, create: bool) -> None:
        self._opening, self.info = True, None
        self._status(_("Opening the pool…"))
        self.say("")

        def opened(info: dict) -> None:
            self._opening = False
            self._stored = folder
            qt.QSettings().setValue(POOL_SETTING, folder)
            if not self._typing.isActive():  # else the field already holds something else
                self.ui.poolPath.addCurrentPathToHistory()
            self.case.clear()
            self.map.clear()
            self.health.clear()
            self.rationales.setPool()
            self.cases.showAll()
            self._showInfo(info)
            self.tabs.show(CASES if info["cases"] else IMPORT)

        def failed(sentence: str) -> None:
            self._opening = False
            self._showNothing(sentence, wrong=True)

        self.session.open(folder, opened, failed, create)

    def _showNothing(self, words: str, wrong: bool = False) -> None:
        self.info = None
        self._status(words, wrong)
        self.cases.clear()
        self.case.clear()
        self.map.clear()
        self.health.clear()
        self.rationales.setPool()
        self.history.clear()
        self.importing.updateButtons()
        self.training.setPool("", [])
        self._enablePool(False)

    def _refresh(self) -> None:
        # a pool that was replaced or put back has to be opened again
        self.session.ask("pool_info", {}, self._showInfo, lambda _sentence: self._open(self.session.folder, False))
        self.cases.again()
        self.case.again()
        self.map.changed()
        self._onPage()

    def _showInfo(self, info: dict) -> None:
        self.info = info
        self.session.readOnly = bool(info["read_only"])
        self.cases.setCounts(info["counts"])
        self.cases._onSelection()
        self.importing.updateButtons()
        self._status(summary(info))
        self.training.setPool(self.session.folder, sorted(info["counts"]["label"]))
        self._enablePool(True)
        self._onPage()

    def _enablePool(self, on: bool) -> None:
        """The pages of a pool are there with one; the others always."""
        for number in OF_POOL:
            self.tabs.setEnabled(number, on)
        self.models.setPool()
        if not on and self.tabs.current in OF_POOL:
            self.tabs.show(TRAINING)

    def _onChanged(self) -> None:
        self._changes.start()

    def _afterChange(self) -> None:
        if self.session.folder:
            self._refresh()

    def _onPage(self) -> None:
        current = self.tabs.current
        enter = {
            MAP: lambda: self.map.enter(self.case.caseId),
            HEALTH: self.health.enter,
            RATIONALES: self.rationales.enter,
            HISTORY: self.history.again,
            IMPORT: self.importing.enter,
            TRAINING: self.training.enter,
            MODELS: self.models.enter,
        }
        if current in enter:
            enter[current]()

    # cases

    def openCase(self, case_id: str) -> None:
        """Shows one case on its page."""
        self.say("")
        self.case.open(case_id)
        self.tabs.show(CASE)

    def _neighbour(self, case_id: str, step: int) -> str | None:
        ids = self.cases.table.ids
        at = ids.index(case_id) + step if case_id in ids else -1
        return ids[at] if 0 <= at < len(ids) else None

    def _onFinding(self, ids: list[str], sentence: str) -> None:
        self.cases.showOnly(ids, sentence)
        self.tabs.show(CASES)

    # what is said

    def say(self, words: str, wrong: bool = False, undo=None) -> None:
        """A line about what was just done, with a button where it can be undone."""
        self._undo = undo
        self.ui.messageLabel.setText(("<span style='color:#d64545'>✖</span> " if wrong else "") + escape(words))
        self.ui.messageLabel.setToolTip(escape(words))  # a long name may be cut off
        self.ui.messageLabel.setVisible(bool(words))
        self.ui.undoButton.setVisible(undo is not None)

    def undo(self) -> None:
        """Takes the last deletion back."""
        action = self._undo
        self.say("")
        if action is not None:
            action()

    def _onFailed(self, sentence: str) -> None:
        self.say(sentence, wrong=True)

    def _status(self, words: str, wrong: bool = False) -> None:
        mark = '<span style="color:#d64545">✖</span> ' if wrong else ""
        self.ui.statusLabel.setText(mark + escape(words).replace("\n", "<br>"))

    def _onProgress(self, fraction: float, words: str) -> None:
        self.ui.progressBar.setValue(round(1000 * fraction))
        self.ui.progressBar.setFormat(words)

    def _onBusy(self, on: bool) -> None:
        self.ui.progressBar.setVisible(on)
        self.ui.cancelButton.setVisible(on)
        self.ui.progressBar.setValue(0)
        self.ui.progressBar.setFormat("")


def summary(info: dict) -> str:
    """What matters of a pool, in a few words."""
    if not info["cases"]:
        words = _("This pool is empty. Import cases below.")
        return words + ("\n" + _("It may only be read: choose a folder that you may write in to fill it.") if info["read_only"] else "")
    parts = [_("1 case") if info["cases"] == 1 else _("{count} cases").format(count=f"{info['cases']:,}")]
    parts.append(_("patients: {count}").format(count=f"{info['patients']:,}") if info["patients"] else _("patients not recorded"))
    for review, words in (("approved", _("approved {count}")), ("flagged", _("flagged {count}")), ("excluded", _("excluded {count}"))):
        if info["counts"]["review"].get(review):
            parts.append(words.format(count=f"{info['counts']['review'][review]:,}"))
    parts.append(_("{size} MB").format(size=f"{info['bytes'] / 1e6:,.0f}"))
    more = []
    if info["without_rationale"]:
        more.append(_("{count} without a rationale").format(count=f"{info['without_rationale']:,}"))
    if info["stale"]:
        more.append(_("{count} not embedded for the model used last; the next Segment does it").format(count=f"{info['stale']:,}"))
    if info["trashed"]:
        more.append(_("{count} in the trash").format(count=f"{info['trashed']:,}"))
    if info["read_only"]:
        more.append(_("read-only: you may look and search, but change nothing"))
    if info["network"]:
        more.append(_("on a network drive: slower, and pictures travel over the network"))
    return " · ".join(parts) + ("\n" + " · ".join(more) if more else "")
