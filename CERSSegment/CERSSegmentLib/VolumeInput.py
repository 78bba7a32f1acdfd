"""Checks a volume node and hands its voxels to the worker, a piece at a time."""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from cers.case import Geometry
from cers.errors import InputError

SAMPLED = 1 << 15  # voxels
PIECE = 2 << 20  # bytes that are checked and written between two looks at the event queue


def reject(volume) -> str:
    """One sentence on why a volume node cannot be segmented, '' if nothing speaks against it. Looks at the header only, so it is quick."""
    if volume is None:
        return _("Choose an input volume.")
    if volume.IsA("vtkMRMLLabelMapVolumeNode"):
        return _("'{name}' is a label map. Choose the image that it was drawn on.").format(name=volume.GetName())
    image = volume.GetImageData()
    if image is None or min(image.GetDimensions()) < 1 or image.GetPointData().GetScalars() is None:
        return _("'{name}' is empty: it has no voxels. Load the image again, or choose another volume.").format(name=volume.GetName())
    components = image.GetNumberOfScalarComponents()
    if volume.IsA("vtkMRMLDiffusionWeightedVolumeNode") or volume.IsA("vtkMRMLMultiVolumeNode"):
        return _("'{name}' is a 4-D volume with {count} frames. Take out one frame and choose that.").format(
            name=volume.GetName(), count=components
        )
    if components in (3, 4) and image.GetScalarType() == vtk.VTK_UNSIGNED_CHAR:
        return _("'{name}' is a colour image. Convert it to grey values with the Vector to Scalar Volume module.").format(
            name=volume.GetName()
        )
    if components != 1:
        return _("'{name}' has {count} values in each voxel. Take out one of them with the Vector to Scalar Volume module.").format(
            name=volume.GetName(), count=components
        )
    return ""


def spacingKnown(volume) -> bool:
    """Whether somebody measured the size of the volume's pixels.

    Pictures (PNG, JPEG) have none: Slicer gives them 1 mm, or what the header says for printing. What a person set since then counts.
    Without such a file a single slice of exactly 1 mm is taken for one, as a picture is whose colours were made grey.
    """
    from cers.case.io import PICTURES, header_spacing

    storage = volume.GetStorageNode()
    path = (storage.GetFullNameFromFileName() if storage is not None else None) or ""
    if not path.lower().endswith(PICTURES):
        return not worldGeometry(volume).default_pixels
    own, given = volume.GetSpacing()[:2], header_spacing(path)
    return given is not None and not np.allclose(own, given[:2], rtol=1e-4) and not np.allclose(own, 1)


def note(volume) -> str:
    """Remarks on a volume that can be segmented, for instance that it is one frame of a sequence; '' if there are none."""
    found = [frame(volume)] if volume is not None else []
    if volume is not None and not spacingKnown(volume):
        found.append(
            _("Nobody measured the size of its pixels, so lengths and areas are given in pixels. If you know it, set it in Volumes.")
        )
    return " ".join(sentence for sentence in found if sentence)


def frame(volume) -> str:
    """Which frame of a sequence the volume is; '' where it is none."""
    sequences = getattr(slicer.modules, "sequences", None)
    browser = sequences.logic().GetFirstBrowserNodeForProxyNode(volume) if sequences is not None else None
    if browser is not None and browser.GetNumberOfItems() > 1:
        return _("This volume is a sequence: only the frame in view ({frame} of {count}) is segmented.").format(
            frame=browser.GetSelectedItemNumber() + 1, count=browser.GetNumberOfItems()
        )
    return ""


def linearWorld(volume) -> bool:
    """Whether the volume lies in the world without any transform that bends."""
    parent = volume.GetParentTransformNode()
    return parent is None or bool(parent.IsTransformToWorldLinear())


def worldGeometry(volume) -> Geometry:
    """The volume's grid in the world: its own matrix times the parent transform where that is linear, else its own matrix."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    parent = volume.GetParentTransformNode()
    if parent is not None and linearWorld(volume):
        toWorld = vtk.vtkMatrix4x4()
        parent.GetMatrixTransformToWorld(toWorld)
        vtk.vtkMatrix4x4.Multiply4x4(toWorld, matrix, matrix)
    return Geometry(slicer.util.arrayFromVTKMatrix(matrix), tuple(reversed(volume.GetImageData().GetDimensions())))


def voxels(volume) -> np.ndarray | None:
    """(k, j, i) of a volume of the scene, without a copy; None where there are none."""
    if volume is None or volume.GetScene() is None or volume.GetImageData() is None:
        return None
    return slicer.util.arrayFromVolume(volume)


def looks(volume) -> int | None:
    """What tells whether a volume still shows what it did, as a sequence does not that went on: some of its voxels, quickly read."""
    array = voxels(volume)
    if array is None:
        return None
    step = max(1, round((array.size / SAMPLED) ** (1 / 3)))
    return zlib.crc32(np.ascontiguousarray(array[::step, ::step, ::step]))


def write(volume, path: str) -> Generator[None, None, np.ndarray]:
    """Copies the voxels to ``path`` (.npy; (k, j, i)) in pieces. Returns the array that the volume shows, without a copy.

    Raises:
        InputError: the voxels cannot be used, or the volume was removed or changed its size while it was read.
    """
    array = slicer.util.arrayFromVolume(volume)
    image = volume.GetImageData()
    low, high = np.inf, -np.inf
    target = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=array.shape)
    try:
        rows = max(1, PIECE // max(1, array[0, :1].nbytes))
        for k in range(array.shape[0]):
            for start in range(0, array.shape[1], rows):
                if volume.GetScene() is None or volume.GetImageData() is not image:
                    raise InputError(_("The input volume was removed or replaced; nothing was changed."))
                piece = array[k, start : start + rows]
                if piece.dtype.kind == "f" and not np.isfinite(piece).all():
                    raise InputError(
                        _(
                            "The volume holds voxels that are not numbers (NaN or infinite). Replace them, for instance by "
                            "zero, and try again."
                        )
                    )
                low, high = min(low, piece.min()), max(high, piece.max())
                target[k, start : start + rows] = piece
                yield
    finally:
        _done(target)
        del target
    if low == high:
        Path(path).unlink(missing_ok=True)
        raise InputError(_("The volume is empty: every voxel has the same value."))
    return array


def _done(target: np.memmap) -> None:
    """Elsewhere than on Windows other processes see what was written at once, and waiting for the disk would hold up the application."""
    if os.name == "nt":
        target.flush()


def save(array: np.ndarray, path: str) -> Generator[None, None, None]:
    """Writes an array (k, j, i) to ``path`` (.npy) a slice at a time."""
    target = np.lib.format.open_memmap(path, mode="w+", dtype=array.dtype, shape=array.shape)
    try:
        for k in range(array.shape[0]):
            target[k] = array[k]
            yield
    finally:
        _done(target)
        del target


def origin(volume) -> dict:
    """What the scene knows of where the volume came from: modality and the pseudonyms of patient and volume, None where unknown.

    The DICOM identifiers are hashed before they leave this function; names are never read.
    """
    from slicer import vtkMRMLSubjectHierarchyConstants as constants

    from cers.case.dicom import pseudonym

    node = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = node.GetItemByDataNode(volume) if node else 0
    modality = node.GetItemAttribute(item, constants.GetDICOMSeriesModalityAttributeName()) if item else ""
    patient = (
        node.GetAttributeFromItemAncestor(item, constants.GetDICOMPatientIDAttributeName(), constants.GetDICOMLevelPatient())
        if item
        else ""
    )
    return {"modality": modality or None, "patient_id": pseudonym(patient)}
