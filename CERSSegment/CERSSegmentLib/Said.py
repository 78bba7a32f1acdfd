"""The sentence below the button: what was done, what to look at, or what went wrong."""

from __future__ import annotations

from html import escape

from .SegmentationLogic import ERROR, GOOD, INFO, WARNING

MARKS = {
    INFO: "",
    GOOD: '<span style="color:#2e9e5b">✔</span> ',
    WARNING: '<span style="color:#d9822b">▲</span> ',
    ERROR: '<span style="color:#d64545">✖</span> ',
}


class Said:
    """Args: label: shows the sentence."""

    def __init__(self, label):
        self.label, self._error = label, ""

    def say(self, kind: str, sentence: str) -> None:
        """Shows one sentence."""
        self._error = sentence if kind == ERROR else ""
        self.label.setText(MARKS[kind] + escape(sentence))
        self.label.setVisible(bool(sentence))

    def judge(self, holding) -> None:
        """Takes an error away when something was changed and it is not among the sentences that ``holding()`` says still hold.

        Everything else stays: it is about a result, and that is still there.
        """
        if self._error and self._error not in holding():
            self.say(INFO, "")
