"""The page of the map: every case as a point, alike ones close together, drawn as one of Slicer's own plots."""

from __future__ import annotations

from collections import Counter
from html import escape

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from .CasesPage import FACETS
from .Pages import wrap
from .PoolSession import PoolSession
from .TrainingPlots import TrainingPlots

MAP = "map"
# told apart also by the colour-blind (Okabe and Ito), light enough for a dark background and dark enough for a white one
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#7a5195", "#9a8700")
OTHERS, SHOWN = "#8c8c8c", "#000000"
NEAR = 12  # pixels from a point within which a click means it
NAMED = 3000  # points up to which each has a tooltip of its own: it takes time to write thousands
MARGIN = 0.06  # of the points' extent, free around them
CLICK = 4  # pixels that the mouse may move in a click
DIGITS = 8  # of a case's id that are shown


class MapPlot(TrainingPlots):
    """One view with a cloud of points for each colour. clicked(index of the point): called when a point was clicked."""

    def __init__(self, clicked):
        super().__init__((MAP,))
        self._clicked = clicked
        self._points, self._names = np.zeros((0, 2), np.float32), []
        self._groups: list[tuple[str, str, np.ndarray]] = []
        self._shown = -1
        self._pressed = None
        self._watched = []

    def draw(self, points: np.ndarray, names: list[str], groups: list[tuple[str, str, np.ndarray]], shown: int = -1) -> None:
        """Draws (n, 2) points.

        Args:
            names: of each point, for its tooltip. groups: (words, colour, indices of its points). shown: the point to mark, -1 for none.
        """
        moved = not self._nodes or points is not self._points
        self._points, self._names, self._groups, self._shown = points, names, groups, shown
        self._curves = {MAP: [tuple(p) for p in points[:1]]}  # what the base class asks: is there anything?
        if not len(points):
            self.clear()
            return
        if not self._nodes:
            self._make()
        if moved:  # else it stays as the user has zoomed it
            chart = self._nodes["chart"]
            for column, setAuto, setRange in (
                (0, chart.SetXAxisRangeAuto, chart.SetXAxisRange),
                (1, chart.SetYAxisRangeAuto, chart.SetYAxisRange),
            ):
                low, high = float(points[:, column].min()), float(points[:, column].max())
                room = MARGIN * (high - low) or 0.5
                setAuto(False)
                setRange(low - room, high + room)
        self._fill(MAP)

    def _again(self) -> None:
        if len(self._points):
            self.draw(self._points, self._names, self._groups, self._shown)

    def clear(self) -> None:
        super().clear()
        self._points = np.zeros((0, 2), np.float32)

    def cleanup(self) -> None:
        for watched, tag in self._watched:
            watched.RemoveObserver(tag)
        self._watched = []
        super().cleanup()

    def _make(self) -> None:
        self._add("owner", "vtkMRMLScriptedModuleNode", "CERS map")
        chart = self._add("chart", "vtkMRMLPlotChartNode", _("Map of the pool"))
        chart.SetTitleVisibility(False)
        chart.SetLegendVisibility(False)  # it would lie over the points; the panel names the colours
        chart.SetAxisLabelFontSize(9)
        chart.SetXAxisTitleVisibility(False)
        chart.SetYAxisTitleVisibility(False)
        chart.SetGridVisibility(False)
        view = self._add("map view", "vtkMRMLPlotViewNode", _("Map of the pool"))
        view.SetPlotChartNodeID(chart.GetID())
        self.views[MAP].setMRMLPlotViewNode(view)
        if not self._watched and (interactor := self._interactor()) is not None:
            self._watched = [
                (interactor, interactor.AddObserver("LeftButtonPressEvent", lambda *_event: self._press())),
                (interactor, interactor.AddObserver("LeftButtonReleaseEvent", lambda *_event: self._release())),
            ]

    def _fill(self, _chart: str) -> None:
        chart = self._nodes["chart"]
        chart.RemoveAllPlotSeriesNodeIDs()
        groups = [*self._groups, (_("open case"), SHOWN, np.array([self._shown], int))] if self._shown >= 0 else self._groups
        for number, (words, colour, indices) in enumerate(groups):
            key = f"series {number}"
            if key not in self._nodes:
                table = self._add(f"table {number}", "vtkMRMLTableNode", words)
                series = self._add(key, "vtkMRMLPlotSeriesNode", words)
                series.SetAndObserveTableNodeID(table.GetID())
                series.SetXColumnName("x")
                series.SetYColumnName("y")
                series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
                series.SetLineStyle(slicer.vtkMRMLPlotSeriesNode.LineStyleNone)
            series = self._nodes[key]
            series.SetName(words)
            series.SetLabelColumnName("case" if len(self._points) <= NAMED else "")
            marked = colour == SHOWN
            series.SetMarkerStyle(
                slicer.vtkMRMLPlotSeriesNode.MarkerStyleDiamond if marked else slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle
            )
            series.SetMarkerSize(14 if marked else 7 if len(self._points) < 2000 else 5)
            series.SetColor(*(int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)))
            table, labels = vtk.vtkTable(), vtk.vtkStringArray()
            for name, column in (("x", 0), ("y", 1)):
                array = numpy_to_vtk(np.ascontiguousarray(self._points[indices, column], np.float32), deep=True)
                array.SetName(name)
                table.AddColumn(array)
            labels.SetName("case")
            if len(self._points) <= NAMED:
                for index in indices:
                    labels.InsertNextValue(self._names[index])
                table.AddColumn(labels)
            self._nodes[f"table {number}"].SetAndObserveTable(table)
            chart.AddAndObservePlotSeriesNodeID(series.GetID())

    # clicks

    def _interactor(self):
        renderer = self.views[MAP].chart().GetScene().GetRenderer()
        window = renderer.GetRenderWindow() if renderer is not None else None
        return window.GetInteractor() if window is not None else None

    def _press(self) -> None:
        self._pressed = self._interactor().GetEventPosition()

    def _release(self) -> None:
        at, before = self._interactor().GetEventPosition(), self._pressed
        self._pressed = None
        if before is not None and np.hypot(at[0] - before[0], at[1] - before[1]) <= CLICK and (index := self.at(*at)) is not None:
            qt.QTimer.singleShot(0, lambda: self._clicked(index))  # not from within VTK's own handling of the event

    def pixels(self) -> np.ndarray:
        """(n, 2) places of the points in the view, in pixels from its lower left corner."""
        out = np.zeros(self._points.shape)
        for column, which in ((0, vtk.vtkAxis.BOTTOM), (1, vtk.vtkAxis.LEFT)):
            axis = self.views[MAP].chart().GetAxis(which)
            first, last, low, high = axis.GetPoint1()[column], axis.GetPoint2()[column], axis.GetMinimum(), axis.GetMaximum()
            out[:, column] = first + (self._points[:, column] - low) * (last - first) / ((high - low) or 1.0)
        return out

    def at(self, x: float, y: float) -> int | None:
        """The point under the mouse, None where there is none."""
        if not len(self._points):
            return None
        distance = np.hypot(*(self.pixels() - (x, y)).T)
        nearest = int(distance.argmin())
        return nearest if distance[nearest] <= NEAR else None


class MapPage:
    """Args: page: an empty widget. onOpen(case id): show a case."""

    def __init__(self, page, session: PoolSession, onOpen):
        self.page, self.session, self.onOpen = page, session, onOpen
        self.ids: list[str] = []
        self._points, self._facets, self._open = np.zeros((0, 2), np.float32), {}, ""
        self._stale, self._waiting = True, False
        layout = qt.QVBoxLayout(page)
        layout.setContentsMargins(4, 6, 4, 4)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.facet = qt.QComboBox(page)
        label = qt.QLabel(_("Colour by"), page)
        label.setBuddy(self.facet)
        line.addWidget(label)
        for name, words in FACETS.items():
            self.facet.addItem(words(), name)
        self.facet.setCurrentIndex(self.facet.findData("label"))
        self.facet.setToolTip(_("What tells the colours apart"))
        self.facet.currentIndexChanged.connect(lambda *_index: self._draw())
        line.addWidget(self.facet, 1)
        self.words = qt.QLabel(page)
        wrap(self.words)
        layout.addWidget(self.words)
        self.plot = MapPlot(lambda index: self.onOpen(self.ids[index]) if index < len(self.ids) else None)
        view = self.plot.views[MAP]
        view.setMinimumSize(120, 320)
        view.setToolTip(_("Click a point to open its case; turn the wheel to zoom, drag to move"))
        layout.addWidget(view, 1)
        self.legend = qt.QLabel(page)
        wrap(self.legend)
        self.legend.setTextFormat(qt.Qt.RichText)
        layout.addWidget(self.legend)
        self.clear()

    def clear(self) -> None:
        """No pool is shown, or another one."""
        self.ids, self._points, self._facets, self._stale = [], np.zeros((0, 2), np.float32), {}, True
        self._waiting = False  # the answer about the pool before is dropped
        self._draw()

    def changed(self) -> None:
        """The pool was changed; the map is made again when it comes into view."""
        self._stale = True

    def cleanup(self) -> None:
        self.plot.cleanup()

    def enter(self, openCase: str = "") -> None:
        """The page comes into view. openCase: id of the case to mark."""
        if self._open != openCase:
            self._open = openCase
            self._draw()
        if self._stale and not self._waiting and self.session.folder:
            self._stale, self._waiting = False, True
            if not self.ids:
                self.words.setText(_("Making the map…"))
            self.session.ask("pool_map", {}, self._show, self._failed)

    @property
    def waiting(self) -> bool:
        return self._waiting

    def _failed(self, sentence: str) -> None:
        self._waiting = False
        self.words.setText(sentence)

    def _show(self, result: dict) -> None:
        self._waiting = False
        self.ids, self._points = result["ids"], np.load(result["points"], allow_pickle=False)
        self._facets = result["facets"]
        words = [_("Cases that look alike lie together.") if self.ids else _("There is nothing to show yet.")]
        if len(self.ids) > 2:
            words.append(
                _("The two directions hold {percent}\u00a0% of what tells the pictures apart.").format(
                    percent=round(100 * result["explained"])
                )
            )
        if result["source"] == "pictures" and self.ids:
            words.append(_("No model has read this pool yet, so the plain pictures are compared."))
        if result["missing"]:
            words.append(_("Cases not on the map, because the next Segment will read them first: {count}").format(count=result["missing"]))
        self.words.setText(" ".join(words))
        self._draw()

    def _draw(self) -> None:
        values = self._facets.get(self.facet.itemData(self.facet.currentIndex), [])
        if not self.ids or len(values) != len(self.ids):
            self.plot.clear()
            self.legend.setText("")
            return
        array, groups = np.array(values, dtype=object), []
        counts = Counter(values).most_common()
        kept = counts if len(counts) <= len(COLOURS) else counts[: len(COLOURS) - 1]
        for (value, _count), colour in zip(kept, COLOURS):
            groups.append((value or _("not known"), colour, np.flatnonzero(array == value)))
        if len(kept) < len(counts):
            groups.append((_("others"), OTHERS, np.flatnonzero(~np.isin(array.astype(str), [value for value, _count in kept]))))
        names = [f"{i[:DIGITS]} {value}" for i, value in zip(self.ids, values)] if len(self.ids) <= NAMED else []
        shown = self.ids.index(self._open) if self._open in self.ids else -1
        self.plot.draw(self._points, names, groups, shown)
        marks = [f"<span style='color:{colour}'>●</span>&nbsp;{escape(words)}&nbsp;({len(indices):,})" for words, colour, indices in groups]
        self.legend.setText("&nbsp;&nbsp; ".join(marks + ([f"◆&nbsp;{escape(_('open case'))}"] if shown >= 0 else [])))
