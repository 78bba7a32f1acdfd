"""Makes the picture of CERS Segment in the README: the demonstration's volume and pool, in the stand-in host.

make demo && .venv/bin/python Testing/readme_screenshot.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkOSOpenGLRenderWindow")
os.environ.setdefault("PYSIDE6_OPTION_PYTHON_ENUM", "2")
sys.path[:0] = [str(ROOT / "Testing" / "Host"), str(ROOT / "Testing" / "modules"), str(ROOT)]


def main() -> None:
    os.chdir(ROOT)  # so that the picture shows a short path
    import slicerhost
    from segmentkit import User

    from cers.sample import sample

    host = slicerhost.start()
    import slicer

    module = host.load_module(ROOT / "CERSSegment" / "CERSSegment.py")
    window = host.show_main_window(1360, 860, 400)
    volume = slicer.util.loadVolume(str(sample("brain1")[0]))
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    user = User(host, host.enter_module(module))
    user.segment(volume, "demo/pool")
    print(user.status())
    user.control.evidence.board.click()
    model = user.control.controller.model
    covered = [key for key, entry in model.slices.items() if entry["pixels"] and len(entry["references"]) > 1]
    if covered:
        user.control.controller.show(max(covered, key=lambda key: model.slices[key]["pixels"]))
    host.process(1.5)
    host.screenshot(window, ROOT / "Resources" / "Screenshots" / "segment.png")
    host.unload_modules()


if __name__ == "__main__":
    main()
