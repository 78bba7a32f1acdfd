"""``cers model``: a run that was trained is installed, used, exported, compared and deleted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "training"))
from pictures import write
from runs import settings

from cers.evaluation.compare import compare_results, read_result
from cers.inference import load_model, packing, store
from cers.training.trainer import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two small finished runs on the same pictures, four of which are test pictures."""
    top = tmp_path_factory.mktemp("Läufe")
    data = write(top / "data")
    for n, method in enumerate(("cers", "supervised")):
        assert train(settings(data, steps=2, method=method), top / f"run {n}", top / "cache") == "finished"
    return [top / "run 0", top / "run 1"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path / "models"))
    return tmp_path / "models"


def test_a_run_ends_with_its_result(runs):
    result = read_result(runs[0] / "model" / "result.json")
    assert result["run"]["on"] == "test" and result["images"] == 4 and result["model"] == load_model(runs[0] / "model").hash
    assert all({"value", "low", "high", "n"} <= set(result["mean"][m]) for m in ("dice", "iou", "hd95", "surface_dice"))
    assert set(result["ablation"]["arms"]) == {"plain", "null", "random", "retrieved"} and result["run"]["decoder"] == "retrieved"
    for case in result["cases"]:
        assert case["arms"]["retrieved"] == pytest.approx(case["dice"]) and Path(case["file"]).is_file()
    mean = sum(c["dice"] for c in result["cases"]) / 4
    assert result["mean"]["dice"]["value"] == pytest.approx(mean, abs=1e-4)
    assert result["ablation"]["arms"]["retrieved"]["value"] == pytest.approx(mean, abs=1e-4)
    difference = next(d for d in result["ablation"]["differences"] if (d["arm"], d["minus"]) == ("retrieved", "null"))
    assert difference["value"] == pytest.approx(sum(c["arms"]["retrieved"] - c["arms"]["null"] for c in result["cases"]) / 4, abs=1e-4)
    calibration = result["calibration"]
    assert calibration["temperature"] == load_model(runs[0] / "model").config.temperature
    assert len(calibration["near_lesion"]["bins"]) == 15 and calibration["before_near_lesion"]["ece"]["value"] is not None
    by_dice = sorted(result["cases"], key=lambda c: c["dice"])
    assert sorted(c["tile"] for c in by_dice) == [0, 1, 2, 3] and by_dice[0]["dice"] == next(c for c in by_dice if c["tile"] == 0)["dice"]
    from PIL import Image

    assert Image.open(runs[0] / "model" / "cases.png").size == (4 * 120, 120)
    card = (runs[0] / "model" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "## On test pictures" in card and "retrieved references minus without references" in card


def test_install_use_back_compare_export_delete(cers, runs, home, tmp_path):
    code, out, _ = cers("model", "install", runs[0], "--use", "--json")
    first = json.loads(out)
    assert code == 0 and first["in_use"] and first["has_result"] and first["dice"] is not None
    second = json.loads(cers("model", "install", runs[1], "--name", "Zweites Modell", "--json")[1])
    listed = json.loads(cers("model", "list", "--json")[1])
    assert {m["id"] for m in listed["models"]} == {"shipped", first["id"], second["id"]} and listed["folder"] == str(home)
    assert json.loads(cers("info", "--json")[1])["model"]["hash"] == first["hash"], "the default is the model in use"
    assert json.loads(cers("model", "show", "--json")[1])["hash"] == first["hash"]
    assert cers("model", "use", "Zweites")[0] == 0 and load_model().hash == second["hash"]
    code, out, _ = cers("model", "list")
    assert code == 0 and f"* {second['id']}" in out and f"- {first['id']}" in out
    assert cers("model", "use", "--previous")[0] == 0 and load_model().hash == first["hash"]

    found = json.loads(cers("model", "compare", first["id"], second["id"], "--json")[1])
    expected = compare_results(*(read_result(run / "model" / "result.json") for run in runs))
    assert found["difference"] == expected["difference"] and found["cases"] == 4
    code, out, _ = cers("model", "compare", first["id"], "Zweites")
    assert code == 0 and "Dice" in out and "4 cases" in out
    code, out, _ = cers("model", "compare", first["id"], "shipped")
    assert code == 0 and "not measured" not in out, "its card has figures"
    assert "comes without figures of single cases" in out and "cers compare" in out

    file = tmp_path / "aus.zip"
    assert cers("model", "export", second["id"], "-o", file)[0] == 0 and file.is_file()
    assert cers("model", "delete", second["id"]) == (0, "Deleted 'Zweites Modell'.\n", "")
    assert cers("model", "install", file)[0] == 0
    again = next(m for m in json.loads(cers("model", "list", "--json")[1])["models"] if m["id"] == second["id"])
    assert again["hash"] == second["hash"]
    paired = json.loads(cers("model", "compare", first["id"], second["id"], "--json")[1])
    assert paired["difference"] == expected["difference"], "names are hashes in an export, and the cases still pair"


def test_mistakes_are_one_sentence(cers, home, tmp_path):
    for arguments, words in (
        (("install", tmp_path), "There is no model"),
        (("use", "nothing"), "No model 'nothing' is installed"),
        (("use",), "Name either"),
        (("use", "--previous"), "No other model"),
        (("delete", "shipped"), "cannot be deleted"),
        (("export", "nothing", "-o", tmp_path / "x.zip"), "No model"),
        (("compare", "shipped", "nothing"), "No model"),
    ):
        code, out, err = cers("model", *arguments)
        assert code == 1 and words in err and err.count("\n") == 1 and "Traceback" not in err, arguments


def test_segment_takes_the_model_in_use(cers, model, image, home, tmp_path):
    entry = packing.install(model)
    store.use(entry.id)
    code, _, err = cers("segment", image, "-o", tmp_path / "mask.nrrd", "--json", tmp_path / "out.json", "--no-influence")
    assert code == 0, err
    assert entry.hash in (tmp_path / "out.json").read_text()
