"""Which reference cases do harm."""

from __future__ import annotations

import json

import numpy as np
import phantom
import pytest

from cers.case import Case, PlaneView
from cers.errors import Cancelled, InputError
from cers.inference import Segmenter, load_model
from cers.inference.harm import HarmReport, Trial, case_volume, check_harm, try_case
from cers.pool import Pool


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(phantom.build_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def pool(tmp_path):
    with Pool.open(phantom.build_pool(tmp_path / "pool", cases=3)) as made:
        yield made


def test_the_one_that_does_harm_is_named():
    trials = {f"q{n}": Trial(0.7, 0.6, {"good": 0.05, "bad": -0.04 - 0.01 * n, "noise": (-1) ** n * 0.1, "rare": -0.5}) for n in range(4)}
    for n in (1, 2):
        del trials[f"q{n}"].gains["rare"]
    report = HarmReport(trials, 9)
    (finding,) = report.findings()
    assert (
        finding.kind == "harm"
        and finding.ids == ["bad", "q3", "q2", "q1", "q0"]
        and "0.055" in finding.message
        and "4 cases" in finding.message
    )
    assert report.evidence_gain == pytest.approx(0.1)
    assert json.dumps(report.to_dict()) and HarmReport({}, 0).evidence_gain is None


def test_a_mask_that_the_rest_of_the_pool_does_not_bear_out_is_named():
    """Only where the others are drawn well: a model that draws nothing says nothing about masks."""
    trials = {f"q{n}": Trial(0.6 + 0.01 * n, 0.5) for n in range(12)} | {
        "wrong": Trial(0.02, 0.5),
        "worse": Trial(0.0, 0.0),
        "poor": Trial(0.2, 0.1),
    }
    found = HarmReport(trials, 20).findings()
    assert [(f.kind, f.ids) for f in found] == [("doubt", ["worse"]), ("doubt", ["wrong"])] and "0.02" in found[1].message
    assert not HarmReport({i: t for i, t in trials.items() if i in ("wrong", "q1", "q2")}, 20).findings()
    assert not HarmReport({i: Trial(t.with_evidence / 3, 0) for i, t in trials.items()}, 20).findings()


def test_a_reference_that_the_others_contradict_again_and_again_is_named():
    agreement = {"fine": 0.6, "against": 0.05, "once": -0.5}
    trials = {f"q{n}": Trial(0.7, 0.7, {}, dict(agreement, against=agreement["against"] - 0.1 * n)) for n in range(3)}
    for n in (1, 2):
        del trials[f"q{n}"].agreement["once"]
    (finding,) = HarmReport(trials, 9).findings()
    assert finding.kind == "contradicted" and finding.ids == ["against"] and "-0.05" in finding.message


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", None])
def test_case_as_a_volume_is_read_as_it_is_kept(plane):
    image = np.arange(12 * 9, dtype=np.float32).reshape(12, 9)
    volume = case_volume(Case(image, (image > 50).astype(np.uint8), {1: "tumor"}, spacing=(0.5, 0.8), plane=plane))
    view = PlaneView(volume.geometry, plane or "axial")
    np.testing.assert_array_equal(view.slices(volume.array)[0], image)
    assert view.spacing == pytest.approx((0.5, 0.8))


def test_no_case_meets_itself_its_patient_or_its_group(model, pool):
    segmenter = Segmenter(model, pool)
    check_harm(segmenter, budget=1)  # vectors
    for case_id in pool.ids()[:4]:
        case = pool.get(case_id)
        trial = try_case(segmenter, case, [])
        own = {m["id"] for m in pool.list(patient_id=case.patient_id)} | {case_id}
        assert not own & set(trial.gains) and 0 <= trial.with_evidence <= 1 and 0 <= trial.without <= 1
        barred = try_case(segmenter, case, list(trial.gains)[:1])
        assert not set(list(trial.gains)[:1]) & set(barred.gains)
    assert segmenter.session is None, "a volume that was segmented before stays the one at work"


def test_trials_are_kept_and_done_once(model, pool):
    segmenter, said = Segmenter(model, pool), []
    total = len(pool)
    first = check_harm(segmenter, budget=2, progress=lambda f, m: said.append((f, m)))
    assert len(first.trials) == 2 and first.total == total and any("without itself" in m for _, m in said)
    assert all(a[0] <= b[0] for a, b in zip(said, said[1:]))

    calls = []

    def cancel() -> bool:
        calls.append(1)
        return len(calls) > 2

    with pytest.raises(Cancelled):
        check_harm(segmenter, budget=total, cancel=cancel)
    rest = check_harm(Segmenter(model, pool), budget=total)
    assert len(rest.trials) == total and {i: rest.trials[i] for i in first.trials} == first.trials
    pool.review(pool.ids()[0], "excluded")  # the pool is another one now
    again = check_harm(segmenter, budget=1)
    assert len(again.trials) == 1 and again.total == total - 1 and pool.ids()[0] not in again.trials
    for file in (pool.folder / "derived").glob("harm-*.json"):
        file.write_text("not json")
    assert len(check_harm(segmenter, budget=1).trials) == 1


def test_a_verdict_costs_no_trial_but_what_decides_references_does(model, pool):
    segmenter = Segmenter(model, pool)
    first = check_harm(segmenter, budget=2).trials
    pool.review(pool.ids()[0], "approved")
    pool.edit(pool.ids(), {"diagnosis": "glioma"})
    assert first.items() < check_harm(segmenter, budget=1).trials.items(), "those before stay, and one is new"
    pool.edit(pool.ids(), {"patient_id": "one"})  # nobody may serve anybody now
    again = check_harm(segmenter, budget=1)
    assert len(again.trials) == 1 and again.evidence_gain is None


def test_damaged_case_is_named_and_the_rest_is_tried(model, pool):
    segmenter = Segmenter(model, pool)
    check_harm(segmenter, budget=1)
    files = sorted((pool.folder / "arrays").rglob("*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:-30])
    report = check_harm(segmenter, budget=len(pool))
    assert report.faults and all("." in f for f in report.faults.values())


def test_pools_that_cannot_be_checked(model, tmp_path):
    with pytest.raises(InputError, match="no pool"):
        check_harm(Segmenter(model))
    with Pool.create(tmp_path / "p") as pool, pytest.raises(InputError, match="fewer than two"):
        check_harm(Segmenter(model, pool))
