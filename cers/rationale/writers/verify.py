"""Holding a written rationale to the measured descriptors: numbers, polarity, location. What fails gives way to the measured text.

What contradicts nothing but claims more than was measured is marked so: see ``claims``.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, replace

from ...case.records import PARTS, Rationale, Statement
from ...words import were
from ..descriptors import DESCRIPTORS
from ..parse import ParsedCoT, sentences
from ..writer import THRESHOLDS
from . import claims, lexicon

_LONGEST = 600  # characters of a sentence; more is no finding, and would be slow to look through
LOCATIONS = {"side", "height", "across", "depth"}
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+]?)(?P<digits>\d+(?:[.,]\d+)?)(?:[\s-]*(?P<unit>%|percent|per cent|mm2|cm2|mm|cm|bits?|px|pixels?|"
    r"[mc]m3|ml|cc|d?m|[u\u03bcn]m|(?:micro)?met(?:re|er)s?|inch(?:es)?|feet|hu|years?|degrees?))?(?!\w)",
    re.I,
)
# "more than 31 mm" is no measurement, nor is "not 31 mm"
_BOUND = re.compile(
    r"(?:\b(?:\w+er|more|less|worse) than|\b(?:over|under|above|below|beyond|exceed\w*|at (?:least|most)|up to|not|maximum of|"
    r"minimum of)|n't|[<>\u2264\u2265])\s*(?:about\s+)?$",
    re.I,
)
_BOUND_AFTER = re.compile(r"\s*(?:or (?:more|less|above|below)|at (?:least|most)|and (?:more|above))\b", re.I)
_COUNT = re.compile(
    r"\b(?P<word>one|single|solitary|two|three|four|five|six|seven|eight|nine|several|multiple|many|few|both|numerous)\s+(?:\w+\s+)?"
    r"(?:parts?|lesions?|mass(?:es)?|nodules?|tumou?rs?)\b",
    re.I,
)
_SPELLED = re.compile(
    r"\b(?:ten|eleven|twelve|\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty(?:-\w+)?|hundred|thousand|twice|doubled?|tripled?|"
    r"(?<!left )(?<!right )half|one[- ]third|two[- ]thirds|quarter|dozens?|"
    r"(?:two|three|four|five|six|seven|eight|nine|ten|many|several|\d+)-?fold)\b",
    re.I,
)
_SEVERAL = re.compile(
    r"\b(?:multi-?focal|multicentric|(?:second|another|further|additional) (?:focus|lesion|mass|nodule|part)|"
    r"lesions|masses|nodules|tumou?rs|(?:pair|couple) of (?:\w+ )?(?:parts|lesions|masses|nodules|foci|spots))\b",
    re.I,
)
_UP = re.compile(rf"\b(?:above|exceed\w*|brighter|denser|hyper\w+|{lexicon.HIGHER})\b", re.I)
_DOWN = re.compile(rf"\b(?:below|darker|hypo\w+|{lexicon.LOWER})\b", re.I)
_INWARD = re.compile(r"\s*(?:deep|in depth|below|beneath)\b", re.I)
_UNMEASURED = re.compile(r"\b(?:thick(?:ness)?|tall|high|height|long|length|axis|axes)\b", re.I)  # lengths that no descriptor gives
_WORDS = {"one": 1, "single": 1, "solitary": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_UNITS = {"percent": "%", "per cent": "%", "bits": "bit", "pixel": "px", "pixels": "px"}
_LENGTH = {"cm": ("mm", 10.0), "cm2": ("mm2", 100.0)}


@dataclass(frozen=True)
class Finding:
    """What is wrong with one sentence. kind: number, polarity, location, claim, missing, or unmeasured, where it stays. part: its own."""

    part: str
    kind: str
    sentence: str
    reason: str


@dataclass(frozen=True)
class _Figure:
    """A number as the measured text prints it, lengths in mm. half: half a unit of its last digit."""

    descriptor: str
    value: float
    half: float
    unit: str


def plain(text: str) -> str:
    """Typographic signs and units in words as plain ones, so that no spelling hides a number."""
    text = unicodedata.normalize("NFKC", text)
    text = re.sub("[\u2018\u2019]", "'", text)
    text = re.sub("[\u2010-\u2015\u2212]", "-", text)
    text = re.sub(r"\b(?:(milli)|centi)met(?:re|er)s?\b", lambda m: "mm" if m[1] else "cm", text, flags=re.I)
    return re.sub(r"(?<=\d)\s*[x\u00d7]\s*(?=\d)", " x ", text, flags=re.I)


def verify(
    answer: ParsedCoT, measured: Rationale, *, writer: str, version: str, plane: str | None = None, seen: bool = False
) -> tuple[Rationale, list[Finding]]:
    """A rationale of the sentences that hold, and measured ones, marked in ``Statement.note``, in place of those that do not.

    A sentence that contradicts nothing but claims more than was measured stays, with that said in its note.

    Args:
        answer: the four parts as written. measured: of the same case; its numbers are the truth.
        plane: display plane of the case. seen: the writer was shown the picture.

    Returns:
        the rationale, and what was found wrong, in reading order.
    """
    holds: dict[str, list[tuple[Statement | Finding, list[str]]]] = {}
    findings: list[Finding] = []
    for part in PARTS:
        holds[part] = []
        for sentence in sentences(answer.parts.get(part, "")):
            finding, names = check(sentence, part, measured, plane=plane, seen=seen)
            if finding is not None:
                findings.append(finding)
                holds[part].append((finding, names))
                continue
            words = claims.beyond(sentence, measured.statements, plane)
            statement = claims.mark(_resting(part, sentence, names, measured), words)
            if words:
                findings.append(Finding(part, "unmeasured", sentence, statement.note))
            holds[part].append((statement, names))
        if not holds[part]:
            finding = Finding(part, "missing", "", "the writer left this part out")
            findings.append(finding)
            holds[part].append((finding, []))
    out: list[Statement] = []
    for part in PARTS:
        own = [s for s in measured.statements if s.part == part]
        said = {name for item, names in holds[part] if isinstance(item, Statement) for name in names}
        for item, names in holds[part]:
            if isinstance(item, Statement):
                out.append(item)
                continue
            rest = [s for s in own if s.descriptor not in said or s.descriptor is None]
            about = [s for s in rest if s.descriptor in names] or rest
            own = [s for s in own if s not in about]
            out += [replace(s, note=f"{item.kind}: {item.reason}") for s in about]
    return Rationale(out, dict(measured.descriptors), writer, version), findings


def contradicting(rationale: Rationale, descriptors: dict[str, float | None], plane: str | None = None) -> list[Finding]:
    """Sentences of any rationale that clearly contradict the descriptors: opposite ends of a scale; locations are not looked at."""
    measured = Rationale([], descriptors)
    found = (check(s.text, s.part, measured, plane=plane, seen=True, strict=False)[0] for s in rationale.statements)
    return [f for f in found if f is not None]


def names_anatomy(sentence: str) -> bool:
    """Whether a sentence names a place in the anatomy, which no descriptor measures."""
    return bool(lexicon.ANATOMY.search(plain(sentence)))


def check(
    sentence: str, part: str, measured: Rationale, *, plane: str | None = None, seen: bool = False, strict: bool = True
) -> tuple[Finding | None, list[str]]:
    """What is wrong with one sentence, None where nothing is, and the descriptors it speaks of.

    strict: each word must be borne out, not only not contradicted.
    """
    text = plain(sentence)
    if len(text) > _LONGEST:
        return (Finding(part, "claim", sentence[:_LONGEST], "longer than a sentence of a rationale") if strict else None), []
    found = [h for h in lexicon.hits(text, plane) if strict or h.descriptor not in LOCATIONS | {""}]
    names = [h.descriptor for h in found if h.descriptor]

    def fault(kind: str, reason: str) -> tuple[Finding, list[str]]:
        return Finding(part, kind, sentence, reason), names

    wrong = None
    for hit in found:
        if (reason := _refuted(hit, measured, strict=strict, seen=seen)) is not None and wrong is None:
            wrong = "location" if hit.descriptor in LOCATIONS | {""} else "polarity", reason
    if strict:
        numbers, reason = _numbers(text, measured)
        names += [n for n in numbers if n not in names]
        if match := lexicon.UNASKED.search(text):
            return fault("claim", f"'{match[0]}' is not a matter of this description")
        if match := lexicon.ANATOMY.search(text):
            return fault("location", f"'{match[0]}': where in the anatomy was not measured")
        if reason is not None:
            return fault("number", reason)
    if wrong is not None:
        return fault(*wrong)
    if strict and not seen and (match := lexicon.SEEN.search(text)):
        return fault("claim", f"'{match[0]}' was not measured")
    return None, names


def _refuted(hit: lexicon.Hit, measured: Rationale, *, strict: bool, seen: bool) -> str | None:
    """Why a word does not stand, None where it does."""
    value = measured.descriptors.get(hit.descriptor) if hit.descriptor else None
    if hit.local:
        return None if seen or not strict else f"'{hit.word}' of a part of the lesion was not measured"
    if value is None:
        return f"'{hit.word}' was not measured" if strict else None
    scale = THRESHOLDS[hit.descriptor]
    index = scale.index(value)
    if strict:
        holds = (index in hit.indexes) != hit.negated
    else:  # what is denied, hedged, or in a neighbouring category contradicts nothing clearly
        poles = sum(scale.poles[i] for i in hit.indexes) if scale.poles else 0
        holds = hit.negated or scale.pole(value) * poles >= 0 or min(abs(index - i) for i in hit.indexes) < 2
    number = scale.printed(value)
    return (
        None if holds else f"'{'not ' if hit.negated else ''}{hit.word}', but {hit.descriptor} is {number} ({scale.words[index] or 'none'})"
    )


def _numbers(text: str, measured: Rationale) -> tuple[list[str], str | None]:
    """(descriptors that the numbers are of, what is wrong with the first wrong number)."""
    names: list[str] = []
    figures = _figures(measured)
    for match in _NUMBER.finditer(text):
        digits = match["digits"].replace(",", ".")
        value, unit = float(digits), (match["unit"] or "").lower()
        half = 0.5 * 10.0 ** -len(digits.partition(".")[2])
        unit, factor = _LENGTH.get(unit, (_UNITS.get(unit, unit), 1.0))
        value, half = value * factor, half * factor
        # fewer digits than measured are a rounding, more are an invention
        same = [
            f
            for f in figures
            if abs(abs(f.value) - value) <= max(half - f.half, 0.0) + 1e-6
            and (unit == f.unit or not unit and f.unit in ("", "bit"))
            and not (match["sign"] == "-" and f.value > 0)
            and not (match["sign"] == "+" and f.value < 0)
        ]
        if not same:
            return names, f"'{match[0].strip()}' is not among the measured numbers"
        if _BOUND.search(text[: match.start()]) or _BOUND_AFTER.match(text[match.end() :]):
            return names, f"'{match[0].strip()}' was measured, and not what is more or less"
        clauses = _clauses(text)
        n, clause = next((n, c) for n, c in enumerate(clauses) if c[0] <= match.start() < c[1])
        # a number in brackets or after a comma is of what stands before
        for scope in (text[clause[0] : clause[1]], text[clauses[max(0, n - 1)][0] : clause[1]], text):
            meant = {name for name, pattern in lexicon.QUANTITIES.items() if pattern.search(scope) and _fits(name, unit)}
            if meant:
                break
        else:
            meant = {"diameter_mm"} if unit == "mm" else meant  # "a 31 mm lesion"
        if unit == "mm" and _INWARD.match(text[match.end() :]):
            meant = {"depth_mm"}
        candidates = {f.descriptor for f in same if not meant or f.descriptor in meant}
        if not (candidates if meant else unit and unit != "%"):
            return names, f"'{match[0].strip()}' was measured of something else"
        if unit == "mm" and (other := _UNMEASURED.search(text[clause[0] : clause[1]])) and candidates != {"edge_width_mm"}:
            return names, f"'{match[0].strip()}': '{other[0]}' was not measured"
        up, down = bool(_UP.search(scope)), bool(_DOWN.search(scope))
        if lexicon.AROUND.search(text[: match.start()]):
            up, down = down, up
        if candidates == {"contrast"} and up != down and all((f.value < 0) == up for f in same if f.descriptor == "contrast"):
            return names, f"'{match[0].strip()}' has the other sign"
        names += [f.descriptor for f in same if f.descriptor not in names and (not meant or f.descriptor in meant)]
    if match := _SPELLED.search(text):
        return names, f"'{match[0]}' is not among the measured numbers"
    parts = measured.descriptors.get("components")
    if parts is not None and round(parts) == 1 and (match := _SEVERAL.search(text)):
        return names, f"'{match[0]}', but 1 separate part was measured"
    for match in _COUNT.finditer(text):
        count = _WORDS.get(match["word"].lower(), 0)
        if parts is not None and not (round(parts) == count if count else round(parts) > 1):
            return names, f"'{match[0]}', but {were(round(parts), 'separate part')} measured"
    return names, None


def _fits(name: str, unit: str) -> bool:
    """Whether a number with this unit, or with none, can be one of a descriptor."""
    return not unit or unit == DESCRIPTORS[name][0] or (name, unit) == ("diameter_mm", "mm2")


def _clauses(text: str) -> list[tuple[int, int]]:
    """(start, end) of the pieces between commas, semicolons and brackets."""
    cuts = [0, *(m.start() for m in re.finditer(r"[;()]|,(?!\d)", text)), len(text)]
    return [(a, b) for a, b in zip(cuts, cuts[1:]) if b > a]


def _figures(measured: Rationale) -> list[_Figure]:
    """Every number that the measured text prints."""
    out = []
    for statement in measured.statements:
        if statement.descriptor is None:
            continue
        for text in (statement.text, statement.short or ""):
            for match in _NUMBER.finditer(plain(text)):
                digits = match["digits"]
                unit = (match["unit"] or "").lower()
                half = 0.5 * 10.0 ** -len(digits.partition(".")[2])
                unit, factor = _LENGTH.get(unit, (_UNITS.get(unit, unit), 1.0))
                value = float(digits) * factor
                negative = statement.value is not None and statement.value < 0
                out.append(_Figure(statement.descriptor, -value if negative else value, half * factor, unit or statement.unit or ""))
    return out


def _resting(part: str, sentence: str, names: list[str], measured: Rationale) -> Statement:
    """The statement of a sentence that holds, with the first measurement it speaks of."""
    rest = next((s for n in names for s in measured.statements if s.descriptor == n), None)
    return Statement(part, sentence) if rest is None else Statement(part, sentence, rest.descriptor, rest.value, rest.unit)
