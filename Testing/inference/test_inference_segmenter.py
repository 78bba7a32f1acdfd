"""Segmenting with evidence on synthetic volumes, with the real steps and an untrained network."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from synthetic import LESION, fill, grid, phantom, with_references

from cers.case import Geometry, Volume
from cers.errors import Cancelled, InputError
from cers.inference import Segmenter, load_model
from cers.inference.segmenter import soft_difference
from cers.inference.shown import told
from cers.inference.tiny import tiny_model
from cers.pool import NO_CLOSE_CASE, import_volume
from cers.rationale import describe

# ---- what comes out


def test_the_result_lies_on_the_inputs_grid(run, volume):
    prediction, _, _ = run
    assert prediction.labelmap.shape == volume.array.shape and prediction.labelmap.dtype == np.uint8
    assert prediction.probabilities.shape == (1, *volume.array.shape) and prediction.probabilities.dtype == np.float16
    assert prediction.geometry.same_grid(volume.geometry, 0)
    assert set(np.unique(prediction.labelmap)) == {0, 1}
    assert prediction.volume_ml["tumor"] == pytest.approx(prediction.labelmap.sum() * 2.6 * 2.9 * 9 / 1000)
    p = prediction.probabilities[0].astype(np.float32)
    assert p.min() >= 0 and p.max() <= 1
    assert ((p > 0.501) <= (prediction.labelmap > 0)).all() and ((p < 0.499) <= (prediction.labelmap == 0)).all()


def test_every_slice_with_body_has_evidence_in_plain_json(run):
    prediction, _, _ = run
    assert [e.index for e in prediction.evidence] == sorted(e.index for e in prediction.evidence) and len(with_references(prediction)) >= 5
    assert json.loads(json.dumps(prediction.summary(), allow_nan=False))["slices"]
    for e in prediction.evidence:
        assert e.plane == "axial" and 0 <= e.disagreement <= 1
        assert e.pixels == (prediction.labelmap[e.array_index] > 0).sum()
        assert (e.confidence is None) == (e.pixels == 0)
        assert [r.rank for r in e.references] == list(range(1, len(e.references) + 1))
        assert len({r.id for r in e.references} | {r.id for r in e.rejected}) == len(e.references) + len(e.rejected)


def test_weights_and_influence_are_shares(run):
    prediction, _, _ = run
    seen = 0
    for e in with_references(prediction):
        weights = [r.weight for r in e.references]
        assert all(0 <= w <= 1 for w in weights) and sum(weights) <= 1 + 1e-5
        influence = [r.influence for r in e.references]
        assert all(i is None for i in influence) or all(0 <= i <= 1 for i in influence)
        seen += influence[0] is not None
    assert seen


def test_progress_rises_from_0_to_1(run):
    fractions, messages = zip(*run[2])
    assert fractions[0] == 0 and fractions[-1] == 1 and all(0 <= f <= 1 for f in fractions)
    assert all(a <= b for a, b in zip(fractions, fractions[1:]))
    assert all(m and m[0].isupper() for m in messages)


def test_seconds_are_given_for_every_step(run):
    seconds = run[0].seconds
    assert set(seconds) == {
        "pool",
        "prepare",
        "encode",
        "plain",
        "rationale",
        "text",
        "select",
        "references",
        "evidence",
        "influence",
        "finish",
        "total",
    }
    assert all(s >= 0 for s in seconds.values()) and sum(seconds.values()) <= 2 * seconds["total"] + 0.01


def test_provenance_names_everything_that_was_used(run, volume):
    prediction, segmenter, _ = run
    p = prediction.provenance
    assert p["image"] == volume.content_hash and p["model"] == segmenter.model.hash and p["pool"] == segmenter.pool.hash()
    assert p["text_encoder"] == segmenter.embedder.hash and p["cers"]
    assert p["settings"]["planes"] == "acquisition" and p["settings"]["modality"] == "MR" and p["settings"]["clinical_text"] is False
    assert p["settings"]["selection"]["k"] == 5


def test_the_words_shown_are_of_the_final_mask_and_the_references_chosen_by_the_first(run, volume):
    """A reader sees the final contour; D_R was given the words of the plain decoder's mask, as it was trained."""
    prediction, segmenter, _ = run
    plane = segmenter.session.planes["axial"]
    differs = 0
    for e in prediction.evidence:
        mask = plane.view.slices(prediction.labelmap)[e.index] > 0
        assert (e.rationale is None) == (not mask.any())
        if e.rationale is not None:
            assert e.rationale == describe(plane.raw[e.index], mask, plane.spacing, modality="MR", plane="axial")
        first = (plane.frame.paste(plane.plain[e.index : e.index + 1])[0] > 0.5).any(0)
        if e.first_rationale is not None:
            assert e.first_rationale == describe(plane.raw[e.index], first, plane.spacing, modality="MR", plane="axial")
            assert e.first_rationale is segmenter.session.slices["axial", e.index].rationale
            differs += e.rationale != e.first_rationale
    assert differs


def test_two_runs_give_the_same(run, model_folder, pool, embedder, volume):
    again = Segmenter(load_model(model_folder), pool, text_embedder=embedder).segment(volume, "acquisition")
    assert np.array_equal(again.labelmap, run[0].labelmap) and np.array_equal(again.probabilities, run[0].probabilities)
    assert [e.to_dict() for e in again.evidence] == [e.to_dict() for e in run[0].evidence]


def test_without_influence_nothing_else_changes(run, segmenter, volume):
    prediction = segmenter.segment(volume, "acquisition", influence=False)
    assert np.array_equal(prediction.labelmap, run[0].labelmap)
    assert all(r.influence is None for e in prediction.evidence for r in e.references)


@pytest.mark.parametrize("sure", [0.05, 0.5, 1.0])
def test_what_does_not_change_has_no_influence_however_unsure(sure):
    same = torch.rand(1, 9, 8, generator=torch.Generator().manual_seed(0)) * sure
    assert soft_difference(torch.stack([same, same * 0]), same).tolist() == [0.0, 1.0]
    assert soft_difference(same[None] * 0, same * 0).item() == 0.0
    half = same.clone()
    half[:, ::2] = 0
    assert 0.1 < soft_difference(half[None], same).item() < 0.9


def test_influence_is_what_leaving_the_reference_out_changes(segmenter, volume):
    segmenter.model.config.selection["k"] = 2
    prediction = segmenter.segment(volume, "acquisition")
    plane = segmenter.session.planes["axial"]
    pairs = [e for e in prediction.evidence if len(e.references) == 2 and e.references[0].influence is not None]
    for e in pairs:
        gone, kept = (r.id for r in e.references)
        segmenter.model.config.selection["k"] = 2
        both = segmenter.resegment(e.index, "axial", pinned=[gone, kept])  # pinned, so that they count alike in both
        segmenter.model.config.selection["k"] = 1
        one = segmenter.resegment(e.index, "axial", pinned=[kept], dropped=[gone])
        assert [r.id for r in both.evidence.references] == [gone, kept] and [r.id for r in one.evidence.references] == [kept]
        full, without = (plane.frame.crop(result.probability)[:, 0].numpy() for result in (both, one))
        overlap = 2 * (full * without).sum() / ((full**2).sum() + (without**2).sum())
        assert both.evidence.references[0].influence == pytest.approx(1 - overlap, abs=0.02)
    assert pairs


def test_two_labels(tmp_path, embedder, own_pool, volume):
    model = load_model(tiny_model(tmp_path / "two", labels=("core", "edema"), size=64))
    other, mask = phantom(patient=5)
    mask[:, :, : mask.shape[2] // 2][mask[:, :, : mask.shape[2] // 2] > 0] = 2
    half = np.argwhere(mask)[:, 2].mean()
    mask[..., int(half) :] *= 2
    import_volume(own_pool, other, mask, {1: "Core", 2: "EDEMA"})
    prediction = Segmenter(model, own_pool, text_embedder=embedder).segment(volume, "acquisition")
    assert prediction.labels == {1: "core", 2: "edema"} and prediction.probabilities.shape[0] == 2
    assert set(np.unique(prediction.labelmap)) <= {0, 1, 2} and prediction.labelmap.any()
    assert set(prediction.volume_ml) == {"core", "edema"} and with_references(prediction)


def test_labels_are_matched_by_name_else_taken_for_the_first(tmp_path, own_pool):
    from cers.inference.embedding import case_frame

    model = load_model(tiny_model(tmp_path / "two", labels=("core", "edema"), size=64))
    volume, mask = phantom(patient=5)
    by_name = own_pool.get(import_volume(own_pool, volume, mask * 7, {7: "Edema"})[0])
    image, masks = case_frame(by_name, model)
    assert image.shape == (1, 1, 64, 64) and masks.shape == (1, 2, 64, 64)
    assert masks[0, 0].sum() == 0 and masks[0, 1].sum() > 0
    other = own_pool.get(import_volume(own_pool, volume, mask, {1: "something else"})[0])
    _, masks = case_frame(other, model)
    assert masks[0, 0].sum() > 0 and masks[0, 1].sum() == 0


def test_small_parts_are_dropped_by_volume(segmenter, volume):
    everything = segmenter.segment(volume, "acquisition", influence=False).labelmap
    segmenter.model.config.minimum_ml = 1e5
    prediction = segmenter.segment(volume, "acquisition", influence=False)
    assert everything.any() and not prediction.labelmap.any()
    assert all(e.pixels == 0 and e.confidence is None for e in prediction.evidence)


def test_temperature_softens_the_result_and_moves_no_border(segmenter, volume):
    sharp = segmenter.segment(volume, "acquisition", influence=False)
    segmenter.model.config.temperature = 3.0
    soft = segmenter.segment(volume, "acquisition", influence=False)
    assert soft.probabilities.max() < sharp.probabilities.max()
    a, b = sharp.labelmap > 0, soft.labelmap > 0
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.97


def test_a_clinical_text_is_used_and_recorded(run, segmenter, volume):
    told = segmenter.segment(volume, "acquisition", text="Suspected glioma.", influence=False)
    assert told.provenance["settings"]["clinical_text"] is True
    assert not np.array_equal(told.probabilities, run[0].probabilities)
    blank = segmenter.segment(volume, "acquisition", text="  \n", influence=False)
    assert np.array_equal(blank.probabilities, run[0].probabilities) and blank.provenance["settings"]["clinical_text"] is False


# ---- planes


def test_the_probabilities_of_three_planes_are_averaged(segmenter):
    volume, _ = phantom(grid(shape=(6, 20, 18), spacing=(7, 7, 20.0)))
    prediction = segmenter.segment(volume, planes="three", influence=False)
    assert {e.plane for e in prediction.evidence} == {"axial", "coronal", "sagittal"}
    assert prediction.labelmap.shape == volume.array.shape
    total = sum(p.view.volume(p.frame.paste(p.fused)[:, 0]) for p in segmenter.session.planes.values()) / 3
    assert np.allclose(total, prediction.probabilities[0].astype(np.float32), atol=2e-3)
    assert prediction.provenance["settings"]["planes"] == "three"
    for plane in segmenter.session.planes:
        e = next(e for e in prediction.evidence if e.plane == plane)
        assert segmenter.resegment(e.index, plane).mask.shape == segmenter.session.planes[plane].view.shape[1:]


def test_unknown_planes_are_refused(segmenter, volume):
    with pytest.raises(InputError, match="auto, acquisition or three"):
        segmenter.segment(volume, planes="oblique")


@pytest.mark.parametrize("planes", ["acquisition", "three"])
def test_a_volume_of_one_slice(segmenter, planes):
    single, _ = phantom(grid(shape=(1, 64, 60), spacing=(2.4, 2.4, 5.0), centre=LESION))
    prediction = segmenter.segment(single, planes=planes)
    assert prediction.labelmap.shape == (1, 64, 60)
    assert [(e.plane, e.index) for e in prediction.evidence] == [("axial", 0)]


@pytest.mark.parametrize("planes", ["acquisition", "three"])
def test_a_picture_without_pixel_size(segmenter, planes):
    single, _ = phantom(grid(shape=(1, 64, 60), spacing=(2.4, 2.4, 5.0), centre=LESION))
    picture = Volume(single.array, Geometry(np.diag([-1.0, -1, 1, 1]), (1, 64, 60)), spacing_known=False)
    prediction = segmenter.segment(picture, planes=planes)
    assert len(prediction.evidence) == 1 and prediction.labelmap.shape == (1, 64, 60)
    text = prediction.evidence[0].rationale.text if prediction.evidence[0].rationale else ""
    assert " mm" not in text


def test_nothing_is_said_of_sides_in_a_picture_whose_plane_nobody_knows(segmenter):
    single, mask = phantom(grid(shape=(1, 64, 60), spacing=(2.4, 2.4, 5.0), centre=LESION))
    place = ("side", "height", "across")
    for known in (True, False):
        volume = Volume(single.array, single.geometry, spacing_known=known, modality="MR")
        segmenter.segment(volume, planes="acquisition")
        plane = segmenter.session.planes["axial"]
        inside = plane.view.slices(mask)[0] > 0
        first = describe(plane.raw[0], inside, plane.spacing, modality="MR", plane="axial")
        assert first.descriptors["side"] is not None
        words = told(plane, 0, inside, "MR", first)
        for rationale in (words["rationale"], words["first_rationale"]):
            said = [s for s in rationale.statements if s.descriptor in place]
            assert bool(said) is known and any(rationale.descriptors[name] is not None for name in place) is known
            assert len(rationale.statements) == len(first.statements) - (0 if known else 2)
            assert known or not re.search(r"\b(left|right|midline|anterior|posterior)\b", rationale.text)


# ---- no evidence


def null(model_folder, embedder, volume):
    return Segmenter(load_model(model_folder), None, text_embedder=embedder).segment(volume, "acquisition")


def test_no_pool(run, model_folder, embedder, volume):
    prediction = null(model_folder, embedder, volume)
    assert prediction.provenance["pool"] is None and prediction.labelmap.any()
    assert all(
        not e.references and not e.rejected and not e.coverage.covered and "No pool" in e.coverage.message for e in prediction.evidence
    )
    assert not np.array_equal(prediction.probabilities, run[0].probabilities)


def test_an_empty_pool_is_the_null_reference(model_folder, model, own_pool, embedder, volume):
    prediction = Segmenter(model, own_pool, text_embedder=embedder).segment(volume, "acquisition")
    assert np.array_equal(prediction.probabilities, null(model_folder, embedder, volume).probabilities)
    assert all(not e.coverage.covered and "empty" in e.coverage.message for e in prediction.evidence)
    assert prediction.provenance["pool"] == own_pool.hash()


def test_no_close_case_is_said_and_equals_the_null_reference(model_folder, segmenter, embedder, volume):
    segmenter.model.config.selection |= {"visual_threshold": 0.9999, "visual_high": 0.99999}
    prediction = segmenter.segment(volume, "acquisition")
    assert not with_references(prediction)
    assert all(not e.coverage.covered and e.coverage.message.startswith(NO_CLOSE_CASE[:-1]) for e in prediction.evidence)
    assert any(r.stage == "morphology" for e in prediction.evidence for r in e.rejected)
    assert np.array_equal(prediction.probabilities, null(model_folder, embedder, volume).probabilities)


def test_another_body_site_and_modality_are_refused_with_a_reason(model, own_pool, embedder, volume):
    fill(own_pool, (1,), body_site="lung")
    fill(own_pool, (2,), modality="CT")
    keep = fill(own_pool, (3,))
    unknown = fill(own_pool, (4,), modality=None, body_site=None)
    prediction = Segmenter(model, own_pool, text_embedder=embedder).segment(volume, "acquisition")
    reasons = {r.reason for e in prediction.evidence for r in e.rejected if r.stage == "compatibility"}
    assert any("lung" in r and "brain" in r for r in reasons) and any("CT" in r and "MR" in r for r in reasons)
    used = {r.id for e in prediction.evidence for r in e.references}
    assert used and used <= {*keep, *unknown}


def test_the_wrong_modality_is_refused(segmenter):
    ct, _ = phantom(modality="CT")
    with pytest.raises(InputError, match="CT"):
        segmenter.segment(ct)
    assert segmenter.session is None


@pytest.mark.parametrize("modality", ["MRI", "mr", " MR ", None])
def test_the_same_modality_however_it_is_written(run, segmenter, modality):
    volume, _ = phantom(modality=modality)
    assert np.array_equal(segmenter.segment(volume, "acquisition", influence=False).labelmap, run[0].labelmap)


# ---- never its own evidence


@pytest.mark.parametrize("named", ["by file", "by hand", "not at all"])
def test_a_volume_never_meets_itself(model, own_pool, embedder, named):
    volume, mask = phantom(patient=0)
    volume_id = {"by file": volume.content_hash[:16], "by hand": "study 7", "not at all": None}[named]
    own = import_volume(own_pool, dataclasses.replace(volume, volume_id=volume_id), mask, {1: "tumor"})
    others = fill(own_pool, (1,))
    prediction = Segmenter(model, own_pool, text_embedder=embedder).segment(dataclasses.replace(volume, volume_id=volume_id))
    used = {r.id for e in prediction.evidence for r in e.references}
    assert used and used <= set(others)
    reasons = [r.reason for e in prediction.evidence for r in e.rejected if r.id in own]
    assert reasons and all(r.startswith("Not used:") for r in reasons)


def test_the_very_picture_is_refused_even_under_another_name(model, own_pool, embedder):
    volume, mask = phantom(patient=0)
    own = import_volume(own_pool, dataclasses.replace(volume, volume_id="a copy"), mask, {1: "tumor"}, max_slices=1)
    prediction = Segmenter(model, own_pool, text_embedder=embedder).segment(volume, "acquisition")
    index = own_pool.get(own[0]).slice_index
    e = next(e for e in prediction.evidence if e.index == index)
    assert not e.references and "very picture" in e.rejected[0].reason


def test_the_same_patient_is_never_used(model, own_pool, embedder):
    fill(own_pool, (1, 2))
    volume, _ = phantom(patient=0, patient_id="patient1")
    prediction = Segmenter(model, own_pool, text_embedder=embedder).segment(volume, "acquisition")
    assert {own_pool.meta(r.id)["patient_id"] for e in prediction.evidence for r in e.references} == {"patient2"}


# ---- cancelling


def test_cancelling_at_any_moment_leaves_the_earlier_result(model, own_pool, embedder):
    fill(own_pool, (1,))
    segmenter = Segmenter(model, own_pool, text_embedder=embedder)
    small, _ = phantom(grid(shape=(4, 40, 40), spacing=(3.6, 3.6, 12.0)), patient=8)
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    other, _ = phantom(grid(shape=(4, 40, 40), spacing=(3.6, 3.6, 12.0)), patient=9)
    segmenter.segment(small)  # so that the pool is up to date in all that follow
    segmenter.segment(other, cancel=count)
    first, session = segmenter.segment(small), segmenter.session
    e = [*with_references(first), *first.evidence][0]
    before = segmenter.resegment(e.index, e.plane)
    assert asked > 15
    for stop in range(1, asked + 1):
        left = [stop]

        def cancel() -> bool:
            left[0] -= 1
            return left[0] <= 0

        with pytest.raises(Cancelled):
            segmenter.segment(other, cancel=cancel)
        assert segmenter.session is session and session.prediction is first
    assert np.array_equal(segmenter.resegment(e.index, e.plane).probability, before.probability)


def test_cancelling_while_the_pool_is_embedded_keeps_what_is_done(model, own_pool, embedder, volume):
    ids = fill(own_pool, (1, 2, 3, 4, 5))
    with pytest.raises(Cancelled):
        Segmenter(model, own_pool, text_embedder=embedder).segment(
            volume, cancel=lambda: len(own_pool.stale("image", model.hash)) < len(ids)
        )
    assert 0 < len(own_pool.stale("image", model.hash)) < len(ids)


def test_slices_that_are_no_longer_kept_are_encoded_again(run, segmenter, volume, monkeypatch):
    """A volume of more slices than are kept gives the same result."""
    monkeypatch.setattr("cers.inference.planes.KEPT", 3)
    prediction = segmenter.segment(volume, "acquisition")
    assert len(segmenter.session.planes["axial"].encoded) == 3
    assert np.allclose(prediction.probabilities, run[0].probabilities, atol=2e-3)
    assert [[r.id for r in e.references] for e in prediction.evidence] == [[r.id for r in e.references] for e in run[0].evidence]


# ---- odd masks and images


@pytest.mark.parametrize("bias", [-50.0, 50.0])
def test_an_empty_and_an_overflowing_mask(segmenter, volume, bias):
    """Both decoders mark nothing, or everything."""
    net = segmenter.model.net
    for decoder in (net.plain, net.fused):
        decoder.out.bias += bias
    prediction = segmenter.segment(volume, "acquisition")
    if bias < 0:
        assert not prediction.labelmap.any()
        assert all(e.rationale is None and e.confidence is None and e.disagreement == 0 for e in prediction.evidence)
        assert all(r.influence is None and r.cot is None for e in prediction.evidence for r in e.references)
    else:
        assert prediction.labelmap.mean() > 0.3
    json.dumps(prediction.summary(), allow_nan=False)


def test_a_volume_whose_outer_slices_are_empty(segmenter):
    volume, _ = phantom(grid(shape=(24, 48, 48), spacing=(3, 3, 9.0)))
    prediction = segmenter.segment(volume, "acquisition", influence=False)
    indices = {e.index for e in prediction.evidence}
    assert 0 not in indices and 23 not in indices and len(indices) >= 8
    assert not prediction.labelmap[0].any()
    with pytest.raises(InputError, match="no part of the body"):
        segmenter.resegment(0, "axial")


def test_a_volume_cropped_inside_the_head_is_decoded_throughout(segmenter):
    volume, _ = phantom(grid(shape=(7, 24, 22), spacing=(2.0, 2.0, 7.0), centre=(5, -3, 2)))
    assert volume.array.min() > 0
    prediction = segmenter.segment(volume, "acquisition", influence=False)
    assert [e.index for e in prediction.evidence] == list(range(7))
    frame = segmenter.session.planes["axial"].frame
    assert min(frame.height, frame.width) >= 20


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.uint16, np.int32, bool])
def test_any_voxel_type_gives_the_same_mask(run, segmenter, volume, dtype):
    if dtype in (np.uint8, bool):
        scaled = Volume(
            (volume.array // 4).astype(np.uint8) if dtype is np.uint8 else volume.array > 400,
            volume.geometry,
            modality="MR",
            body_site="brain",
        )
        assert segmenter.segment(scaled, "acquisition", influence=False).labelmap.any()
        return
    other = Volume(volume.array.astype(dtype), volume.geometry, modality="MR", body_site="brain")
    assert np.array_equal(segmenter.segment(other, "acquisition", influence=False).labelmap, run[0].labelmap)


@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 40, 9), (12, 1, 40), (1, 1, 50)])
def test_strange_shapes(segmenter, shape):
    rng = np.random.default_rng(0)
    volume = Volume(rng.normal(size=shape).astype(np.float32), grid(shape=shape, spacing=(1, 1, 1)))
    for planes in ("acquisition", "three"):
        assert segmenter.segment(volume, planes=planes).labelmap.shape == shape
