"""Options, tables and timing-only pools that the benchmarks share."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cers.errors import CersError

# Selection settings that let any case serve as a reference, so that each slice is decoded with the full number of them: the most costly
# case.
OPEN = {"visual_threshold": -1.0, "cot_threshold": 0.0, "max_contradictions": 99, "near_duplicate": 2.0}


def options(description: str, *, runs: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=runs, help=f"timed runs; the median is printed (default: {runs})")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--model", type=Path, help="model folder (default: the one that ships with CERS)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser


def program(main: Callable[[], int | None]) -> None:
    """``main`` as the whole of a process; what a user can mend is told in one sentence."""
    try:
        code = main()
    except (CersError, OSError) as error:
        named = isinstance(error, OSError) and error.filename
        print(f"Error: '{error.filename}': {error.strerror}." if named else f"Error: {error}", file=sys.stderr)
        code = 1
    sys.exit(code)


def machine(threads: int) -> dict:
    """What the figures depend on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": version("torch"),
        "faiss": version("faiss-cpu"),
    }


def cell(value) -> str:
    """A figure as it is printed, with three digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return str(value)


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence], given: argparse.Namespace, **more) -> None:
    """Print a table, and write it as JSON if asked to."""
    from rich.console import Console
    from rich.table import Table

    about = machine(given.threads)
    caption = (
        f"{about['cpu']}, {about['cores']} cores, {about['threads']} threads; Python {about['python']}, torch {about['torch']}; "
        f"median of {given.runs} runs"
    )
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 else "right")
    for row in rows:
        table.add_row(*(cell(v) for v in row))
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    if given.json:
        given.json.write_text(
            json.dumps(
                {"title": title, "machine": about, "runs": given.runs, "columns": list(columns), "rows": [list(r) for r in rows], **more},
                indent=1,
            )
            + "\n",
            encoding="utf-8",
        )


def median_ms(work: Callable[[], object], runs: int) -> float:
    """Median of the milliseconds that ``work`` takes."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def with_noise(volume, seed: int):
    """The volume with a little noise: new findings and texts, so that no cache shortens a run."""
    noise = np.random.default_rng(seed).normal(0, 0.02 * volume.array.std(), volume.array.shape)
    return replace(volume, array=(volume.array + noise).astype(np.float32), volume_id=None)


def lesion_slice(volume, mask: np.ndarray):
    """The slice with the largest lesion as a volume of its own. Both arrays are (k, j, i) of an axial acquisition."""
    from cers.case import Geometry

    k = int(mask.sum((1, 2)).argmax())
    matrix = volume.geometry.ijkToRAS.copy()
    matrix[:3, 3] = volume.geometry.ras((0, 0, k))
    return replace(volume, array=volume.array[k : k + 1], geometry=Geometry(matrix, (1, *volume.array.shape[1:])), volume_id=None)


def timing_pool(folder: Path, count: int = 40):
    """A pool in which every slice finds references: shifted, mirrored lesion slices of brain1, as if of ``count`` other patients.

    It is for timing only; masks decoded with it mean nothing.
    """
    from cers.case import Case
    from cers.demo import LABELS, read_sample
    from cers.pool import Pool
    from cers.rationale import describe

    volume, mask = read_sample("brain1")
    slices = np.flatnonzero(mask.any((1, 2)))
    spacing = (volume.geometry.spacing[1], volume.geometry.spacing[0])
    random = np.random.default_rng(0)
    pool = Pool.create(folder)
    for n in range(count):
        k, shift = int(slices[n % len(slices)]), tuple(int(v) for v in random.integers(-12, 13, 2))
        image, small = (np.roll(a[k], shift, (0, 1)) for a in (volume.array, mask))
        if n % 2:
            image, small = image[:, ::-1], small[:, ::-1]
        image = (image * random.uniform(0.8, 1.2) + random.normal(0, 20, image.shape)).astype(np.float32)
        rationale = describe(image, small > 0, spacing, modality="MR", plane="axial")
        pool.add(
            Case(
                image,
                small,
                LABELS,
                spacing=spacing,
                plane="axial",
                patient_id=f"timing-{n}",
                volume_id=f"timing-{n}",
                modality="MR",
                body_site="brain",
                rationale=rationale,
            )
        )
    return pool


def between(row: dict, form: str = ".3f", factor: float = 1.0) -> str:
    """ " [0.790, 0.834]" of a mean with its interval, nothing where it has none: of one picture, or of one group."""
    return "" if row["low"] is None else f" [{factor * row['low']:{form}}, {factor * row['high']:{form}}]"
