"""Who becomes a reference, who does not, and what the radiologist is told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from poolkit import case, rationale

from cers.errors import InputError, PoolError
from cers.pool import Pool, Query, SelectionConfig, Selector, image_hash, select, thumbnail
from cers.rationale import THRESHOLDS, contradictions

CONFIG = SelectionConfig(visual_threshold=0.5, visual_high=0.9, cot_threshold=0.5)


def at(cosine: float, turn: int = 0, d: int = 24) -> np.ndarray:
    """A unit vector at this cosine from the query's (1, 0, 0, ...), with the rest along its own axis."""
    v = np.zeros(d)
    v[0], v[1 + turn % (d - 1)] = cosine, np.sqrt(max(0.0, 1 - cosine**2))
    return v


QUERY = Query(at(1.0), modality="MR", body_site="brain", volume_id="qv", patient_id="qp", group="qg", plane="axial")


class Bench:
    """A pool in which each case's similarities are set by hand."""

    def __init__(self, folder):
        self.pool = Pool.create(folder)
        self.n = 0

    def add(self, visual: float, cot: float | None = None, words=None, **fields) -> str:
        self.n += 1
        fields = {"modality": "MR", "body_site": "brain", "volume_id": f"v{self.n}", **fields}
        if cot is not None or words is not None:
            fields["rationale"] = words or rationale()
        case_id = self.pool.add(case(self.n, **fields))
        self.pool.set_vectors("image", "m", [case_id], at(visual, self.n)[None])
        if cot is not None:
            self.pool.set_vectors("rationale", "t", [case_id], at(cot, self.n)[None])
        return case_id

    def select(self, query=QUERY, config=CONFIG, **kwargs):
        return select(self.pool, query, "m", "t", config, **kwargs)


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.pool.close()


def only(selection, case_id):
    return next(r for r in selection.rejected if r.id == case_id)


# ---- the plain way


def test_the_most_similar_come_first(bench):
    ids = [bench.add(v) for v in (0.6, 0.9, 0.7, 0.95, 0.55, 0.8, 0.4)]
    s = bench.select()
    assert s.ids == [ids[n] for n in (3, 1, 5, 2, 0)] and [r.rank for r in s.selected] == [1, 2, 3, 4, 5]
    assert [r.visual for r in s.selected] == pytest.approx([0.95, 0.9, 0.8, 0.7, 0.6], abs=1e-3) and all(r.cot is None for r in s.selected)
    assert s.coverage.covered and "well" in s.coverage.message and "0.95" in s.coverage.message
    assert (only(s, ids[4]).stage, only(s, ids[6]).stage) == ("limit", "morphology")
    json.dumps([r.to_dict() for r in s.selected] + [r.to_dict() for r in s.rejected] + [s.coverage.to_dict()])


@pytest.mark.parametrize(
    "fields,query,reason",
    [
        ({"volume_id": "qv"}, {}, "Not used: same volume as the image being segmented."),
        ({"patient_id": "qp"}, {}, "Not used: same patient as the image being segmented."),
        ({"group": "qg"}, {}, "Not used: same group of related images as the image being segmented."),
        ({"review": "excluded"}, {}, "Not used: a reviewer excluded it from use as evidence."),
        ({}, {"content_hash": case(1).content_hash}, "Not used: it is the very picture being segmented."),
        ({}, {"content_hash": image_hash(case(1).image)}, "Not used: it is the very picture being segmented."),
        ({}, {"thumbnail": thumbnail(case(1).image * 2.0 + 5)}, "near-duplicate"),
    ],
)
def test_exclusions(bench, fields, query, reason):
    mine = bench.add(0.99, **fields)
    other = bench.add(0.8)
    s = bench.select(replace(QUERY, **query))
    assert s.ids == [other] and only(s, mine).stage == "exclusion" and reason in only(s, mine).reason
    assert only(s, mine).visual == pytest.approx(0.99, abs=1e-3)
    assert s.coverage.message.count("0.80") == 1, "what is excluded does not count as coverage"


def test_unknown_ids_never_match_each_other(bench):
    mine = bench.add(0.9, volume_id=None)
    assert bench.select(replace(QUERY, volume_id=None, patient_id=None, group=None, content_hash=None)).ids == [mine]


@pytest.mark.parametrize(
    "fields,query,reason",
    [
        ({"body_site": "lung"}, {}, "Different body site (lung; the query is brain)."),
        ({"modality": "CT"}, {}, "Different modality (CT; the query is MR)."),
        ({"modality": "CT", "body_site": "lung"}, {}, "Different modality (CT; the query is MR)."),
        ({"modality": "mri", "body_site": " Brain "}, {}, None),
        ({"modality": None, "body_site": None}, {}, None),
        ({"modality": "CT", "body_site": "lung"}, {"modality": None, "body_site": None}, None),
        ({"plane": "coronal"}, {}, None),
    ],
)
def test_compatibility(bench, fields, query, reason):
    mine = bench.add(0.9, **fields)
    s = bench.select(replace(QUERY, **query))
    if reason is None:
        assert s.ids == [mine]
    else:
        assert s.ids == [] and (only(s, mine).stage, only(s, mine).reason) == ("compatibility", reason)
        assert not s.coverage.covered and s.coverage.message.startswith("No close case in this pool.") and s.coverage.value == 0


def test_planes_count_only_when_asked(bench):
    mine = bench.add(0.9, plane="coronal")
    s = bench.select(config=replace(CONFIG, same_plane=True))
    assert only(s, mine).reason == "Different plane (coronal; the query is axial)."


def test_a_case_of_the_querys_plane_comes_before_one_that_looks_a_little_more_alike(bench):
    other, same, unknown = bench.add(0.95, plane="sagittal"), bench.add(0.87, plane="Axial"), bench.add(0.84, plane=None)
    assert bench.select().ids == [same, other, unknown]
    assert bench.select(replace(QUERY, plane=None)).ids == [other, same, unknown], "a picture's own plane is not known"
    assert bench.select(config=replace(CONFIG, other_plane=0.0)).ids == [other, same, unknown]
    assert bench.select(config=replace(CONFIG, k=1)).ids == [same]


def test_a_case_of_another_plane_must_look_more_alike(bench):
    other = bench.add(0.55, plane="sagittal")
    s = bench.select()
    assert s.ids == [] and only(s, other).stage == "morphology"
    assert only(s, other).reason == "Looks too different (visual similarity 0.55; at least 0.60 is needed in another plane, here sagittal)."
    assert s.coverage.message == "No close case in this pool. The nearest admissible one has a visual similarity of 0.55."
    assert bench.select(replace(QUERY, plane="sagittal")).ids == [other]
    assert s.coverage.value < bench.select(replace(QUERY, plane=None)).coverage.value
    assert bench.select(pinned=[other]).ids == [other], "whoever pins it wants it"


def test_coverage_counts_its_cases_in_words(bench):
    bench.add(0.9)
    assert bench.select().coverage.message.endswith(": 1 close case with a visual similarity of 0.90.")
    bench.add(0.8)
    assert bench.select().coverage.message.endswith(": 2 close cases, the nearest of them with a visual similarity of 0.90.")


def test_too_different(bench):
    mine = bench.add(0.31)
    s = bench.select()
    assert s.ids == [] and only(s, mine).reason == "Looks too different (visual similarity 0.31; at least 0.50 is needed)."
    assert s.coverage.message == "No close case in this pool. The nearest admissible one has a visual similarity of 0.31."
    assert not s.coverage.covered and s.coverage.value < 0.1


def test_an_empty_pool_and_one_without_vectors(bench):
    s = bench.select()
    assert (s.selected, s.rejected, s.coverage.covered) == ([], [], False) and s.coverage.message.startswith("No close case in this pool")
    bench.pool.add(case(1))
    assert "no vectors of this model" in bench.select().coverage.message


def test_many_unfit_cases_do_not_crowd_out_the_fit_one(bench):
    """Sixty closer cases of another site, and twenty of the query's own volume, lie before the one that may be used."""
    for n in range(60):
        bench.add(0.95, body_site="lung")
    for n in range(20):
        bench.add(0.97, volume_id="qv")
    mine = bench.add(0.7)
    s = bench.select(config=replace(CONFIG, k_coarse=5))
    assert s.ids == [mine] and {r.stage for r in s.rejected} == {"exclusion", "compatibility"} and len(s.rejected) == CONFIG.max_rejected


def test_many_near_duplicates_do_not_crowd_out_the_fit_one(bench):
    picture = case(0).image
    small = thumbnail(picture)
    rng = np.random.default_rng(0)
    for n in range(40):
        twin = case(0)
        twin.image = (picture + rng.integers(-2, 3, picture.shape)).astype(np.int16)
        case_id = bench.pool.add(twin)
        bench.pool.set_vectors("image", "m", [case_id], at(0.98, n)[None])
    mine = bench.add(0.7)
    s = bench.select(replace(QUERY, thumbnail=small), replace(CONFIG, k_coarse=5))
    assert s.ids == [mine] and s.rejected[0].stage == "exclusion"


# ---- rationales


def opposites():
    """Two descriptor sets that contradict in several ways, found from the published thresholds."""
    low, high = {}, {}
    for name in THRESHOLDS:
        for x in np.linspace(-5, 5, 401):
            for y in (-50.0, -5.0, -1.0, 0.0, 0.5, 1.0, 2.0, 5.0, 50.0):
                if name not in low and contradictions(rationale(**{name: float(x)}), rationale(**{name: y})):
                    low[name], high[name] = float(x), y
    return low, high


def test_consistency_ranks(bench):
    a, b = bench.add(0.80, cot=0.6), bench.add(0.78, cot=0.95)
    s = bench.select(replace(QUERY, rationale=rationale(), rationale_vector=at(1.0)))
    assert s.ids == [b, a] and [r.cot for r in s.selected] == pytest.approx([0.95, 0.6], abs=1e-4)
    assert bench.select().ids == [a, b], "no rationale of the query: looks alone decide"


def test_low_consistency_is_rejected_with_the_number(bench):
    mine = bench.add(0.9, cot=0.3)
    s = bench.select(replace(QUERY, rationale=rationale(), rationale_vector=at(1.0)))
    assert (only(s, mine).stage, only(s, mine).cot) == ("cot", pytest.approx(0.3, abs=1e-4))
    assert only(s, mine).reason == "Its rationale agrees too little (consistency 0.30; at least 0.50 is needed)."
    assert s.coverage.message.startswith("No close case in this pool.") and s.coverage.value == pytest.approx(0.9, abs=0.01)


def test_contradictions_are_named_and_cost(bench):
    low, high = opposites()
    names = list(low)
    assert len(names) >= 2, "the writer's thresholds have opposite ends"
    one = {n: (high[n] if n == names[0] else low[n]) for n in names}
    mine = rationale(**low)
    agrees, once, always = (
        bench.add(0.8, cot=0.9, words=rationale(**low)),
        bench.add(0.8, cot=0.9, words=rationale(**one)),
        bench.add(0.95, cot=0.9, words=rationale(**high)),
    )
    s = bench.select(replace(QUERY, rationale=mine, rationale_vector=at(1.0)))
    assert s.ids == [agrees, once] and [r.cot for r in s.selected] == pytest.approx([0.9, 0.8], abs=1e-4)
    r = only(s, always)
    assert r.stage == "cot" and r.reason.startswith("Its rationale contradicts")
    assert all(text in r.reason for text in contradictions(mine, rationale(**high)))
    strict = bench.select(replace(QUERY, rationale=mine, rationale_vector=at(1.0)), replace(CONFIG, max_contradictions=1))
    assert strict.ids == [agrees] and contradictions(mine, rationale(**one))[0] in only(strict, once).reason
    below = bench.select(replace(QUERY, rationale=mine, rationale_vector=at(1.0)), replace(CONFIG, contradiction_penalty=0.5))
    assert "contradiction: " in only(below, once).reason and "0.40" in only(below, once).reason


def test_a_case_without_rationale_gets_no_credit_for_one(bench):
    silent, agreeing = bench.add(0.85), bench.add(0.8, cot=0.9)
    s = bench.select(replace(QUERY, rationale=rationale(), rationale_vector=at(1.0)))
    assert s.ids == [agreeing, silent] and s.selected[1].cot is None


def test_without_a_text_model_descriptors_still_speak(bench):
    low, high = opposites()
    mine, other = bench.add(0.9, cot=0.9, words=rationale(**low)), bench.add(0.95, cot=0.9, words=rationale(**high))
    s = select(bench.pool, replace(QUERY, rationale=rationale(**low)), "m", None, CONFIG)
    assert s.ids == [mine] and only(s, other).stage == "cot" and s.selected[0].cot is None


def test_new_words_take_effect(bench):
    mine = bench.add(0.9, cot=0.9)
    selector = Selector(bench.pool, "m", "t")
    query = replace(QUERY, rationale=rationale(), rationale_vector=at(1.0))
    assert selector.select(query, CONFIG).selected[0].cot == pytest.approx(0.9, abs=1e-4)
    bench.pool.add_rationale(mine, rationale("Other."))
    assert selector.select(query, CONFIG).selected[0].cot is None, "its old text vector no longer counts"
    bench.pool.set_vectors("rationale", "t", [mine], at(0.2)[None])
    assert selector.select(query, CONFIG).ids == []


# ---- limits, pins and drops


def test_not_all_from_one_volume(bench):
    same = [bench.add(0.9 - n / 100, volume_id="one") for n in range(5)]
    other, unknown = bench.add(0.6), [bench.add(0.55, volume_id=None) for _ in range(2)]
    s = bench.select(config=replace(CONFIG, k=6))
    assert s.ids[:4] == same[:3] + [other] and set(s.ids[4:]) == set(unknown)
    assert only(s, same[3]).reason == "Not needed: 3 references from its volume are already used." and only(s, same[3]).stage == "limit"


def test_enough_is_enough(bench):
    ids = [bench.add(0.9 - n / 100) for n in range(7)]
    s = bench.select()
    assert s.ids == ids[:5] and only(s, ids[5]).reason == "Not needed: 5 closer references are already used."


def test_pinned_are_in_and_dropped_are_out(bench):
    ids = [bench.add(0.9 - n / 100) for n in range(7)]
    far, site = bench.add(0.1), bench.add(0.8, body_site="lung")
    s = bench.select(pinned=[far, site, far], dropped=[ids[0], "not in the pool"])
    assert s.ids == [ids[1], ids[2], ids[3], site, far] and [r.pinned for r in s.selected] == [False, False, False, True, True]
    assert (only(s, ids[0]).stage, only(s, ids[0]).reason) == ("dropped", "Not used: you dropped it.")
    assert not {far, site} & {r.id for r in s.rejected}
    many = bench.select(pinned=ids)
    assert set(many.ids) == set(ids), "all pinned, even more than k"
    alone = bench.select(dropped=[*ids], pinned=[far])
    assert alone.ids == [far] and not alone.coverage.covered and "pinned" in alone.coverage.message


def test_a_close_case_is_told_as_close_when_it_is_pinned(bench):
    ids = [bench.add(0.9 - n / 100) for n in range(6)]
    before = bench.select()
    assert bench.select(pinned=before.ids).coverage == before.coverage == bench.select(pinned=ids[:1]).coverage
    site = bench.add(0.95, body_site="lung")
    words = rationale()
    unlike = bench.add(0.94, cot=0.1, words=words)
    s = bench.select(replace(QUERY, rationale=words, rationale_vector=at(1.0)), pinned=[site, unlike])
    assert {site, unlike} < set(s.ids) and s.coverage.message.endswith(
        ": 3 close cases, the nearest of them with a visual similarity of 0.90."
    )
    assert only(s, ids[3]).reason == "Not needed: 5 closer or pinned references are already used."


def test_a_pin_in_spite_of_its_rationale(bench):
    mine = bench.add(0.9, cot=0.1)
    s = bench.select(replace(QUERY, rationale=rationale(), rationale_vector=at(1.0)), pinned=[mine])
    assert s.ids == [mine] and s.selected[0].cot == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"volume_id": "qv"}, "same volume"),
        ({"patient_id": "qp"}, "same patient"),
        ({"group": "qg"}, "same group"),
        ({"review": "excluded"}, "reviewer"),
    ],
)
def test_a_pin_that_would_leak_is_an_error(bench, fields, words):
    mine = bench.add(0.9, **fields)
    with pytest.raises(PoolError, match=words):
        bench.select(pinned=[mine])


def test_other_pins_that_make_no_sense(bench):
    mine = bench.add(0.9)
    with pytest.raises(PoolError, match="near-duplicate"):
        bench.select(replace(QUERY, thumbnail=thumbnail(case(1).image)), pinned=[mine])
    with pytest.raises(PoolError, match="not in this pool"):
        bench.select(pinned=["nobody"])
    with pytest.raises(InputError, match="both pinned and dropped"):
        bench.select(pinned=[mine], dropped=[mine])


# ---- order, report, changes


def test_ties_are_broken_by_id_and_order_is_stable(tmp_path):
    results = []
    for folder, order in (("a", range(12)), ("b", reversed(range(12)))):
        with Pool.create(tmp_path / folder) as pool:
            for n in order:
                pool.set_vectors("image", "m", [pool.add(case(n))], at(0.8)[None])
            s = select(pool, QUERY, "m", None, CONFIG)
            results.append((s.ids, [(r.id, r.stage, r.reason) for r in s.rejected]))
    assert results[0] == results[1] and results[0][0] == sorted(results[0][0])


def test_the_report_names_every_stage_that_occurred(bench):
    for n in range(30):
        bench.add(0.98 - n / 1000, volume_id="qv")
    far, site, dropped = bench.add(0.2), bench.add(0.15, body_site="lung"), bench.add(0.1)
    s = bench.select(config=replace(CONFIG, max_rejected=5), dropped=[dropped])
    assert len(s.rejected) == 5
    assert [only(s, i).stage for i in (far, site, dropped)] == ["morphology", "compatibility", "dropped"]
    visuals = [r.visual for r in s.rejected]
    assert visuals == sorted(visuals, reverse=True)
    assert len(bench.select(config=replace(CONFIG, max_rejected=0), dropped=[dropped]).rejected) == 4, "one of each stage"


def test_the_selector_sees_changes_by_others(bench):
    first = bench.add(0.8)
    selector = Selector(bench.pool, "m", "t")
    assert selector.select(QUERY, CONFIG).ids == [first]
    with Pool.open(bench.pool.folder) as other:
        new = other.add(case(500, volume_id="n"))
        assert selector.select(QUERY, CONFIG).ids == [first], "not embedded yet"
        other.set_vectors("image", "m", [new], at(0.9)[None])
        assert selector.select(QUERY, CONFIG).ids == [new, first]
        other.review(new, "excluded")
        assert selector.select(QUERY, CONFIG).ids == [first]
        other.delete(first)
        assert selector.select(QUERY, CONFIG).ids == []


def test_coverage_grows_with_similarity(tmp_path):
    values = []
    for n, visual in enumerate((0.2, 0.5, 0.7, 0.9, 1.0)):
        bench = Bench(tmp_path / str(n))
        bench.add(visual)
        values.append(bench.select().coverage.value)
    assert values == sorted(values) and values[1] == pytest.approx(0.1, abs=0.01) and values[3] == pytest.approx(0.9, abs=0.01)
    assert 0 <= values[0] and values[-1] <= 1


def test_a_vector_of_another_model_is_an_error(bench):
    bench.add(0.9, cot=0.9)
    for vector in (np.ones(7), np.zeros(24), np.full(24, np.nan)):
        with pytest.raises(InputError, match="one model"):
            bench.select(replace(QUERY, image_vector=vector))
    with pytest.raises(InputError, match="rationale vector"):
        bench.select(replace(QUERY, rationale=rationale(), rationale_vector=np.ones(3)))


@pytest.mark.parametrize("change", [{"k": 0}, {"k": 9, "k_coarse": 5}, {"visual_threshold": 0.9, "visual_high": 0.8}, {"max_rejected": -1}])
def test_settings_that_make_no_sense(change):
    with pytest.raises(InputError):
        SelectionConfig(**change)
