"""The module tests' host: Slicer's real core with a stand-in for its Qt side. All of them skip where it cannot start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [p for p in (str(ROOT), str(ROOT / "Testing" / "Host")) if p not in sys.path]

import slicerhost  # noqa: E402

#: Pictures that the tests take are kept here; git ignores them.
SCREENSHOTS = ROOT / ".cache" / "screenshots"


@pytest.fixture(scope="session")
def host() -> Iterator[slicerhost.Host]:
    """The running host, without a main window until a test asks for one; at the end it quits as the application does."""
    for package in ("slicer", "PySide6"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[test]' to run the module tests")
    host = slicerhost.start()
    yield host
    host.unload_modules()


@pytest.fixture
def scene(host) -> Iterator[object]:
    """An empty scene, emptied again afterwards."""
    host.slicer.mrmlScene.Clear(0)
    host.process()
    yield host.slicer.mrmlScene
    host.slicer.mrmlScene.Clear(0)
    host.process()


@pytest.fixture
def no_window(host) -> Iterator[slicerhost.Host]:
    """The host without a main window: ``layoutManager()`` is None."""
    host.close_main_window()
    assert host.app.layoutManager() is None
    yield host


@pytest.fixture
def window(host, scene) -> Iterator[object]:
    """The main window in the four-up layout."""
    window = host.show_main_window()
    host.app.layoutManager().setLayout(host.slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    host.process()
    yield window


@pytest.fixture
def screenshots() -> Path:
    """Folder for pictures of widgets, to be looked at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
