"""The ``ctk`` widgets that the modules use: only members that PythonQt shows of the real classes (api_facts.json)."""

from __future__ import annotations

import sys
import types

import qt
from PySide6.QtCore import Property, Signal

from .pythonqt import SEALED
from .uiloader import UiLoader

_HEADER = 25  # pixels


class ctkCollapsibleButton(qt.QAbstractButton):
    """A header that folds its contents away."""

    contentsCollapsed = Signal(bool)

    def __init__(self, *args):
        text = next((a for a in args if isinstance(a, str)), "")
        super().__init__(next((a for a in args if isinstance(a, qt.QWidget)), None))
        self._folded: list[qt.QWidget] = []
        self._is_collapsed = self._flat = False
        self._line_width = 1
        self.setText(text)
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(qt.QSizePolicy.Preferred, qt.QSizePolicy.Preferred)
        self.setContentsMargins(4, _HEADER, 4, 4)
        self.toggled.connect(lambda on: self._collapse(not on))

    def _collapse(self, on: bool) -> None:
        if on == self._is_collapsed:
            return
        self._is_collapsed = on
        if on:
            self._folded = [c for c in self.children() if isinstance(c, qt.QWidget) and not c.isHidden()]
        for child in self._folded:
            child.setVisible(not on)
        self.setMaximumHeight(_HEADER if on else 16777215)
        self.setChecked(not on)
        self.updateGeometry()
        self.update()
        self.contentsCollapsed.emit(on)

    def childEvent(self, event):
        super().childEvent(event)
        # the child is still under construction: to look at it now would make PySide6 take it for a bare QWidget for good
        if getattr(self, "_is_collapsed", False) and event.added():
            qt.QTimer.singleShot(0, self._fold_new)

    def _fold_new(self):
        if self._is_collapsed:
            for child in self.children():
                if isinstance(child, qt.QWidget) and child not in self._folded and not child.isHidden():
                    self._folded.append(child)
                    child.setVisible(False)

    def mousePressEvent(self, event):
        event.setAccepted(event.position().y() < _HEADER)
        if event.isAccepted():
            super().mousePressEvent(event)

    def paintEvent(self, event):
        painter = qt.QPainter(self)
        option = qt.QStyleOptionButton()
        option.initFrom(self)
        option.rect = qt.QRect(0, 0, self.width, _HEADER - 2)
        option.state |= qt.QStyle.State_Raised
        self.style().drawControl(qt.QStyle.CE_PushButtonBevel, option, painter, self)
        font = qt.QFont(self.font)
        font.setBold(True)
        painter.setFont(font)
        painter.setPen(self.palette.color(qt.QPalette.ButtonText))
        mark = "\u25b8 " if self._is_collapsed else "\u25be "
        painter.drawText(qt.QRect(8, 0, self.width - 12, _HEADER - 2), qt.Qt.AlignVCenter | qt.Qt.AlignLeft, mark + self.text)
        painter.end()

    collapsed = Property(bool, lambda self: self._is_collapsed, lambda self, v: self._collapse(bool(v)))
    flat = Property(bool, lambda self: self._flat, lambda self, v: setattr(self, "_flat", v))
    contentsLineWidth = Property(int, lambda self: self._line_width, lambda self, v: setattr(self, "_line_width", v))


class ctkCollapsibleGroupBox(qt.QGroupBox):
    """A group box that folds."""

    def __init__(self, *args):
        super().__init__(next((a for a in args if isinstance(a, qt.QWidget)), None))
        self._folded: list[qt.QWidget] = []
        self.setTitle(next((a for a in args if isinstance(a, str)), ""))
        self.setCheckable(True)
        self.toggled.connect(self._unfold)

    def _unfold(self, on: bool) -> None:
        if not on:
            self._folded = [c for c in self.children() if isinstance(c, qt.QWidget) and not c.isHidden()]
        for child in self._folded:
            child.setVisible(on)

    collapsed = Property(bool, lambda self: not self.checked, lambda self, v: self.setChecked(not v))


class ctkSliderWidget(qt.QWidget):
    """A slider and a number field that show one value."""

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider, self._spin = qt.QSlider(qt.Qt.Horizontal), qt.QDoubleSpinBox()
        row = qt.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._slider, 1)
        row.addWidget(self._spin)
        self._low, self._high, self._value, self._step, self._page, self._busy, self._tracking = 0.0, 99.0, 0.0, 1.0, 10.0, False, True
        self._slider.valueChanged.connect(lambda i: self._set(self._low + i * self._step))
        self._spin.valueChanged.connect(self._set)
        self._show()

    def _show(self) -> None:
        self._busy = True
        self._spin.setRange(self._low, self._high)
        self._spin.setSingleStep(self._step)
        self._spin.setValue(self._value)
        self._slider.setRange(0, max(0, round((self._high - self._low) / self._step)))
        self._slider.setValue(round((self._value - self._low) / self._step))
        self._busy = False

    def _set(self, value: float) -> None:
        if self._busy:
            return
        value = min(max(float(value), self._low), self._high)
        changed, self._value = value != self._value, value
        self._show()
        if changed:
            self.valueIsChanging.emit(value)
            self.valueChanged.emit(value)

    def _limit(self, name: str, value: float) -> None:
        setattr(self, name, float(value))
        self._show()
        self._set(self._value)

    value = Property(float, lambda self: self._value, lambda self, v: self._set(v))
    minimum = Property(float, lambda self: self._low, lambda self, v: self._limit("_low", v))
    maximum = Property(float, lambda self: self._high, lambda self, v: self._limit("_high", v))
    singleStep = Property(float, lambda self: self._step, lambda self, v: self._limit("_step", v))
    pageStep = Property(float, lambda self: self._page, lambda self, v: setattr(self, "_page", float(v)))
    decimals = Property(int, lambda self: self._spin.decimals, lambda self, v: self._spin.setDecimals(v))
    prefix = Property(str, lambda self: self._spin.prefix, lambda self, v: self._spin.setPrefix(v))
    suffix = Property(str, lambda self: self._spin.suffix, lambda self, v: self._spin.setSuffix(v))
    tracking = Property(bool, lambda self: self._tracking, lambda self, v: setattr(self, "_tracking", v))

    def setValue(self, value: float) -> None:
        self._set(value)

    def setDecimals(self, count: int) -> None:
        self._spin.setDecimals(count)

    def reset(self) -> None:
        self._set(self._low)


class ctkPathLineEdit(qt.QWidget):
    """A path to type, to browse for or to take from the recent ones."""

    Dirs, Files, Drives, NoSymLinks, AllEntries = 1, 2, 4, 8, 7
    Readable, Writable, Executable, Hidden, NoDot, NoDotDot, NoDotAndDotDot = 16, 32, 64, 256, 0x2000, 0x4000, 0x6000
    ShowDirsOnly = 1
    AdjustToContents, AdjustToContentsOnFirstShow, AdjustToMinimumContentsLength = 0, 1, 2
    AdjustToContents, AdjustToContentsOnFirstShow, AdjustToMinimumContentsLength = 0, 1, 2

    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._combo, self._button = qt.QComboBox(), qt.QToolButton()
        self._combo.setEditable(True)
        self._combo.setInsertPolicy(qt.QComboBox.NoInsert)
        self._combo.setSizePolicy(qt.QSizePolicy.Expanding, qt.QSizePolicy.Fixed)
        self._combo.setMinimumContentsLength(8)
        self._combo.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        self._button.setText("\u2026")
        row = qt.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._combo, 1)
        row.addWidget(self._button)
        self._filters, self._options, self._patterns, self._key, self._label = self.AllEntries, 0, [], "", ""
        self._valid, self._policy = False, self.AdjustToContents
        self._combo.currentTextChanged.connect(self._changed)
        self._button.clicked.connect(lambda *_: self.browse())

    def _changed(self, text: str) -> None:
        info = qt.QFileInfo(text)
        valid = bool(text) and info.exists() and (info.isDir() if self._filters & self.AllEntries == self.Dirs else True)
        if valid != self._valid:
            self._valid = valid
            self.validInputChanged.emit(valid)
        self.currentPathChanged.emit(text)

    def browse(self) -> None:
        if self._filters & self.AllEntries == self.Dirs:
            path = qt.QFileDialog.getExistingDirectory(self, "Select folder", self.currentPath)
        else:
            path = qt.QFileDialog.getOpenFileName(self, "Select file", self.currentPath, ";;".join(self._patterns))
        if path:
            self.setCurrentPath(path)

    def setCurrentPath(self, path: str) -> None:
        self._combo.setCurrentText(path or "")

    def addCurrentPathToHistory(self) -> None:
        path = self.currentPath
        if path and self._combo.findText(path) < 0:
            self._combo.blockSignals(True)
            self._combo.insertItem(0, path)
            self._combo.setCurrentIndex(0)
            self._combo.blockSignals(False)
        if self._key:
            qt.QSettings().setValue(self._key, [self._combo.itemText(i) for i in range(self._combo.count)])

    def retrieveHistory(self) -> None:
        stored = qt.QSettings().value(self._key) if self._key else None
        self._combo.blockSignals(True)
        self._combo.addItems([stored] if isinstance(stored, str) else list(stored or []))
        self._combo.blockSignals(False)
        if self._combo.count:
            self._changed(self.currentPath)

    def comboBox(self):
        return self._combo

    def _set_key(self, key: str) -> None:
        self._key = key
        self.retrieveHistory()

    currentPath = Property(str, lambda self: self._combo.currentText, setCurrentPath)
    filters = Property(int, lambda self: self._filters, lambda self, v: setattr(self, "_filters", int(v)))
    options = Property(int, lambda self: self._options, lambda self, v: setattr(self, "_options", int(v)))
    nameFilters = Property("QStringList", lambda self: self._patterns, lambda self, v: setattr(self, "_patterns", list(v)))
    sizeAdjustPolicy = Property(int, lambda self: self._policy, lambda self, v: setattr(self, "_policy", int(v)))
    minimumContentsLength = Property(
        int, lambda self: self._combo.minimumContentsLength, lambda self, v: self._combo.setMinimumContentsLength(v)
    )
    label = Property(str, lambda self: self._label, lambda self, v: setattr(self, "_label", v))
    settingKey = Property(str, lambda self: self._key, _set_key)
    minimumContentsLength = Property(
        int, lambda self: self._combo.minimumContentsLength(), lambda self, v: self._combo.setMinimumContentsLength(v)
    )
    sizeAdjustPolicy = Property(int, lambda self: self.AdjustToMinimumContentsLength, lambda self, v: None)
    showBrowseButton = Property(bool, lambda self: not self._button.isHidden(), lambda self, v: self._button.setVisible(v))
    showHistoryButton = Property(bool, lambda self: True, lambda self, v: None)


WIDGETS = {c.__name__: c for c in (ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkSliderWidget, ctkPathLineEdit)}


def install() -> types.ModuleType:
    """Make ``import ctk`` work."""
    ctk = types.ModuleType("ctk")
    ctk.__dict__.update(WIDGETS)
    SEALED.update(WIDGETS.values())
    UiLoader.registry.update(WIDGETS)
    sys.modules["ctk"] = ctk
    return ctk
