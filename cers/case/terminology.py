"""Colour and coded meaning of label names, from ``Resources/terminology.json``: one table for the command, the worker and Slicer."""

from __future__ import annotations

import json
from functools import lru_cache

from ..resources import resource


@lru_cache(maxsize=1)
def _table() -> dict:
    return json.loads(resource("terminology.json").read_text(encoding="utf-8"))


def label_style(name: str, position: int = 0) -> tuple[tuple[float, float, float], str]:
    """Colour (r, g, b in 0..1) and Slicer terminology entry of a label name.

    A name that the table lacks gets the ``position``-th colour of the palette, so that labels stay apart, and the entry of the longest
    known name that is a part of it ("left tumor"), else the default one, tissue: what nobody called a lesion must not be coded as one.
    """
    table = _table()
    row = table["labels"].get(name.strip().lower())
    if row is not None:
        return tuple(row["color"]), row["terminology"]
    words = f" {' '.join(name.lower().replace('_', ' ').split())} "
    parts = [known for known in table["labels"] if f" {known} " in words]
    entry = table["labels"][max(parts, key=len)]["terminology"] if parts else table["default"]
    return tuple(table["palette"][position % len(table["palette"])]), entry


def same_meaning(name: str, other: str) -> bool:
    """Whether two label names say the same, by name or, where the table has both, by their coded meaning: "lesion" and "tumor" do."""
    a, b = name.strip().lower(), other.strip().lower()
    labels = _table()["labels"]
    return a == b or (a in labels and b in labels and labels[a]["terminology"] == labels[b]["terminology"])
