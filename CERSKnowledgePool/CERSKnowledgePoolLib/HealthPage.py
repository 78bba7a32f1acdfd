"""The page that says what speaks against the pool; each finding opens the cases concerned.

The trial of references has a worker of its own.
"""

from __future__ import annotations

from html import escape

import qt
from CERSSegmentLib.Task import Call, Task
from CERSSegmentLib.WorkerClient import STOPPED, WorkerClient
from slicer.i18n import tr as _

from cers.errors import Cancelled, CersError

from .Pages import wrap
from .PoolSession import PoolSession

KINDS = {
    "doubt": lambda: _("Masks that the rest of the pool does not bear out"),
    "contradicted": lambda: _("Masks that the references chosen beside them contradict"),
    "harm": lambda: _("Cases that lower the Dice of others"),
    "duplicate": lambda: _("Same picture, different patients"),
    "contradiction": lambda: _("Masks that contradict each other"),
    "rationale": lambda: _("Words against measurements"),
    "gap": lambda: _("Too few cases"),
    "alone": lambda: _("Cases without anything alike"),
    "unused": lambda: _("Never a reference"),
    "unknown": lambda: _("Not known"),
    "damaged": lambda: _("Damaged"),
}
AT_ONCE = 100  # cases that one trial segments


class HealthPage:
    """Args: onFinding(ids, sentence): shows the cases of a finding in the table."""

    def __init__(self, page, session: PoolSession, onFinding, worker: WorkerClient | None = None):
        self.session, self._onFinding = session, onFinding
        self.worker = worker or WorkerClient()  # of its own: the pool stays at hand while cases are segmented
        self._task: Task | None = None
        self._checked: list[dict] = []
        self._harm: list[dict] = []
        layout = qt.QVBoxLayout(page)
        layout.setContentsMargins(4, 6, 4, 4)
        words = qt.QLabel(
            _(
                "Looks for pictures that occur under several patients, masks and words that contradict each other, and kinds of case "
                "of which there are too few. Nothing is changed."
            ),
            page,
        )
        wrap(words)
        layout.addWidget(words)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.button, self.trial = qt.QPushButton(_("Check the pool"), page), qt.QPushButton(_("Try the references"), page)
        self.button.setToolTip(_("Takes some seconds for thousands of cases"))
        self.button.clicked.connect(lambda *_checked: self.check())
        self.trial.setToolTip(
            _(
                "Segments up to {count} cases with references from the rest of the pool, and finds masks that look wrong and references "
                "that make others worse. Takes some minutes in the background; press again to try the next cases"
            ).format(count=AT_ONCE)
        )
        self.trial.clicked.connect(lambda *_checked: self.tryReferences())
        line.addWidget(self.button, 1)
        line.addWidget(self.trial, 1)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.progress = qt.QProgressBar(page)
        self.progress.setMaximum(1000)
        self.cancel = qt.QPushButton(_("Cancel"), page)
        self.cancel.setToolTip(_("Stops; what was tried is kept"))
        self.cancel.clicked.connect(lambda *_checked: self._task.cancel() if self._task is not None else None)
        line.addWidget(self.progress, 1)
        line.addWidget(self.cancel)
        self.summary = qt.QLabel(page)
        wrap(self.summary)
        layout.addWidget(self.summary)
        self.text = qt.QTextBrowser(page)
        self.text.setAccessibleName(_("Findings"))
        self.text.setMinimumHeight(300)
        self.text.setOpenLinks(False)
        self.text.anchorClicked.connect(lambda url: self.open(int(url.toString())))
        layout.addWidget(self.text, 1)
        layout.addStretch(0)
        self.tried = qt.QLabel(page)
        wrap(self.tried)
        layout.insertWidget(layout.indexOf(self.summary) + 1, self.tried)
        self.record = qt.QCheckBox(_("Note which cases serve as references"), page)  # its text cannot wrap: keep it short
        self.record.setToolTip(
            _("Kept in the pool are the date, a number that tells images apart, and how much the case counted; nothing else of the image")
        )
        self.record.clicked.connect(lambda *_checked: self._onRecord())
        layout.addWidget(self.record)
        self.recorded = qt.QLabel(page)
        wrap(self.recorded)
        layout.addWidget(self.recorded)
        self.findings: list[dict] = []
        self.clear()

    def cleanup(self) -> None:
        """The panel goes away."""
        self.worker.stop()

    @property
    def busy(self) -> bool:
        return self._task is not None

    def clear(self) -> None:
        """Another pool, or none: nothing is known of it yet."""
        if self._task is not None:
            self._task.cancel()
        self.findings, self._checked, self._harm = [], [], []
        self.text.clear()
        for label in (self.summary, self.tried, self.recorded):
            label.setText("")
        self.recorded.setVisible(False)
        self._updateButtons()

    def enter(self) -> None:
        """The page comes into view."""
        if self.session.folder:
            self.session.ask("pool_uses", {}, self._showUses)

    def _updateButtons(self) -> None:
        idle, pool = self._task is None, bool(self.session.folder)
        self.button.setEnabled(pool)
        self.trial.setEnabled(pool and idle and not self.session.readOnly)
        self.record.setEnabled(pool and not self.session.readOnly)
        self.progress.setVisible(not idle)
        self.cancel.setVisible(not idle)
        self.tried.setVisible(bool(self.tried.text))

    # what was used

    def _showUses(self, result: dict) -> None:
        self.record.blockSignals(True)
        self.record.setChecked(bool(result["records"]))
        self.record.blockSignals(False)
        self.recorded.setVisible(bool(result["images"]))
        if result["images"]:
            words = _("Noted: one image since {day}") if result["images"] == 1 else _("Noted: {count} images since {day}")
            self.recorded.setText(words.format(count=f"{result['images']:,}", day=result["since"]))

    def _onRecord(self) -> None:
        self.session.ask("pool_uses", {"record": bool(self.record.checked)}, self._showUses)

    # checks

    def check(self) -> None:
        """Looks for what can be seen without segmenting anything."""
        self.summary.setText(_("Checking…"))
        if not self.session.work("pool_health", {}, self.show, self.summary.setText):
            self.summary.setText(_("Something else is running. Wait for it, or cancel it."))

    def tryReferences(self) -> None:
        """Segments cases with the others, and judges each reference by what it does to the masks."""
        folder = self.session.folder

        def told(fraction: float, words: str) -> None:
            if folder == self.session.folder:  # else another pool has been opened since
                self._onProgress(fraction, words)

        def steps():
            told(0.0, _("Loading the model"))
            yield Call("load_model")
            yield Call("open_pool", {"path": folder})
            return (yield Call("pool_harm", {"cases": AT_ONCE}))

        def over() -> None:
            self._task = None
            if self.worker.state != STOPPED:
                self.worker.stop()  # frees the memory of the model
            self._updateButtons()

        def done(result: dict) -> None:
            over()
            if folder == self.session.folder:
                self.showTrial(result)

        def failed(error: Exception) -> None:
            over()
            if folder != self.session.folder:
                return  # another pool has been opened since
            if isinstance(error, Cancelled):
                self.tried.setText(_("Stopped. What was tried is kept; press Try the references to go on."))
            else:
                self.tried.setText(
                    str(error)
                    if isinstance(error, (CersError, OSError))
                    else _("Something unexpected went wrong ({kind}).").format(kind=type(error).__name__)
                )
            self._updateButtons()

        if self._task is None:
            self.tried.setText("")
            self._task = Task(steps(), self.worker, done, failed, told)
            self._updateButtons()

    def _onProgress(self, fraction: float, words: str) -> None:
        self.progress.setValue(round(1000 * fraction))
        self.tried.setText(words)  # a bar would cut off what is wider than it
        self.tried.setVisible(bool(words))

    def showTrial(self, result: dict) -> None:
        """Lists the cases that do harm and the masks in doubt, beside what was found before."""
        words = _("Tried: {tried} of {total} cases.").format(tried=f"{result['tried']:,}", total=f"{result['total']:,}")
        if result["evidence_gain"] is not None:
            words += " " + _("With references the Dice is {gain:+.3f} on average.").format(gain=result["evidence_gain"])
        doubt, contradicted, harm = (sum(f["kind"] == kind for f in result["findings"]) for kind in ("doubt", "contradicted", "harm"))
        words += " " + (_("Cases that lower it: {count}.").format(count=harm) if harm else _("No case lowers it."))
        if doubt:
            words += " " + _("Masks in doubt: {count}.").format(count=doubt)
        if contradicted:
            words += " " + _("Contradicted by others: {count}.").format(count=contradicted)
        if result["faults"]:
            words += " " + _("Not tried: {count} ({reason})").format(
                count=len(result["faults"]), reason=next(iter(result["faults"].values()))
            )
        self.tried.setText(words)
        self._harm = result["findings"]
        self._list()
        self._updateButtons()

    def show(self, result: dict) -> None:
        """Lists findings by kind."""
        self._checked = result["findings"]
        self._list()
        count = len(self._checked)
        if count:
            self.summary.setText((_("1 finding") if count == 1 else _("{count} findings")).format(count=count))
        else:
            self.summary.setText(_("Nothing was found.") if result["cases"] else _("This pool is empty: there is nothing to check yet."))

    def _list(self) -> None:
        self.findings = [*self._harm, *self._checked]
        parts = []
        for kind, title in KINDS.items():
            own = [(n, f) for n, f in enumerate(self.findings) if f["kind"] == kind]
            if own:
                parts.append(f"<p><b>{escape(title())}</b> ({len(own)})</p>")
            for number, finding in own:
                words = _("show the case") if len(finding["ids"]) == 1 else _("show the {count} cases").format(count=len(finding["ids"]))
                link = f" <a href='{number}'>{escape(words)}</a>" if finding["ids"] else ""
                parts.append(f"<p style='margin:0 0 6px 10px'>{escape(finding['message'])}{link}</p>")
        self.text.setHtml("".join(parts))

    def open(self, number: int) -> None:
        """Shows the cases of a finding."""
        self._onFinding(self.findings[number]["ids"], self.findings[number]["message"])
