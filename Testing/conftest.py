"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def data_folder() -> Path | None:
    """The folder of real images (``CERS_DATA``, default ``../shared/data`` beside the checkout), None where absent."""
    folder = Path(os.environ.get("CERS_DATA") or ROOT.parent / "shared" / "data")
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def cers_data() -> Path:
    """Folder of real images; the test is skipped, and says so, where it is absent."""
    folder = data_folder()
    if folder is None:
        pytest.skip("real images not found: set CERS_DATA to their folder to run this test")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_models(tmp_path_factory):
    """No test sees or changes the models that the user has installed; processes that tests start inherit it."""
    before = os.environ.get("CERS_MODELS")
    os.environ["CERS_MODELS"] = str(tmp_path_factory.mktemp("installed") / "models")
    yield
    if before is None:
        del os.environ["CERS_MODELS"]
    else:
        os.environ["CERS_MODELS"] = before
