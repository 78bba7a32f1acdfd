"""What is measured must be right in physical units, and must not depend on how the picture was stored."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cers.errors import InputError
from cers.rationale import DESCRIPTORS, describe, measure


def finite(descriptors):
    assert set(descriptors) == set(DESCRIPTORS)
    for name, value in descriptors.items():
        assert value is None or (isinstance(value, float) and math.isfinite(value)), name
    return descriptors


def test_known_numbers(head):
    image, mask = head((1.0, 1.0), radius=(16, 16), centre=(100, 62))
    d = finite(measure(image, mask, (1.0, 1.0), modality="MR", plane="axial"))
    assert d["area_mm2"] == pytest.approx(math.pi * 16**2, rel=0.02)
    assert d["diameter_mm"] == pytest.approx(32, rel=0.02)
    assert d["components"] == 1
    assert d["area_body"] == pytest.approx(100 * 16**2 / (95 * 75), rel=0.05)
    assert d["compactness"] > 90 and d["solidity"] > 96 and d["elongation"] == pytest.approx(1, abs=0.05)
    assert d["side"] == pytest.approx(100 * (62 - 90) / 75, abs=3)
    assert d["height"] == pytest.approx(100 * (100 - 15) / 190, abs=2)
    assert d["contrast"] > 30 and d["cnr"] > 3 and d["faint_contour"] == 0
    # nearest point of the head's ellipse to the disk, by brute force
    t = np.linspace(0, 2 * np.pi, 4000)
    truth = np.hypot(110 + 95 * np.sin(t) - 100, 90 + 75 * np.cos(t) - 62).min() - 16
    assert d["depth_mm"] == pytest.approx(truth, abs=2.5)


@pytest.mark.parametrize("spacing", [(0.5, 0.5), (2.0, 2.0), (0.7, 1.4), (1.6, 0.6)])
def test_same_lesion_at_another_pixel_size_has_the_same_millimetres(head, spacing):
    reference = measure(*head((1.0, 1.0), blur=3.0), (1.0, 1.0))
    d = finite(measure(*head(spacing, blur=3.0), spacing))
    assert d["area_mm2"] == pytest.approx(reference["area_mm2"], rel=0.04)
    assert d["diameter_mm"] == pytest.approx(reference["diameter_mm"], rel=0.02)
    assert d["depth_mm"] == pytest.approx(reference["depth_mm"], abs=2.5)
    assert d["edge_width_mm"] == pytest.approx(reference["edge_width_mm"], rel=0.35)
    for name, tolerance in {"contrast": 4, "side": 2, "height": 2, "area_body": 0.3, "compactness": 8, "solidity": 4, "depth": 1.5}.items():
        assert d[name] == pytest.approx(reference[name], abs=tolerance), name


@pytest.mark.parametrize("spacing", [(6.0, 0.45), (5.0, 0.5), (0.9, 5.0)])
@pytest.mark.parametrize("centre, radius", [((60, 90), (14, 14)), ((100, 50), (12, 8)), ((150, 120), (6, 6))])
def test_a_slice_across_thick_ones_is_measured_as_well(head, spacing, centre, radius):
    reference = measure(*head((1.0, 1.0), centre=centre, radius=radius, blur=3.0), (1.0, 1.0))
    d = finite(measure(*head(spacing, centre=centre, radius=radius, blur=3.0), spacing))
    for name, tolerance in {"depth_mm": 2.5, "height": 2, "side": 2, "contrast": 15}.items():
        assert d[name] == pytest.approx(reference[name], abs=tolerance), name
    assert d["area_body"] == pytest.approx(reference["area_body"], rel=0.12)


def test_lengths_are_pixels_where_the_spacing_is_not_known(head):
    image, mask = head()
    known, unknown = measure(image, mask, (1.0, 1.0)), measure(image, mask, None)
    for name in ("area", "diameter", "edge_width", "depth"):
        in_mm = f"{name}_mm2" if name == "area" else f"{name}_mm"
        assert unknown[f"{name}_px"] == known[in_mm] and unknown[in_mm] is None and known[f"{name}_px"] is None
    assert {n: v for n, v in known.items() if DESCRIPTORS[n][0] not in ("mm", "mm2", "px")} == {
        n: v for n, v in unknown.items() if DESCRIPTORS[n][0] not in ("mm", "mm2", "px")
    }


@pytest.mark.parametrize("gain,offset", [(7.0, 0.0), (1.0, -3000.0), (0.001, 12.0), (250.0, 1e6)])
def test_gain_and_offset_of_the_signal_do_not_matter(head, gain, offset):
    image, mask = head(noise=0.05)
    a, b = (describe(i, mask, (1.0, 1.0), modality="MR", plane="axial") for i in (image, image * gain + offset))
    assert a.text == b.text
    assert all(b.descriptors[n] == pytest.approx(v, abs=0.02) for n, v in a.descriptors.items() if v is not None)


def test_real_cases_are_the_same_in_words_at_another_gain(brisc):
    for row, image, mask in brisc[:40]:
        words = [describe(i, mask, plane=row["plane"], modality="MR").text for i in (image, image * 13.0 - 500)]
        assert words[0] == words[1], row["image"]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_flip_changes_position_only(brisc, axis):
    moved = ("height",) if axis == 0 else ("side", "across")
    for row, image, mask in brisc[:40]:
        a, b = measure(image, mask, plane=row["plane"]), measure(np.flip(image, axis), np.flip(mask, axis), plane=row["plane"])
        for name in moved:
            if name == "height" and None in (a[name], b[name]):
                continue  # a neck may be cut by the lower edge, but a head not by the upper one
            expected = None if a[name] is None else -a[name] if name == "side" else 100 - a[name]
            assert b[name] == (None if expected is None else pytest.approx(expected, abs=0.05)), (row["image"], name)
        for name in set(DESCRIPTORS) - set(moved):
            assert b[name] == (None if a[name] is None else pytest.approx(a[name], rel=0.01, abs=0.05)), (row["image"], name)


def test_side_is_the_patients(head):
    image, mask = head(centre=(100, 50))
    assert "On the right" in describe(image, mask, plane="axial").part("context")  # image left is the patient's right
    assert "On the left" in describe(image[:, ::-1], mask[:, ::-1], plane="axial").part("context")
    assert measure(image, mask, plane="sagittal")["side"] is None


def test_where_the_frame_cuts_the_body_nobody_knows_its_middle(head):
    image, mask = head(centre=(100, 50))
    whole = measure(image, mask, plane="axial")
    assert whole["side"] is not None and whole["height"] is not None and whole["depth"] is not None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    half = slice(0, columns[-1] + 12)  # the right half, or less
    d = measure(image[:, half], mask[:, half], plane="axial")
    assert d["side"] is None and d["height"] is not None and d["depth"] is not None
    words = describe(image[:, half], mask[:, half], plane="axial").text
    assert "midline" not in words and "left" not in words and "right" not in words
    upper = slice(rows[0] - 12, None)
    assert measure(image[upper], mask[upper], plane="coronal")["height"] is None
    lower = slice(0, rows[-1] + 12)
    assert measure(image[lower], mask[lower], plane="coronal")["height"] is not None, "the neck goes on below"
    assert measure(image[lower], mask[lower], plane="axial")["height"] is None
    inner = np.s_[rows[0] - 12 : rows[-1] + 13, columns[0] - 12 : columns[-1] + 13]
    part = image[inner].copy()
    part[:4, :6] = 0  # dark, but no air
    d = measure(part, mask[inner], plane="axial")
    assert d["side"] is None and d["depth"] is None and d["height"] is None


def test_deterministic(brisc):
    for row, image, mask in brisc[:10]:
        assert describe(image, mask).to_dict() == describe(image.copy(), mask.astype(np.uint8) * 3).to_dict()


def test_words_follow_what_is_seen(head):
    def word(name, **kw):
        return measure(*head(**kw), (1.0, 1.0), modality="MR")[name]

    assert word("contrast", signal=1.5) > 20 > -20 > word("contrast", signal=0.4)
    assert word("variation", texture=0.35) > 2 * word("variation")
    assert word("glcm_entropy", texture=0.35) > word("glcm_entropy")
    assert word("glcm_homogeneity", texture=0.35) < word("glcm_homogeneity")
    assert word("edge_width_mm", blur=5.0) > 1.7 * word("edge_width_mm", blur=1.0)
    assert word("compactness", radius=(24, 7)) < 75 < word("compactness", radius=(15, 15))
    assert word("elongation", radius=(24, 8)) == pytest.approx(3, rel=0.1)
    assert word("faint_contour", signal=1.02) > 80
    assert word("depth", centre=(100, 90)) > word("depth", centre=(100, 36))
    assert word("bright_ring", centre=(100, 33)) > 10 > word("bright_ring", centre=(60, 70))
    assert word("dark_ring", centre=(100, 72), radius=(12, 9)) > word("dark_ring", centre=(50, 70))


def test_an_edge_is_never_narrower_than_a_pixel():
    y, x = np.mgrid[:64, :64]
    for seed in range(120):  # a lesion that is noise: about one in thirty has a profile that falls inwards
        rng = np.random.default_rng(seed)
        image = np.where(np.hypot(y - 32, x - 32) < 28, 100 + rng.normal(0, 25, (64, 64)), 0)
        d = measure(image, np.hypot(y - 32, x - 40) < rng.uniform(2, 5), (1.0, 1.0))
        assert d["edge_width_mm"] is None or d["edge_width_mm"] >= 1 and d["edge_width"] > 0, seed


def test_edge_width_is_that_of_the_blur(head):
    """A step blurred by a Gaussian of sigma s, over its steepest slope, is s sqrt(2 pi) wide; less where the lesion is not much wider."""
    for sigma in (2.0, 3.0, 4.0):
        d = measure(*head((0.5, 0.5), blur=sigma, noise=0.0, radius=(22, 22), centre=(80, 90)), (0.5, 0.5))
        assert d["edge_width_mm"] == pytest.approx(sigma * math.sqrt(2 * math.pi), rel=0.25)


def test_ring_enhancement(head):
    image, mask = head(radius=(20, 20), centre=(80, 70), signal=1.8, blur=0.5)
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    core = (y - 80) ** 2 + (x - 70) ** 2 < 12**2
    assert measure(np.where(core, 0.6, image), mask, (1, 1))["rim_core"] > 20
    assert abs(measure(image, mask, (1, 1))["rim_core"]) < 8


def test_parts_are_counted_without_specks(head):
    image, mask = head(radius=(10, 10))
    mask[150:160, 100:112] = True
    mask[20, 90] = True
    assert measure(image, mask)["components"] == 2


def test_the_middle_between_two_parts_is_no_place(head):
    image, mask = head(centre=(100, 50))
    both, sides = np.maximum(image, image[:, ::-1]), mask | mask[:, ::-1]
    assert measure(both, sides)["components"] == 2
    words = describe(both, sides, (1, 1), plane="axial").text
    assert "midline" not in words and "In the central part" in words
    assert "Together like a disk 45 mm across (area 16.2 cm²). Two separate parts." in words, "neither part is as wide"
    assert "(together like a disk 45 pixels across)" in describe(both, sides, plane="axial").text
    assert "Near the midline" in describe(*head(centre=(160, 90)), (1, 1), plane="axial").text
    above = mask | np.roll(mask, 90, 0)
    d = measure(image, above, plane="axial")
    assert d["height"] is None and d["side"] == pytest.approx(measure(image, mask, plane="axial")["side"], abs=1)


def test_a_hole_is_no_part_of_the_outline(head):
    image, mask = head(radius=(20, 20))
    ring = mask & ~head(radius=(12, 12))[1]
    whole, d = measure(image, mask, (1, 1)), measure(image, ring, (1, 1))
    assert [d[n] for n in ("compactness", "solidity", "elongation")] == [whole[n] for n in ("compactness", "solidity", "elongation")]
    assert d["area_mm2"] == ring.sum()


# what may go wrong


def test_empty_mask_is_an_input_error(head):
    image, mask = head()
    with pytest.raises(InputError, match="mask is empty"):
        measure(image, np.zeros_like(mask))


@pytest.mark.parametrize(
    "image,mask,spacing,words",
    [
        (np.ones((4, 4)), np.ones((4, 5)), None, "one size"),
        (np.ones((4, 4, 3)), np.ones((4, 4, 3)), None, "2-D"),
        (np.full((4, 4), np.nan), np.ones((4, 4)), None, "finite"),
        (np.full((4, 4), np.inf), np.ones((4, 4)), None, "finite"),
        (np.ones((4, 4), complex), np.ones((4, 4)), None, "finite"),
        (np.array([[-1.7e308, 1.7e308]] * 2), np.ones((2, 2)), None, "too large"),
        (np.ones((4, 4)), np.ones((4, 4)), (0.0, 1.0), "pixel size"),
        (np.ones((4, 4)), np.ones((4, 4)), (1.0, float("nan")), "pixel size"),
        (np.ones((4, 4)), np.ones((4, 4)), (1.0,), "pixel size"),
        (np.ones((0, 4)), np.ones((0, 4)), None, "empty"),
    ],
)
def test_unusable_input_is_one_clear_sentence(image, mask, spacing, words):
    with pytest.raises(InputError, match=words):
        measure(image, mask, spacing)


def test_one_pixel(head):
    image, _ = head()
    mask = np.zeros(image.shape, bool)
    mask[100, 62] = True
    d = finite(measure(image, mask, (1.0, 1.0)))
    assert d["variation"] is None and d["glcm_entropy"] is None and d["compactness"] is None and d["rim_core"] is None
    assert d["area_mm2"] == 1 and d["depth_mm"] == pytest.approx(47, abs=3)
    assert describe(image, mask, (1.0, 1.0)).part("summary")


def test_lesion_of_one_value(head):
    image, mask = head(noise=0, blur=0)
    image[mask] = 1.5
    d = finite(measure(image, mask))
    assert d["variation"] == 0 and d["glcm_entropy"] == 0 and d["glcm_homogeneity"] == 1


def test_no_surrounding_tissue():
    image = np.random.default_rng(0).random((40, 50))
    d = finite(measure(image, np.ones_like(image), (1.0, 1.0)))
    for name in ("contrast", "cnr", "faint_contour", "edge_width", "edge_width_mm", "bright_ring", "air_ring", "depth_mm"):
        assert d[name] is None, name


def test_constant_image():
    mask = np.zeros((30, 30), bool)
    mask[10:20, 10:20] = True
    d = finite(measure(np.full((30, 30), 7), mask))
    assert d["contrast"] is None and d["variation"] == 0 and d["faint_contour"] == 100 and d["edge_width"] is None


@pytest.mark.parametrize("where", [np.s_[:12, :12], np.s_[-9:, 30:60], np.s_[:, 80:95], np.s_[0, :], np.s_[-1, -1]])
def test_lesion_at_the_frame(head, where):
    image, _ = head()
    mask = np.zeros(image.shape, bool)
    mask[where] = True
    d = finite(measure(image, mask, (1.0, 1.0)))
    assert d["area_mm2"] == mask.sum()
    describe(image, mask, (1.0, 1.0))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 700), (700, 3)])
def test_odd_image_sizes(shape):
    image = np.random.default_rng(0).random(shape)
    mask = np.zeros(shape, bool)
    mask[shape[0] // 2, shape[1] // 2] = True
    finite(measure(image, mask))
    finite(measure(image, np.ones(shape, bool)))


def test_random_masks_never_give_anything_but_numbers():
    rng = np.random.default_rng(1)
    for n in range(150):
        shape = tuple(rng.integers(2, 60, 2))
        image = rng.choice([rng.random(shape), rng.integers(-5, 3, shape), np.round(rng.random(shape))][n % 3 : n % 3 + 1])
        mask = rng.random(shape) < rng.choice([0.01, 0.3, 0.9])
        if mask.any():
            finite(measure(image, mask, (0.3, 2.0) if n % 2 else None))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, bool])
def test_every_real_type(head, dtype):
    image, mask = head()
    finite(measure((image * 60).astype(dtype), mask))


def test_background_that_is_not_the_darkest_value(head):
    """A skull-stripped image of mean zero: tissue below and above the background's exact value."""
    image, mask = head()
    outside = image == 0
    assert outside.mean() > 0.1
    shifted = np.where(outside, 0.0, image - 1.0)
    a, b = measure(image, mask, (1, 1)), measure(shifted, mask, (1, 1))
    assert b["area_body"] == pytest.approx(a["area_body"], rel=0.05) and b["depth_mm"] == pytest.approx(a["depth_mm"], abs=3)


def test_padding_around_a_ct_is_no_air(head):
    image, mask = head()
    ct = np.where(image < 0.3, -1000, 40 * image)
    y, x = np.mgrid[: ct.shape[0], : ct.shape[1]]
    padded = np.where((y - 110) ** 2 + (x - 90) ** 2 > 108**2, -3024, ct)
    assert (padded < -3000).mean() > 0.02
    assert measure(padded, mask, (1, 1), modality="CT") == measure(ct, mask, (1, 1), modality="CT")


def test_fat_is_no_air_where_the_frame_of_a_ct_lies_within_the_body():
    y, x = np.mgrid[:200, :200]
    ct = np.where((x < 60) | (x > 150), -100.0, np.where(np.hypot(y - 100, x - 100) < 38, 700.0, 55.0))  # fat, bone, muscle
    mask = np.hypot(y - 100, x - 35) <= 10
    ct = np.where(mask, 40.0, ct) + np.random.default_rng(0).normal(0, 12, ct.shape)
    d = measure(ct, mask, (0.5, 0.5), modality="CT", plane="axial")
    assert d["air_ring"] == 0 and d["side"] is None and d["depth"] is None and d["contrast"] > 8
    head = np.where(np.hypot(y - 100, x - 100) < 70, ct, -1000.0)
    raw, windowed = (measure(a, mask, (1, 1), modality="CT", plane="axial") for a in (head, np.clip(head, -160, 240)))
    assert raw["depth_mm"] is not None and windowed["depth_mm"] == pytest.approx(raw["depth_mm"], abs=3), "air may be cut to one value"


def test_dark_fluid_is_said_of_mr_only(head):
    image, mask = head()
    assert measure(image, mask, modality="CT")["dark_ring"] is None
    assert measure(image, mask, modality="MR")["dark_ring"] is not None
    assert measure(image, mask)["dark_ring"] is not None


def test_every_descriptor_is_documented_and_reached(brisc):
    assert all(meaning and unit in ("", "%", "mm", "mm2", "px", "bit") for unit, meaning in DESCRIPTORS.values())
    row, image, mask = brisc[0]
    reached = {
        n
        for spacing in (None, (0.5, 0.5))
        for plane in ("axial", "sagittal")
        for n, v in measure(image, mask, spacing, plane=plane, modality="MR").items()
        if v is not None
    }
    assert reached == set(DESCRIPTORS)
