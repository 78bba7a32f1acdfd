"""Pictures of one name in several splits and folders, and folders as people keep them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from pictures import _picture, write
from PIL import Image
from runs import settings

from cers.errors import InputError
from cers.training.soup import mean_model
from cers.training.splits import LeakError, make_split
from cers.training.trainer import prepare, train


def pairs(folder, names, change=lambda n, mask: mask, ending="png"):
    """Pictures with masks of the same names."""
    rng = np.random.default_rng(3)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for n, name in enumerate(names):
        image, mask = _picture(rng, 80)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{name}.{ending}")
        Image.fromarray(np.asarray(change(n, mask), np.uint8)).save(folder / "labels" / f"{name}.{ending}")
    return folder


def test_a_held_out_picture_is_not_trained_on_under_the_name_of_another(folder, cache, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    for name, source in (("train_000", "test/test_028"), ("train_001", "train/train_001"), ("test_028", "train/train_004")):
        shutil.copy(folder / "images" / f"{source}.jpg", scans / f"{name}.jpg")
    split = prepare(settings(folder, unlabelled=[str(scans)], validation=0), None, cache)[1]
    assert split.report["set_aside"] == ["train_000"]
    assert [name for name in split.report["rows"]["unlabelled"] if ":" in name] == ["test_028:0", "train_001:0"]


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_held_out_picture_that_was_saved_anew_is_not_trained_on(folder, cache, tmp_path, ending):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for file in (folder / "images" / split).iterdir():
            Image.open(file).save(tmp_path / split / f"scan_{file.stem[-3:]}.{ending}")
    data, split = prepare(settings(folder, unlabelled=[str(tmp_path / "train")]), None, cache)
    assert len(split.report["set_aside"]) == len(split.validation) and not split.report["leaks"]["found"]
    assert len(split.unlabelled) + len(split.labelled) == 2 * (28 - len(split.validation))
    assert not set(split.kin[split.unlabelled]) & set(split.kin[split.validation])
    _, split = prepare(settings(folder, unlabelled=[str(tmp_path / "test")]), None, cache)
    assert len(split.report["set_aside"]) == 4 and not split.report["leaks"]["found"]


@pytest.mark.parametrize("side", [60, 160])
def test_a_held_out_picture_that_was_stored_in_another_size_is_not_trained_on(folder, cache, tmp_path, side):
    """The edge of its body, and with it the frame, may come out a little elsewhere."""
    for file in (folder / "images" / "test").iterdir():
        Image.open(file).resize((side, side)).save(tmp_path / f"scan_{file.stem[-3:]}.png")
    split = prepare(settings(folder, unlabelled=[str(tmp_path)]), None, cache)[1]
    assert len(split.report["set_aside"]) == 4 and not split.report["leaks"]["found"]


def test_a_picture_saved_anew_is_found_in_a_folder_of_pictures_with_masks(tmp_path):
    """As in a folder with a table of splits: its copy is on its side, and a leak where a table says otherwise."""
    data, names = pairs(tmp_path / "data", "abcdefgh"), [f"{name}2" for name in "abcdefgh"]
    for name in names:
        with Image.open(data / "images" / f"{name[0]}.png") as picture:
            picture.point(lambda v: v * 0.95).save(data / "images" / f"{name}.jpg", quality=95)
        shutil.copy(data / "labels" / f"{name[0]}.png", data / "labels" / f"{name}.png")
    config = settings(data, validation=0.4, labelled=0.5)
    read, split = prepare(config, None, tmp_path / "cache")
    kin = dict(zip(read.column("item").tolist(), split.kin.tolist()))
    assert all(kin[name] == kin[name[0]] for name in names) and len(set(kin.values())) == 8
    assert "thumbnails" in split.report["by"] and not split.report["leaks"]["found"]
    rows = "".join(f"{name},{'test' if name in names else 'train'},{name}\n" for name in [*"abcdefgh", *names])
    (data / "cases.csv").write_text("image,split,group\n" + rows)
    with pytest.raises(LeakError, match="near identical pictures between train and test"):
        prepare(config, None, tmp_path / "cache")


def test_unlabelled_pictures_do_not_change_what_is_held_out_or_labelled(folder, cache, tmp_path):
    """Unless one shows two groups to be kin of which one is held out; that is told."""
    scans = tmp_path / "scans"
    scans.mkdir()
    alone = prepare(settings(folder), None, cache)[1].report["rows"]
    for source in (folder / "images/train").iterdir():
        shutil.copy(source, scans / f"a{99 - int(source.stem[-3:])}.jpg")
    config = settings(folder, unlabelled=[str(scans)])
    data, split = prepare(config, None, cache)
    assert all(split.report["rows"][side] == alone[side] for side in ("labelled", "validation", "test"))
    assert set(alone["unlabelled"]) <= set(split.report["rows"]["unlabelled"]) and split.report["joined"] == []
    group = {row["image"]: row["group"] for row in data.table}
    held, other = alone["validation"][0], alone["labelled"][0]
    scan = next(row for row in data.table if row["item"] == f"a{99 - int(other[-3:])}")
    scan["kin"] = [f"group {group[held]}"]
    report = make_split(data, config).report
    assert set(report["joined"]) == {name for name in alone["labelled"] if group[name] == group[other]}
    assert set(report["rows"]["validation"]) == {*alone["validation"], *report["joined"]} and not report["leaks"]["found"]


def test_one_name_in_two_splits_is_no_leak(tmp_path):
    """Neither for a run nor for a mean of runs."""
    data = write(tmp_path / "data")
    for kind, ending in (("images", "jpg"), ("masks", "png")):
        (data / kind / "test" / f"test_028.{ending}").rename(data / kind / "test" / f"train_003.{ending}")
    (data / "cases.csv").write_text((data / "cases.csv").read_text().replace("test_028", "train_003"))
    cache, start = tmp_path / "cache", tmp_path / "start"
    train(settings(data, steps=1, labelled=1.0), start, cache)
    report = json.loads((start / "split.json").read_text())
    assert not report["leaks"]["found"] and "test/train_003" in report["rows"]["test"]
    for seed in (1, 2):
        train(settings(data, steps=1, labelled=1.0, seed=seed, initial=str(start / "model.safetensors")), tmp_path / str(seed), cache)
    assert mean_model([tmp_path / "1", tmp_path / "2"], tmp_path / "mean", None, cache)["plain"] >= 0


def test_two_folders_with_the_same_names_are_different_scans(folder, cache, tmp_path):
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        Image.fromarray(_picture(np.random.default_rng(seed), 80)[0].clip(0, 255).astype(np.uint8)).save(tmp_path / name / "001.png")
    data, split = prepare(settings(folder, unlabelled=[str(tmp_path / "a"), str(tmp_path / "b")]), None, cache)
    assert len(set(data.places())) == 34 and len(set(split.kin[split.unlabelled][-2:])) == 2


def test_endings_in_capitals_are_found(tmp_path):
    data, split = prepare(settings(pairs(tmp_path / "Köpfe 1", ["a", "b", "c"], ending="PNG"), labelled=1.0), None, tmp_path / "cache")
    assert len(data) == 3 and len(split.labelled) == 2


@pytest.mark.parametrize("kind", ["empty masks", "one name", "flat"])
def test_what_is_wrong_with_pictures_is_said_with_their_names(tmp_path, kind):
    data, scans = pairs(tmp_path / "data", "abcd", (lambda _n, mask: mask * 0) if kind == "empty masks" else lambda _n, m: m), []
    said = "All masks are empty"
    if kind == "one name":
        Image.open(data / "images/b.png").save(data / "images/a.bmp")
        said = "two images of one name, a.bmp and a.png"
    elif kind == "flat":
        scans, said = [str(tmp_path / "scans")], "scans/black.png' cannot be used. The image is empty"
        (tmp_path / "scans").mkdir()
        Image.new("L", (40, 40)).save(tmp_path / "scans/black.png")
    with pytest.raises(InputError, match=said):
        prepare(settings(data, unlabelled=scans, labelled=1.0), None, tmp_path / "cache")


def test_slices_of_a_held_out_volume_are_no_lesion_free_ones(tmp_path):
    data, cache = pairs(tmp_path / "data", "abcdef"), tmp_path / "cache"
    split = prepare(settings(data, labelled=1.0), None, cache)[1]
    free = {side: f"{data}/images/{split.report['rows'][side][0][0]}.png" for side in ("labelled", "validation")}
    prepare(settings(data, labelled=1.0, lesion_free=[free["labelled"]]), None, cache)
    for given in (free["validation"], free["validation"] + "=" + free["validation"].replace("images", "labels")):
        with pytest.raises(LeakError, match="1 file of lesion_free is held out. Correct") as caught:
            prepare(settings(data, labelled=1.0, lesion_free=[given, free["labelled"]]), None, cache)
        assert caught.value.split.report["leaks"]["lesion_free"] == [free["validation"][-5:]]
    prepare(settings(data, labelled=1.0, lesion_free=[free["validation"]], allow_leaks=True), None, cache)
