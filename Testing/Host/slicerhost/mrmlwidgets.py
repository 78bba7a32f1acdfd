"""qMRML widgets over the real MRML scene: only members that PythonQt shows of the real classes (api_facts.json)."""

from __future__ import annotations

import qt
import slicer
from PySide6.QtCore import Property, Signal

from .pythonqt import SEALED
from .uiloader import UiLoader


def _short(class_name: str) -> str:
    return class_name.replace("vtkMRML", "").replace("Node", "")


class qMRMLWidget(qt.QWidget):
    """A widget that is given the scene."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    def setMRMLScene(self, scene) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self):
        return self._scene


def _flag(name: str, default: bool) -> Property:
    def write(self, value):
        self._flags[name] = bool(value)
        self._rebuild()

    return Property(bool, lambda self: self._flags.get(name, default), write)


class qMRMLNodeComboBox(qt.QWidget):
    """Chooses a node of the scene; can offer to add, rename and delete one."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeAboutToBeRemoved = Signal(object)
    currentNodeRenamed = Signal(str)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene, self._tags, self._busy, self._current = None, [], False, ""
        self._types: list[str] = []
        self._ids: list[str] = []
        self._flags: dict[str, bool] = {}
        self._attributes: dict[tuple[str, str], str | None] = {}
        self._base, self._none = "", "None"
        self._combo = qt.QComboBox()
        self._combo.setMinimumContentsLength(8)
        self._combo.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        row = qt.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._combo)
        self._combo.activated.connect(self._activated)

    def setMRMLScene(self, scene) -> None:
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._tags, self._scene = [], scene
        if scene is not None:
            kinds = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndImportEvent, scene.EndCloseEvent, scene.EndBatchProcessEvent)
            self._tags = [scene.AddObserver(kind, lambda *_: self._rebuild()) for kind in kinds]
        self._rebuild()

    def mrmlScene(self):
        return self._scene

    def _accepts(self, node) -> bool:
        if not any(node.IsA(t) if self.showChildNodeTypes else node.GetClassName() == t for t in self._types):
            return False
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        wanted = ((a, v) for (cls, a), v in self._attributes.items() if node.IsA(cls))
        return all(node.GetAttribute(a) is not None and (v is None or node.GetAttribute(a) == str(v)) for a, v in wanted)

    def _nodes(self) -> list:
        scene = self._scene
        nodes = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())] if scene else []
        return [n for n in nodes if self._accepts(n)]

    def nodeCount(self) -> int:
        return len(self._nodes())

    def nodeFromIndex(self, index: int):
        nodes = self._nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    def _rebuild(self) -> None:
        if self._busy or self._scene is None or self._scene.IsBatchProcessing():
            return
        self._busy = True
        nodes, current = self._nodes(), self._current
        self._combo.clear()
        self._ids = [""] if self.noneEnabled or not nodes else []
        if self._ids:
            self._combo.addItem(self._none if self.noneEnabled else "")
        for node in nodes:
            self._combo.addItem(node.GetName() or "")
            self._ids.append(node.GetID())
        actions = [f"Create new {_short(t)}" for t in self._types] if self.addEnabled else []
        actions += ["Rename current node"] * self.renameEnabled + ["Delete current node"] * self.removeEnabled
        if actions:
            self._combo.insertSeparator(self._combo.count)
            self._combo.addItems(actions)
        if current not in self._ids:
            current = self._ids[0]
        self._combo.setCurrentIndex(self._ids.index(current))
        self._busy = False
        self._choose(current)

    def _choose(self, node_id: str) -> None:
        if node_id == self._current:
            return
        self._current = node_id
        self.currentNodeChanged.emit(self.currentNode())
        self.currentNodeIDChanged.emit(node_id)

    def _activated(self, index: int) -> None:
        if index < len(self._ids):
            self._choose(self._ids[index])
            self.nodeActivated.emit(self.currentNode())
            return
        action = self._combo.itemText(index)
        self._combo.setCurrentIndex(self._ids.index(self._current))
        if action.startswith("Create"):
            kind = self._types[index - len(self._ids) - 1]
            self.nodeAddedByUser.emit(self.addNode(kind))
        elif action.startswith("Delete"):
            self.removeCurrentNode()
        else:
            self.renameCurrentNode()

    def addNode(self, class_name: str | None = None):
        kind = class_name or self._types[0]
        node = self._scene.AddNewNodeByClass(kind, self._scene.GenerateUniqueName(self._base or _short(kind)))
        self.nodeAdded.emit(node)
        self.setCurrentNode(node)
        return node

    def removeCurrentNode(self) -> None:
        if node := self.currentNode():
            self.nodeAboutToBeRemoved.emit(node)
            self._scene.RemoveNode(node)

    def renameCurrentNode(self) -> None:
        if node := self.currentNode():
            name, accepted = qt.QInputDialog.getText(self, "Rename", "New name:", qt.QLineEdit.Normal, node.GetName())
            if accepted:
                node.SetName(name)
                self._rebuild()
                self.currentNodeRenamed.emit(name)

    def currentNode(self):
        return self._scene.GetNodeByID(self._current) if self._scene and self._current else None

    def setCurrentNode(self, node) -> None:
        self.setCurrentNodeID("" if node is None else node if isinstance(node, str) else node.GetID())

    def setCurrentNodeID(self, node_id: str | None) -> None:
        node_id = node_id if node_id in self._ids else ""
        if node_id in self._ids:
            self._busy = True
            self._combo.setCurrentIndex(self._ids.index(node_id))
            self._busy = False
        else:  # no "None" entry: the real widget then shows nothing as well
            self._combo.setCurrentIndex(-1)
        self._choose(node_id)

    def setCurrentNodeIndex(self, index: int) -> None:
        self.setCurrentNode(self.nodeFromIndex(index))

    def addAttribute(self, class_name: str, name: str, value=None) -> None:
        self._attributes[class_name, name] = value
        self._rebuild()

    def removeAttribute(self, class_name: str, name: str) -> None:
        self._attributes.pop((class_name, name), None)
        self._rebuild()

    def _set_types(self, types) -> None:
        self._types = list(types)
        self._rebuild()

    def _set_none(self, text: str) -> None:
        self._none = text
        self._rebuild()

    currentNodeID = Property(str, lambda self: self._current, setCurrentNodeID)
    nodeTypes = Property("QStringList", lambda self: self._types, _set_types)
    baseName = Property(str, lambda self: self._base, lambda self, v: setattr(self, "_base", v))
    noneDisplay = Property(str, lambda self: self._none, _set_none)
    addEnabled, removeEnabled = _flag("add", True), _flag("remove", True)
    renameEnabled, editEnabled, noneEnabled = _flag("rename", False), _flag("edit", False), _flag("none", False)
    showHidden, showChildNodeTypes = _flag("hidden", False), _flag("children", True)
    selectNodeUponCreation = _flag("select", True)


WIDGETS = {c.__name__: c for c in (qMRMLWidget, qMRMLNodeComboBox)}


def install() -> None:
    """Put the widgets where the application has them: as ``slicer.NAME`` and in Designer files."""
    for name, cls in WIDGETS.items():
        setattr(slicer, name, cls)
    SEALED.update(WIDGETS.values())
    UiLoader.registry.update(WIDGETS)
