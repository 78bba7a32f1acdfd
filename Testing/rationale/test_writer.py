"""Words and numbers must agree, be informative on real cases, and contradict each other only where they are opposite."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cers.case import PARTS, Case, Rationale, Statement
from cers.rationale import DESCRIPTORS, THRESHOLDS, beside, contradictions, describe, measure, write_measured
from cers.rationale.parse import parse_cot
from cers.rationale.sentences import SENTENCES, TERMS
from cers.rationale.writer import POSITION_WORDS
from cers.rationale.writers.verify import verify

NUMBER = re.compile(r"\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def rationales(brisc):
    return [(row, describe(image, mask, plane=row["plane"], modality="MR")) for row, image, mask in brisc]


def test_a_case_whose_plane_is_not_known_is_told_without_its_place():
    image = np.where(np.hypot(*(np.mgrid[:64, :64] - 32)) < 28, 100.0, 0.0) + np.arange(64) / 8
    mask = np.hypot(*(np.mgrid[:64, :64] - np.array([28, 44])[:, None, None])) < 6
    image[mask] += 80
    measured = describe(image, mask, (1.0, 1.0), modality="MR", plane=None)
    case = Case(image.astype(np.float32), mask.astype(np.uint8), {1: "tumor"}, spacing=(1.0, 1.0), modality="MR", rationale=measured)
    told = beside(case)
    assert (
        " left" in measured.text and told.descriptors["side"] is None and told.descriptors["area_mm2"] == measured.descriptors["area_mm2"]
    )
    assert not re.search(r"\b(left|right|midline|upper|lower)\b", told.text) and " mm" in told.text
    assert beside(replace(case, plane="axial")) is measured
    assert beside(replace(case, rationale=None)) is None
    words = replace(measured, writer="imported")
    assert beside(replace(case, rationale=words)) is words


def test_four_parts_in_order(rationales):
    for _, r in rationales:
        assert [line.split(":")[0] for line in r.text.split("\n")] == [p.capitalize() for p in PARTS]
        order = [PARTS.index(s.part) for s in r.statements]
        assert order == sorted(order) and r.writer == "measured" and r.version
        assert Rationale.from_dict(r.to_dict()) == r


def test_each_sentence_carries_the_number_of_its_descriptor(brisc):
    for row, image, mask in brisc[:60]:
        for spacing in (None, (0.5, 0.5)):
            r = describe(image, mask, spacing, plane=row["plane"], modality="MR")
            for s in r.statements:
                if s.part == "summary":
                    assert s.descriptor is None and not NUMBER.search(s.text)
                    continue
                assert s.value == r.descriptors[s.descriptor] and s.unit == DESCRIPTORS[s.descriptor][0]
                for text in (s.text, s.short):
                    if s.descriptor == "components" and text is s.text:
                        assert text in ("Two separate parts.", "Three separate parts.", "Four separate parts."), text
                        continue
                    number = NUMBER.search(text)[0]
                    digits = len(number.partition(".")[2])
                    assert abs(abs(s.value) - float(number)) <= 0.5 * 10**-digits + 1e-9, s
                if s.unit in ("mm", "px", "mm2"):
                    assert spacing and s.unit == "mm" and " mm" in s.text
                elif s.unit:
                    assert f"{number} {s.unit}" in s.text


def test_no_millimetres_without_a_spacing(rationales):
    assert not any(" mm" in r.text for _, r in rationales)


def test_words_are_those_of_the_table(rationales):
    for row, r in rationales:
        for s in r.statements:
            if s.descriptor in THRESHOLDS:
                scale = THRESHOLDS[s.descriptor]
                index = scale.index(s.value)
                words = POSITION_WORDS.get(row["plane"], scale.words) if s.descriptor == "height" else scale.words
                assert s.part == scale.part and s.short.lower().startswith(words[index].lower())
                assert TERMS.get(s.descriptor, words)[index] in s.text.lower()
        summary = r.compact.split("Summary: ")[1].lower()
        for name in ("area_body", "contrast", "variation", "depth"):
            if r.descriptors[name] is not None:
                assert THRESHOLDS[name].word(r.descriptors[name]) in summary
        for name in ("area_body", "contrast", "variation", "faint_contour"):
            if r.descriptors[name] is not None:
                assert THRESHOLDS[name].word(r.descriptors[name]) in r.part("summary").lower()


def test_table_is_sound():
    for name, scale in THRESHOLDS.items():
        assert name in DESCRIPTORS and scale.part in PARTS
        assert list(scale.bounds) == sorted(set(scale.bounds)) and len(scale.words) == len(scale.bounds) + 1 == len(set(scale.words))
        assert not scale.poles or (len(scale.poles) == len(scale.words) and list(scale.poles) == sorted(scale.poles))
        for a, b in zip(scale.poles, scale.poles[1:]):
            assert a * b >= 0, f"{name}: neighbouring categories would contradict"
        assert len(set(TERMS.get(name, scale.words))) == len(scale.words), f"{name}: a term for each word"
        assert [not w for w in TERMS.get(name, scale.words)] == [not w for w in scale.words]
        assert isinstance(SENTENCES[name], str) or len(SENTENCES[name]) == len(scale.words)
        for n, bound in enumerate(scale.bounds):
            assert scale.index(bound) == n + 1 and scale.index(bound - 10.0**-scale.digits) == n
            assert round(bound, scale.digits) == bound


def test_word_and_printed_number_never_disagree():
    """Just below a bound the number prints as the bound; the word must then be the upper one."""
    for name, scale in THRESHOLDS.items():
        for n, bound in enumerate(scale.bounds):
            assert scale.index(bound - 0.4 * 10**-scale.digits) == n + 1


def test_words_are_informative_on_real_cases(rationales):
    """No word may hold for more than nine cases in ten, and none of the table may be idle."""
    for name, scale in THRESHOLDS.items():
        words = Counter(scale.word(r.descriptors[name]) for _, r in rationales if r.descriptors[name] is not None)
        total = sum(words.values())
        print(f"{name:14s}", {w: f"{100 * words[w] / total:.0f} %" for w in scale.words})
        assert max(words.values()) <= 0.9 * total, name
        assert all(words[w] >= 0.01 * total for w in scale.words), name
    whole = Counter(re.sub(r"\d+(\.\d+)?%?", "", r.compact) for _, r in rationales)
    assert len(whole) > 0.9 * len(rationales), "two lesions in ten read alike"


def test_text_is_short(rationales):
    assert max(len(r.compact) for _, r in rationales) < 420
    assert max(len(r.text) for _, r in rationales) < 1000 and max(len(r.part("summary")) for _, r in rationales) < 150


def test_little_noise_changes_few_words(brisc):
    rng = np.random.default_rng(0)
    same = total = 0
    for row, image, mask in brisc[:60]:
        noisy = image + rng.normal(0, 1.0, image.shape)
        a, b = (measure(i, mask, plane=row["plane"], modality="MR") for i in (image.astype(float), noisy))
        for name, scale in THRESHOLDS.items():
            if a[name] is not None:
                total += 1
                same += b[name] is not None and scale.word(a[name]) == scale.word(b[name])
    assert same >= 0.97 * total


def test_descriptors_that_are_none_give_no_sentence():
    r = write_measured(dict.fromkeys(DESCRIPTORS), spacing_known=True, plane="axial")
    assert [s.part for s in r.statements] == ["summary"] and "None" not in r.text and "nan" not in r.text.lower()
    r = write_measured({"contrast": 37.4}, spacing_known=True)
    assert r.part("texture") == "Hyperintense to the surrounding tissue (+37 %)." and r.part("summary") == "A hyperintense lesion."
    assert r.compact == "Texture: Hyperintense 37%.\nSummary: Hyperintense lesion."


def test_millimetres_where_known(head):
    image, mask = head((1.0, 1.0))
    text = describe(image, mask, (1.0, 1.0), plane="axial").part("context")
    assert "About 32 mm across (area 8.1 cm²)." in text and " mm below the body surface." in text


def test_the_smallest_lesion_is_not_told_as_none(head):
    image, _ = head((0.4, 0.4))
    for pixels, words, short in ((1, "0.45 mm across (area 0.16 mm²)", "0.45 mm"), (4, "0.9 mm across (area 0.64 mm²)", "0.9 mm")):
        mask = np.zeros(image.shape, bool)
        mask[90, 90 : 90 + pixels] = True
        r = describe(image, mask, (0.4, 0.4), plane="axial")
        assert f"About {words}." in r.part("context") and f" {short} across." in r.compact
        share = f"{r.descriptors['area_body']:.2g}"
        assert 0 < float(share) < 0.05 and f"{share} % of the body" in r.part("context") and f"{share}% of body" in r.compact
        back, findings = verify(parse_cot(r.text), r, writer="model-x", version="1", plane="axial")
        assert not [f for f in findings if f.kind == "number"] and f"About {words}." in back.part("context")


def _with(**values):
    return write_measured({**dict.fromkeys(DESCRIPTORS), **values}, spacing_known=False)


@pytest.mark.parametrize(
    "name,low,near,high,words",
    [
        ("contrast", -30, 0, 40, ("hypointense", "hyperintense")),
        ("variation", 10, 16, 30, ("homogeneous", "heterogeneous")),
        ("faint_contour", 0, 20, 60, ("well-defined", "ill-defined")),
        ("edge_width", 4, 7, 15, ("sharp", "blurred")),
        ("compactness", 40, 60, 90, ("irregular", "regular")),
        ("rim_core", -20, 0, 25, ("core brighter", "ring-like bright rim")),
        ("area_body", 0.5, 4, 9, ("small", "very large")),
        ("depth", 3, 20, 35, ("superficial", "deep")),
    ],
)
def test_opposites_contradict_and_neighbours_do_not(name, low, near, high, words):
    a, m, b = (_with(**{name: float(v)}) for v in (low, near, high))
    for x, y in ((a, b), (b, a)):
        reasons = contradictions(x, y)
        assert len(reasons) == 1 and all(w in reasons[0] for w in words)
        assert all(f"{abs(v):g}" in reasons[0] for v in (low, high))
    for x, y in ((a, m), (m, a), (m, b), (a, a), (b, b), (a, _with())):
        assert contradictions(x, y) == []


def test_contradictions_are_symmetric_on_real_cases(rationales):
    some = [r for _, r in rationales[:40]]
    counts = Counter()
    for a in some:
        assert contradictions(a, a) == []
        for b in some:
            forth, back = contradictions(a, b), contradictions(b, a)
            assert [t.split(":")[0] for t in forth] == [t.split(":")[0] for t in back]
            counts[len(forth)] += 1
    assert counts[0] > 0.1 * len(some) ** 2 and sum(counts[n] for n in counts if n) > 0.1 * len(some) ** 2


def test_imported_text_contradicts_nothing():
    assert contradictions(Rationale([], {}, "imported"), _with(contrast=50.0)) == []


ONE = {
    "contrast": -2.3,
    "variation": 17.8,
    "glcm_entropy": 2.31,
    "rim_core": -1.6,
    "faint_contour": 28.7,
    "edge_width": 9.2,
    "edge_width_mm": 5.24,
    "compactness": 34.6,
    "area_body": 6.7,
    "area_mm2": 2530.0,
    "diameter_mm": 56.8,
    "components": 2.0,
    "side": 15.7,
    "height": 50.2,
    "across": 57.0,
    "depth": 0.0,
    "depth_mm": 0.3,
    "dark_ring": 12.4,
    "bright_ring": 8.0,
    "air_ring": 3.0,
}
TWO = {
    **ONE,
    "contrast": 50.0,
    "variation": 13.6,
    "glcm_entropy": 4.44,
    "rim_core": 22.0,
    "faint_contour": 0.4,
    "edge_width": 5.1,
    "compactness": 80.2,
    "area_body": 0.94,
    "components": 1.0,
    "side": -31.0,
    "height": 30.0,
    "depth": 27.3,
    "dark_ring": 30.0,
    "bright_ring": 1.0,
    "air_ring": 20.0,
}


@pytest.mark.parametrize("modality", [None, "MR", "CT"])
@pytest.mark.parametrize(
    "numbers,how,compact",
    [
        (
            ONE,
            {"spacing_known": True, "plane": "axial"},
            (
                "Texture: Isointense -2%. Heterogeneous 18%. Fine grain 2.3. Even rim -2%.\n"
                "Boundary: Partly ill-defined, 29% faint. Blurred edge 9%. Edge 5.2 mm wide. Irregular shape 35%.\n"
                "Context: Very large, 6.7% of body. 57 mm across. 2 parts. Left 16%. Central 50%. Superficial 0%. 0 mm from the body "
                "edge. Some dark around 12%. Much bright around 8%.\n"
                "Summary: Very large isointense heterogeneous lesion, superficial."
            ),
        ),
        (
            ONE,
            {"spacing_known": False, "plane": "sagittal"},
            (
                "Texture: Isointense -2%. Heterogeneous 18%. Fine grain 2.3. Even rim -2%.\n"
                "Boundary: Partly ill-defined, 29% faint. Blurred edge 9%. Irregular shape 35%.\n"
                "Context: Very large, 6.7% of body. 2 parts. Centre 57%. Middle 50%. Superficial 0%. Some dark around 12%. Much bright "
                "around 8%.\n"
                "Summary: Very large isointense heterogeneous lesion, superficial."
            ),
        ),
        (
            TWO,
            {"spacing_known": True, "plane": "coronal"},
            (
                "Texture: Markedly hyperintense 50%. Mildly heterogeneous 14%. Coarse grain 4.4. Ring-like rim 22%.\n"
                "Boundary: Well-defined, 0% faint. Sharp edge 5%. Edge 5.2 mm wide. Regular shape 80%.\n"
                "Context: Small, 0.9% of body. 57 mm across. Right 31%. Upper 30%. Deep 27%. 0 mm from the body edge. Much dark around "
                "30%. Much air around 20%.\n"
                "Summary: Small markedly hyperintense mildly heterogeneous lesion, deep."
            ),
        ),
        (
            TWO,
            {"spacing_known": False},
            (
                "Texture: Markedly hyperintense 50%. Mildly heterogeneous 14%. Coarse grain 4.4. Ring-like rim 22%.\n"
                "Boundary: Well-defined, 0% faint. Sharp edge 5%. Regular shape 80%.\n"
                "Context: Small, 0.9% of body. Right 31%. Upper 30%. Deep 27%. Much dark around 30%. Much air around 20%.\n"
                "Summary: Small markedly hyperintense mildly heterogeneous lesion, deep."
            ),
        ),
    ],
)
def test_embedded_text_is_fixed(numbers, how, compact, modality):
    """Models are trained on embeddings of exactly these words: a change makes every shipped model and every pool's vectors stale."""
    assert write_measured(numbers, **how, modality=modality).compact == compact


def test_readable_sentences():
    r = write_measured(ONE, spacing_known=True, plane="axial")
    assert r.text == (
        "Texture: Isointense to the surrounding tissue (-2 %). Heterogeneous signal (variation 18 %). "
        "Fine-grained texture (entropy 2.3 bit). Rim and core alike (difference 2 %).\n"
        "Boundary: Partly ill-defined margin (29 % of it with little contrast). Blurred edge (9 % of the lesion's diameter). "
        "Edge about 5.2 mm wide. Irregular shape (circularity 35 %).\n"
        "Context: Very large: 6.7 % of the body in this slice. Together like a disk 57 mm across (area 25.3 cm²). Two separate parts. "
        "On the left (16 % off the midline). In the central part (50 % of the way from front to back). "
        "Superficial (depth 0 % of the body's diameter). Reaches the body surface (0 mm). "
        "Next to dark structures (12 % of the surroundings). Next to prominent bright structures (8 % of the surroundings).\n"
        "Summary: A very large, isointense, heterogeneous lesion with a partly ill-defined margin, lying superficially on the left."
    )
    assert [p for p in PARTS if not r.part(p)] == []


def test_computed_tomography_is_read_in_densities():
    text = write_measured(TWO, spacing_known=True, plane="axial", modality="CT").text
    assert "Markedly hyperdense to the surrounding tissue (+50 %). Mildly heterogeneous density (variation 14 %)." in text
    assert "Ring-like dense rim" in text and "Next to much air (20 % of the surroundings)." in text
    assert not re.search("intens|signal|bright", text)


def test_pixels_where_millimetres_are_not_known():
    context = write_measured({**ONE, "components": 1.0, "diameter_px": 61.2}, spacing_known=False).part("context")
    assert context.startswith("Very large: 6.7 % of the body in this slice (about 61 pixels across).") and " mm" not in context


def test_a_short_form_is_optional():
    """Sentences of people, and records from before there was a short form, are embedded as they read."""
    r = Rationale([Statement("texture", "Ring-enhancing."), Statement("summary", "A long sentence.", short="Brief.")], {}, "person")
    assert r.text == "Texture: Ring-enhancing.\nSummary: A long sentence." and r.compact == "Texture: Ring-enhancing.\nSummary: Brief."
    assert Rationale.from_dict(r.to_dict()) == r
    old = r.to_dict()
    for s in old["statements"]:
        del s["short"]
    back = Rationale.from_dict(old)
    assert back.compact == back.text == r.text
