"""How much was found: a volume in ml, a single slice in mm², a picture in pixels; nothing that nobody measured."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cers.case import Geometry, Prediction
from cers.case.sizes import amount, area, cut_words


def found(shape, spacing, known=True, ijk=(0, 1, 2)):
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(spacing)[:, ijk]
    labelmap = np.zeros(shape, np.uint8)
    labelmap.flat[:10] = 1
    return Prediction(labelmap, np.zeros((1, *shape), np.float16), Geometry(matrix, shape), {1: "tumor"}, [], {}, {}, known)


def test_a_volume_has_ml():
    sizes = found((4, 5, 10), (1, 2, 5)).sizes()
    assert sizes["volume_ml"] == {"tumor": pytest.approx(0.1)} and sizes["area_mm2"] is None and sizes["picture_share"] is None
    assert amount(sizes, "tumor") == "0.10 ml"


@pytest.mark.parametrize(
    "shape, spacing, area", [((1, 5, 10), (0.5, 2, 7), 10), ((5, 1, 10), (0.5, 7, 2), 10), ((5, 10, 1), (7, 0.5, 2), 10)]
)
def test_a_single_slice_has_an_area_and_no_volume(shape, spacing, area):
    result = found(shape, spacing)
    assert result.volume_ml is None and result.area_mm2 == {"tumor": pytest.approx(area)}
    assert amount(json.loads(json.dumps(result.summary())), "tumor") == "10 mm²"


def test_what_is_small_is_not_told_as_nothing():
    assert amount(found((4, 5, 10), (0.5, 0.5, 1.5)).sizes(), "tumor") == "3.8 mm³"
    assert amount(found((4, 5, 10), (1, 1, 3.7)).sizes(), "tumor") == "37 mm³"
    assert amount(found((1, 5, 10), (0.2, 0.15, 7)).sizes(), "tumor") == "0.3 mm²"
    tiny = found((1, 200, 200), (1, 1, 1), known=False).sizes()
    assert amount(tiny, "tumor") == "10 pixels (<0.1 % of the picture)"
    assert amount({**tiny, "pixels": {"tumor": 0}, "picture_share": {"tumor": 0.0}}, "tumor") == "0 pixels (0.0 % of the picture)"
    assert [area(n, (0.5, 0.5)) for n in (1, 10, 40, 400)] == ["0.25 mm²", "2.5 mm²", "0.10 cm²", "1.00 cm²"]


def test_a_picture_has_pixels_and_a_share():
    sizes = found((1, 5, 10), (1, 1, 1), known=False).sizes()
    assert sizes["volume_ml"] is None and sizes["area_mm2"] is None and sizes["pixels"] == {"tumor": 10}
    assert amount(sizes, "tumor") == "10 pixels (20.0 % of the picture)"
    assert amount(found((2, 5, 10), (1, 1, 1), known=False).sizes(), "tumor") == "10 voxels"


def test_how_far_the_mask_is_not_the_probabilities_cut_at_the_threshold():
    result = found((4, 5, 10), (1, 2, 5))
    assert result.cut() is None and cut_words(None) == ""
    result.provenance["settings"] = {"threshold": 0.5}
    result.probabilities[0].flat[:12] = 0.6
    result.probabilities[0].flat[:3] = 0.45
    assert result.summary()["cut"] == {"threshold": 0.5, "below": 3, "above": 2}
    assert "3 voxels of it are below, 2 voxels" in cut_words(result.cut())
    one = cut_words({"threshold": 0.5, "below": 1, "above": 1})
    assert "1 voxel of it is below, 1 voxel that reaches it was left out" in one and "rounded" in one
    result.probabilities[0] = result.labelmap
    assert result.cut() == {"threshold": 0.5, "below": 0, "above": 0} and cut_words(result.cut()) == ""


def test_pixels_of_exactly_one_mm_in_a_single_slice_are_a_programs_default():
    assert Geometry(np.diag([-1.0, -1, 5, 1]), (1, 5, 10)).default_pixels
    assert not Geometry(np.diag([-1.0, -1, 1, 1]), (2, 5, 10)).default_pixels
    assert not Geometry(np.diag([-1.0, -0.9, 1, 1]), (1, 5, 10)).default_pixels
