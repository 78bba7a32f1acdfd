"""The knowledge pool module, driven as a user would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cers.case import Case
from cers.pool import Pool
from cers.rationale import describe

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"torch", "faiss", "transformers", "highdicom"}


def _case(seed: int, **metadata) -> Case:
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:96, :80]
    mask = ((rows - 40 - seed) ** 2 + (columns - 36) ** 2 < (9 + seed) ** 2).astype(np.uint8)
    body = ((rows - 48) / 44) ** 2 + ((columns - 40) / 36) ** 2 < 1
    image = (100 * body + 80 * mask + random.normal(0, 6, mask.shape) * body).astype(np.float32)
    rationale = describe(image, mask > 0, (1.0, 1.0), modality="MR")
    return Case(image, mask, {1: "tumor"}, spacing=(1.0, 1.0), rationale=rationale,
                **{"modality": "MR", "body_site": "brain", "plane": "axial", "annotator": "Reader A", "source": f"file{seed}.nrrd"} | metadata)


@pytest.fixture
def pool_folder(tmp_path) -> Path:
    folder = tmp_path / "pool"
    with Pool.create(folder) as pool:
        for seed in range(4):
            pool.add(_case(seed, patient_id=f"p{seed // 2}"))
        pool.add(_case(7, modality="CT", body_site="lung", patient_id="p9", annotator=None, review="approved"))
    return folder


@pytest.fixture
def panel(host, scene):
    """The module's widget, in no pool, as after a first installation."""
    host.qt.QSettings().remove("CERS/PoolFolder")
    modules = host.slicer.modules
    for name in ("CERSSegment", "CERSKnowledgePool"):
        if not hasattr(modules, name.lower()):
            host.load_module(ROOT / name / f"{name}.py")
    widget = host.enter_module(modules.cersknowledgepool)
    widget.ui.poolPath.currentPath = ""
    widget.ui.filterEdit.text = ""
    widget.control.reload()
    yield widget
    host.qt.QSettings().remove("CERS/PoolFolder")


def _choose(host, panel, folder) -> None:
    panel.ui.poolPath.currentPath = str(folder)
    host.wait_for(lambda: not panel.control.busy, 30, "the pool's content")


def _shown(widget) -> bool:
    return not widget.isHidden()


def test_file_imports_nothing_heavy():
    """As the application does at start-up: the module's file and its library, in a fresh interpreter, and a pool read."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'Testing' / 'Host')!r}]\n"
        "import slicerhost; host = slicerhost.start(); before = set(sys.modules)\n"
        f"host.load_module({str(ROOT / 'CERSKnowledgePool' / 'CERSKnowledgePool.py')!r})\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "assert 'cers' not in new and 'CERSKnowledgePoolLib' not in new, new\n"
        "from CERSKnowledgePoolLib import PoolReader; PoolReader._pool()\n"
        f"print(sorted({{m.split('.')[0] for m in sys.modules}} & {FORBIDDEN!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]"]


def test_says_what_it_is_and_asks_for_a_pool(panel):
    assert "evidence" in panel.ui.introLabel.text
    assert "Choose the folder of a pool" in panel.ui.statusLabel.text
    assert not _shown(panel.ui.caseTable) and not _shown(panel.ui.caseButton)


def test_shows_every_case_with_counts(host, panel, pool_folder, screenshots):
    _choose(host, panel, pool_folder)
    table, status = panel.ui.caseTable, panel.ui.statusLabel.text
    assert table.rowCount == 5 and "5 cases, patients: 3" in status
    assert "MR 4, CT 1" in status and "brain 4, lung 1" in status and "unreviewed 4, approved 1" in status
    titles = [table.horizontalHeaderItem(c).text() for c in range(table.columnCount)]
    last = dict(zip(titles, (table.item(4, c).text() for c in range(table.columnCount))))
    assert last["Modality"] == "CT" and last["Labels"] == "tumor" and last["Review"] == "approved" and last["Annotator"] == ""
    assert last["Source"] == "file7.nrrd" and last["Plane"] == "axial" and last["Rationale"].startswith("Texture:")
    window = host.show_main_window(1400, 980, 560)
    host.enter_module(host.slicer.modules.cersknowledgepool)
    host.screenshot(window, screenshots / "knowledge_pool.png")
    host.use_dark_style(True)
    host.screenshot(window, screenshots / "knowledge_pool_dark.png")
    host.use_dark_style(False)


def test_shows_the_chosen_case_with_contour_and_rationale(host, panel, pool_folder):
    _choose(host, panel, pool_folder)
    with Pool.open(pool_folder, read_only=True) as pool:
        ids = pool.ids()
        case = pool.get(ids[2])
    panel.ui.caseTable.selectRow(2)
    text = panel.ui.caseText.plainText
    assert ids[2] in text and "Reader A" in text
    for part in ("Texture", "Boundary", "Context", "Summary"):
        assert case.rationale.part(part.lower()).split(".")[0] in text, part
    picture = panel.ui.pictureLabel.pixmap
    picture = (picture() if callable(picture) else picture).toImage()
    colours = {host.qt.QColor(picture.pixel(x, y)).getRgb()[:3] for x in range(picture.width()) for y in range(picture.height())}
    assert any(b > r + 80 and g > r + 60 for r, g, b in colours), "the expert's contour is drawn in its colour"


def test_words_find_cases(host, panel, pool_folder):
    _choose(host, panel, pool_folder)
    panel.ui.filterEdit.text = "ct lung"
    assert panel.ui.caseTable.rowCount == 1 and "file7.nrrd" in panel.ui.caseText.plainText
    panel.ui.filterEdit.text = "nothing has this"
    assert panel.ui.caseTable.rowCount == 0 and "No case matches" in panel.ui.noteLabel.text
    assert panel.ui.caseText.plainText == ""
    panel.ui.filterEdit.text = ""
    assert panel.ui.caseTable.rowCount == 5


def test_table_cannot_be_edited_and_the_pool_is_unchanged(host, panel, pool_folder):
    before = {p: p.read_bytes() for p in pool_folder.rglob("*") if p.is_file() and p.suffix not in (".sqlite-wal", ".sqlite-shm")}
    _choose(host, panel, pool_folder)
    for row in range(5):
        panel.ui.caseTable.selectRow(row)
    assert panel.ui.caseTable.editTriggers == host.qt.QAbstractItemView.NoEditTriggers
    after = {p: p.read_bytes() for p in before}
    assert after == before


def test_pool_is_remembered_for_both_modules(host, panel, pool_folder):
    _choose(host, panel, pool_folder)
    assert host.qt.QSettings().value("CERS/PoolFolder") == str(pool_folder)
    other = host.slicer.modules.cersknowledgepool.createNewWidgetRepresentation().self()
    host.wait_for(lambda: not other.control.busy)
    assert other.ui.poolPath.currentPath == str(pool_folder) and other.ui.caseTable.rowCount == 5


def test_cases_added_meanwhile_appear(host, panel, pool_folder):
    _choose(host, panel, pool_folder)
    panel.ui.caseTable.selectRow(3)
    chosen = panel.control._chosen()
    with Pool.open(pool_folder) as pool:
        pool.add(_case(11))
    panel.ui.reloadButton.click()
    host.wait_for(lambda: not panel.control.busy)
    assert panel.ui.caseTable.rowCount == 6 and panel.control._chosen() == chosen


def test_case_deleted_meanwhile(host, panel, pool_folder):
    _choose(host, panel, pool_folder)
    with Pool.open(pool_folder) as pool:
        pool.delete(pool.ids()[1])
    panel.ui.caseTable.selectRow(1)
    assert "no case" in panel.ui.caseText.plainText.lower() and _one_sentence_or_two(panel.ui.caseText.plainText)


def _one_sentence_or_two(text: str) -> bool:
    return "Traceback" not in text and 0 < len(re.findall(r"[.?!](?:\s|$)", text)) <= 3


def _complaint(panel) -> str:
    assert not _shown(panel.ui.caseTable) and panel.ui.caseTable.rowCount == 0 and panel.ui.caseText.plainText == ""
    text = re.sub("<[^>]*>", "", panel.ui.statusLabel.text)
    assert _one_sentence_or_two(text), text
    return text


def test_empty_pool(host, panel, tmp_path):
    Pool.create(tmp_path / "empty").close()
    _choose(host, panel, tmp_path / "empty")
    assert "This pool is empty" in _complaint(panel)


def test_folder_without_pool(host, panel, tmp_path):
    _choose(host, panel, tmp_path)
    assert "no pool" in _complaint(panel)
    assert list(tmp_path.iterdir()) == [] and host.qt.QSettings().value("CERS/PoolFolder") is None


def test_folder_that_does_not_exist(host, panel, tmp_path):
    _choose(host, panel, tmp_path / "gone" / "<b>&")
    assert "no pool" in _complaint(panel)
    assert "&lt;b&gt;&amp;" in panel.ui.statusLabel.text, "a folder's name is not taken for markup"


def test_damaged_database(host, panel, pool_folder):
    (pool_folder / "pool.sqlite").write_bytes(b"this is no database" * 500)
    _choose(host, panel, pool_folder)
    assert _complaint(panel)


def test_damaged_case_is_named_and_the_others_are_shown(host, panel, pool_folder):
    with Pool.open(pool_folder, read_only=True) as pool:
        case_id = pool.ids()[0]
    for file in (pool_folder / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-40])
    _choose(host, panel, pool_folder)
    panel.ui.caseTable.selectRow(0)
    assert panel.ui.caseTable.rowCount == 5 and case_id in panel.ui.caseText.plainText
    assert _one_sentence_or_two(panel.ui.caseText.plainText)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_folder_that_may_not_be_read(host, panel, pool_folder):
    pool_folder.chmod(0)
    try:
        _choose(host, panel, pool_folder)
        assert _complaint(panel)
    finally:
        pool_folder.chmod(0o700)


def test_long_pool_lists_the_first_and_says_so(host, panel, pool_folder, monkeypatch):
    import CERSKnowledgePoolLib.PoolWidget as part

    monkeypatch.setattr(part, "MOST_ROWS", 3)
    _choose(host, panel, pool_folder)
    assert panel.ui.caseTable.rowCount == 3 and "first 3 of 5" in panel.ui.noteLabel.text


def test_large_pool_is_read_a_little_at_a_time(host, panel, pool_folder, monkeypatch):
    import CERSKnowledgePoolLib.PoolWidget as part

    monkeypatch.setattr(part, "STEP", 0.0)
    said = []
    monkeypatch.setattr(panel.control, "_say", lambda text, wrong=False: said.append(text))
    panel.ui.poolPath.currentPath = str(pool_folder)
    panel.control.reload()
    assert panel.control.busy and panel.ui.caseTable.rowCount == 0
    with Pool.open(pool_folder) as pool:
        pool.delete(pool.ids()[-1])  # by someone else, meanwhile
    host.wait_for(lambda: not panel.control.busy)
    assert said[0] == "Reading: 1 of 5 cases" and panel.ui.caseTable.rowCount == 4
    panel.control.reload()
    panel.ui.poolPath.currentPath = ""  # another choice ends the reading
    panel.control.reload()
    assert not panel.control.busy and panel.ui.caseTable.rowCount == 0


def test_self_test_passes(host, panel):
    before = panel.ui.poolPath.currentPath
    result = sys.modules["CERSKnowledgePool"].CERSKnowledgePoolTest().run()
    assert result.wasSuccessful(), result.errors + result.failures
    assert panel.ui.poolPath.currentPath == before
