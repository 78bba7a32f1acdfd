"""The knowledge pool module, driven as a user would, with its real worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cers.case import Case
from cers.pool import Pool
from cers.rationale import describe

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"torch", "faiss", "transformers", "highdicom"}
CASES, CASE, HEALTH, IMPORT, HISTORY = range(5)
GUI_MS = 50          # the panel may not hold up the application longer


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


class User:
    """Drives the panel, and waits until what was asked for is shown."""

    def __init__(self, host, panel):
        self.host, self.panel, self.ui, self.control = host, panel, panel.ui, panel.control
        self.cases, self.case = self.control.cases, self.control.case

    def settle(self) -> None:
        worker = self.control.session.worker
        self.host.process(0.05)
        self.host.wait_for(lambda: not self.control.busy and not worker._pending and not self.cases.table._timer.isActive(), 60, "the answers")

    def choose(self, folder) -> None:
        self.ui.poolPath.currentPath = str(folder)
        self.settle()

    def ids(self) -> list[str]:
        return self.cases.table.ids

    def cell(self, row: int, column: str) -> str:
        model = self.cases.table.model
        titles = [model.headerData(c, self.host.qt.Qt.Horizontal) for c in range(model.columnCount())]
        return model.index(row, titles.index(column)).data() or ""

    def open(self, row: int) -> None:
        self.control.openCase(self.ids()[row])
        self.settle()

    def page(self, number: int) -> None:
        self.ui.pages.setCurrentIndex(number)
        self.settle()


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
    user.control.session.stop()
    host.qt.QSettings().remove("CERS/PoolFolder")
    host.qt.QSettings().remove("CERS/Annotator")
    host.close_main_window()


def _sentence(text: str) -> str:
    text = re.sub("<[^>]*>", "", text)
    assert "Traceback" not in text and 0 < len(re.findall(r"[.?!](?:\s|$)", text)) <= 3, text
    return text


def test_file_imports_nothing_heavy():
    """As the application does at start-up: the module's file and its library, in a fresh interpreter."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'Testing' / 'Host')!r}, {str(ROOT)!r}]\n"
        "import slicerhost; host = slicerhost.start(); before = set(sys.modules)\n"
        f"host.load_module({str(ROOT / 'CERSSegment' / 'CERSSegment.py')!r})\n"
        f"host.load_module({str(ROOT / 'CERSKnowledgePool' / 'CERSKnowledgePool.py')!r})\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "assert 'cers' not in new and 'CERSKnowledgePoolLib' not in new, new\n"
        "from CERSKnowledgePoolLib import PoolWidget\n"
        f"print(sorted({{m.split('.')[0] for m in sys.modules}} & {FORBIDDEN!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[]"]


def test_asks_for_a_pool_and_says_what_is_wrong(user, tmp_path, pool_folder):
    assert "evidence" in user.ui.introLabel.text and "Choose the folder of a pool" in user.ui.statusLabel.text and user.ui.pages.isHidden()
    for folder in (tmp_path, tmp_path / "gone" / "<b>&"):
        user.choose(folder)
        assert "no pool" in _sentence(user.ui.statusLabel.text) and user.ui.pages.isHidden() and user.ids() == []
    assert "&lt;b&gt;&amp;" in user.ui.statusLabel.text, "a folder's name is not taken for markup"
    assert user.host.qt.QSettings().value("CERS/PoolFolder") is None
    (pool_folder / "pool.sqlite").write_bytes(b"this is no database" * 500)
    user.choose(pool_folder)
    assert _sentence(user.ui.statusLabel.text)


def test_new_and_empty_pool_leads_to_the_import(user, tmp_path):
    user.control.askFolder = lambda: str(tmp_path / "new")
    user.ui.createButton.click()
    user.settle()
    assert "empty" in user.ui.statusLabel.text and user.ui.pages.currentIndex == IMPORT and (tmp_path / "new" / "pool.sqlite").exists()


def test_shows_every_case(user, pool_folder, screenshots):
    user.choose(pool_folder)
    assert len(user.ids()) == 5 and "5 cases" in user.ui.statusLabel.text and "patients: 3" in user.ui.statusLabel.text
    assert (user.cell(4, "Modality"), user.cell(4, "Annotator"), user.cell(4, "Source")) == ("CT", "", "file7.nrrd")
    assert user.cell(0, "Rationale").startswith("Texture:") and "approved" in user.cell(4, "Review")
    assert not user.cases.table.model.index(0, 0).data(user.host.qt.Qt.DecorationRole).isNull()
    assert user.host.qt.QSettings().value("CERS/PoolFolder") == str(pool_folder)
    user.host.screenshot(user.host.window, screenshots / "knowledge_pool.png")
    user.host.use_dark_style(True)
    user.host.screenshot(user.host.window, screenshots / "knowledge_pool_dark.png")
    user.host.use_dark_style(False)


def test_filters_words_and_measurements(user, pool_folder):
    user.choose(pool_folder)
    combo = user.cases.combos["modality"]
    assert [combo.itemText(n) for n in range(combo.count)] == ["Modality: any", "MR (4)", "CT (1)"]
    combo.setCurrentIndex(2)
    user.settle()
    assert len(user.ids()) == 1 and "1 of 5" in user.cases.found.text
    user.cases.all.click()
    user.settle()
    assert len(user.ids()) == 5
    user.cases.words.setText("LUNG file7")
    user.settle()
    assert len(user.ids()) == 1
    user.cases.words.setText("nothing has this")
    user.settle()
    assert user.ids() == [] and "No case matches" in user.cases.found.text
    user.cases.showAll()
    user.cases.descriptor.setCurrentIndex(user.cases.descriptor.findData("diameter_mm"))
    user.cases.least.setText("25,5")
    user.settle()
    assert 0 < len(user.ids()) < 5
    user.cases.most.setText("abc")
    user.settle()
    assert "numbers" in user.cases.found.text
    user.cases.showAll()
    annotator = user.cases.combos["annotator"]
    annotator.setCurrentIndex(annotator.findData(""))
    user.settle()
    assert len(user.ids()) == 1, "not known is a value, too"


def test_search_by_meaning(user, pool_folder):
    user.choose(pool_folder)
    user.cases.words.setText("bright mass, clear border")
    user.cases.findMeaning()
    user.settle()
    assert len(user.ids()) == 5 and "meaning" in user.cases.found.text
    user.cases.showAll()
    user.settle()


def test_case_page(user, pool_folder, screenshots):
    user.choose(pool_folder)
    with Pool.open(pool_folder, read_only=True) as pool:
        case = pool.get(pool.ids()[2])
    user.open(2)
    page = user.case
    assert user.ui.pages.currentIndex == CASE and case.id in page.title.text and page.fields["annotator"].text == "Reader A"
    assert page.parts["texture"].plainText == case.rationale.part("texture") and not page.saveText.isEnabled()
    text = page.text.plainText
    assert "contrast" in text and f"{case.rationale.descriptors['contrast']:g}" in text and "added" in text
    picture = page.picture.pixmap
    picture = (picture() if callable(picture) else picture).toImage()
    colours = {user.host.qt.QColor(picture.pixel(x, y)).getRgb()[:3] for x in range(0, 280, 2) for y in range(280)}
    assert any(b > r + 80 and g > r + 60 for r, g, b in colours), "the expert's contour is drawn in its colour"
    page.zoom.setCurrentIndex(2)
    page.contrast.setValue(80)
    page.next.click()
    user.settle()
    assert page.caseId == user.ids()[3]
    user.host.screenshot(user.host.window, screenshots / "knowledge_pool_case.png")


def test_edits_are_versions_with_a_name(user, pool_folder):
    user.host.qt.QSettings().setValue("CERS/Annotator", "Ana")
    user.choose(pool_folder)
    user.open(0)
    page, case_id = user.case, user.ids()[0]
    page.fields["diagnosis"].setText("glioma <b>")
    page.labels.setText("lesion")
    page.saveFields.click()
    user.settle()
    page.parts["boundary"].setPlainText(page.parts["boundary"].plainText + " Seen twice.")
    assert page.saveText.isEnabled()
    page.saveText.click()
    user.settle()
    with Pool.open(pool_folder, read_only=True) as pool:
        meta = pool.meta(case_id)
        assert (meta["diagnosis"], meta["labels"], meta["rationale_version"]) == ("glioma <b>", {"1": "lesion"}, 2)
        assert {e["who"] for e in pool.audit([case_id]) if e["action"] != "added"} == {"Ana"}
    assert page.versions.count == 2 and "person" in page.versions.itemText(0) and "glioma <b>" in page.text.plainText
    page.versions.setCurrentIndex(1)
    assert "Seen twice" not in page.parts["boundary"].plainText
    page.labels.setText("a; b")
    page.saveFields.click()
    user.settle()
    assert "1 labels" in user.ui.messageLabel.text
    page.verdicts[2].click()
    user.settle()
    assert page.review.text == "excluded"


def test_review_delete_and_undo_of_several(user, pool_folder):
    user.choose(pool_folder)
    view, buttons = user.cases.view, user.cases.buttons
    assert not buttons["delete"].isEnabled()
    view.selectAll()
    user.cases.note.setText("checked")
    buttons["approved"].click()
    user.settle()
    assert "approved" in user.cell(0, "Review") and "approved 5" in user.ui.statusLabel.text
    view.clearSelection()
    view.selectRow(1)
    gone = user.ids()[1]
    buttons["delete"].click()
    user.settle()
    assert len(user.ids()) == 4 and gone not in user.ids() and not user.ui.undoButton.isHidden()
    user.ui.undoButton.click()
    user.settle()
    assert gone in user.ids() and user.ui.undoButton.isHidden()


def test_history_trash_and_table(user, pool_folder, tmp_path):
    user.choose(pool_folder)
    user.cases.view.selectRow(0)
    user.cases.buttons["delete"].click()
    user.settle()
    user.page(HISTORY)
    history = user.control.history
    assert "moved to the trash" in history.text.plainText and history.trash.count == 1 and not history.restore.isEnabled()
    history.askPath = lambda: str(tmp_path / "audit.csv")
    history.export.click()
    user.settle()
    assert (tmp_path / "audit.csv").read_text(encoding="utf-8-sig").count("\n") == 7
    history.trash.selectAll()
    history.confirm = lambda question: False
    history.purge.click()
    user.settle()
    assert history.trash.count == 1
    history.restore.click()
    user.settle()
    assert history.trash.count == 0 and len(user.ids()) == 5
    user.page(CASES)
    user.cases.view.selectRow(0)
    user.cases.buttons["delete"].click()
    user.settle()
    user.page(HISTORY)
    history.confirm = lambda question: True
    history.trash.selectAll()
    history.purge.click()
    user.settle()
    assert history.trash.count == 0 and len(list((pool_folder / "arrays").rglob("*.npz"))) == 4


def test_health_opens_the_cases(user, pool_folder, screenshots):
    with Pool.open(pool_folder) as pool:
        a = _case(0)
        twin = pool.add(Case(a.image, a.mask, {1: "lesion"}, patient_id="someone else", modality="MR", body_site="brain"))
    user.choose(pool_folder)
    user.page(HEALTH)
    health = user.control.health
    health.button.click()
    user.settle()
    number = next(n for n, f in enumerate(health.findings) if f["kind"] == "duplicate")
    user.host.screenshot(user.host.window, screenshots / "knowledge_pool_health.png")
    health.open(number)
    user.settle()
    assert user.ui.pages.currentIndex == CASES and twin in user.ids() and "patients" in user.cases.found.text


@pytest.fixture
def scan(host, scene):
    """A volume under no transform and a segmentation with two segments, one of them on another grid's extent."""
    slicer = host.slicer
    k, j, i = np.mgrid[:6, :60, :50]
    image = (200.0 * (((j - 30) / 26) ** 2 + ((i - 25) / 22) ** 2 < 1) + 100 * (((j - 28) ** 2 + (i - 20) ** 2) < 40)).astype(np.float32)
    matrix = np.array([[-0.9, 0.1, 0, 20], [0, -1, 0, 30], [0, 0, 3, 5], [0, 0, 0, 1.0]])
    volume = slicer.util.addVolumeFromArray(image, ijkToRAS=matrix, name="DOE^JANE")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "s")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    masks = {}
    for name, radius in (("edema", 40), ("core", 12)):
        identifier = node.GetSegmentation().AddEmptySegment(name, name)
        masks[name] = (((j - 28) ** 2 + (i - 20) ** 2 < radius) & (k > 1) & (k < 5)).astype(np.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(masks[name], node, identifier, volume)
    return volume, node, image, matrix, masks


def test_import_from_the_scene_and_back_into_the_views(user, pool_folder, scan):
    volume, node, image, matrix, masks = scan
    user.choose(pool_folder)
    user.page(IMPORT)
    page = user.control.importing
    page.volume.setCurrentNode(volume)
    page.segmentation.setCurrentNode(node)
    assert page.segments.count == 2
    page.fields["diagnosis"].setText("glioma")
    page.preview.click()
    user.settle()
    user.host.wait_for(lambda: "would be added" in page.result.plainText, 30)
    with Pool.open(pool_folder, read_only=True) as pool:
        assert len(pool) == 5
    page.start.click()
    user.host.wait_for(lambda: "were added" in page.result.plainText, 30)
    user.settle()
    with Pool.open(pool_folder, read_only=True) as pool:
        new = [pool.get(m["id"]) for m in pool.list(diagnosis="glioma")]
        assert len(new) == 3 and "DOE" not in str(pool.list()) + str(pool.audit())
        middle = next(c for c in new if c.slice_index == max(c.slice_index for c in new) - 1)
        assert {middle.labels[v] for v in np.unique(middle.mask) if v} == {"edema", "core"} and (middle.mask == 2).sum() == masks["core"][3].sum()
    page.start.click()
    user.host.wait_for(lambda: "0 cases were added" in page.result.plainText, 30)
    user.control.openCase(middle.id)
    user.settle()
    user.case.toViews.click()
    shown = user.host.slicer.util.getNode(f"Case {middle.id[:8]}")
    ras = user.host.slicer.util.arrayFromVTKMatrix(_matrix(user.host, shown)) @ [20, 28, 0, 1]
    assert np.allclose(np.linalg.inv(matrix) @ ras, [29, 31, 3, 1], atol=1.01) or np.allclose(ras[2], matrix[2, 3] + 3 * 3, atol=3.1)
    value = user.host.slicer.util.arrayFromVolume(shown)
    assert sorted(np.unique(value)) == sorted(np.unique(middle.image))


def _matrix(host, volume):
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrix


def test_scene_import_says_what_is_missing(user, pool_folder, scan):
    volume, node, *_ = scan
    user.choose(pool_folder)
    page = user.control.importing
    page.volume.setCurrentNode(None)
    page.start.click()
    assert "Choose an input volume" in page.result.plainText
    page.volume.setCurrentNode(volume)
    page.segmentation.setCurrentNode(node)
    for n in range(2):
        page.segments.item(n).setCheckState(user.host.qt.Qt.Unchecked)
    page.start.click()
    assert "Tick" in page.result.plainText
    transform = user.host.slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    volume.SetAndObserveTransformNodeID(transform.GetID())
    page.listSegments()
    page.start.click()
    user.host.wait_for(lambda: "transform" in page.result.plainText, 30)


def test_folder_import_export_and_merge(user, pool_folder, tmp_path):
    from cers.case import Geometry
    from cers.case.io import write_image, write_segmentation

    folder = tmp_path / "images"
    folder.mkdir()
    case, geometry = _case(20), Geometry(np.diag([1.0, 1, 2, 1]), (1, 96, 80))
    write_image(folder / "a.nrrd", case.image[None], geometry)
    write_segmentation(folder / "a_mask.seg.nrrd", case.mask[None], geometry, {1: "tumor"})
    (folder / "b.nrrd").write_text("broken")
    user.choose(pool_folder)
    page = user.control.importing
    page.source.setCurrentIndex(1)
    page.images.currentPath = str(folder)
    for button, words in ((page.preview, "1 cases would be added"), (page.start, "1 cases were added"), (page.start, "0 cases were added")):
        button.click()
        user.settle()
        assert words in page.result.plainText and "b: there is no mask" in page.result.plainText
    assert len(user.ids()) == 6
    page.askPath = lambda: str(tmp_path / "x.zip")
    page.export.click()
    user.settle()
    assert "Wrote 6 cases" in page.result.plainText
    user.control.askFolder = lambda: str(tmp_path / "other")
    user.ui.createButton.click()
    user.settle()
    page.source.setCurrentIndex(2)
    page.other.setText(str(tmp_path / "x.zip"))
    page.start.click()
    user.settle()
    assert "6 cases were added" in page.result.plainText and len(user.ids()) == 6
    page.source.setCurrentIndex(0)


def test_read_only_pool_can_be_looked_at_only(user, pool_folder, monkeypatch):
    session = user.control.session
    request = session.worker.request
    monkeypatch.setattr(session.worker, "request", lambda method, params=None, *a, **k: request(
        method, {**(params or {}), "read_only": True} if method == "open_pool" else params, *a, **k))
    user.choose(pool_folder)
    assert "read-only" in user.ui.statusLabel.text and len(user.ids()) == 5
    user.cases.view.selectRow(0)
    user.open(0)
    assert not any(b.isEnabled() for b in (*user.cases.buttons.values(), *user.case.verdicts, user.case.saveFields, user.control.importing.start))
    session.change("pool_review", {"ids": user.ids()[:1], "review": "approved"})
    user.settle()
    assert "reading only" in user.ui.messageLabel.text


def test_changes_of_others_appear_and_a_damaged_case_is_named(user, pool_folder):
    user.choose(pool_folder)
    with Pool.open(pool_folder) as pool:
        new, gone = pool.add(_case(11)), pool.ids()[1]
        pool.delete(gone)
    user.control.openCase(gone)
    user.settle()
    assert "no case" in user.case.title.text.lower() and user.case.body.isHidden()
    user.ui.reloadButton.click()
    user.settle()
    assert new in user.ids() and gone not in user.ids()
    for file in (pool_folder / "arrays").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:-40])
    user.ui.reloadButton.click()
    user.settle()
    assert "damaged" in user.cell(0, "Rationale")
    user.open(0)
    assert _sentence(user.case.title.text)


def test_worker_that_died_is_started_again(user, pool_folder):
    user.choose(pool_folder)
    user.control.session.worker._process.kill()
    user.host.wait_for(lambda: user.control.session.worker.state == "stopped", 20)
    user.open(1)
    assert user.ids()[1] in user.case.title.text


def test_ten_thousand_cases(user, pool_folder, screenshots):
    """10,000 rows are filled and scrolled without holding up the application."""
    import json
    import sqlite3

    with sqlite3.connect(pool_folder / "pool.sqlite") as db:             # copies of the five: what the table shows of them is real
        columns = [r[1] for r in db.execute("PRAGMA table_info(cases)") if r[1] not in ("number", "id", "content_hash")]
        names = ", ".join(columns)
        db.execute(f"INSERT INTO cases (id, content_hash, {names}) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1999) "
                   f"SELECT id || x, content_hash || x, {names} FROM cases, n")
        db.execute("INSERT INTO rationales SELECT c.id, 1, r.writer, r.record, r.created FROM cases c JOIN rationales r "
                   "ON r.case_id = substr(c.id, 1, 16) AND c.id <> r.case_id")
    db.close()
    user.choose(pool_folder)
    table, host = user.cases.table, user.host
    assert len(table.ids) == 10_000 and json.dumps(table.ids)

    def timed(work) -> float:
        start = time.thread_time()
        work()
        return 1000 * (time.thread_time() - start)

    ids, fill, took = list(table.ids), table._fill, []
    table._fill = lambda *a: took.append(timed(lambda: fill(*a)))
    first = min(timed(lambda: table.show(ids)) for _ in range(3))
    user.settle()
    for at in (0.3, 0.9, 0.5):
        bar = user.cases.view.verticalScrollBar()
        moved = timed(lambda bar=bar, at=at: bar.setValue(int(at * bar.maximum)))
        took.append(moved)
        user.settle()
        assert user.cell(table._inView()[2], "Labels") == "tumor"
    del table._fill
    host.screenshot(host.window, screenshots / "knowledge_pool_10000.png")
    print(f"10,000 cases: first fill {first:.1f} ms, portions and scrolling at most {max(took):.1f} ms")
    assert first < GUI_MS and max(took) < GUI_MS
    user.cases.words.setText("lung")
    user.settle()
    assert len(table.ids) == 2000


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_folder_that_may_not_be_read(user, pool_folder):
    pool_folder.chmod(0)
    try:
        user.choose(pool_folder)
        assert _sentence(user.ui.statusLabel.text)
    finally:
        pool_folder.chmod(0o700)


def test_self_test_passes(user):
    result = sys.modules["CERSKnowledgePool"].CERSKnowledgePoolTest().run()
    assert result.wasSuccessful(), result.errors + result.failures
