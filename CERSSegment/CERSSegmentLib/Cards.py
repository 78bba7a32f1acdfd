"""Widgets that the panel and the board share: a picture to click on, the pin and drop buttons, the enlarged view."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import qt
from slicer.i18n import tr as _

from . import Pictures, Words
from .Later import Later


def label(parent, rich: bool = True, wrap: bool = True, selectable: bool = False):
    """A text label that shows what it is given as rich text, and never asks for more width than there is."""
    widget = qt.QLabel(parent)
    widget.setTextFormat(qt.Qt.RichText if rich else qt.Qt.PlainText)
    widget.setWordWrap(wrap)
    widget.setAlignment(qt.Qt.AlignLeft | qt.Qt.AlignTop)
    if selectable:
        widget.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
    return widget


def setShown(widget, on: bool) -> None:
    """Shows or hides a widget where that changes anything: each call lays out all that is around it anew."""
    if bool(widget.isHidden()) == bool(on):
        widget.setVisible(on)


class PictureButton:
    """A slice as a button: a click enlarges it. ``widget`` is the Qt widget; a new picture is drawn ``later``."""

    def __init__(self, parent, onClick: Callable[[], None], later: Later):
        self.widget, self._later = qt.QToolButton(parent), later
        self.widget.setAutoRaise(True)
        self.widget.setToolButtonStyle(qt.Qt.ToolButtonIconOnly)
        self.widget.setAccessibleName(_("Picture"))
        self.widget.setSizePolicy(qt.QSizePolicy.Fixed, qt.QSizePolicy.Fixed)
        self.widget.clicked.connect(lambda *_arguments: onClick())
        self.pixmap, self._shown, self._picture = None, None, None

    def show(self, picture: Pictures.Picture | None, width: int, height: int, words: str = "") -> None:
        """Shows a picture at (width, height), or ``words`` where there is none."""
        ratio = float(self.widget.devicePixelRatioF())
        state = (id(picture), width, height, words, ratio, self.widget.palette.color(qt.QPalette.Base).name())
        if self._shown == state:
            return
        self._shown, self._picture = state, picture  # the picture is held, so that its id stays its own
        if picture is None or Pictures.drawn(picture, width, height, ratio):
            self._later.forget(self)
            self._draw(width, height, words, ratio)
        else:
            self._later.do(self, lambda: self._draw(width, height, words, ratio))

    def _draw(self, width: int, height: int, words: str, ratio: float) -> None:
        picture = self._picture
        self.pixmap = (
            Pictures.pixmap(picture, width, height, ratio=ratio)
            if picture is not None
            else Pictures.placeholder(width, height, words, self.widget.palette)
        )
        self.widget.setIconSize(qt.QSize(width, height))
        self.widget.setFixedSize(width + 6, height + 6)
        self.widget.setIcon(qt.QIcon(self.pixmap))
        self.widget.setEnabled(picture is not None)
        if picture is None:  # a disabled icon would be drawn grey
            icon = qt.QIcon(self.pixmap)
            icon.addPixmap(self.pixmap, qt.QIcon.Disabled)
            self.widget.setIcon(icon)
        self.widget.setToolTip(_("{title}. Click to enlarge.").format(title=picture.title) if picture is not None else words)
        self.widget.setAccessibleName(picture.title if picture is not None else words)


class PinDrop:
    """Pin and drop as two buttons that exclude each other."""

    def __init__(self, parent, onPin: Callable[[bool], None], onDrop: Callable[[bool], None]):
        self.widget = qt.QWidget(parent)
        layout = qt.QHBoxLayout(self.widget)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        self.pin, self.drop = qt.QToolButton(self.widget), qt.QToolButton(self.widget)
        for button, text, tip, slot in (
            (self.pin, _("Pin"), _("Use this reference whatever its scores, when the slice is re-run"), onPin),
            (self.drop, _("Drop"), _("Do without this reference when the slice is re-run"), onDrop),
        ):
            button.setText(text)
            button.setToolTip(tip)
            button.setCheckable(True)
            button.clicked.connect(lambda *_arguments, button=button, slot=slot: slot(bool(button.checked)))
            layout.addWidget(button)
        layout.addStretch(1)

    def show(self, pinned: bool, dropped: bool, enabled: bool) -> None:
        for button, on in ((self.pin, pinned), (self.drop, dropped)):
            button.setChecked(on)
            button.setEnabled(enabled)


def titleHtml(reference: dict, case: dict | None, choice, palette) -> str:
    """Rank, name and origin of a reference, and what the user chose for it."""
    state = ""
    if choice is not None and reference["id"] in choice.dropped:
        state = _("dropped at the next re-run")
    elif choice is not None and reference["id"] in choice.pinned and not reference.get("pinned"):
        state = _("pinned at the next re-run")
    elif reference.get("pinned"):
        state = _("pinned") if choice is None or reference["id"] in choice.pinned else _("no longer pinned at the next re-run")
    small = " · ".join(t for t in (Words.caseOrigin(case), state) if t)
    return f"<b>{int(reference['rank'])}&nbsp; {escape(Words.caseTitle(case))}</b>" + (
        f'<br/><span style="color:{Words.muted(palette)}">{escape(small)}</span>' if small else ""
    )


class Enlarged:
    """One or two slices, large and side by side, in a window that does not block."""

    SIZE = 520

    def __init__(self, pictures: list[Pictures.Picture], parent=None):
        self.pictures = pictures
        self.dialog = qt.QDialog(parent)
        self.dialog.setWindowTitle(_("Enlarged"))
        self.dialog.setAttribute(qt.Qt.WA_DeleteOnClose, True)
        layout = qt.QVBoxLayout(self.dialog)
        row = qt.QHBoxLayout()
        layout.addLayout(row)
        self.labels = []
        for picture in pictures:
            column = qt.QVBoxLayout()
            image, title = qt.QLabel(self.dialog), label(self.dialog, rich=False, wrap=False)
            title.setText(picture.title)
            column.addWidget(title)
            column.addWidget(image)
            column.addStretch(1)
            row.addLayout(column)
            self.labels.append(image)
        self.contour = qt.QCheckBox(_("Show contour"), self.dialog)
        self.contour.setChecked(True)
        self.contour.toggled.connect(lambda *_arguments: self.draw())
        layout.addWidget(self.contour)
        self.draw()
        self.dialog.show()

    def draw(self) -> None:
        for image, picture in zip(self.labels, self.pictures):
            image.setPixmap(
                Pictures.pixmap(
                    picture,
                    *Pictures.fitted(picture, self.SIZE, self.SIZE),
                    contour=bool(self.contour.checked),
                    ratio=float(self.dialog.devicePixelRatioF()),
                )
            )
