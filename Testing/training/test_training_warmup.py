"""A tiny warm-up run learns, and what it saves is a model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cers.inference.model import ModelConfig, load_model, save_model
from cers.network.model import NetworkConfig
from cers.training.warmup import Warmup, WarmupConfig, dice_bce, hard_dice

ENCODER = {"kind": "transformers", "config": {
    "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic", "num_channels": 1,
    "out_features": ["stage1", "stage2", "stage3", "stage4"]}}
NETWORK = {"labels": ["tumor"], "encoder": ENCODER, "widths": [8, 12, 16], "deepest": 24, "key_channels": 16, "align": 16}


def make(slices, folder, embedder, **settings) -> Warmup:
    config = WarmupConfig(**{"groups": 2, "members": 3, "sizes": ((1.0, 64),), "validation": 0.25, "negative": 0.0, "decoy": 0.0, "strip": 0.0,
                             "seed": 1, **settings})
    return Warmup(slices, config, folder / "run", folder, embedder, NetworkConfig(**NETWORK))


@pytest.fixture(scope="module")
def trained(slices, tmp_path_factory, embedder):
    """(run, losses) after some steps."""
    run = make(slices, tmp_path_factory.mktemp("run"), embedder)
    return run, [run.step(64, 4e-3) for _ in range(45)]


def test_the_loss_goes_down(trained):
    losses = [step["loss"] for step in trained[1]]
    assert all(np.isfinite(losses))
    assert np.mean(losses[-8:]) < 0.75 * np.mean(losses[:8])


def test_groups_are_kept_apart(trained, slices):
    run, _ = trained
    groups = slices.column("group")
    assert not set(groups[run.train]) & set(groups[run.held]) and len(run.held)
    assert set(run.held_near.ravel()) <= set(run.train)
    train = groups[run.train]
    assert all(train[n] not in train[run.near[n]] for n in range(len(train)))


def test_the_settings_are_written_beside_the_run(trained):
    run, _ = trained
    written = json.loads((run.folder / "config.json").read_text())
    assert written["network"] == run.net.config.to_dict() and written["groups"] == 2


def test_what_is_saved_loads_as_a_model(trained, tmp_path):
    run, _ = trained
    path = run.save()
    assert not list(run.folder.glob("*.tmp"))
    save_model(tmp_path, load_file(path), ModelConfig(run.net.config.to_dict(), {"1": "tumor"}, size=64))
    model = load_model(tmp_path)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        net = run.averaged()
        a, b = net.decode_plain(net.encode(x)), model.net.decode_plain(model.net.encode(x))
    assert (a - b).abs().max() < 0.05 * max(1, a.abs().max())


def test_validation_names_all_four_paths(trained):
    scores = trained[0].validate(64)
    assert set(scores) >= {"plain", "null", "retrieved", "swapped"} and all(0 <= v <= 1 for v in scores.values())


def test_queries_can_be_described_by_the_plain_masks(trained):
    run, _ = trained
    before = run.query.clone()
    run.requery(64)
    assert run.requeried and run.query.shape == before.shape
    norms = run.query.norm(dim=1)
    assert (((norms - 1).abs() < 1e-4) | (norms == 0)).all()


def test_a_run_of_few_steps_ends_with_a_checkpoint(slices, tmp_path, embedder):
    run = make(slices, tmp_path, embedder, limit=4, negative=0.4, decoy=0.3, strip=0.3, minutes=5)
    run.run()
    assert run.steps == 4 and run.requeried
    assert (run.folder / "model.safetensors").is_file()
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    assert lines and all(set(json.loads(line)) >= {"step", "share", "size", "retrieved"} for line in lines)


def test_batches_are_normalised_and_their_masks_binary(slices, tmp_path, embedder):
    run = make(slices, tmp_path, embedder, negative=0.5, decoy=0.3, strip=0.5)
    for _ in range(5):
        x, y, rows, removed = run.batch(64)
        assert x.shape == y.shape == (6, 1, 64, 64) and set(y.unique().tolist()) <= {0.0, 1.0}
        assert torch.isfinite(x).all() and set(rows) <= set(run.train)
        assert not y[torch.from_numpy(removed)].any()


def test_one_seed_is_one_run(slices, tmp_path, embedder):
    a, b = (make(slices, tmp_path, embedder).step(64, 1e-3)["loss"] for _ in range(2))
    assert a == b


def test_losses_at_their_ends():
    target = torch.zeros(2, 1, 8, 8)
    target[:, :, 2:5, 2:5] = 1
    right, wrong = (target * 2 - 1) * 20, (1 - target * 2) * 20
    assert dice_bce(right, target) < 0.01 < 1 < dice_bce(wrong, target)
    assert hard_dice(right, target).tolist() == [1, 1] and hard_dice(wrong, target).tolist() == [0, 0]
    nothing = torch.zeros_like(target)
    assert hard_dice(torch.full_like(target, -5), nothing).tolist() == [1, 1]
    assert dice_bce(torch.full_like(target, -20), nothing) < 0.01
