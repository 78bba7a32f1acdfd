"""What PythonQt shows of the Slicer and CTK classes that the host stands in for, from api_facts.json."""

from __future__ import annotations

import json
from pathlib import Path

CLASSES: dict[str, dict] = json.loads((Path(__file__).parent / "api_facts.json").read_text(encoding="utf-8"))["classes"]
KINDS = ("properties", "callable", "signals", "enums")


def lineage(name: str) -> list[str]:
    """A class and those of its bases that are described, the nearest first."""
    names = [name]
    for n in names:  # grows as bases are met
        names += [b for b in CLASSES[n].get("bases", ()) if b in CLASSES and b not in names]
    return names


def members(name: str, *kinds: str) -> set[str]:
    """Names that Python sees of a class and its described bases; of some ``KINDS`` only, or of all."""
    return {member for n in lineage(name) for kind in (kinds or KINDS) for member in CLASSES[n].get(kind, ())}


def qt_bases(name: str) -> list[str]:
    """The classes of Qt itself that a class derives from."""
    return [b for n in lineage(name) for b in CLASSES[n].get("bases", ()) if b not in CLASSES]
