"""Words and numbers must agree, be informative on real cases, and contradict each other only where they are opposite."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from cers.case import PARTS, Rationale
from cers.rationale import DESCRIPTORS, THRESHOLDS, contradictions, describe, measure, write_measured
from cers.rationale.writer import POSITION_WORDS

NUMBER = re.compile(r"\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def rationales(brisc):
    return [(row, describe(image, mask, plane=row["plane"], modality="MR")) for row, image, mask in brisc]


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
                number = NUMBER.search(s.text)[0]
                digits = len(number.partition(".")[2])
                assert number == f"{abs(s.value):.{digits}f}" or abs(abs(s.value) - float(number)) <= 0.5 * 10 ** -digits + 1e-9, s
                if s.unit in ("mm", "px", "mm2"):
                    assert spacing and s.unit == "mm" and " mm" in s.text


def test_no_millimetres_without_a_spacing(rationales):
    assert not any(" mm" in r.text for _, r in rationales)


def test_words_are_those_of_the_table(rationales):
    for row, r in rationales:
        for s in r.statements:
            if s.descriptor in THRESHOLDS:
                scale = THRESHOLDS[s.descriptor]
                words = POSITION_WORDS.get(row["plane"], scale.words) if s.descriptor == "height" else scale.words
                assert s.part == scale.part and s.text.lower().startswith(words[scale.index(s.value)].lower())
        summary = r.part("summary").lower()
        for name in ("area_body", "contrast", "variation", "depth"):
            if r.descriptors[name] is not None:
                assert THRESHOLDS[name].word(r.descriptors[name]) in summary


def test_table_is_sound():
    for name, scale in THRESHOLDS.items():
        assert name in DESCRIPTORS and scale.part in PARTS
        assert list(scale.bounds) == sorted(set(scale.bounds)) and len(scale.words) == len(scale.bounds) + 1 == len(set(scale.words))
        assert not scale.poles or (len(scale.poles) == len(scale.words) and list(scale.poles) == sorted(scale.poles))
        for a, b in zip(scale.poles, scale.poles[1:]):
            assert a * b >= 0, f"{name}: neighbouring categories would contradict"
        for n, bound in enumerate(scale.bounds):
            assert scale.index(bound) == n + 1 and scale.index(bound - 10.0 ** -scale.digits) == n
            assert round(bound, scale.digits) == bound


def test_word_and_printed_number_never_disagree():
    """Just below a bound the number prints as the bound; the word must then be the upper one."""
    for name, scale in THRESHOLDS.items():
        for n, bound in enumerate(scale.bounds):
            assert scale.index(bound - 0.4 * 10 ** -scale.digits) == n + 1


def test_words_are_informative_on_real_cases(rationales):
    """No word may hold for more than nine cases in ten, and none of the table may be idle."""
    for name, scale in THRESHOLDS.items():
        words = Counter(scale.word(r.descriptors[name]) for _, r in rationales if r.descriptors[name] is not None)
        total = sum(words.values())
        print(f"{name:14s}", {w: f"{100 * words[w] / total:.0f} %" for w in scale.words})
        assert max(words.values()) <= 0.9 * total, name
        assert all(words[w] >= 0.01 * total for w in scale.words), name
    whole = Counter(re.sub(r"\d+(\.\d+)?%?", "", r.text) for _, r in rationales)
    assert len(whole) > 0.9 * len(rationales), "two lesions in ten read alike"


def test_text_is_short(rationales):
    assert max(len(r.text) for _, r in rationales) < 420


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
    assert r.part("texture") == "Hyperintense 37%." and r.part("summary") == "Hyperintense lesion."


def test_millimetres_where_known(head):
    image, mask = head((1.0, 1.0))
    text = describe(image, mask, (1.0, 1.0), plane="axial").part("context")
    assert "32 mm across" in text and "mm from the body edge" in text


def _with(**values):
    return write_measured({**dict.fromkeys(DESCRIPTORS), **values}, spacing_known=False)


@pytest.mark.parametrize("name,low,near,high,words", [
    ("contrast", -30, 0, 40, ("hypointense", "hyperintense")),
    ("variation", 10, 16, 30, ("homogeneous", "heterogeneous")),
    ("faint_contour", 0, 20, 60, ("well-defined", "ill-defined")),
    ("edge_width", 4, 7, 15, ("sharp", "blurred")),
    ("compactness", 40, 60, 90, ("irregular", "regular")),
    ("rim_core", -20, 0, 25, ("bright core", "ring-like rim")),
    ("area_body", 0.5, 4, 9, ("small", "very large")),
    ("depth", 3, 20, 35, ("superficial", "deep")),
])
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
