"""Checks that run inside the application as well as on the stand-in host, without a network or data."""

from __future__ import annotations

import numpy as np
import slicer
import vtk

from . import InstallLogic, Pictures, SegmentationResult, VolumeInput
from .EvidenceModel import EvidenceModel
from .Parameter import Parameter, parameterNode
from .SegmentationLogic import IDLE, SegmentationLogic
from .Task import SLICE_MS

SHAPE = (10, 48, 40)
# oblique, unequal voxels, left-handed
MATRIX = np.array([[-1.1, 0.2, 0.3, 20.0], [0.15, 1.2, -0.2, -30.0], [0.1, 0.1, -4.0, 15.0], [0, 0, 0, 1]])


def run(test) -> None:
    """Runs all checks on a ``unittest.TestCase``."""
    for check in (checkParameters, checkVolumes, checkGeometry, checkPictures):
        test.delayDisplay(check.__name__)
        slicer.mrmlScene.Clear(0)
        check(test)
    if not InstallLogic.missing():
        test.delayDisplay("checkRun")
        slicer.mrmlScene.Clear(0)
        checkRun(test)
    test.delayDisplay("All checks passed")


def makeVolume(name: str = "volume", matrix: np.ndarray = MATRIX, shape: tuple = SHAPE, seed: int = 1):
    """A noisy body with a bright lesion, float32."""
    random = np.random.default_rng(seed)
    k, j, i = np.indices(shape).astype(np.float32)
    centre = [(n - 1) / 2 for n in shape]
    radius = np.sqrt(((k - centre[0]) / shape[0]) ** 2 + ((j - centre[1]) / shape[1]) ** 2 + ((i - centre[2]) / shape[2]) ** 2)
    array = np.where(radius < 0.45, 300, 0) + np.where(radius < 0.15, 400, 0) + random.normal(0, 15, shape)
    return slicer.util.addVolumeFromArray(array.astype(np.float32), ijkToRAS=matrix, name=name)


def makeTransform(node=None):
    """A rotation with a shift; applied to a node if one is given."""
    transform = vtk.vtkTransform()
    transform.Translate(12, -7, 31)
    transform.RotateZ(35)
    transform.RotateX(20)
    parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    parent.SetMatrixTransformToParent(transform.GetMatrix())
    if node is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return parent


def lesionMap(shape: tuple = SHAPE) -> np.ndarray:
    """A label map without any symmetry, so that a flip or a shift shows."""
    array = np.zeros(shape, np.uint8)
    array[2:7, 10:22, 5:14] = 1
    array[4, 10:30, 20:23] = 1
    array[6:8, 12:15, 12:30] = 2
    return array


def checkParameters(test) -> None:
    """Parameters live in the scene's node."""
    volume, first = makeVolume(), Parameter(parameterNode())
    first.inputVolume, first.text, first.threads, first.planes = volume, "ring-enhancing mass", 3, "three"
    second = Parameter(parameterNode())
    test.assertIs(second.inputVolume, volume)
    test.assertEqual((second.text, second.threads, second.planes, second.device), ("ring-enhancing mass", 3, "three", "auto"))


def checkVolumes(test) -> None:
    """What cannot be segmented is refused with a sentence."""
    test.assertEqual(VolumeInput.reject(makeVolume()), "")
    test.assertIn("Choose", VolumeInput.reject(None))
    label = slicer.util.addVolumeFromArray(lesionMap(), nodeClassName="vtkMRMLLabelMapVolumeNode")
    test.assertIn("label map", VolumeInput.reject(label))
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    test.assertIn("empty", VolumeInput.reject(empty))


def checkGeometry(test) -> None:
    """A mask lies where the volume's voxels lie, also under a transform that rotates."""
    array = lesionMap()
    for moved in (False, True):
        volume = makeVolume()
        if moved:
            makeTransform(volume)
        segmentation = SegmentationResult.create(volume)
        box = [slice(2, 8), slice(10, 30), slice(5, 30)]
        for _step in SegmentationResult.fill(segmentation, volume, array, box, {1: "tumor", 2: "edema"}):
            pass
        own = SegmentationResult.ownSegments(segmentation)
        for value, name in ((1, "tumor"), (2, "edema")):
            test.assertLess(farthest(segmentation, own[name], volume, array == value), 1e-3)


def farthest(segmentation, identifier: str, volume, mask: np.ndarray) -> float:
    """Largest distance in mm between the world positions of a mask's voxels and those of a segment's; infinite if their counts differ."""
    image = slicer.vtkOrientedImageData()
    segmentation.GetBinaryLabelmapRepresentation(identifier, image)
    matrix, extent = vtk.vtkMatrix4x4(), image.GetExtent()
    image.GetImageToWorldMatrix(matrix)
    parent = segmentation.GetParentTransformNode()
    if parent is not None:
        toWorld = vtk.vtkMatrix4x4()
        parent.GetMatrixTransformToWorld(toWorld)
        vtk.vtkMatrix4x4.Multiply4x4(toWorld, matrix, matrix)
    from vtk.util.numpy_support import vtk_to_numpy

    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(tuple(reversed(image.GetDimensions())))
    found = np.argwhere(voxels > 0)[:, ::-1] + np.array(extent[::2])
    expected = np.argwhere(mask)[:, ::-1]
    if len(found) != len(expected):
        return float("inf")
    there = found @ slicer.util.arrayFromVTKMatrix(matrix)[:3, :3].T + slicer.util.arrayFromVTKMatrix(matrix)[:3, 3]
    wanted = VolumeInput.worldGeometry(volume).ras(expected)
    return float(np.abs(there - wanted).max())


def checkPictures(test) -> None:
    """A contour runs along the border of its mask."""
    mask = np.zeros((30, 40), np.uint8)
    mask[10:20, 5:15] = 1
    line = np.vstack(Pictures.contours(mask))
    test.assertEqual((line[:, 0].min(), line[:, 0].max(), line[:, 1].min(), line[:, 1].max()), (4.5, 14.5, 9.5, 19.5))
    picture = Pictures.Picture(np.full((30, 40), 90, np.uint8), mask, spacing=(2.0, 1.0))
    test.assertEqual(Pictures.fitted(picture, 120, 120), (80, 120))


def checkRun(test) -> None:
    """The model that comes with CERS segments a volume through the worker."""
    import time

    logic, volume, finished = SegmentationLogic(), makeVolume(), []
    logic.finished.connect(finished.append)
    parameter = Parameter(parameterNode())
    parameter.inputVolume, parameter.threads = volume, 1
    test.assertTrue(logic.segment(parameter))
    until = time.monotonic() + 300
    while logic.state != IDLE and time.monotonic() < until:
        slicer.app.processEvents()
        time.sleep(SLICE_MS / 1000)
    logic.shutdown()
    test.assertEqual(len(finished), 1)
    test.assertIsInstance(finished[0], EvidenceModel)
    test.assertEqual(finished[0].labelmap.shape, SHAPE)
