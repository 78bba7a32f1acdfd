"""Buttons for the pages of a tab widget, in rows: more pages than tabs fit beside one another in a narrow panel."""

from __future__ import annotations

import qt


class PageButtons:
    """Takes the place of a tab widget's bar.

    Args:
        pages: the QTabWidget. columns: buttons in a row.
    """

    def __init__(self, pages, columns: int):
        self.pages = pages
        self.frame = qt.QWidget(pages.parent())
        grid = qt.QGridLayout(self.frame)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(2)
        self._group = qt.QButtonGroup(self.frame)
        self.buttons = []
        for number in range(pages.count):
            button = qt.QPushButton(pages.tabText(number), self.frame)
            button.setToolTip(pages.tabToolTip(number))
            button.setCheckable(True)
            button.setAutoDefault(False)
            button.setMinimumWidth(40)
            button.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)      # all columns alike
            button.clicked.connect(lambda *_checked, number=number: self.pages.setCurrentIndex(number))
            self._group.addButton(button)
            grid.addWidget(button, number // columns, number % columns)
            self.buttons.append(button)
        pages.tabBar().setVisible(False)
        pages.currentChanged.connect(lambda *_index: self._show())
        self._show()

    def setEnabled(self, number: int, on: bool) -> None:
        """Whether a page can be opened."""
        self.pages.setTabEnabled(number, on)
        self.buttons[number].setEnabled(on)

    def _show(self) -> None:
        self.buttons[self.pages.currentIndex].setChecked(True)
