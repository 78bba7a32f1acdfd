"""The mean of runs: right weights, calibrated, loadable; runs that do not fit are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from runs import ROOT, settings
from safetensors.torch import load_file, save_file

from cers.errors import InputError
from cers.inference import load_model
from cers.training.soup import mean_model, mean_weights
from cers.training.trainer import train


@pytest.fixture(scope="module")
def pair(folder, tmp_path_factory):
    """Two runs from one start, and their cache."""
    home = tmp_path_factory.mktemp("Läufe")
    train(settings(folder, method="cers"), home / "start", home / "cache")
    for seed in (1, 2):
        again = settings(folder, method="cers", initial=str(home / "start" / "model.safetensors"), seed=seed, steps=3)
        assert train(again, home / f"run {seed}", home / "cache") == "finished"
    return [home / "run 1", home / "run 2"], home / "cache"


def test_weights_are_averaged_by_share(pair):
    files = [run / "model.safetensors" for run in pair[0]]
    first, second = (load_file(f) for f in files)
    mean, weighted = mean_weights(files), mean_weights(files, [1, 3])
    assert any(not torch.equal(first[k], second[k]) for k in first), "two seeds differ"
    for name, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (first[name] + second[name]) / 2)
            torch.testing.assert_close(weighted[name], first[name] / 4 + second[name] * 3 / 4)
        else:
            assert torch.equal(value, second[name])


def test_the_command_writes_a_model_that_loads(pair, tmp_path):
    runs, cache = pair
    out = tmp_path / "mittel"
    done = subprocess.run(
        [sys.executable, "-m", "cers", "model", "mean", *map(str, runs), "-o", str(out), "--cache", str(cache), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said["validation"]) == {"plain", "null", "retrieved"} and said["folder"] == str(out)
    model = load_model(out)
    stored = load_file(out / "model.safetensors")
    for name, value in mean_weights([run / "model.safetensors" for run in runs]).items():
        if name != "text.strength":
            torch.testing.assert_close(stored[name].float(), value.float(), rtol=1e-3, atol=1e-3)  # kept as float16
    assert model.config.temperature > 0 and set(model.config.selection) == {"visual_threshold", "visual_high", "cot_threshold"}
    card = (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Mean of the weights of 2 runs (share): run 1 (1), run 2 (1)." in card and "0 steps" not in card
    assert [p.name for p in tmp_path.iterdir()] == ["mittel"], "nothing is left beside it"
    with pytest.raises(InputError, match="exists already"):
        mean_model(runs, out, cache=cache)


def test_runs_that_do_not_fit_are_refused(pair, folder, tmp_path):
    runs, cache = pair
    for given, shares, words in [
        (runs[:1], None, "at least two"),
        (runs, [1], "2 runs need 2 shares"),
        (runs, [0, 0], "not all of them 0"),
        (runs, [1, -1], "0 or more"),
        ([runs[0], tmp_path / "nowhere"], None, "Choose the folder of a finished run"),
    ]:
        with pytest.raises(InputError, match=words):
            mean_model(given, tmp_path / "out", shares, cache)
    other = tmp_path / "other"
    other.mkdir()
    save_file({k: v for k, v in list(load_file(runs[0] / "model.safetensors").items())[1:]}, other / "model.safetensors")
    with pytest.raises(InputError, match="different networks"):
        mean_model([runs[0], other], tmp_path / "out", None, cache)
    start = str(runs[0].parent / "start" / "model.safetensors")
    for name, own, words in (
        ("split", {"split_seed": 7, "initial": start}, r"was trained on \d+ of the \d+ pictures that 'split' holds out"),
        ("class", {"exclude": {"diagnosis": "glioma"}, "initial": start}, "'run 1' was trained on .* that 'class' holds out"),
        ("method", {"method": "mutual_consistency", "initial": start}, "one method"),
        ("random", {"seed": 9}, "different random weights"),
    ):
        run = tmp_path / name
        assert train(settings(folder, steps=1, **{"method": "cers"} | own), run, cache) == "finished"
        with pytest.raises(InputError, match=words):
            mean_model([runs[0], run], tmp_path / "out", None, cache)
    other = tmp_path / "labels"
    shutil.copytree(runs[0], other)
    config = json.loads((other / "model" / "config.json").read_text(encoding="utf-8"))
    (other / "model" / "config.json").write_text(json.dumps(config | {"labels": {"1": "cyst"}}), encoding="utf-8")
    with pytest.raises(InputError, match="'labels' was trained on the labels cyst, but the data now has tumor"):
        mean_model([other, runs[1]], tmp_path / "out", None, cache)
    changed = tmp_path / "changed"
    shutil.copytree(runs[1], changed)
    report = json.loads((changed / "split.json").read_text(encoding="utf-8"))
    report["rows"]["labelled"].pop()
    (changed / "split.json").write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(InputError, match="pictures have changed since 'changed'"):
        mean_model([runs[0], changed], tmp_path / "out", None, cache)
    assert not (tmp_path / "out").exists()
