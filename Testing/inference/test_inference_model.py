"""A model as a folder: what is written is what is read, and a bad folder says so in one sentence."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from cers.errors import CersError, InputError, ModelError
from cers.inference.model import ModelConfig, load_model, resolve_device, save_model
from cers.inference.tiny import tiny_model
from cers.network.model import CersNet, NetworkConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"), labels=("core", "edema"), size=64)


def outputs(net, seed=0):
    torch.manual_seed(seed)
    x, masks = torch.randn(3, 1, 64, 64), (torch.rand(3, len(net.config.labels), 64, 64) > 0.8).float()
    rationale = torch.nn.functional.normalize(torch.randn(3, net.config.rationale), dim=1)
    with torch.no_grad():
        encoded = net.encode(x)
        plain = net.decode_plain(encoded)
        stock = net.references(encoded, masks, rationale).gather(torch.tensor([[1, 2], [0, 2], [0, 1]]))
        fused, weights = net.decode_evidence(encoded, plain.sigmoid(), rationale, stock)
    return torch.cat([plain, fused]), weights, encoded.pooled


def test_what_is_saved_is_what_is_loaded(folder, tmp_path):
    model = load_model(folder)
    assert model.labels == {1: "core", 2: "edema"} and model.config.size == 64 and model.card.startswith("# Untrained")
    torch.manual_seed(0)
    net = CersNet(NetworkConfig(**model.config.network))
    with torch.no_grad():
        net.centre.normal_()
    save_model(tmp_path, net.state_dict(), model.config, half=False)
    for a, b in zip(outputs(net.eval()), outputs(load_model(tmp_path).net)):
        assert (a - b).abs().max() < 1e-4
    assert not list(tmp_path.glob("*.tmp"))
    assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1, "who may read the configuration may read the weights"


def test_half_precision_is_close_and_half_the_size(folder, tmp_path):
    model = load_model(folder)
    state = CersNet(NetworkConfig(**model.config.network)).state_dict()
    full, half = save_model(tmp_path / "full", state, model.config, half=False), save_model(tmp_path / "half", state, model.config)
    assert (half / "model.safetensors").stat().st_size < 0.65 * (full / "model.safetensors").stat().st_size
    a, b = load_model(full), load_model(half)
    assert all(p.dtype == torch.float32 for p in b.net.parameters())
    for x, y in zip(outputs(a.net), outputs(b.net)):
        assert (x - y).abs().max() < 0.02
    assert a.hash != b.hash


def test_a_number_too_large_for_half_precision_is_kept(folder, tmp_path):
    model = load_model(folder)
    state = CersNet(NetworkConfig(**model.config.network)).state_dict()
    name = next(k for k in state if k.endswith("running_var"))
    state[name] = torch.full_like(state[name], 1e6)
    save_model(tmp_path, state, model.config)
    from safetensors.torch import load_file

    assert (load_file(tmp_path / "model.safetensors")[name] == 1e6).all()


def test_weights_that_are_not_finite_are_not_saved(folder, tmp_path):
    model = load_model(folder)
    state = CersNet(NetworkConfig(**model.config.network)).state_dict()
    state["reduce.bias"][0] = float("nan")
    with pytest.raises(ModelError, match="reduce.bias"):
        save_model(tmp_path / "new", state, model.config)
    assert not (tmp_path / "new").exists()


def test_channels_last_weights_are_saved_as_they_are(folder, tmp_path):
    model = load_model(folder)
    net = CersNet(NetworkConfig(**model.config.network)).eval()
    before = outputs(net)
    save_model(tmp_path, net.to(memory_format=torch.channels_last).state_dict(), model.config, half=False)
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(before, outputs(load_model(tmp_path).net)))


def test_the_hash_follows_what_changes_an_embedding_and_nothing_else(folder, tmp_path):
    first = load_model(folder).hash
    assert first == load_model(folder).hash and len(first) == 16

    def changed(**settings) -> str:
        target = tmp_path / "_".join(settings)
        shutil.copytree(folder, target)
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**config, **settings}))
        return load_model(target).hash

    assert changed(size=96) != first
    assert changed(threshold=0.3) == changed(temperature=2.0) == changed(name="other") == changed(selection={"k": 3}) == first
    assert load_model(tiny_model(tmp_path / "seed", labels=("core", "edema"), size=64, seed=1)).hash != first


def corrupt(folder, tmp_path, **settings):
    target = tmp_path / "bad"
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    for name, value in settings.items():
        if value is None:
            config.pop(name)
        else:
            config[name] = value
    (target / "config.json").write_text(json.dumps(config))
    return target


def refused(target) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(target)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and message[0].isupper() | message.startswith("/")
    return message


@pytest.mark.parametrize(
    "settings",
    [
        {"format": 2},
        {"format": None},
        {"network": None},
        {"labels": None},
        {"colour": "red"},
        {"network": []},
        {"labels": []},
        {"labels": {"1": "core"}},
        {"labels": {"a": "core", "2": "edema"}},
        {"labels": {"0": "core", "2": "edema"}},
        {"labels": {"1": "core", "300": "edema"}},
        {"size": "large"},
        {"size": 8},
        {"temperature": 0},
        {"threshold": 1.5},
        {"minimum_ml": -1},
        {"selection": {"no_such": 1}},
        {"selection": {"k": 0}},
        {"selection": 3},
    ],
    ids=lambda s: f"{next(iter(s))}={next(iter(s.values()))}"[:40],
)
def test_a_configuration_that_makes_no_sense_is_refused(folder, tmp_path, settings):
    refused(corrupt(folder, tmp_path, **settings))


@pytest.mark.parametrize(
    "change",
    [
        {"widths": [8, 12]},
        {"key_channels": 20},
        {"encoder": {"kind": "vgg"}},
        {"encoder": {"kind": "transformers", "config": {}}},
        {"unknown": 1},
        {"labels": ["core", 3]},
        {"deepest": "deep"},
        {"encoder": None},
    ],
    ids=lambda c: next(iter(c)),
)
def test_an_architecture_that_the_weights_do_not_fit_is_refused(folder, tmp_path, change):
    network = json.loads((folder / "config.json").read_text())["network"]
    refused(corrupt(folder, tmp_path, network={**network, **change}))


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "text", "flipped header", "other tensors", "missing tensor", "not a number", "directory"]
)
def test_damaged_weights_are_refused(folder, tmp_path, damage):
    from safetensors.torch import load_file, save_file

    target = corrupt(folder, tmp_path)
    path = target / "model.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("these are not weights")
    elif damage == "flipped header":
        data[3] ^= 0xFF
        path.write_bytes(data)
    elif damage == "other tensors":
        save_file({"weight": torch.zeros(3)}, path)
    elif damage == "missing tensor":
        state = load_file(path)
        state.pop("reduce.bias")
        save_file(state, path)
    elif damage == "not a number":
        state = load_file(path)
        state["reduce.bias"][0] = float("nan")
        save_file(state, path)
    else:
        path.unlink()
        path.mkdir()
    refused(target)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "\x00\xff"])
def test_a_configuration_that_is_no_json_object_is_refused(folder, tmp_path, text):
    target = corrupt(folder, tmp_path)
    (target / "config.json").write_bytes(text.encode("latin-1"))
    refused(target)


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert "config.json" in refused(tmp_path) and "model.safetensors" in refused(tmp_path / "nowhere")


def test_a_model_that_cannot_be_loaded_is_not_written(tmp_path):
    with pytest.raises(ModelError, match="cannot be saved"):
        save_model(tmp_path / "new", {}, ModelConfig({"labels": ["a"]}, {"1": "a"}, size=0))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("device", ["tpu", "", "cpu:x", "cuda:"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(InputError, match="device|Device"):
        resolve_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA: its absence cannot be tested")
def test_a_device_that_is_not_there_is_refused(folder):
    with pytest.raises(InputError, match="not available"):
        load_model(folder, device="cuda")


def test_threads_are_set_and_checked(folder):
    before = torch.get_num_threads()
    try:
        load_model(folder, threads=1)
        assert torch.get_num_threads() == 1
        with pytest.raises(InputError, match="threads"):
            load_model(folder, threads=0)
    finally:
        torch.set_num_threads(before)


def test_every_error_is_fit_for_the_screen():
    assert issubclass(ModelError, CersError) and issubclass(InputError, CersError)
