"""What the tests of the knowledge pool module share: a small pool, and a user who presses buttons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cers.case import Case
from cers.pool import Pool
from cers.rationale import describe

ROOT = Path(__file__).resolve().parents[2]
CASES, CASE, MAP, HEALTH, RATIONALES, IMPORT, HISTORY, TRAINING, MODELS = range(9)


def make_case(seed: int, **metadata) -> Case:
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:96, :80]
    mask = ((rows - 40 - seed) ** 2 + (columns - 36) ** 2 < (9 + seed) ** 2).astype(np.uint8)
    body = ((rows - 48) / 44) ** 2 + ((columns - 40) / 36) ** 2 < 1
    image = (100 * body + 80 * mask + random.normal(0, 6, mask.shape) * body).astype(np.float32)
    rationale = describe(image, mask > 0, (1.0, 1.0), modality="MR")
    return Case(
        image,
        mask,
        {1: "tumor"},
        spacing=(1.0, 1.0),
        rationale=rationale,
        **{"modality": "MR", "body_site": "brain", "plane": "axial", "annotator": "Reader A", "source": f"file{seed}.nrrd"} | metadata,
    )


@pytest.fixture
def pool_folder(tmp_path) -> Path:
    folder = tmp_path / "pool"
    with Pool.create(folder) as pool:
        for seed in range(4):
            pool.add(make_case(seed, patient_id=f"p{seed // 2}"))
        pool.add(make_case(7, modality="CT", body_site="lung", patient_id="p9", annotator=None, review="approved"))
    return folder


def write_pictures(folder: Path, count: int, side: int) -> Path:
    """Pictures with masks beside them, each with its square at another place."""
    folder.mkdir()
    for n in range(count):
        picture = np.full((side, side), 40, np.uint8)
        picture[20 + n : 60 + n, 30:70] = 200
        Image.fromarray(picture).save(folder / f"{n}.png")
        Image.fromarray(np.where(picture > 100, 255, 0).astype(np.uint8)).save(folder / f"{n}_mask.png")
    return folder


class User:
    """Drives the panel, and waits until what was asked for is shown."""

    def __init__(self, host, panel):
        self.host, self.panel, self.ui, self.control = host, panel, panel.ui, panel.control
        self.cases, self.case = self.control.cases, self.control.case

    def settle(self, seconds: float = 60) -> None:
        worker = self.control.session.worker
        self.host.process(0.05)
        self.host.wait_for(
            lambda: not self.control.busy and not worker._pending and not self.cases.table._timer.isActive(), seconds, "the answers"
        )

    def choose(self, folder) -> None:
        self.ui.poolPath.currentPath = str(folder)
        self.settle()

    def ids(self) -> list[str]:
        return self.cases.table.ids

    def cell(self, row: int, column: str) -> str:
        model = self.cases.table.model
        titles = [model.headerData(c, self.host.qt.Qt.Horizontal) for c in range(model.columnCount())]
        return model.index(row, titles.index(column)).data() or ""

    def choose_images(self, folder):
        """The page Import, with a folder that holds images and masks; the page."""
        self.page(IMPORT)
        page = self.control.importing
        page.source.setCurrentIndex(1)
        page.images.currentPath = str(folder)
        return page

    def open(self, row: int) -> None:
        self.control.openCase(self.ids()[row])
        self.settle()

    def page(self, number: int) -> None:
        self.control.tabs.show(number)
        self.settle()


@pytest.fixture
def own_panel(host):
    """Named before ``user``: a panel that no other test has used or will use, for what would leave something behind."""
    _unload(host)
    yield
    _unload(host)


def _unload(host) -> None:
    module = getattr(host.slicer.modules, "cersknowledgepool", None)
    if module is not None and module._widget is not None:
        module.widgetRepresentation().self().cleanup()
        module._widget = None


@pytest.fixture
def user(host, scene):
    """The module's panel, in no pool, as after a first installation."""
    host.qt.QSettings().remove("CERS/PoolFolder")
    modules = host.slicer.modules
    for name in ("CERSSegment", "CERSKnowledgePool"):
        if not hasattr(modules, name.lower()):
            host.load_module(ROOT / name / f"{name}.py")
    host.show_main_window(1400, 980, 560)
    user = User(host, host.enter_module(modules.cersknowledgepool))
    user.ui.poolPath.currentPath = ""
    user.control.reload()
    user.cases.showAll()
    yield user
    host.qt.QSettings().remove("CERS/PoolFolder")
    host.qt.QSettings().remove("CERS/Annotator")
    host.close_main_window()
