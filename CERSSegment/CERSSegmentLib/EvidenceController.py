"""Which slice's evidence is shown, and what the user does with it. The panel and the board both show what this holds."""

from __future__ import annotations

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from . import Pictures, Words
from .EvidenceModel import EvidenceModel
from .Later import Later
from .SegmentationLogic import IDLE, SegmentationLogic
from .Signal import Signal

FOLLOW_MS = 30  # scrolling fast through a view redraws the evidence once, not for each step


class EvidenceController(VTKObservationMixin):
    """Follows the slice views.

    Signals: changed(): the slice, its evidence, a picture or a choice changed; busyChanged(bool).
    """

    def __init__(self, logic: SegmentationLogic):
        VTKObservationMixin.__init__(self)
        self.logic = logic
        self.model: EvidenceModel | None = None
        self.key: tuple[str, int] | None = None
        self.changed, self.busyChanged = Signal(), Signal()
        self.later = Later()  # the pictures, and what is not in front of the user's eyes
        self._cases: dict[str, dict] = {}
        self._asked: set[str] = set()
        self._pictures: dict[str, Pictures.Picture] = {}
        self._query = None  # ((slice, grey window, colour), picture) drawn last
        self._seen = None  # the slice view that moved last
        self._shown: dict[str, tuple[str, int] | None] = {}  # the slice in every view
        self._arrived = False
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._onSliceMoved)
        logic.finished.connect(self.setModel)
        logic.sliceChanged.connect(self._onSliceChanged)
        logic.stateChanged.connect(lambda state: self.busyChanged.emit(state != IDLE))

    # what is shown

    @property
    def evidence(self) -> dict | None:
        """The evidence of the slice shown, None where there is none."""
        return self.model.slices.get(self.key) if self.model is not None and self.key is not None else None

    def edited(self) -> bool:
        """Whether a person changed the segmentation in the slice shown since it was made."""
        return self.model is not None and self.key is not None and self.model.edited(self.key)

    def setModel(self, model: EvidenceModel | None, move: bool = True) -> None:
        """Shows a new result and moves all slice views to its largest lesion slice, or (``move`` off) shows the slice that is in view."""
        self.model, self.key = model, None
        self._cases, self._asked, self._pictures, self._query = {}, set(), {}, None
        self.observeViews(model is not None)
        if model is None:
            self.changed.emit()
        elif not move:
            seen = (model.at(node) for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"))
            self.key = next((key for key in seen if key is not None), None) or model.largest()
            self._askForCases()
            self.changed.emit()
        else:
            self.show(model.largest())

    def show(self, key: tuple[str, int] | None) -> None:
        """Shows a slice and moves all slice views to it, which may show another volume by now."""
        self.key = key
        if key is not None and self.model.alive:
            showVolume(self.model.volume)  # before the views move: fitting them moves them too
            jump(self.model.centre(key))
        self._timer.stop()  # the views follow us here, not we them
        self._remember()
        self._askForCases()
        self.changed.emit()

    def step(self, direction: int) -> None:
        """Goes to the next (+1) or previous (-1) slice of the plane shown that holds a lesion."""
        if self.model is None or self.key is None:
            return
        plane, index = self.key
        others = [n for n in self.model.stops(plane) if (n - index) * direction > 0]
        if others:
            self.show((plane, min(others) if direction > 0 else max(others)))

    def canStep(self, direction: int) -> bool:
        if self.model is None or self.key is None:
            return False
        return any((n - self.key[1]) * direction > 0 for n in self.model.stops(self.key[0]))

    def _onSliceChanged(self, _key) -> None:
        self._query = None
        self._askForCases()
        self.changed.emit()

    # the user's choices

    def choice(self):
        """The pinned and dropped references of the slice shown, None without one."""
        return self.model.choice(self.key) if self.model is not None and self.key is not None else None

    def pin(self, identifier: str, on: bool) -> None:
        self._choose(identifier, "pinned", "dropped", on)

    def drop(self, identifier: str, on: bool) -> None:
        self._choose(identifier, "dropped", "pinned", on)

    def _choose(self, identifier: str, into: str, outOf: str, on: bool) -> None:
        choice = self.choice()
        if choice is None:
            return
        getattr(choice, outOf).discard(identifier)
        (getattr(choice, into).add if on else getattr(choice, into).discard)(identifier)
        self.changed.emit()

    def canRerun(self) -> bool:
        choice = self.choice()
        return (
            self.logic.state == IDLE and choice is not None and self.evidence is not None and (bool(choice) or self.key in self.model.rerun)
        )

    def rerun(self) -> None:
        """Segments the slice shown again with the choices made."""
        if self.canRerun():
            self.logic.rerun(self.model, self.key)

    def reset(self) -> None:
        """Drops all choices of the slice shown; segments it again if they had been used."""
        choice = self.choice()
        if choice is None or self.logic.state != IDLE:
            return
        choice.pinned.clear()
        choice.dropped.clear()
        if self.key in self.model.rerun:
            self.logic.rerun(self.model, self.key)
        self.changed.emit()

    # pictures

    def colour(self) -> tuple[float, float, float]:
        """The colour of the first segment, in which the predicted contour is drawn."""
        from . import SegmentationResult

        if self.model is not None and self.model.alive:
            own = SegmentationResult.ownSegments(self.model.segmentation)
            if own:
                return tuple(self.model.segmentation.GetSegmentation().GetSegment(next(iter(own.values()))).GetColor())
        return (0.92, 0.38, 0.22)

    def queryPicture(self) -> Pictures.Picture | None:
        """The slice shown with its predicted contour, in the window of the slice views."""
        image = self.model.image(self.key) if self.model is not None and self.key is not None else None
        if image is None:
            return None
        window, colour = self.model.window(), self.colour()
        if self._query is None or self._query[0] != (self.key, window, colour):
            left = self.model.leftOut(self.key)
            picture = Pictures.Picture(
                Pictures.windowed(image, window),
                self.model.mask(self.key).copy(),
                self.model.planes[self.key[0]].spacing,
                colour,
                _("This slice, predicted contour (dashed: left out)") if left is not None else _("This slice, predicted contour"),
                left,
            )
            self._query = ((self.key, window, colour), picture.trimmed())
        return self._query[1]

    def case(self, identifier: str) -> dict | None:
        return self._cases.get(identifier)

    def asked(self, identifier: str) -> bool:
        """Whether a case has been asked for and has not arrived."""
        return identifier in self._asked and identifier not in self._cases

    def casePicture(self, identifier: str) -> Pictures.Picture | None:
        """A pool case with its expert contour, None until it has arrived."""
        case = self._cases.get(identifier)
        if case is None:
            return None
        if identifier not in self._pictures:
            spacing = tuple(case.get("spacing") or (1.0, 1.0))
            self._pictures[identifier] = Pictures.Picture(
                case["image"], case["mask"], spacing, title=_("{name}, expert contour").format(name=Words.caseTitle(case))
            ).trimmed()
        return self._pictures[identifier]

    def pictures(self, identifier: str | None) -> list[Pictures.Picture]:
        """The slice shown and, if one is named and has arrived, a pool case: for the enlarged view."""
        both = self.queryPicture(), self.casePicture(identifier) if identifier else None
        return [picture for picture in both if picture is not None]

    def _askForCases(self) -> None:
        for reference in (self.evidence or {}).get("references", []):
            identifier = reference["id"]
            if identifier not in self._asked:
                self._asked.add(identifier)
                self.logic.case(
                    identifier, self.model.pool, lambda case, identifier=identifier, model=self.model: self._onCase(model, identifier, case)
                )

    def _onCase(self, model, identifier: str, case: dict | None) -> None:
        if model is not self.model:
            return
        if case is None:
            self._asked.discard(identifier)
        else:
            self._cases[identifier] = case
        if not self._arrived:
            self._arrived = True  # several cases that arrive together are shown together
            qt.QTimer.singleShot(FOLLOW_MS, self._onArrived)

    def _onArrived(self) -> None:
        self._arrived = False
        self.changed.emit()

    # slice views

    def observeViews(self, on: bool) -> None:
        """Starts or stops following the slice views, those that a layout adds later too."""
        self.removeObservers()
        if not on:
            self._timer.stop()
            return
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._onSliceNode)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAddedEvent, self._onNodeAdded)
        self._remember()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeAdded(self, _caller, _event, node) -> None:
        if node.IsA("vtkMRMLSliceNode"):
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._onSliceNode)

    def _remember(self) -> None:
        """Notes what every view shows: a view that changes without showing another slice, as in a new layout, is not followed."""
        alive = self.model is not None and self.model.alive
        nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode") if alive else ()
        self._shown = {node.GetID(): self.model.at(node) for node in nodes}

    def _onSliceNode(self, caller, _event) -> None:
        self._seen = caller
        self._timer.start(FOLLOW_MS)

    def _onSliceMoved(self) -> None:
        if self.model is None or not self.model.alive or self._seen is None:
            return
        key, before = self.model.at(self._seen), self._shown.get(self._seen.GetID())
        self._shown[self._seen.GetID()] = key
        if key is not None and key != self.key and key != before:
            self.key = key
            self._askForCases()
            self.changed.emit()


def jump(position) -> None:
    """Moves all slice views to a world position without centring them, as the crosshair does."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *(float(v) for v in position), slicer.vtkMRMLSliceNode.OffsetJumpSlice)


def showVolume(volume) -> None:
    """Shows a volume in the slice views unless one of them shows it already."""
    for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        if volume.GetID() in (node.GetBackgroundVolumeID(), node.GetForegroundVolumeID()):
            return
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
