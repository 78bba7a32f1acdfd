"""Pictures that the training tests share."""

from __future__ import annotations

import pytest
from pictures import write

from cers.rationale import TextEmbedder
from cers.training.data import Slices, brisc

SIZE = 64


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Of prepared pictures, for one file's tests."""
    return tmp_path_factory.mktemp("frames")


@pytest.fixture(scope="session")
def slices(folder, tmp_path_factory) -> Slices:
    return brisc(folder, "train", tmp_path_factory.mktemp("cache"), size=SIZE)


@pytest.fixture(scope="session")
def embedder() -> TextEmbedder:
    return TextEmbedder()
