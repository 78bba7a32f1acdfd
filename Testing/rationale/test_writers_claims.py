"""The default is to doubt: a sentence that claims more than was measured stays, and says so."""

from __future__ import annotations

import re

import pytest
from test_writers_verify import measured

from cers.case import PARTS, Rationale
from cers.rationale import parse_cot, read_cot_csv, to_rationale
from cers.rationale.writers import verify
from cers.rationale.writers.claims import beyond, marked


@pytest.mark.parametrize(
    "sentence, words",
    [
        ("With mass effect on the surrounding tissue.", ["mass effect"]),
        ("There is midline shift.", ["midline shift"]),
        ("It pushes the surrounding tissue to the left.", ["pushes"]),
        ("The lesion infiltrates adjacent tissue.", ["infiltrates"]),
        ("A high-grade tumour.", ["grade"]),
        ("Hyperintense lesion, likely a cyst.", ["cyst"]),
        ("Low noise, homogeneous.", ["noise"]),
        ("It may mimic a vessel.", ["mimic", "vessel"]),
        ("No calcification.", ["calcification"]),
        ("The prognosis is poor.", ["prognosis", "poor"]),
        ("Growing quickly.", ["Growing", "quickly"]),
        ("It crosses the midline.", ["crosses"]),
        ("Tissu n\u00e9crotique.", ["Tissu", "n\u00e9crotique"]),
    ],
)
def test_what_no_descriptor_measures_is_named(sentence, words):
    assert beyond(sentence, measured().statements, "axial") == words


@pytest.mark.parametrize(
    "sentence",
    [
        "Well-circumscribed with a sharp edge 1.3 mm wide.",
        "The signal is 40 % above the surrounding tissue and the texture is homogeneous.",
        "A small, round lesion; its margins appear partly indistinct against the adjacent brain.",
        "On the left, in the central part, 36 mm below the body surface.",
        "Hypo-/isointense signal with a mildly heterogeneous pattern.",
        "It isn\u2019t heterogeneous.",
        "In summary, a lesion spanning 31 mm and covering 2.1 % of the body in this slice, positioned on the left.",
        "Rim and core are alike, differing by 1 %; there is no irregularity.",
    ],
)
def test_what_speaks_about_the_findings_is_no_claim(sentence):
    assert not beyond(sentence, measured().statements, "axial")


@pytest.mark.parametrize("seen", [False, True])
def test_such_a_sentence_stays_and_is_marked_wherever_it_is_read(seen):
    text = "Texture: Homogeneous signal. The lesion displaces its surroundings.\nBoundary: Sharp edge.\nContext: Small.\nSummary: Round."
    rationale, findings = verify(parse_cot(text), measured(), writer="m", version="1", plane="axial", seen=seen)
    assert [(f.kind, f.sentence, f.reason) for f in findings if f.kind == "unmeasured"] == [
        ("unmeasured", "The lesion displaces its surroundings.", "not measured: displaces")
    ]
    statement = next(s for s in rationale.statements if "displaces" in s.text)
    assert statement.unmeasured and statement.text == "The lesion displaces its surroundings." and statement.descriptor is None
    assert rationale.part("texture").endswith("The lesion displaces its surroundings. [not measured: displaces]")
    assert "[not measured: displaces]" in rationale.text and "not measured" not in rationale.compact
    assert Rationale.from_dict(rationale.to_dict()) == rationale
    assert any(s.get("note") == "not measured: displaces" for s in rationale.to_dict()["statements"])


def test_real_texts_of_a_language_model_are_marked_where_they_speak_of_more(cers_data):
    table = cers_data / "brisc2025" / "cot_output_gpt5_mask.csv"
    if not table.is_file():
        pytest.skip("the table of BRISC rationales is not there")
    claims = re.compile(
        r"necro|cyst|edema|invas|infiltr|CSF|sinus|vessel|vascular|dura|mimic|noise|mass effect|enhanc|sellar|ventric", re.I
    )
    own, plain, sentences = measured().statements, 0, 0
    for row in read_cot_csv(table)[::20]:
        for statement in marked(to_rationale(row), own).statements:
            sentences += 1
            plain += not statement.unmeasured
            assert statement.unmeasured or not claims.search(statement.text), statement.text
            assert statement.part in PARTS and statement.text in statement.shown
    assert sentences > 500 and plain > 20, "what only speaks of margins and texture is not marked"
