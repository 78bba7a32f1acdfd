"""Which planes a volume is decoded along, and which of their slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from synthetic import fill, grid, phantom

from benchmarks.common import OPEN
from cers.case import Volume
from cers.errors import InputError
from cers.evaluation.metrics import dice
from cers.inference import Segmenter
from cers.inference.shown import renew
from cers.inference.volume import MARGIN, smooth_across
from cers.pool import import_volume

ISOTROPIC = grid(shape=(64, 72, 68), spacing=(2.4, 2.4, 2.4))


def bright(geometry=ISOTROPIC):
    """A head of almost one signal with a large lesion; and the lesion."""
    return phantom(geometry, pattern=10.0, radii=(20.0, 17.0, 19.0))


def planes(segmenter, volume, asked="auto") -> tuple[str, set[str]]:
    """What the provenance names, and the planes with evidence."""
    prediction = segmenter.segment(volume, asked, influence=False)
    return prediction.provenance["settings"]["planes"], {e.plane for e in prediction.evidence}


def test_a_volume_that_reaches_far_enough_is_read_in_three_planes(marker):
    taken, seen = planes(marker, bright()[0])
    assert taken == "three" and seen == {"axial", "coronal", "sagittal"}
    assert marker.session.prediction.provenance["settings"]["planes_asked"] == "auto"
    assert marker.session.prediction.evidence[0].plane == "axial", "the plane of acquisition comes first"


@pytest.mark.parametrize(
    ("shape", "spacing", "known", "expected"),
    [
        ((25, 256, 256), (0.8, 0.8, 6.5), True, True),
        ((155, 240, 240), (1, 1, 1), True, True),
        ((12, 256, 256), (0.8, 0.8, 6.5), True, False),  # 78 mm: the other planes show a strip of the head
        ((25, 256, 100), (0.8, 0.8, 6.5), True, False),  # 80 mm from left to right
        ((8, 256, 256), (0.8, 0.8, 20), True, False),  # eight rows are no picture
        ((1, 256, 256), (0.8, 0.8, 200), True, False),
        ((200, 256, 256), (1, 1, 1), False, False),  # a stack of which nobody knows how far its slices are apart
    ],
)
def test_when_other_planes_are_worth_while(shape, spacing, known, expected):
    array = np.zeros(shape, np.uint8)
    array[0, 0, 0] = 1
    volume = Volume(array, grid(shape=shape, spacing=spacing), spacing_known=known)
    assert volume.worth_crossing is expected


def test_a_slab_is_read_along_its_acquisition_only(marker):
    slab, _ = phantom(grid(shape=(10, 70, 64), spacing=(2.4, 2.4, 7.0)))
    assert planes(marker, slab) == ("acquisition", {"axial"})
    assert planes(marker, slab, "three")[0] == "three", "unless all three are asked for"


@pytest.mark.parametrize(("label", "expected"), [("hippocampus", "acquisition"), ("tumor", "three")])
def test_what_foreign_references_show_stays_in_the_plane_in_which_they_were_drawn(mark, model, own_pool, embedder, label, expected):
    """Cases of a structure that the model does not know lie in the pool in one plane: the others would find nothing and vote it down."""
    fill(own_pool, (1, 2), labels={1: label})
    model.config.size, model.config.selection = 128, OPEN  # any case serves
    segmenter = mark(Segmenter(model, own_pool, text_embedder=embedder))
    volume, _ = bright()
    assert planes(segmenter, volume)[0] == expected
    assert any(e.references and e.pixels for e in segmenter.session.prediction.evidence)


def test_where_the_pool_has_them_in_all_planes_all_are_read(mark, model, own_pool, embedder):
    fill(own_pool, (1, 2), labels={1: "hippocampus"})
    volume, mask = phantom(patient=7)
    for plane in ("coronal", "sagittal"):
        import_volume(own_pool, volume, mask, {1: "hippocampus"}, plane=plane, max_slices=2)
    model.config.size, model.config.selection = 128, OPEN
    assert planes(mark(Segmenter(model, own_pool, text_embedder=embedder)), bright()[0])[0] == "three"


# ---- from coarse to fine


def test_slices_away_from_any_finding_are_decoded_at_intervals_and_nothing_is_lost(marker, monkeypatch):
    volume, mask = bright()
    coarse = marker.segment(volume, influence=False)
    few = {n: int(p.known.sum() - (~p.has_body).sum()) for n, p in marker.session.planes.items()}
    strides = {n: p.stride for n, p in marker.session.planes.items()}
    assert set(strides.values()) == {1}, "slices 2.4 mm apart are all decoded"
    monkeypatch.setattr("cers.inference.planes.COARSE_MM", 12.0)
    monkeypatch.setattr("cers.inference.volume.ACROSS_MM", 8.0)  # so that neighbours five slices away have a say
    sparse = marker.segment(volume, influence=False)
    fewer = {n: int(p.known.sum() - (~p.has_body).sum()) for n, p in marker.session.planes.items()}
    assert fewer["axial"] == few["axial"], "the plane of acquisition is read whole"
    assert all(fewer[n] < 0.75 * few[n] for n in ("coronal", "sagittal"))
    assert dice(sparse.labelmap > 0, mask > 0) > 0.85
    monkeypatch.setattr("cers.inference.planes.COARSE_MM", 0.1)
    dense = marker.segment(volume, influence=False)
    assert dice(sparse.labelmap > 0, dense.labelmap > 0) > 0.99
    assert coarse.labelmap.any() and dense.labelmap.any()


def test_every_slice_that_shows_the_finding_has_evidence(marker, monkeypatch):
    monkeypatch.setattr("cers.inference.planes.COARSE_MM", 7.5)
    monkeypatch.setattr("cers.inference.volume.ACROSS_MM", 5.0)
    prediction = marker.segment(bright()[0], influence=False)
    decoded = {(e.plane, e.index) for e in prediction.evidence}
    for name, plane in marker.session.planes.items():
        shows = np.flatnonzero(plane.view.slices(prediction.labelmap).any((1, 2)))
        assert len(shows) and {(name, int(i)) for i in shows} <= decoded
    skipped = [i for i in np.flatnonzero(marker.session.planes["coronal"].has_body) if ("coronal", int(i)) not in decoded]
    assert skipped
    with pytest.raises(InputError, match="nothing was found near it"):
        marker.resegment(int(skipped[0]), "coronal")
    e = next(e for e in prediction.evidence if e.plane == "coronal" and e.pixels)
    assert marker.resegment(e.index, "coronal").evidence.index == e.index


def test_progress_never_goes_back(marker):
    said: list[float] = []
    marker.segment(bright()[0], influence=False, progress=lambda fraction, _message: said.append(fraction))
    assert said == sorted(said) and said[-1] == 1.0


def test_a_finding_of_one_plane_alone_is_left_out_and_said(marker, monkeypatch):
    """A lesion that only the axial slices show is not in the mask; its slices say so, and how large it is."""
    volume, mask = bright(grid(shape=(24, 72, 68), spacing=(2.4, 2.4, 7.0)))
    decode = marker._fused

    def blind(session, wanted, *more):
        probabilities, *rest = decode(session, wanted, *more)
        return probabilities * (wanted[0][0][0] == "axial"), *rest

    monkeypatch.setattr(marker, "_fused", blind)
    prediction = marker.segment(volume, influence=False)
    assert {e.plane for e in prediction.evidence} == {"axial", "coronal", "sagittal"} and not prediction.labelmap.any()
    found = {e.index: e.left_out for e in prediction.evidence if e.plane == "axial"}
    expected = {i: int(n) for i, n in enumerate((mask > 0).sum((1, 2)))}
    largest = max(expected, key=expected.get)
    assert found[largest] == pytest.approx(expected[largest], rel=0.25) and found[min(found)] == 0
    assert not any(e.left_out for e in prediction.evidence if e.plane != "axial")
    assert prediction.evidence[0].to_dict()["left_out"] == found[prediction.evidence[0].index]
    alone = marker.segment(volume, "acquisition", influence=False)
    assert alone.labelmap.any() and not any(e.left_out for e in alone.evidence), "with one plane there is nothing to be left out"


# ---- one slice again


def test_a_slice_decoded_again_keeps_what_the_other_planes_say(segmenter, monkeypatch):
    """The same references give the same mask; another own probability moves the fused one by this plane's part."""
    volume, _ = phantom(ISOTROPIC)
    probabilities = segmenter.segment(volume, "three", influence=False).probabilities
    monkeypatch.setattr(segmenter.model.config, "threshold", float(np.quantile(probabilities[probabilities > 0], 0.97)) - MARGIN)
    prediction = segmenter.segment(volume, "three", influence=False)
    session, shown = segmenter.session, 0
    for e in [e for e in prediction.evidence if e.pixels][::9]:
        again = segmenter.resegment(e.index, e.plane)
        before = session.planes[e.plane].view.slices(prediction.labelmap)[e.index]
        fused = session.planes[e.plane].view.slices(prediction.probabilities[0])[e.index]
        assert np.allclose(again.probability[0], fused, atol=2e-3)
        assert dice(again.mask > 0, before > 0) > 0.97
        assert again.evidence.confidence == pytest.approx(e.confidence, abs=0.01)
        shown += 1
        last = e, again.mask
    assert shown > 3
    prediction.labelmap[:] = 0  # as where neighbours were decoded again, and what came of it was written into the result
    assert np.array_equal(segmenter.resegment(last[0].index, last[0].plane).mask, last[1]), "the first result is what counts"


def test_words_of_slices_that_cross_one_follow_its_change(segmenter):
    volume, _ = phantom(grid((40, 48, 44), (3.1, 3.2, 3.5)))
    prediction = segmenter.segment(volume, "three")
    view = segmenter.session.planes["axial"].view
    key = max((e for e in prediction.evidence if e.plane == "axial"), key=lambda e: e.pixels)
    masks = view.slices(prediction.labelmap)[key.index]
    changed = masks > 0
    changed[::2] = False
    masks[changed] = 0
    renewed = segmenter.crossed(prediction, "axial", key.index, changed)
    evidence = renew(prediction.evidence, renewed)
    assert renewed and len(evidence) == len(prediction.evidence) and {e.plane for e in renewed} == {"coronal", "sagittal"}
    for e in evidence:
        plane = segmenter.session.planes[e.plane]
        mask = plane.view.slices(prediction.labelmap)[e.index] > 0
        if (e.plane, e.index) != ("axial", key.index):
            assert e.pixels == mask.sum()
            said = None if e.rationale is None else e.rationale.descriptors["area_mm2"]
            assert said == (pytest.approx(mask.sum() * plane.spacing[0] * plane.spacing[1], rel=1e-4) if mask.any() else None)


def test_what_a_reference_changes_in_one_plane_counts_as_one_plane(marker, monkeypatch):
    volume, _ = bright()
    prediction = marker.segment(volume, "three", influence=False)
    e = max((e for e in prediction.evidence if e.plane == "coronal"), key=lambda e: e.pixels)
    monkeypatch.setattr(
        marker, "_fused", lambda session, wanted, *more: (torch.zeros(1, 1, 128, 128), torch.zeros(1, 0), torch.zeros(1, 0))
    )
    again = marker.resegment(e.index, e.plane)
    plane = marker.session.planes["coronal"]
    fused = plane.view.slices(prediction.probabilities[0])[e.index].astype(float)
    inside = again.mask > 0
    assert np.all(again.probability[0] <= fused + 2e-3) and again.probability.max() > 0.6, "two planes of three still say yes"
    assert inside.any() and not again.evidence.left_out
    everything = marker.session.planes
    monkeypatch.setattr(marker.session, "planes", {"coronal": everything["coronal"]})
    assert not marker.resegment(e.index, e.plane).mask.any(), "one plane by itself would say no"


def test_a_part_of_which_all_planes_are_just_sure_stays_when_its_slice_is_decoded_again(marker, monkeypatch):
    """Its mean is nowhere so sure that it would be kept for that."""
    decode = marker._fused

    def unsure(session, wanted, *more):
        probabilities, *rest = decode(session, wanted, *more)
        return probabilities * 0.56, *rest

    monkeypatch.setattr(marker, "_fused", unsure)
    prediction = marker.segment(bright()[0], "three", influence=False)
    assert prediction.labelmap.any() and prediction.probabilities.max() < 0.6
    for plane in marker.session.planes:
        e = max((e for e in prediction.evidence if e.plane == plane), key=lambda e: e.pixels)
        assert marker.resegment(e.index, plane).evidence.pixels == pytest.approx(e.pixels, rel=0.03)
        marker.session.labelmap[:] = 0  # even where nothing beside it is kept


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_probabilities_come_back_to_the_volume_as_if_pasted_at_once(marker, plane):
    """They are put back some slices at a time."""
    marker.segment(bright()[0], "three", influence=False)
    view = marker.session.planes[plane]
    assert len(view.view) > 32
    pasted = view.frame.paste(smooth_across(view.fused, view.slice_mm, view.known))
    whole = np.stack([view.view.volume(pasted[:, channel]) for channel in range(pasted.shape[1])])
    assert whole.max() > 0.5 and np.abs(view.probabilities() - whole).max() < 1e-6
