"""Colour and coded meaning of label names, from ``Resources/terminology.json``: one table for the command, the worker and Slicer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from colorsys import hsv_to_rgb
from functools import lru_cache
from itertools import chain, count

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


def label_styles(names: Iterable[str]) -> list[tuple[tuple[float, float, float], str]]:
    """``label_style`` of the labels of one segmentation, in order, no two of one colour: those that the table knows keep theirs first."""
    names, known, out = list(names), _table()["labels"], {}
    for n in sorted(range(len(names)), key=lambda n: names[n].strip().lower() not in known):
        color, entry = label_style(names[n], n)
        taken = [c for c, _ in out.values()]
        others = (tuple(c) for c in _table()["palette"])
        more = (hsv_to_rgb(0.618 * m % 1, 0.55, 0.9) for m in count(1))  # hues that follow the golden ratio lie far apart
        out[n] = next(c for c in chain([color], others, more) if c not in taken), entry
    return [out[n] for n in range(len(names))]


def same_meaning(name: str, other: str) -> bool:
    """Whether two label names say the same, by name or, where the table has both, by their coded meaning: "lesion" and "tumor" do."""
    a, b = name.strip().lower(), other.strip().lower()
    labels = _table()["labels"]
    return a == b or (a in labels and b in labels and labels[a]["terminology"] == labels[b]["terminology"])
