"""The page of models: which there are and which is in use, in and out, and one of them in detail. Works through a worker of its own."""

from __future__ import annotations

import os
from pathlib import Path

import qt
from CERSSegmentLib.Task import Call, Task
from CERSSegmentLib.WorkerClient import STOPPED, WorkerClient
from slicer.i18n import tr as _

from cers.errors import Cancelled, CersError, InputError
from cers.inference import store
from cers.training import runs

from . import TrainingLaunch
from .ModelView import ModelView, comparison
from .Pages import addButton, wrap
from .PoolSession import PoolSession
from .TrainingRuns import when

ROW_HEIGHT, ROWS_SHOWN = 24, (3, 7)
RUN = "run:"  # id of a finished run that is not installed, followed by its folder
READ_ONLY = "read-only"


class ModelsPage:
    """Args: say(sentence, wrong): a line for the user."""

    def __init__(self, page, session: PoolSession, say, worker: WorkerClient | None = None):
        self.page, self.session, self.say = page, session, say
        self.worker = worker or WorkerClient()  # of its own: the pool stays at hand while it is embedded
        self.entries: list[dict] = []
        self._task: Task | None = None
        self._kept: list = []
        layout = qt.QVBoxLayout(page)
        layout.setContentsMargins(4, 6, 4, 4)
        self._setUpTable(layout)
        self._setUpButtons(layout)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.progress = qt.QProgressBar(page)
        self.progress.setMaximum(1000)
        self.cancel = addButton(self.page, line, _("Cancel"), _("Stops; vectors that were renewed stay"), self.onCancel)
        line.insertWidget(0, self.progress, 1)
        self.compared = qt.QLabel(page)
        wrap(self.compared)
        self.compared.setTextFormat(qt.Qt.RichText)
        layout.addWidget(self.compared)
        self.view = ModelView(page, layout)
        layout.addStretch(1)
        self.confirm, self.askOpen, self.askFolder, self.askSave = self._ask, self._askOpen, self._askFolder, self._askSave
        self._show()

    def _setUpTable(self, layout) -> None:
        titles = (_("Model"), _("State"), _("Dice"), _("Made for"), _("Installed"))
        self.table = qt.QTableWidget(0, len(titles), self.page)
        self.table.setAccessibleName(_("Models"))
        self.table.setHorizontalHeaderLabels(list(titles))
        self.table.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
        self.table.setSelectionMode(qt.QAbstractItemView.SingleSelection)
        self.table.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        self.table.setAlternatingRowColors(True)
        self.table.setTabKeyNavigation(False)
        self.table.setHorizontalScrollBarPolicy(qt.Qt.ScrollBarAlwaysOff)
        self.table.setToolTip(_("Installed models, the one that comes with CERS, and finished trainings"))
        self.table.verticalHeader().setVisible(False)
        self.table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
        header = self.table.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        header.setHighlightSections(False)
        self.table.itemSelectionChanged.connect(lambda: self._onSelected())
        layout.addWidget(self.table)

    def _setUpButtons(self, layout) -> None:
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.use = addButton(
            self.page,
            line,
            _("Use this model"),
            _("CERS Segment uses it from now on; the open pool is brought up to date with it"),
            self.onUse,
        )
        self.back = addButton(self.page, line, _("Use previous"), "", self.onBack)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.importFile = addButton(
            self.page, line, _("Import file…"), _("Installs a model from a zip file that CERS wrote"), lambda: self.onImport(self.askOpen())
        )
        self.importFolder = addButton(
            self.page,
            line,
            _("Import folder…"),
            _("Installs a model from its folder, or from that of a training run"),
            lambda: self.onImport(self.askFolder()),
        )
        line = qt.QHBoxLayout()  # three in a row do not fit into a narrow panel with a large font
        layout.addLayout(line)
        self.renew = addButton(
            self.page,
            line,
            _("Renew the pool"),
            _("Computes what the open pool lacks for the model in use; else the next Segment does"),
            self.onRenew,
        )
        self.export = addButton(
            self.page,
            line,
            _("Export…"),
            _("Writes the model as one zip file; names and pictures of its test cases are left out"),
            self.onExport,
        )
        self.compare = qt.QComboBox(self.page)
        self.compare.setAccessibleName(_("Compare with"))
        self.compare.setToolTip(_("Compares the chosen model with another one, case by case where both were measured on the same cases"))
        self.compare.setMinimumContentsLength(12)  # a model's name may be long
        self.compare.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        self.compare.currentIndexChanged.connect(lambda *_index: self.onCompare())
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        line.addWidget(self.compare, 1)
        self.delete = addButton(self.page, line, _("Delete…"), _("Deletes the chosen model; not the one in use"), self.onDelete)

    # life of the panel

    def cleanup(self) -> None:
        """The panel goes away."""
        self.view.cleanup()
        self.worker.stop()

    def enter(self) -> None:
        """The page comes into view: models may have come or gone elsewhere."""
        if self._task is None:
            self._run(self._listing(), lambda _none: self._sayGone())

    def _sayGone(self) -> None:
        """Without a model in use nothing can be segmented."""
        if not any(entry["in_use"] for entry in self.entries):
            self.say(_("The model in use is no longer there. Choose another one and press Use this model."), wrong=True)

    def setPool(self) -> None:
        """Another pool is open, or none."""
        self._updateButtons()

    @property
    def busy(self) -> bool:
        return self._task is not None

    @property
    def current(self) -> dict | None:
        """The chosen model."""
        row = self.table.currentRow()
        return self.entries[row] if self.table.selectedItems() and 0 <= row < len(self.entries) else None

    def select(self, identifier: str) -> None:
        for row, entry in enumerate(self.entries):
            if entry["id"] == identifier:
                self.table.selectRow(row)
                self.table.scrollToItem(self.table.item(row, 0))

    # work

    def _run(self, steps, done) -> None:
        """Runs the steps of a task, one task at a time, then shows what there is."""
        if self._task is not None:
            return

        def over() -> None:
            self._task = None
            self.progress.setVisible(False)
            self._updateButtons()

        def finished(value) -> None:
            over()
            if done is not None:
                done(value)

        def failed(error: Exception) -> None:
            over()
            if isinstance(error, (CersError, OSError)):
                self.say(str(error), wrong=not isinstance(error, Cancelled))
            else:
                self.say(
                    _("Something unexpected went wrong ({kind}). The details are in the error log.").format(kind=type(error).__name__),
                    wrong=True,
                )
                import logging

                logging.error("CERS models", exc_info=error)

        self._task = Task(steps, self.worker, finished, failed, self._onProgress)
        self._updateButtons()

    def _listing(self, choose: str = ""):
        """Asks for the models and shows them; the chosen one stays chosen, or ``choose`` (id) becomes it."""
        found = yield Call("model_list")
        self.folder = found["folder"]
        self._fill([*found["models"], *finishedRuns(found["models"])], choose)

    def _onProgress(self, fraction: float, words: str) -> None:
        self.progress.setVisible(True)
        self.progress.setValue(round(1000 * fraction))
        self.progress.setFormat(words)
        self._updateButtons()

    def onCancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # what is shown

    def _fill(self, entries: list[dict], choose: str = "") -> None:
        chosen = choose or (self.current["id"] if self.current is not None else next((e["id"] for e in entries if e["in_use"]), ""))
        before = self.current
        self.entries, self._kept = entries, []
        self.table.blockSignals(True)
        self.table.clearSelection()
        self.table.setRowCount(len(entries))
        height = ROW_HEIGHT * (1 + max(ROWS_SHOWN[0], min(ROWS_SHOWN[1], len(entries)))) + 8
        self.table.setMinimumHeight(height)
        self.table.setMaximumHeight(height)
        for r, entry in enumerate(entries):
            state, hue = stateOf(entry)
            made = ", ".join(x for x in (entry["modality"], entry["body_site"]) if x)
            words = (
                entry["name"],
                state,
                "–" if entry["dice"] is None else f"{entry['dice']:.3f}",
                made or "–",
                when(entry["installed"]) if not entry["shipped"] else "–",
            )
            for c, text in enumerate(words):
                item = qt.QTableWidgetItem(text)
                if c == 1 and hue:
                    item.setForeground(qt.QBrush(qt.QColor(hue)))
                if c in (2, 4):
                    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
                item.setToolTip(entry["problem"] or entry["folder"])
                self._kept.append(item)  # the table has them, too; Python must not let go first
                self.table.setItem(r, c, item)
        self.select(chosen)
        self.table.blockSignals(False)
        if self.current != before or self.view.entry != self.current:
            self._show()
        self._updateButtons()

    def _onSelected(self) -> None:
        self._show()
        self._updateButtons()

    def _show(self) -> None:
        self.compared.setText("")
        self.compared.setVisible(False)
        self.view.show(self.current)
        self.compare.blockSignals(True)
        self.compare.clear()
        self.compare.addItem(_("Compare with…"), "")
        for entry in self.entries:
            if self.current is not None and entry["id"] != self.current["id"] and not entry["id"].startswith(RUN) and not entry["problem"]:
                self.compare.addItem(entry["name"], entry["id"])
        self.compare.setCurrentIndex(0)
        self.compare.blockSignals(False)
        self._updateButtons()

    def _updateButtons(self) -> None:
        entry, idle = self.current, self._task is None
        installed = entry is not None and not entry["id"].startswith(RUN)
        sound = entry is not None and not entry["problem"]
        previous = next((e for e in self.entries if e["previous"]), None)
        self.use.setEnabled(idle and sound and not entry["in_use"])
        self.back.setEnabled(idle and previous is not None)
        self.back.setToolTip(
            _("Uses '{name}' again").format(name=previous["name"])
            if previous is not None
            else _("No other model was in use before this one")
        )
        self.renew.setEnabled(idle and bool(self.session.folder) and not self.session.readOnly)
        for button in (self.importFile, self.importFolder):
            button.setEnabled(idle)
        self.export.setEnabled(idle and installed and sound)
        self.delete.setEnabled(idle and installed and not entry["shipped"] and not entry["in_use"])
        self.compare.setEnabled(idle and installed and sound and self.compare.count > 1)
        shown = not idle and self.progress.isVisibleTo(self.page)
        self.progress.setVisible(shown)
        self.cancel.setVisible(shown)

    # actions

    def onUse(self) -> None:
        """Makes the chosen model, or that of the chosen run, the one in use, and renews the open pool."""
        entry = self.current
        if entry is not None:
            self._use({"source": entry["folder"]} if entry["id"].startswith(RUN) else {"id": entry["id"]})

    def onBack(self) -> None:
        """Uses the model again that was in use before."""
        self._use({"previous": True})

    def _use(self, params: dict) -> None:
        self.say("")
        pool = self._pool()
        self._run(self._using(params, pool), self._onUsed)

    def _using(self, params: dict, pool: str):
        self._onProgress(0.0, _("Installing the model") if "source" in params else _("Changing the model"))
        entry = yield Call("model_use", params)
        yield from self._listing(entry["id"])
        if not pool or pool == READ_ONLY:
            return entry, None, ""
        return entry, *(yield from self._embedding(pool))

    def _embedding(self, pool: str):
        """(vectors that were computed, why not all were): a model is in use although its pool could not be renewed."""
        self._onProgress(0.0, _("Loading the model"))
        try:
            yield Call("load_model")
            yield Call("open_pool", {"path": pool})
            return (yield Call("embed"))["embedded"], ""
        except CersError as error:
            return None, _("stopped") if isinstance(error, Cancelled) else str(error)

    def _onUsed(self, outcome: tuple) -> None:
        entry, count, reason = outcome
        words = _("'{name}' is in use now, in CERS Segment, too.").format(name=entry["name"])
        if reason:
            words += " " + _(
                "The pool was not brought up to date ({reason}); the next Segment does what is left, or press Renew the pool."
            ).format(reason=reason.rstrip("."))
        elif count is not None:
            words += " " + _("The pool is up to date with it.")
        elif self._pool() == READ_ONLY:
            words += " " + _("The open pool may only be read, so it could not be brought up to date with it.")
        self.say(words)
        self._afterWork()

    def _pool(self) -> str:
        return READ_ONLY if self.session.folder and self.session.readOnly else self.session.folder

    def onRenew(self) -> None:
        """Computes what the open pool lacks for the model in use."""

        def done(outcome: tuple) -> None:
            count, reason = outcome
            if reason:
                self.say(
                    _("The pool was not brought up to date: {reason}").format(reason=reason.rstrip(".") + "."), wrong=reason != _("stopped")
                )
            else:
                self.say(_("The pool is up to date; computed: {count}").format(count=count))
            self._afterWork()

        self._run(self._embedding(self.session.folder), done)

    def _afterWork(self) -> None:
        """Frees the memory of the loaded model; the figures of the pool have changed."""
        if self.worker.state != STOPPED:
            self.worker.stop()
        if self.session.folder:
            self.session.changed.emit()

    def onImport(self, source: str) -> None:
        """Installs a model from a folder or a zip file."""
        if not source:
            return

        def steps():
            self._onProgress(0.0, _("Installing the model"))
            entry = yield Call("model_install", {"source": source})
            yield from self._listing(entry["id"])
            return entry

        self._run(
            steps(), lambda entry: self.say(_("'{name}' is installed. Press Use this model to work with it.").format(name=entry["name"]))
        )

    def onExport(self) -> None:
        """Writes the chosen model to a zip file."""
        entry = self.current
        path = self.askSave(entry["name"]) if entry is not None else ""
        if path:

            def steps():
                return (yield Call("model_export", {"id": entry["id"], "path": path}))

            self._run(steps(), lambda result: self.say(_("Wrote {path}.").format(path=result["path"])))

    def onDelete(self) -> None:
        """Deletes the chosen model."""
        entry = self.current
        if entry is not None and self.confirm(
            _("Delete the model '{name}'? This cannot be undone; export it first to keep it.").format(name=entry["name"])
        ):

            def steps():
                result = yield Call("model_delete", {"id": entry["id"]})
                yield from self._listing()
                return result

            self._run(steps(), lambda result: self.say(_("The model '{name}' has been deleted.").format(name=result["name"])))

    def onCompare(self) -> None:
        """Compares the chosen model with the one chosen beside it: chosen minus other."""
        entry, other = self.current, self.compare.itemData(self.compare.currentIndex)
        if entry is None or not other:
            self.compared.setVisible(False)
            return

        def steps():
            return (yield Call("model_compare", {"first": other, "second": entry["id"]}))

        def done(found: dict) -> None:
            self.compared.setText(comparison(found, self.page.palette))
            self.compared.setVisible(True)

        self._run(steps(), done)

    # questions

    def _ask(self, question: str) -> bool:
        answer = qt.QMessageBox.question(self.page, _("Models"), question, qt.QMessageBox.Yes | qt.QMessageBox.No, qt.QMessageBox.No)
        return answer == qt.QMessageBox.Yes

    def _askOpen(self) -> str:
        return qt.QFileDialog.getOpenFileName(self.page, _("Import a model"), os.path.expanduser("~"), "Zip (*.zip)")

    def _askFolder(self) -> str:
        return qt.QFileDialog.getExistingDirectory(self.page, _("Folder of a model or a finished training"))

    def _askSave(self, name: str) -> str:
        clean = "".join(c if c.isalnum() or c in " -_" else " " for c in name).strip() or "model"
        return qt.QFileDialog.getSaveFileName(
            self.page, _("Export the model"), os.path.join(os.path.expanduser("~"), clean + ".zip"), "Zip (*.zip)"
        )


def finishedRuns(installed: list[dict]) -> list[dict]:
    """Finished trainings whose model is not installed, the youngest first, in the form of ``model_list``."""
    try:
        found = [run for run in runs.list_runs(Path(TrainingLaunch.runsFolder())) if run.state == "finished"]
    except InputError:
        return []  # the page of training says what is wrong there
    times, out = {e["source"]: e["installed"] for e in sorted(installed, key=lambda e: e["installed"])}, []
    for run in sorted(found, key=lambda r: r.updated, reverse=True):
        folder = run.folder / runs.MODEL
        config = store.read_json(folder / store.CONFIG)
        if config is None or max(times.get(str(folder), 0), times.get(str(run.folder), 0)) >= run.updated:
            continue  # what ended after the installation is another run, which has the name of a deleted one
        out.append(
            {
                "id": RUN + str(folder),
                "name": str(config.get("name") or run.name),
                "folder": str(folder),
                "hash": "",
                "source": str(run.folder),
                "labels": {k: str(v) for k, v in labels.items()} if isinstance(labels := config.get("labels"), dict) else {},
                "modality": str(config.get("modality") or ""),  # nobody has checked what kind it is
                "body_site": str(config.get("body_site") or ""),
                "size": config.get("size") or 0,
                "bytes": 0,
                "installed": run.updated,
                "in_use": False,
                "previous": False,
                "shipped": False,
                "has_result": (folder / store.RESULT).is_file(),
                "dice": None,
                "problem": "",
            }
        )
    return out


def stateOf(entry: dict) -> tuple[str, str]:
    """(words, colour or "") for the table."""
    if entry["problem"]:
        return _("broken"), "#d64545"
    if entry["in_use"]:
        return _("in use"), "#2e9e5b"
    if entry["previous"]:
        return _("previous"), "#b8860b"
    if entry["id"].startswith(RUN):
        return _("training, not installed"), "#2a7de1"
    return (_("comes with CERS"), "") if entry["shipped"] else (_("installed"), "")
