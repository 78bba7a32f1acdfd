"""Colour and coded meaning of label names, from ``Resources/terminology.json``: one table for the command, the worker and Slicer."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from ..errors import CersError

# beside the package in the source tree and in Slicer, inside it in a wheel
_PLACES = (Path(__file__).parents[2] / "Resources" / "terminology.json", Path(__file__).parents[1] / "Resources" / "terminology.json")


@lru_cache(maxsize=1)
def _table() -> dict:
    for path in _PLACES:
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    raise CersError("Resources/terminology.json is missing from the installation. Install CERS again.")


def label_style(name: str, position: int = 0) -> tuple[tuple[float, float, float], str]:
    """Colour (r, g, b in 0..1) and Slicer terminology entry of a label name.

    A name that the table lacks gets the default entry and the ``position``-th colour of the palette, so that labels stay apart.
    """
    table = _table()
    row = table["labels"].get(name.strip().lower())
    if row is not None:
        return tuple(row["color"]), row["terminology"]
    return tuple(table["palette"][position % len(table["palette"])]), table["default"]
