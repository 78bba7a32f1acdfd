from __future__ import annotations

import pytest
from folders import write_pictures, write_volumes


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path)


@pytest.fixture
def volumes(tmp_path):
    return write_volumes(tmp_path)
