"""The compact view of the evidence, in the module's panel."""

from __future__ import annotations

from html import escape

import qt
from slicer.i18n import tr as _

from . import Words
from .Cards import Enlarged, PictureButton, PinDrop, label, setShown, titleHtml
from .EvidenceController import EvidenceController
from .Signal import Signal

QUERY, REFERENCE = 128, 104  # side of the pictures
CARDS = 5  # references that a slice has at most, unless the user pins more


class ReferenceCard:
    """One reference: picture, rank, scores, rationale, pin and drop."""

    def __init__(self, parent, controller: EvidenceController, enlarge):
        self.controller, self.identifier = controller, ""
        self.widget = qt.QFrame(parent)
        self.widget.setFrameShape(qt.QFrame.StyledPanel)
        row = qt.QHBoxLayout(self.widget)
        row.setContentsMargins(4, 4, 6, 4)
        row.setSpacing(8)
        self.picture = PictureButton(self.widget, lambda: enlarge(self.identifier), controller.later)
        row.addWidget(self.picture.widget, 0, qt.Qt.AlignTop)
        column = qt.QVBoxLayout()
        column.setSpacing(3)
        row.addLayout(column, 1)
        self.title, self.scores, self.words = label(self.widget), label(self.widget, rich=False), label(self.widget, selectable=True)
        self.choice = PinDrop(self.widget, lambda on: controller.pin(self.identifier, on), lambda on: controller.drop(self.identifier, on))
        self.more = qt.QToolButton(self.widget)
        self.more.setText(_("More"))
        self.more.setToolTip(_("Show all four parts of the rationale"))
        self.more.setCheckable(True)
        self.more.setAutoRaise(True)
        self.more.clicked.connect(lambda *_arguments: self._fillWords())
        self.choice.widget.layout().addWidget(self.more)
        for widget in (self.title, self.scores, self.words, self.choice.widget):
            column.addWidget(widget)
        column.addStretch(1)
        self.scores.setToolTip(Words.scoresHelp())
        self.buttons = [self.picture.widget, self.choice.pin, self.choice.drop, self.more]

    def show(self, reference: dict) -> None:
        controller, palette = self.controller, self.widget.palette
        self.identifier = reference["id"]
        case, choice = controller.case(self.identifier), controller.choice()
        missing = _("Loading…") if controller.asked(self.identifier) else _("The picture cannot be read from the pool.")
        self.picture.show(controller.casePicture(self.identifier), REFERENCE, REFERENCE, missing)
        self.title.setText(titleHtml(reference, case, choice, palette))
        self.scores.setText(Words.scores(reference))
        self._fillWords()
        self.choice.show(self.identifier in choice.pinned, self.identifier in choice.dropped, True)
        setShown(self.widget, True)

    def _fillWords(self) -> None:
        rationale = (self.controller.case(self.identifier) or {}).get("rationale")
        palette = self.widget.palette
        self.words.setText(Words.rationaleHtml(rationale, palette) if self.more.checked else escape(Words.part(rationale, "summary")))
        setShown(self.more, bool(rationale))


class EvidenceWidget:
    """Evidence of the slice in view. Signals: boardRequested(), exportRequested()."""

    def __init__(self, parent, controller: EvidenceController):
        self.controller = controller
        self.boardRequested, self.exportRequested = Signal(), Signal()
        self.widget = qt.QWidget(parent)
        self._enlarged = None
        self._build()
        controller.changed.connect(self.update)
        controller.busyChanged.connect(lambda _busy: self._updateButtons())
        self.update()

    def _build(self) -> None:
        layout = qt.QVBoxLayout(self.widget)
        layout.setContentsMargins(0, 0, 0, 0)
        self.empty = label(self.widget, rich=False)
        self.empty.setText(_("After a run, this shows for the slice in view which annotated cases the mask was decoded with, and why."))
        layout.addWidget(self.empty)
        self.body = qt.QWidget(self.widget)
        layout.addWidget(self.body)
        body = qt.QVBoxLayout(self.body)
        body.setContentsMargins(0, 0, 0, 0)
        body.setSpacing(6)
        row = qt.QHBoxLayout()
        self.previous, self.next = qt.QToolButton(self.body), qt.QToolButton(self.body)
        for button, arrow, words, keys, step in (
            (self.previous, qt.Qt.LeftArrow, _("Previous slice with a lesion"), "Shift+N", -1),
            (self.next, qt.Qt.RightArrow, _("Next slice with a lesion"), "N", 1),
        ):
            button.setArrowType(arrow)
            button.setToolTip(f"{words} ({keys})")
            button.setAccessibleName(words)
            button.clicked.connect(lambda *_arguments, step=step: self.controller.step(step))
        self.place = label(self.body, rich=False)
        self.place.setAlignment(qt.Qt.AlignCenter)
        row.addWidget(self.previous)
        row.addWidget(self.place, 1)
        row.addWidget(self.next)
        body.addLayout(row)
        self.coverage, self.trust = label(self.body), label(self.body)
        body.addWidget(self.coverage)
        body.addWidget(self.trust)
        row = qt.QHBoxLayout()
        row.setSpacing(8)
        self.query = PictureButton(self.body, lambda: self._enlarge(None), self.controller.later)
        self.queryWords = label(self.body, selectable=True)
        row.addWidget(self.query.widget, 0, qt.Qt.AlignTop)
        row.addWidget(self.queryWords, 1)
        body.addLayout(row)
        self.referencesTitle = label(self.body)
        body.addWidget(self.referencesTitle)
        self.cardsLayout = qt.QVBoxLayout()
        self.cardsLayout.setSpacing(4)
        body.addLayout(self.cardsLayout)
        self.cards: list[ReferenceCard] = []
        self.rejectedButton = qt.QToolButton(self.body)
        self.rejectedButton.setText(_("Rejected candidates"))
        self.rejectedButton.setCheckable(True)
        self.rejectedButton.setAutoRaise(True)
        self.rejectedButton.setToolButtonStyle(qt.Qt.ToolButtonTextBesideIcon)
        self.rejectedButton.clicked.connect(lambda *_arguments: self._updateRejected())
        self.rejected = label(self.body, selectable=True)
        body.addWidget(self.rejectedButton)
        body.addWidget(self.rejected)
        grid = qt.QGridLayout()
        self.rerun, self.reset = qt.QPushButton(_("Re-run slice"), self.body), qt.QPushButton(_("Reset slice"), self.body)
        self.board, self.export = qt.QPushButton(_("Evidence board"), self.body), qt.QPushButton(_("Export report…"), self.body)
        self.rerun.setToolTip(_("Segment this slice again with the references that you pinned, and without those that you dropped"))
        self.reset.setToolTip(_("Forget what you pinned and dropped in this slice, and go back to the first result"))
        self.board.setToolTip(_("Show query and references side by side, below the slice views"))
        self.board.setCheckable(True)
        self.export.setToolTip(_("Write everything shown here to one HTML file"))
        for n, (button, slot) in enumerate(
            (
                (self.rerun, self.controller.rerun),
                (self.reset, self.controller.reset),
                (self.board, self.boardRequested.emit),
                (self.export, self.exportRequested.emit),
            )
        ):
            button.clicked.connect(lambda *_arguments, slot=slot: slot())
            grid.addWidget(button, n // 2, n % 2)
        body.addLayout(grid)

    def update(self) -> None:
        """Shows the present state of the controller."""
        known = self.controller.model is not None and self.controller.key is not None
        setShown(self.empty, not known)
        if known:
            self._fill()  # before it is seen: every card that is added to what is seen lays out all of it anew
        setShown(self.body, known)

    def _fill(self) -> None:
        controller, evidence, palette = self.controller, self.controller.evidence, self.widget.palette
        self.place.setText(Words.place(controller.model, controller.key))
        self.query.show(controller.queryPicture(), QUERY, QUERY, _("The volume is gone or shows something else."))
        self.coverage.setText(statusHtml(*Words.coverage(evidence)) if evidence else "")
        spacing = controller.model.spacing(controller.key)
        self.trust.setText(statusHtml(*Words.trust(evidence, spacing)) if evidence else escape(Words.notDecoded()))
        self.queryWords.setText(Words.queryHtml(evidence, spacing, palette, controller.edited()))
        references = (evidence or {}).get("references", [])
        self.referencesTitle.setText("<b>" + escape(_("References ({count})").format(count=len(references))) + "</b>")
        setShown(self.referencesTitle, bool(references))
        while len(self.cards) < max(CARDS, len(references)):
            self._addCard()
        for card, reference in zip(self.cards, references):
            card.show(reference)
        for card in self.cards[len(references) :]:
            setShown(card.widget, False)
        self._updateRejected()
        self._updateButtons()

    def _addCard(self) -> None:
        card = ReferenceCard(self.body, self.controller, self._enlarge)
        before = self.cards[-1].buttons[-1] if self.cards else self.query.widget
        self.cards.append(card)
        self.cardsLayout.addWidget(card.widget)
        for button in (*card.buttons, self.rejectedButton):  # the keyboard reaches what was made last at the end
            qt.QWidget.setTabOrder(before, button)
            before = button

    def _updateRejected(self) -> None:
        evidence = self.controller.evidence or {}
        count, shown = len(evidence.get("rejected", [])), bool(self.rejectedButton.checked)
        self.rejectedButton.setArrowType(qt.Qt.DownArrow if shown else qt.Qt.RightArrow)
        self.rejectedButton.setText(_("Rejected candidates ({count})").format(count=count))
        setShown(self.rejectedButton, count > 0)
        self.rejected.setText(Words.rejectedHtml(evidence, self.widget.palette) if shown else "")
        setShown(self.rejected, shown and count > 0)

    def _updateButtons(self) -> None:
        controller = self.controller
        choice = controller.choice()
        self.previous.setEnabled(controller.canStep(-1))
        self.next.setEnabled(controller.canStep(1))
        self.rerun.setEnabled(controller.canRerun())
        self.reset.setEnabled(
            controller.logic.state == "idle" and choice is not None and (bool(choice) or controller.key in controller.model.rerun)
        )
        self.export.setEnabled(controller.logic.state == "idle" and controller.model is not None)

    def _enlarge(self, identifier: str | None) -> None:
        pictures = self.controller.pictures(identifier)
        if pictures:
            self._enlarged = Enlarged(pictures, self.widget.window())


def statusHtml(good: bool, words: str) -> str:
    """A sentence with a mark that says at a glance, and not by colour alone, whether all is well; no line ends between both."""
    return ('<span style="color:#2e9e5b">●</span>&nbsp;' if good else '<span style="color:#d9822b">▲</span>&nbsp;') + escape(words)
