"""From a result to the Segment Editor and back: opens the editor, and reads what a person made of the result."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

from cers.errors import InputError

from . import SegmentationResult

EDITOR_MODULE, EDITOR_CLASS = "SegmentEditor", "vtkMRMLSegmentEditorNode"
ANNOTATOR_SETTING = "CERS/Annotator"


def volumeOf(segmentation):
    """The volume whose grid a segmentation has, None if it is gone."""
    if segmentation is None or segmentation.GetScene() is None:
        return None
    return segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())


def resultOf(volume):
    """The latest segmentation of the scene that CERS made of a volume, None if there is none; copies of earlier results do not count."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    copies = {node.GetNodeReferenceID(SegmentationResult.PREVIOUS_ROLE) for node in nodes}
    copies |= {node.GetID() for node in nodes if node.GetAttribute(SegmentationResult.PREVIOUS_ROLE)}
    found = [n for n in nodes if n.GetID() not in copies and volumeOf(n) is volume and SegmentationResult.ownSegments(n)]
    return found[-1] if found else None


def reject(segmentation) -> str:
    """One sentence on why a segmentation cannot be corrected or kept, '' if nothing speaks against it."""
    if segmentation is None or segmentation.GetScene() is None or not SegmentationResult.ownSegments(segmentation):
        return _("There is no result of CERS in the output segmentation. Segment a volume first.")
    if volumeOf(segmentation) is None:
        return _("The volume of this result is no longer in the scene. Load it again and segment it.")
    return ""


def openEditor(segmentation) -> bool:
    """Shows the Segment Editor with the first segment of a result selected; False where this application has no such module.

    The editor's own parameter node is filled before the module is shown, so that it takes the choice over as if the user had made it.
    """
    if getattr(slicer.modules, EDITOR_MODULE.lower(), None) is None:
        return False
    node = slicer.mrmlScene.GetSingletonNode(EDITOR_MODULE, EDITOR_CLASS)
    if node is None:
        node = slicer.mrmlScene.CreateNodeByClass(EDITOR_CLASS)
        node.UnRegister(None)
        node.SetSingletonTag(EDITOR_MODULE)
        node = slicer.mrmlScene.AddNode(node)
    node.SetAndObserveSegmentationNode(segmentation)
    node.SetAndObserveSourceVolumeNode(volumeOf(segmentation))
    node.SetSelectedSegmentID(next(iter(SegmentationResult.ownSegments(segmentation).values())))
    slicer.util.selectModule(EDITOR_MODULE)
    return True


def foreignSegments(segmentation) -> list[str]:
    """Names of the segments that do not stem from CERS."""
    content, own = segmentation.GetSegmentation(), set(SegmentationResult.ownSegments(segmentation).values())
    identifiers = [content.GetNthSegmentID(n) for n in range(content.GetNumberOfSegments())]
    return [content.GetSegment(i).GetName() for i in identifiers if i not in own]


def read(segmentation, volume, labels: dict[int, str]) -> Generator[None, None, np.ndarray]:
    """The result as it is now: (k, j, i) uint8 in the volume's grid, each label read from its own segment, whatever is shown or selected.

    Where segments overlap, the later label counts.

    Raises:
        InputError: nothing is left in any of the segments.
    """
    own = SegmentationResult.ownSegments(segmentation)
    array = np.zeros(tuple(reversed(volume.GetImageData().GetDimensions())), np.uint8)
    for value, name in sorted(labels.items()):
        if name in own and not place_segment(segmentation, own[name], volume, array, value):
            mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, own[name], volume)  # another grid: resampled
            if mask is not None:
                array[mask > 0] = value
        yield
    if not array.any():
        raise InputError(_("The corrected segmentation is empty, so there is nothing to keep as a reference."))
    return array


def place_segment(segmentation, identifier: str, volume, array: np.ndarray, value: int) -> bool:
    """Writes a segment that lies on the volume's grid into ``array`` and leaves the voxels around it; False if it lies on another."""
    image = slicer.vtkOrientedImageData()
    if not segmentation.GetBinaryLabelmapRepresentation(identifier, image):
        return False
    if image.IsEmpty():
        return True
    if not _sameGrid(segmentation, image, volume):
        return False
    if (places := _overlap(image, array.shape)) is not None:
        array[places[0]][_voxels(image)[places[1]] > 0] = value
    return True


def readSlice(segmentation, volume, labels: dict[int, str], view, index: int) -> np.ndarray | None:
    """A display slice (rows, columns) uint8 of the result as it is now, which is all that is copied; None on another grid."""
    own, shape = SegmentationResult.ownSegments(segmentation), list(view.geometry.shape)
    at = view.array_index(index)
    array = np.zeros([1 if axis == view.axes[0] else n for axis, n in enumerate(shape)], np.uint8)
    for value, name in sorted(labels.items()):
        segment = segmentation.GetSegmentation().GetSegment(own[name]) if name in own else None
        image = segment.GetRepresentation("Binary labelmap") if segment is not None else None
        if image is None or image.IsEmpty():
            continue
        if not _sameGrid(segmentation, image, volume):
            return None
        places = _overlap(image, shape)
        if places is None or not places[0][view.axes[0]].start <= at < places[0][view.axes[0]].stop:
            continue
        into, outOf = (list(p) for p in places)
        start = outOf[view.axes[0]].start + at - into[view.axes[0]].start
        into[view.axes[0]], outOf[view.axes[0]] = slice(0, 1), slice(start, start + 1)
        array[tuple(into)][_voxels(image)[tuple(outOf)] == segment.GetLabelValue()] = value  # segments share one image
    return view.slices(array)[0]


def onGrid(segmentation, volume) -> bool:
    """Whether a result still lies on its volume's grid: one may have been moved without the other, or its transform hardened."""
    for identifier in SegmentationResult.ownSegments(segmentation).values():
        image = segmentation.GetSegmentation().GetSegment(identifier).GetRepresentation("Binary labelmap")
        if image is not None and not image.IsEmpty() and not _sameGrid(segmentation, image, volume):
            return False
    return segmentation.GetTransformNodeID() == volume.GetTransformNodeID()


def _sameGrid(segmentation, image, volume) -> bool:
    own, grid = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(own)
    volume.GetIJKToRASMatrix(grid)
    same = np.allclose(slicer.util.arrayFromVTKMatrix(own), slicer.util.arrayFromVTKMatrix(grid), atol=1e-4)
    return same and segmentation.GetTransformNodeID() == volume.GetTransformNodeID()


def _voxels(image) -> np.ndarray:
    """(k, j, i), without a copy."""
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(tuple(reversed(image.GetDimensions())))


def _overlap(image, shape) -> tuple[tuple, tuple] | None:
    """(k, j, i) slices of what an image and a grid of ``shape`` share, in the grid and in the image; None where they share nothing."""
    extent = image.GetExtent()
    into, outOf = [], []
    for axis in range(3):
        low, high = extent[4 - 2 * axis], extent[5 - 2 * axis] + 1  # painting may reach beyond the volume
        first, last = max(low, 0), min(high, shape[axis])
        if first >= last:
            return None
        into.append(slice(first, last))
        outOf.append(slice(first - low, last - low))
    return tuple(into), tuple(outOf)
