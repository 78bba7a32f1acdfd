"""Small made-up cases for the pool's tests, and a way to run a piece of Python in a process of its own."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np

from cers.case import Case, Rationale, Statement

ROOT = Path(__file__).resolve().parents[2]


def case(n: int = 0, *, size: int = 48, **fields) -> Case:
    """A picture that differs from every other ``n`` in all its pixels, with one lesion."""
    rng = np.random.default_rng(n)
    image = rng.integers(0, 1000, (size, size)).astype(np.int16)
    mask = np.zeros((size, size), np.uint8)
    mask[10:20, 12 + n % 8 : 30] = 1
    return Case(image, mask, {1: "tumor"}, **fields)


def overwrite(folder: Path, column: str, value: str) -> None:
    """Put a value into a column of all cases, past the store and its checks, as damage or a stranger would."""
    with sqlite3.connect(folder / "pool.sqlite") as db:
        db.execute(f"UPDATE cases SET {column} = ?", (value,))
    db.close()


def rationale(text: str = "Homogeneous.", **descriptors: float) -> Rationale:
    return Rationale([Statement("texture", text)], dict(descriptors))


def python(code: str, *args: object, wait: bool = True, **kwargs):
    """Run ``code`` in a new process; sys.argv[1:] are ``args``. With ``wait`` it must end well."""
    prefix = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
    command = [sys.executable, "-c", prefix + code, *map(str, args)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, **kwargs}
    if not wait:
        return subprocess.Popen(command, **options)
    done = subprocess.run(command, timeout=120, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout
