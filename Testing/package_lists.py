"""Compares the file lists in the CMake files with the tree; ``python Testing/package_lists.py`` brings them up to date.

Slicer packages only what its CMake files name, and stops at a name that does not exist.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SKIPPED = {"__pycache__", "CMakeLists.txt"}


def _files(folder: Path, pattern: str) -> list[str]:
    """Paths below ``folder``, '/'-separated and sorted."""
    found = (p for p in folder.rglob(pattern) if p.is_file() and not _SKIPPED.intersection(p.parts) and not p.name.startswith("."))
    return sorted(p.relative_to(folder).as_posix() for p in found)


def expected() -> dict[tuple[str, str], list[str]]:
    """(CMake file, name of its list) -> the files that it should hold, relative to the CMake file."""
    lists: dict[tuple[str, str], list[str]] = {}
    for folder in ("cers", "CERSSegment", "CERSKnowledgePool"):
        scripts = _files(ROOT / folder, "*.py")
        others = [f for f in _files(ROOT / folder, "*") if not f.endswith((".py", ".pyc"))]
        lists[f"{folder}/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"] = scripts
        lists[f"{folder}/CMakeLists.txt", "MODULE_PYTHON_RESOURCES"] = others
    shared = [f for f in _files(ROOT / "Resources", "*") if f.startswith(("model/", "prompts/")) or "/" not in f and f.endswith(".json")]
    lists["CMakeLists.txt", "CERS_RESOURCES"] = [f"Resources/{f}" for f in shared]
    return lists


def _pattern(name: str) -> re.Pattern:
    return re.compile(rf"(set\({name}\n)(.*?)(  \))", re.DOTALL)


def listed(cmake_file: str, name: str) -> list[str]:
    """The files that a CMake file names in one list.

    Raises:
        ValueError: it has no such list, or a comment or variable within it.
    """
    match = _pattern(name).search((ROOT / cmake_file).read_text(encoding="utf-8"))
    if match is None or set("#$") & set(match[2]):
        raise ValueError(f"{cmake_file} has no plain list {name}")
    return match[2].split()


def update() -> list[str]:
    """Write the lists; returns the CMake files that changed."""
    changed = []
    for (cmake_file, name), files in expected().items():
        path = ROOT / cmake_file
        text = path.read_text(encoding="utf-8")
        lines = "".join(f"  {f}\n" for f in files)
        new = _pattern(name).sub(lambda m, lines=lines: m[1] + lines + m[3], text)
        if new != text:
            path.write_text(new, encoding="utf-8", newline="\n")
            changed.append(cmake_file)
    return changed


if __name__ == "__main__":
    print(*(update() or ["The lists are up to date."]), sep="\n")
    sys.exit(0)
