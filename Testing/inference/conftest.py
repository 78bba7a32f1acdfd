"""Model, text encoder and pool that the inference tests share."""

from __future__ import annotations

import pytest
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
        yield segmenter.segment(volume, progress=lambda f, m: said.append((f, m))), segmenter, said
