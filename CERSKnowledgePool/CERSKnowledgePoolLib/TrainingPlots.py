"""The curves of a run as Slicer's own plots: hidden nodes that are not saved, and views of the panel's own."""

from __future__ import annotations

import slicer
import vtk
from slicer.i18n import tr as _

MOST_POINTS = 600
LOSS, DICE, GAIN = "loss", "dice", "gain"
LEAST_RANGE = {DICE: (0.0, 1.0), GAIN: (-0.05, 0.05)}  # of an axis, where the values lie within
SERIES = {  # curve of the history -> chart, colour
    "loss": (LOSS, (0.35, 0.35, 0.38)),
    "plain": (DICE, (0.12, 0.47, 0.71)),
    "null": (DICE, (0.62, 0.62, 0.65)),
    "retrieved": (DICE, (0.90, 0.42, 0.05)),
    "gain": (GAIN, (0.17, 0.55, 0.25)),
}
NAMES = {
    "loss": lambda: _("loss"),
    "plain": lambda: _("plain decoder"),
    "null": lambda: _("without references"),
    "retrieved": lambda: _("with references"),
    "gain": lambda: _("gain by references"),
}
TITLES = {LOSS: lambda: _("Training loss"), DICE: lambda: _("Validation Dice"), GAIN: lambda: _("Evidence gain (Dice)")}


class TrainingPlots:
    """Three charts in three views, made when a run with curves is shown first, and gone with ``clear``.

    Attributes: views: {chart: qMRMLPlotView}, to be put into a layout by the caller.
    """

    def __init__(self, charts: tuple[str, ...] = (DICE, LOSS, GAIN)):
        self.views = {chart: slicer.qMRMLPlotView() for chart in charts}
        for view in self.views.values():
            view.setMRMLScene(slicer.mrmlScene)
            view.setMinimumSize(60, 150)
        self._nodes: dict[str, object] = {}
        self._curves: dict[str, list] = {}
        self._drawn: dict[str, tuple] = {}
        self._closing = slicer.mrmlScene.AddObserver(slicer.mrmlScene.StartCloseEvent, lambda *_event: self._forget())
        self._closed = slicer.mrmlScene.AddObserver(slicer.mrmlScene.EndCloseEvent, lambda *_event: self._again())

    def show(self, curves: dict[str, list[tuple[int, float]]]) -> None:
        """Draws curves by name, each a list of (step, value)."""
        self._curves = curves
        if not any(curves.values()):
            self.clear()
            return
        drawn = {name: (len(points), points[-1:]) for name, points in curves.items()}
        if not self._nodes:
            self._make()
        elif drawn == self._drawn:  # nothing new: leave the view as the user has zoomed it
            return
        self._drawn = drawn
        for chart in self.views:
            self._fill(chart)

    def clear(self) -> None:
        """Takes the nodes out of the scene."""
        nodes, self._nodes, self._curves = list(self._nodes.values()), {}, {}
        for view in self.views.values():
            view.setMRMLPlotViewNode(None)
        for node in nodes:
            if slicer.mrmlScene.IsNodePresent(node):
                slicer.mrmlScene.RemoveNode(node)

    def cleanup(self) -> None:
        """The panel goes away."""
        self.clear()
        slicer.mrmlScene.RemoveObserver(self._closing)
        slicer.mrmlScene.RemoveObserver(self._closed)

    def nodes(self) -> list:
        """The nodes in the scene, for tests."""
        return list(self._nodes.values())

    def _forget(self) -> None:
        """The scene is about to be emptied, by which its nodes go."""
        self._nodes = {}
        for view in self.views.values():
            view.setMRMLPlotViewNode(None)

    def _again(self) -> None:
        if any(self._curves.values()):
            self.show(self._curves)

    def _add(self, key: str, kind: str, name: str):
        node = getattr(slicer, kind)()
        node.SetName(name)
        node.SetHideFromEditors(True)  # before it is added: the data tree shows what it meets otherwise
        node.SetSaveWithScene(False)
        node.SetUndoEnabled(False)
        if kind == "vtkMRMLPlotViewNode":
            node.SetLayoutName(f"CERSTraining-{key}")
            node.SetAndObserveParentLayoutNodeID(self._nodes["owner"].GetID())  # not a view for Slicer's layouts
        self._nodes[key] = slicer.mrmlScene.AddNode(node)
        return self._nodes[key]

    def _make(self) -> None:
        self._add("owner", "vtkMRMLScriptedModuleNode", "CERS training plots")
        for chart, view in self.views.items():
            node = self._add(f"chart {chart}", "vtkMRMLPlotChartNode", TITLES[chart]())
            node.SetTitle(TITLES[chart]())
            node.SetTitleFontSize(12)
            node.SetAxisLabelFontSize(10)
            node.SetAxisTitleFontSize(11)
            node.SetXAxisTitle(_("step"))
            node.SetLegendVisibility(False)  # it would lie over the curves; the panel names them in their colours
            self._add(f"table {chart}", "vtkMRMLTableNode", TITLES[chart]())
            view_node = self._add(f"view {chart}", "vtkMRMLPlotViewNode", TITLES[chart]())
            view_node.SetPlotChartNodeID(node.GetID())
            view.setMRMLPlotViewNode(view_node)

    def _fill(self, chart: str) -> None:
        names = [n for n, (of, _colour) in SERIES.items() if of == chart and len(self._curves.get(n, ())) > 1]  # else no line
        steps = sorted({step for n in names for step, _value in self._curves[n]})
        steps = steps[:: max(1, -(-len(steps) // MOST_POINTS))] if len(steps) > MOST_POINTS else steps
        table = vtk.vtkTable()
        _column(table, "step", steps)
        for n in names:
            values = dict(self._curves[n])
            _column(table, n, [values.get(step, float("nan")) for step in steps])
        node, chart_node = self._nodes[f"table {chart}"], self._nodes[f"chart {chart}"]
        if chart in LEAST_RANGE:  # of a curve that is flat the plot would show the rounding
            low, high = LEAST_RANGE[chart]
            values = [value for n in names for _step, value in self._curves[n]]
            inside = all(low <= value <= high for value in values)
            chart_node.SetYAxisRangeAuto(not inside)
            if inside:
                chart_node.SetYAxisRange(low, high)
        for n in names:
            if f"series {n}" not in self._nodes:
                series = self._add(f"series {n}", "vtkMRMLPlotSeriesNode", NAMES[n]())
                series.SetAndObserveTableNodeID(node.GetID())
                series.SetXColumnName("step")
                series.SetYColumnName(n)
                series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
                series.SetLineStyle(slicer.vtkMRMLPlotSeriesNode.LineStyleSolid)
                series.SetLineWidth(2)
                series.SetMarkerStyle(
                    slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone if n == "loss" else slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle
                )
                series.SetMarkerSize(6)
                series.SetColor(*SERIES[n][1])
        wanted = [self._nodes[f"series {n}"].GetID() for n in names]
        present = [chart_node.GetNthPlotSeriesNodeID(k) for k in range(chart_node.GetNumberOfPlotSeriesNodes())]
        node.SetAndObserveTable(table)
        if wanted != present:  # another run may have other curves
            chart_node.RemoveAllPlotSeriesNodeIDs()
            for identifier in wanted:
                chart_node.AddAndObservePlotSeriesNodeID(identifier)
        node.Modified()


def _column(table, name: str, values) -> None:
    array = vtk.vtkFloatArray()
    array.SetName(name)
    array.SetNumberOfValues(len(values))
    for n, value in enumerate(values):
        array.SetValue(n, value)
    table.AddColumn(array)
