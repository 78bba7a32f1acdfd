"""How a measured finding reads: terms and sentences for each category of ``writer.THRESHOLDS``.

The short words of that table are what is embedded; here is what a radiologist reads. Both are chosen by the same index.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..case.sizes import digits

# one term for each word of the table, in its order; a name that is missing here reads as in the table
TERMS: dict[str, tuple[str, ...]] = {
    "glcm_entropy": ("fine-grained", "medium-grained", "coarse-grained"),
    "rim_core": ("core brighter than the rim", "rim and core alike", "rim brighter than the core", "ring-like bright rim"),
    "edge_width": ("sharp", "soft", "blurred"),
    "compactness": ("irregular", "lobulated", "regular"),
    "depth": ("superficial", "near the surface", "fairly deep", "deep"),
    "side": ("on the right", "near the midline", "on the left"),
    "across": ("anterior", "central", "posterior"),
    "dark_ring": ("", "next to dark structures", "next to prominent dark structures"),
    "bright_ring": ("", "next to bright structures", "next to prominent bright structures"),
    "air_ring": ("", "next to areas without signal", "next to large areas without signal"),
}
# {t} the term, {n} the number as printed (of side and rim_core without its sign)
SENTENCES: dict[str, str | tuple[str, ...]] = {
    "contrast": "{t} to the surrounding tissue ({n} %).",
    "variation": "{t} signal (variation {n} %).",
    "glcm_entropy": "{t} texture (entropy {n} bit).",
    "rim_core": "{t} (difference {n} %).",
    "faint_contour": "{t} margin ({n} % of it with little contrast).",
    "edge_width": "{t} edge ({n} % of the lesion's diameter).",
    "compactness": "{t} shape (circularity {n} %).",
    "area_body": "{t}: {n} % of the body in this slice.",
    "depth": "{t} (depth {n} % of the body's diameter).",
    "side": ("{t} ({n} % off the midline).", "{t} ({n} % off it).", "{t} ({n} % off the midline)."),
    "height": "In the {t} part ({n} % of the way from top to bottom).",
    "across": "In the {t} part ({n} % of the way from front to back).",
    "dark_ring": "{t} ({n} % of the surroundings).",
    "bright_ring": "{t} ({n} % of the surroundings).",
    "air_ring": "{t} ({n} % of the surroundings).",
}
# on CT the numbers are densities, and what is as dark as air is air
_CT = (
    ("intense", "dense"),
    ("large areas without signal", "much air"),
    ("areas without signal", "air"),
    (" signal (", " density ("),
    ("bright structures", "dense structures"),
    ("bright rim", "dense rim"),
    ("brighter than", "denser than"),
)
_DEPTHS = ("superficially", "near the surface", "fairly deep", "deep")
_COUNTS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def terms(name: str, words: Sequence[str]) -> Sequence[str]:
    """The readable terms of a descriptor whose words in the table are ``words``."""
    return TERMS.get(name, words)


def sentence(name: str, index: int, term: str, number: str, *, plane: str | None = None, modality: str | None = None) -> str:
    """The sentence of one category; ``number`` is the value as printed in the short form."""
    pattern = SENTENCES[name]
    if name == "height" and plane == "axial":
        pattern = SENTENCES["across"]  # the top of an axial slice is the patient's front
    if name == "contrast" and float(number) > 0:
        number = f"+{number}"
    if name in ("side", "rim_core"):
        number = number.removeprefix("-")
    return fitted((pattern if isinstance(pattern, str) else pattern[index]).format(t=term, n=number), modality)


def fitted(text: str, modality: str | None) -> str:
    """A sentence with a capital letter and in the words of its modality."""
    for old, new in _CT if modality == "CT" else ():
        text = text.replace(old, new)
    return text[0].upper() + text[1:]


def across(millimetres: float, area: float | None, several: bool = False) -> str:
    """Size of a lesion from its diameter in mm and its area in mm2. several: of its parts together, none of which is as wide."""
    size = "" if area is None else f" (area {length(area)} mm²)" if area < 100 else f" (area {area / 100:.1f} cm²)"
    return f"{'Together like a disk' if several else 'About'} {length(millimetres)} mm across{size}."


def length(value: float) -> str:
    """A diameter in mm, or an area in mm2; of less than one as many places as tell it from none."""
    return digits(value) if value < 0.95 else f"{value:.0f}"


def edge(millimetres: float) -> str:
    """Width of the edge in mm; tenths only where they mean something."""
    return f"Edge about {millimetres:.{0 if millimetres >= 9.95 else 1}f} mm wide."


def parts(count: float) -> str:
    """Number of separate parts."""
    n = round(count)
    return f"{_COUNTS[n].capitalize() if n < len(_COUNTS) else n} separate parts."


def below(millimetres: float) -> str:
    """Distance to the outside of the body in mm."""
    return f"About {millimetres:.0f} mm below the body surface." if round(millimetres) else "Reaches the body surface (0 mm)."


def summary(looks: Sequence[str], margin: str | None, depth: int | None, side: str | None, modality: str | None = None) -> str:
    """One sentence on the lesion. looks: adjectives, size first; margin, side: terms; depth: index of the category of depth."""
    noun = ", ".join(looks) + (" " if looks else "") + "lesion"
    text = ("An " if noun[0] in "aeiou" else "A ") + noun
    if margin:
        text += f" with {'an' if margin[0] in 'aeiou' else 'a'} {margin} margin"
    if depth is not None:
        text += f", lying {_DEPTHS[depth]}"
    if side:
        text += f" {side}" if depth is not None else f", {side}"
    return fitted(text + ".", modality)
