"""Measured descriptors -> four-part rationale in fixed words. Deterministic, offline; the text that other writers are held to.

A word is chosen from the number as it is printed, so that sentence and number never disagree.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from ..case.records import Rationale, Statement
from .descriptors import DESCRIPTORS, measure

VERSION = "1"       # of the rules below; raise it whenever the text for the same numbers changes


@dataclass(frozen=True)
class Scale:
    """Words for one descriptor, in ascending order.

    words[n] holds below bounds[n] (and at or above bounds[n-1]); the last word holds above all bounds.
    poles: -1, 0 or +1 for each word; two lesions contradict each other where their poles are -1 and +1.
    digits: decimals printed, and used to choose the word.
    """

    part: str
    bounds: tuple[float, ...]
    words: tuple[str, ...]
    poles: tuple[int, ...] = ()
    digits: int = 0

    def index(self, value: float) -> int:
        value = self.rounded(value)
        return bisect_right(self.bounds, value)

    def word(self, value: float) -> str:
        return self.words[self.index(value)]

    def pole(self, value: float) -> int:
        return self.poles[self.index(value)] if self.poles else 0

    def rounded(self, value: float) -> float:
        return round(float(value), self.digits) + 0.0       # + 0.0: no "-0"


THRESHOLDS: dict[str, Scale] = {
    "contrast": Scale("texture", (-25, -8, 8, 30, 50), (
        "markedly hypointense", "hypointense", "isointense", "mildly hyperintense", "hyperintense", "markedly hyperintense"),
        (-1, -1, 0, 1, 1, 1)),
    "variation": Scale("texture", (14, 18, 24), (
        "homogeneous", "mildly heterogeneous", "heterogeneous", "markedly heterogeneous"), (-1, 0, 0, 1)),
    "glcm_entropy": Scale("texture", (3.5, 4.4), ("fine grain", "medium grain", "coarse grain"), digits=1),
    "rim_core": Scale("texture", (-8, 6, 20), ("bright core", "even rim", "bright rim", "ring-like rim"), (-1, 0, 1, 1)),
    "faint_contour": Scale("boundary", (1, 10, 35), (
        "well-defined", "mostly well-defined", "partly ill-defined", "ill-defined"), (-1, -1, 0, 1)),
    "edge_width": Scale("boundary", (6, 9), ("sharp edge", "soft edge", "blurred edge"), (-1, 0, 1)),
    "compactness": Scale("boundary", (52, 75), ("irregular shape", "lobed shape", "regular shape"), (-1, 0, 1)),
    "area_body": Scale("context", (1.3, 3, 6), ("small", "medium-sized", "large", "very large"), (-1, 0, 0, 1), digits=1),
    "depth": Scale("context", (8, 16, 26), ("superficial", "near surface", "fairly deep", "deep"), (-1, 0, 0, 1)),
    "side": Scale("context", (-8, 8), ("right", "midline", "left")),
    "height": Scale("context", (36, 56), ("upper", "middle", "lower")),
    "across": Scale("context", (42, 58), ("front", "centre", "back")),
    "dark_ring": Scale("context", (10, 25), ("", "some dark around", "much dark around")),
    "bright_ring": Scale("context", (2, 8), ("", "some bright around", "much bright around")),
    "air_ring": Scale("context", (5, 15), ("", "some air around", "much air around")),
}
# "height" is said in the patient's directions where the plane is known
POSITION_WORDS = {"axial": ("anterior", "central", "posterior")}
_OPPOSITES = {
    "contrast": "signal against surrounding tissue", "variation": "texture", "rim_core": "rim and core", "faint_contour": "margin",
    "edge_width": "edge", "compactness": "outline", "area_body": "size", "depth": "position",
}


def describe(image: np.ndarray, mask: np.ndarray, spacing: tuple[float, float] | None = None, *, modality: str | None = None,
             plane: str | None = None) -> Rationale:
    """Measure a lesion and put it in words. Arguments and errors as ``measure``."""
    return write_measured(measure(image, mask, spacing, modality=modality, plane=plane), spacing_known=spacing is not None, plane=plane)


def write_measured(descriptors: dict[str, float | None], *, spacing_known: bool, plane: str | None = None) -> Rationale:
    """Write the rationale that the numbers support; a descriptor that is None gives no sentence.

    Args:
        descriptors: from ``measure``.
        spacing_known: whether sentences in mm are written.
        plane: display plane, for the words of position.
    """
    d = dict(descriptors)
    out: list[Statement] = []

    def say(name: str, template: str, *, word: str | None = None, value: float | None = None) -> None:
        """template: {w} the word, {n} the number as printed."""
        if d.get(name) is None:
            return
        scale = THRESHOLDS[name]
        chosen = scale.word(d[name]) if word is None else word
        if chosen:
            number = f"{scale.rounded(d[name] if value is None else value):.{scale.digits}f}"
            text = template.format(w=chosen, n=number)
            out.append(Statement(scale.part, text[0].upper() + text[1:], name, d[name], DESCRIPTORS[name][0]))

    say("contrast", "{w} {n}%.")
    say("variation", "{w} {n}%.")
    say("glcm_entropy", "{w} {n}.")
    say("rim_core", "{w} {n}%.")

    say("faint_contour", "{w}, {n}% faint.")
    say("edge_width", "{w} {n}%.")
    if spacing_known and d.get("edge_width_mm") is not None:
        out.append(Statement("boundary", f"Edge {d['edge_width_mm']:.1f} mm wide.", "edge_width_mm", d["edge_width_mm"], "mm"))
    say("compactness", "{w} {n}%.")

    say("area_body", "{w}, {n}% of body.")
    if spacing_known and d.get("diameter_mm") is not None:
        out.append(Statement("context", f"{d['diameter_mm']:.0f} mm across.", "diameter_mm", d["diameter_mm"], "mm"))
    if (d.get("components") or 1) > 1:
        out.append(Statement("context", f"{d['components']:.0f} parts.", "components", d["components"], ""))
    if plane == "sagittal":
        say("across", "{w} {n}%.")
    elif d.get("side") is not None:
        say("side", "{w} {n}%.", value=abs(d["side"]))
    if d.get("height") is not None:
        say("height", "{w} {n}%.", word=POSITION_WORDS.get(plane, THRESHOLDS["height"].words)[THRESHOLDS["height"].index(d["height"])])
    say("depth", "{w} {n}%.")
    if spacing_known and d.get("depth_mm") is not None:
        out.append(Statement("context", f"{d['depth_mm']:.0f} mm from the body edge.", "depth_mm", d["depth_mm"], "mm"))
    for name in ("dark_ring", "bright_ring", "air_ring"):
        say(name, "{w} {n}%.")

    words = [THRESHOLDS[n].word(d[n]) for n in ("area_body", "contrast", "variation") if d.get(n) is not None]
    place = [THRESHOLDS[n].word(d[n]) for n in ("depth",) if d.get(n) is not None]
    text = " ".join([*words, "lesion"]) + "".join(f", {p}" for p in place)
    out.append(Statement("summary", text[0].upper() + text[1:] + "."))
    return Rationale(out, d, "measured", VERSION)


def contradictions(a: Rationale, b: Rationale) -> list[str]:
    """Where measured descriptors put two lesions in opposite categories, in plain words; neighbouring categories do not count.

    Args:
        a, b: rationales with descriptors; without them nothing contradicts. "the one" is ``a``, "the other" is ``b``.
    """
    out = []
    for name, what in _OPPOSITES.items():
        x, y, scale = a.descriptors.get(name), b.descriptors.get(name), THRESHOLDS[name]
        if x is None or y is None or scale.pole(x) * scale.pole(y) >= 0:
            continue
        unit = DESCRIPTORS[name][0]
        number = [f"{scale.rounded(v):.{scale.digits}f}{' ' + unit if unit else ''}" for v in (x, y)]
        out.append(f"{what}: {scale.word(x)} ({number[0]}) against {scale.word(y)} ({number[1]})")
    return out
