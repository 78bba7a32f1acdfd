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
    found = session.slices[key]
    ids = found.selection.ids
    with torch.inference_mode():
        alone, share = segmenter._alone(session, [key])[key]
        whole = segmenter._fused(session, [(key, ids)], segmenter._references(session, [key]), {})[0][0]
    return share, whole, alone, session.planes[key[0]].fused[key[1]]


@pytest.mark.parametrize(("label", "most"), [("tumor", 0.5), ("lesion", 0.5), ("hippocampus", 1.0)])
def test_references_count_as_far_as_the_pool_covers_the_slice(model, own_pool, embedder, volume, label, most):
    """Half as much where they show what the model was trained for, by name or by meaning."""
    fill(own_pool, (1, 2), labels={1: label})
    segmenter = Segmenter(model, own_pool, text_embedder=embedder)
    e = with_references(segmenter.segment(volume, influence=False))[0]
    share, whole, alone, given = mixed(segmenter, (e.plane, e.index))
    assert share == pytest.approx(most * e.coverage.value) and 0 < share < most
    assert torch.allclose(given, share * whole + (1 - share) * alone, atol=1e-5)
    assert not torch.allclose(whole, alone, atol=1e-3)


def test_a_pinned_reference_counts_whole(segmenter, volume):
    e = with_references(segmenter.segment(volume, influence=False))[0]
    pinned = segmenter._select(segmenter.session, (e.plane, e.index), pinned=(e.references[0].id,))
    assert segmenter._share(pinned) == 1.0
