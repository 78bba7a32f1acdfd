from __future__ import annotations

import phantom
import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return phantom.build_model(tmp_path_factory.mktemp("cli-model"))


@pytest.fixture(scope="session")
def filled_pool(tmp_path_factory):
    """A pool that the tests only read."""
    return phantom.build_pool(tmp_path_factory.mktemp("cli-pool"))


@pytest.fixture
def pool(tmp_path):
    return phantom.build_pool(tmp_path / "pool", cases=2)


@pytest.fixture
def image(tmp_path):
    from cers.case.io import write_image

    v = phantom.volume()
    return write_image(tmp_path / "image.nrrd", v.array, v.geometry)


@pytest.fixture
def cers(capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""
    from cers.cli import main

    def run(*arguments):
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run
