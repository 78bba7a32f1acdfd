"""The map of a pool and the trial of its references, in the panel."""

from __future__ import annotations

import numpy as np
import pytest
from poolroom import CASE, CASES, HEALTH, MAP, make_case, pool_folder, user  # noqa: F401 - fixtures

from cers.inference import store
from cers.inference.tiny import tiny_model
from cers.pool import Pool


def test_a_click_on_a_point_opens_its_case(user, pool_folder, screenshots):
    user.choose(pool_folder)
    user.page(MAP)
    page, plot = user.control.map, user.control.map.plot
    assert sorted(page.ids) == sorted(user.ids()) and "plain pictures" in page.words.text and "tumor" in page.legend.text
    page.facet.setCurrentIndex(page.facet.findData("modality"))
    user.host.process(0.3)
    assert "MR" in page.legend.text and "CT" in page.legend.text
    user.host.screenshot(user.host.window, screenshots / "map.png")
    places, want = plot.pixels(), 3
    interactor = plot._interactor()
    x, y = (int(round(v)) for v in places[want])
    for event in ("LeftButtonPressEvent", "LeftButtonReleaseEvent"):
        interactor.SetEventInformation(x, y)
        interactor.InvokeEvent(event)
    user.settle()
    assert user.control.tabs.current == CASE and user.case.caseId == page.ids[want]
    user.page(MAP)
    assert "open case" in page.legend.text and page._open == page.ids[want]
    far = np.argmax(np.hypot(*(places - places[want]).T))
    interactor.SetEventInformation(x, y)
    interactor.InvokeEvent("LeftButtonPressEvent")
    interactor.SetEventInformation(*(int(v) for v in places[far]))
    interactor.InvokeEvent("LeftButtonReleaseEvent")
    user.settle()
    assert user.control.tabs.current == MAP, "moving the map opens nothing"


def test_map_follows_the_pool_and_the_scene(user, pool_folder, tmp_path):
    user.choose(pool_folder)
    user.page(MAP)
    with Pool.open(pool_folder) as pool:
        pool.add(make_case(11))
    user.ui.reloadButton.click()
    user.settle()
    user.host.wait_for(lambda: len(user.control.map.ids) == 6, 30, "the new map")
    nodes = user.control.map.plot.nodes()
    assert nodes and all(n.GetHideFromEditors() and not n.GetSaveWithScene() for n in nodes)
    user.host.slicer.mrmlScene.Clear(0)
    user.host.process(0.2)
    assert all(user.host.slicer.mrmlScene.IsNodePresent(n) for n in user.control.map.plot.nodes()), "drawn again in the new scene"
    with Pool.create(tmp_path / "empty"):
        pass
    user.choose(tmp_path / "empty")
    user.page(MAP)
    assert "nothing to show" in user.control.map.words.text and not user.control.map.plot.nodes()


def test_case_page_says_where_a_case_was_used(user, pool_folder):
    from cers.case import Coverage, Evidence, Reference

    user.choose(pool_folder)
    first, second = user.ids()[:2]
    with Pool.open(pool_folder) as pool:
        reference = Reference(first, 0, 0.9, None, 1.0, influence=0.25)
        pool.record_uses("a" * 64, "model", [Evidence("axial", 3, 3, [reference], [], Coverage(0.9, True, ""))], day="2026-01-02")
    user.open(0)
    text = user.case.text.plainText
    assert "For one image" in text and "2026-01-02, image aaaaaaaa, slices 1, influence 0.25" in text
    user.control.openCase(second)
    user.settle()
    assert "Not yet" in user.case.text.plainText


@pytest.fixture
def tiny(user, tmp_path, monkeypatch):
    """A small model in use, for the worker that is started next."""
    monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path / "models"))
    from cers.inference.packing import install

    store.use(install(tiny_model(tmp_path / "tiny", size=64), name="tiny").id)
    user.control.health.worker.stop()
    return user


def test_references_are_tried(tiny, pool_folder, screenshots):
    user, health = tiny, tiny.control.health
    user.choose(pool_folder)
    user.page(HEALTH)
    assert health.record.checked and health.record.enabled
    health.trial.click()
    assert not health.trial.enabled and not health.cancel.isHidden()
    user.host.wait_for(lambda: not health.busy, 300, "the trial")
    assert "Tried: 4 of 5" in health.tried.text and "Not tried: 1 (" in health.tried.text, "the model is made for MR, and one case is CT"
    assert health.trial.enabled and health.cancel.isHidden()
    ids = user.ids()
    health.showTrial(
        {
            "tried": 5,
            "total": 5,
            "evidence_gain": -0.01,
            "faults": {},
            "findings": [
                {"kind": "harm", "ids": ids[:2], "message": "Case x lowers the Dice of the cases that it serves."},
                {"kind": "doubt", "ids": ids[2:3], "message": "Look whether its mask is right."},
                {"kind": "contradicted", "ids": ids[3:4], "message": "The references chosen beside it contradict its mask."},
            ],
        }
    )
    assert "Cases that lower it: 1. Masks in doubt: 1. Contradicted by others: 1." in health.tried.text
    health.button.click()
    user.settle()
    assert "lower the Dice" in health.text.plainText and health.findings[0]["kind"] == "harm" and len(health.findings) > 1
    user.host.screenshot(user.host.window, screenshots / "knowledge_pool_trial.png")
    health.open(0)
    user.settle()
    assert user.control.tabs.current == CASES and user.ids() == ids[:2]
    user.page(HEALTH)
    health.record.click()
    user.settle()
    with Pool.open(pool_folder) as pool:
        assert not pool.records_uses


def test_trial_can_be_stopped(tiny, pool_folder):
    user, health = tiny, tiny.control.health
    user.choose(pool_folder)
    user.page(HEALTH)
    health.trial.click()
    user.host.process(0.2)
    health.cancel.click()
    user.host.wait_for(lambda: not health.busy, 60, "the end")
    assert "Stopped" in health.tried.text and health.trial.enabled
