"""The calibration of a model as one of Slicer's own plots."""

from __future__ import annotations

import slicer
import vtk
from slicer.i18n import tr as _

from .TrainingPlots import TrainingPlots, _column

CALIBRATION = "calibration"
CURVES = {"perfect": (0.6, 0.6, 0.6), "before": (0.72, 0.47, 0.12), "after": (0.04, 0.43, 0.50)}
NAMES = {"perfect": lambda: _("perfect"), "before": lambda: _("before temperature scaling"), "after": lambda: _("as it is used")}


class ModelPlots(TrainingPlots):
    """The reliability diagram: mean probability of a bin against the share of lesion in it."""

    def __init__(self):
        super().__init__((CALIBRATION,))

    def show(self, curves: dict[str, list[tuple[float, float]]]) -> None:
        """Draws curves by name (``CURVES``), each a list of (probability, share of lesion)."""
        self._drawn = {}  # another model may have as many points
        super().show(curves)

    def _make(self) -> None:
        self._add("owner", "vtkMRMLScriptedModuleNode", "CERS model plots")
        chart = self._add("chart", "vtkMRMLPlotChartNode", _("Calibration near lesions"))
        chart.SetTitle(_("Calibration near lesions"))
        chart.SetTitleFontSize(12)
        chart.SetAxisLabelFontSize(10)
        chart.SetAxisTitleFontSize(11)
        chart.SetXAxisTitle(_("probability that the model gives"))
        chart.SetYAxisTitle(_("share that is lesion"))
        chart.SetLegendVisibility(False)  # it would lie over the curves; the panel names them in their colours
        for setRange, setAuto in ((chart.SetXAxisRange, chart.SetXAxisRangeAuto), (chart.SetYAxisRange, chart.SetYAxisRangeAuto)):
            setAuto(False)
            setRange(0.0, 1.0)
        view = self._add("view", "vtkMRMLPlotViewNode", _("Calibration"))
        view.SetPlotChartNodeID(chart.GetID())
        self.views[CALIBRATION].setMRMLPlotViewNode(view)

    def _fill(self, _chart: str) -> None:
        chart = self._nodes["chart"]
        chart.RemoveAllPlotSeriesNodeIDs()
        for name, colour in CURVES.items():
            points = self._curves.get(name, [])
            if len(points) < 2:  # no line
                continue
            if f"series {name}" not in self._nodes:
                table = self._add(f"table {name}", "vtkMRMLTableNode", NAMES[name]())
                series = self._add(f"series {name}", "vtkMRMLPlotSeriesNode", NAMES[name]())
                series.SetAndObserveTableNodeID(table.GetID())
                series.SetXColumnName("probability")
                series.SetYColumnName("share")
                series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
                series.SetLineStyle(slicer.vtkMRMLPlotSeriesNode.LineStyleSolid)
                series.SetLineWidth(2)
                series.SetMarkerStyle(
                    slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone if name == "perfect" else slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle
                )
                series.SetMarkerSize(7)
                series.SetColor(*colour)
            table = vtk.vtkTable()
            _column(table, "probability", [x for x, _y in points])
            _column(table, "share", [y for _x, y in points])
            self._nodes[f"table {name}"].SetAndObserveTable(table)
            chart.AddAndObservePlotSeriesNodeID(self._nodes[f"series {name}"].GetID())


def curves(result: dict) -> dict[str, list[tuple[float, float]]]:
    """The curves near lesions of a result; empty where it has none."""
    found, calibration = {}, result.get("calibration") or {}
    for name, key in (("before", "before_near_lesion"), ("after", "near_lesion")):
        part = calibration.get(key)
        if part:
            found[name] = [(b["probability"], b["lesion"]) for b in part["bins"] if b["voxels"]]
    return {"perfect": [(0.0, 0.0), (1.0, 1.0)], **found} if any(len(c) > 1 for c in found.values()) else {}
