"""What a sentence claims beyond the measured findings. The default is to doubt: a word that no list here knows is a claim nobody measured.

The lists hold what is said *about* findings; findings themselves are known by ``lexicon``, and held to the numbers in ``verify``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace

from ...case.records import Rationale, Statement
from . import lexicon

_NAMED = 4  # words in a note
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_GRAMMAR = """
a an the this that these those its it itself they them their there here which where while whose what as is are was were be been being am
has have had having do does did can could may might must shall should will would with without of in on at to from by for off over under
about above below between within among across along around beside near next through throughout into onto and or but nor so not no none
never neither either both each every all any some such same other others another only also too just even still yet than then though
although however whereas because if when more most much many less least few fewer little very quite rather fairly nearly almost roughly
approximately circa against amid toward towards somewhat slight slightly modest modestly mild mildly moderate moderately marked markedly
strong strongly minimal minimally subtle subtly faint faintly partly partially partial mostly largely predominantly mainly generally
relatively overall essentially completely entirely fully well poorly clearly clear visibly visible evident evidently apparent apparently
likely possibly possible probably seemingly isn't aren't doesn't don't hasn't first second last own one two three four five six seven
eight nine single solitary separate several multiple otherwise together again far anything means
"""
_TALK = """
lesion lesions mass masses nodule nodules tumor tumors tumour tumours finding findings abnormality part parts component components portion
portions segment segments area areas region regions zone zones spot spots focus foci slice slices picture image body surface tissue tissues
soft brain parenchyma structure structures interface interfaces surrounding surroundings neighbourhood neighborhood neighbouring
neighboring adjacent nearby background signal signals intensity intensities density densities attenuation brightness level levels texture
textures grain pattern appearance aspect look heterogeneity homogeneity uniformity nonuniformity variability blending blends blend blur
blurring separation edge edges margin margins border borders boundary boundaries outline outlines contour contours rim core centre center
periphery transition shape shapes form circularity size sizes extent diameter width depth distance position location site side direction
midline way contrast difference variation entropy range value share half axis high higher low lower bright brighter dark darker medium
sharp round rounded oval regular irregular deep deeper superficial central peripheral local locally focal focally internal internally
similar alike equal equally different clearer distinct defined ill circumscribed demarcated delineated marginated outlined blurred reduced
increased appear appears appearing show shows showing shown see seen looks seem seems remain remains read reads measure measures measured
measuring lie lies lying located situated placed sit sits present presents describe described demonstrate demonstrates display displays
exhibit exhibits exceed exceeds exceeding differ differs differing occupy occupies occupying span spans spanning cover covers covering
comprise comprises comprising positioned summary follow followed following compare compared comparison relative reach reaches contrasts mm
cm mm2 cm2 millimetre millimetres millimeter millimeters centimetre centimetres centimeter centimeters px pixel pixels percent bit bits mr
mri ct
"""
_KNOWN = frozenset(_GRAMMAR.split()) | frozenset(_TALK.replace("-", " ").split())


def beyond(sentence: str, measured: Iterable[Statement] = (), plane: str | None = None) -> list[str]:
    """The words of a sentence that neither stand in the measured findings nor speak about them; none where it claims no more.

    Args:
        measured: statements of the same case; their words may be used.
    """
    text = _plain(sentence)
    known = set(_KNOWN)
    for statement in measured:
        known |= _words(f"{statement.text} {statement.short or ''}")
    for hit in lexicon.hits(text, plane):
        if hit.descriptor:
            known |= _words(hit.word)
    # what is known for a claim is one, also where each of its words may be used elsewhere ("midline shift")
    found = {m.span(): m[0] for pattern in (lexicon.UNASKED, lexicon.ANATOMY, lexicon.SEEN) for m in pattern.finditer(text)}
    inside = [range(*span) for span in found]
    for match in _WORD.finditer(text):
        if match[0].lower() not in known and not any(match.start() in span for span in inside):
            found[match.span()] = match[0]
    return list(dict.fromkeys(found[span] for span in sorted(found)))


def mark(statement: Statement, words: list[str]) -> Statement:
    """The statement with a note of the words that were not measured (``Statement.unmeasured``); as it is without any."""
    if not words:
        return statement
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return replace(statement, note=f"{Statement.UNMEASURED}: {', '.join(words[:_NAMED])}{more}")


def marked(rationale: Rationale, measured: Iterable[Statement] = (), plane: str | None = None) -> Rationale:
    """A written rationale with a note at each sentence that claims what was not measured. measured: as of ``beyond``."""
    measured = list(measured)
    out = [mark(s, beyond(s.text, measured, plane)) for s in rationale.statements]
    return Rationale(out, rationale.descriptors, rationale.writer, rationale.version)


def _words(text: str) -> set[str]:
    return {match[0].lower() for match in _WORD.finditer(_plain(text))}


def _plain(text: str) -> str:
    return re.sub("[\u2018\u2019]", "'", unicodedata.normalize("NFKC", text))
