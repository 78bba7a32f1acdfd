"""Measured descriptors -> four-part rationale in fixed words. Deterministic, offline; the text that other writers are held to.

A word is chosen from the number as it is printed, so that sentence and number never disagree. Each statement has a readable sentence
(``sentences``) and a short form of it, which is embedded: one text encoder pass per slice must stay cheap.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from ..case.records import Case, Rationale, Statement
from ..case.sizes import digits
from . import sentences
from .descriptors import DESCRIPTORS, measure

VERSION = "5"  # of the rules below and of the numbers; raise it whenever the text of the same picture changes


@dataclass(frozen=True)
class Scale:
    """Words for one descriptor, in ascending order.

    words[n] holds below bounds[n] (and at or above bounds[n-1]); the last word holds above all bounds.
    poles: -1, 0 or +1 for each word; two lesions contradict each other where their poles are -1 and +1.
    digits: decimals printed, and used to choose the word.
    some: of what is always there, so that a number that would be printed as 0 has as many decimals as tell it from none.
    """

    part: str
    bounds: tuple[float, ...]
    words: tuple[str, ...]
    poles: tuple[int, ...] = ()
    digits: int = 0
    some: bool = False

    def index(self, value: float) -> int:
        value = self.rounded(value)
        return bisect_right(self.bounds, value)

    def word(self, value: float) -> str:
        return self.words[self.index(value)]

    def pole(self, value: float) -> int:
        return self.poles[self.index(value)] if self.poles else 0

    def rounded(self, value: float) -> float:
        return round(float(value), self.digits) + 0.0  # + 0.0: no "-0"

    def printed(self, value: float) -> str:
        value = float(value)
        return digits(value) if self.some and not self.rounded(value) else f"{self.rounded(value):.{self.digits}f}"


THRESHOLDS: dict[str, Scale] = {
    "contrast": Scale(
        "texture",
        (-25, -8, 8, 30, 50),
        ("markedly hypointense", "hypointense", "isointense", "mildly hyperintense", "hyperintense", "markedly hyperintense"),
        (-1, -1, 0, 1, 1, 1),
    ),
    "variation": Scale(
        "texture", (14, 18, 24), ("homogeneous", "mildly heterogeneous", "heterogeneous", "markedly heterogeneous"), (-1, 0, 0, 1)
    ),
    "glcm_entropy": Scale("texture", (3.5, 4.4), ("fine grain", "medium grain", "coarse grain"), digits=1),
    "rim_core": Scale("texture", (-8, 6, 20), ("bright core", "even rim", "bright rim", "ring-like rim"), (-1, 0, 1, 1)),
    "faint_contour": Scale(
        "boundary", (1, 10, 35), ("well-defined", "mostly well-defined", "partly ill-defined", "ill-defined"), (-1, -1, 0, 1)
    ),
    "edge_width": Scale("boundary", (6, 9), ("sharp edge", "soft edge", "blurred edge"), (-1, 0, 1)),
    "compactness": Scale("boundary", (52, 75), ("irregular shape", "lobed shape", "regular shape"), (-1, 0, 1)),
    "area_body": Scale("context", (1.3, 3, 6), ("small", "medium-sized", "large", "very large"), (-1, 0, 0, 1), digits=1, some=True),
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
    "contrast": "signal against the surrounding tissue",
    "variation": "texture",
    "rim_core": "rim and core",
    "faint_contour": "margin",
    "edge_width": "edge",
    "compactness": "outline",
    "area_body": "size",
    "depth": "position",
}


def describe(
    image: np.ndarray,
    mask: np.ndarray,
    spacing: tuple[float, float] | None = None,
    *,
    modality: str | None = None,
    plane: str | None = None,
) -> Rationale:
    """Measure a lesion and put it in words. Arguments and errors as ``measure``."""
    return write_measured(
        measure(image, mask, spacing, modality=modality, plane=plane), spacing_known=spacing is not None, plane=plane, modality=modality
    )


def write_measured(
    descriptors: dict[str, float | None], *, spacing_known: bool, plane: str | None = None, modality: str | None = None
) -> Rationale:
    """Write the rationale that the numbers support; a descriptor that is None gives no sentence.

    Args:
        descriptors: from ``measure``.
        spacing_known: whether sentences in mm are written.
        plane: display plane, for the words of position.
        modality: DICOM code; CT is read in terms of density. The short forms do not depend on it.
    """
    d = dict(descriptors)
    out: list[Statement] = []

    def say(name: str, template: str, *, words: tuple[str, ...] | None = None, value: float | None = None, note: str = "") -> None:
        """template: the short form; {w} the word, {n} the number as printed. note: ends the readable sentence."""
        if d.get(name) is None:
            return
        scale = THRESHOLDS[name]
        index = scale.index(d[name])
        word, term = (words or scale.words)[index], (words or sentences.terms(name, scale.words))[index]
        if word:
            number = scale.printed(d[name] if value is None else value)
            short = template.format(w=word, n=number)
            text = sentences.sentence(name, index, term, number, plane=plane, modality=modality)
            text = text.removesuffix(".") + note + "."
            out.append(Statement(scale.part, text, name, d[name], DESCRIPTORS[name][0], short[0].upper() + short[1:]))

    def add(part: str, name: str, text: str, short: str) -> None:
        out.append(Statement(part, text, name, d[name], DESCRIPTORS[name][0], short))

    say("contrast", "{w} {n}%.")
    say("variation", "{w} {n}%.")
    say("glcm_entropy", "{w} {n}.")
    say("rim_core", "{w} {n}%.")

    say("faint_contour", "{w}, {n}% faint.")
    say("edge_width", "{w} {n}%.")
    if spacing_known and d.get("edge_width_mm") is not None:
        add("boundary", "edge_width_mm", sentences.edge(d["edge_width_mm"]), f"Edge {d['edge_width_mm']:.1f} mm wide.")
    say("compactness", "{w} {n}%.")

    pixels, several = None if spacing_known else d.get("diameter_px"), (d.get("components") or 1) > 1
    wide = "" if pixels is None else f" ({'together like a disk' if several else 'about'} {pixels:.0f} pixels across)"
    say("area_body", "{w}, {n}% of body.", note=wide)
    if spacing_known and d.get("diameter_mm") is not None:
        add(
            "context",
            "diameter_mm",
            sentences.across(d["diameter_mm"], d.get("area_mm2"), several),
            f"{sentences.length(d['diameter_mm'])} mm across.",
        )
    if several:
        add("context", "components", sentences.parts(d["components"]), f"{d['components']:.0f} parts.")
    if plane == "sagittal":
        say("across", "{w} {n}%.")
    elif d.get("side") is not None:
        say("side", "{w} {n}%.", value=abs(d["side"]))
    say("height", "{w} {n}%.", words=POSITION_WORDS.get(plane))
    say("depth", "{w} {n}%.")
    if spacing_known and d.get("depth_mm") is not None:
        add("context", "depth_mm", sentences.below(d["depth_mm"]), f"{d['depth_mm']:.0f} mm from the body edge.")
    for name in ("dark_ring", "bright_ring", "air_ring"):
        say(name, "{w} {n}%.")
    out.append(_summary(d, plane, modality))
    return Rationale(out, d, "measured", VERSION)


def without_place(rationale: Rationale, *, spacing_known: bool = False, modality: str | None = None) -> Rationale:
    """A measured rationale written anew without side, height and front to back: of a slice of which the plane is not known.

    Args:
        spacing_known, modality: as ``write_measured``.
    """
    d = rationale.descriptors | dict.fromkeys(("side", "height", "across"))
    return write_measured(d, spacing_known=spacing_known, modality=modality)


def beside(case: Case) -> Rationale | None:
    """A case's rationale as it is told beside a slice: a measured one says nothing of place where the case's plane is not known."""
    written = case.rationale
    if written is None or case.plane is not None or written.writer != "measured" or not written.descriptors:
        return written
    return without_place(written, spacing_known=case.spacing is not None, modality=case.modality)


def _summary(d: dict[str, float | None], plane: str | None, modality: str | None) -> Statement:
    names = ("area_body", "contrast", "variation", "faint_contour", "depth", "side")
    index = {n: THRESHOLDS[n].index(d[n]) for n in names if d.get(n) is not None}
    word = {n: THRESHOLDS[n].words[i] for n, i in index.items()}
    looks = [word[n] for n in ("area_body", "contrast", "variation") if n in word]
    short = " ".join([*looks, "lesion"]) + (f", {word['depth']}" if "depth" in word else "")
    side = sentences.TERMS["side"][index["side"]] if "side" in index and plane != "sagittal" else None
    text = sentences.summary(looks, word.get("faint_contour"), index.get("depth"), side, modality)
    return Statement("summary", text, short=short[0].upper() + short[1:] + ".")


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
        terms, unit = sentences.terms(name, scale.words), DESCRIPTORS[name][0]
        one, other = (f"{terms[scale.index(v)]} ({scale.printed(v)}{' ' + unit if unit else ''})" for v in (x, y))
        out.append(f"{what}: {one} against {other}")
    return out
