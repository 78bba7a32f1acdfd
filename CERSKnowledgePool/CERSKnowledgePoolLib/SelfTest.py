"""Checks that run inside the application: a pool is made, filled, shown and mended."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import slicer

WITHIN = 120  # seconds


def wait(condition) -> None:
    """Lets the application work until a condition holds."""
    end = time.monotonic() + WITHIN
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("The pool did not answer in time.")
        slicer.app.processEvents()


def show(module, folder: str) -> None:
    """Have the panel show a pool, and wait for it."""
    module.ui.poolPath.currentPath = folder
    module.control.reload()
    wait(lambda: not module.control.busy)


def run(test) -> None:
    """Args: test: a ``unittest.TestCase``."""
    from cers.case import Case
    from cers.pool import Pool

    module = slicer.util.getModuleWidget("CERSKnowledgePool")
    control, before = module.control, module.ui.poolPath.currentPath
    with tempfile.TemporaryDirectory() as folder:
        mask = np.zeros((40, 50), np.uint8)
        mask[10:20, 15:30] = 1
        image = np.random.default_rng(0).normal(100, 10, mask.shape).astype(np.float32) + 80 * mask
        path = Path(folder) / "pool"
        with Pool.create(path) as pool:
            case_id = pool.add(Case(image, mask, {1: "tumor"}, modality="MR", body_site="brain", plane="axial"))
        try:
            show(module, str(path))
            test.assertEqual(control.cases.table.ids, [case_id])
            control.openCase(case_id)
            wait(lambda: control.case.content is not None)
            test.assertIn(case_id, control.case.title.text)
            control.session.change("pool_review", {"ids": [case_id], "review": "approved"})
            wait(lambda: control.case.review.text == "approved")
            show(module, folder)
            test.assertFalse(module.control.tabs.isEnabled(0))
        finally:
            show(module, before)
            control.session.stop()
    slicer.util.delayDisplay("CERS Knowledge Pool: passed")
