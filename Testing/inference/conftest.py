"""Model, text encoder and pool that the inference tests share."""

from __future__ import annotations

import pytest
import torch
from synthetic import fill, phantom

from cers.inference import Segmenter, load_model
from cers.inference.tiny import tiny_model
from cers.pool import Pool
from cers.rationale import TextEmbedder

SIZE = 64


@pytest.fixture(scope="session")
def embedder() -> TextEmbedder:
    return TextEmbedder()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"), size=SIZE)


@pytest.fixture
def model(model_folder):
    """Loaded anew for each test, since some change its settings."""
    return load_model(model_folder)


@pytest.fixture(scope="session")
def pool_folder(tmp_path_factory, model_folder, embedder):
    """A pool of three patients with all its vectors. Tests that change a pool make their own."""
    from cers.inference import embed_pool

    folder = tmp_path_factory.mktemp("pool") / "pool"
    with Pool.create(folder) as pool:
        fill(pool)
        embed_pool(load_model(model_folder), pool, embedder)
    return folder


@pytest.fixture
def pool(pool_folder):
    with Pool.open(pool_folder) as pool:
        yield pool


@pytest.fixture
def own_pool(tmp_path):
    with Pool.create(tmp_path / "pool") as pool:
        yield pool


@pytest.fixture
def segmenter(model, pool, embedder):
    return Segmenter(model, pool, text_embedder=embedder)


@pytest.fixture(scope="session")
def volume():
    return phantom()[0]


@pytest.fixture(scope="module")
def run(model_folder, pool_folder, embedder, volume):
    """One run that many tests look at: (prediction, segmenter, progress)."""
    said = []
    with Pool.open(pool_folder) as pool:
        segmenter = Segmenter(load_model(model_folder), pool, text_embedder=embedder)
        yield segmenter.segment(volume, "acquisition", progress=lambda f, m: said.append((f, m))), segmenter, said


def mark_bright(segmenter: Segmenter) -> Segmenter:
    """Both decoders mark what is bright, so that the way there and back is tested on a mask that means something."""
    net = segmenter.model.net
    encode = net.encode

    def keep_image(x, *text):
        encoded = encode(x, *text)
        encoded.deepest = x  # travels with the slice, in whatever batch
        return encoded

    def evidence(encoded, plain, rationale, references=None, valid=None, counted=None):
        weights = torch.zeros(len(encoded.deepest), 0) if valid is None else valid.float() / (valid.sum(1, keepdim=True) + 1)
        return 6 * (encoded.deepest - 1.6), weights

    net.encode, net.decode_plain, net.decode_evidence = keep_image, lambda encoded: 6 * (encoded.deepest - 1.6), evidence
    return segmenter


@pytest.fixture
def mark():
    return mark_bright


@pytest.fixture
def marker(segmenter):
    segmenter.model.config.size = 128
    return mark_bright(segmenter)
