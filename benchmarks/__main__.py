"""Run every benchmark; ``--write`` also puts the figures into RESULTS.md, between the markers there."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from .common import cell, machine

NAMES = ("speed", "brain1", "retrieval", "worker", "training")
RESULTS = Path(__file__).with_name("RESULTS.md")


def markdown(result: dict) -> str:
    """One benchmark's JSON as a table in Markdown."""
    rows = [result["columns"], ["---"] + ["---:"] * (len(result["columns"]) - 1), *([cell(v) for v in row] for row in result["rows"])]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if "peak_mb" in result:
        lines += ["", f"Peak memory of the process: {result['peak_mb']:.0f} MB."]
    return "\n".join(lines)


def words(about: dict) -> str:
    """The machine and its versions in one line, which holds for all figures in RESULTS.md."""
    versions = f"Python {about['python']}, torch {about['torch']}, faiss {about['faiss']}"
    return f"{about['cpu']}, {about['cores']} cores; {about['system']}, {versions}."


def fill(text: str, found: dict[str, str]) -> str:
    """The text with everything between ``<!-- NAME -->`` and ``<!-- /NAME -->`` replaced."""
    for name, block in found.items():
        text, count = re.subn(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: m[1] + block + "\n" + m[2], text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{RESULTS.name} needs the markers <!-- {name} --> and <!-- /{name} --> once.")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the figures into RESULTS.md")
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}; default all")
    given = parser.parse_args()
    if unknown := set(given.only) - set(NAMES):
        parser.error(f"unknown benchmark {min(unknown)}")
    some = set(NAMES) - set(given.only or NAMES)
    if given.write and some and f"-->\n{words(machine(1))}\n<!-- /machine" not in RESULTS.read_text(encoding="utf-8"):
        parser.error(f"the other figures in {RESULTS.name} are of another machine or other versions than these; write all, or none")
    found = {}
    with tempfile.TemporaryDirectory(prefix="cers-bench-") as folder:
        for name in given.only or NAMES:
            file = Path(folder) / f"{name}.json"
            if code := subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--json", str(file)]).returncode:
                return code
            result = json.loads(file.read_text(encoding="utf-8"))
            found[name] = markdown(result)
            found["machine"] = words(result["machine"])
    if given.write:
        RESULTS.write_text(fill(RESULTS.read_text(encoding="utf-8"), found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
