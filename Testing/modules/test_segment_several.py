"""CERS Segment with several volumes and results in one scene, and what may happen between a run's start and its end."""

from __future__ import annotations

import numpy as np
import pytest
from segmentkit import SHAPE, User, loaded, make_pool, model, visit  # noqa: F401 - fixtures

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("pool") / "pool")


@pytest.fixture
def user(host, loaded, window):
    with visit(host, loaded) as person:
        yield person


def head(name: str, seed: int = 1, shape: tuple = SHAPE):
    from CERSSegmentLib import SelfTest

    matrix = np.diag([1.1, 1.2, 5.0, 1.0])
    matrix[:3, 3] = (-30, -40, -20)
    return SelfTest.makeVolume(name=name, matrix=matrix, shape=shape, seed=seed)


def test_a_run_stopped_late_leaves_nothing_of_its_volume_to_the_result_before(user, model, pool, tmp_path, monkeypatch):
    from CERSSegmentLib import SegmentationResult

    user.segment(head("one"), pool, model)
    first, read = user.control.controller.model, SegmentationResult.read
    before = first.labelmap.copy()

    def stopped(path):
        user.press()  # the worker has done its part, and holds the second volume
        return (yield from read(path))

    monkeypatch.setattr(SegmentationResult, "read", stopped)
    second = head("two", 2)
    user.ui.inputSelector.setCurrentNode(second)
    user.press()
    user.wait()
    assert "Nothing was changed" in user.status()
    user.ui.outputSelector.setCurrentNode(first.segmentation)
    assert user.control.controller.model is first
    user.control.controller.drop(user.evidence["references"][0]["id"], True)
    user.control.evidence.rerun.click()
    user.wait()
    assert "no longer holds this volume" in user.status() and np.array_equal(first.labelmap, before)
    user.control.reportPath = lambda: str(tmp_path / "report.html")
    user.control.evidence.export.click()
    user.wait()
    assert "no longer holds this volume" in user.status() and not (tmp_path / "report.html").exists()


def test_another_volume_does_not_write_over_a_result(user, model, pool):
    from CERSSegmentLib import Correction

    one, two = head("one"), head("two", 2)
    user.segment(one, pool, model)
    first, evidence = user.segmentation, user.control.controller.model
    user.ui.inputSelector.setCurrentNode(two)
    assert user.segmentation is None and user.control.controller.model is None
    user.press()
    user.wait()
    second = user.segmentation
    assert second is not first and Correction.volumeOf(first) is one and Correction.volumeOf(second) is two
    user.ui.inputSelector.setCurrentNode(one)
    assert user.segmentation is first and user.control.controller.model is evidence


def test_who_comes_back_to_a_volume_finds_its_result(user, model, pool):
    import slicer

    one, two = head("one"), head("two", 2)
    user.segment(one, pool, model)
    user.press()
    user.wait()
    first, evidence = user.segmentation, user.control.controller.model
    user.ui.inputSelector.setCurrentNode(two)
    user.ui.inputSelector.setCurrentNode(one)
    assert user.segmentation is first and user.control.controller.model is evidence
    slicer.mrmlScene.RemoveNode(first)  # the copy of its earlier result stays
    user.ui.inputSelector.setCurrentNode(two)
    user.ui.inputSelector.setCurrentNode(one)
    assert user.segmentation is None
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    user.ui.outputSelector.setCurrentNode(mine)
    user.ui.inputSelector.setCurrentNode(two)
    assert user.segmentation is mine


@pytest.mark.parametrize("how", ["removed", "another chosen", "scene closed"])
def test_what_was_found_is_not_told_of_a_result_that_is_gone(user, model, pool, host, how):
    import slicer

    user.segment(head("one"), pool, model)
    assert "Found" in user.status()
    if how == "removed":
        slicer.mrmlScene.RemoveNode(user.segmentation)
    elif how == "another chosen":
        user.ui.outputSelector.setCurrentNode(None)
    else:
        slicer.mrmlScene.Clear(0)
    host.process(0.1)
    assert user.segmentation is None and user.status() == ""


def test_stepping_to_a_lesion_slice_shows_its_volume(user, model, pool):
    import slicer

    one, two = head("one"), head("two", 2)
    user.segment(one, pool, model)
    slicer.util.setSliceViewerLayers(background=two)
    user.ui.inputSelector.setCurrentNode(two)
    user.ui.inputSelector.setCurrentNode(one)
    controller = user.control.controller
    controller.step(1 if controller.canStep(1) else -1)
    assert slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode().GetBackgroundVolumeID() == one.GetID()


def test_evidence_and_previous_result_are_those_of_the_segmentation_chosen(user, model, pool, host):
    one, two = head("one"), head("two", 2)
    user.segment(one, pool, model)
    first, older = user.segmentation, user.control.controller.model
    user.press()
    user.wait()
    newer = user.control.controller.model
    user.segment(two, pool, model)
    second = user.control.controller.model
    user.ui.outputSelector.setCurrentNode(first)
    assert user.control.controller.model is newer
    user.ui.previousButton.click()
    assert user.control.controller.model is older
    user.ui.outputSelector.setCurrentNode(second.segmentation)
    assert user.control.controller.model is second and not user.ui.previousButton.isVisibleTo(user.control.form)
    user.ui.outputSelector.setCurrentNode(first)
    user.ui.previousButton.click()
    assert user.control.controller.model is newer


def test_the_result_of_another_volume_comes_back_to_its_own_volume_and_place(user, model, pool):
    import slicer
    from CERSSegmentLib import Correction, SegmentationResult, SelfTest

    one, two = head("one"), head("two", 2)
    transform = SelfTest.makeTransform(one)
    user.segment(one, pool, model)
    node, mask = user.segmentation, user.control.controller.model.labelmap.copy()
    user.ui.inputSelector.setCurrentNode(two)
    user.ui.outputSelector.setCurrentNode(node)
    user.press()
    user.wait()
    assert Correction.volumeOf(node) is two and node.GetTransformNodeID() is None
    user.ui.previousButton.click()
    assert Correction.volumeOf(node) is one and node.GetTransformNodeID() == transform.GetID()
    own = SegmentationResult.ownSegments(node)["tumor"]
    assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(node, own, one), mask)
    user.ui.previousButton.click()
    assert Correction.volumeOf(node) is two and node.GetTransformNodeID() is None


@pytest.mark.parametrize("what", ["load_model", "open_pool"])
def test_a_model_or_pool_whose_loading_was_stopped_late_is_not_used(user, model, pool, tmp_path, monkeypatch, what):
    import qt

    from cers.inference.tiny import tiny_model

    others = {"load_model": (pool, tiny_model(tmp_path / "other", size=48)), "open_pool": (make_pool(tmp_path / "pool", 3), model)}
    volume = head("one")
    user.segment(volume, pool, model)
    made_of = user.control.controller.model.summary["provenance"]
    user.choose(volume, *others[what])
    worker, stopped = user.logic.worker, []
    ask = worker.request
    monkeypatch.setattr(worker, "cancel", lambda _request: None)  # it comes when the worker is through

    def request(method, *arguments, **named):
        identifier = ask(method, *arguments, **named)
        if method == what:  # a small pool is open before anyone who looks now and then sees it being opened
            stopped.append(method)
            qt.QTimer.singleShot(0, user.press)
        return identifier

    monkeypatch.setattr(worker, "request", request)
    user.press()
    user.wait()
    monkeypatch.undo()
    assert stopped == [what] and "Nothing was changed" in user.status()
    user.segment(volume, pool, model)
    again = user.control.controller.model.summary["provenance"]
    assert (again["model"], again["pool"]) == (made_of["model"], made_of["pool"])


def test_a_model_that_training_went_on_with_is_loaded_anew(user, pool, tmp_path):
    from cers.inference.tiny import tiny_model

    own = tiny_model(tmp_path / "run" / "model")
    user.segment(head("one"), pool, own)
    first = user.control.controller.model.summary["provenance"]["model"]
    user.press()
    user.wait()
    assert user.control.controller.model.summary["provenance"]["model"] == first
    tiny_model(own, seed=1)
    user.press()
    user.wait()
    assert user.control.controller.model.summary["provenance"]["model"] != first


def test_a_choice_made_during_a_rerun_waits_for_the_next_one(user, model, pool, host):
    user.segment(head("one"), pool, model)
    controller, panel = user.control.controller, user.control.evidence
    identifier = user.evidence["references"][0]["id"]
    controller.drop(identifier, True)
    panel.rerun.click()
    user.until_running("resegment")
    controller.drop(identifier, False)
    user.wait()
    assert identifier not in [r["id"] for r in user.evidence["references"]]
    assert panel.rerun.enabled and panel.reset.enabled
    panel.rerun.click()
    user.wait()
    assert identifier in [r["id"] for r in user.evidence["references"]] and not panel.reset.enabled


def test_a_view_that_is_added_later_is_followed(user, model, pool, host):
    import slicer

    user.segment(head("one"), pool, model)
    controller = user.control.controller
    view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceNode", "Compare1")
    view.SetLayoutName("Compare1")
    view.SetOrientationToAxial()
    host.process(0.1)
    view.SetSliceOffset(float(controller.model.centre(("axial", 1))[2]))
    host.process(0.1)
    assert controller.key == ("axial", 1)


@pytest.mark.parametrize("how", ["hardened", "moved"])
def test_no_slice_is_written_where_the_volume_is_no_longer(user, model, pool, how):
    import slicer
    from CERSSegmentLib import SegmentationResult, SelfTest

    volume = head("one")
    if how == "hardened":
        SelfTest.makeTransform(volume)
    user.segment(volume, pool, model)
    node, image = user.segmentation, slicer.vtkOrientedImageData()
    own = SegmentationResult.ownSegments(node)["tumor"]
    node.GetBinaryLabelmapRepresentation(own, image)
    before = image.GetExtent()
    if how == "hardened":
        volume.HardenTransform()
    else:
        SelfTest.makeTransform(volume)
    user.control.controller.drop(user.evidence["references"][0]["id"], True)
    user.control.evidence.rerun.click()
    user.wait()
    assert user.said[-1][0] == "warning" and "moved since" in user.status()
    node.GetBinaryLabelmapRepresentation(own, image)
    assert image.GetExtent() == before and SegmentationResult.previous(node) is None


def test_a_segmentation_that_the_selector_added_is_seen(user, model, pool, host):
    import slicer

    user.choose(head("one"), pool, model)
    user.ui.outputSelector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation"))
    user.press()
    user.wait()
    display = user.segmentation.GetDisplayNode()
    assert user.segmentation.GetName() == "Segmentation" and display is not None and display.GetVisibility2D()


def test_a_rerun_stopped_late_shows_in_no_report(user, model, pool, tmp_path, monkeypatch):
    user.segment(head("one"), pool, model)
    first = user.control.controller.model.labelmap.copy()
    user.control.controller.drop(user.evidence["references"][0]["id"], True)
    user.control.evidence.rerun.click()
    user.until_running("resegment")
    monkeypatch.setattr(user.logic.worker, "cancel", lambda _request: None)  # it comes when the worker has decoded the slice and holds it
    user.press()
    user.wait()
    monkeypatch.undo()
    assert "Nothing was changed" in user.status() and np.array_equal(user.control.controller.model.labelmap, first)
    user.control.reportPath = lambda: str(tmp_path / "report.html")
    user.control.evidence.export.click()
    user.wait()
    assert "no longer holds this volume" in user.status() and not (tmp_path / "report.html").exists()


def test_a_clone_keeps_the_evidence_of_the_result_it_was_made_of(user, model, pool, host):
    import slicer
    from CERSSegmentLib import EvidenceRecord

    user.segment(head("one"), pool, model)
    user.control.keeper.finish()
    node, evidence = user.segmentation, user.control.controller.model
    clone = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    clone.Copy(node)
    user.control.controller.drop(user.evidence["references"][0]["id"], True)
    first = EvidenceRecord.restore(clone)
    user.control.evidence.rerun.click()
    user.wait()
    user.control.keeper.finish()
    assert EvidenceRecord.restore(node).rerun == evidence.rerun and len(evidence.rerun) == 1
    kept = EvidenceRecord.restore(clone)
    assert not kept.rerun and np.array_equal(kept.labelmap, first.labelmap)
    slicer.mrmlScene.RemoveNode(node)
    host.process(0.1)
    assert EvidenceRecord.restore(clone) is not None


@pytest.mark.parametrize("output", ["new", "empty", "result"])
def test_a_run_stopped_while_the_mask_is_written_leaves_nothing_half_made(user, model, pool, monkeypatch, output):
    import slicer
    from CERSSegmentLib import SegmentationResult

    volume, fill = head("one"), SegmentationResult.fill
    if output == "result":
        user.segment(volume, pool, model)
    else:
        user.choose(volume, pool, model)
    if output == "empty":
        user.ui.outputSelector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode"))

    evidence = user.control.controller.model

    def stopped(*arguments):
        steps = fill(*arguments)
        yield next(steps)
        user.press()
        yield
        yield from steps

    monkeypatch.setattr(SegmentationResult, "fill", stopped)
    user.press()
    user.wait()
    assert "Nothing was changed" in user.status() and not user.ui.previousButton.isVisibleTo(user.control.form)
    if output == "result":
        own = SegmentationResult.ownSegments(user.segmentation)["tumor"]
        assert user.control.controller.model is evidence and not user.control.controller.edited()
        assert np.array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(user.segmentation, own, volume), evidence.labelmap)
    else:
        assert (user.segmentation is None) is (not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) is (output == "new")
        assert user.segmentation is None or not user.segmentation.GetSegmentation().GetNumberOfSegments()


@pytest.mark.parametrize("when", ["a slice is decoded again", "the mask is written"])
def test_a_segmentation_removed_in_mid_run_is_named(user, model, pool, monkeypatch, when):
    import slicer
    from CERSSegmentLib import SegmentationResult

    user.segment(head("one"), pool, model)
    node, fill = user.segmentation, SegmentationResult.fill

    def removed(*arguments):
        steps = fill(*arguments)
        slicer.mrmlScene.RemoveNode(node)
        yield next(steps)
        yield from steps

    if when == "the mask is written":
        monkeypatch.setattr(SegmentationResult, "fill", removed)
        user.press()
    else:
        user.control.controller.drop(user.evidence["references"][0]["id"], True)
        user.control.evidence.rerun.click()
        user.until_running("resegment")
        slicer.mrmlScene.RemoveNode(node)
    user.wait()
    assert user.said[-1] == ("warning", "The segmentation was removed from the scene, so the run was stopped.")
    assert user.segmentation is None and user.control.controller.model is None


def test_a_clone_has_no_part_in_the_previous_result(user, model, pool):
    import slicer
    from CERSSegmentLib import SegmentationResult

    user.segment(head("one"), pool, model)
    user.press()
    user.wait()
    node = user.segmentation
    clone = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    clone.Copy(node)
    user.ui.outputSelector.setCurrentNode(clone)
    assert not user.ui.previousButton.isVisibleTo(user.control.form)
    user.press()
    user.wait()
    assert user.segmentation is clone
    assert SegmentationResult.previous(clone) is not SegmentationResult.previous(node) is not None


def test_after_a_rerun_that_failed_the_next_one_works(user, model, host, tmp_path):
    from cers.pool import Pool

    folder = make_pool(tmp_path / "pool")
    user.segment(head("one"), folder, model)
    controller, key = user.control.controller, user.control.controller.key
    first, second = (r["id"] for r in user.evidence["references"][:2])
    with Pool.open(folder) as pool:
        pool.delete(first)
    controller.pin(first, True)
    user.control.evidence.rerun.click()
    user.wait()
    assert user.said[-1][0] == "error" and "Unpin it" in user.status()
    controller.pin(first, False)
    controller.drop(second, True)
    user.control.evidence.rerun.click()
    user.wait()
    host.wait_for(lambda: all(controller.case(r["id"]) for r in user.evidence["references"]), 30, "pictures of cases not seen before")
    user.control.evidence.reset.click()
    user.wait()
    assert controller.key == key and user.said[-1][0] == "good", user.said


def test_a_volume_that_was_changed_in_mid_run_gets_no_mask(user, model, pool):
    import slicer

    volume = head("one")
    user.choose(volume, pool, model)
    user.press()
    user.until_running()
    slicer.util.arrayFromVolume(volume)[:] *= 0.5
    slicer.util.arrayFromVolumeModified(volume)
    user.wait()
    assert "changed during the run" in user.status() and user.segmentation is None


def test_no_slice_is_decoded_again_for_a_segment_that_is_gone(user, model, pool):
    from CERSSegmentLib import SegmentationResult

    user.segment(head("one"), pool, model)
    before = user.control.controller.model.labelmap.copy()
    user.segmentation.GetSegmentation().RemoveSegment(SegmentationResult.ownSegments(user.segmentation)["tumor"])
    user.control.controller.drop(user.evidence["references"][0]["id"], True)
    user.control.evidence.rerun.click()
    user.wait()
    assert "segment of this result was removed" in user.status()
    assert np.array_equal(user.control.controller.model.labelmap, before)


def test_the_report_is_offered_under_a_name_that_a_file_can_have(user, model, pool, monkeypatch):
    import qt

    user.segment(head("3: AX T1 / POST"), pool, model)
    offered = []
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *arguments: offered.append(arguments[2]))
    user.control._askReportPath()
    assert offered[0].replace("\\", "/").endswith("/3_ AX T1 _ POST evidence.html")


def test_the_board_works_after_the_module_was_reloaded(user, loaded, model, pool, host):
    user.segment(head("one"), pool, model)
    user.control.evidence.board.click()
    user.panel.onReload()
    host.process(0.1)
    again = User(host, host.enter_module(loaded))
    again.segment(head("two", 2), pool, model)
    again.control.evidence.board.click()
    host.process(0.2)
    assert again.control.board.widget.isVisible() and again.control.evidence.board.checked
    again.control.board.close.click()
    assert not again.control.evidence.board.checked
