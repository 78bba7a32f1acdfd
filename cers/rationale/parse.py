"""Four-part rationales that people and language models write: Texture, Boundary, Context, Summary, in whatever layout they come."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from ..case.records import PARTS, Rationale, Statement
from ..errors import InputError

_NAMES = {
    "texture": "texture",
    "textures": "texture",
    "boundary": "boundary",
    "boundaries": "boundary",
    "border": "boundary",
    "borders": "boundary",
    "margin": "boundary",
    "margins": "boundary",
    "context": "context",
    "surroundings": "context",
    "summary": "summary",
    "conclusion": "summary",
}
_NAME = "|".join(sorted(_NAMES, key=len, reverse=True))
_NUMBER = r"(?:\(?\d{1,2}[.):]\)?[ \t]*)"
# bullet, table, heading sign, number, emphasis, quote, bracket; few of them, so that no text makes the search slow
_OPEN = rf"""(?:[-*•+>][ \t]+|\|[ \t]*|\#{{1,6}}[ \t]*|{_NUMBER}|[*_"'\[{{(][ \t]*){{0,6}}"""
_CLOSE = r"""[*_"'\])]{0,6}"""
# at the start of a line any separator will do
_LINE = re.compile(
    rf"^[ \t]*{_OPEN}(?P<name>{_NAME}){_CLOSE}(?:[ \t]*[:：=|]|[ \t]+[-–—]+(?=\s)|[ \t]*[.]?[ \t]*$){_CLOSE}[ \t]*", re.I | re.M
)
# within a line a heading is a capitalised (or quoted) name with a colon, after a sentence end or in bold
_INLINE = re.compile(
    rf"(?:(?:(?<=[.;!?|,}}\]\"])|(?<=[.;!?|]\*\*))[ \t]*{_NUMBER}?[*_\"'|\s]{{0,6}}|(?<=\s)\*\*{_NUMBER}?)"
    rf"(?P<name>{_NAME}){_CLOSE}[ \t]*[:：]{_CLOSE}[ \t]*",
    re.I,
)
THINKING = re.compile(r"^.*</think(?:ing)?>", re.S)  # some models' prompts hold its beginning, so that the answer has its end alone
_UNSEEN = {"Cc": " ", "Cf": "", "Cs": ""}  # controls; what has no width, which would hide a word; half a character
_LOST_HYPHEN = re.compile(r"(?<=[A-Za-z])\?(?=[a-z])")  # "non?enhancing": a typographic hyphen that an older encoding lost
_BRACKETS = {")": "(", "]": "[", "}": "{"}
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(])")


@dataclass(frozen=True)
class ParsedCoT:
    """parts: part -> text, in the order of ``PARTS``, only those that have text. missing: the others. rest: text before any heading."""

    parts: dict[str, str]
    missing: list[str] = field(default_factory=list)
    rest: str = ""


@dataclass(frozen=True)
class CoTRow:
    """One row of a rationale table. line: where it starts in the file, from 1. missing: parts that the row lacks."""

    image: str
    parts: dict[str, str]
    missing: list[str]
    line: int

    @property
    def parsed(self) -> ParsedCoT:
        return ParsedCoT(self.parts, self.missing)


def parse_cot(text: str | None) -> ParsedCoT:
    """Read a four-part rationale.

    Headings may be numbered, bold, bulleted, JSON keys, on a line of their own or within one line, in any order and case; a heading
    that comes twice continues its part. Nothing raises: a part without text is listed as missing.
    """
    text = (text or "").lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    text = re.sub(r"\n\s*\n", "\n\n", re.sub(r"[ \t]+", " ", THINKING.sub("", text)))
    if (parts := _from_json(text)) is not None:
        return ParsedCoT({p: parts[p] for p in PARTS if p in parts}, [p for p in PARTS if p not in parts])
    marks = {m.start("name"): m for m in _INLINE.finditer(text) if m["name"][0].isupper()}
    marks.update({m.start("name"): m for m in _LINE.finditer(text)})
    found = [marks[k] for k in sorted(marks)]
    parts: dict[str, str] = {}
    for match, after in zip(found, [*found[1:], None]):
        body = _clean(text[match.end() : after.start() if after else len(text)])
        if body:
            name = _NAMES[match["name"].lower()]
            parts[name] = f"{parts[name]} {body}" if name in parts else body
    rest = _clean(text[: found[0].start()] if found else text)
    return ParsedCoT({p: parts[p] for p in PARTS if p in parts}, [p for p in PARTS if p not in parts], rest)


def read_cot_csv(path: str | Path) -> list[CoTRow]:
    """Read a table of rationales: columns ``image`` (or ``case``, or ``id``) and ``cot``, or the four parts.

    UTF-8 (with or without mark), UTF-16 with mark and Windows-1252 are read; the separator may be comma, semicolon or tab. Every row is
    returned, also one without an image name or without any part: ``missing`` says what it lacks.

    Raises:
        InputError: no such file, not a text table, or neither of the two sets of columns.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"The rationale table {path} cannot be read ({error.strerror}). Choose an existing CSV file.") from error
    text = _decode(raw)
    head = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=False)
    out: list[CoTRow] = []
    columns: dict[str, int] | None = None
    end = 0
    try:
        for cells in reader:
            line, end = end + 1, reader.line_num
            if not any(c.strip() for c in cells):
                continue
            if columns is None:
                columns = {c.strip().lower(): n for n, c in enumerate(cells)}
                key = next((name for name in ("image", "case", "id") if name in columns), None)
                if key is None or not ("cot" in columns or set(PARTS) <= set(columns)):
                    raise InputError(
                        f"The rationale table {path} needs the columns image (or case) and cot, or image, {', '.join(PARTS)}; "
                        f"it has {', '.join(c or '(no name)' for c in cells)[:200]}."
                    )
                continue
            value = {name: cells[n] if n < len(cells) else "" for name, n in columns.items()}
            if "cot" in columns:
                parsed = parse_cot(value["cot"])
            else:
                parts = {p: t for p in PARTS if (t := _clean(value[p]))}
                parsed = ParsedCoT(parts, [p for p in PARTS if p not in parts])
            out.append(CoTRow(value[key].strip(), parsed.parts, parsed.missing, line))
    except csv.Error as error:
        raise InputError(f"The rationale table {path} is damaged near line {end + 1} ({error}). Save it again as CSV in UTF-8.") from error
    if columns is None:
        raise InputError(f"The rationale table {path} is empty. It needs a first line with the columns image and cot.")
    return out


def to_rationale(parsed: ParsedCoT | CoTRow, writer: str = "imported", *, version: str = "1") -> Rationale:
    """A rationale of the written sentences, none resting on a measurement."""
    statements = [Statement(part, sentence) for part in PARTS for sentence in sentences(parsed.parts.get(part, ""))]
    return Rationale(statements, {}, writer, version)


def sentences(text: str) -> list[str]:
    """The sentences of one part."""
    return [s for s in _SENTENCE.split(text) if s.strip()]


def _from_json(text: str) -> dict[str, str] | None:
    """Parts of a JSON object, whatever stands around it; None where there is none."""
    start, end = text.find("{"), text.rfind("}")
    try:
        values = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    out: dict[str, str] = {}
    inner = [v for v in values.values() if isinstance(v, dict)]
    for key, value in (item for found in (values, *inner) for item in found.items()):
        name = _NAMES.get(key.strip().lower())
        value = " ".join(v for v in value if isinstance(v, str)) if isinstance(value, list) else value
        if name and isinstance(value, str) and _clean(value):
            out[name] = f"{out[name]} {_clean(value)}" if name in out else _clean(value)
    return out if out or not text[:start].strip() else None


def _clean(text: str) -> str:
    """One line without markdown emphasis, stray brackets and signs that nobody sees, with lost hyphens put back."""
    text = "".join(_UNSEEN.get(unicodedata.category(c), c) if c not in "\n\t" else c for c in text)
    text = re.sub(r"\*\*|__|^\s*[*•+>]\s+|^\s*-\s+(?!\d)|^\s*#{1,6}\s*|^\s*\|?[-:| ]{3,}\|?\s*$", " ", text, flags=re.M)
    text = _LOST_HYPHEN.sub("-", re.sub(r"\s+", " ", text)).strip()
    text = text.lstrip(" :|,").rstrip(" |,*#`")
    if text.count('"') % 2:
        text = text.strip('"')
    for close, open_ in _BRACKETS.items():
        if text.endswith(close) and text.count(close) > text.count(open_):
            text = text[:-1].rstrip(' "')
    return text


def _decode(raw: bytes) -> str:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", "replace").lstrip("\ufeff")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")
