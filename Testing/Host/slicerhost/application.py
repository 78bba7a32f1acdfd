"""``slicer.app`` over the real core: scene, application logic, module logics, subject hierarchy items, settings."""

from __future__ import annotations

import shutil
import tempfile

import qt
import slicer
import vtk
from PySide6.QtCore import Property, Signal

from .layout import qSlicerLayoutManager
from .modules import CoreModule, _ModuleManager, _ModuleSelector
from .sceneio import CoreIOManager

#: Module name -> class of its logic; Colors comes first because others ask it for their default tables.
LOGICS = {
    "Colors": "vtkMRMLColorLogic", "Volumes": "vtkSlicerVolumesLogic", "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic", "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic", "Sequences": "vtkSlicerSequencesLogic", "Tables": "vtkSlicerTablesLogic",
    "Transforms": "vtkSlicerTransformLogic", "Models": "vtkSlicerModelsLogic", "Cameras": "vtkSlicerCamerasModuleLogic",
}  # fmt: skip
_SHOWN_IN_HIERARCHY = ("vtkMRMLDisplayableNode", "vtkMRMLTextNode", "vtkMRMLTableNode", "vtkMRMLSequenceNode")


class qSlicerApplication(qt.QApplication):
    """The application object; without a main window until ``show_main_window`` of the package is called."""

    startupCompleted = Signal()

    def __init__(self, arguments: list[str]):
        super().__init__(arguments)
        self.setApplicationName("Slicer")
        self.setOrganizationName("stand-in")
        self._folder = tempfile.mkdtemp(prefix="slicerhost-")
        self._environment = qt.QProcessEnvironment.systemEnvironment()
        qt.QSettings.setDefaultFormat(qt.QSettings.IniFormat)
        qt.QSettings.setPath(qt.QSettings.IniFormat, qt.QSettings.UserScope, self._folder)
        self._layout_manager = None
        self._io = CoreIOManager()
        self._modules = _ModuleManager()
        self.aboutToQuit.connect(self._quit)

    def _quit(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # the folder is temporary: what stays is for the system to remove

    def _boot(self) -> None:
        scene = self._scene = slicer.mrmlScene = slicer.vtkMRMLScene()
        slicer.app = self
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        scene.AddNode(crosshair)
        logic = self._logic = slicer.vtkSlicerApplicationLogic()
        logic.SetMRMLScene(scene)
        logic.SetTemporaryPath(self._folder)
        logic.GetColorLogic().SetMRMLScene(scene)
        logic.GetColorLogic().AddDefaultColorNodes()
        logic.SetSliceLogics(vtk.vtkCollection())
        logic.SetViewLogics(vtk.vtkCollection())
        for name, class_name in LOGICS.items():
            module_logic = getattr(slicer, class_name)()
            if name != "Terminologies":  # its JSON files are not in the wheel
                module_logic.SetMRMLApplicationLogic(logic)
                module_logic.SetMRMLScene(scene)
            logic.SetModuleLogic(name, module_logic)
            setattr(slicer.modules, name.lower(), CoreModule(name, module_logic))
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
        self._remote, self._data_io = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
        for io_logic in (self._remote, self._data_io):  # ReadFromMRB goes through them
            io_logic.SetMRMLScene(scene)
            io_logic.SetMRMLApplicationLogic(logic)
        self._remote.GetCacheManager().SetRemoteCacheDirectory(self._folder)
        self._data_io.SetAndObserveDataIOManager(self._remote.GetDataIOManager())
        self._remote.AddDataIOToScene()
        scene.AddObserver(scene.NodeAddedEvent, self._node_added)
        scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._node_removed)
        scene.AddObserver(scene.EndImportEvent, self._scene_imported)

    # a Qt plug-in makes subject hierarchy items in the application
    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _node_added(self, scene, event, node) -> None:
        if scene.IsBatchProcessing() or scene.IsImporting():  # the hierarchy nodes of a file are merged afterwards
            return
        self._make_item(slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene), node)

    def _make_item(self, hierarchy, node) -> None:
        shown = not node.GetHideFromEditors() and any(node.IsA(c) for c in _SHOWN_IN_HIERARCHY)
        if hierarchy and shown and not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    def _scene_imported(self, scene, event) -> None:
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        for node in [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]:
            self._make_item(hierarchy, node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _node_removed(self, scene, event, node) -> None:
        if scene.IsBatchProcessing() or scene.IsClosing():
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
        if item:
            hierarchy.RemoveItem(item, False, False)

    def applicationLogic(self):
        return self._logic

    def mrmlScene(self):
        return self._scene

    def coreIOManager(self):
        return self._io

    def ioManager(self):
        return self._io

    def layoutManager(self):
        return self._layout_manager

    def moduleManager(self):
        return self._modules

    def startupEnvironment(self):
        return self._environment

    def testingEnabled(self) -> bool:
        return True

    def userSettings(self):
        return qt.QSettings()

    def settings(self):
        return qt.QSettings()

    def pauseRender(self) -> None:
        """Views are drawn when Qt paints them: nothing to pause."""

    def resumeRender(self) -> None:
        """See pauseRender."""

    temporaryPath = Property(str, lambda self: self._folder)
    slicerHome = Property(str, lambda self: self._folder)
    majorVersion = Property(int, lambda self: 5)
    minorVersion = Property(int, lambda self: 12)
    documentationBaseUrl = Property(str, lambda self: "")


class qSlicerMainWindow(qt.QMainWindow):
    """Module panel at the left, views at the right."""

    def __init__(self, width: int, height: int, panel_width: int):
        super().__init__()
        self.setWindowTitle("Stand-in host")
        area, viewport, left, split = qt.QScrollArea(), qt.QWidget(), qt.QWidget(), qt.QSplitter(qt.Qt.Horizontal)
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(qt.Qt.ScrollBarAlwaysOff)
        self._selector = _ModuleSelector(area)
        column = qt.QVBoxLayout(left)
        column.setContentsMargins(2, 2, 2, 2)
        column.addWidget(self._selector)
        column.addWidget(area, 1)
        split.addWidget(left)
        split.addWidget(viewport)
        split.setSizes([panel_width, max(1, width - panel_width)])
        split.setStretchFactor(1, 1)
        self.setCentralWidget(split)
        self.statusBar().showMessage("")
        self.resize(width, height)
        self._layout_manager = qSlicerLayoutManager(self)
        self._layout_manager.setViewport(viewport)

    def _attach(self, on: bool) -> None:
        """Be the application's main window, or nobody's."""
        self.setObjectName("qSlicerMainWindow" if on else "")
        slicer.app._layout_manager = self._layout_manager if on else None
        if not on:
            self._selector._leave()

    def moduleSelector(self):
        return self._selector


def make_application() -> qSlicerApplication:
    """Start the core; the environment must already name the offscreen platforms (see the package)."""
    app = qSlicerApplication(["Slicer"])
    app.setStyle("Fusion")
    app._boot()
    return app
