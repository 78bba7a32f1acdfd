"""Checks that run inside the application: a pool is made, shown and left as it was."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import slicer

from . import PoolReader


def show(module, folder: str) -> None:
    """Have the panel show a pool, and wait for it."""
    module.ui.poolPath.currentPath = folder
    module.control.reload()
    while module.control.busy:
        slicer.app.processEvents()


def run(test) -> None:
    """Args: test: a ``unittest.TestCase``."""
    module = slicer.util.getModuleWidget("CERSKnowledgePool")
    before = module.ui.poolPath.currentPath
    with tempfile.TemporaryDirectory() as folder:
        pool_module = PoolReader._pool()
        from cers.case import Case

        mask = np.zeros((40, 50), np.uint8)
        mask[10:20, 15:30] = 1
        image = np.random.default_rng(0).normal(100, 10, mask.shape).astype(np.float32) + 80 * mask
        path = Path(folder) / "pool"
        with pool_module.Pool.create(path) as pool:
            case_id = pool.add(Case(image, mask, {1: "tumor"}, modality="MR", body_site="brain", plane="axial"))
        try:
            show(module, str(path))
            test.assertEqual(module.ui.caseTable.rowCount, 1)
            test.assertIn(case_id, module.ui.caseText.plainText)
            show(module, folder)
            test.assertFalse(module.ui.caseTable.isVisible())
        finally:
            show(module, before)
    slicer.util.delayDisplay("CERS Knowledge Pool: passed")
