"""What CERS Segment says on the screen of a slice, its references and its words."""

from __future__ import annotations

import importlib

import pytest
from segmentkit import ROOT


@pytest.fixture
def part(host, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "CERSSegment"))
    return lambda name: importlib.import_module(f"CERSSegmentLib.{name}")


def test_words_speak_plainly_and_escape_what_others_wrote(host, part):
    import qt

    words, palette = part("Words"), qt.QPalette()
    rationale = {"statements": [{"part": "summary", "text": "<script>bad</script> & more"}]}
    assert "<script>" not in words.rationaleHtml(rationale, palette)
    evidence = {
        "rejected": [
            {"id": "abcdef0123", "stage": "compatibility", "reason": "a <b>CT</b> case"},
            {"id": "123456789a", "stage": "limit", "reason": "Not needed."},
            {"id": "bcdef01234", "stage": "compatibility", "reason": "a <b>CT</b> case"},
        ],
        "coverage": {"covered": False, "message": "No close case in this pool."},
        "pixels": 10,
        "disagreement": 0.5,
        "confidence": 0.8,
    }
    rejected = words.rejectedHtml(evidence, palette)
    assert rejected.count("a &lt;b&gt;CT&lt;/b&gt; case") == 1 and "(abcdef01, bcdef012)" in rejected and rejected.count("<p") == 2
    assert words.coverage(evidence) == (False, "No close case in this pool.")
    good, sentence = words.trust(evidence)
    assert not good and "check this slice" in sentence and "0.80" in sentence
    assert words.trust({**evidence, "disagreement": 0.02})[0]
    good, sentence = words.trust({**evidence, "disagreement": 0.02, "confidence": 0.37})
    assert not good and "Low confidence 0.37" in sentence
    assert not words.trust({"pixels": 0, "disagreement": 0.9})[0]
    assert words.trust({"pixels": 0, "disagreement": 0.0}) == (True, "Nothing found in this slice.")
    good, sentence = words.trust({**evidence, "disagreement": 0.0, "marked": False})
    assert not good and "Neither decoder marks anything here" in sentence and "agree" not in sentence
    good, sentence = words.trust({"pixels": 0, "disagreement": 0.0, "left_out": 250}, (2.0, 1.0))
    assert not good and "This one shows 5.00\u00a0cm² (dashed)" in sentence and "left out" in sentence
    good, sentence = words.trust({**evidence, "disagreement": 0.02, "left_out": 7})
    assert not good and "Confidence 0.80" in sentence and "7\u00a0pixels more shown by this plane (dashed), left out" in sentence
    assert "CoT –" in words.scores({"visual": 0.5, "cot": None})
    told = [words.scores({"visual": 0.5, "cot": None, "influence": n}) for n in (0.0, 0.0003, 0.0049, 0.0051)]
    assert [t.split("influence\u00a0")[1] for t in told] == ["0.00", "below\u00a00.01", "below\u00a00.01", "0.01"]


def test_a_reference_that_the_others_contradict_is_named_so(part):
    from cers.network.evidence import AGREED

    words, one = part("Words"), {"visual": 0.9, "cot": 0.8, "influence": 0.0, "pinned": False}
    assert words.CONTRADICTED == AGREED[0]
    for agreement, expected in ((None, False), (AGREED[0] - 0.01, True), (AGREED[0] + 0.01, False)):
        assert ("contradicted" in words.scores({**one, "agreement": agreement})) is expected
        assert ("influence" in words.scores({**one, "agreement": agreement})) is not expected
    assert "contradicted" not in words.scores({**one, "agreement": 0.0, "pinned": True})  # it counts all the same
    assert "contradicted" in words.scoresHelp()


def test_claims_that_nobody_measured_are_marked_on_the_screen(part):
    words = part("Words")
    said = [{"part": "texture", "text": "Homogeneous."}, {"part": "texture", "text": "It invades.", "note": "not measured: invades"}]
    instead = {"part": "texture", "text": "Hyperintense (+40 %).", "note": "polarity: 'dark', but contrast is 40"}
    assert words.part({"statements": [*said, instead]}, "texture") == (
        "Homogeneous. It invades. [not measured: invades] Hyperintense (+40\u00a0%)."
    )


def test_a_picture_has_no_millimetres(host, part):
    words, palette = part("Words"), host.app.palette()
    text = words.queryHtml({"rationale": None, "pixels": 250}, None, palette)
    assert "250\u00a0pixels" in text and "cm" not in text
    picture = {"volume_ml": None, "area_mm2": None, "pixels": {"tumor": 250}, "picture_share": {"tumor": 0.125}}
    assert words.amount(picture, "tumor") == "250 pixels (12.5\u00a0% of the picture)"
    assert words.amount({**picture, "area_mm2": {"tumor": 62.5}}, "tumor") == "62 mm²"
    assert words.amount({"pixels": {"tumor": 9}, "volume_ml": {"tumor": 1.04}}, "tumor") == "1.0 ml"


def test_what_is_small_is_not_told_as_nothing(part):
    words = part("Words")
    assert words.amount({"pixels": {"tumor": 9}, "volume_ml": {"tumor": 0.037}}, "tumor") == "37 mm³"
    assert words.amount({"pixels": {"tumor": 1}, "volume_ml": None, "area_mm2": {"tumor": 0.3}}, "tumor") == "0.3 mm²"
    tiny = {"pixels": {"tumor": 1}, "volume_ml": None, "area_mm2": None, "picture_share": {"tumor": 1e-5}}
    assert words.amount(tiny, "tumor") == "one pixel (<0.1\u00a0% of the picture)"
    assert words.contour({"pixels": 1}, (0.5, 0.5)) == "The contour is the final mask, 0.25\u00a0mm²"


def test_what_the_query_was_measured_on_is_said(host, part):
    """The words are those of the contour shown; where the first mask reads differently, that is said."""
    words, palette = part("Words"), host.app.palette()
    rationale = {"statements": [{"part": "texture", "text": "Hyperintense (+40 %)."}]}
    entry = {"rationale": rationale, "pixels": 250, "references": [{"id": "a"}], "first_rationale": rationale}
    text = words.queryHtml(entry, (0.5, 0.8), palette)
    assert "Hyperintense (+40\u00a0%)." in text and "Measured under the contour" in text and "final mask, 1.00\u00a0cm²" in text
    assert "differently" not in text and "by hand" not in text
    text = words.queryHtml({**entry, "first_differs": ["size: small (1 %) against large (4 %)"]}, (0.5, 0.8), palette, edited=True)
    assert "differently" in text and "size: small (1 %) against large (4 %)" in text and "Changed by hand" in text
    assert "by look alone" in words.queryHtml({**entry, "first_rationale": None}, (0.5, 0.8), palette)
    assert "first mask" not in words.queryHtml({**entry, "references": []}, (0.5, 0.8), palette)
    old = {"rationale": rationale, "pixels": 250, "references": [{"id": "a"}]}  # of a scene that an earlier version saved
    assert "Measured on the first mask" in words.queryHtml(old, (0.5, 0.8), palette)
    nothing = words.queryHtml({"rationale": None, "pixels": 0, "first_rationale": rationale}, (0.5, 0.8), palette)
    assert "Nothing was found" in nothing == words.queryHtml(None, (1, 1), palette)


def test_one_is_not_told_as_several(part):
    added = part("Words").added
    result = {"ids": ["a"], "added": ["a"], "replaced": [], "renamed": [], "dice": None}
    assert added(result, []) == "One slice was added to the pool; the next Segment can use it."
    assert "already (one slice)" in added({**result, "added": []}, [])
    emptied = added({**result, "added": [], "replaced": ["b"]}, [])
    assert emptied == "One earlier slice of this volume stays in the pool, but is no longer used.", "nothing was added"
    assert "2 slices were added" in added({**result, "added": ["a", "b"]}, [])
