"""Makes the pictures of CERS Knowledge Pool in README and tutorial: a copy of the demonstration's pool, in the stand-in host.

    make demo && .venv/bin/python Testing/pool_screenshots.py

Nothing is sent: the page of rationales is shown in its preview.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import readme_screenshot

ROOT = readme_screenshot.ROOT
OUT = ROOT / "Resources" / "Screenshots"


def look(page):
    page.list.look()
    return page.list.current


def train(host, page, folder: Path) -> None:
    """A real run of some minutes on made-up heads with a bright lesion, until it has been validated five times."""
    sys.path.append(str(ROOT / "Testing" / "training"))
    from pictures import write

    from cers.training import runs

    settings = {**page.form.settings(), "data": str(write(folder / "made-up heads", 80)), "minutes": 5, "size": 128, "validate": 10}
    assert page._begin({**settings, "allow_leaks": True}, "made-up heads"), page.result.text
    host.wait_for(lambda: look(page) is not None and look(page).live, 300, "the start of the training")
    history = runs.History(page.list.current.folder)

    def validations() -> int:
        look(page)
        history.update()
        return len(history.curves["plain"])

    host.wait_for(lambda: validations() >= 5 or not page.list.current.live, 600, "five validations")
    page.new.collapsed = True
    host.process(2.0)


def main() -> None:
    import slicerhost

    host = slicerhost.start()
    from poolroom import CASES, HEALTH, MAP, RATIONALES, TRAINING, User

    for name in ("CERSSegment", "CERSKnowledgePool"):
        host.load_module(ROOT / name / f"{name}.py")
    before = Path.cwd()
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        shutil.copytree(ROOT / "demo" / "pool", Path(folder) / "my-pool")  # the demonstration's own one stays as it is
        os.environ["CERS_CONFIG"] = folder
        os.chdir(folder)  # so that the picture shows a short path
        window = host.show_main_window(1280, 800, 520)
        user = User(host, host.enter_module(host.slicer.modules.cersknowledgepool))
        control = user.control
        user.choose(Path(folder) / "my-pool")
        user.open(0)
        control.case.openInViews()
        control.say("")
        control.cases.table.select(user.ids()[0])

        def shoot(number: int, name: str) -> None:
            user.page(number)
            for page in (control.rationales, control.models):
                host.wait_for(lambda page=page: not page.busy, 300, "the page")
            shown = user.ui.poolPath.currentPath
            user.ui.poolPath.blockSignals(True)
            user.ui.poolPath.currentPath = "my-pool"
            host.process(1.0)
            host.screenshot(window, OUT / name)
            user.ui.poolPath.currentPath = shown
            user.ui.poolPath.blockSignals(False)

        shoot(CASES, "knowledge_pool.png")
        user.page(HEALTH)
        control.health.button.click()
        user.settle()
        user.page(MAP)
        control.map.facet.setCurrentIndex(control.map.facet.findData("body_site"))
        shoot(MAP, "pool_map.png")
        page = control.rationales
        user.page(RATIONALES)
        page.writer.setCurrentIndex(page.writer.findData("endpoint"))
        page.url.setText("http://localhost:11434/v1")
        page.model.setText("qwen3:8b")
        page.withPicture.setChecked(True)
        host.wait_for(lambda: not page.busy, 60, "the page")
        page.preview.click()
        host.wait_for(lambda: not page.busy, 300, "the preview")
        shoot(RATIONALES, "rationales.png")
        control.training.root.currentPath = "CERS training"
        shoot(TRAINING, "training.png")
        train(host, control.training, Path(folder))
        shoot(TRAINING, "training_curves.png")
        control.training.stop.click()
        host.wait_for(lambda: not look(control.training).live, 120, "the end of the training")
        host.qt.QSettings().remove("CERS/RunsFolder")
        for name in ("url", "model", "variable", "local"):
            host.qt.QSettings().remove("CERS/Writer/" + name)
        user.choose("")
        os.chdir(before)
    host.unload_modules()


if __name__ == "__main__":
    main()
