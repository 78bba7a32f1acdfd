"""Choosing what to label next in CERS Segment: rank, open, correct, finish, reopen; over a restart and beside another annotator."""

from __future__ import annotations

import json
import shutil

import numpy as np
import phantom
import pytest
from segmentkit import Gaps, loaded, visit  # noqa: F401 - fixtures

from cers.case import Geometry
from cers.case.io import read_mask, write_image
from cers.pool import Pool

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("torch", reason="torch is not installed: the worker needs it")
    return phantom.build_model(tmp_path_factory.mktemp("model") / "model", share=0.2)


@pytest.fixture
def pool(tmp_path):
    phantom.build_pool(tmp_path / "pool", cases=1)
    return tmp_path / "pool"


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "neue Köpfe"
    (folder / "sub").mkdir(parents=True)
    for n, name in enumerate(("eins.nrrd", "sub/zwei.nii.gz", "drei.nrrd")):
        write_image(folder / name, phantom.head(10 + n)[0], Geometry(phantom.matrix(), phantom.SHAPE))
    (folder / "broken.nrrd").write_bytes(b"x" * 40)
    return folder


@pytest.fixture
def user(host, loaded, window, pool, model):
    with visit(host, loaded) as person:
        person.list = person.control.labelNext
        person.ui.annotatorEdit.setText("Ada Lovelace")
        person.choose(None, pool, model)
        person.ui.nextButton.collapsed = False
        yield person
    person.ui.nextButton.collapsed = True
    host.slicer.mrmlScene.Clear(0)
    for name in ("CERS/LabelNextFolder", "CERS/PoolFolder", "CERS/Annotator"):
        host.qt.QSettings().remove(name)
    host.process(0.1)


def rank(user, scans) -> None:
    user.ui.nextFolder.currentPath = str(scans)
    user.ui.rankButton.click()
    user.wait()
    user.host.process(0.1)


def cells(user, column: int) -> list[str]:
    return [user.ui.nextTable.item(n, column).text() for n in range(user.ui.nextTable.rowCount)]


def paint(user, mask) -> None:
    import slicer
    from CERSSegmentLib import Correction, SegmentationResult

    volume = Correction.volumeOf(user.segmentation)
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        mask.astype(np.uint8), user.segmentation, SegmentationResult.ownSegments(user.segmentation)["tumor"], volume
    )


def add(user) -> None:
    user.ui.addButton.click()
    user.wait()


def restart(user) -> None:
    """What a restart of the application leaves: an empty scene and what is on the disk."""
    user.host.slicer.mrmlScene.Clear(0)
    user.host.process()
    user.list._key, user.list.state, user.list.rows = (), None, []
    user.ui.annotatorEdit.setText("Ada Lovelace")
    user.choose(None, user.pool, user.model)
    user.list.refresh()


def test_rank_open_correct_finish_and_reopen(user, scans, pool, model, host, screenshots):
    from CERSSegmentLib import Correction

    user.pool, user.model = pool, model
    rank(user, scans)
    assert user.status().endswith("press Open.") and sorted(c.split(". ")[1] for c in cells(user, 0)) == [
        "drei.nrrd",
        "eins.nrrd",
        "sub/zwei.nii.gz",
    ]
    assert cells(user, 1) == ["to do"] * 3 and "broken.nrrd" in user.ui.nextSummary.text and user.list.selected() == 0
    assert user.ui.nextSummary.text.startswith("3 volumes to label. ")
    assert "covers it" in user.ui.nextReason.text and not user.ui.backButton.enabled and user.ui.forwardButton.enabled
    user.ui.openButton.click()
    user.wait()
    volume = user.control.parameter.inputVolume
    assert volume is not None and user.segmentation is None and cells(user, 1)[0] == "● in work" and "Press Segment" in user.status()
    user.press()
    user.wait()
    seed = {"eins": 10, "sub/zwei": 11, "drei": 12}[user.list.rows[0]["path"].partition(".")[0]]
    corrected = phantom.head(seed)[1]
    paint(user, corrected)
    host.screenshot(user.window, screenshots / "label_next.png")
    add(user)
    assert cells(user, 1) == ["✔ finished", "to do", "to do"] and user.list.selected() == 0, user.status()
    assert user.control.parameter.inputVolume is volume, "saving does not advance"
    user.ui.forwardButton.click()
    user.wait()
    second = user.control.parameter.inputVolume
    assert second is not volume and user.segmentation is None and cells(user, 1)[1] == "● in work"
    user.ui.backButton.click()
    user.wait()
    assert user.control.parameter.inputVolume is volume and user.segmentation is not None, "what is loaded is shown as it is"
    assert "as you left it" in user.status() and user.host.slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2
    restart(user)
    assert cells(user, 1) == ["✔ finished", "● in work", "to do"]
    user.ui.nextTable.selectRow(0)
    user.ui.openButton.click()
    user.wait()
    volume = user.control.parameter.inputVolume
    back = list(Correction.read(user.segmentation, volume, {1: "tumor"}))
    assert "with the mask that was saved" in user.status() and back is not None
    array = host.slicer.util.arrayFromSegmentBinaryLabelmap(
        user.segmentation, user.segmentation.GetSegmentation().GetNthSegmentID(0), volume
    )
    assert np.array_equal(array, corrected)
    paint(user, np.where(np.arange(phantom.SHAPE[1])[:, None] > 28, corrected, 0))
    add(user)
    masks = sorted((pool / "labelling").glob("*.seg.nrrd"))
    assert len(masks) == 2 and np.array_equal(read_mask(masks[0], Geometry(phantom.matrix(), phantom.SHAPE))[0], corrected), (
        "the earlier one stays"
    )
    with Pool.open(pool) as kept:
        assert not kept.verify() and "excluded" in {m["review"] for m in kept.list()}
    rank(user, scans)
    assert "One is labelled already." in user.ui.nextSummary.text
    assert cells(user, 1)[-1] == "✔ finished" and user.ui.nextTable.rowCount == 3, "finished ones go to the end of a new ranking, and stay"


def test_two_annotators_see_each_other_and_overwrite_nothing(user, scans, pool):
    from CERSSegmentLib.LabelNextState import DONE, TODO, WORK, LabelNextState

    rank(user, scans)
    ids = [r["id"] for r in user.list.rows]
    ben, eve = LabelNextState(str(pool), "Ben"), LabelNextState(str(pool), "Éve <b>")
    ben.set(ids[1], WORK)
    eve.set(ids[1], DONE)
    user.list.remember(ids[0], WORK)
    user.list.refresh()
    assert cells(user, 1) == ["● in work", "✔ finished (Éve <b>)", "to do"]
    assert ben.entry(ids[1]).who == "Ben" and not ben.read() and ben.entry(ids[1]).who == "Éve <b>"
    user.ui.annotatorEdit.setText("Ben")
    user.list.refresh()
    assert cells(user, 1)[0] == "● in work (Ada Lovelace)" and user.list.rows, "the next annotator goes on with the same list"
    user.ui.nextTable.selectRow(2)
    user.ui.doneButton.click()
    assert cells(user, 1)[2] == "✔ finished" and user.ui.doneButton.text == "Not finished"
    assert user.ui.nextSummary.text.startswith("1 volume to label. 2 finished.")
    user.ui.doneButton.click()
    assert cells(user, 1)[2] == "to do"
    for path in (pool / "labelling").glob(f"{ids[0]}*.json"):
        path.write_text("{ broken")
    (pool / "labelling" / f"{ids[2]}.x.json").write_text(json.dumps({"state": "nonsense"}))
    user.list.refresh()
    assert cells(user, 1) == ["to do", "✔ finished (Éve <b>)", "to do"] and ben.entry(ids[2]).state == TODO
    assert not list((pool / "labelling").glob(".*"))


def test_what_cannot_be_ranked_or_opened_is_said(user, scans, pool, model, host, tmp_path):
    user.ui.poolPath.currentPath = ""
    assert not user.ui.rankButton.enabled and "Choose a pool" in user.ui.rankButton.toolTip
    assert "Choose a pool" in user.ui.nextSummary.text and user.ui.nextSummary.isVisibleTo(user.control.form)
    user.ui.poolPath.currentPath = str(pool)
    user.ui.nextFolder.currentPath = str(tmp_path / "nowhere")
    assert not user.ui.rankButton.enabled and "Choose the folder" in user.ui.rankButton.toolTip
    (tmp_path / "empty").mkdir()
    rank(user, tmp_path / "empty")
    assert "There is no image" in user.status() and user.said[-1][0] == "error"
    rank(user, scans)
    shutil.rmtree(scans / "sub")
    row = next(n for n, r in enumerate(user.list.rows) if r["path"].startswith("sub"))
    user.list.open(row)
    assert "no longer there" in user.status()
    path = scans / "eins.nrrd"
    path.write_bytes(b"x" * 50)
    user.list.open(next(n for n, r in enumerate(user.list.rows) if r["path"] == "eins.nrrd"))
    assert "could not be loaded" in user.status() and user.control.parameter.inputVolume is None
    (pool / "labelling").rename(pool / "kept")
    (pool / "labelling").write_text("in the way")
    user.ui.nextTable.selectRow(0)
    user.ui.doneButton.click()
    assert "not remembered" in user.status()


def test_rank_can_be_stopped_and_the_screen_stays_alive(user, scans, pool, host):
    for n in range(6):
        write_image(scans / f"more{n}.nrrd", phantom.head(40 + n)[0], Geometry(phantom.matrix(), phantom.SHAPE))
    user.ui.nextFolder.currentPath = str(scans)
    with Gaps(host.qt) as gaps:
        user.ui.rankButton.click()
        assert user.ui.rankButton.text == "Cancel" and not user.ui.openButton.enabled
        user.until_running("next_rank")
        user.release()
        host.wait_for(lambda: list((pool / "derived" / "next").glob("*.npz")), 60, "the first volume")
        user.ui.rankButton.click()
        user.wait()
    assert "Stopped" in user.status() and user.ui.rankButton.text == "Rank" and max(gaps.work) < 150
    rank(user, scans)
    assert user.ui.nextTable.rowCount == 9
    host.slicer.mrmlScene.Clear(0)
    host.process(0.1)
    assert user.list.selected() is not None and user.ui.nextTable.rowCount == 9
    user.logic.worker.stop()  # the worker died: the next click starts another
    user.ui.openButton.click()
    user.wait()
    assert user.control.parameter.inputVolume is not None
