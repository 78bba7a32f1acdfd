"""Pictures become frames; nothing leaks between splits, groups and caches."""

from __future__ import annotations

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from cers.errors import InputError
from cers.training.data import brisc
from cers.training.episodes import Episodes, cached, neighbours, rationale_vectors, split_by_group


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


@pytest.mark.parametrize("damage", ["missing mask", "missing picture", "other size", "no picture", "no table", "no column", "no such split", "binary table"])
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
    assert {"missing mask": "train_003.png", "missing picture": "train_003.jpg", "other size": "train_003", "no picture": "train_003.jpg",
            "no table": "cases.csv", "no column": "group", "no such split": "validation", "binary table": "cases.csv"}[damage] in message
    assert not list((tmp_path / "cache").glob("*.npy")) if (tmp_path / "cache").exists() else True


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.5])
def test_a_group_is_never_split(slices, seed, fraction):
    train, held = split_by_group(slices.table, fraction, seed)
    groups = slices.column("group")
    assert sorted([*train, *held]) == list(range(28))
    assert not set(groups[train]) & set(groups[held])
    assert len(set(groups[held])) == round(24 * fraction)
    again = split_by_group(slices.table, fraction, seed)
    assert np.array_equal(train, again[0])


def vectors(n, seed=0):
    v = np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_neighbours_are_the_nearest_but_never_kin(slices):
    groups, v = slices.column("group"), vectors(28)
    near = neighbours(v, slices.images, groups, count=6)
    thumbs = slices.images.reshape(28, 32, 2, 32, 2).mean((2, 4)).reshape(28, -1)
    for n in range(28):
        assert len(set(near[n])) == 6 and n not in near[n]
        assert groups[n] not in groups[near[n]]
        assert all(np.corrcoef(thumbs[n], thumbs[m])[0, 1] <= 0.991 for m in near[n])
        allowed = [m for m in np.argsort(-(v @ v[n]), kind="stable") if groups[m] != groups[n]]
        assert near[n][0] == allowed[0]


def test_near_duplicates_that_no_group_names_are_found_by_their_pictures(slices):
    """The four twins differ by noise only."""
    near = neighbours(np.ones((28, 4), np.float32) / 2, slices.images, np.array([str(n) for n in range(28)]), count=12)
    for twin in range(4):
        assert twin not in near[24 + twin] and 24 + twin not in near[twin]


def test_few_pictures_repeat_and_none_at_all_is_said(slices):
    images, groups = np.asarray(slices.images[:5]), np.array(["a", "a", "b", "b", "c"])
    near = neighbours(vectors(5), images, groups, count=12)
    assert near.shape == (5, 12)
    assert all(groups[n] not in groups[near[n]] for n in range(5))
    with pytest.raises(InputError, match="unrelated"):
        neighbours(vectors(3), images[:3], np.array(["a", "a", "a"]))


def episodes(slices, seed=0, **settings):
    groups = slices.column("group")
    near = neighbours(vectors(28), slices.images, groups, count=10)
    return Episodes(np.arange(28), near, np.random.default_rng(seed), related=groups, **settings), groups


def test_an_episode_is_an_anchor_and_its_neighbours(slices):
    source, _ = episodes(slices, groups=3, members=4)
    for _ in range(20):
        rows = source.draw().reshape(3, 4)
        for anchor, *others in rows:
            assert set(others) <= set(source.near[anchor]) and len(set(others)) == 3


def test_shares_of_null_and_random_references(slices):
    source, _ = episodes(slices, groups=4, members=5, null=0.25, random=0.15)
    nothing = foreign = total = 0
    for _ in range(150):
        source.draw()
        index, valid = (t.numpy() for t in source.references())
        assert index.shape == valid.shape == (20, 4)
        own = index // 5 == np.arange(20)[:, None] // 5
        assert all(o.all() or not o.any() for o in own)
        nothing += (~valid.any(1)).sum()
        foreign += (~own[:, 0]).sum()
        total += 20
    assert 0.22 < nothing / total < 0.34                   # the drawn share, and a few whose only reference was kin
    assert 0.12 < foreign / total < 0.18


def test_no_query_refers_to_itself_or_to_a_near_duplicate(slices):
    source, groups = episodes(slices, groups=4, members=5, null=0.0, random=0.4)
    kin = 0
    for _ in range(200):
        rows = source.draw()
        index, valid = (t.numpy() for t in source.references())
        for q in range(20):
            used = index[q][valid[q]]
            assert q not in index[q]
            assert groups[rows[q]] not in groups[rows[used]]
            kin += groups[rows[q]] in groups[rows[index[q]]]
    assert kin                                              # it does happen, so the check means something


def test_extremes_of_the_shares(slices):
    for null, random, any_valid in ((1.0, 0.0, False), (0.0, 0.0, True)):
        source, _ = episodes(slices, groups=2, members=3, null=null, random=random)
        source.draw()
        assert bool(source.references()[1].any()) is any_valid


def test_rationales_of_empty_masks_are_zero(slices, embedder):
    few = type(slices)(slices.images[:4], slices.masks[:4], slices.table[:4])
    masks = np.array(few.masks)
    masks[2] = 0
    found = rationale_vectors(few, embedder, masks)
    assert found.shape == (4, embedder.dimension) and (found[2] == 0).all()
    assert np.allclose(np.linalg.norm(found[[0, 1, 3]], axis=1), 1, atol=1e-5)
    assert (rationale_vectors(few, embedder, masks * 0) == 0).all()


def test_an_array_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return np.arange(3)

    for _ in range(2):
        assert np.array_equal(cached(tmp_path / "a.npy", make), [0, 1, 2])
    assert len(made) == 1 and [p.name for p in tmp_path.iterdir()] == ["a.npy"]
