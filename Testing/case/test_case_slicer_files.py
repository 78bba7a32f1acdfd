"""What we write is what Slicer reads, and what Slicer writes is what we read."""

from __future__ import annotations

import numpy as np
import pytest
from grids import GRIDS, SHAPE, painted

from cers.case import Geometry
from cers.case.io import read_mask, write_segmentation
from cers.case.terminology import label_style

LABELS = {1: "tumor", 3: "edema", 7: "my own label"}


def labelled(matrix) -> np.ndarray:
    mask, _ = painted(matrix)
    mask[0, :3, :4], mask[-1, -2:, -3:] = 3, 7
    return mask


@pytest.mark.parametrize("name", GRIDS)
def test_slicerio_reads_names_colours_terminology_and_voxels(tmp_path, name):
    slicerio = pytest.importorskip("slicerio")
    mask = labelled(GRIDS[name])
    write_segmentation(tmp_path / "m.seg.nrrd", mask, Geometry(GRIDS[name], SHAPE), LABELS)
    found = slicerio.read_segmentation(str(tmp_path / "m.seg.nrrd"))
    assert np.array_equal(np.transpose(found["voxels"]), mask)
    assert np.allclose(np.diag([-1, -1, 1, 1]) @ found["ijkToLPS"], GRIDS[name], atol=1e-9)
    assert [(s["labelValue"], s["name"]) for s in found["segments"]] == list(LABELS.items())
    assert found["segments"][0]["terminology"]["category"] == ["SCT", "49755003", "Morphologically Altered Structure"]
    assert found["segments"][0]["terminology"]["type"][1] == "4147007"
    assert np.allclose(found["segments"][0]["color"], label_style("tumor")[0])


@pytest.fixture(scope="module")
def slicer():
    return pytest.importorskip("slicer", reason="slicer-core is not installed")


def load(slicer, path):
    scene = slicer.vtkMRMLScene()
    node, storage = slicer.vtkMRMLSegmentationNode(), slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(node)
    scene.AddNode(storage)
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    return scene, node


def segment_voxels(node, segment_id) -> list[tuple[np.ndarray, np.ndarray]]:
    """World positions of a segment's voxels, as Slicer sees them."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    segment = node.GetSegmentation().GetSegment(segment_id)
    image = segment.GetRepresentation("Binary labelmap")
    extent, matrix = image.GetExtent(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    to_world = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
    values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(
        extent[5] - extent[4] + 1, extent[3] - extent[2] + 1, extent[1] - extent[0] + 1
    )
    ijk = np.argwhere(values == segment.GetLabelValue())[:, ::-1] + (extent[0], extent[2], extent[4])
    return np.c_[ijk, np.ones(len(ijk))] @ to_world.T[:, :3]


@pytest.mark.parametrize("name", GRIDS)
def test_slicer_reads_the_same_voxels_at_the_same_places(tmp_path, slicer, name):
    mask = labelled(GRIDS[name])
    write_segmentation(tmp_path / "m.seg.nrrd", mask, Geometry(GRIDS[name], SHAPE), LABELS)
    _, node = load(slicer, tmp_path / "m.seg.nrrd")
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 3
    for n, (value, label) in enumerate(LABELS.items()):
        segment_id = segmentation.GetNthSegmentID(n)
        segment = segmentation.GetSegment(segment_id)
        color, entry = label_style(label, n)
        assert segment.GetName() == label and segment.GetLabelValue() == value
        assert (
            np.allclose(segment.GetColor(), color) and segment.GetTerminology().SerializeTerminologyEntry() == entry
            if hasattr(segment.GetTerminology(), "SerializeTerminologyEntry")
            else segment.GetTerminology() == entry
        )
        ours = np.c_[np.argwhere(mask == value)[:, ::-1], np.ones((mask == value).sum())] @ np.array(GRIDS[name]).T[:, :3]
        theirs = segment_voxels(node, segment_id)
        assert len(ours) == len(theirs)
        assert np.abs(np.sort(ours, 0) - np.sort(theirs, 0)).max() < 1e-3


def test_an_empty_segment_is_kept(tmp_path, slicer):
    write_segmentation(tmp_path / "m.seg.nrrd", np.zeros(SHAPE, np.uint8), Geometry(GRIDS["oblique"], SHAPE), {1: "tumor"})
    _, node = load(slicer, tmp_path / "m.seg.nrrd")
    assert node.GetSegmentation().GetNumberOfSegments() == 1 and node.GetSegmentation().GetNthSegment(0).GetName() == "tumor"


@pytest.mark.parametrize("overlap", [False, True])
def test_what_slicer_saves_is_read_in_the_images_grid(tmp_path, slicer, overlap):
    """Slicer crops a segmentation to its content and puts overlapping segments into layers."""
    import vtk

    matrix, first = np.array(GRIDS["oblique left-handed"]), labelled(GRIDS["oblique left-handed"])
    first = (first == 1).astype(np.uint8)
    second = np.roll(first, (1, 2, 1 if overlap else 5), (0, 1, 2))
    scene = slicer.vtkMRMLScene()
    node, storage = slicer.vtkMRMLSegmentationNode(), slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(node)
    scene.AddNode(storage)
    to_world = vtk.vtkMatrix4x4()
    for r in range(4):
        for c in range(4):
            to_world.SetElement(r, c, matrix[r, c])
    for name, mask in (("core", first), ("rim", second)):
        image = slicer.vtkOrientedImageData()
        image.SetDimensions(*mask.shape[::-1])
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        from vtk.util.numpy_support import numpy_to_vtk

        scalars = numpy_to_vtk(mask.ravel(), deep=True)
        image.GetPointData().SetScalars(scalars)
        image.SetImageToWorldMatrix(to_world)
        segment = slicer.vtkSegment()
        segment.SetName(name)
        segment.AddRepresentation("Binary labelmap", image)
        node.GetSegmentation().AddSegment(segment)
    storage.SetFileName(str(tmp_path / "s.seg.nrrd"))
    assert storage.WriteData(node)
    back, labels = read_mask(tmp_path / "s.seg.nrrd", Geometry(matrix, SHAPE))
    values = {name: value for value, name in labels.items()}
    assert set(values) == {"core", "rim"}
    assert np.array_equal(back == values["rim"], second > 0)
    assert np.array_equal(back == values["core"], (first > 0) & (second == 0))


@pytest.mark.parametrize(("name", "code"), [("Tumor", "4147007"), ("left_tumor", "4147007"), ("hippocampus", "85756007")])
def test_what_nobody_called_a_lesion_is_not_coded_as_one(name, code):
    assert f"~SCT^{code}^" in label_style(name)[1]
