"""The Models page, driven as a user would, with real small models and the module that segments."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from poolroom import ROOT, pool_folder, user  # noqa: F401 - fixtures
from segmentkit import BLOCKED_MS, Gaps

from cers.inference import packing, store
from cers.inference.tiny import tiny_model
from cers.pool import Pool

sys.path.append(str(ROOT / "Testing" / "evaluation"))

MODELS = 8


def resultOf(model: Path, shift: float = 0.0, count: int = 12, **run) -> None:
    """A result as a run leaves it, made by what makes it there, and the sheet of pictures."""
    from cers.evaluation.result import Cases
    from cers.inference.model import ModelConfig

    config = ModelConfig.read(model / "config.json")
    random, rows, columns = np.random.default_rng(3), *np.mgrid[:48, :48]
    cases, tiles = Cases(["tumor"], 1.6), []
    for n in range(count):
        distance = 9 + n % 4 - np.hypot(rows - 24, columns - 22 - n % 5)
        noise = random.normal(0, 1.2, distance.shape) + shift
        logits = {
            arm: (distance * scale + noise)[None] for arm, scale in (("plain", 0.3), ("null", 0.35), ("random", 0.3), ("retrieved", 0.6))
        }
        cases.add(
            {"image": f"test_{n:03d}", "group": f"g{n}", "diagnosis": ("glioma", "meningioma")[n % 2], "file": f"/data/test_{n:03d}.jpg"},
            logits,
            distance[None] > 0,
        )
        cases.rows[-1]["tile"] = n
        picture = np.zeros((120, 120, 3), np.uint8)
        picture[20:100, 20:100] = 60 + 10 * n
        tiles.append(picture)
    for place, n in enumerate(sorted(range(count), key=lambda n: cases.rows[n]["dice"])):
        cases.rows[n]["tile"] = place
    about = {
        "on": "test",
        "of": count,
        "decoder": "retrieved",
        "split": "group",
        "counts": {"labelled": 393, "unlabelled": 3540},
        "method": "cers",
        "evidence": "retrieved",
        "steps": 12000,
        **run,
    }
    (model / "result.json").write_text(json.dumps(cases.result(config.name, "0" * 16, about)), encoding="utf-8")
    Image.fromarray(np.concatenate([np.concatenate(tiles[:10], 1), np.concatenate([*tiles[10:], *[tiles[0] * 0] * (20 - count)], 1)])).save(
        model / "cases.png"
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """Two models, measured on the same cases, each in a finished run."""
    out = []
    for seed, name in ((1, "Köpfe, erster Versuch"), (2, "heads, better")):
        run = tmp_path_factory.mktemp("Läufe") / name
        tiny_model(run / "model", size=64, seed=seed)
        config = json.loads((run / "model" / "config.json").read_text())
        (run / "model" / "config.json").write_text(json.dumps({**config, "name": name}))
        resultOf(run / "model", shift=0.4 if seed == 1 else 0.0)
        out.append(run)
    return out


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The store of the user and the folder of runs; the worker's process inherits both."""
    monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path / "Modelle hier"))
    return tmp_path / "Modelle hier"


class Keeper:
    """The page and what a user sees of it."""

    def __init__(self, user):
        self.user, self.host, self.page = user, user.host, user.control.models
        self.said: list[str] = []
        say = self.page.say
        self.page.say = lambda words, wrong=False, undo=None: (self.said.append(words), say(words, wrong, undo))

    def wait(self, seconds: float = 240) -> None:
        self.host.process(0.05)
        self.host.wait_for(lambda: not self.page.busy, seconds, f"the end of the work ({self.said})")
        self.user.settle()
        self.host.wait_for(lambda: not self.page.busy, seconds, "the list")

    def open(self) -> None:
        self.user.control.tabs.show(MODELS)
        self.page.enter()
        self.wait()

    def rows(self) -> list[tuple[str, str]]:
        table = self.page.table
        return [(table.item(r, 0).text(), table.item(r, 1).text()) for r in range(table.rowCount)]

    def choose(self, name: str) -> None:
        self.page.table.selectRow([n for n, _state in self.rows()].index(name))
        self.host.process(0.3)

    def press(self, button) -> None:
        assert button.enabled, button.text
        button.click()
        self.wait()


@pytest.fixture
def keeper(home, user, monkeypatch, tmp_path):
    user.host.qt.QSettings().setValue("CERS/RunsFolder", str(tmp_path / "runs"))
    keeper = Keeper(user)
    keeper.open()
    yield keeper
    keeper.page.say = user.control.say
    keeper.page.worker.stop()
    user.host.qt.QSettings().remove("CERS/RunsFolder")


def finish(folder: Path, run: Path) -> Path:
    """A copy of a run in the folder of runs, which says that it is finished."""
    shutil.copytree(run, folder / run.name)
    (folder / run.name / "status.json").write_text('{"state": "finished", "step": 5, "updated": 1760000000}')
    (folder / run.name / "settings.json").write_text("{}")
    return folder / run.name


def test_without_installed_models_there_is_the_shipped_one(keeper):
    assert keeper.rows()[0][1] == "in use" and len(keeper.rows()) == 1
    page = keeper.page
    assert (
        not any(b.enabled for b in (page.use, page.back, page.delete, page.compare, page.renew))
        and page.export.enabled
        and page.importFile.enabled
    )
    assert "not measured" in page.view.figures.text and page.view.cardSection.isVisibleTo(page.page) and not page.view.plots.nodes()
    assert page.view.facts.text.count("<tr>") >= 3


def test_use_a_run_then_back_with_the_pool_renewed(keeper, folders, pool_folder, tmp_path):
    page, host = keeper.page, keeper.host
    run = finish(tmp_path / "runs", folders[0])
    keeper.user.choose(pool_folder)
    keeper.open()
    assert ("Köpfe, erster Versuch", "training, not installed") in keeper.rows()
    keeper.choose("Köpfe, erster Versuch")
    assert "test pictures" in page.view.figures.text, "its result can be looked at before it is installed"
    with Gaps(host.qt) as gaps:
        keeper.press(page.use)
    assert max(gaps.work) < BLOCKED_MS
    assert "is in use now" in keeper.said[-1] and "up to date" in keeper.said[-1], keeper.said
    assert keeper.rows()[0][1] == "previous" and ("Köpfe, erster Versuch", "in use") in keeper.rows() and len(keeper.rows()) == 2
    entry = store.models()[1]
    with Pool.open(pool_folder) as pool:
        assert pool.stale("image", entry.hash) == []
    shutil.rmtree(run)
    keeper.press(page.back)
    assert store.used()[0] == "shipped" and "is in use now" in keeper.said[-1]
    assert dict(keeper.rows())["Köpfe, erster Versuch"] == "previous"
    keeper.press(page.back)
    assert store.used()[0] == entry.id, "and once more it is the later one"


def test_a_new_run_of_the_name_of_one_whose_model_is_installed_is_offered(keeper, folders, tmp_path):
    run = finish(tmp_path / "runs", folders[0])
    entry = packing.install(run)
    keeper.open()
    assert len(keeper.rows()) == 2 and keeper.rows()[1][1] == "installed"
    shutil.rmtree(run)
    finish(tmp_path / "runs", folders[1]).rename(run)
    (run / "status.json").write_text(json.dumps({"state": "finished", "step": 5, "updated": entry.installed + 1}))
    keeper.open()
    assert ("heads, better", "training, not installed") in keeper.rows()


def test_segment_uses_the_model_in_use_and_names_it(keeper, folders, home):
    from CERSSegmentLib.Parameter import Parameter, parameterNode
    from CERSSegmentLib.SegmentationLogic import modelOf

    entry = packing.install(folders[1])
    panel = keeper.host.slicer.modules.cerssegment.widgetRepresentation().self()
    panel.enter()
    edit = panel.ui.modelPath.comboBox().lineEdit()
    assert edit.placeholderText.startswith("The model that comes with CERS: ")
    parameter = Parameter(parameterNode())
    parameter.modelFolder = ""
    assert modelOf(parameter)[0] is None
    store.use(entry.id)
    panel.enter()
    assert edit.placeholderText == "In use: heads, better" and modelOf(parameter)[0] == entry.folder
    parameter.modelFolder = "/another"
    assert modelOf(parameter)[0] == "/another", "what the panel names comes first"
    parameter.modelFolder = ""
    shutil.rmtree(entry.folder)
    panel.enter()
    assert "no longer in" in edit.placeholderText and modelOf(parameter)[0] is None


def test_the_result_is_shown_whole(keeper, folders):
    page, host = keeper.page, keeper.host
    packing.install(folders[0])
    packing.install(folders[1])
    keeper.open()
    with Gaps(host.qt) as gaps:
        keeper.choose("heads, better")
    assert max(gaps.work) < BLOCKED_MS
    view, result = page.view, json.loads((folders[1] / "model" / "result.json").read_text())
    assert f"{result['mean']['dice']['value']:.3f}" in view.figures.text and "HD95" in view.figures.text and "ECE" in view.figures.text
    assert "Retrieved references" in view.evidence.text and "minus" in view.evidence.text and "▲" in view.evidence.text
    assert len(view.plots.nodes()) == 9, "owner, chart, view, and a table and a series for each of three curves"
    host.wait_for(lambda: view.cases.count == 12, 10, "the cases, which come after the figures")
    values = [float(view.cases.item(n).text()) for n in range(12)]
    assert values == sorted(values), "worst first"
    host.wait_for(lambda: not view.cases.item(11).icon().isNull(), 10, "the pictures")
    view.cases.setCurrentRow(0)
    worst = min(result["cases"], key=lambda c: c["dice"])
    assert worst["image"] in view.case.text and worst["file"] in view.case.text
    page.compare.setCurrentIndex(page.compare.findData(store.find("Köpfe").id))
    keeper.wait()
    assert "12 cases" in page.compared.text and "Dice" in page.compared.text and "▲" in page.compared.text
    page.compare.setCurrentIndex(page.compare.findData("shipped"))
    keeper.wait()
    assert "comes without figures of single cases" in page.compared.text
    host.slicer.mrmlScene.Clear(0)
    host.process(0.2)
    assert len(view.plots.nodes()) == 9, "the plot comes back after the scene was closed"
    keeper.choose(keeper.rows()[0][0])
    assert not view.plots.nodes() and not page.compared.isVisibleTo(page.page)


def test_in_and_out_and_delete(keeper, folders, tmp_path):
    page = keeper.page
    page.askFolder = lambda: str(folders[0])
    keeper.press(page.importFolder)
    assert page.current["name"] == "Köpfe, erster Versuch" and "is installed" in keeper.said[-1]
    page.askSave = lambda name: str(tmp_path / "Aus fuhr.zip")
    keeper.press(page.export)
    assert (tmp_path / "Aus fuhr.zip").is_file() and "Wrote" in keeper.said[-1]
    page.confirm = lambda question: "Köpfe" not in question
    keeper.press(page.delete)
    assert len(keeper.rows()) == 2, "the answer was no"
    page.confirm = lambda question: True
    keeper.press(page.delete)
    assert len(keeper.rows()) == 1
    page.askOpen = lambda: str(tmp_path / "Aus fuhr.zip")
    keeper.press(page.importFile)
    assert page.current["name"] == "Köpfe, erster Versuch" and page.view.cases.count == 0, "pictures of cases stay where they were"
    (tmp_path / "bad.zip").write_bytes(b"no")
    page.askOpen = lambda: str(tmp_path / "bad.zip")
    keeper.press(page.importFile)
    assert "is not a zip file of a model" in keeper.said[-1] and len(keeper.rows()) == 2
    page.askOpen = lambda: ""
    page.importFile.click()
    assert not page.busy


def test_a_broken_model_says_why_and_can_be_deleted(keeper, folders, home):
    entry = packing.install(folders[0])
    (Path(entry.folder) / "model.safetensors").write_bytes(b"broken")
    (Path(entry.folder) / "result.json").write_text("[")
    keeper.open()
    keeper.choose("Köpfe, erster Versuch")
    page = keeper.page
    assert ("Köpfe, erster Versuch", "broken") in keeper.rows() and "damaged" in page.view.facts.text
    assert not page.use.enabled and not page.export.enabled and page.delete.enabled
    page.confirm = lambda question: True
    keeper.press(page.delete)
    assert len(keeper.rows()) == 1 and not Path(entry.folder).exists()


@pytest.mark.parametrize("change", [{"modality": ["MR"]}, {"name": {"a": 1}}, {"body_site": 5}, {"labels": {"1": 7}}, {"labels": [1]}])
def test_a_damaged_configuration_hides_no_other_model(keeper, folders, tmp_path, change):
    page = keeper.page
    sound = packing.install(folders[1])
    installed = Path(packing.install(folders[0]).folder)
    trained = finish(tmp_path / "runs", folders[0]) / "model"
    for folder in (installed, trained):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **change}))
    (trained.parent / "settings.json").write_text('{"data": "somewhere else"}')
    shutil.move(trained.parent, trained.parent.with_name("copied"))
    keeper.open()
    assert not any("unexpected" in words for words in keeper.said) and len(keeper.rows()) == 4, (keeper.said, keeper.rows())
    assert [state for _name, state in keeper.rows()].count("broken") == 1
    for row, entry in enumerate(page.entries):
        page.table.selectRow(row)
        keeper.host.process(0.3)
        shown = page.view.facts.text
        assert page.view.entry == entry and (entry["id"] != sound.id or "heads, better" in shown)
        assert entry["shipped"] or entry["problem"] or entry["source"] in shown, entry


def test_a_model_in_use_that_is_gone_is_said(keeper, folders):
    page = keeper.page
    entry = packing.install(folders[0])
    store.use(entry.id)
    shutil.rmtree(entry.folder)
    keeper.said.clear()
    keeper.open()
    assert [state for _name, state in keeper.rows()] == ["comes with CERS"]
    assert keeper.said and "no longer there" in keeper.said[-1] and "Use this model" in keeper.said[-1], keeper.said
    keeper.choose(keeper.rows()[0][0])
    keeper.press(page.use)
    keeper.said.clear()
    keeper.open()
    assert keeper.rows()[0][1] == "in use" and not keeper.said


def test_cancel_while_the_pool_is_renewed_keeps_the_model_in_use(keeper, folders, pool_folder):
    page = keeper.page
    entry = packing.install(folders[1])
    keeper.user.choose(pool_folder)
    keeper.open()
    keeper.choose("heads, better")
    page.use.click()
    assert not page.use.enabled and not page.back.enabled, "no second click"
    keeper.host.wait_for(lambda: any(b'"load_model"' in p.line for p in page.worker._pending.values()), 120, "the loading of the model")
    assert page.cancel.isVisibleTo(page.page)
    page.cancel.click()
    keeper.wait()
    assert "is in use now" in keeper.said[-1] and "not brought up to date" in keeper.said[-1] and store.used()[0] == entry.id
    keeper.press(page.renew)
    assert "up to date" in keeper.said[-1]
    with Pool.open(pool_folder) as pool:
        assert pool.stale("image", entry.hash) == []


def test_a_worker_that_dies_is_said_and_the_page_goes_on(keeper, folders):
    page = keeper.page
    packing.install(folders[0])
    keeper.open()
    keeper.choose("Köpfe, erster Versuch")
    page.worker.stop()
    page.use.click()
    keeper.host.wait_for(lambda: page.worker.state == "ready", 60, "the worker")
    page.worker._process.kill()
    keeper.wait()
    assert keeper.said[-1] and "Traceback" not in keeper.said[-1]
    keeper.open()
    keeper.choose("Köpfe, erster Versuch")
    if page.use.enabled:
        keeper.press(page.use)
    assert store.used()[0] != "shipped"


def test_a_result_that_is_damaged_does_not_hide_the_model(keeper, folders):
    entry = packing.install(folders[0])
    for text in ("[", "{}", '{"cases": [], "mean": {"dice": 3}, "units": {}}'):
        (Path(entry.folder) / "result.json").write_text(text)
        keeper.open()
        keeper.choose("Köpfe, erster Versuch")
        assert "cannot be read" in keeper.page.view.figures.text and keeper.page.use.enabled
        keeper.choose(keeper.rows()[0][0])
