"""``slicer.ScriptedLoadableModule`` and ``slicer.i18n``: the public contract of the base classes of scripted modules."""

from __future__ import annotations

import logging
import os
import sys
import types
import unittest

import qt
import slicer
import slicer.util


def _resource(instance, filename: str) -> str:
    return os.path.join(os.path.dirname(sys.modules[type(instance).__module__].__file__), "Resources", filename)


class ScriptedLoadableModule:
    """What the module finder reads: title, category, help."""

    def __init__(self, parent):
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title, parent.categories, parent.dependencies, parent.contributors = "", [], [], []
        parent.helpText = parent.acknowledgementText = ""
        parent.hidden = False
        for suffix in ("svg", "png"):
            icon = _resource(self, f"Icons/{self.moduleName}.{suffix}")
            if os.path.isfile(icon):
                parent.icon = qt.QIcon(icon)
                break

    def resourcePath(self, filename: str) -> str:
        return _resource(self, filename)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        return ""

    def runTest(self, msec: int = 100, **kwargs) -> None:
        getattr(sys.modules[type(self).__module__], f"{self.moduleName}Test")().runTest()


class ScriptedLoadableModuleWidget:
    """The panel of a module; without a parent it stands alone."""

    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = slicer.util.settingsValue("Developer/DeveloperMode", False, converter=slicer.util.toBool)
        if parent is None:
            parent = slicer.qMRMLWidget()
            parent.setLayout(qt.QVBoxLayout())
            parent.setMRMLScene(slicer.mrmlScene)
        self.parent, self.layout = parent, parent.layout()
        slicer.app.moduleManager().moduleAboutToBeUnloaded.connect(self._onModuleAboutToBeUnloaded)

    def _onModuleAboutToBeUnloaded(self, moduleName: str) -> None:
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().moduleAboutToBeUnloaded.disconnect(self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename: str) -> str:
        return _resource(self, filename)

    def setup(self) -> None:
        self.setupDeveloperSection()

    def setupDeveloperSection(self) -> None:
        """Reload and test buttons belong to the application."""

    def cleanup(self) -> None:
        """For modules to extend."""

    def onReload(self):
        return slicer.util.reloadScriptedModule(self.moduleName)


class ScriptedLoadableModuleLogic:
    """Keeps the module's parameters in the scene."""

    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self):
        kind = "vtkMRMLScriptedModuleNode"
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, kind)
        else:
            node = next(iter(self.getAllParameterNodes()), None)
        return node or slicer.mrmlScene.AddNode(self.createParameterNode())

    def getAllParameterNodes(self) -> list:
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [n for n in nodes if n.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self):
        node = slicer.vtkMRMLScriptedModuleNode()
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """A module's own test, run from the module's reload section or by the test driver."""

    def __init__(self, *args, **kwargs):
        super().__init__(*(args or ("runTest",)), **kwargs)

    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)

    def runTest(self) -> None:
        """For modules to extend."""

    def delayDisplay(self, message: str, requestedDelay=None, msec=None) -> None:
        logging.info(message)
        slicer.app.processEvents()


BASES = (ScriptedLoadableModule, ScriptedLoadableModuleWidget, ScriptedLoadableModuleLogic, ScriptedLoadableModuleTest)


def install() -> None:
    """Make ``from slicer.ScriptedLoadableModule import *`` and ``from slicer.i18n import tr`` work."""
    bases = types.ModuleType("slicer.ScriptedLoadableModule")
    bases.__all__ = [c.__name__ for c in BASES]
    for cls in BASES:
        setattr(bases, cls.__name__, cls)
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr = lambda text: text
    i18n.translate = lambda context, text: text
    i18n.getContext = lambda sourceFile: os.path.splitext(os.path.basename(sourceFile))[0]
    for module in (bases, i18n):
        sys.modules[module.__name__] = module
        setattr(slicer, module.__name__.partition(".")[2], module)
