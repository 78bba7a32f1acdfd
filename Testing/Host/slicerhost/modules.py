"""``slicer.modules``: the real C++ logics, and scripted modules found in a folder."""

from __future__ import annotations

import importlib.util
import os
import sys
import types

import qt
import shiboken6
import slicer
from PySide6.QtCore import Property, Signal

from .pythonqt import SEALED


class CoreModule:
    """A built-in module: its logic only."""

    def __init__(self, name: str, logic):
        self.name, self._logic = name, logic

    def logic(self):
        return self._logic

    def widgetRepresentation(self):
        return None


class qSlicerScriptedLoadableModuleWidget(qt.QWidget):
    """The frame that holds the panel which the module's Python class fills."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setLayout(qt.QVBoxLayout())
        self._module = self._python = None
        self._entered = False

    def setMRMLScene(self, scene) -> None:
        """The panels find the scene by themselves."""

    def _fill(self, module) -> None:
        self._module = module
        self.setMRMLScene(slicer.mrmlScene)
        source = sys.modules[module.name]
        self._python = getattr(source, f"{module.name}Widget")(self)
        setattr(slicer.modules, f"{module.name}Widget", self._python)
        self._python.setup()

    def reload(self) -> None:
        self._fill(self._module)

    def self(self):
        return self._python

    def module(self):
        return self._module

    def enter(self) -> None:
        self._entered = True
        getattr(self._python, "enter", lambda: None)()

    def exit(self) -> None:
        self._entered = False
        getattr(self._python, "exit", lambda: None)()

    isEntered = Property(bool, lambda self: self._entered)


def _kept(kind, name: str, writable: bool = True) -> Property:
    write = (lambda self, v: self._values.__setitem__(name, v)) if writable else None
    return Property(kind, lambda self: self._values.get(name), write)


class qSlicerScriptedLoadableModule(qt.QObject):
    """A module found as a Python file."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._values: dict = {}
        self._widget = None

    name, path, title = _kept(str, "name", False), _kept(str, "path", False), _kept(str, "title")
    helpText, acknowledgementText = _kept(str, "helpText"), _kept(str, "acknowledgementText")
    categories, contributors = _kept("QVariantList", "categories"), _kept("QVariantList", "contributors")
    dependencies, associatedNodeTypes = _kept("QVariantList", "dependencies"), _kept("QVariantList", "associatedNodeTypes")
    icon, hidden, index = _kept("QVariant", "icon"), _kept(bool, "hidden"), _kept(int, "index")

    def logic(self):
        return None

    def widgetRepresentation(self):
        if self._widget is None or not shiboken6.isValid(self._widget):  # a closed main window takes its panels along
            self._widget = self.createNewWidgetRepresentation()
        return self._widget

    def createNewWidgetRepresentation(self):
        widget = slicer.qSlicerScriptedLoadableModuleWidget()
        widget._fill(self)
        return widget


class _ModuleManager(qt.QObject):
    """``slicer.app.moduleManager()``; also its own factory manager."""

    moduleLoaded = Signal(str)
    moduleAboutToBeUnloaded = Signal(str)

    def factoryManager(self):
        return self

    def module(self, name: str):
        return getattr(slicer.modules, name.lower(), None)

    def modulesNames(self) -> list[str]:
        return [m.name for m in vars(slicer.modules).values() if hasattr(m, "widgetRepresentation")]

    loadedModuleNames = modulesNames

    def isLoaded(self, name: str) -> bool:
        return self.module(name) is not None


class _ModuleSelector(qt.QComboBox):
    """The main window's list of modules; puts the chosen one's panel into the panel area."""

    def __init__(self, area, parent=None):
        super().__init__(parent)
        self._area, self._chosen = area, ""
        self.activated.connect(lambda i: self.selectModule(self.itemData(i)))

    selectedModule = Property(str, lambda self: self._chosen)

    def _refresh(self) -> None:
        self.clear()
        for module in vars(slicer.modules).values():
            if isinstance(module, qSlicerScriptedLoadableModule):
                self.addItem(module.title, module.name)

    def _leave(self) -> None:
        if self._chosen:
            slicer.app.moduleManager().module(self._chosen).widgetRepresentation().exit()
        if self._area.widget() is not None:
            self._area.takeWidget().setParent(None)  # the panel stays alive with its module
        self._chosen = ""

    def selectModule(self, name: str) -> None:
        if name == self._chosen:
            return
        module = slicer.app.moduleManager().module(name)
        panel = module.widgetRepresentation()
        self._leave()
        self._refresh()
        self._chosen = name
        self.setCurrentIndex(self.findData(name))
        self._area.setWidget(panel)
        panel.setVisible(True)
        panel.enter()


def load_module(path: str | os.PathLike) -> qSlicerScriptedLoadableModule:
    """Load the scripted module of a file as the module finder does; the widget is made when first asked for."""
    path = os.fspath(path)
    name, folder = os.path.splitext(os.path.basename(path))[0], os.path.dirname(os.path.abspath(path))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, path)
    source = importlib.util.module_from_spec(spec)
    sys.modules[name] = source
    spec.loader.exec_module(source)
    module = slicer.qSlicerScriptedLoadableModule()
    module._values.update(name=name, path=path)
    module._python = getattr(source, name)(module)
    setattr(slicer.modules, name.lower(), module)
    slicer.app.moduleManager().moduleLoaded.emit(name)
    return module


def install() -> None:
    """Make an empty ``slicer.modules``."""
    slicer.modules = types.SimpleNamespace()
    for cls in (qSlicerScriptedLoadableModule, qSlicerScriptedLoadableModuleWidget):
        setattr(slicer, cls.__name__, cls)
        SEALED.add(cls)
