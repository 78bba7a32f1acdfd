"""What three planes are worth, from how far across its slices a volume must reach for them, and what decoding from coarse to fine costs.

    python -m benchmarks.planes --volumes FOLDER

Volumes: brain1, and the folders ``brats_*`` of FOLDER with ``t1c.nii.gz`` and ``label.nii.gz``. Each is read whole and as slabs of 5 mm (or
its own) slices around the middle of its lesion, without a pool. "Dense" decodes every slice of the three planes.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from benchmarks.accuracy import TUMOR_CORE
from benchmarks.common import machine, program
from cers.case import Geometry, Volume
from cers.errors import InputError
from cers.evaluation.metrics import dice

THICK_MM = 5.0  # slices thinner than half of it are averaged to about it for the slabs


def read(folder: Path | None) -> list[tuple[str, Volume, np.ndarray]]:
    """(name, volume, lesion bool) of each."""
    from cers.case.io import read_mask, read_volume
    from cers.demo import read_sample

    volume, truth = read_sample("brain1")
    out = [("brain1", volume, truth > 0)]
    found = sorted(folder.glob("brats_*")) if folder else []
    if folder and not found:
        raise InputError(f"There is no folder brats_* in '{folder}'. Give the folder that holds them, or leave --volumes out.")
    for path in found:
        volume = read_volume(path / "t1c.nii.gz", modality="MR", body_site="brain")
        out.append((path.name, volume, np.isin(read_mask(path / "label.nii.gz", volume.geometry)[0], TUMOR_CORE)))
    return out


def cut(volume: Volume, truth: np.ndarray, first: int, last: int, step: int = 1) -> tuple[Volume, np.ndarray]:
    """Slices ``first`` to ``last`` (exclusive) of an axial volume, ``step`` of them averaged to one."""
    count = (last - first) // step
    pick = slice(first, first + count * step)
    array = volume.array[pick].reshape(count, step, *volume.array.shape[1:]).mean(1).astype(volume.array.dtype)
    inside = truth[pick].reshape(count, step, *truth.shape[1:]).mean(1) >= 0.5
    matrix = volume.geometry.ijkToRAS.copy()
    matrix[:3, 3] = volume.geometry.ras(np.array([0.0, 0.0, first + (step - 1) / 2]))
    matrix[:3, 2] *= step
    return replace(volume, array=array, geometry=Geometry(matrix, array.shape)), inside


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--volumes", type=Path, help="folder with brats_* folders")
    parser.add_argument("--mm", type=float, nargs="*", default=[50, 80, 100, 120], help="how far the slabs reach across their slices")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from cers.inference import Segmenter, load_model

    model = load_model(given.model, threads=given.threads)
    segmenter = Segmenter(model)
    rows = []

    def measure(name: str, what: str, volume: Volume, truth: np.ndarray, planes: str) -> None:
        start = time.perf_counter()
        found = segmenter.segment(volume, planes, influence=False)
        seconds = time.perf_counter() - start
        # without a pool there is evidence of every slice that was decoded
        row = {
            "volume": name,
            "part": what,
            "planes": planes,
            "taken": found.provenance["settings"]["planes"],
            "dice": round(dice(found.labelmap > 0, truth), 4),
            "slices": len(found.evidence),
            "seconds": round(seconds, 2),
        }
        rows.append(row)
        print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)

    for name, volume, truth in read(given.volumes):
        for planes in ("acquisition", "three", "auto"):
            measure(name, "whole", volume, truth, planes)
        with patch("cers.inference.planes.COARSE_MM", 0.0):
            measure(name, "whole, dense", volume, truth, "three")
        thickness = volume.geometry.spacing[2]
        step = max(1, round(THICK_MM / thickness)) if thickness < THICK_MM / 2 else 1
        lesion = np.flatnonzero(truth.any((1, 2)))
        middle, mm = (lesion[0] + lesion[-1]) // 2, thickness * step
        for reach in given.mm:
            count = max(1, int(np.ceil(reach / mm)))
            first = int(np.clip(middle - count * step // 2, 0, max(0, len(truth) - count * step)))
            part, inside = cut(volume, truth, first, min(len(truth), first + count * step), step)
            for planes in ("acquisition", "three"):
                measure(name, f"{len(inside)} slices of {mm:.3g} mm", part, inside, planes)
    if given.json:
        result = {"machine": machine(given.threads), "model": model.hash, "rows": rows}
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)
