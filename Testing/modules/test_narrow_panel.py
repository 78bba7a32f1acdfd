"""Every page of the knowledge pool module fits into a narrow panel, also with long names."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from poolroom import (  # noqa: F401 - fixtures
    CASES,
    HEALTH,
    HISTORY,
    IMPORT,
    MAP,
    MODELS,
    RATIONALES,
    TRAINING,
    make_case,
    own_panel,
    pool_folder,
    user,
)
from test_models_page import resultOf

from cers.inference.tiny import tiny_model
from cers.pool import Pool
from cers.training import runs

BATCH = {"groups": 16, "members": 5, "unlabelled_members": 12, "size": 224}
REPORT = {
    "counts": {"labelled": 120000, "unlabelled": 120000, "validation": 1200},
    "groups": 3,
    "split_by": "group",
    "may_start": True,
    "estimate": {"steps": None, "fits": False, "proposal": BATCH, "memory": None, "memory_free": 1e9, "device": "cuda"},
}


def finished_run(root: Path, name: str) -> Path:
    folder = runs.new_folder(root, name)
    runs.write_record(folder / runs.SETTINGS, {"data": "x"})
    status = {"state": "failed", "step": 123456, "steps": 200000, "updated": 1.7e9, "error": f"'{name}' is gone.", "proposal": BATCH}
    runs.write_record(folder / runs.STATUS, status)
    lines = [{"step": s, "loss": 0.1, "validation_plain": 0.8, "validation_null": 0.8, "validation_retrieved": 0.9} for s in (1, 2, 3)]
    (folder / runs.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / runs.EXAMPLES).mkdir()
    for step in (100000, 123456):
        Image.new("RGB", (900, 120)).save(folder / runs.EXAMPLES / f"step_{step:07d}.png")
    return root


def test_pages_fit_into_a_narrow_panel(own_panel, user, pool_folder, screenshots, tmp_path):
    """A panel of 400 pixels leaves 376 to a page, and 360 beside a scroll bar; words that nothing breaks may be as long as they are."""
    long = "T1_contrast_fold_3_of_5_first_try_with_unlabelled_pictures_of_2019_and_2020"
    with Pool.open(pool_folder) as pool:
        named = pool.add(make_case(9, patient_id=long, source=f"{long}.nii.gz", diagnosis=long))
    user.choose(pool_folder)
    split = next(s for s in user.host.window.findChildren(user.host.qt.QSplitter) if s.isAncestorOf(user.ui.healthPage))
    before = split.sizes()
    split.setSizes([400, 1000])
    control = user.control
    cases, health, rationales, training, models = control.cases, control.health, control.rationales, control.training, control.models

    wide = []

    def fits(name: str) -> None:
        user.host.process(0.1)
        page = getattr(user.ui, name + "Page")
        hint = page.minimumSizeHint
        needs = (hint() if callable(hint) else hint).width()
        user.host.screenshot(user.host.window, screenshots / f"knowledge_pool_{name}_narrow.png")
        assert page.isVisible()
        if needs > 360 or page.width > 376:
            wide.append((name, needs, page.width))

    user.page(CASES)
    cases.found.setText(f"The pictures of {long} are alike.")
    control.say(f"The file '{tmp_path / long}' cannot be read.", wrong=True, undo=lambda: None)
    fits("cases")
    control.openCase(named)
    user.settle()
    fits("case")
    user.page(MAP)
    fits("map")
    user.page(HEALTH)
    health._showUses({"records": True, "images": 12345, "since": "2026-11-27"})
    message = "The picture of case 1.2.840.113619.2.55.3.604688119.969.1268071029.320 is also that of another patient."
    health.show({"findings": [{"kind": "duplicate", "ids": user.ids(), "message": message}]})
    health._onProgress(0.4, "Segmenting case 100 of 100 without itself")
    for widget in (health.progress, health.cancel):
        widget.setVisible(True)
    assert "12,345 images" in health.recorded.text and "without itself" in health.tried.text
    fits("health")
    health.clear()
    user.page(RATIONALES)
    user.host.wait_for(lambda: not rationales.busy, 60, "the page")
    for kind in range(3):
        rationales.writer.setCurrentIndex(kind)
        fits("rationales")
    rationales.writer.setCurrentIndex(0)
    user.page(IMPORT)
    for kind in range(control.importing.source.count):
        control.importing.source.setCurrentIndex(kind)
        fits("import")
    control.importing.source.setCurrentIndex(0)
    user.page(HISTORY)
    fits("history")
    user.page(TRAINING)
    training.new.collapsed = training.form.advanced.collapsed = False
    training.form.offerLeaks(True)
    training._wrong(f"The folder '{tmp_path / long}' holds no pictures.")
    fits("training")
    report = {**REPORT, "labels": [long], "leaks": {"found": True, "words": long}}
    training._onReport(training.form.settings(), report)
    assert not training.apply.isHidden() and not training.form.leaks.isHidden()
    fits("training")
    root = finished_run(tmp_path / "runs", long)
    training.root.currentPath = str(root)
    training.list.select(long)
    assert not training.view.curves.isHidden() and not training.view.exampleFrame.isHidden()
    fits("training")
    training.form.fill({})
    training.root.currentPath = str(tmp_path / "nothing")
    user.page(MODELS)
    user.host.wait_for(lambda: not models.busy, 60, "the models")
    tiny_model(tmp_path / "model", size=64)
    resultOf(tmp_path / "model")
    entry = {**models.entries[0], "name": long, "source": f"/home/{long}/{long}", "shipped": False}
    measured = {**entry, "id": "measured", "folder": str(tmp_path / "model")}
    models._fill([*models.entries, measured, {**entry, "id": "broken", "problem": f"'{long}' is damaged."}], "broken")
    fits("models")
    models.select("measured")
    user.host.process(0.5)
    assert not models.view.evidence.isHidden() and not models.view.cases.isHidden()
    fits("models")
    split.setSizes(before)
    assert wide == []


def test_pages_fit_into_400_pixels_with_a_large_font(own_panel, user):
    """Letters of 14 points; what is hidden as long as there is no pool counts, too."""
    control, app = user.control, user.host.app
    before = app.font if not callable(app.font) else app.font()
    font = user.host.qt.QFont(before)
    font.setPointSizeF(14)
    app.setFont(font)
    try:
        control.case.body.setVisible(True)
        control.training.new.collapsed = control.training.form.advanced.collapsed = False
        frames = (
            *control.rationales.frames.values(),
            *control.importing.frames.values(),
            control.training.view.frame,
            control.models.view.frame,
        )
        for frame in frames:
            frame.setVisible(True)
        wide = {}
        for number, page in enumerate(control.tabs._pages):
            control.tabs.show(number)
            user.host.process(0.1)
            panel = user.ui.pages.parentWidget()  # with what is above the pages
            hint = panel.minimumSizeHint
            wide[page.objectName] = (hint() if callable(hint) else hint).width()
        assert {name: width for name, width in wide.items() if width > 400} == {} and len(wide) == 9
    finally:
        app.setFont(before)
