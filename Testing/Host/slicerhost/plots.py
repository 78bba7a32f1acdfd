"""Plot views: the real chart, series and table nodes, drawn by VTK's charts off screen."""

from __future__ import annotations

import qt
import slicer
import vtk
from PySide6.QtCore import Signal

from .pythonqt import SEALED
from .views import _OffscreenView


class qMRMLPlotView(qt.QWidget):
    """Draws the chart of a plot view node: lines and points over the columns of tables."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = self._node = None
        self._observed: list[tuple] = []
        self._picture = _OffscreenView(self)
        column = qt.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self._picture)
        self._chart, actor, renderer = vtk.vtkChartXY(), vtk.vtkContextActor(), vtk.vtkRenderer()
        actor.GetScene().AddItem(self._chart)
        actor.GetScene().SetRenderer(renderer)
        renderer.AddActor(actor)
        renderer.SetBackground(1, 1, 1)
        self._actor = actor
        self._picture.renderWindow().AddRenderer(renderer)
        style = vtk.vtkContextInteractorStyle()  # as the application has it: the chart is moved and zoomed
        style.SetScene(actor.GetScene())
        self._picture.interactor().SetInteractorStyle(style)

    def setMRMLScene(self, scene) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def setMRMLPlotViewNode(self, node) -> None:
        self._node = node
        self._update()

    def chart(self):
        return self._chart

    def renderWindow(self):
        return self._picture.renderWindow()

    def fitToContent(self) -> None:
        self._update()

    def _update(self, *_) -> None:
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed.clear()
        chart = self._node.GetPlotChartNode() if self._node is not None else None
        series = [chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes())] if chart is not None else []
        tables = {s.GetTableNode() for s in series if s is not None} - {None}
        for node in [self._node, chart, *series, *tables]:
            if node is not None:
                self._observed.append((node, node.AddObserver("ModifiedEvent", self._update)))
        self._chart.ClearPlots()
        if chart is not None:
            self._draw(chart, [s for s in series if s is not None and s.GetTableNode() is not None])
        self._picture.scheduleRender()

    def _draw(self, chart, series) -> None:
        for node in series:
            table = node.GetTableNode().GetTable()
            if table.GetNumberOfRows() < 1 or table.GetColumnByName(node.GetYColumnName()) is None:
                continue
            plot = self._chart.AddPlot(vtk.vtkChart.POINTS if node.GetLineStyle() == 0 else vtk.vtkChart.LINE)
            plot.SetInputData(table, node.GetXColumnName(), node.GetYColumnName())
            plot.SetColorF(*node.GetColor())
            plot.SetWidth(node.GetLineWidth())
            plot.SetMarkerStyle(node.GetMarkerStyle())
            plot.SetMarkerSize(node.GetMarkerSize())
            plot.SetLabel(node.GetName())
        self._chart.SetShowLegend(bool(chart.GetLegendVisibility()))
        self._chart.SetTitle((chart.GetTitle() or "") if chart.GetTitleVisibility() else "")
        self._chart.GetTitleProperties().SetFontSize(chart.GetTitleFontSize())
        for axis, title, auto, limits in (
            (vtk.vtkAxis.BOTTOM, chart.GetXAxisTitle(), chart.GetXAxisRangeAuto(), chart.GetXAxisRange()),
            (vtk.vtkAxis.LEFT, chart.GetYAxisTitle(), chart.GetYAxisRangeAuto(), chart.GetYAxisRange()),
        ):
            item = self._chart.GetAxis(axis)
            item.SetTitle(title or "")
            item.GetTitleProperties().SetFontSize(chart.GetAxisTitleFontSize())
            item.GetLabelProperties().SetFontSize(chart.GetAxisLabelFontSize())
            item.SetBehavior(vtk.vtkAxis.AUTO if auto else vtk.vtkAxis.FIXED)
            if not auto:
                item.SetRange(*limits)
        self._chart.RecalculateBounds()


def install() -> None:
    """Put the class where the application has it."""
    slicer.qMRMLPlotView = qMRMLPlotView
    SEALED.add(qMRMLPlotView)
