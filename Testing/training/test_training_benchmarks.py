"""Benchmarks that need a dataset run on made-up ones; what they measure is not tested."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from pictures import write
from runs import NETWORK
from safetensors.torch import save_file

from benchmarks import selection
from benchmarks.ablation import settings_of
from cers.network.model import CersNet, NetworkConfig
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
