"""One run in detail: how it stands, its curves, example predictions of its validations, and the end of its log."""

from __future__ import annotations

from html import escape
from pathlib import Path

import ctk
import qt
from slicer.i18n import tr as _

from cers.training import runs

from .Pages import wrap
from .TrainingCheck import batchWords, duration
from .TrainingPlots import DICE, GAIN, LOSS, NAMES, SERIES, TrainingPlots
from .TrainingRuns import STATES

LOG_BYTES, LOG_LINES = 20_000, 400


class TrainingRunView:
    """Args: onSmaller(): begin anew with the smaller batch that is proposed."""

    def __init__(self, page, layout, onSmaller):
        self.page = page
        self.run: runs.Run | None = None
        self.frame = qt.QWidget(page)
        layout.addWidget(self.frame)
        column = qt.QVBoxLayout(self.frame)
        column.setContentsMargins(0, 0, 0, 0)
        self.title = qt.QLabel(self.frame)
        wrap(self.title)
        self.title.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
        column.addWidget(self.title)
        self.progress = qt.QProgressBar(self.frame)
        self.progress.setMaximum(1000)
        column.addWidget(self.progress)
        self.smaller = qt.QPushButton(_("Begin anew with a smaller batch"), self.frame)
        self.smaller.setToolTip(_("Begins a new run with the same settings but this batch"))
        self.smaller.clicked.connect(lambda *_checked: onSmaller())
        column.addWidget(self.smaller)
        self._setUpCurves(column)
        self._setUpExamples(column)
        self.logSection = ctk.ctkCollapsibleButton(self.frame)
        self.logSection.text = _("Log")
        self.logSection.collapsed = True
        column.addWidget(self.logSection)
        inner = qt.QVBoxLayout(self.logSection)
        self.log = qt.QPlainTextEdit(self.logSection)
        self.log.setAccessibleName(_("Log"))
        self.log.setReadOnly(True)
        self.log.setMaximumBlockCount(LOG_LINES)
        self.log.setMinimumHeight(120)
        self.log.setLineWrapMode(qt.QPlainTextEdit.NoWrap)
        inner.addWidget(self.log)
        self._tail: runs.Tail | None = None
        self._examples: list[tuple[int, Path]] = []
        self._picture = None
        self.show(None, None)

    def _setUpCurves(self, column) -> None:
        self.plots = TrainingPlots()
        self.curves = qt.QWidget(self.frame)
        rows = qt.QVBoxLayout(self.curves)
        rows.setContentsMargins(0, 0, 0, 0)
        self.plots.views[DICE].setMinimumHeight(190)
        rows.addWidget(self.plots.views[DICE])
        line = qt.QHBoxLayout()
        rows.addLayout(line)
        line.addWidget(self.plots.views[LOSS])
        line.addWidget(self.plots.views[GAIN])
        column.addWidget(self.curves)
        self.noCurves = qt.QLabel(_("Curves appear after the first steps."), self.frame)
        column.addWidget(self.noCurves)

    def _setUpExamples(self, column) -> None:
        self.exampleFrame = qt.QWidget(self.frame)
        rows = qt.QVBoxLayout(self.exampleFrame)
        rows.setContentsMargins(0, 0, 0, 0)
        self.exampleLabel = qt.QLabel(self.exampleFrame)
        wrap(self.exampleLabel)
        rows.addWidget(self.exampleLabel)
        self.exampleSlider = qt.QSlider(qt.Qt.Horizontal, self.exampleFrame)
        self.exampleSlider.setAccessibleName(_("Validation"))
        self.exampleSlider.setToolTip(_("Earlier and later validations of the same pictures"))
        self.exampleSlider.valueChanged.connect(lambda *_value: self._showExample())
        rows.addWidget(self.exampleSlider)
        self.examplePicture = qt.QLabel(self.exampleFrame)
        self.examplePicture.setMinimumSize(40, 40)
        self.examplePicture.setAlignment(qt.Qt.AlignCenter)
        self.examplePicture.setToolTip(_("Held-out pictures. Green: the expert's outline. Orange: the model's. Yellow: both."))
        rows.addWidget(self.examplePicture)
        column.addWidget(self.exampleFrame)

    def cleanup(self) -> None:
        self.plots.cleanup()

    def show(self, run: runs.Run | None, history: runs.History | None) -> None:
        """Shows a run, or that run as it stands now."""
        other = (run.folder if run else None) != (self.run.folder if self.run else None)
        self.run = run
        self.frame.setVisible(run is not None)
        if run is None:
            self._tail = None
            self.plots.clear()
            return
        if other:
            self._tail = runs.Tail(run.folder / runs.LOG, LOG_BYTES)
            self.log.clear()
            self._examples = []
            self.plots.clear()
        self._showState(run, history)
        some = history is not None and any(history.curves.values())
        if some:
            self.plots.show(history.curves)
        else:
            self.plots.clear()
        self.curves.setVisible(some)
        self.plots.views[GAIN].setVisible(bool(some and history.curves["gain"]))
        self.plots.views[DICE].setVisible(bool(some and history.curves["plain"]))
        self.noCurves.setVisible(not some and run.live)
        self._lookForExamples()
        anew, lines = self._tail.read()
        if anew:
            self.log.clear()
        if lines:
            self.log.appendPlainText("\n".join(lines))

    def _showState(self, run: runs.Run, history: runs.History | None) -> None:
        words = f"<b>{escape(run.name)}</b>: " + escape(STATES[run.state]())
        if run.state == "running":
            of = _(" of {steps}").format(steps=f"{run.steps:,}") if run.steps else ""
            words += escape(_(", step {step}{of}, {left} left").format(step=f"{run.step:,}", of=of, left=duration(run.eta)))
        elif run.state == "launching":
            words += escape(": " + _("its process starts, which takes some seconds"))
        elif run.state == "starting":
            words += escape(
                ": "
                + (_("looking at every picture and describing the labelled ones") if run.phase == "memory" else _("reading the pictures"))
            )
        elif run.state == "stopping":
            words += escape(": " + _("it finishes what it is doing and saves"))
        elif run.step:
            words += escape(_(" at step {step}").format(step=f"{run.step:,}"))
        if run.host and run.live and run.pid is None:
            words += escape(_(" on {host}").format(host=run.host))
        if run.reason:
            words += "<br><span style='color:#d64545'>✖</span> " + escape(run.reason)
            if run.resumable and not run.proposal:
                words += " " + escape(_("Resume goes on from the last checkpoint.") if run.saved else _("Resume begins again."))
        elif run.state == "finished":
            words += "<br><span style='color:#2e9e5b'>✔</span> "
            words += escape(_("The model is in {folder}").format(folder=run.folder / runs.MODEL))
        dice = {n: history.curves[n][-1][1] for n in ("plain", "null", "retrieved") if history.curves[n]} if history is not None else {}
        if dice:
            words += "<br>" + _("Validation Dice: {values}").format(
                values=", ".join(f"<span style='color:{colour(n)}'>■</span> {escape(NAMES[n]())} {v:.3f}" for n, v in dice.items())
            )
        self.title.setText(words)
        self.progress.setVisible(run.state in ("running", "stopping"))
        self.progress.setValue(round(1000 * min(1.0, run.share)))
        self.smaller.setVisible(bool(run.proposal) and not run.live)
        if run.proposal:
            self.smaller.setText(_("Begin anew with {batch}").format(batch=batchWords(run.proposal)))

    def _lookForExamples(self) -> None:
        found = runs.examples(self.run.folder)
        if found != self._examples:
            last = not self._examples or self.exampleSlider.value >= len(self._examples) - 1
            self._examples = found
            self.exampleSlider.blockSignals(True)
            self.exampleSlider.setRange(0, max(0, len(found) - 1))
            if last:
                self.exampleSlider.setValue(max(0, len(found) - 1))
            self.exampleSlider.blockSignals(False)
            self._showExample()
        self.exampleFrame.setVisible(bool(found))
        self.exampleSlider.setVisible(len(found) > 1)

    def _showExample(self) -> None:
        at = self.exampleSlider.value
        if not 0 <= at < len(self._examples):
            return
        step, path = self._examples[at]
        self.exampleLabel.setText(
            escape(_("Held-out pictures, step {step}:").format(step=f"{step:,}"))
            + f" <span style='color:#2e9e5b'>■</span> {escape(_('expert'))}"
            + f" <span style='color:#ff9628'>■</span> {escape(_('model'))}"
        )
        picture = qt.QPixmap(str(path))
        if picture.isNull():
            self.examplePicture.setText(_("The picture cannot be read."))
            return
        width = max(160, min(picture.width(), self.page.width - 24))
        self.examplePicture.setPixmap(picture.scaledToWidth(width, qt.Qt.SmoothTransformation) if width < picture.width() else picture)


def colour(curve: str) -> str:
    """The colour of a curve, for HTML."""
    return "#%02x%02x%02x" % tuple(round(255 * part) for part in SERIES[curve][1])
