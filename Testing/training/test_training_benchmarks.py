"""Benchmarks that need a dataset run on made-up ones; what they measure is not tested."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import write
from runs import NETWORK, SMALL
from safetensors.torch import save_file

from benchmarks import ablation, far, figure, selection, twins
from benchmarks.ablation import settings_of
from benchmarks.accuracy import pictures, training_pool
from benchmarks.common import program
from cers.errors import InputError
from cers.inference import load_model
from cers.inference.tiny import tiny_model
from cers.network.model import CersNet, NetworkConfig
from cers.rationale import TextEmbedder
from cers.training.config import TrainConfig
from cers.training.datasets import open_dataset
from cers.training.splits import make_split


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    net = CersNet(NetworkConfig(**NETWORK))
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"network": net.config.to_dict()}), encoding="utf-8")
    return folder


def test_selection_compares_ways_of_choosing(data, weights, tmp_path, monkeypatch, capsys):
    file = tmp_path / "selection.json"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "selection",
            "--data",
            str(data),
            "--weights",
            str(weights),
            "--size",
            "64",
            "--k",
            "2",
            "--cap",
            "1.1",
            "--cache",
            str(tmp_path / "cache"),
            "--json",
            str(file),
        ],
    )
    selection.main()
    result = json.loads(file.read_text(encoding="utf-8"))
    assert result["look"]["minus_look_value"] == 0 and {"random", "words, true, 2", "mask alike, true, of all"} <= result.keys()
    assert all(0 <= row["dice"] <= 1 for row in result.values()) and "queries, a pool of" in capsys.readouterr().out


def test_what_may_not_serve_is_never_chosen(data, tmp_path):
    config = TrainConfig(data=str(data), minutes=1)
    found = open_dataset(config.data, [], config.frame, config.plane, tmp_path)
    split = make_split(found, config)
    with torch.inference_mode():
        net = CersNet(NetworkConfig(**NETWORK)).eval()
        with pytest.raises(InputError, match="queries have fewer than 2 cases that may serve them"):
            selection.Study(net, found, split.labelled, split.labelled, 64, 2, -1.0)
        study = selection.Study(net, found, split.labelled, split.labelled, 64, 2, 1.1)
        assert study.barred.diagonal().all(), "a picture is of its own group"
        for name, picks, _ in study.rows():
            assert not study.barred[np.arange(len(picks))[:, None], picks].any(), name
        drawn = np.stack([found.masks[int(r)] > 0 for r in split.labelled])
        assert np.allclose(study.overlap(drawn).diagonal()[drawn.any((1, 2))], 1)


def test_settings_given_to_a_benchmark_are_read_as_they_are_meant():
    given = ["precision=float32", "deterministic=false", "steps=3", "lr=1e-3", 'network={"deepest": 24}', "initial=none", "data=5 cases"]
    assert settings_of(given) == {
        "precision": "float32",
        "deterministic": False,
        "steps": 3,
        "lr": 1e-3,
        "network": {"deepest": 24},
        "initial": "none",
        "data": "5 cases",
    }


def ablate(monkeypatch, *arguments) -> int:
    small = [f"{name}={json.dumps(value)}" for name, value in SMALL.items() if name not in ("size", "validate", "labelled")]
    monkeypatch.setattr(
        sys, "argv", ["ablation", "--size", "64", "--threads", "1", "--rows", "supervised", *map(str, arguments), "--set", *small]
    )
    return ablation.main()


def test_what_was_trained_otherwise_is_not_taken_for_this_ablation(data, tmp_path, monkeypatch, capsys):
    """The budget that a table names is that of its rows."""
    out, cache = tmp_path / "out", tmp_path / "cache"
    common = "--data", data, "--out", out, "--cache", cache
    assert ablate(monkeypatch, *common, "--steps", 2) == 0
    assert "2 steps a run" in (out / "ablation.md").read_text(encoding="utf-8")
    assert ablate(monkeypatch, *common, "--steps", 3) == 1
    assert "of other settings (steps 2 against 3)" in capsys.readouterr().err
    (out / "ablation.json").unlink()
    assert ablate(monkeypatch, *common, "--steps", 3) == 1
    assert "had other settings (steps 2 against 3)" in capsys.readouterr().err
    assert not ablation.differing({"steps": 2, "threads": 1}, {"steps": 2, "threads": 2}), "how fast it goes decides nothing"


def test_distances_are_told_with_the_share_of_pictures_that_have_one():
    """Who misses lesions leaves out its worst."""
    rows = {
        "supervised": {"plain": {"dice": [0.9, 0.0, 0.9], "hd95": [4.0, None, 4.0]}},
        "unimatch": {"plain": {"dice": [0.9, 0.3, 0.9], "hd95": [4.0, 10.0, 4.0]}},
    }
    result = {
        "runs": {name: {"method": name, "seed": 0, "scores": scores} for name, scores in rows.items()},
        "contrast": [1.0, 1.0, 5.0],
        "images": ["a", "b", "c"],
        "pool": 9,
        "about": {"budget": "2 steps a run", "size": 64, "machine": {"cpu": "x", "threads": 1}},
    }
    cells = [
        line.split(" | ")[-1].rstrip(" |")
        for line in ablation.table(result).splitlines()
        if line.startswith(("| supervised", "| unimatch"))
    ]
    assert cells == ["4.0 (50%)", "7.0 (100%)"]


def test_copying_is_a_vote_of_the_references():
    """Also the stronger way to copy is measured, against which references have to show what they are worth."""
    drawn = {name: torch.zeros(1, 4, 6) for name in "abc"}
    drawn["a"][0, 0], drawn["b"][0, :2], drawn["c"][0, 1:3] = 1, 1, 1
    same = SimpleNamespace(paste=lambda x: x, volume=lambda x: x)
    segmenter = SimpleNamespace(
        session=SimpleNamespace(
            planes={"axial": SimpleNamespace(raw=np.zeros((2, 4, 6)), frame=same, view=same)},
            slices={("axial", 1): SimpleNamespace(selection=SimpleNamespace(ids=list("abc")))},
        ),
        store=SimpleNamespace(rows=lambda ids: {i: SimpleNamespace(masks=drawn[i]) for i in ids}),
    )
    first, vote = (far.copied(segmenter, most)[1] for most in (1, 3))
    assert first.any(1).tolist() == [True, False, False, False] and vote.any(1).tolist() == [True, True, False, False]


def test_a_pool_whose_import_was_broken_off_is_completed(data, tmp_path):
    beside = tmp_path / "pool.csv"
    beside.write_text("not ours\n", encoding="utf-8")
    begun = training_pool(data, tmp_path / "pool", 3)
    assert len(begun) == 3
    begun.close()
    whole = training_pool(data, tmp_path / "pool", 8)
    assert len(whole) == 8 and beside.read_text(encoding="utf-8") == "not ours\n"
    whole.close()
    with pytest.raises(InputError, match="holds 3 cases that are none of these 5 training pictures"):
        training_pool(data, tmp_path / "pool", 5)


def test_an_empty_mask_has_no_confidence_that_could_foretell_its_failure(data, tmp_path):
    """As in ``cers evaluate``; a 0 in its place would make every missed lesion one that was foretold."""
    model, embedder = load_model(tiny_model(tmp_path / "model")), TextEmbedder()
    with training_pool(data, tmp_path / "pool", 3) as pool:
        with pytest.raises(InputError, match="no picture of the split test with 0 in the column twin_in_train"):
            pictures(model, embedder, data, pool, 0)
        own = shutil.copytree(data, tmp_path / "data")
        with open(own / "cases.csv", newline="", encoding="utf-8") as f:
            rows = [{**row, "twin_in_train": "0", "diagnosis": "glioma"} for row in csv.DictReader(f)]
        with open(own / "cases.csv", "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        model.config.threshold = 0.9999
        table, cases, _ = pictures(model, embedder, own, pool, 2)
    assert table["retrieved"]["value"] == 0 and [c["confidence"] for c in cases] == [None, None]


@pytest.mark.parametrize(
    "benchmark, words", [(twins, "There is no data folder"), (figure, "nowhere': No such file"), (None, "no row unimatch")]
)
def test_what_a_user_can_mend_is_one_sentence(benchmark, words, tmp_path, monkeypatch, capsys):
    given = ["twins", "--data", str(tmp_path / "nowhere")]
    if benchmark is not twins:
        file = tmp_path / ("ablation.json" if benchmark is None else "nowhere")
        if benchmark is None:
            file.write_text(json.dumps({"runs": {"a": {"method": "supervised", "scores": {"plain": {}}}}}), encoding="utf-8")
        given = ["figure", str(file), "--trained", "unimatch", "--out", str(tmp_path / "out.png")]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as ended:
        program((benchmark or figure).main)
    told = capsys.readouterr().err
    assert ended.value.code == 1 and told.startswith("Error: ") and words in told and told.count("\n") == 1
