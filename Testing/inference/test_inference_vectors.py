"""The vectors of the pool's cases are made when they are needed, made anew when they are outdated, and never from a wrong reading."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from synthetic import fill, phantom, with_references

from cers.errors import PoolError
from cers.inference import Segmenter, load_model
from cers.inference.embedding import ReferenceStore
from cers.inference.search import search_image, search_text
from cers.inference.tiny import tiny_model
from cers.pool import Pool, import_volume
from cers.rationale import describe


def test_vectors_are_made_once_and_again_when_they_are_outdated(model, tmp_path, own_pool, embedder, volume):
    ids = fill(own_pool, (1, 2))
    segmenter = Segmenter(model, own_pool, text_embedder=embedder)
    assert len(own_pool.stale("image", model.hash)) == len(ids)
    said = []
    segmenter.segment(volume, progress=lambda f, m: said.append(m))
    assert any("mbedding the pool" in m for m in said)
    said.clear()
    segmenter.segment(volume, progress=lambda f, m: said.append(m))
    assert not any("mbedding the pool" in m for m in said)
    before = own_pool.vectors("rationale", embedder.hash, [ids[0]])[1]
    case = own_pool.get(ids[0])
    own_pool.add_rationale(ids[0], describe(case.image, case.image > 0, case.spacing))
    assert own_pool.stale("rationale", embedder.hash) == [ids[0]]
    segmenter.segment(volume)
    assert not own_pool.stale("rationale", embedder.hash)
    assert not np.allclose(own_pool.vectors("rationale", embedder.hash, [ids[0]])[1], before)
    other = load_model(tiny_model(tmp_path / "other", size=64, seed=3))
    assert len(own_pool.stale("image", other.hash)) == len(ids)
    prediction = Segmenter(other, own_pool, text_embedder=embedder).segment(volume)
    assert not own_pool.stale("image", other.hash) and not own_pool.stale("image", model.hash)
    assert prediction.provenance["model"] == other.hash


def test_a_case_whose_modality_is_corrected_is_read_anew(model, own_pool, embedder):
    ids = fill(own_pool, (1,))
    store = ReferenceStore(model, own_pool, embedder)
    before = store.rows(ids)
    own_pool.edit(ids[:1], {"modality": "CT"}, who="A. Nnotator")
    after = store.rows(ids)
    assert not torch.equal(after[ids[0]].dense, before[ids[0]].dense)
    assert all(after[i] is before[i] for i in ids[1:])


def test_a_new_rationale_reaches_the_evidence_decoder(model, own_pool, embedder, volume):
    """Also when a slice was decoded again before the pool's vectors were brought up to date."""
    ids = fill(own_pool, (1,))
    segmenter = Segmenter(model, own_pool, text_embedder=embedder)
    e = with_references(segmenter.segment(volume))[0]
    for i in ids:
        case = own_pool.get(i)
        own_pool.add_rationale(i, describe(case.image, case.image > 350, case.spacing))
    stale = segmenter.resegment(e.index, e.plane)
    prediction = segmenter.segment(volume)
    fresh = Segmenter(model, own_pool, text_embedder=embedder).segment(volume)
    assert np.array_equal(prediction.probabilities, fresh.probabilities)
    assert stale.evidence.references


def test_a_read_only_pool_with_outdated_vectors_is_refused(model, own_pool, embedder, volume, tmp_path):
    fill(own_pool, (1,))
    own_pool.close()
    with Pool.open(tmp_path / "pool", read_only=True) as pool:
        with pytest.raises(PoolError, match="read-only"):
            Segmenter(model, pool, text_embedder=embedder).segment(volume)


def test_a_pool_that_may_only_be_read_is_searched_all_the_same(model, own_pool, embedder, tmp_path, monkeypatch):
    """With vectors for some of the cases, for the first time and again."""
    ids = fill(own_pool, (1, 2))
    image = own_pool.get(ids[1]).image
    own_pool.set_vectors("rationale", embedder.hash, ids[:1], embedder.encode([own_pool.get(ids[0]).rationale.compact]))
    own_pool.close()
    with Pool.open(tmp_path / "pool", read_only=True) as pool:
        text = search_text(pool, embedder, "A hyperintense lesion.", 20)
        like = search_image(pool, model, embedder, image, pool.get(ids[1]).spacing, pool.get(ids[1]).modality, 3)
        made = []
        monkeypatch.setattr(Pool, "rationales", lambda self, ids: made.append(ids))
        assert search_text(pool, embedder, "A hyperintense lesion.", 20) == text and not made, "made once"
        monkeypatch.undo()
    assert {i for i, _ in text} == set(ids) and like[0][0] == ids[1] and like[0][1] > 0.99 and len(like) == 3
    with Pool.open(tmp_path / "pool") as pool:
        assert pool.stale("image", model.hash) and len(pool.stale("rationale", embedder.hash)) == len(ids) - 1, "nothing was written"
        kept = search_text(pool, embedder, "A hyperintense lesion.", 20)
        assert [i for i, _ in kept] == [i for i, _ in text] or np.allclose([s for _, s in kept], [s for _, s in text], atol=2e-3)


def test_a_read_only_pool_that_is_up_to_date_works(run, model, pool_folder, embedder, volume, tmp_path):
    shutil.copytree(pool_folder, tmp_path / "copy")
    with Pool.open(tmp_path / "copy", read_only=True) as pool:
        assert np.array_equal(
            Segmenter(model, pool, text_embedder=embedder).segment(volume, "acquisition").probabilities, run[0].probabilities
        )


def test_a_case_of_unknown_modality_is_framed_as_the_models_own(tmp_path, own_pool):
    """A CT case that does not say so must not be scaled as MR by a CT model."""
    from cers.inference.embedding import case_frame

    folder = tiny_model(tmp_path / "ct", size=64)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "modality": "CT"}))
    model = load_model(folder)
    volume, mask = phantom(patient=4, modality="CT")
    case = own_pool.get(import_volume(own_pool, volume, mask, {1: "tumor"}, max_slices=1)[0])
    silent = dataclasses.replace(case, modality=None)
    assert np.array_equal(case_frame(case, model)[0], case_frame(silent, model)[0])


def test_a_text_encoder_of_another_dimension_is_refused(model, tmp_path, embedder):
    from cers.errors import ModelError

    class Other:
        dimension = 99

    with pytest.raises(ModelError, match="99"):
        Segmenter(model, None, text_embedder=Other())


def test_labels_of_a_case_are_matched_by_meaning():
    from types import SimpleNamespace

    from cers.case import Case
    from cers.inference.embedding import case_frame

    image = np.random.default_rng(0).normal(100, 20, (64, 64)).astype(np.float32)
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20, 10:20], mask[40:55, 40:55] = 1, 2
    model = SimpleNamespace(config=SimpleNamespace(size=64, modality="MR"), labels={1: "tumor", 2: "edema"})
    named, other, neither = (
        case_frame(Case(image, mask, {1: first, 2: second}), model)[1]
        for first, second in (("tumor", "edema"), ("Lesion", "edema"), ("a", "b"))
    )
    assert named[0, 0].sum() > 0 and named[0, 1].sum() > 0 and np.array_equal(named, other)
    assert neither[0, 0].sum() > named[0, 0].sum() and neither[0, 1].sum() == 0
