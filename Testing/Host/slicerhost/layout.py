"""The layout manager: builds the views that the real layout node describes, a module's own ones included."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import qt
import slicer
from PySide6.QtCore import Property, Signal

from .pythonqt import SEALED
from .views import qMRMLSliceWidget, qMRMLThreeDWidget


class qSlicerSingletonViewFactory(qt.QObject):
    """Makes one widget of a module available to layouts under a tag."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._widget, self._tag = None, ""

    def setWidget(self, widget) -> None:
        self._widget = widget

    def widget(self):
        return self._widget

    def setTagName(self, name: str) -> None:
        self._tag = name

    def tagName(self) -> str:
        return self._tag


class qSlicerLayoutManager(qt.QObject):
    """Shows the current layout of the scene's layout node in its viewport."""

    layoutChanged = Signal(int)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._viewport = None
        self._root = None
        self._views: dict[str, qt.QWidget] = {}  # by view node id
        self._factories: list[qSlicerSingletonViewFactory] = []
        self._shown: tuple[int, str] | None = None
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._logic.GetLayoutNode().AddObserver("ModifiedEvent", lambda *_: self._refresh())

    def setViewport(self, widget) -> None:
        self._viewport = widget
        column = qt.QVBoxLayout(widget)
        column.setContentsMargins(0, 0, 0, 0)
        self._refresh()

    def viewport(self):
        return self._viewport

    def layoutLogic(self):
        return self._logic

    def setLayout(self, layout: int) -> None:
        self._logic.GetLayoutNode().SetViewArrangement(int(layout))

    layout = Property(int, lambda self: self._logic.GetLayoutNode().GetViewArrangement(), setLayout)

    def registerViewFactory(self, factory) -> None:
        self._factories.append(factory)
        self._shown = None
        self._refresh()

    def _refresh(self) -> None:
        node = self._logic.GetLayoutNode()
        wanted = (node.GetViewArrangement(), node.GetCurrentLayoutDescription() or "")
        if self._viewport is None or wanted == self._shown or slicer.mrmlScene.IsClosing():
            return
        self._shown = wanted
        for view in self._all_widgets():
            view.setParent(None)  # kept, as the application keeps them
        if self._root is not None:
            self._root.setParent(None)
        self._root = self._build(ET.fromstring(wanted[1])) if wanted[1] else qt.QWidget()
        self._viewport.layout().addWidget(self._root)
        self._root.show()
        self.layoutChanged.emit(wanted[0])

    def _all_widgets(self) -> list:
        return [*self._views.values(), *(f.widget() for f in self._factories if f.widget() is not None)]

    def _build(self, element: ET.Element) -> qt.QWidget:
        if element.tag == "view":
            return self._view(element)
        if element.tag != "layout":
            widget = next((f.widget() for f in self._factories if f.tagName() == element.tag), None)
            if widget is not None:
                widget.setVisible(True)
            return widget or qt.QWidget()
        kind = element.get("type", "horizontal")
        if kind == "tab":
            tabs = qt.QTabWidget()
            for item in element.findall("item"):
                tabs.addTab(self._build(item[0]), item.get("name", ""))
            return tabs
        if kind == "grid":
            return self._grid(element)
        splitter = qt.QSplitter(qt.Qt.Vertical if kind == "vertical" else qt.Qt.Horizontal)
        items = element.findall("item")
        for item in items:
            child = self._build(item[0])
            splitter.addWidget(child)
            child.setVisible(True)
        sizes = [int(item.get("splitSize", "0")) for item in items]
        splitter.setSizes(sizes if any(sizes) else [1000] * len(items))
        return splitter

    def _grid(self, element: ET.Element) -> qt.QWidget:
        widget = qt.QWidget()
        grid = qt.QGridLayout(widget)
        grid.setContentsMargins(0, 0, 0, 0)
        for item in element.findall("item"):
            place = [int(item.get(k, d)) for k, d in (("row", "0"), ("column", "0"), ("rowspan", "1"), ("colspan", "1"))]
            grid.addWidget(self._build(item[0]), *place)
        return widget

    def _view(self, element: ET.Element) -> qt.QWidget:
        kind, tag = element.get("class"), element.get("singletontag")
        node = slicer.mrmlScene.GetSingletonNode(tag, kind)
        if node is None:
            return qt.QLabel(f"{kind} {tag}: not in this host")
        if node.GetID() not in self._views:
            if kind == "vtkMRMLSliceNode":
                view = qMRMLSliceWidget()
                view.setMRMLSliceNode(node)
            elif kind == "vtkMRMLViewNode":
                view = qMRMLThreeDWidget()
                view.setMRMLViewNode(node)
            else:
                return qt.QLabel(f"{kind} {tag}: not in this host")
            view.setMRMLScene(slicer.mrmlScene)
            self._views[node.GetID()] = view
        self._views[node.GetID()].setVisible(True)
        return self._views[node.GetID()]

    def _slices(self) -> dict[str, qMRMLSliceWidget]:
        return {w.mrmlSliceNode().GetLayoutName(): w for w in self._views.values() if isinstance(w, qMRMLSliceWidget)}

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(self._slices())

    def sliceWidget(self, name: str):
        return self._slices().get(name)

    def mrmlSliceLogics(self):
        return slicer.app.applicationLogic().GetSliceLogics()

    def mrmlViewLogics(self):
        return slicer.app.applicationLogic().GetViewLogics()

    def _three_d(self) -> list[qMRMLThreeDWidget]:
        return [w for w in self._views.values() if isinstance(w, qMRMLThreeDWidget)]

    def threeDWidget(self, which):
        views = self._three_d()
        if isinstance(which, str):
            return next((v for v in views if v.mrmlViewNode().GetLayoutName() == which), None)
        return views[which] if which < len(views) else None

    threeDViewCount = Property(int, lambda self: len(self._three_d()))

    def resetSliceViews(self) -> None:
        for view in self._slices().values():
            view.fitSliceToBackground()

    def resetThreeDViews(self) -> None:
        for view in self._three_d():
            view.threeDView().resetFocalPoint()

    def pauseRender(self) -> None:
        """Views are drawn when Qt paints them: nothing to pause."""

    def resumeRender(self) -> None:
        """See pauseRender."""


def install() -> None:
    """Put the classes where the application has them."""
    for cls in (qSlicerSingletonViewFactory, qSlicerLayoutManager):
        setattr(slicer, cls.__name__, cls)
        SEALED.add(cls)
