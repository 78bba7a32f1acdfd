"""Does a rationale say what was measured? Words of opposite meaning and changed numbers are found; wording is left to the writer."""

from __future__ import annotations

import re

from ..case import Rationale
from ..rationale import DESCRIPTORS, THRESHOLDS, sentences

# descriptor -> (words of its low pole, words of its high pole) beside those of ``THRESHOLDS``, as radiologists write them
_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "contrast": (
        ("hypointense", "hypodense", "low-signal", "low signal", "dark signal"),
        ("hyperintense", "hyperdense", "high-signal", "high signal", "bright signal"),
    ),
    "variation": (("homogeneous", "homogenous", "uniform"), ("heterogeneous", "heterogenous", "inhomogeneous")),
    "faint_contour": (
        ("well-defined", "well defined", "well-circumscribed", "well-demarcated", "sharply demarcated"),
        ("ill-defined", "ill defined", "poorly defined", "poorly-defined", "indistinct"),
    ),
    "edge_width": (
        ("sharp edge", "sharp edges", "sharp border", "sharp borders", "sharp margin", "sharp margins"),
        ("blurred edge", "blurred edges", "blurred border", "blurred borders", "blurred margin", "blurred margins"),
    ),
    "compactness": (("irregular",), ("round", "rounded", "oval", "regular shape")),
}
_PART = {name: THRESHOLDS[name].part for name in _WORDS}
_NEUTRAL = r"(?:mildly|mostly|partly|slightly|fairly|somewhat|moderately|relatively|rather)"
_NOT = r"(?:not|no|non|without|neither|nor|never|less|lacks|lacking)"
_PATTERNS = {
    name: re.compile(
        rf"(?<![\w-])(?P<not>{_NOT}[\s-]+(?:\w+\s+)?)?(?P<weak>{_NEUTRAL}[\s-]+)?(?:(?P<low>{'|'.join(map(re.escape, low))})|"
        rf"(?P<high>{'|'.join(map(re.escape, high))}))(?![\w-])",
        re.I,
    )
    for name, (low, high) in _WORDS.items()
}


def disagreements(rationale: Rationale, measured: dict[str, float | None]) -> list[str]:
    """What a rationale says that its lesion's measured numbers contradict, each as a phrase that quotes both.

    A word counts only where the measurement lies at the opposite pole; weakened ("mildly") and negated words, and those in the summary
    of more than one lesion, are not judged. A number counts where its statement names a descriptor and the value is another one.
    """
    out = []
    for name, pattern in _PATTERNS.items():
        value, scale = measured.get(name), THRESHOLDS[name]
        if value is None or not (pole := scale.pole(value)):
            continue
        for statement in rationale.statements:
            if statement.part not in (_PART[name], "summary") or (statement.descriptor and rationale.writer == "measured"):
                continue
            match = next(
                (m for m in pattern.finditer(statement.text) if not m["not"] and not m["weak"] and (-1 if m["low"] else 1) * pole < 0), None
            )
            if match:
                term = sentences.terms(name, scale.words)[scale.index(value)]
                unit = f" {DESCRIPTORS[name][0]}" if DESCRIPTORS[name][0] else ""
                out.append(
                    f"“{match['low'] or match['high']}” in the {statement.part}, but measured {term} ({name.replace('_', ' ')} "
                    f"{scale.printed(value)}{unit})"
                )
                break
    for statement in rationale.statements:
        value = measured.get(statement.descriptor) if statement.descriptor else None
        if value is not None and statement.value is not None and abs(value - statement.value) > 1e-3 + 0.01 * abs(value):
            out.append(f"{statement.descriptor.replace('_', ' ')} is given as {statement.value:g}, but measured {value:g}")
    return out
