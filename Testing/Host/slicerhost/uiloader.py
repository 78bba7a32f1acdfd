"""Qt Designer files with ctk and qMRML widgets, loaded by PySide6."""

from __future__ import annotations

import functools
import operator
import xml.etree.ElementTree as ET

from PySide6 import QtCore, QtUiTools

from .pythonqt import unsealed


class UiLoader(QtUiTools.QUiLoader):
    """Makes the host's own widgets where the form names them, and joins their signals and slots."""

    #: Class name in the form -> the host's class.
    registry: dict[str, type] = {}

    def createWidget(self, className: str, parent=None, name: str = ""):
        cls = self.registry.get(className)
        if cls is None:
            return super().createWidget(className, parent, name)
        widget = cls(parent)
        widget.setObjectName(name)
        self._made.append(widget)
        return widget

    def load(self, device: QtCore.QIODevice, parent=None):
        self._made: list[QtCore.QObject] = []
        root = ET.fromstring(bytes(device.readAll().data()))
        unknown = {c.findtext("class") for c in root.iter("customwidget")} - set(self.registry)
        if unknown:
            raise RuntimeError(f"the host has no widget class {', '.join(sorted(unknown))}")
        # signatures such as setMRMLScene(vtkMRMLScene*) mean nothing to Qt's loader here, nor do enums of Python classes
        connections = [tuple(c.findtext(k) for k in ("sender", "signal", "receiver", "slot")) for c in root.iter("connection")]
        for element in root.findall("connections"):
            root.remove(element)
        late = list(self._take_enums(root))
        buffer = QtCore.QBuffer()
        buffer.setData(QtCore.QByteArray(ET.tostring(root)))
        buffer.open(QtCore.QIODevice.ReadOnly)
        with unsealed():
            widget = super().load(buffer, parent)
        if widget is None:
            raise RuntimeError("the form cannot be read")
        named = {o.objectName: o for o in widget.findChildren(QtCore.QObject)} | {widget.objectName: widget}
        for sender, signal, receiver, slot in connections:
            named[sender].connect(signal, getattr(named[receiver], slot.partition("(")[0]))
        for name, attribute, value in late:
            setattr(named[name], attribute, value)
        widget._made = self._made  # Python owns them: they live as long as the form
        return widget

    def _take_enums(self, root: ET.Element):
        """Remove enum and set properties of the host's classes from the form; yield (object, property, value)."""
        for element in [e for e in root.iter("widget") if e.get("class") in self.registry]:
            for prop in element.findall("property"):
                text = prop.findtext("set") or prop.findtext("enum") or ""
                if text.partition("::")[0] in self.registry:
                    element.remove(prop)
                    values = (getattr(self.registry[t.split("::")[0]], t.split("::")[-1]) for t in text.split("|"))
                    yield element.get("name"), prop.get("name"), functools.reduce(operator.or_, values)
