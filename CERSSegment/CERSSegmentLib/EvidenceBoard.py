"""The wide view of the evidence, as a view of its own in a Slicer layout: query and references side by side, part by part."""

from __future__ import annotations

from html import escape

import qt
import slicer
from slicer.i18n import tr as _

from cers.case import PARTS

from . import Words
from .Cards import Enlarged, PictureButton, PinDrop, label, titleHtml
from .EvidenceController import EvidenceController
from .EvidenceWidget import statusHtml
from .Signal import Signal

TAG, LAYOUT = "cersevidence", 7317
GAP = 10  # between columns
COLUMN = 108  # narrowest column; below it the board scrolls sideways

_VIEW = (
    '<item><view class="vtkMRMLSliceNode" singletontag="{name}"><property name="orientation" action="default">{orientation}</property>'
    '<property name="viewlabel" action="default">{name[0]}</property>'
    '<property name="viewcolor" action="default">{colour}</property></view></item>'
)
_VIEWS = (("Red", "Axial", "#F34A33"), ("Yellow", "Sagittal", "#EDD54C"), ("Green", "Coronal", "#6EB04B"))
DESCRIPTION = (
    '<layout type="vertical" split="true"><item splitSize="450"><layout type="horizontal">'
    + "".join(_VIEW.format(name=n, orientation=o, colour=c) for n, o, c in _VIEWS)
    + f'</layout></item><item splitSize="550"><{TAG}></{TAG}></item></layout>'
)


class _Area(qt.QScrollArea):
    """Tells when its width changed, so that the pictures can be drawn anew."""

    onResize, lastWidth = None, 0

    def resizeEvent(self, event):
        qt.QScrollArea.resizeEvent(self, event)
        if self.onResize is not None and abs(self.width - self.lastWidth) > GAP // 2:  # its own width: scroll bars come and go
            self.lastWidth = self.width
            self.onResize()


class _Column:
    """Everything of the query or of one reference, placed into the board's grid."""

    def __init__(self, parent, grid, number: int, later, onClick, onPin=None, onDrop=None):
        self.identifier, self._visible = "", True
        self.picture = PictureButton(parent, lambda: onClick(self.identifier), later)
        self.title, self.scores = label(parent), label(parent, rich=False)
        self.scores.setToolTip(Words.scoresHelp())
        self.choice = PinDrop(parent, lambda on: onPin(self.identifier, on), lambda on: onDrop(self.identifier, on)) if onPin else None
        self.parts = {name: label(parent, selectable=True) for name in PARTS}
        grid.addWidget(self.picture.widget, 0, number, qt.Qt.AlignTop | qt.Qt.AlignLeft)
        grid.addWidget(self.title, 1, number)
        grid.addWidget(self.scores, 2, number)
        if self.choice:
            grid.addWidget(self.choice.widget, 3, number)
        for n, name in enumerate(PARTS):
            grid.addWidget(self.parts[name], 5 + 2 * n, number)

    def widgets(self) -> list:
        return [self.picture.widget, self.title, self.scores, *self.parts.values()] + ([self.choice.widget] if self.choice else [])

    def setVisible(self, on: bool) -> None:
        if on == self._visible:  # each call lays out the whole board anew
            return
        self._visible = on
        for widget in self.widgets():
            widget.setVisible(on)

    def describe(self, rationale: dict | None) -> None:
        for name, widget in self.parts.items():
            widget.setText(escape(Words.part(rationale, name) or "–"))


class EvidenceBoard:
    """Builds its widget and registers it with the layout manager when it is first shown.

    Signals: shownChanged(bool).
    """

    def __init__(self, controller: EvidenceController):
        self.controller = controller
        self.shownChanged = Signal()
        self.widget, self._live = None, True
        self._factory, self._before, self._enlarged = None, None, None
        controller.changed.connect(self.update)
        controller.busyChanged.connect(lambda _busy: self.update())

    # layout

    @property
    def shown(self) -> bool:
        manager = slicer.app.layoutManager()
        return manager is not None and self.widget is not None and manager.layout == LAYOUT

    def show(self) -> None:
        """Switches to the board's layout and remembers the one in use. Does nothing without a main window."""
        manager = slicer.app.layoutManager()
        if manager is None or self.shown:
            return
        if self.widget is None:
            self._build()
            self._factory = slicer.qSlicerSingletonViewFactory()
            self._factory.setTagName(TAG)
            self._factory.setWidget(self.widget)
            manager.registerViewFactory(self._factory)
            manager.layoutChanged.connect(lambda *_arguments: self._live and self._onLayout())
        node = manager.layoutLogic().GetLayoutNode()
        if not node.SetLayoutDescription(LAYOUT, DESCRIPTION):
            node.AddLayoutDescription(LAYOUT, DESCRIPTION)
        self._before = manager.layout
        manager.setLayout(LAYOUT)
        self.controller.observeViews(self.controller.model is not None)
        self.update()

    def hide(self) -> None:
        """Gives the user the layout back that was in use before; a layout chosen meanwhile stays."""
        manager = slicer.app.layoutManager()
        if manager is not None and self.shown and self._before is not None:
            manager.setLayout(self._before)
        self._before = None

    def _onLayout(self) -> None:
        self.shownChanged.emit(self.shown)
        self.update()  # while another layout was on, nothing was drawn

    # contents

    def _build(self) -> None:
        self.widget = qt.QWidget()
        self.widget.setObjectName("CERSEvidenceBoard")
        outer = qt.QVBoxLayout(self.widget)
        outer.setContentsMargins(6, 4, 6, 4)
        row = qt.QHBoxLayout()
        self.place, self.status = label(self.widget), label(self.widget)
        titles = _("Re-run slice"), _("Reset slice"), _("Close board")
        self.rerun, self.reset, self.close = (qt.QPushButton(title, self.widget) for title in titles)
        row.addWidget(self.place, 1)
        for button, slot in ((self.rerun, self.controller.rerun), (self.reset, self.controller.reset), (self.close, self.hide)):
            button.clicked.connect(lambda *_arguments, slot=slot: slot())
            row.addWidget(button)
        outer.addLayout(row)
        outer.addWidget(self.status)
        self.area = _Area(self.widget)
        self.area.setWidgetResizable(True)
        self.area.setFrameShape(qt.QFrame.NoFrame)
        self._redraw = qt.QTimer()  # not from within the resize itself: it changes sizes
        self._redraw.setSingleShot(True)
        self._redraw.timeout.connect(self.drawPictures)
        self.area.onResize = lambda: self._redraw.start(0)
        outer.addWidget(self.area, 1)
        self.inside = qt.QWidget()
        self.area.setWidget(self.inside)
        column = qt.QVBoxLayout(self.inside)
        column.setContentsMargins(0, 0, 0, 0)
        self.grid = qt.QGridLayout()
        self.grid.setHorizontalSpacing(GAP)
        self.grid.setVerticalSpacing(3)
        column.addLayout(self.grid)
        self.headings = []
        for n, name in enumerate(PARTS):
            heading = label(self.inside, wrap=False)
            heading.setText("<b>" + escape(Words.PART_NAMES[name]()) + "</b>")
            self.grid.addWidget(heading, 4 + 2 * n, 0)
            self.headings.append(heading)
        self.query = _Column(self.inside, self.grid, 0, self.controller.later, lambda _identifier: self._enlarge(None))
        self.columns: list[_Column] = []
        self.none = label(self.inside)
        self.grid.addWidget(self.none, 0, 1, 1, 5)
        self.rejected = label(self.inside, selectable=True)
        column.addWidget(self.rejected)
        column.addStretch(1)

    def update(self) -> None:
        """Shows the present state of the controller, as soon as the panel has."""
        if self.widget is not None and self.shown:
            self.controller.later.do(self, self._update)

    def _update(self) -> None:
        controller, evidence, palette = self.controller, self.controller.evidence, self.widget.palette
        self.inside.setVisible(evidence is not None)
        self.area.setVerticalScrollBarPolicy(qt.Qt.ScrollBarAsNeeded if evidence is not None else qt.Qt.ScrollBarAlwaysOff)
        for button in (self.rerun, self.reset):
            button.setEnabled(False)
        if evidence is None:
            known = controller.model is not None and controller.key is not None
            words = Words.notDecoded() if known else _("No evidence for this slice yet: press Segment in the CERS Segment panel.")
            self.place.setText(escape(words))
            self.status.setText("")
            return
        choice, spacing = controller.choice(), controller.model.spacing(controller.key)
        self.rerun.setEnabled(controller.canRerun())
        self.reset.setEnabled(controller.logic.state == "idle" and (bool(choice) or controller.key in controller.model.rerun))
        self.place.setText("<b>" + escape(Words.place(controller.model, controller.key)) + "</b>&nbsp;&nbsp;")
        self.status.setText(statusHtml(*Words.coverage(evidence)) + "&nbsp;&nbsp; " + statusHtml(*Words.trust(evidence, spacing)))
        self.query.title.setText("<b>" + escape(_("This slice")) + "</b>")
        changed = [_("changed by hand since")] if controller.edited() else []
        self.query.scores.setText(" · ".join([Words.contour(evidence, spacing), *changed]))
        self.query.scores.setToolTip(" ".join([Words.measuredOn(evidence), Words.first(evidence)]))
        self.query.describe(evidence.get("rationale"))
        references = evidence.get("references", [])
        while len(self.columns) < len(references):
            self.columns.append(
                _Column(self.inside, self.grid, len(self.columns) + 1, controller.later, self._enlarge, controller.pin, controller.drop)
            )
        for column, reference in zip(self.columns, references):
            identifier = column.identifier = reference["id"]
            case = controller.case(identifier)
            column.title.setText(titleHtml(reference, case, choice, palette))
            column.scores.setText(Words.scores(reference))
            column.describe((case or {}).get("rationale"))
            column.choice.show(identifier in choice.pinned, identifier in choice.dropped, True)
            column.setVisible(True)
        for column in self.columns[len(references) :]:
            column.identifier = ""
            column.setVisible(False)
        self.none.setText(
            "<big><b>"
            + escape(Words.coverage(evidence)[1])
            + "</b></big><br/>"
            + escape(_("The mask of this slice rests on the network alone, without any reference."))
        )
        self.none.setVisible(not references)
        rejected = Words.rejectedHtml(evidence, palette)
        self.rejected.setText("<b>" + escape(_("Rejected candidates")) + "</b>" + rejected if rejected else "")
        self.drawPictures()

    def drawPictures(self) -> None:
        """Draws the pictures to the width there is."""
        if self.controller.evidence is None:
            return
        count = 1 + len(self.controller.evidence.get("references", []))
        bar = slicer.app.style().pixelMetric(qt.QStyle.PM_ScrollBarExtent)  # its place is left free: it comes with the words
        gaps = (self.grid.columnCount() - 1) * GAP  # also of columns without a reference
        room = (self.area.width - bar - gaps) // max(count, 2) - 6
        width = max(COLUMN, min(room, 220))
        for n in range(len(self.columns) + 1):
            self.grid.setColumnMinimumWidth(n, width + 6 if n < count else 0)
            self.grid.setColumnStretch(n, 1 if n < count else 0)
        if count == 1:
            self.grid.setColumnStretch(1, 2)  # beside the query: why there is no reference
        self.query.picture.show(self.controller.queryPicture(), width, width, _("The volume is gone or shows something else."))
        for column in self.columns[: count - 1]:
            missing = _("Loading…") if self.controller.asked(column.identifier) else _("The picture cannot be read from the pool.")
            column.picture.show(self.controller.casePicture(column.identifier), width, width, missing)

    def _enlarge(self, identifier: str | None) -> None:
        pictures = self.controller.pictures(identifier)
        if pictures:
            self._enlarged = Enlarged(pictures, self.widget.window())

    def cleanup(self) -> None:
        """Leaves the layout. The view stays registered, without its tag, so that layouts take the board of a module loaded anew."""
        self.hide()
        self.controller.later.stop()
        self._live = False
        if self._factory is not None:
            self._factory.setTagName("")
