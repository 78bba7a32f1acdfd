"""What a hostile folder, table or result file may not do: change a figure without a word, or end in a traceback."""

from __future__ import annotations

import json
import shutil

import numpy as np
import phantom
import pytest
import SimpleITK as sitk
from folders import picture, save_picture
from PIL import Image

from cers.case import Geometry
from cers.case.io import read_mask, read_volume, write_segmentation
from cers.cli import main
from cers.errors import InputError
from cers.evaluation.calibration import Reliability
from cers.evaluation.card import update_card
from cers.evaluation.compare import compare_results, read_result
from cers.evaluation.items import find_items
from cers.evaluation.page import write_page
from cers.evaluation.run import Evaluation
from cers.evaluation.tables import drawn, part_rows


def evaluate(images, masks, predictions, csv=None, labels=None, **more) -> dict:
    return Evaluation(find_items(images, masks, predictions=predictions, csv=csv), labels=labels).run(**more)


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# ---- files


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_nifti_file_of_which_the_end_is_missing_is_refused(volumes, tmp_path, ending, share):
    """Its reader would fill up the rest with whatever is in memory."""
    images, masks = volumes
    made = tmp_path / "made"
    made.mkdir()
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 2, phantom.SHAPE).astype(np.uint8)
        write_segmentation(made / f"v{seed}{ending}", noise, Geometry(phantom.matrix(), phantom.SHAPE), {1: "tumor"})
    file = made / f"v0{ending}"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    result = evaluate(images, masks, made)
    assert list(result["faults"]) == ["v0"] and "Copy or export it again" in result["faults"]["v0"] and result["images"] == 1
    with pytest.raises(InputError, match="ends too early"):
        read_volume(file)


def test_expert_masks_are_not_taken_for_predictions(volumes, tmp_path):
    images, masks = volumes
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in masks.iterdir():
        (linked / file.name).symlink_to(file)
    for folder in (masks, linked):
        with pytest.raises(InputError, match="is its expert mask itself"):
            find_items(images, masks, predictions=folder)
    copied = shutil.copytree(masks, tmp_path / "copied")  # another program may be right to the voxel
    assert evaluate(images, masks, copied)["mean"]["dice"]["value"] == 1


@pytest.mark.parametrize("kind", [sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkFloat64])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_whole_nifti_file_is_read(tmp_path, ending, kind):
    """Also one that several compressors wrote one after the other, of which the last part alone says too small a size."""
    array = np.arange(5 * 7 * 9).reshape(5, 7, 9) % 100
    file = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.Cast(sitk.GetImageFromArray(array.astype(np.float64)), kind), str(file))
    assert np.array_equal(read_volume(file).array, array)
    if ending == ".nii.gz":
        import gzip

        whole = gzip.decompress(file.read_bytes())
        file.write_bytes(gzip.compress(whole[:500]) + gzip.compress(whole[500:]))
        assert np.array_equal(read_volume(file).array, array)
        assert read_mask(file, read_volume(file).geometry)[0].max() == 99
        for odd in (whole, gzip.compress(whole) + b"\0" * 600, gzip.compress(whole) + b"more"):  # not packed at all, or padded
            file.write_bytes(odd)
            assert np.array_equal(read_volume(file).array, array)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_which_the_end_is_missing_is_refused(pictures, tmp_path, progressive):
    """Its reader would paint the rest grey."""
    images, masks = pictures
    (images / "case0.png").unlink()
    file = images / "case0.jpg"
    Image.fromarray(picture(0)[0]).save(file, quality=90, progressive=progressive)
    whole = file.read_bytes()
    for more in (b"", b"\0" * 10, b"a camera's own words"):
        file.write_bytes(whole + more)
        assert evaluate(images, masks, tmp_path / "moved")["faults"] == {}
    for share in (0.5, 0.9):
        file.write_bytes(whole[: int(len(whole) * share)])
        result = evaluate(images, masks, tmp_path / "moved")
        assert list(result["faults"]) == ["case0"] and "ends too early" in result["faults"]["case0"]


def test_low_probabilities_are_no_labels_of_a_lesion(pictures, tmp_path):
    """Each by itself may be a label map; beside a mask of one label, what was predicted with 3 % would count as found."""
    images, masks = pictures
    (made := tmp_path / "made").mkdir()
    rows, columns = np.indices(picture(0)[1].shape)
    blob = np.exp(-((rows - 20) ** 2 + (columns - 24) ** 2) / 80)
    low, high = (top * blob for top in (7, 250))
    parts = np.where(blob > 0.7, 1, np.where(blob > 0.5, 4, np.where(blob > 0.3, 2, 0)))  # of a tumour: core, rim and edema
    two = np.where(blob > 0.5, 2, np.where(blob > 0.3, 1, 0))
    for n, array in enumerate((low, high, parts, two)):
        save_picture(made / f"case{n}.png", array.astype(np.uint8))
    result = evaluate(images, masks, made)
    assert list(result["faults"]) == ["case0"] and "as low probabilities do" in result["faults"]["case0"] and result["images"] == 3
    save_picture(masks / "case0_mask.png", low.astype(np.uint8))  # both drawn so: labels that lie one in the other
    assert not evaluate(images, masks, made)["faults"]


def test_one_folder_of_images_and_masks_with_predictions(pictures, tmp_path):
    """Predictions may carry the names of the images or of the masks; the masks are no images that lack one."""
    both, named = tmp_path / "both", tmp_path / "named"
    both.mkdir()
    named.mkdir()
    for n in range(4):
        shutil.copy(pictures[0] / f"case{n}.png", both)
        shutil.copy(pictures[1] / f"case{n}_mask.png", both)
        shutil.copy(tmp_path / "moved" / f"case{n}.png", named / f"case{n}_mask.png")
    apart = evaluate(*pictures, tmp_path / "moved")
    for made in (tmp_path / "moved", named):
        result = evaluate(both, both, made)
        assert result["left"] == {} and result["mean"] == apart["mean"]
    (named / "case2_mask.png").unlink()
    result = evaluate(both, both, named)
    assert result["images"] == 3 and list(result["left"]) == ["case2"] and "no prediction" in result["left"]["case2"]


# ---- labels


def test_labels_that_differ_in_their_case_only_are_refused(pictures, tmp_path, capsys):
    """Names are matched whatever their case, so one of the two would never be found."""
    code = main(["evaluate", *map(str, pictures), "--predictions", str(tmp_path / "moved"), "--labels", "1=Core, 2=core"])
    assert code == 2 and "is not understood" in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_a_diagnosis_called_like_a_label_takes_no_row_from_it(pictures, tmp_path):
    for n in range(4):
        mask = picture(n)[1]
        halves = np.where(np.arange(mask.shape[1]) < 24, 2, 1) * mask
        save_picture(tmp_path / "parts" / f"case{n}.png", halves.astype(np.uint8))
    csv = table(tmp_path / "t.csv", "image,diagnosis", *(f"case{n},core" for n in range(4)))
    result = evaluate(pictures[0], tmp_path / "parts", shutil.copytree(tmp_path / "parts", tmp_path / "made"), csv, {1: "core", 2: "edge"})
    assert [name for name, *_ in part_rows(result)] == ["Dice, core", "Dice, edge", "Dice, core"]
    assert "first the mean over 2 labels" in write_page(tmp_path / "r.html", result).read_text(encoding="utf-8")
    (tmp_path / "r.json").write_text(json.dumps({**result, "model": "abc"}))
    assert "; first the mean over 2 labels." in update_card("", "abc", [tmp_path / "r.json"])


# ---- figures


def test_calibration_counts_only_cases_that_have_voxels():
    """Where mask and expert mask are empty nothing is near a lesion; of one case alone there is no interval."""
    near = Reliability()
    near.add(np.full(10, 0.9), np.ones(10))
    near.add(np.empty(0), np.empty(0))
    assert near.summary()["ece"] == {"value": 0.1, "low": None, "high": None, "n": 1}
    near.add(np.full(10, 0.5), np.zeros(10))
    found = near.summary(["a", "b", "a"])["ece"]
    assert found["n"] == 2 and found["low"] is None, "both are of one group"
    assert near.summary(["a", "b", "c"])["ece"]["high"] == 0.5


# ---- the table


def test_a_table_of_other_images_is_refused(pictures, tmp_path):
    """Else the intervals would be over cases although groups were given."""
    for lines in (["images/case0.png,a", "images/case1.png,a"], ["x,a"], []):
        with pytest.raises(InputError, match="none of the images"):
            find_items(*pictures, csv=table(tmp_path / "t.csv", "image,group", *lines))


@pytest.mark.parametrize(
    "lines, words, said",
    [
        (["case0,a", "case1,a", "case2,b", "case3,b"], "over 2 groups", ""),
        (["case0,a", "case1,a", "case2,"], "over 1 group and 2 cases without one", "1 image is not in the table; it is evaluated"),
        (["case0,a", "case1,a", "case2,b"], "over 2 groups and 1 case without one", "1 image is not in the table; it is evaluated"),
        (["case0,", "case1,"], "over cases", "2 images are not in the table; they are evaluated"),
        (["case0,a", "case1,a", "case2,a", "case3,a"], "over 1 group", ""),
    ],
)
def test_it_is_said_what_intervals_are_over(pictures, tmp_path, capsys, lines, words, said):
    csv, file = table(tmp_path / "t.csv", "image,group", *lines), tmp_path / "r.json"
    words += "" if words == "over 1 group" else " (so few that they are too narrow)"  # of one there is no interval
    options = ["--predictions", tmp_path / "moved", "--csv", csv, "--json", file]
    assert main(["evaluate", *map(str, (*pictures, *options))]) == 0
    out, err = capsys.readouterr()
    assert f"4 images, 95 % bootstrap intervals {words}\n" in out and (said in err if said else not err)
    other = tmp_path / "other" / "r.json"  # a run's result is always called so
    other.parent.mkdir()
    shutil.copy(file, other)
    assert main(["compare", str(file), str(other), "--json", str(tmp_path / "d.json")]) == 0
    assert f"{other} minus {file}, 4 cases, 95 % bootstrap intervals {words}\n" in capsys.readouterr().out
    assert drawn(json.loads((tmp_path / "d.json").read_text())) == words
    result = {**json.loads(file.read_text()), "model": "abc"}
    file.write_text(json.dumps(result))
    assert f"intervals {words}." in update_card("", "abc", [file])
    page = write_page(tmp_path / "r.html", result).read_text(encoding="utf-8")
    assert f", {words}. None is shown\nwhere all draws give the same." in page


# ---- result files


@pytest.fixture
def result(pictures, tmp_path):
    return evaluate(*pictures, tmp_path / "moved")


def damaged(result, change) -> dict:
    copy = json.loads(json.dumps(result))
    change(copy)
    return copy


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["cases"][1].pop("image"),
        lambda r: r["cases"][1].pop("hd95"),
        lambda r: r.update(cases=[1, 2]),
        lambda r: r["cases"][1].update(dice="0.5"),
        lambda r: r["cases"][1].update(dice=float("nan")),
        lambda r: r["cases"][1].update(dice=True),
        lambda r: r["cases"].append(r["cases"][0]),
        lambda r: r.update(units=None),
        lambda r: r["units"].pop("hd95"),
    ],
    ids=["no name", "no figure", "no cases", "text", "nan", "boolean", "twice", "no units", "lacks a unit"],
)
def test_a_damaged_result_is_one_sentence(result, tmp_path, capsys, change):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, value in zip(files, (result, damaged(result, change))):
        file.write_text(json.dumps(value))
    for order in (files, files[::-1]):
        assert main(["compare", *map(str, order)]) == 1
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and "'" + str(files[1]) + "'" in err and "--json" in err


def test_results_in_other_units_are_refused_in_words(result):
    other = damaged(result, lambda r: r["units"].update(hd95="mm", surface_tolerance="2 mm"))
    with pytest.raises(InputError, match=r"units \(hd95 px against mm, surface tolerance 1 px against 2 mm\)") as caught:
        compare_results(result, other)
    assert "{" not in str(caught.value)
    other = damaged(result, lambda r: r.update(labels=["core", "edema"]))
    with pytest.raises(InputError, match=r"labels \(none against core, edema\)"):
        compare_results(result, other)


def test_a_result_that_an_editor_saved_with_a_mark_is_read(result, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(result), encoding="utf-8-sig")
    found = compare_results(result, read_result(tmp_path / "r.json"))
    assert all(row["value"] in (0, None) and row["low"] == row["high"] == row["value"] for row in found["difference"].values())
