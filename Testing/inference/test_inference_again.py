"""Decoding one slice again with other references."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import fill, phantom, with_references

from cers.errors import InputError, PoolError
from cers.inference import Segmenter, load_model
from cers.inference.harm import check_harm
from cers.network.evidence import AGREED
from cers.pool import import_volume

# ---- one slice again


def decoded(run):
    prediction, segmenter, _ = run
    return prediction, segmenter, max(with_references(prediction), key=lambda e: e.pixels)


def test_the_same_references_reproduce_the_slice(run):
    prediction, segmenter, _ = run
    for e in prediction.evidence:
        result = segmenter.resegment(e.index, e.plane)
        view = segmenter.session.planes["axial"].view
        p = view.slices(prediction.probabilities[0].astype(np.float32))[e.index]
        assert np.abs(result.probability[0] - p).max() < 2e-3  # float16
        settled = np.abs(p - 0.5) > 2e-3
        assert np.array_equal(result.mask[settled], view.slices(prediction.labelmap)[e.index][settled])
        assert [r.id for r in result.evidence.references] == [r.id for r in e.references]
        assert result.evidence.disagreement == pytest.approx(e.disagreement, abs=0.01)
        assert result.mask.dtype == np.uint8 and result.probability.dtype == np.float32


def test_decoding_a_slice_again_changes_nothing_that_is_kept(run):
    prediction, segmenter, e = decoded(run)
    plane = segmenter.session.planes["axial"]
    fused, labelmap, evidence = plane.fused.clone(), prediction.labelmap.copy(), e.to_dict()
    segmenter.resegment(e.index, e.plane, dropped=[r.id for r in e.references])
    assert bool((plane.fused == fused).all()) and np.array_equal(prediction.labelmap, labelmap) and e.to_dict() == evidence


def test_a_dropped_reference_is_not_used(run):
    _, segmenter, e = decoded(run)
    gone = e.references[0].id
    result = segmenter.resegment(e.index, e.plane, dropped=[gone])
    assert gone not in [r.id for r in result.evidence.references]
    assert next(r for r in result.evidence.rejected if r.id == gone).stage == "dropped"
    assert not np.array_equal(result.probability, segmenter.resegment(e.index, e.plane).probability)


def test_dropping_all_is_the_null_reference_and_the_disagreement_is_of_the_new_mask(run, model_folder, embedder, volume):
    _, segmenter, e = decoded(run)
    result = segmenter.resegment(e.index, e.plane, dropped=segmenter.pool.ids())
    assert not result.evidence.references and not result.evidence.coverage.covered
    bare = Segmenter(load_model(model_folder), None, text_embedder=embedder)
    alone = next(x for x in bare.segment(volume, "acquisition").evidence if x.index == e.index)
    assert np.abs(result.probability - bare.resegment(e.index, e.plane).probability).max() < 1e-5
    assert result.evidence.disagreement == pytest.approx(alone.disagreement, abs=0.005)
    assert result.evidence.pixels == int((result.mask > 0).sum())


def test_a_pinned_case_is_used(run):
    _, segmenter, e = decoded(run)
    used = [r.id for r in e.references]
    other = next(i for i in segmenter.pool.ids() if i not in used)
    result = segmenter.resegment(e.index, e.plane, pinned=[other])
    pinned = next(r for r in result.evidence.references if r.id == other)
    assert pinned.pinned and pinned.weight is not None and (pinned.influence is not None or not result.mask.any())


def test_a_pin_that_cannot_be_is_refused(run, model, own_pool, embedder):
    _, segmenter, e = decoded(run)
    with pytest.raises(PoolError, match="not in this pool"):
        segmenter.resegment(e.index, e.plane, pinned=["0123456789abcdef"])
    with pytest.raises(InputError, match="both pinned and dropped"):
        segmenter.resegment(e.index, e.plane, pinned=[e.references[0].id], dropped=[e.references[0].id])
    volume, mask = phantom(patient=0)
    own = import_volume(own_pool, volume, mask, {1: "tumor"}, max_slices=1)[0]
    mine = Segmenter(model, own_pool, text_embedder=embedder)
    first = mine.segment(volume, "acquisition", influence=False).evidence[0]
    with pytest.raises(PoolError, match="same volume"):
        mine.resegment(first.index, first.plane, pinned=[own])


def test_a_slice_that_was_not_decoded_is_refused(run, model, embedder):
    _, segmenter, _ = run
    for index, plane in ((-1, "axial"), (14, "axial"), (0, "coronal"), (0, "oblique")):
        with pytest.raises(InputError, match="not decoded"):
            segmenter.resegment(index, plane)
    with pytest.raises(InputError, match="segmented yet"):
        Segmenter(model, None, text_embedder=embedder).resegment(0, "axial")


def test_a_reference_with_a_wrong_mask_is_contradicted_and_does_not_count_unless_pinned(model, own_pool, embedder, volume):
    fill(own_pool, patients=(1, 2, 3))
    picture, mask = phantom(patient=5)
    wrong = set(import_volume(own_pool, picture, np.roll(mask, (14, -12), (1, 2)), {1: "tumor"}, max_slices=4, patient_id="patient5"))
    segmenter = Segmenter(model, own_pool, text_embedder=embedder)
    seen = 0
    for e in with_references(segmenter.segment(volume, "acquisition")):
        for r in e.references:
            if r.id in wrong and len({x.id for x in e.references} - wrong) > 1:
                assert r.agreement < AGREED[0] and r.weight == 0 and (r.influence or 0) < 1e-6
                pinned = segmenter.resegment(e.index, e.plane, pinned=[r.id]).evidence.references
                assert next(x for x in pinned if x.id == r.id).weight > 0
                seen += 1
            elif r.id not in wrong and len(e.references) > 2:
                assert r.agreement > AGREED[0] and r.weight > 0
    assert seen


def test_the_pool_check_names_wrong_masks_that_others_contradict(model, own_pool, embedder):
    right, wrong = set(fill(own_pool, patients=(1, 2, 3, 4, 6, 7))), set()
    for patient, shift in ((5, (14, -12)), (8, (-13, 13)), (9, (15, 10))):
        picture, mask = phantom(patient=patient)
        moved = np.roll(mask, shift, (1, 2))
        wrong |= set(import_volume(own_pool, picture, moved, {1: "tumor"}, max_slices=4, patient_id=f"patient{patient}"))
    report = check_harm(Segmenter(model, own_pool, text_embedder=embedder))
    named = {f.ids[0] for f in report.findings() if f.kind == "contradicted"}
    assert named and named <= wrong
    assert right & set(report.mean("agreement")), "right ones were judged as well"
