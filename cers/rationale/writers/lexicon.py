"""Words of radiology reports and the measured categories that bear them out.

A term is looked for in a sentence in the order of the table; what one has matched is not looked at again, so that "ring-like bright
rim" is not taken for a bright lesion. Categories are the indexes of ``writer.THRESHOLDS``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MARKED = r"markedly|strongly|very|highly|severely|extremely|pronounced"
MILD = r"mild(?:ly)?|slight(?:ly)?|minimal(?:ly)?|subtle|subtly|somewhat|faint(?:ly)?|weakly|some"
PARTLY = (
    r"partly|partially|partial|mostly|largely|predominantly|relatively|moderately|focal(?:ly)?|generally|mainly|local(?:ly)?|"
    r"(?:small )?(?:segments?|areas?|portions?|parts?) of|fairly|variabl[ey]"
)
_BEFORE = re.compile(rf"\b(?:(?P<marked>{MARKED})|(?P<mild>{MILD})|(?P<partly>{PARTLY}))\s+(?:[\w-]+\s+)?$", re.I)
_NEGATED = re.compile(
    r"\b(?:no|not|without|never|neither|nor|lacks?|lacking|absent|absence of|rather than|instead of|free of|"
    r"no longer|anything but|far from|less than|hardly|barely|by no means|cannot|fail(?:s|ed|ing)? to|lost|loss of|lose(?:s)?|"
    r"opposite(?: of| to)?|contralateral to|\w+n't)\b(?:\s+\w+){0,2}\s*$",
    re.I,
)
# "hyperintensity is absent": denied after the word
_DENIED = re.compile(
    r"\s+(?:\w+\s+){0,2}?(?:absent|missing|lacking|lost|doubtful|questionable|(?:not|never|\w+n't|cannot be)\s+(?:\w+\s+)?"
    r"(?:seen|present|evident|visible|identified|apparent|found|noted|observed|detected|confirmed|there))\b",
    re.I,
)


@dataclass(frozen=True)
class Term:
    """base: categories of ``descriptor`` that bear the word out; mild, marked, partly: the same after such an adverb, if different."""

    descriptor: str
    pattern: re.Pattern
    base: tuple[int, ...]
    mild: tuple[int, ...] = ()
    marked: tuple[int, ...] = ()
    partly: tuple[int, ...] = ()


@dataclass(frozen=True)
class Hit:
    """A term found in a sentence. descriptor "": a word that no descriptor stands for. local: said of a part of the lesion only."""

    descriptor: str
    indexes: tuple[int, ...]
    negated: bool
    word: str
    local: bool = False


def _term(descriptor: str, pattern: str, base, mild=(), marked=(), partly=()) -> Term:
    return Term(descriptor, re.compile(rf"\b(?:{pattern})\b", re.I), tuple(base), tuple(mild), tuple(marked), tuple(partly))


_LESION = r"(?=[\s,]+(?:[\w-]+[\s,]+){0,5}?(?:lesion|mass|tumou?r|nodule)\b)"
_IS = r"(?:\s+(?:is|are|appears?|looks?|seems?|remains?)(?:n't|\s+not)?|\s*:)(?:\s+(?:\w+ly|very|quite|rather|somewhat))?\s+"
_EDGE = r"(?:ly)?[- ]+(?:defined|marginated|demarcated|circumscribed|delineated|outlined)"
_RIM = r"(?:margins?|borders?|boundar(?:y|ies)|edges?|outlines?|contours?)"
# "it is large", "large in size", "size: large": said of the lesion without naming it after the word
_SUBJECT = r"(?:lesion|mass|tumou?r|nodule|it|size)"
_SIZE = rf"(?:{_LESION}|(?=\s+in\s+(?:size|extent))|(?=\s*(?:[.;)]|$)))"
# what is bright or dark there is not the lesion as a whole
_LOCAL = re.compile(
    r"\s+(?:\w+\s+)?(?:components?|foci|focus|areas?|regions?|spots?|strands?|portions?|elements?|zones?|bands?|septa\w*|"
    r"structures?|fluid|fat|bone|vessels?|tissues?|oedema|edema|part)\b",
    re.I,
)
# the surroundings as what is told of, so that "brighter" says that the lesion is darker
AROUND = re.compile(
    r"(?:^|[,;:.]\s*|\b(?:and|but|while|whereas|as|because|that)\s+)(?:the|its|all|most|adjacent|nearby)?\s*"
    r"(?:surround\w+(?:\s+\w+)?|background|neighbou?r\w*(?:\s+\w+)?|(?:adjacent|nearby)\s+\w+)\s+"
    r"(?:is|are|appears?|looks?|seems?|remains?|has|have|shows?)\s+(?:(?:\w+|[\d.,]+\s*%)\s+){0,3}$",
    re.I,
)
# "the rim is 20 % brighter than the core" compares these two, and not the lesion with what is around it
_COMPARED = re.compile(
    r"\b(?P<first>rim|periphery|core|cent(?:re|er))\b[^.;]*?\bthan (?:that of )?(?:the |its )?(?:rim|periphery|core|cent(?:re|er))\b", re.I
)
_TURNED = {0: (3, 4, 5), 1: (3, 4, 5), 2: (2,), 3: (0, 1), 4: (0, 1), 5: (0, 1)}
_PLACE = r"(?:rims?|cores?|cent(?:re|er)s?|periphery|rings?|halos?|foci|focus|areas?|spots?|zones?|components?|parts?|portions?)"
# "the core is dark": said of a part, too
_OF_PART = re.compile(rf"\b{_PLACE}\s+(?:(?:is|are|appears?|looks?|seems?|remains?)\s+)?(?:\w+\s+)?$", re.I)
_NOT_PLACE = rf"(?!\s+(?:\w+\s+)?(?:{_PLACE}|structures?|surroundings|neighbou?rs|matter|margins?|borders?|edges?|outlines?|contours?)\b)"
_BE = r"(?:\s+(?:intensity|level))?(?:\s+(?:is|are|appears?|seems?|lies|remains?)(?:n't|\s+not)?)?(?:\s+\w+ly)?\s+"
_LEVEL = r"(?:signal|intensity|brightness|density|attenuation)"
_WEIGHTED = r"(?:(?:T[12]\w*|flair)\s+)?"
LOWER, HIGHER = "less|reduced|decreased|diminished|lower(?:ed)?|weaker", "more|increased|higher|elevated|raised|stronger|greater"
SIGNAL = re.compile(
    r"\b(?:(?:hypo|iso|hyper)-?(?:intense|dense|attenuating|echoic)?\s*-?(?:/|\bto\b|\band\b|\bor\b|,|-)\s*-?)*"
    r"(?:hypo|iso|hyper)-?(?:intens|dens|attenuat|echo)\w*",
    re.I,
)
_ROOTS = {"hypo": (0, 1), "iso": (2,), "hyper": (3, 4, 5)}

TERMS: tuple[Term, ...] = (
    _term("", r"(?:way )?from (?:top to bottom|front to back)|(?:off|from|of) (?:the )?midline", ()),
    _term(
        "rim_core",
        r"ring[- ]like(?: bright| hyperintense| dense)? rim|bright(?:er)? rim|hyperintense rim|dense rim|"
        r"rim (?:is )?(?:bright|dens|hyperintense)\w*(?: than the core)?|ring[- ]?enhanc\w+|rim[- ]?enhanc\w+|peripheral enhanc\w+",
        (2, 3),
    ),
    _term("rim_core", r"core (?:is )?(?:bright|dens)er(?: than the rim)?|bright(?:er)? (?:core|centre|center)|hyperintense core", (0,)),
    _term("rim_core", r"core (?:is |appears )?darker(?: than the rim)?|darker (?:core|centre|center)", (2, 3)),
    _term("rim_core", r"rim (?:is |appears )?darker(?: than the core)?|darker rim", (0,)),
    _term("rim_core", r"rim and core (?:are )?(?:alike|similar|equal)|even rim", (1,)),
    _term("bright_ring", r"(?:prominent )?(?:bright|hyperintense|dense|high-signal) (?:structures?|surroundings|neighbou?rs)", (1, 2)),
    _term("dark_ring", r"(?:prominent )?(?:dark|hypointense|low-signal) (?:structures?|surroundings|neighbou?rs)", (1, 2)),
    _term("air_ring", r"areas? without signal|much air|next to air|air-filled", (1, 2)),
    _term(
        "faint_contour",
        rf"(?:well|sharp|clear|distinct){_EDGE}|circumscribed|clear(?:ly)? (?:margins?|borders?|boundar\w+)|"
        r"distinct (?:margins?|borders?|boundar\w+)",
        (0, 1),
        partly=(1, 2),
    ),
    _term(
        "faint_contour", rf"(?:ill|poor|vague|indistinct){_EDGE}|indistinct|ill-defined", (2, 3), mild=(1, 2), marked=(3,), partly=(1, 2)
    ),
    _term(
        "faint_contour",
        rf"{_RIM} (?:\w+ )?(?:is|are|appears?) (?:\w+ )?unclear|(?:unclear|faint) {_RIM}|(?:merges?|blends?|fades?) (?:with|into)|"
        rf"{_RIM}{_IS}(?:faint|(?:poorly|barely|hardly) (?:seen|visible))|(?:poorly|barely|hardly) (?:seen|visible) {_RIM}",
        (2, 3),
    ),
    _term("faint_contour", rf"{_RIM}{_IS}clear", (0, 1)),
    _term("edge_width", r"sharp(?:er|ly)?|crisp", (0,), partly=(0, 1)),
    _term("edge_width", r"unsharp", (1, 2)),
    _term("edge_width", rf"soft (?:edges?|margins?|borders?|boundar\w+|transition)|edges? soft|{_RIM}{_IS}soft", (1,)),
    _term("edge_width", rf"(?:wide|broad|gradual|diffuse) {_RIM}|{_RIM}{_IS}(?:wide|broad|gradual|diffuse)", (1, 2)),
    _term("edge_width", r"blurr(?:ed|y|ing)|fuzzy|hazy|gradual transition", (2,), mild=(1, 2), partly=(1, 2)),
    _term(
        "compactness",
        r"irregular(?:ly|ity|ities)?|spiculated|jagged|ragged|spiky|spiked|stellate|star-shaped",
        (0,),
        mild=(0, 1),
        partly=(0, 1),
    ),
    _term("compactness", r"lobulated|lobed|lobular|lobulation", (0, 1), mild=(1, 2)),
    _term(
        "compactness",
        r"regular(?:ly)?(?= (?:shape|contour|outline|border|margin|edge|in shape|shaped))|round(?:ed)?|oval|circular|"
        r"spherical",
        (1, 2),
    ),
    _term("compactness", rf"smooth(?:ly)? {_RIM}|{_RIM}{_IS}smooth", (1, 2)),
    _term("glcm_entropy", rf"fine[- ]grain\w*|fine texture|texture{_IS}fine", (0,)),
    _term("glcm_entropy", r"medium[- ]grain\w*", (1,)),
    _term("glcm_entropy", r"coarse(?:ly)?(?:[- ]?grain\w*)?", (2,)),
    _term("variation", r"in-?homogen\w+|non-?(?:homogen|uniform)\w*|heterogen\w+", (1, 2, 3), mild=(1,), marked=(3,), partly=(1, 2)),
    _term("variation", r"homogen\w+|uniform(?:ly)?", (0,), mild=(0, 1), partly=(0, 1)),
    _term(
        "variation",
        rf"(?:mixed|uneven|variable|patchy) (?:\w+ )?(?:{_LEVEL}|texture)|(?:{_LEVEL}|texture){_IS}(?:mixed|uneven|variable|patchy)",
        (1, 2, 3),
    ),
    _term("variation", rf"even {_LEVEL}|{_LEVEL}{_IS}even", (0,)),
    _term("area_body", rf"(?:very large|huge){_SIZE}|{_SUBJECT}{_IS}(?:very large|huge)|giant|gigantic|enormous", (3,)),
    _term("area_body", rf"(?:large|big){_SIZE}|{_SUBJECT}{_IS}(?:large|big)", (2, 3)),
    _term("area_body", rf"medium-sized|moderate(?:ly)?[- ]sized|mid-?sized{_LESION}", (1,)),
    _term("area_body", rf"(?:very )?(?:small|tiny){_SIZE}|{_SUBJECT}{_IS}(?:small|tiny)", (0,)),
    _term("depth", r"superficial(?:ly)?|(?:near|at|reach(?:es|ing)|touch(?:es|ing)) the (?:body )?surface", (0, 1), partly=(0, 1)),
    _term("depth", r"(?:lying |lies |located |seated |situated )?deep(?:ly|er)?(?!\s+(?:learning))", (2, 3)),
    _term("contrast", r"darker than (?!(?:the |its )?(?:rim|core))|low(?:er)?[- ]signal(?:[- ]intensity)?|dark signal", (0, 1)),
    _term("contrast", r"brighter than (?!(?:the |its )?(?:rim|core))|high(?:er)?[- ]signal(?:[- ]intensity)?|bright signal", (3, 4, 5)),
    _term("contrast", rf"(?:{LOWER}|low)\s+{_WEIGHTED}{_LEVEL}|{_LEVEL}{_BE}(?:{LOWER}|low|below)|signal (?:loss|voids?)", (0, 1)),
    _term("contrast", rf"(?:{HIGHER}|high)\s+{_WEIGHTED}{_LEVEL}|{_LEVEL}{_BE}(?:{HIGHER}|high|above)|{_LEVEL} exceeds", (3, 4, 5)),
    _term("contrast", rf"(?:dark(?:er|ly)?|black){_NOT_PLACE}", (0, 1), mild=(1,), marked=(0,)),
    _term("contrast", rf"(?:bright(?:er|ly)?|(?<!gr[ae]y[-/ ])white(?!-matter)){_NOT_PLACE}", (3, 4, 5), mild=(3,), marked=(4, 5)),
    _term("side", r"left(?:-sided)?", (2,)),
    _term("side", r"right(?:-sided)?", (0,)),
    _term("side", r"midline", (1,)),
)
# a quantity's own words, to tell which descriptor a number is said of
QUANTITIES: dict[str, re.Pattern] = {
    name: re.compile(pattern, re.I)
    for name, pattern in {
        "contrast": r"surrounding tissue|intens|densit|brighter|darker|(?<!little )\bcontrast\b|relative to",
        "variation": r"variation|heterogen|homogen|uniform",
        "glcm_entropy": r"entropy|grain",
        "rim_core": r"\brim\b|\bcore\b",
        "faint_contour": r"little contrast|faint|defined|circumscribed|margin",
        "edge_width": r"\bedge|sharp|soft|blur|width|diameter|transition",
        "edge_width_mm": r"\bedge|\bwide|width|transition",
        "compactness": r"circularity|compact|shape|lobulat|regular",
        "area_body": r"of the body|pixels|body in this slice|small|large|medium|size",
        "diameter_mm": r"across|(?<!of the )(?<!of its )(?<!lesion's )diameter|area|size|measur",
        "components": r"parts?\b|components?\b",
        "side": r"midline|left|right",
        "height": r"top to bottom|front to back|upper|lower|middle|"
        r"anterior|posterior|central",
        "across": r"front to back|anterior|posterior|central",
        "depth": r"deep|depth|superficial|surface|body(?:'s)? diameter",
        "depth_mm": r"below|deep|depth|surface",
        "dark_ring": r"dark",
        "bright_ring": r"bright|dense structures",
        "air_ring": r"\bair\b|without signal",
    }.items()
}
# directions along the picture; which descriptor measures them depends on the plane
DIRECTIONS: tuple[tuple[re.Pattern, str, int], ...] = (
    (re.compile(r"\b(?:anterior(?:ly)?|ventral(?:ly)?|frontally)\b", re.I), "ap", 0),
    (re.compile(r"\b(?:posterior(?:ly)?|dorsal(?:ly)?)\b", re.I), "ap", 2),
    (re.compile(r"\b(?:upper|superior(?:ly)?|cranial(?:ly)?)\b", re.I), "si", 0),
    (re.compile(r"\b(?:lower|inferior(?:ly)?|caudal(?:ly)?)\b", re.I), "si", 2),
    (re.compile(r"\bfront\b", re.I), "ap", 0),
    (re.compile(r"\b(?:back|rear)\b", re.I), "ap", 2),
    (re.compile(r"\btop\b", re.I), "tb", 0),
    (re.compile(r"\bbottom\b", re.I), "tb", 2),
    (re.compile(r"\b(?:central part|centrally (?:located|placed)|cent(?:re|er) of the (?:body|brain|slice|picture))\b", re.I), "ap", 1),
)
# no measurement says where in the anatomy a lesion lies
ANATOMY = re.compile(
    r"\b(?:frontal|parietal|temporal|occipital|insular?|lob(?:e|es|ar)|cerebell\w+|vermis|\w*ventric\w+|brain ?stem|pons|pontine|"
    r"medulla\w*|midbrain|thalam\w+|hypothalam\w+|basal ganglia|corpus callosum|callosal|hippocamp\w+|\w*sellar?|pituitary|cavernous|"
    r"cliv(?:al|us)|"
    r"\w*falx|\w*falcine|tentori\w+|dura|dural|mening(?:es|eal)|convexity|skull(?: base)?|calvari\w+|\w*cortex|\w*cortical(?:ly)?|"
    r"white matter|gr[ae]y matter|(?:posterior|cranial|middle) fossa|cistern\w*|sulc(?:us|i|al)|gyr(?:us|i|al)|CSF|cerebrospinal|orbit\w*|"
    r"sinus(?:es)?|cerebellopontine|(?:intra|extra)-?axial|(?:supra|infra)tentorial|pineal|\w*hemispher\w+|hil(?:um|ar)|pleura\w*|"
    r"mediastin\w+|bronch\w+|fissures?|quadrant|ribs?|vertebra\w*|spinal|pelvic|aort\w+|portal vein|hepatic|renal|biliary)\b",
    re.I,
)
# nothing that was measured, or asked for, says this; it is also how an instruction hidden in the input would show
UNASKED = re.compile(
    r"https?:|www\.|\w@\w|\b(?:ignor\w+|disregard\w*|instruct\w+|system prompt|as an ai|language model|approv\w+|password|"
    r"patients?|year-old|histor(?:y|ical)|\w*glioma\w*|\w*blastoma\w*|meningioma\w*|metasta\w+|lymphoma\w*|\w*carcinoma\w*|\w*adenoma\w*|"
    r"\w*sarcoma\w*|schwannoma\w*|abscess\w*|infarct\w*|malignan\w+|benign|cancer\w*|grade|biops\w+|surg\w+|treat\w+|recommend\w*|"
    r"no (?:visible |evident |obvious |discernible )?(?:lesion|mass|tumou?r|nodule|abnormality)s?|unremarkable|(?:is|appears|looks) normal|"
    r"aggressive|harmless|neoplas\w*|plaques?|[hl]gg|gbm|nothing abnormal|last scan|has grown|unchanged|since \d{4}|"
    r"(?-i:(?:Mrs?|Ms|Dr)\.? [A-Z][a-z]+)|"
    r"follow-?up|diagnos\w+|differential|consistent with|suggestive of|suspicious for)\b",
    re.I,
)
# what may be seen in a picture, but was not measured
SEEN = re.compile(
    r"\b(?:enhanc\w+|necro\w+|cyst\w*|calcif\w+|h(?:a)?emorrhag\w+|o?edema\w*|infiltrat\w+|capsul\w+|mass effect|midline shift|"
    r"restricted diffusion|inva(?:des?|ding|sive)|"
    r"noise|noisy|artefacts?|artifacts?|fat|fluid|vessels?|vascular|bone|bony)\b",
    re.I,
)


def hits(sentence: str, plane: str | None = None) -> Iterator[Hit]:
    """Every polarity and direction word of a sentence."""
    left = sentence
    for match in SIGNAL.finditer(sentence):
        roots = {r.lower() for r in re.findall(r"hypo|iso|hyper", match[0], re.I)}
        if re.match(r"\s+(?:rim|core|structures?|surroundings)\b", sentence[match.end() :]):
            continue
        degree = _degree(sentence, match.start())
        indexes = tuple(sorted(i for r in roots for i in _ROOTS[r]))
        if len(roots) == 1 and degree in ("mild", "marked"):
            indexes = {"hypo": {"mild": (1,), "marked": (0,)}, "hyper": {"mild": (3,), "marked": (4, 5)}}.get(next(iter(roots)), {}).get(
                degree, indexes
            )
        local = bool(_LOCAL.match(sentence[match.end() :])) or len(roots) > 1
        yield _signal(indexes, sentence, match, local)
        left = _blank(left, match)
    for term in TERMS:
        for match in term.pattern.finditer(left):
            degree = _degree(sentence, match.start())
            indexes = (getattr(term, degree) if degree else ()) or term.base
            left = _blank(left, match)
            if term.descriptor:
                local = term.descriptor in ("variation", "edge_width", "contrast") and bool(_LOCAL.match(sentence[match.end() :]))
                local = local or term.descriptor == "contrast" and bool(_OF_PART.search(sentence[: match.start()]))
                if term.descriptor == "contrast":
                    yield _signal(indexes, sentence, match, local)
                else:
                    yield Hit(term.descriptor, indexes, _negated(sentence, match), match[0], local)
    for pattern, axis, index in DIRECTIONS:
        for match in pattern.finditer(left):
            name = (
                "height"
                if axis == "tb"
                else {
                    ("ap", "axial"): "height",
                    ("ap", "sagittal"): "across",
                    ("si", "sagittal"): "height",
                    ("si", "coronal"): "height",
                    ("si", None): "height",
                }.get((axis, plane), "")
            )
            yield Hit(name, (index,), _negated(sentence, match), match[0])


def _blank(text: str, match: re.Match) -> str:
    return text[: match.start()] + " " * len(match[0]) + text[match.end() :]


def _signal(indexes: tuple[int, ...], sentence: str, match: re.Match, local: bool) -> Hit:
    """A word of signal: of the lesion against its surroundings, of these against it, or of rim and core against each other."""
    for pair in _COMPARED.finditer(sentence):
        if pair.start() < match.start() < pair.end():
            rim_is_brighter = (min(indexes) > 2) == (pair["first"].lower() in ("rim", "periphery"))
            return Hit("rim_core", (2, 3) if rim_is_brighter else (0,), _negated(sentence, match), match[0])
    if AROUND.search(sentence[: match.start()]):
        indexes = tuple(sorted({i for index in indexes for i in _TURNED[index]}))
    return Hit("contrast", indexes, _negated(sentence, match), match[0], local)


def _degree(sentence: str, start: int) -> str:
    match = _BEFORE.search(sentence[:start])
    return match.lastgroup if match else ""


def _negated(sentence: str, match: re.Match) -> bool:
    """Whether a word is denied, before, within or after it in its clause."""
    before = bool(re.search(r"n't|\bnot\b", match[0]) or _NEGATED.search(re.split(r"[,;:.()]", sentence[: match.start()])[-1]))
    return before != bool(_DENIED.match(sentence[match.end() :]))
