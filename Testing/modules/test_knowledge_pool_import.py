"""Cases brought into a pool from the scene, from folders and from another pool, and back into the views."""

from __future__ import annotations

import numpy as np
import pytest
from poolroom import IMPORT, make_case, pool_folder, user, write_pictures  # noqa: F401 - fixtures

from cers.pool import Pool


@pytest.fixture
def scan(host, scene):
    """A volume under no transform and a segmentation with two segments, one of them on another grid's extent."""
    slicer = host.slicer
    k, j, i = np.mgrid[:6, :60, :50]
    image = (200.0 * (((j - 30) / 26) ** 2 + ((i - 25) / 22) ** 2 < 1) + 100 * (((j - 28) ** 2 + (i - 20) ** 2) < 40)).astype(np.float32)
    image += np.random.default_rng(0).integers(0, 20, image.shape)
    matrix = np.array([[-0.9, 0.1, 0, 20], [0, -1, 0, 30], [0, 0, 3, 5], [0, 0, 0, 1.0]])
    volume = slicer.util.addVolumeFromArray(image, ijkToRAS=matrix, name="DOE^JANE")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "s")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    masks = {}
    for name, radius in (("edema", 40), ("core", 12)):
        identifier = node.GetSegmentation().AddEmptySegment(name, name)
        masks[name] = (((j - 28) ** 2 + (i - 20) ** 2 < radius) & (k > 1) & (k < 5)).astype(np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(masks[name], node, identifier, volume)
    return volume, node, image, matrix, masks


@pytest.mark.parametrize("mm, known", [(1.0, False), (0.8, True)])
def test_a_picture_of_the_scene_comes_without_millimetres(user, host, scene, tmp_path, mm, known):
    from CERSKnowledgePoolLib import SceneCase

    slicer = host.slicer
    image = np.random.default_rng(0).integers(0, 255, (1, 40, 30), np.uint8)
    volume = slicer.util.addVolumeFromArray(image, ijkToRAS=np.diag([-mm, -mm, 1.0, 1.0]), name="photo")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "s")
    steps = SceneCase.write(volume, node, [], str(tmp_path))
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    assert end.value.value["spacing_known"] == known


def test_import_from_the_scene_and_back_into_the_views(user, pool_folder, scan):
    volume, node, image, matrix, masks = scan
    user.choose(pool_folder)
    user.page(IMPORT)
    page = user.control.importing
    page.volume.setCurrentNode(volume)
    page.segmentation.setCurrentNode(node)
    assert page.segments.count == 2
    page.fields["diagnosis"].setText("glioma")
    page.preview.click()
    user.settle()
    user.host.wait_for(lambda: "would be added" in page.result.plainText, 30)
    assert "DOE^JANE" in page.result.plainText and "dropped" in page.result.plainText, "what is dropped is shown"
    with Pool.open(pool_folder, read_only=True) as pool:
        assert len(pool) == 5
    page.start.click()
    user.host.wait_for(lambda: "were added" in page.result.plainText, 30)
    user.settle()
    with Pool.open(pool_folder, read_only=True) as pool:
        new = [pool.get(m["id"]) for m in pool.list(diagnosis="glioma")]
        assert len(new) == 3 and "DOE" not in str(pool.list()) + str(pool.audit())
        middle = next(c for c in new if c.slice_index == max(c.slice_index for c in new) - 1)
        assert {middle.labels[v] for v in np.unique(middle.mask) if v} == {"edema", "core"} and (middle.mask == 2).sum() == masks["core"][
            3
        ].sum()
    page.start.click()
    user.host.wait_for(lambda: "0 cases were added" in page.result.plainText, 30)
    user.control.openCase(middle.id)
    user.settle()
    user.case.toViews.click()
    shown = user.host.slicer.util.getNode(f"Case {middle.id[:8]}")
    ras = matrix @ [20, 28, 3, 1]
    i, j, k = np.round(np.linalg.inv(user.host.slicer.util.arrayFromVTKMatrix(_matrix(user.host, shown))) @ ras)[:3].astype(int)
    assert k == 0 and user.host.slicer.util.arrayFromVolume(shown)[k, j, i] == image[3, 28, 20], "the same place in the patient"
    contour = user.host.slicer.util.getNode(f"Case {middle.id[:8]} contour")
    core = user.host.slicer.util.arrayFromSegmentBinaryLabelmap(contour, contour.GetSegmentation().GetNthSegmentID(1), shown)
    assert core.sum() == masks["core"][3].sum() and core[k, j, i]


def _matrix(host, volume):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrix


def test_segments_are_imported_under_the_names_they_have_now(user, pool_folder, scan, tmp_path):
    volume, node, *_ = scan
    user.choose(pool_folder)
    user.page(IMPORT)
    page = user.control.importing
    page.volume.setCurrentNode(volume)
    page.segmentation.setCurrentNode(node)
    page.segments.item(1).setCheckState(user.host.qt.Qt.Unchecked)
    node.GetSegmentation().GetSegment("edema").SetName("swelling")
    page.start.click()
    user.host.wait_for(lambda: "were added" in page.result.plainText, 30)
    user.settle()
    with Pool.open(pool_folder, read_only=True) as pool:
        names = {name for case in pool.list() for name in case["labels"].values()}
        assert "swelling" in names and "edema" not in names and "core" not in names, "what was not ticked stays out"
    node.GetSegmentation().AddEmptySegment("necrosis", "necrosis")
    page.preview.click()
    assert "segments have changed" in page.result.plainText and page.segments.count == 3


def test_an_import_never_goes_to_another_pool(user, pool_folder, scan, tmp_path):
    volume, node, *_ = scan
    Pool.create(tmp_path / "other").close()
    user.choose(pool_folder)
    page = user.control.importing
    page.volume.setCurrentNode(volume)
    page.segmentation.setCurrentNode(node)
    page.start.click()  # the image is read in pieces
    user.ui.poolPath.currentPath = str(tmp_path / "other")
    user.control.reload()
    user.host.wait_for(lambda: "Another pool was chosen" in page.result.plainText, 30)
    user.settle()
    for folder, count in ((pool_folder, 5), (tmp_path / "other", 0)):
        with Pool.open(folder, read_only=True) as pool:
            assert len(pool) == count


def test_modality_of_the_scene_goes_before_the_field(user, pool_folder, scan, monkeypatch):
    from CERSKnowledgePoolLib.ImportPage import VolumeInput

    volume, node, *_ = scan
    user.choose(pool_folder)
    page = user.control.importing
    page.volume.setCurrentNode(volume)
    page.segmentation.setCurrentNode(node)
    monkeypatch.setattr(VolumeInput, "origin", lambda _volume: {"modality": "CT", "patient_id": None})
    page.fields["modality"].setText("MR")
    page.start.click()
    user.host.wait_for(lambda: "were added" in page.result.plainText, 30)
    user.settle()
    page.fields["modality"].setText("")
    with Pool.open(pool_folder, read_only=True) as pool:
        assert len(pool.list(modality="CT")) == 4


def test_scene_import_says_what_is_missing(user, pool_folder, scan):
    volume, node, *_ = scan
    user.choose(pool_folder)
    page = user.control.importing
    page.volume.setCurrentNode(None)
    page.start.click()
    assert "Choose an image." in page.result.plainText
    page.volume.setCurrentNode(volume)
    assert page.result.plainText == ""
    page.segmentation.setCurrentNode(node)
    for n in range(2):
        page.segments.item(n).setCheckState(user.host.qt.Qt.Unchecked)
    page.start.click()
    assert "Tick" in page.result.plainText
    transform = user.host.slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    volume.SetAndObserveTransformNodeID(transform.GetID())
    page.listSegments()
    page.start.click()
    user.host.wait_for(lambda: "transform" in page.result.plainText, 30)


def test_folder_import_export_and_merge(user, pool_folder, tmp_path):
    from cers.case import Geometry
    from cers.case.io import write_image, write_segmentation

    folder = tmp_path / "images"
    folder.mkdir()
    case, geometry = make_case(20), Geometry(np.diag([1.0, 1, 2, 1]), (1, 96, 80))
    write_image(folder / "a.nrrd", case.image[None], geometry)
    write_segmentation(folder / "a_mask.seg.nrrd", case.mask[None], geometry, {1: "tumor"})
    (folder / "b.nrrd").write_text("broken")
    user.choose(pool_folder)
    page = user.control.importing
    page.source.setCurrentIndex(1)
    page.images.currentPath = str(folder)
    for button, words in (
        (page.preview, "One case would be added"),
        (page.start, "One case was added"),
        (page.start, "0 cases were added"),
    ):
        button.click()
        user.settle()
        assert words in page.result.plainText and "b: there is no mask" in page.result.plainText
    assert len(user.ids()) == 6
    page.askPath = lambda: str(tmp_path / "x.zip")
    page.export.click()
    user.settle()
    assert "Wrote 6 cases" in page.result.plainText
    user.control.askFolder = lambda: str(tmp_path / "other")
    user.ui.createButton.click()
    user.settle()
    page.source.setCurrentIndex(2)
    page.other.setText(str(tmp_path / "x.zip"))
    page.start.click()
    user.settle()
    assert "6 cases were added" in page.result.plainText and len(user.ids()) == 6
    with Pool.open(tmp_path / "other") as other:
        other.trash(other.ids()[:2])
    page.start.click()
    user.settle()
    assert "0 cases were added, 4 are here" in page.result.plainText and "can be restored: 2." in page.result.plainText
    page.source.setCurrentIndex(0)


def test_what_the_headers_say_is_shown_and_dropped_unless_kept(user, pool_folder, tmp_path, screenshots):
    import SimpleITK as sitk

    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(2):
        case = make_case(20 + n)
        image = sitk.GetImageFromArray(case.image[None])
        image.SetMetaData("PatientName", "Doe^Jane")
        image.SetMetaData("PatientBirthDate", "19700101")
        sitk.WriteImage(image, str(folder / f"v{n}.nrrd"))
        sitk.WriteImage(sitk.GetImageFromArray(case.mask[None]), str(folder / f"v{n}_mask.nrrd"))
    user.choose(pool_folder)
    user.page(IMPORT)
    page = user.control.importing
    page.source.setCurrentIndex(1)
    page.images.currentPath = str(folder)
    page.preview.click()
    user.settle()
    text = page.result.plainText
    assert "2 cases would be added" in text and "it is dropped" in text and "Doe^Jane" in text and "v0: cases 1" in text
    assert "(lesion)" in text, "no mask says what it shows"
    page.label.setText("node")
    page.preview.click()
    user.settle()
    assert "v0: cases 1 (node)" in page.result.plainText
    user.host.screenshot(user.host.window, screenshots / "knowledge_pool_import.png")
    page.start.click()
    user.settle()
    with Pool.open(pool_folder, read_only=True) as pool:
        assert sum(list(c["labels"].values()) == ["node"] for c in pool.list()) == 2
        assert "Doe" not in str(pool.list()) + str(pool.audit()) and len(pool) == 7
    for file in pool_folder.rglob("*"):
        assert file.is_dir() or b"Doe^Jane" not in file.read_bytes(), file
    sitk.WriteImage(sitk.ReadImage(str(folder / "v0.nrrd")) + 1, str(folder / "v0.nrrd"))
    image = sitk.ReadImage(str(folder / "v0.nrrd"))
    image.SetMetaData("PatientName", "Doe^Jane")
    sitk.WriteImage(image, str(folder / "v0.nrrd"))
    page.keep.setChecked(True)
    page.start.click()
    user.settle()
    assert "KEPT" in page.result.plainText
    page.keep.setChecked(False)
    with Pool.open(pool_folder, read_only=True) as pool:
        assert [m["source"] for m in pool.list() if "Doe" in str(m)] == ["v0.nrrd; PatientName Doe^Jane"]
    page.source.setCurrentIndex(0)


def test_a_cancelled_import_tells_what_went_in(user, pool_folder, tmp_path):
    folder = write_pictures(tmp_path / "images", 60, 200)
    user.choose(pool_folder)
    page, worker = user.choose_images(folder), user.control.session.worker
    for killed in (False, True):
        worker.killAfter = 0 if killed else 2000  # a worker that does not stop in time is ended
        with Pool.open(pool_folder, read_only=True) as pool:
            before = len(pool)
            page.start.click()
            user.host.wait_for(lambda pool=pool, before=before: len(pool) > before, 60, "the first case")
        user.ui.cancelButton.click()
        user.settle()
        with Pool.open(pool_folder, read_only=True) as pool:
            added = len(pool) - before
        text = page.result.plainText
        assert ("One case was added" if added == 1 else f"{added} cases were added") in text, (text, added)
        assert ("before" in text) if killed else ("Cancelled; what was finished stays. Not imported: " in text), text
    worker.killAfter = 2000
    page.source.setCurrentIndex(0)


def test_a_second_click_does_not_touch_what_is_being_imported(user, pool_folder, scan, monkeypatch):
    """The worker may still be starting, and read the files of the first image only then."""
    volume, node, image, *_ = scan
    other = user.host.slicer.util.addVolumeFromArray(image + 1000, ijkToRAS=scan[3], name="another patient")
    user.choose(pool_folder)
    user.page(IMPORT)
    page, worker, held = user.control.importing, user.control.session.worker, []
    request = worker.request
    asked = []

    def slow(method, *arguments, **named):
        asked.append(method)
        if method == "pool_import_volume" and not held:
            held.append((method, arguments, named))
            return "held"
        return request(method, *arguments, **named)

    monkeypatch.setattr(worker, "request", slow)
    page.volume.setCurrentNode(volume)
    page.segmentation.setCurrentNode(node)
    page.start.click()
    user.host.wait_for(lambda: held, 30, "the first request")
    asked.clear()
    page.volume.setCurrentNode(other)
    page.start.click()
    user.host.wait_for(lambda: page._task is None or not page._task.running, 30, "the second image")
    assert "Something else is running" in page.result.plainText and "pool_import_report" not in asked
    page.source.setCurrentIndex(1)
    page.images.currentPath = str(pool_folder)
    page.start.click()
    assert "Something else is running" in page.result.plainText and "pool_import_report" not in asked, "the report of the first one stays"
    page.source.setCurrentIndex(0)
    method, arguments, named = held[0]
    request(method, *arguments, **named)
    user.host.wait_for(lambda: "were added" in page.result.plainText, 30)
    user.settle()
    with Pool.open(pool_folder, read_only=True) as pool:
        new = [pool.get(m["id"]) for m in pool.list() if "core" in m["labels"].values()]
        assert len(new) == 3 and all(case.image.max() < 1000 for case in new), "pixels of another patient"
