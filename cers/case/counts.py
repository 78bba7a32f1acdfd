"""How many slices hold a lesion and how many of those have references, plane by plane: slices of different planes show the same lesion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..words import plural


@dataclass
class PlaneCount:
    """Decoded slices of one plane: all, those with a lesion, and those of them that were decoded with references."""

    slices: int = 0
    lesion: int = 0
    with_references: int = 0


def by_plane(slices: Iterable[Mapping]) -> dict[str, PlaneCount]:
    """Counts by plane of evidence in its JSON form (see ``Evidence.to_dict``), in the order in which the planes come."""
    out: dict[str, PlaneCount] = {}
    for entry in slices:
        count = out.setdefault(entry["plane"], PlaneCount())
        count.slices += 1
        count.lesion += bool(entry["pixels"])
        count.with_references += bool(entry["pixels"] and entry["references"])
    return out


def slices_words(counts: Mapping[str, PlaneCount]) -> str:
    """For instance "7 of 22 axial, 60 of 131 coronal slices decoded"."""
    words = ", ".join(f"{c.lesion} of {c.slices} {plane}" for plane, c in counts.items())
    return f"{words} {plural(sum(c.slices for c in counts.values()), 'slice')} decoded"


def references_words(counts: Mapping[str, PlaneCount]) -> str:
    """For instance "references for 1 of 7 axial, 0 of 60 coronal lesion slices"; planes without a lesion are left out."""
    words = ", ".join(f"{c.with_references} of {c.lesion} {plane}" for plane, c in counts.items() if c.lesion)
    return f"references for {words} lesion {plural(sum(c.lesion for c in counts.values()), 'slice')}"
