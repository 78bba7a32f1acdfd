"""What goes into a pool comes out again, once, with its history."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from poolkit import case, rationale

from cers.case import Case, Rationale, Statement
from cers.errors import InputError, PoolError
from cers.pool import Pool, image_hash, thumbnail
from cers.pool.records import parse_rationale


@pytest.fixture
def pool(tmp_path):
    with Pool.create(tmp_path / "pool") as pool:
        yield pool


def test_a_case_comes_back_as_it_was(pool):
    matrix = np.array([[0.5, 0.1, 0, 3], [0, -0.7, 0, 4], [0, 0, -6.5, 5], [0, 0, 0, 1]])
    image = np.linspace(-1, 1, 30 * 41, dtype=np.float32).reshape(30, 41)
    mask = np.zeros((30, 41), np.uint8)
    mask[3:9, 4:8], mask[20:25, 30:33] = 3, 7
    before = Case(
        image,
        mask,
        {3: "Ödem", 7: "core"},
        spacing=(0.7, 0.5),
        ijkToRAS=matrix,
        plane="axial",
        slice_index=11,
        patient_id="p",
        volume_id="v",
        group="g",
        modality="MR",
        body_site="brain",
        diagnosis="glioma",
        source="a b.nii",
        annotator="AB",
        rationale=rationale(contrast=1.5),
    )
    case_id = pool.add(before)
    after = pool.get(case_id)
    assert after.image.dtype == np.float32 and np.array_equal(after.image, image) and np.array_equal(after.mask, mask)
    assert np.array_equal(after.ijkToRAS, matrix) and after.rationale == before.rationale
    expected, got = before.metadata(), after.metadata()
    assert got.pop("id") == case_id and got.pop("created") and not expected.pop("id") and not expected.pop("created")
    assert got == expected


def test_older_numpy_takes_every_keyword_for_an_array(pool, monkeypatch):
    """That of Slicer 5.10 knows no allow_pickle here: a third array would make the case unreadable."""
    new = np.savez_compressed

    def old(file, **arrays):
        new(file, **{name.replace("allow_pickle", "third"): array for name, array in arrays.items()})

    monkeypatch.setattr(np, "savez_compressed", old)
    picture = case(3)
    assert np.array_equal(pool.get(pool.add(picture)).image, picture.image)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", "bool"])
def test_every_real_type_of_image_is_kept(pool, dtype):
    image = (np.arange(64).reshape(8, 8) % 2).astype(dtype)
    case_id = pool.add(Case(image, np.eye(8, dtype=np.uint8), {1: "x"}))
    assert pool.get(case_id).image.dtype == np.dtype(dtype)
    assert pool.verify() == []


def test_a_picture_of_objects_or_nothing_is_refused(pool):
    with pytest.raises(InputError, match="real numbers"):
        pool.add(Case(np.ones((4, 4), complex), np.ones((4, 4), np.uint8), {1: "x"}))
    with pytest.raises(InputError, match="real numbers"):
        pool.add(Case(np.ones((0, 4), np.uint8), np.ones((0, 4), np.uint8), {}))
    with pytest.raises(InputError, match="review"):
        pool.add(case(review="great"))
    assert len(pool) == 0 and pool.verify() == []


def test_adding_twice_keeps_one(pool):
    first = pool.add(case(1, source="a"))
    state = pool.state
    assert pool.add(case(1, source="b")) == first
    assert len(pool) == 1 and pool.state == state and pool.meta(first)["source"] == "a"


def test_other_mask_or_label_names_make_another_case(pool):
    one = case(1)
    renamed = Case(one.image, one.mask, {1: "cyst"})
    moved = Case(one.image, np.roll(one.mask, 1, 0), {1: "tumor"})
    assert len({pool.add(c) for c in (one, renamed, moved)}) == 3


def test_list_by_facets(pool):
    ids = [
        pool.add(case(n, modality=("MR", "CT", None)[n % 3], body_site="brain" if n < 4 else "lung", group="g1" if n else None))
        for n in range(6)
    ]
    assert [r["id"] for r in pool.list()] == ids == pool.ids()
    assert [r["id"] for r in pool.list(modality="MR")] == [ids[0], ids[3]]
    assert [r["id"] for r in pool.list(modality=None)] == [ids[2], ids[5]]
    assert [r["id"] for r in pool.list(modality=["CT", None], body_site="lung")] == [ids[4], ids[5]]
    assert [r["id"] for r in pool.list(group=None)] == ids[:1]
    assert pool.list(label="tumor", body_site="lung") and not pool.list(label="cyst")
    assert pool.list(modality=[]) == []
    json.dumps(pool.list())
    with pytest.raises(InputError, match="'colour'"):
        pool.list(colour="red")
    assert [r["id"] for r in pool.list(modality="MR' OR 1=1 --")] == []


def test_delete_takes_everything_but_the_record_of_it(pool):
    keep, gone = pool.add(case(1)), pool.add(case(2, rationale=rationale()))
    pool.set_vectors("image", "m", [keep, gone], np.eye(2))
    pool.review(gone, "flagged", reviewer="R", note="blurred")
    pool.delete(gone)
    assert pool.ids() == [keep] and pool.vectors("image", "m")[0] == [keep]
    assert len(list((pool.folder / "arrays").rglob("*.npz"))) == 1
    assert [e["action"] for e in pool.history(gone)] == ["added", "deleted"]
    for call in (pool.get, pool.meta, pool.delete, lambda i: pool.review(i, "approved"), lambda i: pool.add_rationale(i, rationale())):
        with pytest.raises(PoolError, match=f"no case {gone}"):
            call(gone)
    assert pool.verify() == []
    assert pool.add(case(2)) == gone and pool.get(gone).rationale is None


def test_rationale_versions_and_reviews_stay(pool):
    case_id = pool.add(case(1, rationale=rationale("First.")))
    assert pool.add_rationale(case_id, rationale("Second.")) == 2
    assert pool.get(case_id).rationale.text == pool.meta(case_id)["rationale"]["text"] == "Texture: Second."
    assert [r.text for r in pool.rationale_versions(case_id)] == ["Texture: First.", "Texture: Second."]
    assert pool.rationales([case_id, "nobody"])[case_id][0] == 2
    pool.review(case_id, "excluded", reviewer="R", note="wrong side")
    pool.update(case_id, body_site="brain", diagnosis="glioma")
    assert (pool.get(case_id).review, pool.get(case_id).body_site) == ("excluded", "brain")
    actions = [e["action"] for e in pool.history(case_id)]
    assert sorted(actions) == ["added", "changed", "rationale", "rationale", "reviewed"]
    with pytest.raises(InputError, match="review must be"):
        pool.review(case_id, "bad")
    with pytest.raises(InputError, match="content_hash"):
        pool.update(case_id, content_hash="x")


def test_short_forms_are_kept_and_records_without_them_are_read(pool):
    words = Rationale([Statement("texture", "Isointense to the surrounding tissue (-2 %).", "contrast", -2.3, "%", "Isointense -2%.")])
    case_id = pool.add(case(1, rationale=words))
    back = pool.get(case_id).rationale
    assert back == words and back.compact == "Texture: Isointense -2%." and "surrounding tissue" in back.text
    assert Rationale.from_dict(pool.meta(case_id)["rationale"]) == words
    record = words.to_dict()
    del record["statements"][0]["short"]
    old = parse_rationale(case_id, json.dumps(record))
    assert old.compact == old.text == words.text


def test_hash_is_of_content_not_of_history(tmp_path):
    with Pool.create(tmp_path / "a") as a, Pool.create(tmp_path / "b") as b:
        for n in (1, 2, 3):
            a.add(case(n, rationale=rationale()))
        for n in (3, 1, 4, 2):
            b.add(case(n, rationale=rationale()))
        assert a.hash() != b.hash()
        b.delete(b.add(case(4)))
        assert a.hash() == b.hash()
        a.add_rationale(a.ids()[0], rationale("Other."))
        assert a.hash() != b.hash()
        middle = b.hash()
        b.review(b.ids()[0], "excluded")
        assert b.hash() != middle


def test_vectors_are_unit_and_stale_ones_are_noticed(pool):
    ids = [pool.add(case(n, rationale=rationale() if n else None)) for n in range(3)]
    assert pool.stale("image", "m") == ids and pool.stale("thumbnail", "thumbnail-1") == []
    assert pool.stale("rationale", "t") == ids[1:], "a case without a rationale has nothing to embed"
    pool.set_vectors("image", "m", ids[:2], [[3, 4, 0], [0, 0, 2]])
    assert pool.stale("image", "m") == ids[2:] and pool.stale("image", "other model") == ids
    found, vectors = pool.vectors("image", "m")
    assert found == ids[:2] and vectors.dtype == np.float32 and np.allclose(vectors, [[0.6, 0.8, 0], [0, 0, 1]])
    pool.set_vectors("rationale", "t", ids[1:], np.eye(2))
    assert pool.stale("rationale", "t") == []
    pool.add_rationale(ids[1], rationale("Changed."))
    assert pool.stale("rationale", "t") == [ids[1]] and pool.vectors("rationale", "t")[0] == [ids[2]]
    assert pool.stale("image", "m") == ids[2:], "image vectors do not depend on the words"


def test_a_vector_of_old_words_stays_stale(pool):
    case_id = pool.add(case(1, rationale=rationale("Old.")))
    version, _ = pool.rationales([case_id])[case_id]
    pool.add_rationale(case_id, rationale("New."))  # while the old words were being embedded
    pool.set_vectors("rationale", "t", [case_id], np.ones((1, 4)), versions={case_id: version})
    assert pool.stale("rationale", "t") == [case_id]


def test_bad_vectors_are_refused(pool):
    case_id = pool.add(case(1))
    for vectors in ([[np.nan, 1]], [[0, 0]], [1, 2], [[1, 2], [3, 4]]):
        with pytest.raises(PoolError):
            pool.set_vectors("image", "m", [case_id], np.array(vectors))
    with pytest.raises(PoolError, match="kind"):
        pool.set_vectors("sound", "m", [case_id], np.ones((1, 2)))
    pool.set_vectors("image", "m", [case_id, "deleted meanwhile"], np.ones((2, 2)))
    with pytest.raises(PoolError, match="2 numbers, the new ones 3"):
        pool.set_vectors("image", "m", [case_id], np.ones((1, 3)))
    pool.set_vectors("image", "m", [], np.empty((0, 2)))
    assert pool.vectors("image", "m")[0] == [case_id]
    assert pool.vectors("image", "never")[1].shape == (0, 0)


def test_threads_share_one_pool(pool):
    errors = []

    def work(start):
        try:
            for n in range(start, start + 8):
                case_id = pool.add(case(n))
                assert pool.get(case_id).id == case_id
        except Exception as error:  # any error of a thread fails the test
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 4, 8, 12)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors and len(pool) == 20 and pool.verify() == []


def test_thumbnail_knows_a_picture_again():
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 200, (16, 16)), np.ones((16, 16)))
    small = thumbnail(picture)
    assert small.shape == (1024,) and small.dtype == np.float32 and np.isclose(np.linalg.norm(small), 1, atol=1e-5)
    assert small @ thumbnail(picture * 3 + 40) > 0.9999, "brightness and contrast do not count"
    assert small @ thumbnail(picture[::2, ::2]) > 0.99, "size does not count"
    assert small @ thumbnail(picture + rng.normal(0, 5, picture.shape)) > 0.99
    assert abs(small @ thumbnail(picture.T)) < 0.5
    assert not thumbnail(np.full((20, 20), 7.0)).any() and not thumbnail(np.full((20, 20), 1e9, np.float32)).any()
    assert image_hash(picture) != image_hash(picture.astype(np.float32))
