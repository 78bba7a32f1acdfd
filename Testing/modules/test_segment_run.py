"""CERS Segment driven as a user does, with the real worker process and a small untrained model."""

from __future__ import annotations

import os
import re
import signal
import time

import numpy as np
import pytest
from segmentkit import SHAPE, Gaps, loaded, make_pool, model, visit  # noqa: F401 - fixtures

from cers.case.terminology import label_style

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("pool") / "pool")


@pytest.fixture
def user(host, loaded, window):
    with visit(host, loaded) as person:
        person.window.centralWidget().setSizes([400, 880])
        yield person


@pytest.fixture
def kit(user):
    from CERSSegmentLib import SelfTest

    return SelfTest


def volume_of(kit, **options):
    matrix = np.diag([1.1, 1.2, 5.0, 1.0])
    matrix[:3, 3] = (-30, -40, -20)
    return kit.makeVolume(**{"name": "head", "matrix": matrix, "shape": SHAPE, **options})


def test_run_shows_mask_evidence_and_goes_to_the_largest_slice(user, kit, model, pool, host, screenshots):
    import qt
    import slicer
    import vtk

    volume = volume_of(kit)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Patient")
    study = hierarchy.CreateStudyItem(patient, "Study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    user.choose(volume, pool, model)
    with Gaps(qt) as gaps:
        user.press()
        assert user.ui.segmentButton.text == "Cancel"
        assert user.ui.progressBar.isVisibleTo(user.control.form)
        host.process(0.3)
        assert not user.ui.inputsButton.enabled
        user.wait()
    print(f"event loop away at most {max(gaps.wall):.0f} ms by the clock, {max(gaps.work):.0f} ms of own work")
    host.process(0.5)
    assert max(gaps.work) < 50
    assert user.said[-1][0] == "good" and "tumor" in user.said[-1][1]
    assert user.ui.segmentButton.text == "Segment"
    node, evidence = user.segmentation, user.control.controller.model
    from CERSSegmentLib import SegmentationResult

    own = SegmentationResult.ownSegments(node)
    segment = node.GetSegmentation().GetSegment(own["tumor"])
    colour, terminology = label_style("tumor")
    assert segment.GetName() == "Tumor"
    assert segment.GetColor() == pytest.approx(colour)
    tag = vtk.mutable("")
    assert segment.GetTag(segment.GetTerminologyEntryTagName(), tag) and str(tag) == terminology
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(node, own["tumor"], volume), evidence.labelmap)
    assert node.GetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole()) == volume.GetID()
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    areas = (evidence.labelmap > 0).sum(axis=(1, 2))
    plane, index = user.control.controller.key
    evident = [n for (p, n), entry in evidence.slices.items() if p == "axial" and entry["references"]]
    assert plane == "axial" and index in evident and areas[index] == max(areas[n] for n in evident) > 0
    red = host.app.layoutManager().sliceWidget("Red").sliceLogic().GetSliceOffset()
    assert abs(red - (-20 + 5.0 * index)) < 0.01
    cards = [c for c in user.control.evidence.cards if not c.widget.isHidden()]
    assert 1 <= len(cards) <= 5
    host.wait_for(lambda: all(user.control.controller.case(c.identifier) for c in cards), 30, "the reference cases")
    host.wait_for(lambda: all(c.picture._picture is not None for c in cards), 30, "the reference pictures")
    host.wait_for(lambda: not user.control.controller.later._work, 30, "the drawing of them")
    host.process(0.2)
    for card, reference in zip(cards, user.evidence["references"]):
        assert f"visual\u00a0{reference['visual']:.2f}" in card.scores.text and "influence" in card.scores.text
        image = card.picture.pixmap.toImage()
        cyan = sum(
            qt.QColor(image.pixel(x, y)).blue() > qt.QColor(image.pixel(x, y)).red() + 60
            for x in range(image.width())
            for y in range(image.height())
        )
        assert cyan > 40, "the expert's contour is not in the picture"
    for part in ("Texture", "Boundary", "Context", "Summary"):
        assert part in user.control.evidence.queryWords.text
    host.screenshot(user.window, screenshots / "segment_panel.png")
    # nothing sticks out of a 400 px panel
    assert user.control.form.width <= user.panel.parent.parent().width
    user.control.evidence.board.click()
    host.process(0.4)
    board = user.control.board
    assert user.control.board.shown and len([c for c in board.columns if c.identifier]) == len(cards)
    host.screenshot(user.window, screenshots / "segment_board.png")


def test_a_double_click_does_not_stop_what_it_starts(user, kit, model, pool, monkeypatch):
    import sys

    user.choose(volume_of(kit), pool, model)
    monkeypatch.setattr(sys.modules[type(user.control).__module__], "DOUBLE_CLICK", 0.5)
    user.press()
    user.press()
    assert user.logic.state == "running"
    user.until_running()
    user.host.process(0.5)
    user.press()
    user.wait()
    user.press()  # a new run, just after the one before was stopped
    user.press()
    user.wait()
    assert user.control.controller.model is not None and user.segmentation is not None


def test_a_picture_is_measured_in_pixels(user, kit, model, pool, host):
    """Slicer gives 1 mm to the pixels of a picture; nobody measured that, nor how thick it is."""
    user.segment(kit.makeVolume(name="photo", matrix=np.diag([-1.0, -1.0, 1.0, 1.0]), shape=(1, *SHAPE[1:])), pool, model)
    assert user.said[-1][0] == "good" and "pixels (" in user.said[-1][1] and " ml" not in user.said[-1][1]
    evidence = user.evidence
    assert evidence["rationale"]["descriptors"]["diameter_px"] and evidence["rationale"]["descriptors"]["diameter_mm"] is None
    for words in (user.control.evidence.queryWords.text, user.control.evidence.trust.text):
        assert not re.search(r"\d\s*[mc]m", words)
    assert "pixels" in user.control.evidence.queryWords.text
    assert user.control.evidence.place.text == "A picture · with a lesion", "nobody knows its plane"


def test_evidence_follows_the_view_and_steps_over_lesion_slices(user, kit, model, pool, host):
    volume = volume_of(kit)
    user.segment(volume, pool, model)
    controller = user.control.controller
    logic = host.app.layoutManager().sliceWidget("Red").sliceLogic()
    logic.SetSliceOffset(-20 + 5.0 * 1 + 1.0)
    host.wait_for(lambda: controller.key == ("axial", 1), 5, "the evidence of the slice in view")
    host.process(0.1)
    assert "Slice 2 of 9" in user.control.evidence.place.text
    controller.key = ("axial", 4)  # as of another view
    logic.GetSliceNode().SetDimensions(300, 280, 1)  # a new layout changes the size of a view, and not its slice
    host.process(0.3)
    assert controller.key == ("axial", 4), "only a view that shows another slice is followed"
    logic.SetSliceOffset(-20 + 5.0 * 2 + 1.0)
    host.wait_for(lambda: controller.key == ("axial", 2), 5, "the evidence of the slice in view")
    lesions = controller.model.lesionSlices("axial")
    controller.show(("axial", lesions[0]))
    assert not user.control.evidence.previous.enabled
    if len(lesions) > 1:
        user.control.evidence.next.click()
        assert controller.key == ("axial", lesions[1])
    host.app.layoutManager().sliceWidget("Yellow").sliceLogic().SetSliceOffset(3)  # a plane that was not decoded: nothing changes
    key = controller.key
    host.process(0.2)
    assert controller.key == key


@pytest.mark.parametrize("case", ["oblique left-handed", "rotated transform"])
def test_result_lies_on_the_volume(user, kit, model, case):
    from CERSSegmentLib import SegmentationResult, VolumeInput

    volume = volume_of(kit, matrix=kit.MATRIX)
    if case == "rotated transform":
        kit.makeTransform(volume)
    user.segment(volume, "", model)
    assert user.said[-1][0] == "good", user.said
    identifier = SegmentationResult.ownSegments(user.segmentation)["tumor"]
    evidence = user.control.controller.model
    assert user.segmentation.GetTransformNodeID() == volume.GetTransformNodeID()
    assert kit.farthest(user.segmentation, identifier, volume, evidence.labelmap > 0) < 1e-3
    # the views went to the lesion, not beside it
    centre = evidence.centre(user.control.controller.key)
    ijk = np.linalg.inv(VolumeInput.worldGeometry(volume).ijkToRAS) @ [*centre, 1]
    assert all(-0.5 <= v <= n - 0.5 for v, n in zip(ijk[:3], SHAPE[::-1]))


def test_without_a_pool_it_says_so(user, kit, model, host, screenshots):
    user.segment(volume_of(kit), "", model)
    assert user.evidence["references"] == []
    assert not user.evidence["coverage"]["covered"]
    assert user.evidence["coverage"]["message"] in user.control.evidence.coverage.text.replace("&#x27;", "'")
    assert "▲" in user.control.evidence.coverage.text
    user.control.evidence.board.click()
    host.process(0.3)
    host.screenshot(user.window, screenshots / "segment_no_pool.png")


def test_drop_pin_rerun_reset(user, kit, model, pool, host):
    import slicer
    from CERSSegmentLib import SegmentationResult

    volume = volume_of(kit)
    user.segment(volume, pool, model)
    controller, key = user.control.controller, user.control.controller.key
    first = user.evidence
    before = controller.model.labelmap.copy()
    dropped = first["references"][0]["id"]
    card = user.control.evidence.cards[0]
    assert not user.control.evidence.rerun.enabled
    card.choice.drop.click()
    assert controller.choice().dropped == {dropped} and user.control.evidence.rerun.enabled
    user.control.evidence.rerun.click()
    user.wait()
    host.process(0.2)
    assert dropped not in [r["id"] for r in user.evidence["references"]]
    assert f"Slice {key[1] + 1} (axial) was segmented again with your references." in user.status()
    after = controller.model.labelmap
    assert np.array_equal(np.delete(after, key[1], axis=0), np.delete(before, key[1], axis=0))
    own = SegmentationResult.ownSegments(user.segmentation)["tumor"]
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(user.segmentation, own, volume), after)
    host.wait_for(lambda: all(controller.case(r["id"]) for r in user.evidence["references"]), 30, "the new reference's picture")
    user.control.evidence.reset.click()
    user.wait()
    assert [r["id"] for r in user.evidence["references"]] == [r["id"] for r in first["references"]]
    assert np.array_equal(controller.model.labelmap, before) and "without a choice of yours" in user.status()
    pinned = user.evidence["references"][-1]["id"]
    controller.pin(pinned, True)
    user.control.evidence.rerun.click()
    user.wait()
    at = next(n for n, r in enumerate(user.evidence["references"]) if r["id"] == pinned)
    card = user.control.evidence.cards[at]
    assert user.evidence["references"][at]["pinned"] and card.choice.pin.checked
    card.choice.pin.click()
    assert not card.choice.pin.checked and not controller.choice().pinned and "no longer pinned" in card.title.text
    card.choice.pin.click()
    assert card.choice.pin.checked and controller.choice().pinned == {pinned} and "no longer" not in card.title.text


def test_previous_result_comes_back_and_a_persons_segment_stays(user, kit, model, pool):
    import slicer
    from CERSSegmentLib import SegmentationResult

    volume = volume_of(kit)
    user.segment(volume, pool, model)
    node = user.segmentation
    node.GetSegmentation().AddEmptySegment("mine", "Mine")
    own = SegmentationResult.ownSegments(node)["tumor"]
    painted = np.zeros(SHAPE, np.uint8)
    painted[2, 3:9, 4:7] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(painted, node, own, volume)
    assert not user.ui.previousButton.isVisibleTo(user.control.form)
    user.press()
    user.wait()
    assert user.segmentation is node
    assert node.GetSegmentation().GetSegment("mine") is not None
    own = SegmentationResult.ownSegments(node)["tumor"]
    new = slicer.util.arrayFromSegmentBinaryLabelmap(node, own, volume).copy()
    assert not np.array_equal(new, painted)
    assert user.ui.previousButton.isVisibleTo(user.control.form)
    user.ui.previousButton.click()
    own = SegmentationResult.ownSegments(node)["tumor"]
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(node, own, volume), painted)
    user.ui.previousButton.click()
    own = SegmentationResult.ownSegments(node)["tumor"]
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(node, own, volume), new)


def test_report_is_written(user, kit, model, pool, tmp_path):
    user.segment(volume_of(kit), pool, model)
    user.control.reportPath = lambda: str(tmp_path / "report.html")
    user.control.evidence.export.click()
    user.wait()
    assert user.said[-1][0] == "good", user.said
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data:image" in text and "by hand" not in text


def test_a_report_without_the_cases_of_a_pool_that_went_away_is_no_success(user, kit, model, tmp_path):
    pool = make_pool(tmp_path / "pool")
    user.segment(volume_of(kit), pool, model)
    (pool / "arrays").rename(tmp_path / "away")
    user.control.reportPath = lambda: str(tmp_path / "report.html")
    user.control.evidence.export.click()
    user.wait()
    assert user.said[-1][0] == "warning" and "could not be read" in user.said[-1][1], user.said
    assert "Case not readable" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_report_says_that_the_mask_was_changed_by_hand_since(user, kit, model, pool, tmp_path):
    import slicer
    from CERSSegmentLib import SegmentationResult

    volume = volume_of(kit)
    user.segment(volume, pool, model)
    painted = np.zeros(SHAPE, np.uint8)
    painted[2, 3:9, 4:7] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        painted, user.segmentation, SegmentationResult.ownSegments(user.segmentation)["tumor"], volume
    )
    user.control.reportPath = lambda: str(tmp_path / "report.html")
    user.control.evidence.export.click()
    user.wait()
    assert user.said[-1][0] == "warning" and "before it was changed by hand" in user.said[-1][1]
    assert "changed by hand since" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_cancel_answers_within_two_seconds(user, kit, model, pool):
    user.choose(volume_of(kit), pool, model)
    user.press()
    user.until_running()
    start = time.monotonic()
    user.press()
    assert user.ui.segmentButton.text == "Stopping…"
    user.wait(5)
    assert time.monotonic() - start < 2.5
    assert user.segmentation is None and "Nothing was changed" in user.status()


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_cancel_of_a_worker_that_hangs(user, kit, model, pool):
    user.choose(volume_of(kit), pool, model)
    user.press()
    user.until_running()  # holds the worker, and nothing lets it go
    start = time.monotonic()
    user.press()
    user.host.wait_for(lambda: user.logic.state == "idle", 5, "the end of the run")
    assert 1.5 < time.monotonic() - start < 2.6
    assert user.logic.worker.state == "stopped" and user.said[-1][0] == "info"


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_worker_crash_is_told_and_the_next_run_works(user, kit, model, host, screenshots):
    volume = volume_of(kit)
    user.choose(volume, "", model)
    user.press()
    user.until_running()
    os.kill(int(user.logic.worker._process.processId()), signal.SIGKILL)
    user.wait(10)
    assert user.said[-1][0] == "error" and "ended unexpectedly" in user.status()
    host.screenshot(user.window, screenshots / "segment_crash.png")
    user.press()
    user.wait()
    assert user.said[-1][0] == "good"


def test_volume_removed_in_mid_run(user, kit, model):
    import slicer

    volume = volume_of(kit)
    user.choose(volume, "", model)
    user.press()
    user.until_running()
    slicer.mrmlScene.RemoveNode(volume)
    user.wait(10)
    assert "removed from the scene" in user.status()
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def test_scene_closed_in_mid_run(user, kit, model):
    import slicer

    user.choose(volume_of(kit), "", model)
    user.press()
    user.until_running()
    slicer.mrmlScene.Clear(0)
    user.wait(10)
    assert "scene was closed" in user.status()
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert user.control.parameter.inputVolume is None and user.control.parameter.node.GetScene() is not None


@pytest.mark.parametrize(
    "what, word", [("model", "model"), ("pool", "pool"), ("no model folder", "does not exist"), ("no pool folder", "does not exist")]
)
def test_wrong_model_and_unreadable_pool(user, kit, model, tmp_path, what, word):
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "config.json").write_text("{}")
    (tmp_path / "wrong" / "pool.sqlite").write_text("this is no database")
    place = str(tmp_path / ("absent" if what.startswith("no ") else "wrong"))
    user.choose(volume_of(kit), place if "pool" in what else "", place if "model" in what else model)
    user.press()
    user.wait()
    assert user.said[-1][0] == "error" and word in user.said[-1][1].lower() and user.said[-1][1].endswith(".")
    assert user.segmentation is None


@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (None, "every voxel has the same value")])
def test_voxels_that_cannot_be_used(user, kit, model, value, word):
    import slicer

    volume = volume_of(kit)
    array = slicer.util.arrayFromVolume(volume)
    if value is None:
        array[:] = 7
    else:
        array[4, 30, 30] = value
    slicer.util.arrayFromVolumeModified(volume)
    user.choose(volume, "", model)
    user.press()
    user.wait()
    assert user.said[-1][0] == "error" and word in user.said[-1][1]


def test_missing_package_is_told(user, kit, model, tmp_path, monkeypatch):
    """A Python that lacks torch: the worker says so, and the panel offers the install step."""
    from CERSSegmentLib import InstallLogic, WorkerClient

    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    program, arguments, variables = WorkerClient.workerCommand()
    user.logic.worker.stop()
    monkeypatch.setattr(
        user.logic.worker,
        "command",
        lambda: (program, arguments, {**variables, "PYTHONPATH": f"{tmp_path}{os.pathsep}{variables['PYTHONPATH']}"}),
    )
    monkeypatch.setattr(InstallLogic, "missing", lambda: ["torch>=2.2"])
    user.choose(volume_of(kit), "", model)
    user.press()
    user.wait()
    assert user.said[-1][0] == "error" and "torch" in user.said[-1][1]
    assert user.ui.installFrame.isVisibleTo(user.control.form) and "torch" in user.ui.installLabel.text
    user.logic.worker.stop()


def test_board_gives_the_users_layout_back(user, kit, model, pool, host):
    import slicer

    manager = host.app.layoutManager()
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    user.segment(volume_of(kit), pool, model)
    user.control.evidence.board.click()
    host.process(0.2)
    assert user.control.board.shown and user.control.evidence.board.checked
    user.panel.exit()
    assert manager.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView
    host.process(0.1)
    assert not user.control.evidence.board.checked
    user.panel.enter()


def test_parameters_are_saved_with_the_scene(user, kit, model, tmp_path, host):
    import slicer

    user.choose(volume_of(kit), "", model)
    user.ui.textEdit.setText("ring-enhancing mass")
    user.ui.planesCombo.setCurrentIndex(2)
    user.ui.bodySiteCombo.setEditText("brain")
    path = str(tmp_path / "scene.mrml")
    slicer.mrmlScene.SetURL(path)
    slicer.mrmlScene.Commit(path)
    slicer.mrmlScene.Clear(0)
    host.process(0.1)
    assert user.ui.textEdit.text == "" and user.ui.planesCombo.currentIndex == 0
    slicer.mrmlScene.SetURL(path)
    slicer.mrmlScene.Connect()
    host.process(0.1)
    assert user.ui.textEdit.text == "ring-enhancing mass" and user.ui.planesCombo.currentIndex == 2
    assert user.ui.bodySiteCombo.currentText == "brain" and user.ui.modelPath.currentPath == str(model)
    assert user.control.parameter.planes == "three" and user.control.parameter.threads == 1
