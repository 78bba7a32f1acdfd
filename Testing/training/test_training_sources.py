"""Splits and the leak report; folders of volumes, pools and unlabelled images as sources; what is wrong with them is named."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from pictures import _picture, pool_of
from runs import opened, settings

from cers.case import Case
from cers.case.io import read_volume
from cers.cli.train import _absolute
from cers.errors import CersError, InputError, TrainingError
from cers.inference.model import load_model
from cers.pool import Pool, import_folder
from cers.training.config import TrainConfig
from cers.training.datasets import only, open_dataset
from cers.training.plan import check, sentences
from cers.training.trainer import prepare, train


def volumes(folder, count=6, labels=2):
    """Small volumes with a head and one bright ball for each label."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    k, j, i = np.indices((10, 40, 36))
    for n in range(count):
        head = ((j - 20) / 18) ** 2 + ((i - 18) / 16) ** 2 <= 1
        image, mask = np.where(head, 80.0, 0) + rng.normal(0, 3, head.shape), np.zeros(head.shape, np.uint8)
        for label in range(1, labels + 1):
            at = np.array([5, 14 + 11 * (label - 1), 18]) + rng.uniform(-2, 2, 3)
            ball = (k - at[0]) ** 2 * 2 + (j - at[1]) ** 2 + (i - at[2]) ** 2 <= rng.uniform(16, 30)
            image[ball], mask[ball] = 140 + 60 * label, label
        for kind, array in (("images", image.astype(np.float32)), ("labels", mask)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / kind / f"case_{n}.nii.gz"))
    return folder


def test_sides_share_no_kin_and_the_labelled_are_a_share(folder, tmp_path):
    data, split = opened(settings(folder), tmp_path)
    sides = [set(split.kin[rows]) for rows in (np.concatenate([split.labelled, split.unlabelled]), split.validation, split.test)]
    assert not (sides[0] & sides[1]) and not (sides[0] & sides[2]) and not (sides[1] & sides[2])
    assert len(split.labelled) + len(split.unlabelled) + len(split.validation) == 28 and len(split.test) == 4
    assert 12 <= len(split.labelled) <= 14 and not set(split.kin[split.labelled]) & set(split.kin[split.unlabelled])
    assert not split.report["leaks"]["found"]
    _, again = opened(settings(folder, seed=5), tmp_path)
    assert np.array_equal(again.labelled, split.labelled)  # seeds of training do not change the split
    _, other = opened(settings(folder, split_seed=5), tmp_path)
    assert not np.array_equal(other.labelled, split.labelled)
    _, few = opened(settings(folder, labelled=5), tmp_path)
    assert 5 <= len(few.labelled) <= 6


@pytest.mark.parametrize("leak", ["file", "group", "picture"])
def test_a_planted_leak_stops_the_run(folder, tmp_path, leak):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    if leak == "file":
        shutil.copy(copy / "images/train/train_003.jpg", copy / "images/test/test_030.jpg")
    elif leak == "picture":  # the same picture, saved anew and a little brighter
        from PIL import Image

        array = np.asarray(Image.open(copy / "images/train/train_003.jpg"), float)
        Image.fromarray((array * 1.05).clip(0, 255).astype(np.uint8)).save(copy / "images/test/test_030.jpg", quality=90)
    else:
        rows = list(csv.DictReader((copy / "cases.csv").open(newline="")))
        rows[30]["group"] = rows[3]["group"]
        with (copy / "cases.csv").open("w", newline="") as f:
            writer = csv.DictWriter(f, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    config = settings(copy, method="supervised", steps=1, labelled=1.0)
    with pytest.raises(TrainingError, match="leak.*between train"):
        train(config, tmp_path / "run", tmp_path / "cache")
    leaks = json.loads((tmp_path / "run" / "split.json").read_text())["leaks"]
    kind = {"file": "identical_files", "group": "shared_groups", "picture": "near_identical_pictures"}[leak]
    assert leaks["found"] and sum(leaks[pair][kind] for pair in ("train/test", "validation/test")) >= 1
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    config = settings(copy, method="supervised", steps=1, labelled=1.0, allow_leaks=True)
    assert train(config, tmp_path / "allowed", tmp_path / "cache") == "finished"
    assert json.loads((tmp_path / "allowed" / "split.json").read_text())["leaks"]["found"]


def test_pictures_marked_as_twins_are_set_aside(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    text = (copy / "cases.csv").read_text().splitlines()
    text[-1] += "1"
    (copy / "cases.csv").write_text("\n".join(text) + "\n")
    data, split = opened(settings(copy), tmp_path)
    assert data.set_aside == ["test_031"] and len(split.test) == 3


def test_a_class_is_kept_out(folder, tmp_path):
    data, split = opened(settings(folder, exclude={"diagnosis": "glioma"}), tmp_path)
    used = np.concatenate([split.labelled, split.unlabelled, split.validation])
    assert set(data.column("diagnosis")[used]) == {"meningioma"} and split.report["excluded"] == 16
    with pytest.raises(InputError, match="No picture has diagnosis = lymphoma"):
        opened(settings(folder, exclude={"diagnosis": "lymphoma"}), tmp_path)


@pytest.mark.parametrize("method", ["cers", "unimatch"])
def test_volumes_of_several_labels(tmp_path, method):
    data = volumes(tmp_path / "data")
    config = settings(data, method=method, steps=4, labelled=3, validation=0.2)
    assert train(config, tmp_path / "run", tmp_path / "cache") == "finished"
    assert len(load_model(tmp_path / "run" / "model").labels) == 2
    read, split = opened(config, tmp_path)
    assert read.onehot(split.labelled[:3]).shape == (3, 2, 64, 64) and set(np.unique(read.masks[np.arange(len(read))])) == {0, 1, 2}
    items = read.column("item")
    assert len(set(items[split.labelled])) == 3 and not set(items[split.labelled]) & set(items[split.validation])
    assert split.report["by"] == "group, patient, volume, and identical files"


def test_the_dice_of_several_labels_is_one_figure_in_curve_and_result(tmp_path):
    data = volumes(tmp_path / "data", labels=3)
    config = settings(data, method="mutual_consistency", steps=2, validation=0.2, validation_limit=400)
    assert train(config, tmp_path / "run", tmp_path / "cache") == "finished"
    told = json.loads((tmp_path / "run" / "status.json").read_text())["metrics"]
    arms = json.loads((tmp_path / "run" / "model" / "result.json").read_text())["ablation"]["arms"]
    assert {"plain", "null"} <= set(told) and {arm: row["value"] for arm, row in arms.items()} == pytest.approx(told, abs=1e-4)


def test_what_is_too_small_for_the_frame_is_counted(tmp_path):
    folder = volumes(tmp_path / "data", labels=1)
    drawn = {}
    for n in range(6):
        path = str(folder / f"labels/case_{n}.nii.gz")
        mask = sitk.GetArrayFromImage(sitk.ReadImage(path))
        mask[1, 20, 16 + n] = 1  # the only one of its slice
        sitk.WriteImage(sitk.GetImageFromArray(mask), path)
        drawn |= {f"case_{n}:{k}": part.any() for k, part in enumerate(mask)}
    config = settings(folder, frame=32, labelled=1.0, validation=0)
    data, split = opened(config, tmp_path)
    gone = [row["image"] for row, mask in zip(data.table, data.masks.parts[0]) if drawn[row["image"]] and not mask.any()]
    assert gone and split.report["too_small"] == gone
    told = check(config, tmp_path / "cache", measure=False)
    assert f"too small for the stored frame, and counts as not drawn: {len(gone)}." in " ".join(sentences(told))
    assert opened(replace(config, frame=64), tmp_path)[1].report["too_small"] == []


def test_more_labels_than_a_label_map_holds_are_refused(tmp_path):
    with Pool.create(tmp_path / "pool") as pool:
        for n in range(2):
            image, mask = _picture(np.random.default_rng(n), 80)
            mask = np.zeros_like(mask, np.uint8)
            mask.flat[2000:2128] = np.arange(1, 129)
            pool.add(Case(image.astype(np.float32), mask, {v: f"structure {n} {v}" for v in range(1, 129)}, volume_id=f"v{n}"))
    with pytest.raises(InputError, match="more than 255 labels"):
        open_dataset(tmp_path / "pool", [], 64, "axial", tmp_path / "cache")


def test_of_one_patient_none_can_be_held_out(tmp_path):
    folder = volumes(tmp_path / "data", count=1)
    with pytest.raises(InputError, match="of one patient, volume or group.*validation to 0"):
        opened(settings(folder, labelled=1.0), tmp_path)
    _, split = opened(settings(folder, labelled=1.0, validation=0.0), tmp_path)
    assert len(split.labelled) and not len(split.validation)


def changed(path, name: str, change) -> None:
    """Another mask in a folder of volumes."""
    file = str(path / "labels" / f"{name}.nii.gz")
    image = sitk.ReadImage(file)
    array = change(sitk.GetArrayFromImage(image))
    out = sitk.GetImageFromArray(array)
    out.CopyInformation(image)
    sitk.WriteImage(out, file)


def test_a_value_is_one_label_in_the_whole_folder(tmp_path):
    folder = volumes(tmp_path / "data", count=4)
    changed(folder, "case_0", lambda a: np.where(a == 2, a, 0).astype(np.uint8))  # the first to be read has the second label only
    changed(folder, "case_1", lambda a: np.where(a == 1, a, 0).astype(np.uint8))
    data, _ = opened(settings(folder, labelled=1.0), tmp_path)
    assert data.labels == ["label 1", "label 2"]
    items = data.column("item")
    for item, present in (("case_0", {0, 2}), ("case_1", {0, 1}), ("case_2", {0, 1, 2})):
        assert set(np.unique(data.masks[np.flatnonzero(items == item)])) == present, item
    for name in ("case_0", "case_2", "case_3"):
        changed(folder, name, lambda a: (a > 0).astype(np.uint8))
    assert opened(settings(folder, labelled=1.0), tmp_path)[0].labels == ["lesion"]


def test_segments_that_overlap_are_refused(tmp_path):
    folder = volumes(tmp_path / "data", count=2, labels=1)
    image = sitk.ReadImage(str(folder / "labels" / "case_0.nii.gz"))
    array = sitk.GetArrayFromImage(image)
    layers = sitk.GetImageFromArray(np.stack([array, array], -1), isVector=True)
    layers.CopyInformation(image)
    for n, name in enumerate(("whole", "core")):
        layers.SetMetaData(f"Segment{n}_Name", name)
        layers.SetMetaData(f"Segment{n}_LabelValue", "1")
        layers.SetMetaData(f"Segment{n}_Layer", str(n))
    (folder / "labels" / "case_0.nii.gz").unlink()
    sitk.WriteImage(layers, str(folder / "labels" / "case_0.nrrd"))
    with pytest.raises(InputError, match="segments whole and core overlap"):
        opened(settings(folder), tmp_path)


def table_of(folder, **columns) -> None:
    with open(folder / "cases.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["image", "split", "group", "patient"])
        for n in range(len(list((folder / "images").iterdir()))):
            writer.writerow([f"case_{n}", *(columns.get(c, {}).get(n, "") for c in ("split", "group", "patient"))])


def test_intervals_of_a_result_are_over_patients(tmp_path):
    """Not over their volumes, which are not independent; the split does not part them either."""
    folder = volumes(tmp_path / "data", count=6, labels=1)
    table_of(folder, split={n: "test" for n in range(4)}, patient={0: "Anna", 1: "Anna", 2: "Bert", 3: "Cora"}, group={2: "x", 3: "x"})
    config = settings(folder, method="supervised", steps=1, labelled=1.0, validation=0, validation_limit=4)
    assert train(config, tmp_path / "run", tmp_path / "cache") == "finished"
    result = json.loads((tmp_path / "run" / "model" / "result.json").read_text())
    groups = {
        name: {c["group"] for c in result["cases"] if c["image"].startswith(name)} for name in ("case_0", "case_1", "case_2", "case_3")
    }
    assert groups == {"case_0": {"case_0"}, "case_1": {"case_0"}, "case_2": {"x"}, "case_3": {"x"}}
    assert result["rules"]["groups"] == 2 and result["images"] > 4
    assert (
        "95 % bootstrap intervals over 2 groups (so few that they are too narrow) in brackets"
        in (tmp_path / "run" / "model" / "MODEL_CARD.md").read_text()
    )


def test_blank_groups_are_no_group_and_unknown_splits_are_named(tmp_path):
    folder = volumes(tmp_path / "data", count=5)
    table_of(folder)
    _, split = opened(settings(folder, labelled=1.0, validation=0.2), tmp_path)
    assert len(np.unique(split.kin)) == 5 and len(np.unique(split.kin[split.validation])) == 1
    table_of(folder, split={0: "Test", 1: " validation "})
    data, split = opened(settings(folder, labelled=1.0), tmp_path)
    assert {data.table[r]["item"] for r in split.test} == {"case_0"} and {data.table[r]["item"] for r in split.validation} == {"case_1"}
    assert data.table[0]["image"] != data.table[1]["image"], "slices keep names of their own"
    table_of(folder, split={3: "val"})
    with pytest.raises(InputError, match="case_3 is of the split 'val'. Write one of train, validation, test"):
        opened(settings(folder), tmp_path)


def test_groups_and_patients_of_a_pool_stay_on_one_side(tmp_path):
    path = pool_of(tmp_path / "pool", 12, group=4)
    config = settings(path, labelled=1.0, validation=0.25)
    data, split = opened(config, tmp_path)
    sides = [set(data.column("group")[rows]) for rows in (split.labelled, split.validation)]
    assert sides[0] and sides[1] and not sides[0] & sides[1] and split.report["by"].startswith("group, patient, volume")
    before = split.mark
    with Pool.open(path) as pool:  # one patient under several names, mended
        pool.edit(pool.ids()[:2], {"patient_id": "one"})
    data, split = opened(config, tmp_path)
    assert len({split.kin[n] for n in range(len(data)) if data.table[n]["kin"][0] == "patient one"}) == 1, (
        "the cache tells what is known now"
    )
    assert len(np.unique(split.kin)) == 3 and split.mark != before


def test_a_pool_whose_labels_were_mended_is_another_one(tmp_path):
    """Channels of the network follow the labels, which a mended case may bring into another order."""
    path = tmp_path / "pool"
    rng = np.random.default_rng(7)
    with Pool.create(path) as pool:
        for name in ("tumor", "cyst", "tumor", "cyst"):
            image, mask = _picture(rng, 80)
            pool.add(Case(image.astype(np.float32), mask.astype(np.uint8), {1: name}, plane="axial"))
    data, before = opened(settings(path, labelled=1.0), tmp_path)
    with Pool.open(path) as pool:
        pool.edit(pool.ids(), {}, rename={"cyst": "abscess"})  # another name, the same areas
        renamed, same = opened(settings(path, labelled=1.0), tmp_path)
        pool.edit(pool.ids()[:1], {}, rename={"tumor": "abscess"})
        mended, after = opened(settings(path, labelled=1.0), tmp_path)
    assert [d.labels for d in (data, renamed, mended)] == [["tumor", "cyst"], ["tumor", "abscess"], ["abscess", "tumor"]]
    assert same.mark == before.mark != after.mark


def test_a_pool_that_changes_while_it_is_read_is_taken_as_it_was(tmp_path, monkeypatch):
    path = pool_of(tmp_path / "pool", 6, group=2)
    config, real = settings(path, labelled=1.0, validation=0), {name: getattr(Pool, name) for name in ("hash", "get")}
    image, mask = _picture(np.random.default_rng(99), 80)

    def meanwhile(name, change):
        def first(self, *args):
            monkeypatch.setattr(Pool, name, real[name])
            with Pool.open(path) as other:
                change(other)
            return real[name](self, *args)

        monkeypatch.setattr(Pool, name, first)

    meanwhile("hash", lambda pool: pool.add(Case(image.astype(np.float32), mask.astype(np.uint8), {1: "tumor"}, patient_id="new")))
    before, _ = opened(config, tmp_path)
    after, _ = opened(config, tmp_path)
    assert (len(before), len(after)) == (6, 7), "the new case is not missing for good"
    shutil.rmtree(tmp_path / "cache")
    meanwhile("get", lambda pool: pool.edit(pool.ids(), {"group": "mended"}, rename={"tumor": "cyst"}))
    before, _ = opened(config, tmp_path)
    assert "mended" not in before.column("group") and before.labels == ["tumor"]
    after, _ = opened(config, tmp_path)
    assert set(after.column("group")) == {"mended"} and after.labels == ["cyst"]


def test_labels_come_in_the_order_of_the_weights_that_a_run_begins_with(tmp_path):
    """Else a model that goes on learning would call the one structure by the name of the other."""
    rng, pools = np.random.default_rng(7), {}
    for names in (("tumor", "cyst"), ("cyst", "tumor"), ("cyst", "edema")):
        pools[names] = tmp_path / "-".join(names)
        with Pool.create(pools[names]) as pool:
            for n in range(4):
                image, mask = _picture(rng, 80)
                pool.add(Case(image.astype(np.float32), mask.astype(np.uint8), {1: names[n % 2]}, plane="axial"))
    (first, swapped, others), cache = pools.values(), tmp_path / "cache"
    begun = {"method": "supervised", "steps": 1, "labelled": 1.0, "validation": 0.0}
    assert train(settings(first, **begun), tmp_path / "run", cache) == "finished"
    for weights in (tmp_path / "run", tmp_path / "run" / "model"):
        config = _absolute(settings(swapped, initial=str(weights), **begun))
        data, _ = prepare(config, None, cache)
        assert data.labels == ["tumor", "cyst"] and [m.any() for m in data.onehot(np.array([0]))[0]] == [False, True]
        assert prepare(replace(config, data=str(others)), None, cache)[0].labels == ["cyst", "edema"]
    assert train(config, tmp_path / "again", cache) == "finished"
    assert list(load_model(tmp_path / "again" / "model").labels.values()) == ["tumor", "cyst"]
    assert TrainConfig.read(tmp_path / "again" / "config.yaml").network["labels"] == ["tumor", "cyst"], "for a resume"


def test_labels_of_one_meaning_are_one(tmp_path):
    path = pool_of(tmp_path / "pool", 3)
    with Pool.open(path) as pool:
        rng = np.random.default_rng(7)
        for name in ("Tumor", "lesion", "cyst"):
            image, mask = _picture(rng, 80)
            pool.add(Case(image.astype(np.float32), mask.astype(np.uint8), {1: name}, plane="axial"))
    data, _ = opened(settings(path, labelled=1.0, validation=0.0), tmp_path)
    assert data.labels == ["tumor", "cyst"] and set(np.unique(data.masks[np.array([3, 4])])) == {0, 1}


def test_unlabelled_scans_of_held_out_cases_are_left_out(tmp_path):
    """The natural use: some scans of a folder are labelled and imported, and the whole folder is given as unlabelled."""
    folder = volumes(tmp_path / "data", count=6)
    with Pool.create(tmp_path / "pool") as pool:
        assert import_folder(pool, folder / "images", folder / "labels", max_slices=4).images == 6
    config = settings(tmp_path / "pool", unlabelled=[str(folder / "images")], labelled=1.0, validation=0.2)
    data, split = opened(config, tmp_path)
    held = set(data.column("item")[split.validation])
    assert len(held) == 1 and split.report["set_aside"] and len(split.report["set_aside"]) == 1
    rest = split.unlabelled
    assert len(set(data.column("item")[rest])) == 5 and not set(split.kin[rest]) & set(split.kin[split.validation])
    assert set(split.kin[rest]) == set(split.kin[split.labelled]), (
        "a scan and its cases are kin, so that they are no references of each other"
    )
    config = settings(tmp_path / "pool", unlabelled=[str(folder / "images")], labelled=1.0, exclude={"item": "case_3"})
    data, split = opened(config, tmp_path)
    assert "case_3" not in set(data.column("item")[split.unlabelled])


def test_an_unlabelled_copy_of_a_held_out_volume_in_other_units_is_left_out(tmp_path):
    folder, scans = volumes(tmp_path / "data", count=5), tmp_path / "scans"
    for part in (slice(None), slice(3, 10)):  # also of fewer slices, with another one in their middle
        shutil.rmtree(scans, ignore_errors=True)
        scans.mkdir()
        for file in (folder / "images").iterdir():
            sitk.WriteImage(sitk.ReadImage(str(file))[:, :, part] * 0.1 - 3, str(scans / f"scan_{file.name[5]}.mha"))
        data, split = opened(settings(folder, unlabelled=[str(scans)], labelled=1.0), tmp_path)
        held = data.column("item")[split.validation][0]
        assert split.report["set_aside"] == [held.replace("case", "scan")] and len(np.unique(split.kin)) == 5


@pytest.mark.parametrize("given", [False, True])
def test_a_single_picture_that_is_a_slice_of_a_volume_is_its_kin(tmp_path, given):
    """One folder may hold both: the picture of a slice must not be on the other side, and is a leak where the table puts it there."""
    folder = volumes(tmp_path / "data", count=5, labels=1)
    for kind, pixel in (("images", sitk.sitkFloat32), ("labels", sitk.sitkUInt8)):
        volume = sitk.ReadImage(str(folder / kind / "case_1.nii.gz"))
        for n, factor in ((7, 1.0), (8, 0.5)):  # not the middle one; the other is an exported copy in other units
            part = sitk.GetArrayFromImage(volume)[7:8] * (factor if kind == "images" else 1)
            sitk.WriteImage(sitk.Cast(sitk.GetImageFromArray(part), pixel), str(folder / kind / f"case_{n - 2}.nii.gz"))
    table_of(folder, split={1: "test", 5: "train", 6: "validation"} if given else {})
    config = settings(folder, labelled=1.0, validation=0.2, allow_leaks=True)
    data, split = opened(config, tmp_path)
    kin = {item: {split.kin[n] for n in np.flatnonzero(data.column("item") == item)} for item in set(data.column("item"))}
    assert kin["case_5"] == kin["case_1"] == kin["case_6"] and len(np.unique(split.kin)) == 5
    leaks = split.report["leaks"]
    assert leaks["found"] == given
    if given:
        assert [leaks[pair]["examples"]["near_identical_pictures"] for pair in ("train/validation", "train/test", "validation/test")] == [
            [["case_5", "case_6"]],
            [["case_5", "case_1"]],
            [["case_6", "case_1"]],
        ]
    assert "single pictures" in split.report["by"]
    for kept in (tmp_path / "cache").glob("*_thumbnails.npy"):  # prepared by an earlier version, which kept none
        kept.unlink()
    assert opened(config, tmp_path)[1].mark == split.mark


def test_lesion_free_slices_of_a_held_out_case_of_a_pool_are_a_leak(tmp_path):
    folder = volumes(tmp_path / "data", count=4)
    with Pool.create(tmp_path / "pool") as pool:
        import_folder(pool, folder / "images", folder / "labels", max_slices=4)
    data, split = opened(settings(tmp_path / "pool", labelled=1.0, validation=0.2), tmp_path)
    volume = {side: data.table[getattr(split, side)[0]]["item"] for side in ("labelled", "validation")}
    files = {read_volume(f).volume_id: f for f in (folder / "images").iterdir()}
    again = tmp_path / "again.nrrd"  # the same scan in another file
    sitk.WriteImage(sitk.ReadImage(str(files[volume["validation"]])), str(again))
    for given, leaks in ((files[volume["labelled"]], 0), (files[volume["validation"]], 1), (again, 1)):
        config = settings(tmp_path / "pool", labelled=1.0, validation=0.2, lesion_free=[str(given)], allow_leaks=True)
        assert opened(config, tmp_path)[1].report["leaks"]["lesion_free"] == [given.name] * leaks


def test_moved_data_is_read_where_it_is_now(tmp_path):
    folder = volumes(tmp_path / "data", count=3)
    opened(settings(folder), tmp_path)
    data, _ = opened(settings(folder.rename(tmp_path / "moved")), tmp_path)
    assert all(row["file"].startswith(str(tmp_path / "moved")) for row in data.table)


def test_a_pool_with_unlabelled_pictures(folder, tmp_path):
    rng = np.random.default_rng(1)
    with Pool.create(tmp_path / "pool") as pool:
        for n in range(8):
            image, mask = _picture(rng, 80)
            pool.add(
                Case(
                    image.astype(np.float32),
                    mask.astype(np.uint8),
                    {1: "tumor"},
                    patient_id=f"p{n // 2}",
                    modality="MR",
                    body_site="brain",
                    plane="axial",
                )
            )
    config = settings(tmp_path / "pool", unlabelled=[str(folder / "images/train")], labelled=1.0, steps=4)
    assert train(config, tmp_path / "run", tmp_path / "cache") == "finished"
    data, split = opened(config, tmp_path)
    assert data.kind == "pool" and data.labels == ["tumor"] and len(split.unlabelled) == 28
    assert len(split.labelled) + len(split.validation) == 8 and len(split.validation) == 2  # one patient
    model = load_model(tmp_path / "run" / "model")
    assert model.config.modality == "MR" and model.config.body_site == "brain"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("nothing there", "no data folder"),
        ("empty", "neither images/"),
        ("no outline", "has no label map"),
        ("no outlines", "neither labels/ nor masks/"),
        ("lost in table", "is listed in cases.csv"),
        ("other grid", "case_1"),
    ],
)
def test_what_is_wrong_with_volumes_is_named(tmp_path, damage, said):
    data = tmp_path / "data"
    if damage == "empty":
        data.mkdir()
    elif damage != "nothing there":
        volumes(data, count=3, labels=1)
        if damage == "no outline":
            (data / "labels/case_1.nii.gz").unlink()
        elif damage == "no outlines":
            shutil.rmtree(data / "labels")
        elif damage == "lost in table":
            (data / "cases.csv").write_text("image,split,group\ncase_9,train,a\n")
        elif damage == "other grid":
            sitk.WriteImage(sitk.GetImageFromArray(np.ones((3, 4, 5), np.uint8)), str(data / "labels/case_1.nii.gz"))
    with pytest.raises(CersError, match=said) as caught:
        open_dataset(data, [], 64, "acquisition", tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


def test_a_model_of_several_sites_is_made_for_none_of_them():
    assert only(["brain", "brain", None, ""]) == "brain"
    assert only(["brain", "lung"]) is None and only([None]) is None
