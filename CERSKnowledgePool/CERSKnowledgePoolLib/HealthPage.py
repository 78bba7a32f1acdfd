"""The page that says what speaks against the pool; each finding opens the cases concerned."""

from __future__ import annotations

from html import escape

import qt
from slicer.i18n import tr as _

from .PoolSession import PoolSession

KINDS = {"duplicate": lambda: _("Same picture, different patients"), "contradiction": lambda: _("Masks that contradict each other"),
         "rationale": lambda: _("Words against measurements"), "gap": lambda: _("Too few cases"), "alone": lambda: _("Cases without anything alike"),
         "unknown": lambda: _("Not known"), "damaged": lambda: _("Damaged")}


class HealthPage:
    """Args: onFinding(ids, sentence): shows the cases of a finding in the table."""

    def __init__(self, page, session: PoolSession, onFinding):
        self.session, self._onFinding = session, onFinding
        layout = qt.QVBoxLayout(page)
        layout.setContentsMargins(4, 6, 4, 4)
        words = qt.QLabel(_("Looks for pictures that occur under several patients, masks and words that contradict each other, and kinds of case "
                            "of which there are too few. Nothing is changed."), page)
        words.setWordWrap(True)
        layout.addWidget(words)
        self.button = qt.QPushButton(_("Check the pool"), page)
        self.button.setToolTip(_("Takes some seconds for thousands of cases; you can go on working"))
        self.button.clicked.connect(lambda *_checked: self.check())
        layout.addWidget(self.button)
        self.summary = qt.QLabel(page)
        self.summary.setWordWrap(True)
        layout.addWidget(self.summary)
        self.text = qt.QTextBrowser(page)
        self.text.setMinimumHeight(300)
        self.text.setOpenLinks(False)
        self.text.anchorClicked.connect(lambda url: self.open(int(url.toString())))
        layout.addWidget(self.text, 1)
        layout.addStretch(0)
        self.findings: list[dict] = []
        self.clear()

    def clear(self) -> None:
        self.findings = []
        self.text.clear()
        self.summary.setText("")
        self.button.setEnabled(bool(self.session.folder))

    def check(self) -> None:
        self.summary.setText(_("Checking…"))
        if not self.session.work("pool_health", {}, self.show, self.summary.setText):
            self.summary.setText(_("Something else is running. Wait for it, or cancel it."))

    def show(self, result: dict) -> None:
        """Lists findings by kind."""
        self.findings = result["findings"]
        parts = []
        for kind, title in KINDS.items():
            own = [(n, f) for n, f in enumerate(self.findings) if f["kind"] == kind]
            if own:
                parts.append(f"<p><b>{escape(title())}</b> ({len(own)})</p>")
            for number, finding in own:
                words = _("show the case") if len(finding["ids"]) == 1 else _("show the {count} cases").format(count=len(finding["ids"]))
                parts.append(f"<p style='margin:0 0 6px 10px'>{escape(finding['message'])} <a href='{number}'>{escape(words)}</a></p>")
        self.text.setHtml("".join(parts))
        count = len(self.findings)
        self.summary.setText(_("Nothing was found.") if not count else _("1 finding") if count == 1 else _("{count} findings").format(count=count))

    def open(self, number: int) -> None:
        """Shows the cases of a finding."""
        self._onFinding(self.findings[number]["ids"], self.findings[number]["message"])
