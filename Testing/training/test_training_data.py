"""Pictures become frames; nothing leaks between splits, groups and caches."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from pictures import _picture, pool_of
from PIL import Image
from runs import opened, settings

from cers.case.io import read_volume
from cers.errors import InputError
from cers.network.frame import Frame, body_box, scale_intensities
from cers.pool import Pool
from cers.training.data import brisc, keep, lesion_free


def test_frames_hold_the_whole_lesion(slices):
    assert len(slices) == 28 and slices.images.shape == slices.masks.shape == (28, 64, 64)
    assert slices.images.dtype == slices.masks.dtype == np.uint8 and set(np.unique(slices.masks)) == {0, 1}
    assert slices.images.max() == 255
    for image, mask in zip(slices.images, slices.masks):
        assert mask.any() and image[mask > 0].mean() > 1.6 * image[(mask == 0) & (image > 20)].mean()


def test_a_split_holds_only_its_own(folder, tmp_path):
    test = brisc(folder, "test", tmp_path, size=64)
    assert len(test) == 4 and all(name.startswith("test") for name in test.column("image"))


def test_the_cache_is_used_and_never_for_other_pictures(folder, tmp_path):
    copy, cache = tmp_path / "copy", tmp_path / "cache"
    shutil.copytree(folder, copy)
    first = brisc(copy, "test", cache, size=64)
    files = {p: p.stat().st_mtime_ns for p in cache.iterdir()}
    brisc(copy, "test", cache, size=64)
    assert files == {p: p.stat().st_mtime_ns for p in cache.iterdir()}
    path = copy / "images/test/test_029.jpg"
    other = Image.open(copy / "images/test/test_030.jpg").copy()
    other.save(path, quality=95)
    os.utime(path, (1, 1))
    second = brisc(copy, "test", cache, size=64)
    assert second.key != first.key
    assert not np.array_equal(first.images[1], second.images[1]) and np.array_equal(first.images[0], second.images[0])
    assert not list(cache.glob("*.tmp*"))


def broken(folder, tmp_path, **change):
    copy = tmp_path / "broken"
    shutil.copytree(folder, copy)
    return copy


@pytest.mark.parametrize(
    "damage",
    [
        "missing mask",
        "missing picture",
        "other size",
        "no picture",
        "half a picture",
        "no table",
        "no column",
        "no such split",
        "binary table",
    ],
)
def test_what_is_wrong_with_a_folder_is_named(folder, tmp_path, damage):
    copy = broken(folder, tmp_path)
    mask, picture, table = copy / "masks/train/train_003.png", copy / "images/train/train_003.jpg", copy / "cases.csv"
    if damage == "missing mask":
        mask.unlink()
    elif damage == "missing picture":
        picture.unlink()
    elif damage == "other size":
        Image.fromarray(np.zeros((70, 80), np.uint8)).save(mask)
    elif damage == "no picture":
        picture.write_bytes(b"not a picture at all")
    elif damage == "half a picture":
        picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    elif damage == "no table":
        table.unlink()
    elif damage == "binary table":
        table.write_bytes(b"\xff\xfe\x00image,split,group\n")
    elif damage == "no column":
        rows = list(csv.DictReader(table.open(newline="")))
        with table.open("w", newline="") as f:
            writer = csv.DictWriter(f, ["image", "split"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    with pytest.raises(InputError) as caught:
        brisc(copy, "validation" if damage == "no such split" else "train", tmp_path / "cache", size=64)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    assert {
        "missing mask": "train_003.png",
        "missing picture": "train_003.jpg",
        "other size": "train_003",
        "no picture": "train_003.jpg",
        "half a picture": "train_003.jpg",
        "no table": "cases.csv",
        "no column": "group",
        "no such split": "validation",
        "binary table": "cases.csv",
    }[damage] in message
    assert not list((tmp_path / "cache").glob("*.npy")) if (tmp_path / "cache").exists() else True


def test_what_a_killed_process_left_in_the_cache_is_taken_away(tmp_path):
    """And nothing that another one may be writing."""
    for name in ("old", "new"):
        (tmp_path / f"{name}_images.{os.getpid()}.tmp.npy").write_bytes(b"half")
    os.utime(tmp_path / f"old_images.{os.getpid()}.tmp.npy", (1e9, 1e9))
    keep(tmp_path / "images.npy", np.zeros(3))
    assert {path.name for path in tmp_path.iterdir()} == {"images.npy", f"new_images.{os.getpid()}.tmp.npy"}


@pytest.mark.parametrize("kind", ["turned", "transparent"])
def test_pictures_are_read_as_everywhere_else(folder, tmp_path, kind):
    copy = broken(folder, tmp_path)
    if kind == "turned":
        wrong, exif = copy / "images/train/train_003.jpg", Image.Exif()
        exif[0x0112] = 3
        Image.open(wrong).save(wrong, exif=exif)
    else:  # white everywhere, drawn by its transparency
        wrong = copy / "masks/train/train_003.png"
        drawn = np.array(Image.open(wrong))
        Image.fromarray(np.dstack([np.full_like(drawn, 255)] * 3 + [drawn])).save(wrong)
    with pytest.raises(InputError, match=wrong.name):
        brisc(copy, "train", tmp_path / "cache", size=64)


def test_a_coloured_picture_is_grey_as_an_image_is(folder, tmp_path):
    copy = broken(folder, tmp_path)
    picture = copy / "images/train/train_003.jpg"
    grey = np.array(Image.open(picture))
    Image.fromarray(np.dstack([grey, grey // 2, grey // 3])).save(picture, quality=95)
    found = brisc(copy, "train", tmp_path / "cache", size=64)
    image = read_volume(picture).array
    frame = Frame.around(body_box(image), image.shape[1:], (1.0, 1.0), 64)
    at = found.column("image").tolist().index("train_003")
    assert np.array_equal(found.images[at], (frame.crop(scale_intensities(image))[0, 0].numpy() * 255).round())


def head(lesion: bool) -> tuple[np.ndarray, np.ndarray]:
    """A volume (k, j, i) of a bright ball, and a mask that some of its axial slices meet."""
    k, j, i = np.indices((20, 24, 24)) - 11.5
    mask = np.zeros((20, 24, 24), np.uint8)
    mask[12:15, 8:12, 8:12] = lesion
    return np.where(k**2 + j**2 + i**2 < 80, 100 + j, 0).astype(np.float32), mask


def test_slices_of_lesion_free_volumes_and_those_beside_a_lesion(tmp_path):
    import SimpleITK as sitk

    for name, lesion in (("healthy", False), ("ill", True)):
        for kind, array in zip(("image", "mask"), head(lesion)):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"{name} {kind}.nrrd"))
    healthy, ill = str(tmp_path / "healthy image.nrrd"), f"{tmp_path / 'ill image.nrrd'}={tmp_path / 'ill mask.nrrd'}"
    alone = lesion_free([healthy], tmp_path / "cache", 64)
    both = lesion_free([healthy, ill], tmp_path / "cache", 64)
    assert alone.dtype == np.uint8 and alone.shape[1:] == (64, 64) and alone.max() > 200
    assert 0 < len(both) - len(alone) <= len(alone) - (3 + 4 + 4)
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert np.array_equal(lesion_free([healthy], tmp_path / "cache", 64), alone)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()} == written
    with pytest.raises(InputError, match="missing.nrrd"):
        lesion_free([str(tmp_path / "missing.nrrd")], tmp_path / "cache", 64)
    everywhere = sitk.GetImageFromArray(np.ones((20, 24, 24), np.uint8))
    sitk.WriteImage(everywhere, str(tmp_path / "all.nrrd"))
    with pytest.raises(InputError, match="no slice without a lesion"):
        lesion_free([f"{healthy}={tmp_path / 'all.nrrd'}"], tmp_path / "cache", 64)


def rewrite(folder, change) -> None:
    """Change the rows of the table, a list of dicts."""
    rows = list(csv.DictReader((folder / "cases.csv").open(newline="")))
    rows = change(rows) or rows
    with (folder / "cases.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_picture_is_listed_once_and_by_either_name(folder, tmp_path):
    copy = broken(folder, tmp_path)
    rewrite(copy, lambda rows: [{**row, "image": f"{row['image']}.jpg"} for row in rows])
    assert brisc(copy, "test", tmp_path, size=64).key == brisc(folder, "test", tmp_path, size=64).key
    rewrite(copy, lambda rows: rows.append({**rows[0], "image": rows[0]["image"].removesuffix(".jpg")}))
    with pytest.raises(InputError, match="Line 34 of the table: train_000 is listed twice"):
        brisc(copy, "test", tmp_path, size=64)


def test_names_from_macos_are_those_of_the_table(folder, tmp_path):
    copy = broken(folder, tmp_path)
    for kind, ending in (("images", "jpg"), ("masks", "png")):  # the table as a spreadsheet writes it, the files as macOS does
        (copy / kind / "test" / f"test_028.{ending}").rename(copy / kind / "test" / f"fu\u0308r_028.{ending}")
    rewrite(copy, lambda rows: [{**row, "image": row["image"].replace("test_028", "f\u00fcr_028")} for row in rows])
    found = brisc(copy, "test", tmp_path, size=64)
    assert "f\u00fcr_028" in found.column("image") and all(Path(row["file"]).is_file() for row in found.table)


def test_two_splits_may_use_one_name(folder, tmp_path):
    copy = broken(folder, tmp_path)
    for kind, ending in (("images", "jpg"), ("masks", "png")):
        (copy / kind / "test" / f"test_028.{ending}").rename(copy / kind / "test" / f"train_003.{ending}")
    rewrite(copy, lambda rows: [{**row, "image": row["image"].replace("test_028", "train_003")} for row in rows])
    assert "train_003" in brisc(copy, "test", tmp_path, size=64).column("image") and len(brisc(copy, "train", tmp_path, size=64)) == 28


def test_a_patient_in_two_splits_is_a_leak(folder, tmp_path):
    from cers.training.config import TrainConfig
    from cers.training.datasets import open_dataset
    from cers.training.splits import LeakError, make_split

    copy = broken(folder, tmp_path)
    rewrite(copy, lambda rows: [{**row, "Patient": "Anna" if n in (3, 30) else ""} for n, row in enumerate(rows)])
    data = open_dataset(copy, [], 64, "acquisition", tmp_path / "cache")
    with pytest.raises(LeakError, match="between train") as caught:
        make_split(data, TrainConfig(data=str(copy), labelled=1.0, validation=0.0))
    assert "Anna" not in repr(data.table) + str(caught.value) + repr(caught.value.split.report)
    assert caught.value.split.report["by"].startswith("group, patient, identical files")


@pytest.mark.parametrize(("told", "modality"), [(("", ""), "MR"), (("us", ""), "US"), (("mri", "MR"), "MR"), (("US", "XA"), None)])
def test_the_model_is_of_the_modality_that_the_table_tells(folder, tmp_path, told, modality):
    from cers.training.datasets import open_dataset

    copy = broken(folder, tmp_path)
    rewrite(copy, lambda rows: [{**row, "modality": told[n % 2]} for n, row in enumerate(rows)])
    assert open_dataset(copy, [], 64, "acquisition", tmp_path / "cache").modality == modality


def test_pictures_are_read_as_the_modality_that_the_table_tells(folder, tmp_path):
    copy = broken(folder, tmp_path)
    before = brisc(copy, "test", tmp_path / "cache", size=64).images.copy()
    rewrite(copy, lambda rows: [{**row, "modality": "CT" if row["image"] == "test_028" else ""} for row in rows])
    after = brisc(copy, "test", tmp_path / "cache", size=64)
    image = read_volume(copy / "images" / "test" / "test_028.jpg").array
    frame = Frame.around(body_box(image, "CT"), image.shape[1:], (1.0, 1.0), 64)
    assert np.abs(after.images[0] - frame.crop(scale_intensities(image, "CT"))[0, 0].numpy() * 255).max() <= 0.5
    assert not np.array_equal(after.images[0], before[0]) and np.array_equal(after.images[1:], before[1:])


@pytest.mark.parametrize("kind", ["pictures", "pool"])
def test_an_unlabelled_volume_that_holds_a_held_out_picture_is_left_out(folder, tmp_path, kind):
    """Whichever slice it is, and in other units: no name, patient or file tells of it."""
    source = folder if kind == "pictures" else pool_of(tmp_path / "pool", 6)
    scans, rng = tmp_path / "scans", np.random.default_rng(5)
    scans.mkdir()
    config = settings(source, labelled=1.0, unlabelled=[str(scans)])
    data, split = opened(replace(config, unlabelled=[]), tmp_path)
    held, learned = (data.column("image")[rows][0] for rows in (split.validation, split.labelled))
    for name, image in (("held", held), ("learned", learned), ("other", None)):
        scan = np.stack([_picture(rng, 80)[0] for _ in range(6)]).astype(np.float32)
        if image is not None and kind == "pool":
            with Pool.open(source, read_only=True) as pool:
                scan[1] = 0.5 * pool.get(image).image
        elif image is not None:
            scan[1] = 0.5 * read_volume(folder / "images" / "train" / f"{image}.jpg").array[0]
        volume = sitk.GetImageFromArray(scan)
        volume.SetSpacing((1.0, 1.0, 5.0))
        sitk.WriteImage(volume, str(scans / f"{name}.nii.gz"))
    data, split = opened(config, tmp_path)
    assert split.report["set_aside"] == ["held"] and set(data.column("item")[split.unlabelled]) == {"learned", "other"}
    kin = {name: split.kin[data.column("item") == name] for name in ("learned", "other")}
    assert set(kin["learned"]) <= set(split.kin[split.labelled]) and not set(kin["other"]) & set(split.kin[split.labelled])
