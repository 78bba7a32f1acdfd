"""How far references count against decoding without any."""

from __future__ import annotations

import pytest
import torch
from synthetic import fill, phantom, with_references

from cers.inference import Segmenter


@pytest.fixture(scope="module")
def volume():
    return phantom()[0]


def mixed(segmenter, key) -> tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The share of the references of a slice, and its probabilities with them, without, and as given."""
    session = segmenter.session
    ids = session.slices[key].selection.ids
    with torch.inference_mode():
        alone, share = segmenter._alone(session, [key])[key]
        whole = segmenter._fused(session, [(key, ids)], segmenter._references(session, [key]), {})[0][0]
    return share, whole, alone, session.planes[key[0]].fused[key[1]]


@pytest.mark.parametrize(
    ("label", "threshold", "most"),
    [("tumor", 0.999, 0.5), ("lesion", 0.999, 0.5), ("hippocampus", 0.999, 1.0), ("tumor", 0.001, 1.0), ("hippocampus", 0.001, 1.0)],
)
def test_references_count_as_far_as_the_pool_covers_the_slice(model, own_pool, embedder, volume, monkeypatch, label, threshold, most):
    """Half as much where they show what the model was trained for, by name or by meaning, and it finds nothing there without them."""
    fill(own_pool, (1, 2), labels={1: label})
    segmenter = Segmenter(model, own_pool, text_embedder=embedder)
    monkeypatch.setattr(model.config, "threshold", threshold)
    e = with_references(segmenter.segment(volume, influence=False))[0]
    share, whole, alone, given = mixed(segmenter, (e.plane, e.index))
    assert bool((alone > threshold).any()) == (threshold < 0.5)
    assert share == pytest.approx(most * e.coverage.value) and 0 < share < most
    assert torch.allclose(given, share * whole + (1 - share) * alone, atol=1e-5)
    assert not torch.allclose(whole, alone, atol=1e-3)


@pytest.mark.parametrize("found", [True, False])
def test_a_pinned_reference_counts_whole(segmenter, volume, found):
    e = with_references(segmenter.segment(volume, influence=False))[0]
    pinned = segmenter._select(segmenter.session, (e.plane, e.index), pinned=(e.references[0].id,))
    assert segmenter._share(pinned, found) == 1.0


@pytest.mark.parametrize(("label", "name"), [("tumor", "tumor"), ("meningioma", "tumor"), ("hippocampus", "hippocampus")])
def test_what_foreign_references_show_gives_the_result_its_name(model, own_pool, embedder, volume, label, name):
    """A model of tumours that draws a hippocampus by its references must not call it a tumour, unless little is owed to them."""
    fill(own_pool, (1, 2), labels={1: label})
    segmenter = Segmenter(model, own_pool, text_embedder=embedder)
    prediction = segmenter.segment(volume, influence=False)
    owed, other = ([e for e in prediction.evidence if bool(e.references) is some] for some in (True, False))
    assert owed and other
    pixels = {True: sum(e.pixels for e in owed), False: sum(e.pixels for e in other)}
    assert prediction.labels == {1: name if pixels[True] > pixels[False] else "tumor"}
    for e in owed:
        e.pixels = 10
    for e in other:
        e.pixels = 0
    assert segmenter._names(prediction.evidence) == {1: name}
    other[0].pixels = 10 * len(owed)
    assert segmenter._names(prediction.evidence) == {1: "tumor"}
