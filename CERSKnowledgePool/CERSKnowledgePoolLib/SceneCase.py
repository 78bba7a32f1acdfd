"""A case of the pool in Slicer's scene, and images of the scene on their way into the pool."""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator

import numpy as np
import slicer
from CERSSegmentLib import Correction, SegmentationResult, VolumeInput
from slicer.i18n import tr as _

from cers.case.terminology import label_styles
from cers.errors import InputError

SHOWN = "CERS.Case"  # attribute of both nodes of a case of the pool: its id, and a sum over its pixels


def show(case: dict, image: np.ndarray, mask: np.ndarray):
    """Shows a case as a volume of one slice and a segmentation, with the geometry it was drawn in; both nodes.

    They are added to the scene, once for what the case holds now: who asks again is shown those that are there.

    Args:
        case: metadata as the worker gives it. image, mask: (rows, columns).
    """
    mark = f"{case['id']} {zlib.crc32(mask.tobytes(), zlib.crc32(image.tobytes())):08x}"
    nodes = _shown(mark) or _add(case, image, mask, mark)
    volume = nodes[0]
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    matrix = VolumeInput.worldGeometry(volume).ijkToRAS
    middle = matrix @ np.array([(image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2, 0, 1])
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        if node.GetLayoutName() == "Red":
            node.RotateToVolumePlane(volume)  # one slice is seen well in its own plane only
        node.JumpSliceByCentering(*middle[:3])
    return nodes


def _shown(mark: str):
    """Volume and segmentation of a case that is in the scene, None if one of them is not."""
    kinds = ("vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode")
    found = [next((n for n in slicer.util.getNodesByClass(kind) if n.GetAttribute(SHOWN) == mark), None) for kind in kinds]
    return None if None in found else tuple(found)


def _add(case: dict, image: np.ndarray, mask: np.ndarray, mark: str):
    name = slicer.mrmlScene.GenerateUniqueName(_("Case {id}").format(id=case["id"][:8]))
    matrix = np.array(case["ijkToRAS"], float) if case["ijkToRAS"] else np.diag([-1.0, -1.0, 1.0, 1.0])
    if not case["ijkToRAS"] and case["spacing"]:
        matrix = np.diag([-case["spacing"][1], -case["spacing"][0], 1.0, 1.0])
    volume = slicer.util.addVolumeFromArray(image[None], ijkToRAS=matrix, name=name)
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name + " " + _("contour"))
    segmentation.CreateDefaultDisplayNodes()
    SegmentationResult.place(segmentation, volume)
    labels = dict(sorted(case["labels"].items(), key=lambda item: int(item[0])))
    for (value, label), (colour, _terminology) in zip(labels.items(), label_styles(labels.values())):
        own = (mask == int(value)).astype(np.uint8)[None]
        if own.any():
            segmentation.AddSegmentFromBinaryLabelmapRepresentation(SegmentationResult.oriented(volume, own, (0, 0, 0)), label, colour)
    for node in (volume, segmentation):
        node.SetAttribute(SHOWN, mark)
    return volume, segmentation


def segments(segmentation) -> list[tuple[str, str]]:
    """(id, name) of the segments of a node, in order."""
    if segmentation is None:
        return []
    content = segmentation.GetSegmentation()
    ids = [content.GetNthSegmentID(n) for n in range(content.GetNumberOfSegments())]
    return [(i, content.GetSegment(i).GetName()) for i in ids]


def identifying(volume) -> dict[str, str]:
    """What the scene knows of the person: field -> value, without empty ones, for the screen only."""
    from slicer import vtkMRMLSubjectHierarchyConstants as constants

    node = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = node.GetItemByDataNode(volume) if node else 0
    fields = {"Name": volume.GetName()}
    for level, names in (
        (constants.GetDICOMLevelPatient(), ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientComments")),
        (constants.GetDICOMLevelStudy(), ("StudyID", "StudyDate", "StudyDescription", "ReferringPhysicianName")),
    ):
        for name in names:
            attribute = getattr(constants, f"GetDICOM{name}AttributeName", None)
            if item and attribute is not None:
                fields[name] = node.GetAttributeFromItemAncestor(item, attribute(), level)
    return {name: value for name, value in fields.items() if value}


def write(volume, segmentation, chosen: list[tuple[str, str]], folder: str) -> Generator[None, None, dict]:
    """Writes a volume and chosen segments to files, a piece at a time; the parameters of ``pool_import_volume`` that say where.

    Args:
        chosen: (segment id, label name); label values are 1, 2, ... in this order, and where segments overlap the later one counts.

    Raises:
        InputError: the volume cannot be used, the two lie under different transforms, or a segment is gone.
    """
    if problem := VolumeInput.reject(volume):
        raise InputError(problem)
    if segmentation.GetTransformNodeID() != volume.GetTransformNodeID():
        raise InputError(_("Image and segmentation lie under different transforms. Put both under the same one, or harden the transforms."))
    if not VolumeInput.linearWorld(volume):
        raise InputError(_("The image lies under a transform that bends. Harden or remove it first."))
    geometry = VolumeInput.worldGeometry(volume)
    image, mask = os.path.join(folder, "add-image.npy"), os.path.join(folder, "add-mask.npy")
    array = yield from VolumeInput.write(volume, image)
    labels = np.zeros(array.shape, np.uint8)
    for value, (identifier, _name) in enumerate(chosen, 1):
        if segmentation.GetSegmentation().GetSegment(identifier) is None:
            raise InputError(_("A chosen segment is no longer there. Choose the segments again."))
        if not Correction.place_segment(segmentation, identifier, volume, labels, value):
            other = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, identifier, volume)  # another grid: resampled
            if other is not None:
                labels[other > 0] = value
        yield
    yield from VolumeInput.save(labels, mask)
    return {
        "image": image,
        "mask": mask,
        "ijkToRAS": geometry.ijkToRAS.tolist(),
        "spacing_known": VolumeInput.spacingKnown(volume),
        "labels": {str(value): name for value, (_id, name) in enumerate(chosen, 1)},
    }
