"""Slices are counted plane by plane: slices of different planes show the same lesion."""

from __future__ import annotations

from cers.case.counts import by_plane, references_words, slices_words


def entry(plane, pixels, references):
    return {"plane": plane, "pixels": pixels, "references": [{}] * references}


def test_planes_are_not_added_up():
    counts = by_plane([entry("axial", 10, 2), entry("axial", 3, 0), entry("axial", 0, 4), entry("coronal", 5, 0), entry("sagittal", 0, 1)])
    assert (counts["axial"].slices, counts["axial"].lesion, counts["axial"].with_references) == (3, 2, 1)
    assert slices_words(counts) == "2 of 3 axial, 1 of 1 coronal, 0 of 1 sagittal slices decoded"
    assert references_words(counts) == "references for 1 of 2 axial, 0 of 1 coronal lesion slices"
    single = by_plane([entry("axial", 10, 2)])
    assert slices_words(single) == "1 of 1 axial slice decoded" and references_words(single) == "references for 1 of 1 axial lesion slice"
