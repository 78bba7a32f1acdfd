"""Pages of which one is seen, with buttons in rows above them: more than tabs that fit beside one another in a narrow panel.

A hidden page takes no room, unlike in a tab widget, which is always as high as its highest page.
"""

from __future__ import annotations

import qt
from CERSSegmentLib.Signal import Signal


def addButton(parent, layout, words: str, tip: str, slot):
    """A button at the end of a layout that calls ``slot()`` when it is pressed."""
    button = qt.QPushButton(words, parent)
    button.setToolTip(tip)
    button.clicked.connect(lambda *_checked: slot())
    layout.addWidget(button)
    return button


def inLine(*widgets, names=()):
    """A layout with widgets beside one another; the first takes the room that is left.

    names: of the first ones, for a screen reader: a label before a layout belongs to none of them.
    """
    line = qt.QHBoxLayout()
    for widget in widgets:
        line.addWidget(widget)
    for widget, words in zip(widgets, names):
        widget.setAccessibleName(words)
    line.setStretch(0, 1)
    return line


def wrap(label) -> None:
    """Lets a label wrap; a word that is wider than the panel, such as a file's name, is cut off instead of making the panel wider."""
    label.setWordWrap(True)
    label.setMinimumWidth(1)


def alignForms(forms) -> None:
    """Makes the labels of several forms equally wide, so that their fields stand below one another; with a large font below the labels."""
    for form in forms:
        form.setRowWrapPolicy(qt.QFormLayout.WrapLongRows)
    items = [form.itemAt(row, qt.QFormLayout.LabelRole) for form in forms for row in range(form.rowCount())]
    labels = [item.widget() for item in items if item is not None and item.widget() is not None]
    hints = [label.sizeHint for label in labels]
    width = max((hint() if callable(hint) else hint).width() for hint in hints)
    for label in labels:
        label.setMinimumWidth(width)


class Pages:
    """Pages of which one is seen.

    Args:
        area: the widget in whose layout the pages lie; the buttons go to its top. pages: (widget, title, what it is for).
        columns: buttons in a row.

    Attributes: current: number of the page seen. changed: Signal(), another page is seen.
    """

    def __init__(self, area, pages: list[tuple], columns: int):
        self.changed, self.current = Signal(), 0
        self._pages = [page for page, _title, _tip in pages]
        frame = qt.QWidget(area)
        grid = qt.QGridLayout(frame)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(2)
        self._group = qt.QButtonGroup(frame)
        self.buttons = []
        for number, (_page, title, tip) in enumerate(pages):
            button = qt.QPushButton(title, frame)
            button.setToolTip(tip)
            button.setCheckable(True)
            button.setAutoDefault(False)
            button.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)  # all columns alike
            button.clicked.connect(lambda *_checked, number=number: self.show(number))
            self._group.addButton(button)
            grid.addWidget(button, number // columns, number % columns)
            self.buttons.append(button)
        for column in range(columns):
            grid.setColumnStretch(column, 1)
        area.layout().insertWidget(0, frame)
        self._show()

    def show(self, number: int) -> None:
        """Opens a page."""
        if number != self.current:
            self.current = number
            self._show()
            self.changed.emit()

    def isEnabled(self, number: int) -> bool:
        return bool(self.buttons[number].enabled)

    def setEnabled(self, number: int, on: bool) -> None:
        """Whether a page can be opened."""
        self.buttons[number].setEnabled(on)
        self._pages[number].setEnabled(on)

    def _show(self) -> None:
        self.buttons[self.current].setChecked(True)
        for number, button in enumerate(self.buttons):
            font = button.font
            font = font() if callable(font) else font
            font.setBold(number == self.current)  # a pressed button is hardly seen in a dark style
            button.setFont(font)
        for number, page in enumerate(self._pages):
            if number != self.current:
                page.setVisible(False)
        self._pages[self.current].setVisible(True)
