"""Turns a label map into segments of the scene: geometry, names, colours, place in the hierarchy, previous result kept."""

from __future__ import annotations

import re
from collections.abc import Generator

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from cers.case.terminology import label_styles
from cers.errors import InputError

LABEL_TAG = "CERS.Label"  # on each segment that CERS made: the label's name
ID_TAG = "CERS.SegmentID"  # the segment that was made; a copy has another id
PREVIOUS_ROLE = "CERS.Previous"  # segmentation node -> the copy of what it held before the last run
OWNER_ROLE = "CERS.PreviousOf"  # and back: a clone of the segmentation names the copy too


def read(path: str) -> Generator[None, None, tuple[np.ndarray, list[slice] | None]]:
    """Reads a label map (k, j, i) uint8 from ``path`` in pieces; returns it with the box around everything that is not 0, None if empty."""
    source = np.load(path, mmap_mode="r", allow_pickle=False)
    array = np.empty(source.shape, np.uint8)
    used = [np.zeros(n, bool) for n in source.shape]
    for k in range(source.shape[0]):
        array[k] = source[k]
        rows = array[k].any(axis=1)
        if rows.any():
            used[0][k] = True
            used[1] |= rows
            used[2] |= array[k].any(axis=0)
        yield
    if not used[0].any():
        return array, None
    return array, [slice(int(np.argmax(u)), len(u) - int(np.argmax(u[::-1]))) for u in used]


def oriented(volume, array: np.ndarray, offset: tuple[int, int, int]):
    """A vtkOrientedImageData in the volume's own coordinates that holds ``array`` (k, j, i) uint8 from voxel ``offset`` (k, j, i) on."""
    image = slicer.vtkOrientedImageData()
    k, j, i = array.shape
    image.SetExtent(offset[2], offset[2] + i - 1, offset[1], offset[1] + j - 1, offset[0], offset[0] + k - 1)
    scalars = numpy_to_vtk(np.ascontiguousarray(array, np.uint8).ravel(), deep=True, array_type=vtk.VTK_UNSIGNED_CHAR)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    image.SetImageToWorldMatrix(matrix)
    return image


def place(segmentation, volume) -> None:
    """Puts a segmentation under the volume's transform and, in Subject Hierarchy, beside it, and gives it the volume's grid.

    The transform comes first: a segmentation outside its volume's transform would get that transform twice.
    """
    segmentation.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segmentation.SetNodeReferenceID(segmentation.GetReferenceImageGeometryReferenceRole(), volume.GetID())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is not None:
        item, beside = hierarchy.GetItemByDataNode(segmentation), hierarchy.GetItemByDataNode(volume)
        if item and beside:
            hierarchy.SetItemParent(item, hierarchy.GetItemParent(beside))


def create(volume):
    """A new, empty segmentation node for a volume."""
    name = slicer.mrmlScene.GenerateUniqueName(_("{name} lesions").format(name=volume.GetName()))
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)


def makeVisible(segmentation) -> None:
    """Gives a segmentation its way to be drawn, unless it has one: those that a selector adds have none."""
    if segmentation.GetDisplayNode() is not None:
        return
    segmentation.CreateDefaultDisplayNodes()
    display = segmentation.GetDisplayNode()
    if display is not None:
        display.SetOpacity2DFill(0.25)  # the image under the lesion stays readable
        display.SetSliceIntersectionThickness(2)


def make(volume, array: np.ndarray, box, labels: dict[int, str]) -> Generator[None, None, object]:
    """A new segmentation node that holds a label map (see ``fill``); where that is stopped half-way, it is taken out of the scene again."""
    segmentation = create(volume)
    try:
        yield from fill(segmentation, volume, array, box, labels)
    except Exception:
        if segmentation.GetScene() is not None:
            slicer.mrmlScene.RemoveNode(segmentation)
        raise
    return segmentation


def ownSegments(segmentation) -> dict[str, str]:
    """Label name -> segment id of the segments that CERS made.

    A duplicate of such a segment, as a backup, carries its tags, but it is the original that counts, whichever comes first.
    """
    found, original, content = {}, set(), segmentation.GetSegmentation()
    for n in range(content.GetNumberOfSegments()):
        identifier, value, own = content.GetNthSegmentID(n), vtk.mutable(""), vtk.mutable("")
        if not content.GetSegment(identifier).GetTag(LABEL_TAG, value):
            continue
        name = str(value)
        first = content.GetSegment(identifier).GetTag(ID_TAG, own) and str(own) == identifier
        if name not in found or (first and name not in original):
            found[name] = identifier
        if first:
            original.add(name)
    return found


def _words(name: str) -> list[str]:
    return re.findall(r"\w+", name.lower().replace("_", " "))


def namesNow(segmentation, labels: dict[int, str]) -> dict[int, str]:
    """The labels under the names that a person gave their segments since. A name that still holds the label's, as "left tumor", changes
    nothing.

    Raises:
        InputError: two would have one name.
    """
    own, content, names = ownSegments(segmentation), segmentation.GetSegmentation(), dict(labels)
    for value, label in labels.items():
        name = content.GetSegment(own[label]).GetName().strip() if label in own else ""
        if name and not set(_words(label)) <= set(_words(name)):
            names[value] = name
    if len({name.lower() for name in names.values()}) < len(names):
        raise InputError(_("Two segments of this result have the same name. Give each a name of its own, then add it again."))
    return names


def fill(segmentation, volume, array: np.ndarray, box, labels: dict[int, str]) -> Generator[None, None, list[str]]:
    """Writes a label map into a segmentation; returns the segment ids in the order of ``labels``.

    Segments of an earlier run are replaced, segments that a person added stay. A label without voxels gets an empty segment, so that it
    can be painted. Only the box around the lesions is copied.
    """
    place(segmentation, volume)
    makeVisible(segmentation)
    content = segmentation.GetSegmentation()
    for identifier in ownSegments(segmentation).values():
        content.RemoveSegment(identifier)
    made = []
    labels = dict(sorted(labels.items()))
    for (value, name), (colour, terminology) in zip(labels.items(), label_styles(labels.values())):
        title = name[:1].upper() + name[1:]
        mask = array[tuple(box)] == value if box else None
        if mask is None or not mask.any():
            identifier = content.AddEmptySegment(content.GenerateUniqueSegmentID(title), title, colour)
        else:
            image = oriented(volume, mask, tuple(s.start for s in box))
            identifier = segmentation.AddSegmentFromBinaryLabelmapRepresentation(image, title, colour)
        segment = content.GetSegment(identifier)
        segment.SetTag(LABEL_TAG, name)
        segment.SetTag(ID_TAG, identifier)
        segment.SetTag(segment.GetTerminologyEntryTagName(), terminology)
        segment.SetNameAutoGenerated(False)
        segment.SetColorAutoGenerated(False)
        made.append(identifier)
        yield
    return made


def replaceSlice(segmentation, volume, mask: np.ndarray, start: tuple[int, int, int], labels: dict[int, str]) -> None:
    """Writes one slice (a (k, j, i) label map one voxel thick, from voxel ``start`` (k, j, i) on); all other slices stay as they are."""
    content, own = segmentation.GetSegmentation(), ownSegments(segmentation)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for value, name in labels.items():
        if name not in own:
            continue
        image = oriented(volume, mask == value, start)
        if content.GetSegment(own[name]).GetRepresentation("Binary labelmap") is None or not _hasVoxels(segmentation, own[name]):
            if (mask == value).any():
                logic.SetBinaryLabelmapToSegment(image, segmentation, own[name], logic.MODE_REPLACE, image.GetExtent())
            continue
        # first what is there no longer, then what is new: replacing would drop all other slices
        logic.SetBinaryLabelmapToSegment(image, segmentation, own[name], logic.MODE_MERGE_MIN, image.GetExtent())
        logic.SetBinaryLabelmapToSegment(image, segmentation, own[name], logic.MODE_MERGE_MAX, image.GetExtent())


def _hasVoxels(segmentation, identifier: str) -> bool:
    image = segmentation.GetBinaryLabelmapInternalRepresentation(identifier)
    return image is not None and not image.IsEmpty()


def held(segmentation) -> tuple:
    """What a segmentation holds, the transform that it is under and the volume that it belongs to, as a copy."""
    content = slicer.vtkSegmentation()
    content.DeepCopy(segmentation.GetSegmentation())
    return content, *_placed(segmentation)


def putBack(segmentation, before: tuple) -> None:
    """Makes a segmentation what it was when it was ``held``."""
    content, *place = before
    _placeLike(segmentation, *place)
    segmentation.GetSegmentation().DeepCopy(content)


def keepPrevious(segmentation, before: tuple | None = None) -> None:
    """Copies what a segmentation holds, or ``held`` before, to a hidden node beside it; the copy of the run before is dropped."""
    forgetPrevious(segmentation)
    before = before or held(segmentation)
    if before[0].GetNumberOfSegments() == 0:
        return
    copy = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", _("{name} (previous)").format(name=segmentation.GetName()))
    copy.CreateDefaultDisplayNodes()
    copy.SetDisplayVisibility(False)
    copy.SetAttribute(PREVIOUS_ROLE, "copy")  # also when the segmentation is gone
    putBack(copy, before)
    _sameParent(copy, segmentation)
    segmentation.SetNodeReferenceID(PREVIOUS_ROLE, copy.GetID())
    copy.SetNodeReferenceID(OWNER_ROLE, segmentation.GetID())


def previous(segmentation):
    """The node that holds the result before the last run, None if there is none."""
    copy = segmentation.GetNodeReference(PREVIOUS_ROLE) if segmentation is not None else None
    return copy if copy is not None and copy.GetNodeReference(OWNER_ROLE) in (None, segmentation) else None


def forgetPrevious(segmentation) -> None:
    copy = previous(segmentation)
    segmentation.SetNodeReferenceID(PREVIOUS_ROLE, None)
    if copy is not None:
        slicer.mrmlScene.RemoveNode(copy)


def restorePrevious(segmentation) -> bool:
    """Swaps a segmentation with the result before the last run, so that restoring twice changes nothing."""
    copy = previous(segmentation)
    if copy is None:
        return False
    now = held(segmentation)  # with its place: it may be the result of another volume, elsewhere
    putBack(segmentation, (copy.GetSegmentation(), *_placed(copy)))
    putBack(copy, now)
    return True


def _placed(node) -> tuple[str | None, str | None]:
    """Ids of the transform that a segmentation is under and of the volume that it belongs to."""
    return node.GetTransformNodeID(), node.GetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole())


def _placeLike(node, transform: str | None, volume: str | None) -> None:
    node.SetAndObserveTransformNodeID(transform)
    node.SetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole(), volume)


def _sameParent(node, other) -> None:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is not None and hierarchy.GetItemByDataNode(node) and hierarchy.GetItemByDataNode(other):
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), hierarchy.GetItemParent(hierarchy.GetItemByDataNode(other)))
