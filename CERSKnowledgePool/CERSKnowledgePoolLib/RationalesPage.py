"""The page of rationales: who writes them, what would be sent, consent, the batch and its report. Works through a worker of its own."""

from __future__ import annotations

import logging
import os

import numpy as np
import qt
import slicer
from CERSSegmentLib import Words
from CERSSegmentLib.Task import Call, Task
from CERSSegmentLib.WorkerClient import STOPPED, WorkerClient
from slicer.i18n import tr as _

from cers.errors import Cancelled, CersError

from . import RationaleWords
from .CaseTable import pixmapOf
from .Pages import addButton, alignForms, inLine, wrap
from .PoolSession import PoolSession

SETTING = "CERS/Writer/"  # what was chosen last; never a key
MEASURED, ENDPOINT, LOCAL = "measured", "endpoint", "local"
CHOSEN = "chosen"  # the cases selected in the table
PICTURE = 240  # pixels of the picture that would be sent


class RationalesPage:
    """Args: chosen(): ids of the cases selected in the table. onOpen(case id): show a case. say(sentence, wrong): a line for the user."""

    def __init__(self, page, session: PoolSession, chosen, onOpen, say, worker: WorkerClient | None = None):
        self.page, self.session, self.chosen, self.onOpen, self.say = page, session, chosen, onOpen, say
        self.worker = worker or WorkerClient()  # of its own: the pool stays at hand during a long batch
        self._task: Task | None = None
        self._report: dict | None = None
        self._folder = ""
        self.confirm, self.askTable, self.askModel = self._ask, self._askTable, self._askModel
        layout = qt.QVBoxLayout(page)
        layout.setContentsMargins(4, 6, 4, 4)
        self.state = qt.QLabel(page)
        wrap(self.state)
        layout.addWidget(self.state)
        form = qt.QFormLayout()
        layout.addLayout(form)
        self._forms = [form]
        self._setUpWriter(form)
        for frame in self.frames.values():
            layout.addWidget(frame)
        self._setUpCases(layout)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.importTable = addButton(
            self.page,
            line,
            _("Import a table…"),
            _("Adds the texts of a CSV file with the columns image and cot; tried first"),
            self.onImport,
        )
        line.addStretch(1)
        self.preview = addButton(
            self.page, line, _("Preview"), _("Says what would be written and sent, and what it would cost; nothing is sent"), self.onPreview
        )
        self.start = addButton(
            self.page, line, _("Write"), _("Writes a new version of each of these rationales; earlier ones stay"), self.onWrite
        )
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.progress = qt.QProgressBar(page)
        self.progress.setMaximum(1000)
        line.addWidget(self.progress, 1)
        self.cancel = addButton(self.page, line, _("Cancel"), _("Stops; what was finished stays"), self.onCancel)
        self.result = qt.QTextBrowser(page)
        self.result.setAccessibleName(_("Result"))
        self.result.setMinimumHeight(170)
        self.result.setOpenLinks(False)
        self.result.anchorClicked.connect(lambda url: self._onLink(url.toString()))
        layout.addWidget(self.result, 1)
        self.picture = qt.QLabel(page)
        self.picture.setToolTip(_("The picture that would be sent"))
        self.picture.setVisible(False)
        layout.addWidget(self.picture)
        self._setUpConsents(layout)
        for combo in (self.writer, self.scope):
            combo.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
            combo.setMinimumContentsLength(14)
        alignForms(self._forms)
        self._restore()
        self._onWriter()

    def _setUpWriter(self, form) -> None:
        page = self.page
        self.writer = qt.QComboBox(page)
        for words, key in (
            (_("Measured: from the numbers, offline"), MEASURED),
            (_("Language model at an address"), ENDPOINT),
            (_("Language model on this machine"), LOCAL),
        ):
            self.writer.addItem(words, key)
        self.writer.setToolTip(
            _("The measured text is the truth that the others are held to: a sentence that contradicts it gives way to it")
        )
        self.writer.currentIndexChanged.connect(lambda *_index: self._onWriter())
        form.addRow(_("Writer"), self.writer)
        self.frames = {ENDPOINT: qt.QWidget(page), LOCAL: qt.QWidget(page)}
        own = qt.QFormLayout(self.frames[ENDPOINT])
        self.url, self.model = qt.QLineEdit(page), qt.QLineEdit(page)
        self.url.setPlaceholderText("http://localhost:11434/v1")
        self.url.setToolTip(_("OpenAI-compatible: vLLM, Ollama, llama.cpp, a service. Nothing is sent there before you agree"))
        self.model.setToolTip(_("The model's name, as the server calls it"))
        own.addRow(_("Address"), self.url)
        own.addRow(_("Model"), self.model)
        self.withPicture = qt.QCheckBox(_("Send the picture, too"), page)
        self.withPicture.setToolTip(_("Of the body only, with the lesion outlined; borders, in which names may be burnt, are removed"))
        own.addRow("", self.withPicture)
        self.key, self.variable = qt.QComboBox(page), qt.QLineEdit(page)
        places = {"none": _("No key"), "environment": _("In an environment variable"), "keyring": _("In the system's keyring")}
        for key, words in places.items():
            self.key.addItem(words, key)
        self.key.setToolTip(_("Where the key is kept. CERS writes it nowhere; to put it into the keyring: cers rationale key set ADDRESS"))
        self.key.currentIndexChanged.connect(lambda *_index: self._updateButtons())
        self.variable.setPlaceholderText("CERS_API_KEY")
        self.variable.setToolTip(_("The variable's name, not the key"))
        own.addRow(_("Key"), inLine(self.key, self.variable, names=(_("Key"), _("Environment variable"))))
        self.parallel, self.seconds = qt.QSpinBox(page), qt.QSpinBox(page)
        for spin, least, most, value, tip in (
            (self.parallel, 1, 64, 4, _("Requests at a time")),
            (self.seconds, 1, 3600, 120, _("Seconds that one answer may take")),
        ):
            spin.setRange(least, most)
            spin.setValue(value)
            spin.setToolTip(tip)
        self.seconds.setSuffix(" s")
        own.addRow(_("At a time, each within"), inLine(self.parallel, self.seconds, names=(_("Requests at a time"), _("Seconds each"))))
        self.priceIn, self.priceOut = qt.QLineEdit(page), qt.QLineEdit(page)
        for edit, words in ((self.priceIn, _("in")), (self.priceOut, _("out"))):
            edit.setPlaceholderText(words)
            edit.setToolTip(_("Price of a million tokens, for the estimate; may be left empty"))
        own.addRow(_("Price of 1 M tokens"), inLine(self.priceIn, self.priceOut, names=(_("Price of tokens in"), _("Price of tokens out"))))
        own = qt.QFormLayout(self.frames[LOCAL])
        self.localModel = qt.QLineEdit(page)
        self.localModel.setPlaceholderText(_("a .gguf file, or a folder of transformers"))
        self.localModel.setToolTip(
            _("A .gguf file, a folder of transformers, or an installed package that ships a .gguf file; nothing is downloaded")
        )
        browse = qt.QPushButton(_("File…"), page)
        browse.setToolTip(_("Chooses a .gguf file"))
        browse.clicked.connect(lambda *_checked: self.localModel.setText(self.askModel() or self.localModel.text))
        own.addRow(_("Model"), inLine(self.localModel, browse, names=(_("Model"),)))
        for frame in self.frames.values():
            frame.layout().setContentsMargins(0, 0, 0, 0)
            self._forms.append(frame.layout())

    def _setUpCases(self, layout) -> None:
        form = qt.QFormLayout()
        layout.addLayout(form)
        self._forms.append(form)
        self.scope = qt.QComboBox(self.page)
        for words, key in (
            (_("All cases"), "all"),
            (_("Those without a rationale"), "missing"),
            (_("Those measured by earlier rules"), "stale"),
            (_("Those chosen in the table"), CHOSEN),
        ):
            self.scope.addItem(words, key)
        self.scope.setToolTip(_("Cases that this writer has done already are left out"))
        form.addRow(_("Cases"), self.scope)
        self.again, self.overOthers, self.overPersons = (qt.QCheckBox(self.page) for _n in range(3))
        stays = _("Else they stay; Write asks before it replaces them, and they are kept as earlier versions")
        for box, words, tip in (
            (self.again, _("Also cases that have this writer's text"), _("Asks anew where an answer is at hand")),
            (self.overOthers, _("Also texts of other models and tables"), stays),
            (self.overPersons, _("Also texts that a person wrote"), stays),
        ):
            box.setText(words)
            box.setToolTip(tip)
            form.addRow(box)  # from the left edge, else they are cut off in a narrow panel

    def _setUpConsents(self, layout) -> None:
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.consents = qt.QComboBox(self.page)
        self.consents.setAccessibleName(_("Addresses that you agreed to"))
        self.consents.setToolTip(_("Addresses to which you agreed that something is sent"))
        self.consents.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        self.consents.setMinimumContentsLength(5)
        line.addWidget(self.consents, 1)
        self.withdraw = addButton(self.page, line, _("Withdraw"), _("Nothing more is sent to this address"), self.onWithdraw)
        self.log = addButton(
            self.page, line, _("What was sent"), _("Shows the log: when, where to, how much, and what became of it"), self.onLog
        )

    # life of the panel

    def cleanup(self) -> None:
        """The panel goes away."""
        self.worker.stop()

    def enter(self) -> None:
        """The page comes into view, or the pool has changed."""
        if self._task is None and self.session.folder:
            self._run(self._looking(), None)

    def setPool(self) -> None:
        """Another pool is open, or none: the batch of the other one is over."""
        if self.session.folder == self._folder:
            return
        self._folder, self._report = self.session.folder, None
        if self._task is not None:
            self._task.cancel()
        self.result.clear()
        self.picture.setVisible(False)
        self.state.setText("")

    @property
    def busy(self) -> bool:
        return self._task is not None

    @property
    def kind(self) -> str:
        return self.writer.itemData(self.writer.currentIndex)

    def _restore(self) -> None:
        for name, edit in (("url", self.url), ("model", self.model), ("variable", self.variable), ("local", self.localModel)):
            edit.setText(slicer.util.settingsValue(SETTING + name, "") or "")

    def _onWriter(self) -> None:
        for key, frame in self.frames.items():
            frame.setVisible(key == self.kind)
        self._updateButtons()

    # work

    def _run(self, steps, done, failed=None) -> None:
        """Runs the steps of a task, one task at a time."""
        if self._task is not None:
            self.say(_("Something else is running. Wait for it, or cancel it."))
            return

        def over() -> None:
            self._task = None
            self._updateButtons()

        def finished(value) -> None:
            over()
            if done is not None:
                done(value)

        def wrong(error: Exception) -> None:
            over()
            if failed is not None:
                failed(error)
            elif isinstance(error, (CersError, OSError)):
                self._tell(str(error))
            else:
                self._tell(
                    _("Something unexpected went wrong ({kind}). The details are in the error log.").format(kind=type(error).__name__)
                )
                logging.error("CERS rationales", exc_info=error)

        self._task = Task(self._opened(steps), self.worker, finished, wrong, self._onProgress)
        self._updateButtons()

    def _opened(self, steps):
        """The steps, once the worker has the pool that is open in the panel."""
        folder = self.session.folder
        yield Call("open_pool", {"path": folder or None, "read_only": bool(self.session.readOnly)})
        return (yield from steps)

    def _looking(self):
        """Who wrote what, and what was agreed to."""
        if self.session.folder:
            self.state.setText(RationaleWords.overview((yield Call("rationale_overview"))))
        found = (yield Call("rationale_consents"))["consents"]
        self.consents.clear()
        for consent in found:
            words = consent["endpoint"] + " (" + (_("findings and pictures") if consent["picture"] else _("findings")) + ")"
            self.consents.addItem(words, consent["endpoint"])
        if not found:
            self.consents.addItem(_("No address yet: nothing is sent"), "")

    def _onProgress(self, fraction: float, words: str) -> None:
        self.progress.setVisible(True)
        self.cancel.setVisible(True)
        self.progress.setValue(round(1000 * fraction))
        self.progress.setFormat(words)

    def onCancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _updateButtons(self) -> None:
        idle, pool = self._task is None, bool(self.session.folder)
        self.preview.setEnabled(idle and pool)
        for button in (self.start, self.importTable):
            button.setEnabled(idle and pool and not self.session.readOnly)
        self.withdraw.setEnabled(idle and bool(self.consents.itemData(self.consents.currentIndex)))
        self.log.setEnabled(idle)
        self.variable.setVisible(self.key.itemData(self.key.currentIndex) == "environment")
        if idle:
            self.progress.setVisible(False)
            self.cancel.setVisible(False)

    def _tell(self, words: str) -> None:
        self.picture.setVisible(False)
        self.result.setPlainText(words)

    # actions

    def params(self) -> dict | None:
        """Which writer and which cases; None, with a sentence said, where something is missing."""
        out: dict = {"writer": self.kind, "again": bool(self.again.checked), "over_others": bool(self.overOthers.checked)}
        out["over_persons"] = bool(self.overPersons.checked)
        scope = self.scope.itemData(self.scope.currentIndex)
        out |= {"ids": self.chosen()} if scope == CHOSEN else {"scope": scope}
        missing = _("Choose cases in the table first.") if scope == CHOSEN and not out["ids"] else ""
        if self.kind == ENDPOINT:
            out |= {
                "url": self.url.text.strip(),
                "model": self.model.text.strip(),
                "picture": bool(self.withPicture.checked),
                "parallel": int(self.parallel.value),
                "timeout": int(self.seconds.value),
                "key_source": self.key.itemData(self.key.currentIndex),
            }
            if out["key_source"] == "environment" and self.variable.text.strip():
                out["key_variable"] = self.variable.text.strip()
            missing = missing or ("" if out["url"] and out["model"] else _("Write the address and the model's name."))
        elif self.kind == LOCAL:
            out["model"] = self.localModel.text.strip()
            missing = missing or ("" if out["model"] else _("Choose a model."))
        if missing:
            self._tell(missing)
            return None
        return out

    def _prices(self) -> list[float] | None:
        try:
            prices = [float(edit.text.replace(",", ".")) for edit in (self.priceIn, self.priceOut)]
        except ValueError:
            return None
        return prices if self.kind == ENDPOINT else None

    def _planning(self, params: dict):
        prices = self._prices()
        self._onProgress(0.0, _("Looking through the cases"))
        return (yield Call("rationale_plan", params | ({"prices": prices} if prices else {})))

    def onPreview(self) -> None:
        """What would be done and sent; nothing is."""
        params = self.params()
        if params is not None:
            self._run(self._planning(params), lambda found: self._showPlan(params, found))

    def _showPlan(self, params: dict, found: dict) -> None:
        self.result.setHtml(RationaleWords.plan(found, Words.muted(self.page.palette)))
        if not (found["endpoint"] or {}).get("key_problem"):
            # only what was used: what was typed into a wrong field, hidden since, may be a key
            used = {"local": params["model"]} if params["writer"] == LOCAL else {n: params[n] for n in ("url", "model") if n in params}
            used |= {"variable": params.get("key_variable", "")} if params.get("key_source") == "environment" else {}
            for name, value in used.items():
                qt.QSettings().setValue(SETTING + name, value)
        preview = found["preview"]
        self.picture.setVisible(bool(preview and preview["picture"]))
        if preview and preview["picture"]:
            image = pixmapOf(np.load(preview["picture"], allow_pickle=False))
            self.picture.setPixmap(image.scaled(PICTURE, PICTURE, qt.Qt.KeepAspectRatio, qt.Qt.SmoothTransformation))

    def onWrite(self) -> None:
        """Writes the rationales, once the user has agreed to what that means."""
        params = self.params()
        if params is not None:
            self.say("")
            self._run(self._planning(params), lambda found: self._agreed(params, found))

    def _agreed(self, params: dict, found: dict) -> None:
        """The plan is there: consent for the address, then for the start, then the batch."""
        endpoint = found["endpoint"]
        self._showPlan(params, found)
        if not found["ids"] or (endpoint is not None and endpoint["key_problem"]):
            return  # the plan says it
        grant = endpoint is not None and not endpoint["consent"]
        if grant and not self.confirm(RationaleWords.consentQuestion(endpoint)):
            self._tell(_("Nothing was sent."))
            return
        for ask, question in ((found["replaces"], RationaleWords.replaceQuestion), (found["estimate"], RationaleWords.startQuestion)):
            if ask and not self.confirm(question(found)):
                self._tell(_("Nothing was written."))
                return
        folder = self.session.folder
        self._run(
            self._writing(params, endpoint if grant else None),
            lambda done: self._onWritten(folder, done),
            lambda error: self._onNotWritten(folder, params["again"], error),
        )

    def _writing(self, params: dict, endpoint: dict | None):
        if endpoint is not None:
            yield Call("rationale_grant", {"url": endpoint["url"], "picture": endpoint["picture"]})
        self._onProgress(0.0, _("Beginning"))
        done = yield Call("rationale_write", params)
        yield from self._looking()
        return done

    def _onWritten(self, folder: str, done: dict) -> None:
        if folder != self.session.folder:
            return  # another pool has been opened since
        self._report = done
        self._tell("")
        self.result.setHtml(RationaleWords.report(done))
        self.session.changed.emit()

    def _onNotWritten(self, folder: str, again: bool, error: Exception) -> None:
        """A batch that was cancelled or failed: what it had finished is in the pool."""
        if folder != self.session.folder:
            return
        if not isinstance(error, CersError):
            self._tell(_("Something unexpected went wrong ({kind}). The details are in the error log.").format(kind=type(error).__name__))
            logging.error("CERS rationales", exc_info=error)
            return
        self._tell(RationaleWords.stopped(again) if isinstance(error, Cancelled) else str(error))

        def steps():
            found = (yield Call("rationale_report"))["report"] if self.worker.state != STOPPED else None
            yield from self._looking()
            return found and {**found, "again": again}

        self._run(steps(), lambda found: self._onWritten(folder, found) if found else self.session.changed.emit(), lambda _error: None)

    def onImport(self) -> None:
        """Adds the texts of a table, tried first."""
        path = self.askTable()
        if path:
            params = {"csv": path, "over_persons": bool(self.overPersons.checked), "over_others": bool(self.overOthers.checked)}
            self._run(self._importing({**params, "dry_run": True}), lambda found: self._import(params, found))

    def _importing(self, params: dict):
        self._onProgress(0.0, _("Reading the table"))
        found = yield Call("rationale_import", params)
        yield from self._looking()
        return found

    def _import(self, params: dict, found: dict) -> None:
        self._tell("")
        self.result.setHtml(RationaleWords.table(found, True))
        if found["ids"] and self.confirm(RationaleWords.addQuestion(found)):

            def done(result: dict) -> None:
                self.result.setHtml(RationaleWords.table(result, False))
                self.session.changed.emit()

            self._run(self._importing(params), done)

    def onWithdraw(self) -> None:
        """Withdraws the consent for the chosen address."""
        url = self.consents.itemData(self.consents.currentIndex)

        def steps():
            yield Call("rationale_withdraw", {"url": url})
            yield from self._looking()

        self._run(steps(), lambda _none: self._tell(_("Withdrawn. Nothing more is sent to {url}.").format(url=url)))

    def onLog(self) -> None:
        """Shows what was sent where."""

        def steps():
            return (yield Call("rationale_log", {"last": 200}))["entries"]

        def done(entries: list) -> None:
            self._tell("")
            self.result.setHtml(RationaleWords.log(entries, Words.muted(self.page.palette)))

        self._run(steps(), done)

    def _onLink(self, link: str) -> None:
        what, _colon, identifier = link.partition(":")
        if what == "case":
            self.onOpen(identifier)
        elif what == "report" and self._report is not None:
            self.result.setHtml(RationaleWords.report(self._report))
        elif what == "compare":

            def steps():
                return (yield Call("rationale_compare", {"id": identifier}))

            self._run(steps(), lambda found: self.result.setHtml(RationaleWords.comparison(found, Words.muted(self.page.palette))))

    # questions

    def _ask(self, question: str) -> bool:
        answer = qt.QMessageBox.question(self.page, _("Rationales"), question, qt.QMessageBox.Yes | qt.QMessageBox.No, qt.QMessageBox.No)
        return answer == qt.QMessageBox.Yes

    def _askTable(self) -> str:
        return qt.QFileDialog.getOpenFileName(self.page, _("Table of rationales"), os.path.expanduser("~"), "CSV (*.csv *.tsv *.txt)")

    def _askModel(self) -> str:
        return qt.QFileDialog.getOpenFileName(self.page, _("Language model"), os.path.expanduser("~"), "GGUF (*.gguf)")
