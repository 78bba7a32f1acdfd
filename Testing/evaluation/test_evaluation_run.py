"""Whole folders: pairing, leaks, results with predictions from files, comparison and refusal."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import phantom
import pytest
import SimpleITK as sitk
from folders import picture, save_picture

from cers.case import Geometry
from cers.case.io import Unnamed, pseudonym, write_image, write_segmentation
from cers.errors import InputError
from cers.evaluation.compare import compare_results, read_result
from cers.evaluation.items import find_items
from cers.evaluation.leak import leak_words
from cers.evaluation.result import Cases
from cers.evaluation.run import Evaluation, _by_value, check_leaks
from cers.pool import Pool
from cers.pool.importer import import_folder


def evaluate(images, masks, predictions, csv=None, labels=None, **more) -> dict:
    return Evaluation(find_items(images, masks, predictions=predictions, csv=csv), labels=labels).run(**more)


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# ---- pairing


def test_files_without_a_partner_are_named(pictures, tmp_path):
    images, masks = pictures
    save_picture(images / "lonely.png", picture(9)[0])
    save_picture(masks / "orphan.png", picture(9)[1])
    (tmp_path / "moved" / "case2.png").unlink()
    save_picture(tmp_path / "moved" / "stray.png", picture(9)[1])
    found = find_items(images, masks, predictions=tmp_path / "moved")
    assert [i.name for i in found.items] == ["case0", "case1", "case3"] and set(found.left) == {"lonely", "orphan", "case2", "stray"}
    assert "no prediction of this name" in found.left["case2"] and "prediction has no image" in found.left["stray"]
    assert set(evaluate(images, masks, tmp_path / "moved")["left"]) == set(found.left)


def test_no_pair_at_all_is_one_sentence(pictures, tmp_path):
    save_picture(tmp_path / "other" / "something.png", picture(1)[1])
    with pytest.raises(InputError, match="has an expert mask of its name"):
        find_items(pictures[0], tmp_path / "other")
    with pytest.raises(InputError, match="expert masks.*does not exist"):
        find_items(pictures[0], tmp_path / "nowhere")
    with pytest.raises(InputError, match="something.png is a file. Give the folder of expert masks"):
        find_items(pictures[0], tmp_path / "other" / "something.png")


def test_pictures_and_volumes_are_not_mixed(volumes):
    images, masks = volumes
    save_picture(images / "flat.png", picture(0)[0])
    save_picture(masks / "flat.png", picture(0)[1])
    with pytest.raises(InputError, match="pixels and in mm"):
        find_items(images, masks)


def test_the_table_tells_groups_patients_and_what_is_missing_in_it(pictures, tmp_path):
    csv = table(
        tmp_path / "t.csv",
        "image,group,patient,diagnosis,split",
        "case0,g1,Anna,glioma,test",
        "case1.png,g1,,glioma,test",
        "case2,,Bert,,test",
        "elsewhere,g9,,,train",
    )
    found = find_items(*pictures, csv=csv)
    assert found.untold == 1 and [i.group for i in found.items] == ["g1", "g1", None, None]
    assert found.items[0].patient == pseudonym("Anna") and "Anna" not in repr(found)
    result = evaluate(*pictures, tmp_path / "moved", csv)
    assert [c["group"] for c in result["cases"]] == ["g1", "g1", f"patient {pseudonym('Bert')}", None]
    assert result["rules"]["groups"] == 2 and result["rules"]["cases_without_group"] == 1 and result["not_in_table"] == 1
    assert result["training_images"] == 0
    assert set(result["by_diagnosis"]) == {"glioma"} and result["by_diagnosis"]["glioma"]["dice"]["n"] == 2
    with pytest.raises(InputError, match="Line 3 of the table: case0.png is listed twice"):
        find_items(*pictures, csv=table(tmp_path / "t.csv", "image,group", "case0,a", "case0.png,b"))


def test_groups_of_one_patient_are_drawn_together(pictures, tmp_path):
    """By group alone the images of one patient would count as independent, and the interval be too narrow."""
    csv = table(tmp_path / "t.csv", "image,group,patient", "case0,first scan,Anna", "case1,second scan,Anna", "case2,,Anna", "case3,,Bert")
    result = evaluate(*pictures, tmp_path / "moved", csv)
    assert [c["group"] for c in result["cases"]] == ["first scan"] * 3 + [f"patient {pseudonym('Bert')}"]
    assert (result["rules"]["groups"], result["rules"]["cases_without_group"]) == (2, 0)
    of_patients = table(tmp_path / "t.csv", "image,patient", "case0,Anna", "case1,Anna", "case2,Anna", "case3,Bert")
    assert result["mean"] == evaluate(*pictures, tmp_path / "moved", of_patients)["mean"]


# ---- results


def test_pictures_moved_by_two_pixels(pictures, tmp_path):
    result = evaluate(*pictures, tmp_path / "moved", name="moved")
    masks = [picture(seed)[1] > 0 for seed in range(4)]
    dice = [2 * (m & np.roll(m, 2, 1)).sum() / (2 * m.sum()) for m in masks]
    assert [c["dice"] for c in result["cases"]] == pytest.approx(dice, abs=1e-6)
    mean = result["mean"]["dice"]
    assert mean["value"] == pytest.approx(np.mean(dice), abs=1e-4) and mean["low"] <= mean["value"] <= mean["high"] and mean["n"] == 4
    assert result["mean"]["hd95"]["value"] == 2.0 and result["units"]["hd95"] == "px" and result["mean"]["volume_difference"]["value"] == 0
    assert (result["model"], result["pool"], result["leak"], result["calibration"], result["failure"]) == (None,) * 5
    assert json.loads(json.dumps(result)) == result


def test_volumes_are_measured_in_mm_and_ml(volumes, tmp_path):
    geometry = Geometry(phantom.matrix(), phantom.SHAPE)
    (tmp_path / "made").mkdir()
    for seed in range(2):
        mask = phantom.head(seed)[1]
        write_segmentation(tmp_path / "made" / f"v{seed}.nii.gz", np.roll(mask, 1, 0) if seed else np.zeros_like(mask), geometry, {1: "x"})
    result = evaluate(*volumes, tmp_path / "made")
    empty, shifted = result["cases"]
    assert (empty["dice"], empty["hd95"], empty["lesion_sensitivity"]) == (0.0, None, 0.0)
    assert empty["volume_difference"] == pytest.approx(-int(phantom.head(0)[1].sum()) * 1.5 * 1.5 * 5 / 1000)
    assert shifted["hd95"] == pytest.approx(5.0)
    assert result["units"] == {"hd95": "mm", "volume_difference": "ml", "surface_tolerance": "2 mm"}
    assert result["mean"]["hd95"] == {"value": 5.0, "low": None, "high": None, "n": 1, "undefined": 1}


def test_single_slices_have_areas_and_are_not_mixed_with_volumes(volumes, tmp_path):
    images, masks = volumes
    for folder in ("images", "masks", "made"):
        (tmp_path / "flat" / folder).mkdir(parents=True)
    for seed in range(2):
        image, mask = (part[4:5] for part in phantom.head(seed))
        geometry = Geometry(phantom.matrix(), mask.shape)
        write_image(tmp_path / "flat" / "images" / f"s{seed}.nii.gz", image, geometry)
        for folder, drawn in (("masks", mask), ("made", np.zeros_like(mask))):
            write_segmentation(tmp_path / "flat" / folder / f"s{seed}.nii.gz", drawn, geometry, {1: "tumor"})
    flat = tmp_path / "flat"
    result = evaluate(flat / "images", flat / "masks", flat / "made")
    assert result["units"]["volume_difference"] == "mm²" and result["units"]["hd95"] == "mm"
    assert result["cases"][0]["volume_difference"] == pytest.approx(-int(phantom.head(0)[1][4].sum()) * 1.5 * 1.5)
    for path in (*images.iterdir(), *masks.iterdir()):
        shutil.copy(path, flat / path.parent.name / path.name)
        shutil.copy(masks / path.name.replace(".nii.gz", ".seg.nrrd"), flat / "made")
    mixed = evaluate(flat / "images", flat / "masks", flat / "made")
    assert set(mixed["faults"]) == {"v0", "v1"} and "measured in ml" in mixed["faults"]["v0"]


def test_a_sheared_grid_has_no_distances(tmp_path):
    """By the spacing alone, two voxels of neighbouring slices would be 6.6 mm apart, which are 5.4 mm apart."""
    tilted = np.diag([-0.4, -0.4, 6.0, 1.0])
    tilted[1:3, 2] = 6 * np.sin(np.radians(25)), 6 * np.cos(np.radians(25))
    image, mask = phantom.head(0)
    for name, matrix in (("straight", np.diag([-0.4, -0.4, 6.0, 1.0])), ("tilted", tilted)):
        geometry = Geometry(matrix, phantom.SHAPE)
        for folder, array in (("images", image), ("masks", mask), ("made", np.roll(mask, (1, 7), (0, 1)))):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_image(tmp_path / folder / f"{name}.nrrd", array, geometry)
    result = evaluate(*(tmp_path / folder for folder in ("images", "masks", "made")))
    assert [c["image"] for c in result["cases"]] == ["straight"] and "sheared" in result["faults"]["tilted"]


def test_a_mask_of_another_size_is_a_fault_and_the_rest_is_evaluated(pictures, tmp_path):
    save_picture(tmp_path / "moved" / "case1.png", np.zeros((10, 10), np.uint8))
    (tmp_path / "moved" / "case3.png").write_bytes(b"not a picture")
    result = evaluate(*pictures, tmp_path / "moved")
    assert [c["image"] for c in result["cases"]] == ["case0", "case2"] and set(result["faults"]) == {"case1", "case3"}
    assert "another grid" in result["faults"]["case1"]
    for seed in (0, 2):
        save_picture(tmp_path / "moved" / f"case{seed}.png", np.zeros((10, 10), np.uint8))
    with pytest.raises(InputError, match="No image could be evaluated; case0: .*grid"):
        evaluate(*pictures, tmp_path / "moved")


def test_labels_are_compared_one_by_one_by_name_or_value(volumes, tmp_path):
    images, masks = volumes
    geometry = Geometry(phantom.matrix(), phantom.SHAPE)
    for folder, values, names in (("masks", (1, 2), {1: "Front", 2: "back"}), ("made", (2, 1), {2: "front", 1: "BACK"})):
        (tmp_path / folder).mkdir(exist_ok=True)
        for seed in range(2):
            mask = phantom.head(seed)[1]
            parted = np.where(mask, values[0], 0)
            parted[:, 32:] = np.where(mask[:, 32:], values[1], 0)
            write_segmentation(tmp_path / folder / f"v{seed}.seg.nrrd", parted, geometry, names)
    result = evaluate(images, masks, tmp_path / "made", labels={5: "front", 7: "back"})
    assert result["mean"]["dice"]["value"] == 1.0 and result["labels"] == ["front", "back"]
    assert result["by_label"]["back"]["dice"]["n"] == 2 and set(result["cases"][0]["labels"]) == {"front", "back"}
    result = evaluate(images, masks, tmp_path / "made")
    assert result["mean"]["dice"]["value"] == 1.0 and "by_label" not in result
    with pytest.raises(InputError, match="has the label"):
        evaluate(images, masks, tmp_path / "made", labels={5: "front", 7: "middle"})


def test_a_mask_without_names_is_read_by_its_values(volumes, tmp_path):
    """A patient without a lesion: the one value left is the organ's, whatever a mask of one value is called elsewhere."""
    images, masks = volumes
    geometry = Geometry(phantom.matrix(), phantom.SHAPE)
    (tmp_path / "plain").mkdir()
    (tmp_path / "made").mkdir()
    for seed in range(2):
        parted = phantom.head(seed)[1].astype(np.uint8)
        if seed:
            parted[:, 32:] *= 2
        for folder in ("plain", "made"):
            write_segmentation(tmp_path / folder / f"v{seed}.nii.gz", parted, geometry, {1: "a", 2: "b"})
    result = evaluate(images, tmp_path / "plain", tmp_path / "made", labels={1: "organ", 2: "lesion"})
    assert [c["labels"]["organ"]["dice"] for c in result["cases"]] == [1.0, 1.0]
    made = _by_value(np.array([[0, 2]]), Unnamed([2]), {1: "label 2", 2: "label 4"}, "mask")
    assert made.tolist() == [[0, 1]], "a model that learned from masks without names calls value 2 so"
    (masks / "v0.seg.nrrd").unlink()
    layers = sitk.GetImageFromArray(np.stack([phantom.head(0)[1]] * 2, -1).astype(np.uint8), isVector=True)
    layers.CopyInformation(sitk.ReadImage(str(images / "v0.nii.gz")))
    for n, name in enumerate(("organ", "lesion")):
        for key, value in (("Name", name), ("LabelValue", "1"), ("Layer", str(n))):
            layers.SetMetaData(f"Segment{n}_{key}", value)
    sitk.WriteImage(layers, str(masks / "v0.seg.nrrd"))
    result = evaluate(images, masks, tmp_path / "made")  # all that is not zero: they may overlap
    assert result["mean"]["dice"]["value"] == 1.0
    result = evaluate(images, masks, tmp_path / "made", labels={1: "organ", 2: "tumor"})
    assert result["faults"]["v0"].startswith("expert mask: In 'v0.seg.nrrd', the segments organ and lesion overlap")


def test_a_missed_label_leaves_no_distance_in_the_result_of_a_run_either():
    expert = np.zeros((2, 40, 40), bool)
    expert[0, 5:15, 5:15] = expert[1, 20:30, 20:30] = True
    moved = np.where(np.roll(expert, 6, 2), 5.0, -5.0)
    one = np.where(expert, 5.0, -5.0)
    one[1] = -5.0
    cases = Cases(["core", "edema"], 1.0)
    for name, logits in (("moved", moved), ("missed", one)):
        cases.add({"image": name}, {"plain": logits}, expert)
    assert [row["hd95"] for row in cases.rows] == [6.0, None], "who draws no edema is not the better for it"
    cases.add({"image": "without"}, {"plain": one}, expert & [[[True]], [[False]]])
    assert cases.rows[-1]["hd95"] == 0.0, "there was none to be drawn"
    calibration = cases.result("two labels", "abc", {})["calibration"]
    assert calibration["everywhere"]["ece"]["n"] == calibration["near_lesion"]["ece"]["n"] == 3, "of three cases, not of six labels"


# ---- leaks


@pytest.fixture
def pool(tmp_path):
    """Pictures 10, of patient Anna, and 11, of group g7."""
    for seed in (10, 11):
        save_picture(tmp_path / "pool_images" / f"p{seed}.png", picture(seed)[0])
        save_picture(tmp_path / "pool_masks" / f"p{seed}.png", picture(seed)[1] * 255)
    csv = table(tmp_path / "pool.csv", "image,patient,group", "p10,Anna,", "p11,,g7")
    with Pool.create(tmp_path / "pool") as pool:
        assert not import_folder(pool, tmp_path / "pool_images", tmp_path / "pool_masks", csv).faults
        yield pool


def test_a_clean_folder_is_called_clean(pictures, pool):
    report, faults = check_leaks(find_items(*pictures), pool)
    assert (report["checked"], report["pool_cases"], report["leaking"], report["images"], faults) == (4, 2, 0, [], {})
    assert "none is in the pool" in leak_words(report) and "no pool was given" in leak_words(None)


def test_planted_leaks_are_found_by_reason(pictures, pool, tmp_path):
    images, masks = pictures
    ten = picture(10)[0]
    worn = (ten.astype(float) * 0.97 + np.random.default_rng(0).normal(0, 2, ten.shape)).clip(0, 255).astype(np.uint8)
    save_picture(images / "same.png", ten)
    save_picture(images / "worn.png", worn)
    for name in ("same", "worn"):
        save_picture(masks / f"{name}.png", picture(10)[1] * 255)
    csv = table(tmp_path / "t.csv", "image,patient,group", "case0,Anna,", "case1,,g7", "case2,Berta,g8")
    report, _ = check_leaks(find_items(images, masks, csv=csv), pool)
    found = {row["image"]: set(row) - {"image"} for row in report["images"]}
    assert found == {"case0": {"same_patient"}, "case1": {"same_group"}, "same": {"identical", "same_volume"}, "worn": {"near_duplicate"}}
    assert report["leaking"] == 4 and report["by_reason"]["same_group"] == 1
    twin = next(r for r in report["images"] if r["image"] == "worn")["near_duplicate"]
    assert 0.99 < twin["correlation"] < 1 and twin["cases"] == pool.find(pool.list(patient_id=pseudonym("Anna"))[0]["content_hash"])
    words = leak_words(report)
    assert (
        "4 of the images LEAK" in words
        and "worn: cases that are near-duplicates (thumbnail correlation above 0.99): 1 (" in words
        and "Anna" not in words
    )


def test_a_volume_leaks_through_one_of_its_slices(volumes, tmp_path):
    folder = phantom.build_pool(tmp_path / "pool", cases=1)
    image, mask = phantom.head(1, lesion=(29.0, 23.0, 4.0), radius=6.0)
    geometry = Geometry(phantom.matrix(), phantom.SHAPE)
    other = phantom.head(0)[0].copy()
    other[4] = image[4]
    write_image(volumes[0] / "v0.nii.gz", other.astype(np.int16), geometry)
    with Pool.open(folder) as pool:
        report, _ = check_leaks(find_items(*volumes), pool)
    # stored as other numbers, the slice is not byte-identical; its look gives it away
    twins = {r["image"]: r["near_duplicate"]["correlation"] for r in report["images"] if "near_duplicate" in r}
    assert twins["v0"] == 1.0 and twins.get("v1", 0) < 1.0


# ---- comparison


@pytest.fixture
def results(pictures, tmp_path):
    for seed in range(4):
        save_picture(tmp_path / "exact" / f"case{seed}.png", picture(seed)[1] * 255)
    csv = table(tmp_path / "t.csv", "image,group", *(f"case{n},g{n // 2}" for n in range(4)))
    return evaluate(*pictures, tmp_path / "moved", csv), evaluate(*pictures, tmp_path / "exact", csv)


def test_paired_difference(results):
    found = compare_results(*results)
    row = found["difference"]["dice"]
    each = [1 - c["dice"] for c in results[0]["cases"]]
    assert row["value"] == pytest.approx(np.mean(each), abs=1e-4) and 0 < row["low"] <= row["value"] <= row["high"] and row["better"] == 4
    closer = found["difference"]["hd95"]
    assert (closer["value"], closer["better"], closer["worse"]) == (-2.0, 4, 0)
    assert compare_results(*results[::-1])["difference"]["dice"]["value"] == pytest.approx(-row["value"])
    assert compare_results(results[0], results[0])["difference"]["dice"]["value"] == 0


def test_results_of_other_cases_are_refused_by_name(results):
    fewer = copy.deepcopy(results[1])
    del fewer["cases"][2]
    for pair, which in (((results[0], fewer), "first"), ((fewer, results[0]), "second")):
        with pytest.raises(InputError, match=f"case2 only in the {which}"):
            compare_results(*pair)
    other = copy.deepcopy(results[1])
    other["cases"][1]["expert"] = "0" * 16
    with pytest.raises(InputError, match="another expert mask for case1"):
        compare_results(results[0], other)
    with pytest.raises(InputError, match="differ in their units"):
        compare_results(results[0], {**results[1], "units": {}})


@pytest.mark.parametrize(
    "text, message", [("{", "is not JSON"), ("[]", "holds no result"), ('{"kind": "other"}', "not a result of"), (None, "cannot be read")]
)
def test_what_is_no_result_file(tmp_path, text, message):
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_result(tmp_path / "r.json")
