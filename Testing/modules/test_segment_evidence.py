"""Evidence on the screen and in the scene: drawn without holding up the application, saved and loaded with its segmentation."""

from __future__ import annotations

import json
import shutil
import sys
import time

import numpy as np
import pytest
from segmentkit import SHAPE, loaded, make_pool, model, visit  # noqa: F401 - fixtures

from cers.rationale import describe

pytestmark = pytest.mark.filterwarnings("ignore")
REFERENCES = 5


@pytest.fixture
def pool(tmp_path):
    return make_pool(tmp_path / "pool")


@pytest.fixture
def user(host, loaded, window):
    with visit(host, loaded, 1360, 860) as person:
        yield person


def head():
    from CERSSegmentLib import SelfTest

    matrix = np.diag([1.1, 1.2, 5.0, 1.0])
    matrix[:3, 3] = (-30, -40, -20)
    return SelfTest.makeVolume(name="head", matrix=matrix, shape=SHAPE)


def scroll(host, slices: list[float]) -> list[float]:
    """The longest own work of one pass of the event loop after each step of the red view, ms; the views drawn in software left out."""
    from slicerhost.views import drawing_seconds

    logic, worst = host.app.layoutManager().sliceWidget("Red").sliceLogic(), []
    for offset in slices:
        logic.SetSliceOffset(offset)
        passes, until = [], time.monotonic() + 0.15
        while time.monotonic() < until:
            time.sleep(0.002)
            start, drawn = time.thread_time(), drawing_seconds()
            host.app.processEvents()
            passes.append(1000 * (time.thread_time() - start - (drawing_seconds() - drawn)))
        worst.append(max(passes))
    return worst


def spoken(evidence) -> list[str]:
    """What the panel says of the slice in view."""
    return [label.text for label in (evidence.place, evidence.coverage, evidence.trust, evidence.queryWords)]


@pytest.mark.parametrize("board", [False, True], ids=["panel", "panel and board"])
def test_a_new_slice_never_holds_up_the_application(user, host, monkeypatch, board, screenshots):
    """Five reference cards with large pictures, other ones on each slice; nothing is at hand when a slice is first seen."""
    import qt
    import slicer
    from CERSSegmentLib import EvidenceModel, SegmentationResult, VolumeInput

    count, size = 10, 512
    volume = slicer.util.addVolumeFromArray(np.random.default_rng(1).normal(300, 40, (count, 256, 256)).astype(np.float32), name="large")
    labelmap = np.zeros((count, 256, 256), np.uint8)
    labelmap[:, 90:150, 80:170] = 1
    segmentation = SegmentationResult.create(volume)
    box = [slice(0, count), slice(90, 150), slice(80, 170)]
    list(SegmentationResult.fill(segmentation, volume, labelmap, box, {1: "tumor"}))
    rationale = describe(slicer.util.arrayFromVolume(volume)[0], labelmap[0] > 0, (1.0, 1.0), modality="MR", plane="axial").to_dict()
    rows, columns = np.indices((size, size))
    names = [f"case{n:02d}" for n in range(2 * count + REFERENCES)]
    cases = {
        name: {
            "id": name,
            "labels": {"1": "tumor"},
            "diagnosis": "glioma",
            "spacing": [0.5, 0.5],
            "rationale": rationale,
            "image": np.random.default_rng(n).integers(60, 200, (size, size)).astype(np.uint8),
            "mask": (((rows - 220) / 60) ** 2 + ((columns - 200 - n) / 70) ** 2 < 1).astype(np.uint8),
        }
        for n, name in enumerate(names)
    }
    slices = [
        {
            "plane": "axial",
            "index": n,
            "array_index": n,
            "rationale": rationale,
            "pixels": 5400,
            "disagreement": 0.1,
            "confidence": 0.9,
            "coverage": {"value": 0.9, "covered": True, "message": "Close cases in this pool."},
            "references": [
                {"id": names[2 * n + r], "rank": r + 1, "visual": 0.9, "cot": 0.8, "weight": 0.2, "influence": 0.1, "pinned": False}
                for r in range(REFERENCES)
            ],
            "rejected": [
                {
                    "id": names[r],
                    "stage": "cot",
                    "reason": "Its texture is homogeneous, that of this slice is not.",
                    "visual": 0.5,
                    "cot": 0.2,
                }
                for r in range(8)
            ],
        }
        for n in range(count)
    ]
    summary = {"labels": {"1": "tumor"}, "volume_ml": {"tumor": 1.0}, "seconds": {"total": 1.0}, "slices": slices, "provenance": {}}
    monkeypatch.setattr(
        user.logic, "case", lambda identifier, _pool, receiver: qt.QTimer.singleShot(5, lambda: receiver(cases[identifier]))
    )
    user.logic.finished.emit(EvidenceModel.EvidenceModel(summary, labelmap, VolumeInput.worldGeometry(volume), volume, segmentation, box))
    host.process(0.3)
    if board:
        user.control.evidence.board.click()
        host.process(0.5)
    worst = scroll(host, [n + 0.01 for n in range(count)])
    print(f"longest pass of the event loop after a new slice: median {np.median(worst):.0f} ms, max {max(worst):.0f} ms")
    assert np.median(worst) < 50  # the longest one also tells how busy the machine is
    shown = user.control.board.columns if board else user.control.evidence.cards

    def up_to_date() -> bool:
        return all(
            card.identifier == r["id"] and card.picture._picture is user.control.controller.casePicture(r["id"]) is not None
            for card, r in zip(shown, user.evidence["references"], strict=True)
        )

    host.wait_for(up_to_date, 20, "the five cards of the last slice")
    host.process(0.2)
    host.screenshot(user.window, screenshots / f"segment_five_{'board' if board else 'panel'}.png")


def test_the_board_fits_into_a_small_window(user, host, model, pool, screenshots):
    window = host.show_main_window(900, 700, 400)
    user.segment(head(), pool, model)
    references = list(user.evidence["references"])
    assert len(references) == REFERENCES
    for count in (3, REFERENCES, 2):  # of a board that has shown fewer, and of one that has shown more
        user.evidence["references"][:] = references[:count]
        if user.control.board.shown:
            user.control.controller.show(user.control.controller.key)
        else:
            user.control.evidence.board.click()
        host.process(0.5)
        board = user.control.board
        assert "&nbsp;Confidence" in board.status.text or "&nbsp;Low" in board.status.text  # no line ends after a mark
        for width in (830, 818, 806):  # the pictures follow small steps too
            board.widget.setFixedWidth(width)
            host.process(0.3)
            assert sum(c.title.visible for c in board.columns) == count and board.area.horizontalScrollBar().maximum == 0
    board.widget.setMinimumWidth(0)
    board.widget.setMaximumWidth(10000)
    user.ui.outputSelector.setCurrentNode(None)
    host.process(0.3)
    host.screenshot(window, screenshots / "segment_small_board.png")
    assert board.place.text.startswith("No evidence") and board.widget.minimumSizeHint.width() < 400, "the panel keeps its room"
    assert not board.area.verticalScrollBar().isVisible()


def save_and_load(host, path) -> None:
    import slicer

    assert slicer.util.saveScene(str(path))
    slicer.mrmlScene.Clear(0)
    host.process(0.2)
    slicer.util.loadScene(str(path))
    host.process(0.2)


@pytest.mark.parametrize("kind", ["scene.mrb", "folder.mrml"])
def test_evidence_is_saved_and_loaded_with_the_scene(user, model, pool, host, tmp_path, kind, screenshots):
    import slicer

    volume = head()
    user.segment(volume, pool, model)
    controller = user.control.controller
    dropped = user.evidence["references"][0]["id"]
    controller.drop(dropped, True)
    user.control.evidence.rerun.click()
    user.wait()
    host.process(0.2)
    key, before = controller.key, controller.model
    words = spoken(user.control.evidence)
    if kind.endswith("mrml"):
        (tmp_path / "files").mkdir()
        for node, name in ((volume, "head.nrrd"), (user.segmentation, "lesions.seg.nrrd")):
            assert slicer.util.saveNode(node, str(tmp_path / "files" / name))
    user.logic.worker.stop()  # a new day: no worker holds anything
    save_and_load(host, tmp_path / ("files" if kind.endswith("mrml") else ".") / kind)
    after = controller.model
    assert after is not None and after is not before and after.alive and after.segmentation is user.segmentation
    assert np.array_equal(after.labelmap, before.labelmap) and set(after.slices) == set(before.slices) and after.rerun == {key}
    for where, entry in before.slices.items():
        assert [r["id"] for r in after.slices[where]["references"]] == [r["id"] for r in entry["references"]]
        assert [r["reason"] for r in after.slices[where]["rejected"]] == [r["reason"] for r in entry["rejected"]]
    assert after.choice(key).dropped == {dropped} and after.pool == str(pool)
    controller.show(key)
    assert words == spoken(user.control.evidence)
    references = user.evidence["references"]
    assert references
    host.wait_for(lambda: all(controller.casePicture(r["id"]) for r in references), 60, "the pictures from the pool")
    host.process(0.2)
    host.screenshot(user.window, screenshots / "segment_loaded.png")
    user.control.evidence.rerun.click()
    user.wait()
    assert "Press Segment once more" in user.status()
    user.press()
    user.wait()
    assert user.said[-1][0] == "good", user.said


def test_what_one_plane_alone_shows_is_drawn_and_kept_with_the_scene(user, model, pool, host, tmp_path, screenshots):
    from cers.case.runs import from_runs, to_runs

    user.segment(head(), pool, model)
    controller = user.control.controller
    key = controller.key
    part = np.zeros(controller.model.mask(key).shape, bool)
    part[part.shape[0] // 2 : part.shape[0] // 2 + 5, 8:12] = True
    assert controller.model.leftOut(key) is None and controller.queryPicture().dashed is None
    controller.model.slices[key] |= {"left_out": 20, "left_out_runs": to_runs(part)}
    user.logic.finished.emit(controller.model)
    host.process(0.2)
    assert np.array_equal(controller.model.leftOut(key), part)
    assert controller.queryPicture().dashed.sum() == 20 and "(dashed), left out" in spoken(user.control.evidence)[2]
    host.screenshot(user.window, screenshots / "segment_left_out.png")
    assert controller.model.stops(key[0]) == controller.model.lesionSlices(key[0]), "where there are lesions, N goes to them"
    record = sys.modules["CERSSegmentLib.EvidenceRecord"]
    kept = json.loads(json.dumps(record._short(controller.model.slices[key])))
    assert np.array_equal(from_runs(kept["left_out_runs"], part.shape), part)
    empty = sys.modules["CERSSegmentLib.EvidenceModel"].EvidenceModel(
        controller.model.summary, np.zeros_like(controller.model.labelmap), controller.model.geometry, None, None
    )
    assert empty.stops(key[0]) == [key[1]] and empty.largest() == key, "where there are none, to what was left out"


def test_evidence_is_written_into_the_scene_in_portions(user, model, pool, host):
    """A slice at a time, so that a volume of a thousand slices does not hold up the application."""
    from CERSSegmentLib import EvidenceRecord

    user.segment(head(), pool, model)
    shown = user.control.controller.model
    node = shown.segmentation.GetNodeReference(EvidenceRecord.ROLE)
    text = node.GetText()
    node.SetText("")
    steps = EvidenceRecord.keeping(shown)
    for _entry in shown.slices:
        next(steps)
        assert not node.GetText()
    user.control.keeper.keep(shown)
    user.control.keeper.keep(shown)  # once more before the first is done: the last one counts
    host.wait_for(lambda: node.GetText() == text, 10, "the evidence in the scene")
    user.control.keeper.keep(shown)
    user.control.keeper.forget(shown.segmentation)
    host.process(0.2)
    assert EvidenceRecord.restore(shown.segmentation) is None


def test_words_belong_to_the_contour_shown_also_after_edits_rerun_and_reset(user, model, pool, host):
    import slicer
    from CERSSegmentLib import SegmentationResult

    volume = head()
    user.segment(volume, pool, model)
    controller = user.control.controller
    key, node = controller.key, user.segmentation

    def words() -> str:
        mask = controller.model.mask(key)
        area = (mask > 0).sum() * 1.1 * 1.2
        assert user.evidence["rationale"]["descriptors"]["area_mm2"] == pytest.approx(area, rel=1e-4) != 0
        controller.changed.emit()
        host.process(0.1)
        return user.control.evidence.queryWords.text

    assert "Measured under the contour" in words() and "by hand" not in words()
    segment = next(iter(SegmentationResult.ownSegments(node).values()))
    drawn = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment, volume)
    drawn[controller.model.planes[key[0]].array_index(key[1]), :20] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, segment, volume)
    assert "Changed by hand since" in words()
    controller.show((key[0], key[1] - 1))
    assert "by hand" not in user.control.evidence.queryWords.text
    controller.show(key)
    controller.drop(user.evidence["references"][0]["id"], True)
    for press in (user.control.evidence.rerun, user.control.evidence.reset):
        press.click()
        user.wait()
        host.process(0.2)
        assert "by hand" not in words()


def test_what_is_missing_after_loading_is_told(user, model, pool, host, tmp_path):
    import slicer

    user.segment(head(), pool, model)
    host.process(0.1)
    shutil.rmtree(pool)
    user.logic.worker.stop()
    save_and_load(host, tmp_path / "scene.mrb")
    assert user.evidence is not None and user.evidence["references"] and "is not there" in user.status()
    segmentation = user.segmentation
    from CERSSegmentLib import EvidenceRecord

    node = segmentation.GetNodeReference(EvidenceRecord.ROLE)
    node.SetText(node.GetText()[:1000])
    save_and_load(host, tmp_path / "cut.mrb")
    assert user.control.controller.model is None and "cannot be read" in user.status()
    slicer.mrmlScene.RemoveNode(user.segmentation)  # its evidence goes with it
    host.process(0.1)
    assert not [n for n in slicer.util.getNodesByClass("vtkMRMLTextNode") if n.GetAttribute(EvidenceRecord.ROLE)]
