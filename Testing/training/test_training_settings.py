"""Settings files as people write them, and settings with which no run could go on."""

from __future__ import annotations

import datetime
import json

import pytest
from runs import NETWORK, settings
from typer.testing import CliRunner

from cers.cli.app import app
from cers.cli.train import _absolute
from cers.errors import CersError, InputError
from cers.training.config import TrainConfig
from cers.training.plan import check
from cers.training.trainer import train


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checkpoint_steps": 0}, "checkpoint_steps must be more than 0"),
        ({"k": 0}, "k must be more than 0"),
        ({"k_coarse": 0}, "k_coarse must be more than 0"),
        ({"validation_limit": 0}, "validation_limit must be more than 0"),
        ({"clip": 0}, "clip must be more than 0"),
        ({"steps": float("inf")}, "steps is too large"),
        ({"seed": 2**70}, "seed is too large"),
        ({"exclude": {"diagnosis": None}}, "exclude has 'diagnosis': None"),
        ({"exclude": {"seen": datetime.date(2024, 1, 1)}}, "in quotes"),
        ({"labelled": 1.5}, "a share up to 1, or a whole number"),
        ({"validation": 1.0}, "none be left to train with"),
    ],
)
def test_settings_with_which_no_run_could_go_on_are_refused(folder, change, said):
    with pytest.raises(InputError, match=said):
        settings(folder, **change)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: 2\nsteps: 3\n", "line 2, steps is given twice"),
        ("network:\n  widths: [1]\n  widths: [2]\n", "line 3, widths is given twice"),
        ("steps: 2\n\tlr: 1\n", "line 2, found character"),
        ("exclude: {seen: 2024-13-45}\n", "month must be in 1..12"),
        ("exclude: &a {seen: [*a]}\n", "recursion"),
        ("data: Schädel\n", "not in UTF-8"),
    ],
)
def test_what_is_wrong_with_a_settings_file_is_said_in_one_sentence(tmp_path, text, said):
    file = tmp_path / "Läufe 1.yaml"
    file.write_bytes(text.encode("cp1252"))
    done = CliRunner().invoke(app, ["train", "--config", str(file), "--out", str(tmp_path / "run")])
    assert done.exit_code == 1 and said in done.output and done.output.count("\n") == 1, done.output
    with pytest.raises(InputError, match=said):
        TrainConfig.read(file)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"width": [8, 12, 16]}, "name that is not known"),
        ({1: 2}, "name that is not known"),
        ({"widths": "no"}, "'widths' as a list"),
        ({"align": 0}, "'align' must be"),
        ({"labels": 5}, "list of label names"),
    ],
)
def test_a_network_that_cannot_be_built_is_said_before_anything_is_read(folder, tmp_path, network, said):
    config = settings(folder, network={**NETWORK, **network})
    for begin in (lambda: train(config, tmp_path / "run", tmp_path / "cache"), lambda: check(config, tmp_path / "cache")):
        with pytest.raises(CersError, match=said):
            begin()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"initial": "gone.safetensors"}, "no file of weights 'gone.safetensors'"),
        ({"lesion_free": ["gone.nrrd"], "validation": 0}, "'gone.nrrd' of the setting lesion_free does not exist"),
    ],
)
def test_a_file_that_is_not_there_is_said_before_anything_is_read(folder, tmp_path, change, said):
    config = settings(folder, **change)
    for begin in (lambda: train(config, tmp_path / "run", tmp_path / "cache"), lambda: check(config, tmp_path / "cache")):
        with pytest.raises(InputError, match=said):
            begin()
    assert not list(tmp_path.iterdir())


def test_rationales_must_be_as_long_as_the_text_encoder_makes_them(folder, cache, tmp_path):
    with pytest.raises(InputError, match="'rationale' must be 384"):
        train(settings(folder, network={**NETWORK, "rationale": 3}), tmp_path / "run", cache)


def test_a_number_with_an_exponent_is_a_number_in_a_file_too(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1e-3\nsteps: 2\nweight_decay: 1e-2\n")
    found = TrainConfig.read(tmp_path / "a.yaml")
    assert (found.lr, found.weight_decay) == (1e-3, 1e-2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "budget"),
        ({"groups": 3}, "even number"),
        ({"method": "magic"}, "choose one of"),
        ({"labelled": 0}, "labelled share is 0"),
        ({"null": 1.5}, "share from 0 to 1"),
        ({"lr": "fast"}, "must be a number"),
        ({"wheels": 4}, "wheels is no setting"),
        ({"threshold": 0.3}, "confidence threshold"),
        ({"steps": 2.5}, "whole number"),
        ({"exclude": 5}, "table of names"),
        ({"deterministic": 7}, "true or false"),
        ({"allow_leaks": "nope"}, "true or false"),
        ({"plane": "oblique"}, "choose one of acquisition"),
        ({"unlabelled": [3]}, "list of texts"),
    ],
)
def test_settings_that_cannot_be_used_are_named(folder, change, said):
    with pytest.raises(InputError, match=said):
        settings(folder, **change)


def test_settings_mean_the_same_however_they_are_written(folder):
    config = settings(folder, groups=4.0, unlabelled="scans")
    assert config.groups == 4 and isinstance(config.groups, int) and config.unlabelled == ["scans"]
    assert config.hash == settings(folder, groups=4, unlabelled=["scans"]).hash


def test_paths_of_a_run_mean_the_same_everywhere(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = _absolute(settings("data", unlabelled=["more"], lesion_free=["a.nii.gz", "b.nrrd=mask.nrrd"], initial="imagenet"))
    assert found.data == str(tmp_path / "data") and found.unlabelled == [str(tmp_path / "more")] and found.initial == "imagenet"
    assert found.lesion_free == [str(tmp_path / "a.nii.gz"), f"{tmp_path / 'b.nrrd'}={tmp_path / 'mask.nrrd'}"]
    (tmp_path / "run").mkdir()
    assert _absolute(settings("data", initial="run")).initial == str(tmp_path / "run" / "model.safetensors")


def test_the_command_says_what_is_missing(folder, tmp_path):
    run = CliRunner()
    for arguments, said in (
        (["--data", str(folder)], "needs a folder"),
        (["--out", str(tmp_path / "r")], "budget"),
        (["--out", str(tmp_path / "r"), "--steps", "1"], "nothing to train on"),
        (["--resume", str(tmp_path / "none")], "cannot be read as a training configuration"),
        (["--data", str(folder), "--out", str(tmp_path / "r"), "--steps", "1", "--set", "wheels=4"], "no setting"),
        (["--resume", str(tmp_path / "none"), "--steps", "9", "--seed", "1"], "--steps, --seed cannot be given with --resume"),
        (["--data", str(tmp_path / "no"), "--out", str(tmp_path / "r"), "--steps", "1"], "no data folder"),
        (["--data", str(folder), "--out", str(tmp_path / "r"), "--steps", "1", "--exclude", "glioma"], "NAME=VALUE"),
    ):
        done = run.invoke(app, ["train", *arguments])
        assert done.exit_code == 1 and said in done.output and done.output.count("\n") == 1, done.output


def test_a_configuration_file_and_options_go_together(folder, tmp_path):
    settings(folder, method="unimatch", steps=2).write(tmp_path / "base.yaml")
    done = CliRunner().invoke(
        app,
        [
            "train",
            "--config",
            str(tmp_path / "base.yaml"),
            "--out",
            str(tmp_path / "run"),
            "--method",
            "supervised",
            "--set",
            "lr=1e-3",
            "--cache",
            str(tmp_path / "cache"),
            "--json",
        ],
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["state"] == "finished"
    used = TrainConfig.read(tmp_path / "run" / "config.yaml")
    assert (used.method, used.lr, used.steps, used.groups) == ("supervised", 1e-3, 2, 2)
