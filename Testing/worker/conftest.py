from __future__ import annotations

import phantom
import pytest

from cers.worker.client import Worker


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return phantom.build_model(tmp_path_factory.mktemp("worker-model"))


@pytest.fixture(scope="session")
def filled_pool(tmp_path_factory):
    return phantom.build_pool(tmp_path_factory.mktemp("worker-pool"))


@pytest.fixture(scope="module")
def worker(model, filled_pool):
    """A worker with a model and a pool, shared by the tests of a file."""
    with Worker() as w:
        w.call("load_model", path=str(model), threads=1)
        w.call("open_pool", path=str(filled_pool))
        yield w
