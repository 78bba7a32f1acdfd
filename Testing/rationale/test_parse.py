"""Rationales as people and language models write them."""

from __future__ import annotations

import csv
import re
import time

import pytest

from cers.case import PARTS
from cers.errors import InputError
from cers.rationale import parse_cot, read_cot_csv, to_rationale

FOUR = {
    "texture": "Mildly heterogeneous.",
    "boundary": "Sharp; well-defined.",
    "context": "Near CSF: cisterns.",
    "summary": "A mass, 12 mm.",
}


@pytest.mark.parametrize(
    "layout",
    [
        "Texture: {texture}\nBoundary: {boundary}\nContext: {context}\nSummary: {summary}",
        "Texture: {texture}  \r\nBoundary: {boundary}  \r\n\r\nContext: {context}\r\nSummary: {summary}\r\n",
        "\ufeffTEXTURE: {texture}\rboundary : {boundary}\rContext :{context}\rsummary:{summary}",
        "**Texture:** {texture}\n**Boundary**: {boundary}\n__Context__: {context}\n*Summary:* {summary}",
        "1. Texture: {texture}\n2) **Boundary:** {boundary}\n(3) Context: {context}\n4. *Summary*: {summary}",
        "- Texture: {texture}\n* Boundary: {boundary}\n• Context: {context}\n> Summary: {summary}",
        "# Texture\n{texture}\n\n## Boundary\n{boundary}\n### 3. Context\n{context}\n\n**Summary**\n{summary}",
        "Texture - {texture}\nMargins – {boundary}\nContext — {context}\nConclusion = {summary}",
        "Texture：{texture}\nBorder：{boundary}\nSurroundings：{context}\nSummary：{summary}",
        "Texture: {texture} Boundary: {boundary} Context: {context} Summary: {summary}",
        "1. Texture: {texture} 2. Boundary: {boundary} 3. Context: {context} 4. Summary: {summary}",
        "**Texture:** {texture} **Boundary:** {boundary} **Context:** {context} **Summary:** {summary}",
        "[Texture] : {texture}\n[Boundary]: {boundary}\n[Context]: {context}\n[Summary]: {summary}",
        "| Texture | {texture} |\n| --- | --- |\n| Boundary | {boundary} |\n| Context | {context} |\n| Summary | {summary} |",
        "Summary: {summary}\nContext: {context}\nTexture: {texture}\nBoundary: {boundary}",
        '{{"Texture": "{texture}", "boundary": "{boundary}", "Context": "{context}", "Summary": "{summary}"}}',
        '```json\n{{"texture": "{texture}", "boundary": "{boundary}",\n "context": "{context}", "summary": "{summary}"}}\n```',
        'So:\n```json\n{{"Texture": "{texture}", "Boundary": "{boundary}",\n"Context": "{context}", "Summary": "{summary}"}}\n```\n!',
        '{{"rationale": {{"texture": "{texture}", "boundary": ["{boundary}"], "context": "{context}", "summary": "{summary}"}}}}',
        "<think>\nTexture: dark?\n</think>\nTexture: {texture}\nBoundary: {boundary}\nContext: {context}\nSummary: {summary}",
        "Texture: dark?\nNo.\n</think>\n\nTexture: {texture}\nBoundary: {boundary}\nContext: {context}\nSummary: {summary}",
        "Here is what I see.\n\nTexture:\n{texture}\nBoundary:\n{boundary}\nContext:\n{context}\nSummary:\n{summary}",
    ],
)
def test_layouts(layout):
    parsed = parse_cot(layout.format(**FOUR))
    assert parsed.parts == FOUR and list(parsed.parts) == list(PARTS) and parsed.missing == []


def test_words_that_only_look_like_headings_stay_text():
    parsed = parse_cot(
        "Texture: smooth texture: fine.\nContext-dependent signal.\nBoundary: the margin - sharp - abuts.\n"
        "Context: in context\nSummary: -5 HU"
    )
    assert parsed.parts == {
        "texture": "smooth texture: fine. Context-dependent signal.",
        "boundary": "the margin - sharp - abuts.",
        "context": "in context",
        "summary": "-5 HU",
    }


def test_text_is_kept_as_written():
    text = 'a so-called "dural tail"; T1. Seen in 3.5 mm (5–10 % of [all]) on T1.'
    assert parse_cot(f"Texture: {text}\nBoundary: {text}").parts == {"texture": text, "boundary": text}
    assert parse_cot("Texture: non?enhancing, is it? Yes").parts["texture"] == "non-enhancing, is it? Yes"


@pytest.mark.parametrize(
    "text,missing",
    [
        ("", list(PARTS)),
        (None, list(PARTS)),
        ("no parts here", list(PARTS)),
        ("Texture", list(PARTS)),
        ("Error: rate limit", list(PARTS)),
        ("Texture:\nBoundary: x", ["texture", "context", "summary"]),
        ("Texture: a\nContext: c\nSummary: s", ["boundary"]),
        ('{"texture": 3}', list(PARTS)),
        ("{texture", list(PARTS)),
    ],
)
def test_what_is_missing_is_named(text, missing):
    assert parse_cot(text).missing == missing


def test_a_part_that_comes_twice_is_continued_and_other_text_kept_apart():
    parsed = parse_cot("My view.\nTexture: a\nBoundary: b\nTexture: c")
    assert parsed.parts == {"texture": "a c", "boundary": "b"} and parsed.rest == "My view."


@pytest.mark.parametrize(
    "unit", ["*", "(1)", ". ", " ", "\n", "\n -", "Texture ", 'Texture: "', "[[", "|", "a. **", "1. ", '"', "{", "}", "Texture:)", '{"a":']
)
def test_no_text_makes_it_slow(unit):
    start = time.process_time()
    parse_cot(unit * 20_000)
    parse_cot("Texture: a" + unit * 20_000 + "x")
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "name,incomplete",
    [
        ("mask", {}),
        (
            "no_mask",
            {
                "brisc2025_train_00444_gl_co_t1": ["context", "summary"],
                "brisc2025_train_04506_pi_sa_t1": ["boundary", "context", "summary"],
            },
        ),
    ],
)
def test_every_real_row_is_read(cers_data, name, incomplete):
    path = cers_data / "brisc2025" / f"cot_output_gpt5_{name}.csv"
    rows = read_cot_csv(path)
    assert len(rows) == 4369 and len({r.image for r in rows}) == 4369
    assert {r.image: r.missing for r in rows if r.missing} == incomplete
    with path.open(encoding="utf-8", newline="") as stream:
        raw = {r["image"]: r["cot"] for r in csv.DictReader(stream)}
    lines = path.read_text("utf-8").split("\n")
    for row in rows:
        written = [re.sub(r"\s+", " ", t.split(":", 1)[1]).strip() for t in raw[row.image].split("\n") if t.strip()]
        expected = [re.sub(r"(?<=[A-Za-z])\?(?=[a-z])", "-", t) for t in written]
        assert list(row.parts.values()) == expected, row.image
        assert lines[row.line - 1].startswith(row.image + ",")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_encodings_and_separators(tmp_path, encoding, separator):
    path = tmp_path / "cot.csv"
    text = ('Image|CoT\r\nfall_ä|"Texture: größer – heller, weich; rund\nSummary: s"\r\n\r\nb|\r\n|Texture: t\r\n').replace("|", separator)
    path.write_bytes(text.encode(encoding))
    rows = read_cot_csv(path)
    assert [(r.image, r.line) for r in rows] == [("fall_ä", 2), ("b", 5), ("", 6)]
    assert rows[0].parts == {"texture": "größer – heller, weich; rund", "summary": "s"} and rows[1].missing == list(PARTS)


def test_table_with_a_column_for_each_part(tmp_path):
    path = tmp_path / "cot.csv"
    path.write_text("image,Texture,Boundary,Context,Summary,reader\na,t,b,c,s,me\nb,t,,c\n", "utf-8")
    rows = read_cot_csv(path)
    assert rows[0].parts == dict(zip(PARTS, "tbcs")) and rows[1].missing == ["boundary", "summary"]


@pytest.mark.parametrize(
    "content,words",
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"name,text\na,b\n", "needs the columns"),
        (b"image,texture,boundary\n", "needs the columns"),
        (b'image,cot\na,"' + b"x" * 200_000 + b'"\n', "damaged near line 2"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00", "rationale table"),
    ],
)
def test_unusable_tables_are_one_clear_sentence(tmp_path, content, words):
    path = tmp_path / "cot.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_cot_csv(path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_cot_csv(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_cot_csv(tmp_path)


def test_to_rationale():
    r = to_rationale(parse_cot("Texture: Smooth. No noise, 3.5 mm.\nSummary: A mass."))
    assert [(s.part, s.text) for s in r.statements] == [("texture", "Smooth."), ("texture", "No noise, 3.5 mm."), ("summary", "A mass.")]
    assert all(s.descriptor is None and s.value is None for s in r.statements)
    assert r.writer == "imported" and r.descriptors == {} and r.text == "Texture: Smooth. No noise, 3.5 mm.\nSummary: A mass."
    assert to_rationale(parse_cot("")).text == ""
