"""The knowledge pool module where two things happen at once, or elsewhere than it thinks."""

from __future__ import annotations

import os
import socket
import time

import pytest
from poolroom import HEALTH, HISTORY, IMPORT, pool_folder, user, write_pictures  # noqa: F401 - fixtures

from cers.errors import InputError
from cers.pool import Pool
from cers.training import runs


@pytest.mark.parametrize("typed", ["pool", "~/pool", "./pool"])
def test_a_pool_given_by_a_short_path_is_the_same_everywhere(user, pool_folder, monkeypatch, typed):
    """A training works in a folder of its own, and the application may be started in another one next time."""
    monkeypatch.chdir(pool_folder.parent)
    monkeypatch.setenv("HOME", str(pool_folder.parent))
    monkeypatch.setenv("USERPROFILE", str(pool_folder.parent))
    user.choose(typed)
    assert len(user.ids()) == 5, user.ui.statusLabel.text
    assert user.control.training.form.settings()["data"] == str(pool_folder)
    assert user.host.slicer.util.settingsValue("CERS/PoolFolder", "") == str(pool_folder)
    user.ui.reloadButton.click()
    user.settle()
    user.control.enter()
    user.settle()
    assert len(user.ids()) == 5 and user.ui.poolPath.currentPath in (typed, str(pool_folder))


def test_a_search_that_ends_late_does_not_replace_what_was_asked_for_since(user, pool_folder, monkeypatch):
    user.choose(pool_folder)
    session, cases, ends = user.control.session, user.cases, []
    monkeypatch.setattr(session, "work", lambda method, params, done, failed=None: ends.append((done, failed)) or True)
    every = user.ids()
    late = {"ids": every[::-1], "total": 5, "similarity": [0.9, 0.8, 0.7, 0.6, 0.5]}
    cases.words.setText("bright")
    cases.findMeaning()
    cases.showOnly(every[:2], "These two are alike.")  # a finding of the page Health was clicked
    ends.pop()[0](late)
    assert user.ids() == every[:2] and cases.found.text == "These two are alike."
    cases.findMeaning()
    cases.combos["modality"].setCurrentIndex(cases.combos["modality"].findData("CT"))
    user.settle()
    shown = user.ids()
    ends.pop()[0](late)
    assert user.ids() == shown != late["ids"] and "closest" not in cases.found.text
    cases.showAll()
    user.settle()
    cases.words.setText("bright")
    cases.findMeaning()
    ends.pop()[0](late)
    assert user.ids() == late["ids"] and "closest in meaning" in cases.found.text


def test_the_name_shown_is_the_one_that_is_written(user, pool_folder):
    """CERS Segment has a field for the name, too."""
    user.choose(pool_folder)
    history = user.control.history
    history.who.setText("Ana")
    assert user.control.session.who == "Ana"
    user.host.qt.QSettings().setValue("CERS/Annotator", "Ben")
    user.page(HISTORY)
    assert history.who.text == user.control.session.who == "Ben"
    history.who.setText("Ben C")  # typing goes on while the page is read again
    history.who.setText("Ben C ")
    history.again()
    user.settle()
    assert history.who.text == "Ben C " and user.control.session.who == "Ben C"


def test_a_comment_is_kept_until_its_verdict_is(user, pool_folder):
    user.choose(pool_folder)
    user.open(0)
    gone = user.ids()[0]
    with Pool.open(pool_folder) as pool:  # a colleague, meanwhile
        pool.trash([gone])
    user.case.note.setText("Margin is wrong")
    user.case.verdicts[1].click()
    user.settle()
    assert gone[:8] in user.ui.messageLabel.text and user.case.note.text == "Margin is wrong"
    user.ui.reloadButton.click()
    user.settle()
    user.cases.view.selectRow(0)
    with Pool.open(pool_folder) as pool:
        pool.trash(user.cases.table.selected())
    user.cases.note.setText("Poor")
    user.cases.buttons["flagged"].click()
    user.settle()
    assert user.cases.note.text == "Poor"
    user.ui.reloadButton.click()
    user.settle()
    user.open(0)
    user.case.note.setText("Fine")
    user.case.verdicts[0].click()
    user.case.note.setText("Fine, and the next")  # typed before the answer
    user.settle()
    assert user.case.review.text == "approved" and user.case.note.text == "Fine, and the next"
    user.case.verdicts[0].click()
    user.settle()
    assert user.case.note.text == ""
    with Pool.open(pool_folder, read_only=True) as pool:
        assert [e["note"] for e in pool.audit([user.case.caseId]) if e["action"] != "added" and e["note"]] == ["Fine, and the next", "Fine"]


def test_several_stay_chosen_after_a_verdict(user, pool_folder):
    user.choose(pool_folder)
    user.cases.view.selectAll()
    chosen = set(user.cases.table.selected())
    user.cases.buttons["flagged"].click()
    user.settle()
    assert set(user.cases.table.selected()) == chosen and len(chosen) == 5 and "flagged" in user.cell(4, "Review")
    user.cases.buttons["approved"].click()
    user.settle()
    assert all("approved" in user.cell(row, "Review") for row in (0, 4)) and "5 cases: approved" in user.ui.messageLabel.text


def test_a_case_is_added_to_the_scene_once(user, pool_folder):
    slicer = user.host.slicer
    user.choose(pool_folder)
    user.open(0)
    case_id = user.ids()[0]

    def shown() -> tuple[int, int]:
        return len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")), len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))

    before = shown()
    user.case.toViews.click()
    once = slicer.util.getNode(f"Case {case_id[:8]}")
    user.open(1)
    user.case.toViews.click()
    user.open(0)
    user.case.toViews.click()
    assert shown() == (before[0] + 2, before[1] + 2)
    view = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
    assert view.GetBackgroundVolumeID() == once.GetID()
    slicer.mrmlScene.RemoveNode(slicer.util.getNode(f"Case {user.ids()[1][:8]} contour"))
    user.open(1)
    user.case.toViews.click()
    assert shown() == (before[0] + 3, before[1] + 2), "with its outline again"


def test_a_run_is_not_resumed_twice_while_its_process_starts(user, tmp_path):
    """Two windows, or a second click, before the process has the lock."""
    from CERSKnowledgePoolLib import TrainingLaunch

    folder = runs.new_folder(tmp_path / "runs", "one")
    runs.write_record(folder / runs.SETTINGS, {"data": str(tmp_path), "method": "cers", "evidence": "none"})
    launch = {"pid": os.getpid(), "host": socket.gethostname(), "started": round(time.time(), 3)}
    runs.write_record(folder / runs.LAUNCH, launch)
    with pytest.raises(InputError, match="at work already"):
        TrainingLaunch.send(folder)
    assert runs._record(folder / runs.LAUNCH) == launch and not (folder / runs.OUTPUT).exists()


def test_a_worker_that_dies_in_an_import_is_not_said_to_have_changed_nothing(user, pool_folder, tmp_path):
    folder = write_pictures(tmp_path / "images", 40, 120)
    user.choose(pool_folder)
    page, worker = user.choose_images(folder), user.control.session.worker
    with Pool.open(pool_folder, read_only=True) as pool:
        page.start.click()
        user.host.wait_for(lambda: len(pool) > 5, 60, "the first case")
        worker._process.kill()
        user.settle()
        added = len(pool) - 5
    page.source.setCurrentIndex(0)
    text = page.result.plainText
    told = "One case was added before" if added == 1 else f"{added} cases were added before"
    assert told in text and "nothing was changed" not in text and "Segment" not in text, text


def test_a_trial_that_another_pool_ended_says_nothing_of_that_pool(user, pool_folder, tmp_path, monkeypatch):
    Pool.create(tmp_path / "other").close()
    user.choose(pool_folder)
    user.page(HEALTH)
    health = user.control.health
    monkeypatch.setattr(health.worker, "cancel", lambda identifier: None)  # its answer takes its time
    health.trial.click()
    user.host.wait_for(lambda: health.worker._pending, 30, "the request")
    user.choose(tmp_path / "other")
    assert health.busy
    health.worker.stop()
    user.settle()
    assert not health.busy and health.tried.text == "" and health.summary.text == ""
