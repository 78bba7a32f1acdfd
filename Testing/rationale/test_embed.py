"""The text encoder: the same vector however a text is passed in, computed once, and shared safely."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cers.errors import ModelError
from cers.rationale import TextEmbedder
from cers.rationale.embed import find_model

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "Texture: Hyperintense 37%.",
    "",
    "Deep.",
    "Boundary: Ill-defined, 52% faint. Blurred edge 9%. Regular shape 80%.",
    "word " * 900,
    "Ödem – µ 😀",
    "Deep.",
]


@pytest.fixture(scope="module")
def embedder():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return TextEmbedder()


def test_shape_unit_length_and_order(embedder):
    vectors = embedder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), embedder.dimension) == (7, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embedder.encode(TEXTS[::-1]), vectors[::-1], atol=0)
    np.testing.assert_array_equal(vectors[2], vectors[6])
    assert embedder.encode([]).shape == (0, 384)


def test_a_batch_equals_single_calls(embedder):
    batch = TextEmbedder().encode(TEXTS)
    for text, vector in zip(TEXTS, batch):
        np.testing.assert_allclose(TextEmbedder.encode(_fresh(embedder), [text])[0], vector, atol=2e-6)


def _fresh(embedder):
    """The loaded network with an empty memory."""
    embedder.forget()
    return embedder


def test_same_as_the_library_with_padding(embedder):
    """Mean over the attention mask of a padded batch, as sentence encoders of this kind are defined."""
    import torch

    tokenizer, model = embedder._load()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    weights = batch["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1).numpy()
    np.testing.assert_allclose(_fresh(embedder).encode(TEXTS), expected, atol=2e-5)


def test_same_as_the_library_without_the_quick_layers(embedder):
    import torch
    from transformers import AutoModel

    tokenizer, _ = embedder._load()
    plain = AutoModel.from_pretrained(str(embedder.folder), local_files_only=True).eval()
    with torch.inference_mode():
        states = [plain(**tokenizer(text, return_tensors="pt", truncation=True, max_length=512)).last_hidden_state[0] for text in TEXTS]
    expected = torch.stack([torch.nn.functional.normalize(s.mean(0), dim=0) for s in states]).numpy()
    np.testing.assert_allclose(_fresh(embedder).encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(embedder.encode_tokens(TEXTS[0]), states[0].numpy(), atol=1e-4)


def test_meaning(embedder):
    a, b, c = embedder.encode(["Sharp, well-defined margin.", "Clearly delineated border.", "Forty patients were asked about their diet."])
    assert a @ b > a @ c + 0.2


def test_a_second_call_does_not_run_the_network(embedder):
    _fresh(embedder).encode(TEXTS)
    before = embedder.forward_passes
    embedder.encode(TEXTS)
    assert embedder.forward_passes == before
    embedder.encode([*TEXTS, "one more"])
    assert embedder.forward_passes == before + 1


def test_callers_cannot_spoil_the_cache(embedder):
    first = embedder.encode(["Deep."])
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(embedder.encode(["Deep."]), kept)


def test_disk_cache_spares_the_network_in_the_next_process(embedder, tmp_path):
    path = tmp_path / "new folder" / "text.sqlite"
    expected = TextEmbedder(cache=path).encode(TEXTS)
    again = TextEmbedder(cache=path)
    np.testing.assert_array_equal(again.encode(TEXTS), expected)
    assert again.forward_passes == 0 and again._loaded is None


def test_damaged_entries_are_computed_again(embedder, tmp_path):
    path = tmp_path / "text.sqlite"
    expected = TextEmbedder(cache=path).encode(TEXTS[:3])
    with sqlite3.connect(path) as db:
        rows = [r[0] for r in db.execute("SELECT text FROM vectors")]
        db.execute("UPDATE vectors SET vector=? WHERE text=?", (b"short", rows[0]))
        db.execute("UPDATE vectors SET vector=? WHERE text=?", (b"\xff" * 4 * 384, rows[1]))
    db.close()
    np.testing.assert_allclose(TextEmbedder(cache=path).encode(TEXTS[:3]), expected, atol=2e-6)
    again = TextEmbedder(cache=path)
    again.encode(TEXTS[:3])
    assert again.forward_passes == 0


def test_a_cache_that_is_no_database_is_one_clear_sentence(embedder, tmp_path):
    (tmp_path / "text.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ModelError, match="text cache .* Delete the file"):
        TextEmbedder(cache=tmp_path / "text.sqlite")
    with pytest.raises(ModelError, match="text cache"):
        TextEmbedder(cache=tmp_path / "text.sqlite" / "below a file")


def test_two_processes_share_the_cache(embedder, tmp_path):
    code = (
        "import sys, numpy as np; from cers.rationale import TextEmbedder; e = TextEmbedder(cache=sys.argv[1], threads=1)\n"
        "for n in range(12): e.encode([f'text {m}' for m in range(n, n + 6)])\n"
        "np.save(sys.argv[2], e.encode([f'text {m}' for m in range(17)]))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "c.sqlite", tmp_path / f"{n}.npy"], cwd=ROOT, stderr=subprocess.PIPE)
        for n in range(2)
    ]
    for run in runs:
        assert run.communicate(timeout=300)[1].find(b"Error") < 0 and run.returncode == 0
    a, b = (np.load(tmp_path / f"{n}.npy") for n in range(2))
    np.testing.assert_allclose(a, b, atol=2e-6)
    np.testing.assert_allclose(a, embedder.encode([f"text {m}" for m in range(17)]), atol=2e-6)


def test_tokens_for_cross_attention(embedder):
    tokenizer, model = embedder._load()
    text = "Ill-defined margin, deep."
    tokens = embedder.encode_tokens(text)
    assert tokens.shape == (len(tokenizer(text)["input_ids"]), 384) and tokens.dtype == np.float32 and np.isfinite(tokens).all()
    mean = tokens.mean(0)
    np.testing.assert_allclose(mean / np.linalg.norm(mean), embedder.encode([text])[0], atol=2e-6)
    assert embedder.encode_tokens("word " * 900).shape == (64, 384)


def test_hash_is_of_the_content_and_keys_the_cache(embedder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(find_model(None), copy)
    same = TextEmbedder(copy)
    assert same.hash == embedder.hash and len(same.hash) == 16
    cache = tmp_path / "c.sqlite"
    TextEmbedder(copy, cache=cache).encode(["Deep."])
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "layer_norm_eps": 0.1}))
    other = TextEmbedder(copy, cache=cache)
    assert other.hash != embedder.hash
    other.encode(["Deep."])
    assert other.forward_passes == 1


@pytest.mark.parametrize("path", ["no/such/folder", "no_such_package", "json"])
def test_missing_encoder_is_one_clear_sentence(path):
    with pytest.raises(ModelError, match=f"no text encoder at {path}"):
        TextEmbedder(path)


def test_folder_that_is_no_encoder(embedder, tmp_path):
    with pytest.raises(ModelError, match="config.json"):
        TextEmbedder(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 384, "model_type": "bert"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        TextEmbedder(tmp_path).encode(["Deep."])


def test_weights_as_pickle_are_not_read(embedder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(find_model(None), copy)
    for file in copy.glob("*.safetensors"):
        file.rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        TextEmbedder(copy).encode(["Deep."])


def test_incomplete_weights_are_noticed(embedder, tmp_path):
    from safetensors.numpy import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(find_model(None), copy)
    file = next(copy.glob("*.safetensors"))
    tensors = load_file(file)
    del tensors[next(k for k in tensors if "layer.3" in k and k.endswith("query.weight"))]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="incomplete"):
        TextEmbedder(copy).encode(["Deep."])


def test_importing_the_package_is_light():
    code = "import sys, cers.rationale; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'faiss', 'scipy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
