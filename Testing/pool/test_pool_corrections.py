"""Corrected results become reference cases: versions, provenance, and what is refused."""

from __future__ import annotations

import numpy as np
import phantom
import pytest

from cers.errors import InputError, PoolError
from cers.pool import Pool
from cers.pool.corrections import add_correction, proposal

LABELS = {1: "tumor"}


@pytest.fixture
def pool(tmp_path):
    with Pool.create(tmp_path / "pool") as pool:
        yield pool


@pytest.fixture
def masks():
    """(what the model proposed, what a person made of it), (k, j, i)."""
    proposed = phantom.head()[1]
    corrected = proposed.copy()
    corrected[:, :28] = 0
    return proposed, corrected


def add(pool, mask, **options):
    return add_correction(pool, phantom.volume(), mask, LABELS, **{"annotator": "Ada", **options})


def test_the_corrected_mask_is_kept_with_who_when_and_what_was_proposed(pool, masks):
    proposed, corrected = masks
    report = add(pool, corrected, proposed=proposed, model="abc")
    assert report.ids == report.added == pool.ids() and not report.replaced
    expected = 2 * (proposed & corrected).sum() / (proposed.sum() + corrected.sum())
    assert report.dice == pytest.approx(expected)
    volume = phantom.volume()
    from cers.case import PlaneView

    view = PlaneView(volume.geometry, "axial")
    for case_id in report.ids:
        case = pool.get(case_id)
        assert np.array_equal(case.mask, view.slices(corrected)[case.slice_index])
        assert case.annotator == "Ada" and case.created and case.rationale.writer == "measured"
        assert np.array_equal(proposal(pool, case_id), view.slices(proposed)[case.slice_index] > 0)
        entry = next(e for e in pool.history(case_id) if e["action"] == "corrected")
        assert entry["model"] == "abc" and entry["dice"] == pytest.approx(expected)
    assert not pool.verify()


def test_rationale_is_of_the_new_mask(pool, masks):
    from cers.rationale import describe

    report = add(pool, masks[1], proposed=masks[0])
    case = pool.get(report.ids[0])
    measured = describe(case.image, case.mask > 0, case.spacing, modality=case.modality, plane=case.plane)
    assert case.rationale.to_dict() == measured.to_dict()


def test_the_same_again_is_not_added_twice(pool, masks):
    first = add(pool, masks[1], proposed=masks[0])
    state = pool.hash()
    again = add(pool, masks[1], proposed=masks[0])
    assert again.ids == first.ids and not again.added and not again.replaced and pool.hash() == state


def test_a_later_correction_replaces_the_earlier_one_which_stays(pool, masks):
    first = add(pool, masks[0])
    second = add(pool, masks[1])  # slices that were not touched are the same cases in both
    old, new = set(first.ids) - set(second.ids), set(second.ids) - set(first.ids)
    assert old and set(second.replaced) == old and set(second.added) == new
    assert {m["id"] for m in pool.list() if m["review"] == "excluded"} == old
    back = add(pool, masks[0])  # the person changed their mind
    assert set(back.added) == old and set(back.replaced) == new
    assert {m["id"] for m in pool.list() if m["review"] == "excluded"} == new and len(pool) == len(set(first.ids) | set(second.ids))


def test_what_a_reviewer_excluded_stays_excluded(pool, masks):
    first = add(pool, masks[0])
    pool.review(first.ids[0], "excluded", reviewer="Bob", note="blurred")
    again = add(pool, masks[0])
    assert not again.added and pool.meta(first.ids[0])["review"] == "excluded"


def test_other_volumes_are_left_alone(pool, masks):
    first = add(pool, masks[0])
    other = add_correction(pool, phantom.volume(seed=3), phantom.head(3)[1], LABELS, annotator="Ada")
    assert other.added and not other.replaced and pool.meta(first.ids[0])["review"] == "unreviewed"


def test_what_is_refused_changes_nothing(pool, masks, tmp_path):
    with pytest.raises(InputError, match="annotator's name"):
        add(pool, masks[0], annotator="  ")
    with pytest.raises(InputError, match="empty"):
        add(pool, np.zeros_like(masks[0]))
    with pytest.raises(InputError, match="not of one size"):
        add(pool, masks[0], proposed=masks[0][:3])
    with Pool.open(tmp_path / "pool", read_only=True) as closed, pytest.raises(PoolError, match="can only be read"):
        add(closed, masks[0])
    assert len(pool) == 0


def test_cases_of_another_structure_stay_as_they_are(pool, masks):
    from cers.pool import import_volume

    other = np.roll(masks[0], 9, axis=2)
    expert = import_volume(pool, phantom.volume(), other, {1: "hippocampus"}, annotator="Expert", review="approved")
    report = add(pool, masks[1])
    assert report.added and not report.replaced
    assert {pool.meta(i)["review"] for i in expert} == {"approved"}


def test_a_renamed_correction_replaces_that_of_the_old_name(pool, masks):
    from cers.pool import import_volume

    expert = import_volume(pool, phantom.volume(), masks[1], {1: "scar"}, annotator="Expert")
    first = add(pool, masks[1])
    renamed = add_correction(pool, phantom.volume(), masks[1], {1: "hippocampus"}, annotator="Ada")
    assert renamed.added and set(renamed.replaced) == set(first.ids)
    assert {m["id"] for m in pool.list() if m["review"] == "excluded"} == set(first.ids), "what the expert imported stays"
    back = add(pool, masks[1])
    assert set(back.added) == set(first.ids) and set(back.replaced) == set(renamed.ids)
    assert {pool.meta(i)["review"] for i in [*first.ids, *expert]} == {"unreviewed"}


def test_a_version_that_is_back_is_reviewed_as_it_was(pool, masks):
    first = add(pool, masks[0])
    for case_id in first.ids:
        pool.review(case_id, "approved", reviewer="Expert")
    replaced = add(pool, masks[1]).replaced
    assert set(replaced) <= set(first.ids) and {pool.meta(i)["review"] for i in replaced} == {"excluded"}
    add(pool, masks[0])
    assert {pool.meta(i)["review"] for i in first.ids} == {"approved"}


def test_a_clock_that_is_ahead_does_not_change_what_came_last(pool, masks, monkeypatch):
    first = add(pool, masks[0])
    monkeypatch.setattr("cers.pool.store._now", lambda: "2099-01-01T00:00:00+00:00")
    pool.review_cases(first.ids, "approved", who="someone whose computer is ahead")
    monkeypatch.undo()
    replaced = add(pool, masks[1]).replaced
    assert replaced and pool.history(replaced[0])[-1]["note"].startswith("Replaced")
    add(pool, masks[0])
    assert {pool.meta(i)["review"] for i in first.ids} == {"approved"}
