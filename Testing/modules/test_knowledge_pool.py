"""The knowledge pool module, driven as a user would, with its real worker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from poolroom import CASE, CASES, HEALTH, HISTORY, IMPORT, MAP, ROOT, make_case, pool_folder, user  # noqa: F401 - fixtures

from cers.case import Case
from cers.pool import Pool

FORBIDDEN = {"torch", "faiss", "transformers", "highdicom"}


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
    assert "evidence" in user.ui.introLabel.text and "Choose the folder of a pool" in user.ui.statusLabel.text
    assert not user.control.tabs.isEnabled(CASES)
    for folder in (tmp_path, tmp_path / "gone" / "<b>&"):
        user.choose(folder)
        assert "no pool" in _sentence(user.ui.statusLabel.text) and not user.control.tabs.isEnabled(CASES) and user.ids() == []
    assert "&lt;b&gt;&amp;" in user.ui.statusLabel.text, "a folder's name is not taken for markup"
    assert user.host.qt.QSettings().value("CERS/PoolFolder") is None
    (pool_folder / "pool.sqlite").write_bytes(b"this is no database" * 500)
    user.choose(pool_folder)
    assert _sentence(user.ui.statusLabel.text)


def test_new_and_empty_pool_leads_to_the_import(user, tmp_path):
    user.control.askFolder = lambda: str(tmp_path / "new")
    user.ui.createButton.click()
    user.settle()
    assert "empty" in user.ui.statusLabel.text and user.control.tabs.current == IMPORT and (tmp_path / "new" / "pool.sqlite").exists()


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
    ranked, first = user.ids(), user.cell(0, "Case")
    user.cases.view.selectRow(2)
    user.cases.buttons["flagged"].click()
    user.settle()
    assert user.ids() == ranked and "meaning" in user.cases.found.text and user.cell(0, "Case") == first, "a verdict leaves the search"
    assert "flagged" in user.cell(2, "Review") and user.cases.table.selected() == ranked[2:3]
    user.cases.buttons["delete"].click()
    user.settle()
    assert user.ids() == [i for i in ranked if i != ranked[2]] and "  0." in user.cell(3, "Case")
    user.ui.undoButton.click()
    user.settle()
    assert user.ids() == ranked and user.cell(0, "Case") == first
    user.control.reload()
    user.settle()
    assert user.ids() == ranked
    user.cases.words.setText("lung")
    user.settle()
    assert len(user.ids()) == 1 and "meaning" not in user.cases.found.text, "another filter ends it"
    user.cases.showAll()
    user.settle()
    assert len(user.ids()) == 5


def test_case_page(user, pool_folder, screenshots):
    user.choose(pool_folder)
    with Pool.open(pool_folder, read_only=True) as pool:
        case = pool.get(pool.ids()[2])
    user.open(2)
    page = user.case
    assert user.control.tabs.current == CASE and case.id in page.title.text and page.fields["annotator"].text == "Reader A"
    assert page.parts["texture"].plainText == case.rationale.part("texture") and not page.saveText.isEnabled()
    text = page.text.plainText
    assert "contrast" in text and f"{case.rationale.descriptors['contrast']:g}" in text and "added" in text
    picture = page.picture.pixmap
    picture = (picture() if callable(picture) else picture).toImage()
    colours = {user.host.qt.QColor(picture.pixel(x, y)).getRgb()[:3] for x in range(0, picture.width(), 2) for y in range(picture.height())}
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
    assert "This case has one label. Give it one name." in user.ui.messageLabel.text
    page.labels.setText("a")
    assert user.ui.messageLabel.text == ""
    page.verdicts[2].click()
    user.settle()
    assert page.review.text == "excluded"


def test_claims_that_nobody_measured_are_listed_with_their_version(user, pool_folder):
    from cers.rationale import parse_cot, to_rationale
    from cers.rationale.writers.claims import marked

    user.choose(pool_folder)
    case_id = user.ids()[0]
    text = "Texture: Homogeneous. It displaces much.\nBoundary: Sharp.\nContext: Small.\nSummary: Round."
    with Pool.open(pool_folder) as pool:
        pool.add_rationale(case_id, marked(to_rationale(parse_cot(text), "imported")))
    user.open(0)
    page = user.case
    assert page.caseId == case_id and page.unmeasured.isVisibleTo(page.body)
    assert page.unmeasured.text.endswith("It displaces much. [not measured: displaces]")
    assert page.parts["texture"].plainText == "Homogeneous. It displaces much."
    page.versions.setCurrentIndex(1)
    assert not page.unmeasured.isVisibleTo(page.body)


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
    assert (
        any("moved to the trash" in row[3] for row in history.rows)
        and history.model.index(0, 3).data() == "moved to the trash"
        and len(history.trash.numbers) == 1
        and not history.restore.isEnabled()
    )
    history.askPath = lambda: str(tmp_path / "audit.csv")
    history.export.click()
    user.settle()
    assert (tmp_path / "audit.csv").read_text(encoding="utf-8-sig").count("\n") == 7
    history.trash.view.selectAll()
    asked = []
    history.confirm = lambda question: bool(asked.append(question))
    history.purge.click()
    user.settle()
    assert len(history.trash.numbers) == 1 and asked == ["Delete one case for good? This cannot be undone."]
    history.restore.click()
    user.settle()
    assert len(history.trash.numbers) == 0 and len(user.ids()) == 5
    user.page(CASES)
    user.cases.view.selectRow(0)
    user.cases.buttons["delete"].click()
    user.settle()
    user.page(HISTORY)
    history.confirm = lambda question: True
    history.trash.view.selectAll()
    history.purge.click()
    user.settle()
    assert len(history.trash.numbers) == 0 and len(list((pool_folder / "arrays").rglob("*.npz"))) == 4


def test_health_opens_the_cases(user, pool_folder, screenshots):
    with Pool.open(pool_folder) as pool:
        a = make_case(0)
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
    assert user.control.tabs.current == CASES and twin in user.ids() and "patients" in user.cases.found.text


def test_health_of_an_empty_pool_was_looked_at_by_nobody(user, tmp_path):
    Pool.create(tmp_path / "empty").close()
    user.choose(tmp_path / "empty")
    user.page(HEALTH)
    user.control.health.button.click()
    user.settle()
    assert user.control.health.summary.text == "This pool is empty: there is nothing to check yet."


def test_read_only_pool_can_be_looked_at_only(user, pool_folder, monkeypatch):
    session = user.control.session
    request = session.worker.request
    monkeypatch.setattr(
        session.worker,
        "request",
        lambda method, params=None, *a, **k: request(
            method, {**(params or {}), "read_only": True} if method == "open_pool" else params, *a, **k
        ),
    )
    user.choose(pool_folder)
    assert "read-only" in user.ui.statusLabel.text and len(user.ids()) == 5
    user.cases.view.selectRow(0)
    user.open(0)
    assert not any(
        b.isEnabled() for b in (*user.cases.buttons.values(), *user.case.verdicts, user.case.saveFields, user.control.importing.start)
    )
    session.change("pool_review", {"ids": user.ids()[:1], "review": "approved"})
    user.settle()
    assert "reading only" in user.ui.messageLabel.text


def test_changes_of_others_appear_and_a_damaged_case_is_named(user, pool_folder):
    user.choose(pool_folder)
    with Pool.open(pool_folder) as pool:
        new, gone = pool.add(make_case(11)), pool.ids()[1]
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


def test_what_was_typed_and_not_saved_stays(user, pool_folder):
    user.choose(pool_folder)
    user.open(0)
    page, case_id = user.case, user.ids()[0]
    page.fields["diagnosis"].setText("glioma")
    page.parts["texture"].setPlainText("Typed by hand.")
    user.ui.reloadButton.click()  # as when the module is entered again, or something else was changed
    user.settle()
    page.verdicts[0].click()
    user.settle()
    assert page.review.text == "approved" and page.fields["diagnosis"].text == "glioma"
    assert page.parts["texture"].plainText == "Typed by hand." and page.saveText.isEnabled()
    with Pool.open(pool_folder) as pool:  # a colleague mends another part meanwhile
        pool.edit_rationale(case_id, {"boundary": "Mended by a colleague."})
    page.saveText.click()
    user.settle()
    assert "saved meanwhile" in user.ui.messageLabel.text and page.parts["texture"].plainText == "Typed by hand."
    user.ui.reloadButton.click()
    user.settle()
    page.saveText.click()
    user.settle()
    with Pool.open(pool_folder, read_only=True) as pool:
        text = pool.get(case_id).rationale
        assert text.part("texture") == "Typed by hand." and text.part("boundary") == "Mended by a colleague."
    user.open(1)
    assert page.fields["diagnosis"].text == "" and page.parts["texture"].plainText != "Typed by hand."


def test_nothing_is_done_to_a_case_that_is_not_shown(user, pool_folder):
    user.choose(pool_folder)
    user.open(0)
    page, ids = user.case, user.ids()
    page.open(ids[1])  # its answer is still to come
    assert not any(b.enabled for b in (page.saveFields, page.saveText, *page.verdicts))
    page.onReview("excluded")
    user.settle()
    with Pool.open(pool_folder, read_only=True) as pool:
        assert pool.meta(ids[0])["review"] == "excluded" and pool.meta(ids[1])["review"] != "excluded", "what was on the screen"


def test_another_pool_ends_what_was_waited_for(user, pool_folder, tmp_path):
    with Pool.create(tmp_path / "other") as pool:
        for seed in range(3):
            pool.add(make_case(20 + seed))
    user.choose(pool_folder)
    session, answers = user.control.session, []
    assert session.work("pool_health", {}, answers.append)
    user.control.tabs.show(MAP)
    user.ui.poolPath.currentPath = str(tmp_path / "other")
    user.control.reload()  # and does not wait for the typing to end
    user.settle()
    assert not answers and not user.ui.progressBar.isVisible()
    assert session.work("pool_health", {}, answers.append), "nothing else is running any more"
    user.settle()
    assert answers and len(user.control.map.ids) in (0, 3)
    user.page(MAP)
    assert len(user.control.map.ids) == 3


def test_a_pool_that_was_put_back_is_opened_again(user, pool_folder, tmp_path):
    user.choose(pool_folder)
    shutil.copytree(pool_folder, tmp_path / "backup")
    pool_folder.rename(tmp_path / "away")
    (tmp_path / "backup").rename(pool_folder)
    user.ui.reloadButton.click()
    user.settle()
    assert len(user.ids()) == 5 and not _sentence_is_wrong(user)
    pool_folder.rename(tmp_path / "gone")
    user.ui.reloadButton.click()
    user.settle()
    assert "Send open_pool" not in user.ui.statusLabel.text + user.ui.messageLabel.text and user.control.info is None


def _sentence_is_wrong(user) -> bool:
    return "✖" in user.ui.messageLabel.text + user.ui.statusLabel.text


def test_a_filter_that_holds_nothing_any_more_is_left(user, pool_folder):
    user.choose(pool_folder)
    combo = user.cases.combos["review"]
    combo.setCurrentIndex(combo.findData("approved"))
    user.settle()
    assert len(user.ids()) == 1
    user.control.session.change("pool_review", {"ids": user.ids(), "review": "flagged", "note": None})
    user.settle()
    user.host.wait_for(lambda: len(user.ids()) == 5, 20, "all cases, as the filters say")
    assert combo.currentIndex == 0


def test_worker_that_died_is_started_again(user, pool_folder):
    user.choose(pool_folder)
    user.control.session.worker._process.kill()
    user.host.wait_for(lambda: user.control.session.worker.state == "stopped", 20)
    user.open(1)
    assert user.ids()[1] in user.case.title.text


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
