"""Intervals cover what they should, scores are ranked as pairs are, calibration sees what was planted."""

from __future__ import annotations

import numpy as np
import pytest

from cers.evaluation.calibration import BINS, Reliability, fit_temperature, near_lesion, without_temperature
from cers.evaluation.failure import choose_threshold, detection
from cers.evaluation.statistics import DRAWS, INTERVALS, auroc, bootstrap, clusters, interval, related
from cers.evaluation.tables import number, span, sure


def test_interval_is_the_percentile_bootstrap_and_repeats():
    values = np.random.default_rng(5).random(40)
    means = np.random.default_rng(0).choice(values, (2000, 40)).mean(1)
    found = interval(values.tolist())
    assert found == interval(values.tolist())
    assert found["value"] == round(values.mean(), 4)
    assert (found["low"], found["high"]) == tuple(np.percentile(means, (2.5, 97.5)).round(4))


def covers(make, grouped: bool) -> float:
    hits = []
    for seed in range(200):
        values, groups = make(np.random.default_rng(seed))
        found = interval(values, groups if grouped else None, draws=300, seed=seed)
        hits.append(found["low"] <= 0 <= found["high"])
    return float(np.mean(hits))


def test_interval_covers_the_true_mean():
    assert 0.89 <= covers(lambda rng: (rng.normal(size=50).tolist(), None), False) <= 0.99


def test_only_the_cluster_interval_covers_where_cases_are_related():
    def make(rng):
        return (np.repeat(rng.normal(size=25), 8) + rng.normal(0, 0.3, 200)).tolist(), np.repeat(np.arange(25), 8).tolist()

    assert covers(make, True) >= 0.87 and covers(make, False) <= 0.7


def test_undefined_values_are_left_out_and_counted():
    found = interval([0.5, None, 0.7], ["a", "b", None])
    assert (found["value"], found["n"], found["undefined"]) == (0.6, 2, 1)
    assert interval([None, None]) == {"value": None, "low": None, "high": None, "n": 0, "undefined": 2}
    assert interval([]) == {"value": None, "low": None, "high": None, "n": 0}
    assert interval([0.25]) == {"value": 0.25, "low": None, "high": None, "n": 1}


def test_one_case_or_one_group_has_no_interval():
    """It would have no width, as if all were known."""
    for found in (interval([0.8]), interval([0.2, 0.5, 0.8], ["anna"] * 3)):
        assert found["value"] is not None and found["low"] is None and found["high"] is None
    assert bootstrap(lambda rows: float(rows.mean()), 3, ["anna"] * 3) == (None, None)
    assert interval([0.2, 0.5, 0.8], ["anna", "anna", None])["low"] is not None


def test_equal_values_are_told_without_an_interval():
    """Of no width, it would say that all is known: of two cases with a difference of 0.02 as well."""
    found = interval([0.02, 0.02])
    assert found == {"value": 0.02, "low": 0.02, "high": 0.02, "n": 2}, "files have it as it was drawn"
    assert span(found) == "0.020" and not sure(found)
    assert span(interval([0.01, 0.03])) == "0.020 [0.010, 0.030]" and sure(interval([0.01, 0.03])) and sure(interval([-0.01, -0.03]))
    assert not sure(interval([-0.01, 0.03])) and not sure(interval([0.02]))


def test_a_case_without_a_group_is_its_own():
    assert clusters(["a", None, "a", None, "b"], 5).tolist() == [0, 1, 0, 2, 3]
    assert clusters(None, 3).tolist() == [0, 1, 2]


def test_cases_with_anything_in_common_are_of_one_group():
    """Two groups of one patient are one; and so is, by way of a third case, what has nothing in common itself."""
    keys = [["a", "patient 1"], ["b", "patient 1"], [], ["c"], ["patient 2"], ["b"], ["c", "patient 2"], ["d"], []]
    assert related(keys) == ["a", "a", None, "c", "c", "a", "c", "d", None]
    assert related([["patient 2"], ["c", "patient 2"]]) == ["patient 2"] * 2 and related([]) == []


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(3)
    score, positive = rng.integers(0, 6, 60), rng.random(60) < 0.4
    pairs = score[positive][:, None] - score[~positive][None]
    assert auroc(score, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert auroc(score, np.zeros(60, bool)) is None


def test_bootstrap_of_any_statistic():
    values = np.random.default_rng(2).normal(3, 1, 80)
    low, high = bootstrap(lambda rows: float(np.median(values[rows])), 80, draws=300)
    assert low < 3.0 < high and high - low < 1.0
    assert bootstrap(lambda rows: None, 5) == (None, None) == bootstrap(lambda rows: 1.0, 0)


def test_nothing_is_told_as_less_than_nothing():
    """A mean difference of nearly 0 is rounded to -0.0."""
    assert span(interval([0.00002, -0.00008])) == "0.000 [0.000, 0.000]"
    assert span({"value": -0.0004, "low": -0.0021, "high": 12.34}) == "0.000 [-0.002, 12.3]" and number(None) == "-"


def test_as_many_draws_as_are_said():
    drawn = []
    bootstrap(lambda rows: drawn.append(rows) or 0.5, 3)
    assert f"{DRAWS} draws ({len(drawn)} of the calibration error and AUROC)" in INTERVALS


def test_a_score_that_sees_failures():
    dice = [0.1, 0.2, 0.45, 0.6, 0.8, 0.9, 0.95, 0.7]
    found = detection([0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.9, None], dice)
    assert (found["value"], found["failures"], found["n"], found["undefined"]) == (1.0, 3, 7, 1)
    assert detection([0.5] * 8, dice)["value"] == 0.5
    assert detection([0.1, 0.2], [0.9, 0.8])["value"] is None
    assert choose_threshold([0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.9, None], dice) == {"threshold": 0.45, "caught": 1.0, "spared": 1.0}
    assert choose_threshold([0.1, 0.2], [0.9, 0.8]) is None and choose_threshold([0.1, 0.2], [0.1, 0.2]) is None


def test_calibration_error_of_planted_probabilities():
    rng = np.random.default_rng(0)
    good, sure = Reliability(), Reliability()
    for _ in range(4):
        p = rng.random((50, 60))
        good.add(p, rng.random(p.shape) < p)
        sure.add(np.full(1000, 0.9), np.arange(1000) < 500)
    assert good.ece() < 0.02 and sure.ece() == pytest.approx(0.4)
    summary = good.summary(["a", "a", "b", None])
    assert summary["ece"]["low"] <= summary["ece"]["value"] + 0.02 and summary["ece"]["n"] == 4
    assert len(summary["bins"]) == BINS and sum(b["voxels"] for b in summary["bins"]) == 4 * 3000
    assert all(abs(b["probability"] - b["lesion"]) < 0.08 for b in summary["bins"])


def test_bins_take_both_ends_and_nothing():
    empty, ends = Reliability(), Reliability()
    assert empty.ece() is None and empty.summary() is None
    empty.add(np.empty(0), np.empty(0))
    assert empty.ece() is None and empty.summary() is None
    ends.add(np.array([0.0, 1.0]), np.array([0, 1]))
    assert ends.ece() == 0.0 and ends.summary()["bins"][-1] == {"voxels": 1, "probability": 1.0, "lesion": 1.0}


def test_temperature_is_found_and_taken_back():
    import torch

    torch.manual_seed(0)
    true = torch.randn(8000) * 2
    target = (torch.rand(8000) < true.sigmoid()).float()
    assert fit_temperature(true * 2.5, target) == pytest.approx(2.5, rel=0.1)
    logits = np.linspace(-8, 8, 33)
    before, after = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-logits / 2.5))
    assert np.allclose(without_temperature(after, 2.5), before, atol=1e-6)
    assert np.isfinite(without_temperature(np.array([0.0, 1.0]), 2.5)).all()


def test_the_box_near_a_lesion_holds_both_masks():
    mask, expert = np.zeros((2, 1, 40, 40), bool)
    assert near_lesion(mask, expert) is None
    mask[0, 10:14, 10], expert[0, 20, 30] = True, True
    box = near_lesion(mask, expert)
    assert mask[box].sum() == 4 and expert[box].sum() == 1 and mask[box].shape == (1, 21, 40)
