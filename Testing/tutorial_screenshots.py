"""Takes the picture of "Label next" in Resources/TUTORIAL.md: real volumes and a pool of one of them, in the stand-in host.

make demo && .venv/bin/python Testing/tutorial_screenshots.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import readme_screenshot

ROOT = readme_screenshot.ROOT


def main() -> None:
    import os

    os.chdir(ROOT)  # so that the picture shows a short path
    import slicerhost
    from segmentkit import User

    from cers.demo import read_sample
    from cers.pool import Pool, import_volume
    from cers.sample import sample

    host = slicerhost.start()
    module = host.load_module(ROOT / "CERSSegment" / "CERSSegment.py")
    window = host.show_main_window(1280, 800, 400)
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        pool, scans = Path(folder) / "pool", Path(folder) / "new-scans"
        volume, mask = read_sample("brain2")
        with Pool.create(pool) as made:
            import_volume(made, volume, mask, {1: "tumor"}, annotator="A. Reader")
        scans.mkdir()
        for name in ("brain1", "breast1"):
            shutil.copy(sample(name)[0], scans / f"{name}.nrrd")
        user = User(host, host.enter_module(module))
        user.choose(None, pool)
        user.ui.annotatorEdit.setText("A. Reader")
        user.ui.inputsButton.collapsed = True
        user.ui.nextButton.collapsed = False
        user.ui.nextFolder.currentPath = str(scans)
        user.ui.rankButton.click()
        user.wait(3600)
        print(user.status())
        row = next(n for n, r in enumerate(user.control.labelNext.rows) if r["path"] == "brain1.nrrd")
        user.ui.nextTable.selectRow(row)
        user.ui.openButton.click()
        user.wait(3600)
        user.press()
        user.wait(3600)
        user.ui.addButton.click()
        user.wait(3600)
        print(user.status())
        user.ui.evidenceButton.collapsed = True
        user.ui.nextFolder.currentPath = "new-scans"
        host.process(1.5)
        host.screenshot(window, ROOT / "Resources" / "Screenshots" / "label_next.png")
    host.unload_modules()


if __name__ == "__main__":
    main()
