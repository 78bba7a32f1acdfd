"""What the tests of CERS Segment share: synthetic volumes and pools, and a user who presses buttons."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from cers.case import Case
from cers.rationale import describe

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (9, 72, 64)
BLOCKED_MS = 250  # five times the aim: other programs may keep the machine busy, and what truly blocks takes seconds


def make_pool(folder: Path, count: int = 9) -> Path:
    """A small pool of synthetic annotated slices of different people, with measured rationales."""
    from cers.pool import Pool

    random = np.random.default_rng(5)
    with Pool.create(folder) as pool:
        rows, columns = np.indices((80, 72)).astype(np.float32)
        for n in range(count):
            centre, size = random.uniform(28, 48, 2), random.uniform(5, 12, 2)
            body = ((rows - 40) / 36) ** 2 + ((columns - 36) / 32) ** 2 < 1
            mask = ((rows - centre[0]) / size[0]) ** 2 + ((columns - centre[1]) / size[1]) ** 2 < 1
            image = (300.0 * body + (120 + 40 * (n % 3)) * mask + random.normal(0, 8 + 3 * (n % 4), body.shape)).astype(np.float32)
            pool.add(
                Case(
                    image,
                    mask.astype(np.uint8),
                    {1: "tumor"},
                    spacing=(1.0, 1.0),
                    plane="axial",
                    patient_id=f"p{n}",
                    volume_id=f"v{n}",
                    modality="MR",
                    body_site="brain",
                    diagnosis=("glioma", "meningioma", "pituitary")[n % 3],
                    source=f"synthetic {n}",
                    rationale=describe(image, mask, (1.0, 1.0), modality="MR", plane="axial"),
                )
            )
    return folder


@pytest.fixture(scope="module")
def lib(host):
    sys.path.insert(0, str(ROOT / "CERSSegment"))
    import CERSSegmentLib

    yield CERSSegmentLib


@pytest.fixture
def part(lib):
    import importlib

    return lambda name: importlib.import_module(f"CERSSegmentLib.{name}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("torch", reason="torch is not installed: the worker needs it")
    from cers.inference.tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def loaded(host):
    """The module; its panel is ended with the file that asked for it."""
    module = load(host)
    yield module
    unload(host, module)


def load(host):
    """The module, loaded once in a process."""
    return getattr(host.slicer.modules, "cerssegment", None) or host.load_module(ROOT / "CERSSegment" / "CERSSegment.py")


def unload(host, module) -> None:
    """Ends the panel and its worker; the next test gets a panel of its own."""
    host.close_main_window()
    panel = module.widgetRepresentation().self()
    form = panel.control.form
    panel.cleanup()
    form.setMRMLScene(None)  # its selectors let go of the scene
    module._widget = None
    host.process(0.3)


@contextmanager
def visit(host, loaded, width: int = 1280, height: int = 800):
    """A user before the module's panel; what runs at the end is stopped."""
    window = host.show_main_window(width, height, 400)
    person = User(host, host.enter_module(loaded))
    person.window = window
    yield person
    person.logic.cancel()
    person.wait(10)
    person.control.board.hide()
    person.logic.said._slots = [s for s in person.logic.said._slots if s == person.control.say]
    host.process(0.1)


class User:
    """Drives the panel as a person does, and remembers what was said."""

    def __init__(self, host, panel):
        self.host, self.panel, self.ui, self.control = host, panel, panel.ui, panel.control
        self.said: list[tuple[str, str]] = []
        self._held = 0  # process id of the worker that waits for ``release``
        sys.modules[type(self.control).__module__].DOUBLE_CLICK = 0  # tests press faster than people
        self.control.logic.said.connect(lambda kind, sentence: self.said.append((kind, sentence)))

    @property
    def logic(self):
        return self.control.logic

    @property
    def evidence(self):
        return self.control.controller.evidence

    @property
    def segmentation(self):
        return self.control.parameter.outputSegmentation

    def choose(self, volume, pool="", model="") -> None:
        self.ui.outputSelector.setCurrentNode(None)
        self.ui.inputSelector.setCurrentNode(volume)
        self.ui.poolPath.currentPath = str(pool or "")
        self.ui.modelPath.currentPath = str(model or "")
        self.ui.threadsSpin.setValue(1)
        self.said.clear()

    def press(self) -> None:
        self.ui.segmentButton.click()

    def wait(self, seconds: float = 240) -> None:
        self.release()
        self.host.wait_for(lambda: self.logic.state == "idle", seconds, "the end of the run")

    def until_running(self, method: str = "segment", seconds: float = 240) -> None:
        """Waits until the worker has the request that does the work, and holds it there until ``release`` or ``wait``.

        Without that a quick worker may be done, its answer unread, before the test does what shall happen in mid-run.
        """
        worker = self.logic.worker
        request = worker.request

        def held(name, *arguments, **named):
            if name == method and hasattr(signal, "SIGSTOP"):
                self._held = int(worker._process.processId())
                os.kill(self._held, signal.SIGSTOP)
            return request(name, *arguments, **named)

        worker.request = held
        try:
            self.host.wait_for(
                lambda: any(f'"{method}"'.encode() in p.line for p in worker._pending.values()) and worker.state == "ready",
                seconds,
                f"the request {method}",
            )
        finally:
            del worker.request

    def release(self) -> None:
        """Lets a worker work that ``until_running`` holds."""
        held, self._held = self._held, 0
        if held:
            with suppress(ProcessLookupError):  # it was killed
                os.kill(held, signal.SIGCONT)

    def segment(self, volume, pool="", model="") -> None:
        self.choose(volume, pool, model)
        self.press()
        self.wait()
        self.host.process(0.2)

    def status(self) -> str:
        return self.ui.statusLabel.text


class Gaps:
    """How long the event loop was away, in ms: by the clock, and by this thread's own work, drawing the views in software left out.

    Python looks through all objects for garbage now and then: after a thousand tests for half a second. What was there before is frozen.
    """

    def __init__(self, qt):
        self.wall: list[float] = []
        self.work: list[float] = []
        self._last = None
        self._timer = qt.QTimer()
        self._timer.timeout.connect(self._tick)

    def _tick(self) -> None:
        from slicerhost.views import drawing_seconds

        now = time.perf_counter(), time.thread_time() - drawing_seconds()
        if self._last is not None:
            self.wall.append(1000 * (now[0] - self._last[0]))
            self.work.append(1000 * (now[1] - self._last[1]))
        self._last = now

    def __enter__(self) -> Gaps:
        gc.collect()
        gc.freeze()
        self._timer.start(1)
        return self

    def __exit__(self, *_exception) -> None:
        self._timer.stop()
        gc.unfreeze()
