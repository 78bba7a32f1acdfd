"""The whole of brain1 (25 slices of 256 x 256) with the demonstration's pool: in a new process, and again in the same one.

Along the plane of acquisition, and as it is done by itself ("auto"), which takes three planes for this volume.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .common import options, peak_mb, program, report, with_noise


def once(model_folder: Path | None, threads: int, folder: Path) -> dict[str, float]:
    """Seconds of each step in this process, and its peak memory."""
    out, start = {}, time.perf_counter()

    def lap(step: str) -> None:
        nonlocal start
        out[step], start = time.perf_counter() - start, time.perf_counter()

    from cers.demo import read_sample
    from cers.inference import Segmenter, load_model
    from cers.pool import Pool

    model = load_model(model_folder, threads=threads)
    lap("imports and model")
    volume, _ = read_sample("brain1")
    lap("read image")
    with Pool.open(folder) as pool:
        segmenter = Segmenter(model, pool)
        segmenter.segment(volume, "acquisition")
        lap("first segmentation, acquisition plane")
        out["cold, from process start"] = sum(out.values())
        warm = {"acquisition": [], "auto": []}
        for n in range(3):
            for planes, seconds in warm.items():
                noisy = with_noise(volume, n)
                lap("noise")
                segmenter.segment(noisy, planes)
                lap("segment")
                seconds.append(out["segment"])
    out |= {f"warm, {planes}": statistics.median(seconds) for planes, seconds in warm.items()}
    return {**{k: v for k, v in out.items() if k not in ("noise", "segment")}, "peak memory, MB": peak_mb()}


def main() -> int:
    parser = options(__doc__, runs=3)
    parser.add_argument("--once", type=Path, metavar="POOL", help="measure in this process and print JSON; used by the benchmark itself")
    given = parser.parse_args()
    if given.once:
        print(json.dumps(once(given.model, given.threads, given.once)))
        return 0

    from cers.demo import build_pool
    from cers.inference import Segmenter, load_model

    with tempfile.TemporaryDirectory(prefix="cers-bench-") as folder:
        pool_folder = Path(folder) / "pool"
        with build_pool(pool_folder) as pool:
            from cers.inference import embed_pool

            model = load_model(given.model, threads=given.threads)
            embed_pool(model, pool, Segmenter(model, pool).embedder)
        command = [sys.executable, "-m", "benchmarks.brain1", "--once", str(pool_folder), "--threads", str(given.threads)]
        command += ["--model", str(given.model)] if given.model else []
        found = [
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
            for _ in range(given.runs)
        ]
    rows = [(step, statistics.median(f[step] for f in found)) for step in found[0]]
    report("brain1, seconds", ["step", "s"], rows, given)
    return 0


if __name__ == "__main__":
    program(main)
