"""What the health check finds, and what it must not find."""

from __future__ import annotations

import time

import numpy as np
import pytest
from poolkit import case, rationale

from cers.case import Case, Rationale, Statement
from cers.errors import Cancelled
from cers.pool import Pool, check_health
from cers.pool.agreement import disagreements
from cers.pool.health import near_duplicates
from cers.rationale import describe


@pytest.fixture
def pool(tmp_path):
    with Pool.create(tmp_path / "pool") as made:
        yield made


def found(pool, kind, **options):
    return [f for f in check_health(pool, **options) if f.kind == kind]


def twin(original: Case, shift: int = 0, **fields) -> Case:
    """The same picture, saved anew with a little noise; its mask moved."""
    noise = np.random.default_rng(9).integers(-2, 3, original.image.shape)
    return Case((original.image + noise).astype(np.int16), np.roll(original.mask, shift, 0), original.labels, **fields)


def test_empty_pool_is_healthy(pool):
    assert check_health(pool) == []


def test_near_duplicates_across_patients_only(pool):
    first = pool.add(case(1, patient_id="p1", volume_id="v1"))
    other = pool.add(twin(case(1), patient_id="p2", volume_id="v2"))
    pool.add(twin(case(1), 1, patient_id="p1", volume_id="v3"))
    pool.add(case(2, patient_id="p3"))
    (finding,) = found(pool, "duplicate")
    assert {first, other} <= set(finding.ids) and len(finding.ids) == 3 and "patient" in finding.message, "one group, one finding"
    pool.review(other, "excluded")
    assert found(pool, "duplicate") == [], "what is excluded does no harm"
    assert [p[:2] for p in near_duplicates(pool, pool.ids(), 0.99, of=[other])][0][0] == other


def test_slices_of_one_volume_are_no_duplicates(pool):
    pool.add(case(1, volume_id="v", slice_index=1))
    pool.add(twin(case(1), 12, volume_id="v", slice_index=2))
    assert found(pool, "duplicate") == found(pool, "contradiction") == []


def test_masks_that_contradict(pool):
    a = pool.add(case(1, patient_id="p1"))
    b = pool.add(Case(case(1).image, np.roll(case(1).mask, 9, 0), {1: "tumor"}, patient_id="p1"))
    pool.add(Case(case(1).image, np.roll(case(1).mask, 9, 0), {1: "edema"}, patient_id="p1"))
    pool.add(twin(case(1), 1, patient_id="p1"))
    pairs = {frozenset(f.ids) for f in found(pool, "contradiction")}
    assert frozenset((a, b)) in pairs and len(pairs) == 2, "another label is no contradiction, nor is a small difference"


def test_words_against_numbers(pool):
    disk = np.hypot(*np.mgrid[-40:40, -40:40]) < 12
    image = (100 * (np.hypot(*np.mgrid[-40:40, -40:40]) < 36) + 80 * disk).astype(np.float32)
    measured = describe(image, disk, (1.0, 1.0), modality="MR")
    written = Rationale([Statement("texture", "A hypointense lesion.")], {}, "imported", "1")
    good = pool.add(Case(image, disk, {1: "t"}, rationale=measured, spacing=(1, 1), patient_id="a"))
    bad = pool.add(Case(image, disk, {1: "u"}, rationale=written, spacing=(1, 1), patient_id="a"))  # measured anew
    pool.add_rationale(good, measured)
    findings = [f for f in found(pool, "rationale")]
    assert [f.ids for f in findings] == [[bad]] and "hypointense" in findings[0].message
    pool.edit_rationale(good, {"boundary": "An ill-defined margin."})
    assert {i for f in found(pool, "rationale") for i in f.ids} == {good, bad}


def test_words_of_a_model_count_also_where_they_claim_to_rest_on_the_measurement():
    statement = Statement("texture", "Hyperintense (71 %).", "contrast", -71.0, "%")
    assert disagreements(Rationale([statement], {}, "model-x", "1"), {"contrast": -71.0})
    assert not disagreements(Rationale([statement], {}, "measured", "1"), {"contrast": -71.0})


@pytest.mark.parametrize(("text", "part", "numbers", "wrong"), [
    ("The lesion is hyperintense.", "texture", {"contrast": -20}, True),
    ("The lesion is not hyperintense.", "texture", {"contrast": -20}, False),
    ("The lesion is mildly hyperintense.", "texture", {"contrast": -20}, False),
    ("The lesion is hyperintense.", "texture", {"contrast": 0}, False),
    ("The lesion is hyperintense.", "texture", {}, False),
    ("HETEROGENEOUS signal", "texture", {"variation": 5}, True),
    ("heterogeneous signal", "texture", {"variation": 16}, False),
    ("homogeneous", "texture", {"variation": 40}, True),
    ("inhomogeneous", "texture", {"variation": 40}, False),
    ("Well-defined margin.", "boundary", {"faint_contour": 60}, True),
    ("Without ill-defined parts.", "boundary", {"faint_contour": 0}, False),
    ("Next to a homogeneous muscle.", "context", {"variation": 40}, False),
    ("An irregular shape.", "boundary", {"compactness": 90}, True),
])  # fmt: skip
def test_polarity(text, part, numbers, wrong):
    assert bool(disagreements(Rationale([Statement(part, text)]), numbers)) is wrong


def test_changed_number_is_named():
    statement = Statement("texture", "Hyperintense (+30 %).", "contrast", 30.0, "%")
    assert disagreements(Rationale([statement]), {"contrast": 30.1}) == []
    assert "30" in disagreements(Rationale([statement]), {"contrast": 12.0})[0]


def test_measured_rationales_never_disagree_with_themselves(pool):
    rng = np.random.default_rng(0)
    for _ in range(30):
        image, mask = rng.normal(100, rng.uniform(1, 60), (60, 60)), np.zeros((60, 60))
        r, c = rng.integers(5, 40, 2)
        mask[r : r + rng.integers(3, 20), c : c + rng.integers(3, 20)] = 1
        image = image + mask * rng.uniform(-90, 90)
        measured = describe(image, mask > 0, None)
        assert disagreements(measured, measured.descriptors) == []


def test_gaps_and_what_is_not_known(pool):
    for n in range(6):
        pool.add(case(n, modality="MR", body_site="brain", patient_id=f"p{n}", rationale=rationale()))
    lonely = pool.add(case(7, modality="CT", patient_id="p7", rationale=rationale()))
    nobody = pool.add(case(8, modality="MR", body_site="brain", rationale=rationale()))
    gaps = found(pool, "gap")
    assert [f.ids for f in gaps] == [[lonely]] and "1 case of 1 patient" in gaps[0].message
    assert {tuple(f.ids) for f in found(pool, "unknown")} == {(lonely,), (nobody,)}
    pool.set_vectors("image", "m", pool.ids(), np.vstack([np.ones((7, 3)) + np.eye(7, 3) * 0.1, [[1, -1, 0]]]))
    assert [f.ids for f in found(pool, "alone")] == [[nobody]]


def test_damaged_case_does_not_end_the_check(pool):
    a = pool.add(case(1, patient_id="p1"))
    pool.add(Case(case(1).image, np.roll(case(1).mask, 9, 0), {1: "tumor"}, patient_id="p1"))
    for path in (pool.folder / "arrays").rglob("*.npz"):
        path.write_bytes(b"gone")
    assert a in found(pool, "damaged")[0].ids


def test_progress_and_cancel(pool):
    for n in range(3):
        pool.add(case(n))
    said = []
    check_health(pool, progress=lambda f, m: said.append(f))
    assert said == sorted(said) and said[0] == 0
    with pytest.raises(Cancelled):
        check_health(pool, cancel=lambda: True)


def test_ten_thousand_pictures_are_compared_in_seconds(pool, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(10_000, 1024)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[9999] = vectors[5]
    ids = [f"{n:05d}" for n in range(10_000)]
    monkeypatch.setattr(pool, "vectors", lambda *_: (ids, vectors))
    start = time.process_time()
    assert [(a, b) for a, b, _ in near_duplicates(pool, ids, 0.99)] == [("00005", "09999")]
    assert time.process_time() - start < 30
