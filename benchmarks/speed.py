"""Milliseconds per slice by step, with five references each: one slice alone, and a slice of a whole volume."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch  # noqa: F401  before faiss, so that one OpenMP runtime serves both

from cers.demo import read_sample
from cers.inference import Segmenter, load_model

from .common import OPEN, lesion_slice, options, peak_mb, program, report, timing_pool, with_noise


def measure(segmenter: Segmenter, volume, runs: int) -> tuple[dict[str, float], int]:
    """Median milliseconds of each step over ``runs`` runs, and the number of slices that were decoded."""
    seconds = []
    for n in range(runs + 1):
        segmenter.embedder.forget()  # the noise seldom changes the words of a single slice
        prediction = segmenter.segment(with_noise(volume, n), "acquisition")
        seconds.append(prediction.seconds)
    return {step: 1000 * statistics.median(s[step] for s in seconds[1:]) for step in seconds[0]}, len(prediction.evidence)


def main() -> int:
    parser = options(__doc__, runs=9)
    parser.add_argument("--size", type=int, default=224, help="the network's input, pixels a side (default: 224, whatever the model's own)")
    given = parser.parse_args()
    volume, mask = read_sample("brain1")
    with tempfile.TemporaryDirectory(prefix="cers-bench-") as folder:
        model = load_model(given.model, threads=given.threads)
        model.config.size = given.size
        model.config.selection = {**model.config.selection, **OPEN}
        with timing_pool(Path(folder) / "pool") as pool:
            segmenter = Segmenter(model, pool)
            one, _ = measure(segmenter, lesion_slice(volume, mask), given.runs)
            used = max(len(e.references) for e in segmenter.session.prediction.evidence)
            whole, slices = measure(segmenter, volume, max(3, given.runs // 3))
    steps = [s for s in one if s not in ("total", "influence")]
    rows = [(step, one[step], whole[step] / slices) for step in steps]
    rows.append(("slice with evidence", one["total"] - one["influence"], (whole["total"] - whole["influence"]) / slices))
    rows.append(("influence of each reference", one["influence"], whole["influence"] / slices))
    rows.append(("total", one["total"], whole["total"] / slices))
    report(
        f"Milliseconds per slice at {model.config.size} x {model.config.size}, {used} references",
        ["step", "one slice", f"of {slices} slices"],
        rows,
        given,
        peak_mb=peak_mb(),
    )
    print(f"Peak memory of the process: {peak_mb():.0f} MB")
    return 0


if __name__ == "__main__":
    program(main)
