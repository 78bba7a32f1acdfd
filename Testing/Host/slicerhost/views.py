"""Slice and 3D views: the real displayable managers of slicer-core, drawn off screen and painted by Qt."""

from __future__ import annotations

import time

import qt
import slicer
import vtk

from .mrmlwidgets import qMRMLWidget
from .pythonqt import SEALED

_SLICE = "VolumeGlyphSlice ModelSlice Crosshair OrientationMarker Ruler ScalarBar Markups ColorLegend"
_THREE_D = "Camera View Model ThreeDReformat OrientationMarker Ruler Markups VolumeRendering ColorLegend"
SLICE_MANAGERS = [f"vtkMRML{n}DisplayableManager" for n in _SLICE.split()]
SLICE_MANAGERS += ["vtkMRMLSegmentationsDisplayableManager2D", "vtkMRMLTransformsDisplayableManager2D"]
THREE_D_MANAGERS = [f"vtkMRML{n}DisplayableManager" for n in _THREE_D.split()]
THREE_D_MANAGERS += ["vtkMRMLSegmentationsDisplayableManager3D", "vtkMRMLCrosshairDisplayableManager3D"]


def drawing_seconds() -> float:
    """This thread's own work for drawing slice and 3D views in software so far; in the application a graphics card does it."""
    return _OffscreenView._drawing


class _OffscreenView(qt.QWidget):
    """A VTK render window that needs no display; its picture is what ``grab()`` sees."""

    _drawing = 0.0  # seconds of this thread that all views together took to be drawn

    def __init__(self, parent=None):
        super().__init__(parent)
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.ShowWindowOff()
        self._interactor = vtk.vtkGenericRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._interactor.Initialize()
        self._interactor.AddObserver("RenderEvent", self._schedule)
        self._picture, self._stale = None, True
        self.setMinimumSize(60, 60)
        self.setSizePolicy(qt.QSizePolicy.Expanding, qt.QSizePolicy.Expanding)
        self.setFocusPolicy(qt.Qt.StrongFocus)
        self.setMouseTracking(True)

    def renderWindow(self):
        return self._window

    def interactor(self):
        return self._interactor

    def scheduleRender(self) -> None:
        self._schedule()

    def forceRender(self) -> None:
        self._schedule()
        self.repaint()

    def _schedule(self, *_) -> None:
        self._stale = True
        self.update()

    def _resized(self, width: int, height: int) -> None:
        """For views that keep the size in their MRML node."""

    def resizeEvent(self, event):
        width, height = event.size().width(), event.size().height()
        self._window.SetSize(width, height)
        self._interactor.SetSize(width, height)
        self._resized(width, height)
        self._schedule()

    def paintEvent(self, event):
        start = time.thread_time()
        self._paint()
        _OffscreenView._drawing += time.thread_time() - start

    def _paint(self) -> None:
        if self._stale:
            self._stale = False
            self._window.Render()
            pixels = vtk.vtkUnsignedCharArray()
            width, height = self._window.GetSize()
            self._window.GetRGBACharPixelData(0, 0, width - 1, height - 1, 0, pixels)
            self._bytes = bytes(memoryview(pixels))  # the picture refers to them
            self._picture = qt.QImage(self._bytes, width, height, 4 * width, qt.QImage.Format_RGBX8888)
        painter = qt.QPainter(self)
        painter.translate(0, self._picture.height())  # VTK's first row is the lowest
        painter.scale(1, -1)
        painter.drawImage(0, 0, self._picture)
        painter.end()

    def _mouse(self, event, what: str) -> None:
        place, keys = event.position(), event.modifiers()
        control, shift = int(bool(keys & qt.Qt.ControlModifier)), int(bool(keys & qt.Qt.ShiftModifier))
        self._interactor.SetEventInformationFlipY(int(place.x()), int(place.y()), control, shift)
        button = {qt.Qt.RightButton: "Right", qt.Qt.MiddleButton: "Middle"}.get(event.button(), "Left")
        self._interactor.InvokeEvent("MouseMoveEvent" if what == "Move" else f"{button}Button{what}Event")

    def mousePressEvent(self, event):
        self._mouse(event, "Press")

    def mouseReleaseEvent(self, event):
        self._mouse(event, "Release")

    def mouseMoveEvent(self, event):
        self._mouse(event, "Move")

    def wheelEvent(self, event):
        self._interactor.InvokeEvent("MouseWheelForwardEvent" if event.angleDelta().y() > 0 else "MouseWheelBackwardEvent")


def _managers(factory, names: list[str], renderer, view: _OffscreenView):
    factory = factory.GetInstance()
    factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
    for name in names:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    group = slicer.vtkMRMLDisplayableManagerGroup()
    group.SetRenderer(renderer)
    group.Initialize(factory, renderer)
    group.AddObserver(vtk.vtkCommand.UpdateEvent, view._schedule)
    return group


class qMRMLSliceView(_OffscreenView):
    """The picture of a slice view."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._logic = None
        self._renderer, overlay = vtk.vtkRenderer(), vtk.vtkRenderer()
        for renderer in (self._renderer, overlay):
            renderer.GetActiveCamera().ParallelProjectionOn()
        overlay.SetLayer(1)
        self._window.SetNumberOfLayers(2)
        self._window.SetAlphaBitPlanes(1)
        self._window.AddRenderer(self._renderer)
        self._window.AddRenderer(overlay)
        self._mapper, self._actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        self._actor.SetVisibility(0)
        # first prop of the renderer: overlays of managers made later blend over it instead of replacing it
        self._renderer.AddViewProp(self._actor)
        self._group = _managers(slicer.vtkMRMLSliceViewDisplayableManagerFactory, SLICE_MANAGERS, self._renderer, self)
        self._style = slicer.vtkMRMLSliceViewInteractorStyle()

    def _attach(self, logic) -> None:
        self._logic = logic
        self._style.SetSliceLogic(logic)
        self._style.SetDisplayableManagers(self._group)
        self._interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        self._style.SetInteractor(self._interactor)
        self._group.SetMRMLDisplayableNode(logic.GetSliceNode())

    def _show(self) -> None:
        image = self._logic.GetImageDataConnection()
        if image is not None:
            self._mapper.SetInputConnection(image)
        self._actor.SetVisibility(image is not None)
        self._schedule()

    def _resized(self, width: int, height: int) -> None:
        if self._logic is not None:
            self._logic.ResizeSliceNode(width, height)

    def mrmlSliceNode(self):
        return self._logic.GetSliceNode()

    def sliceViewInteractorStyle(self):
        return self._style

    def convertRASToXYZ(self, ras):
        to_xyz = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.mrmlSliceNode().GetXYToRAS(), to_xyz)
        return list(to_xyz.MultiplyPoint([*ras, 1.0])[:3])

    def convertXYZToRAS(self, xyz):
        return list(self.mrmlSliceNode().GetXYToRAS().MultiplyPoint([*xyz, 1.0])[:3])


class qMRMLSliceWidget(qMRMLWidget):
    """A slice view under its coloured bar with the offset slider."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._logic = None
        self._view = qMRMLSliceView()
        self._label, self._slider, self._offset = qt.QLabel(), qt.QSlider(qt.Qt.Horizontal), qt.QLabel()
        self._bar = qt.QWidget()
        row = qt.QHBoxLayout(self._bar)
        row.setContentsMargins(4, 1, 4, 1)
        for widget in (self._label, self._slider, self._offset):
            row.addWidget(widget)
        column = qt.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._bar)
        column.addWidget(self._view, 1)
        self._slider.valueChanged.connect(lambda i: self._logic.SetSliceOffset(self._low + i * self._step))
        self._low, self._step = 0.0, 1.0

    def setMRMLSliceNode(self, node) -> None:
        application = slicer.app.applicationLogic()
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(application)
        application.GetSliceLogics().AddItem(self._logic)
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._logic.SetSliceNode(node)
        self._view._attach(self._logic)
        color = ",".join(str(int(255 * c)) for c in node.GetLayoutColor())
        self._bar.setStyleSheet(f"background: rgb({color}); color: black")
        self._label.setText(node.GetLayoutLabel() or node.GetLayoutName())
        self._logic.AddObserver("ModifiedEvent", self._update)
        node.AddObserver("ModifiedEvent", self._update)
        self._update()

    def _update(self, *_) -> None:
        bounds = [0.0] * 6
        self._logic.GetLowestVolumeSliceBounds(bounds)
        spacing = self._logic.GetLowestVolumeSliceSpacing()[2] or 1.0
        self._low, self._step = bounds[4] + spacing / 2, spacing
        self._slider.blockSignals(True)
        self._slider.setRange(0, max(0, round((bounds[5] - bounds[4]) / spacing) - 1))
        self._slider.setValue(round((self._logic.GetSliceOffset() - self._low) / spacing))
        self._slider.blockSignals(False)
        self._offset.setText(f"{self._logic.GetSliceOffset():.1f} mm")
        self._view._show()

    def sliceLogic(self):
        return self._logic

    def mrmlSliceNode(self):
        return self._logic.GetSliceNode()

    def mrmlAbstractViewNode(self):
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self):
        return self._logic.GetSliceCompositeNode()

    def sliceView(self):
        return self._view

    def viewWidget(self):
        return self._view

    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToBackground()
        self._logic.SnapSliceOffsetToIJK()


class qMRMLThreeDView(_OffscreenView):
    """The picture of a 3D view."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._renderer = vtk.vtkRenderer()
        self._renderer.SetUseDepthPeeling(1)
        self._window.AddRenderer(self._renderer)
        self._group = _managers(slicer.vtkMRMLThreeDViewDisplayableManagerFactory, THREE_D_MANAGERS, self._renderer, self)
        self._style = slicer.vtkMRMLThreeDViewInteractorStyle()
        self._style.SetDisplayableManagers(self._group)
        self._style.SetInteractor(self._interactor)
        self._interactor.SetInteractorStyle(vtk.vtkInteractorStyle3D())
        self._node = None

    def setMRMLViewNode(self, node) -> None:
        self._node = node
        self._group.SetMRMLDisplayableNode(node)
        node.SetBackgroundColor(0.757, 0.764, 0.909)
        node.SetBackgroundColor2(0.454, 0.47, 0.745)

    def mrmlViewNode(self):
        return self._node

    def cameraNode(self):
        return self._group.GetDisplayableManagerByClassName("vtkMRMLCameraDisplayableManager").GetCameraNode()

    def resetFocalPoint(self) -> None:
        node, shown = self._node, (self._node.GetBoxVisible(), self._node.GetAxisLabelsVisible())
        node.SetBoxVisible(0)
        node.SetAxisLabelsVisible(0)
        bounds = [0.0] * 6
        self._renderer.ComputeVisiblePropBounds(bounds)
        if bounds[0] <= bounds[1]:
            self._renderer.GetActiveCamera().SetFocalPoint(*((bounds[i] + bounds[i + 1]) / 2 for i in (0, 2, 4)))
            self._renderer.ResetCamera()
        node.SetBoxVisible(shown[0])
        node.SetAxisLabelsVisible(shown[1])
        self._renderer.ResetCameraClippingRange()
        self._schedule()


class qMRMLThreeDWidget(qMRMLWidget):
    """A 3D view."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._view = qMRMLThreeDView()
        column = qt.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._view)

    def setMRMLViewNode(self, node) -> None:
        application = slicer.app.applicationLogic()
        self._logic = slicer.vtkMRMLViewLogic()
        self._logic.SetMRMLApplicationLogic(application)
        application.GetViewLogics().AddItem(self._logic)
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._view.setMRMLViewNode(node)

    def threeDView(self):
        return self._view

    def viewWidget(self):
        return self._view

    def mrmlViewNode(self):
        return self._view.mrmlViewNode()


WIDGETS = {c.__name__: c for c in (qMRMLSliceView, qMRMLSliceWidget, qMRMLThreeDView, qMRMLThreeDWidget)}


def install() -> None:
    """Put the view classes where the application has them."""
    for name, cls in WIDGETS.items():
        setattr(slicer, name, cls)
    SEALED.update(WIDGETS.values())
