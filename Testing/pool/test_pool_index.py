"""The derived index: right answers, and rebuilt whenever it is not the pool's own."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from poolkit import case, python

from cers.pool import Pool
from cers.pool import index as pool_index
from cers.pool.index import VectorIndex, _build


@pytest.fixture
def filled(tmp_path):
    with Pool.create(tmp_path) as pool:
        ids = [pool.add(case(n)) for n in range(12)]
        rng = np.random.default_rng(0)
        pool.set_vectors("image", "m", ids, rng.standard_normal((12, 20)))
        yield pool


def file_of(pool):
    return next((pool.folder / "derived").glob("image-*.index"))


@pytest.mark.parametrize("with_faiss", [pytest.param(True, marks=pytest.mark.skipif(sys.platform == "darwin", reason="not used")), False])
@pytest.mark.parametrize("n", [1, 7, 3000])
def test_same_answers_as_exhaustive_search(n, with_faiss, monkeypatch):
    monkeypatch.setattr(pool_index, "_WITH_FAISS", with_faiss)
    rng = np.random.default_rng(n)
    vectors = rng.standard_normal((n, 96)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = VectorIndex([f"{i:05d}" for i in range(n)], _build(vectors), "")
    admissible = rng.random(n) < 0.5
    admissible[0] = True
    recall = []
    for query in vectors[:: max(1, n // 40)]:
        for allowed in (None, admissible):
            rows, scores = index.search(query, 20, allowed)
            truth = vectors @ query
            truth = np.where(True if allowed is None else allowed, truth, -9)
            best = np.argsort(-truth)[: min(20, int(n if allowed is None else allowed.sum()))]
            assert len(rows) == len(best) and (np.diff(scores) <= 0).all() and np.allclose(scores, truth[rows], atol=1e-3)
            recall.append(len(set(rows) & set(best)) / len(best))
    assert np.mean(recall) >= 0.99
    assert np.allclose(index.cosines(vectors[0], np.arange(min(n, 5))), vectors[:5] @ vectors[0], atol=1e-3)


def test_equal_vectors_come_in_the_order_of_ids(tmp_path):
    with Pool.create(tmp_path) as pool:
        ids = [pool.add(case(n)) for n in range(6)]
        pool.set_vectors("image", "m", ids, np.ones((6, 8)))
        assert [i for i, _ in pool.index("image", "m").nearest(np.ones(8) / 8**0.5, 6)] == sorted(ids)


def test_an_empty_index_finds_nothing(tmp_path):
    with Pool.create(tmp_path) as pool:
        assert pool.index("image", "m").nearest(np.ones(4)) == [] and len(pool.index("image", "m")) == 0


def test_the_kept_index_of_an_empty_pool_is_read_again(tmp_path):
    Pool.create(tmp_path).close()
    for _ in range(2):  # as two programs, one after the other
        with Pool.open(tmp_path) as pool:
            assert pool.index("image", "m").nearest(np.ones(4)) == []
    assert list((tmp_path / "derived").glob("image-*.index"))


def test_nothing_admissible_finds_nothing(filled):
    rows, _ = filled.index("image", "m").search(np.ones(20), 5, np.zeros(12, bool))
    assert len(rows) == 0


def test_rebuilt_when_and_only_when_vectors_change(filled):
    first = filled.index("image", "m")
    assert filled.index("image", "m") is first
    filled.review(first.ids[0], "approved")
    assert filled.index("image", "m") is first, "a review does not touch vectors"
    new = filled.add(case(99))
    filled.set_vectors("image", "m", [new], np.ones((1, 20)))
    second = filled.index("image", "m")
    assert new in second.ids and second.nearest(np.ones(20) / 20**0.5, 1)[0][0] == new
    filled.delete(new)
    assert new not in filled.index("image", "m").ids


def test_a_change_by_another_process_is_seen(filled):
    filled.index("image", "m")
    python(
        """
import numpy as np
from poolkit import case
from cers.pool import Pool
with Pool.open(sys.argv[1]) as pool:
    pool.set_vectors("image", "m", [pool.add(case(77))], np.ones((1, 20)))
""",
        filled.folder,
    )
    assert len(filled.index("image", "m")) == 13


def test_kept_on_disk_and_used_by_the_next_process(filled, monkeypatch):
    expected = filled.index("image", "m").nearest(np.ones(20) / 20**0.5, 5)
    with Pool.open(filled.folder) as again:
        monkeypatch.setattr(again, "vectors", None)  # would fail if the vectors were read
        assert again.index("image", "m").nearest(np.ones(20) / 20**0.5, 5) == expected


@pytest.mark.parametrize("damage", ["flip", "cut", "header", "empty", "garbage", "list"])
def test_a_damaged_index_is_rebuilt(filled, damage):
    expected = filled.index("image", "m").nearest(np.ones(20) / 20**0.5, 5)
    path, data = file_of(filled), bytearray(file_of(filled).read_bytes())
    data[-20] ^= 0xFF
    path.write_bytes(
        {"flip": data, "cut": data[:-100], "header": data[5:], "empty": b"", "garbage": b"\xff" * 999, "list": b"[]\n[]\n"}[damage]
    )
    with Pool.open(filled.folder) as again:
        assert again.index("image", "m").nearest(np.ones(20) / 20**0.5, 5) == expected
    with Pool.open(filled.folder) as again:
        again.vectors = None
        again.index("image", "m")  # and the rebuilt one was kept


def test_an_index_of_another_pool_or_time_is_not_believed(filled, tmp_path_factory):
    filled.index("image", "m")
    old = file_of(filled).read_bytes()
    ids = filled.ids()
    filled.set_vectors("image", "m", ids, np.random.default_rng(5).standard_normal((12, 20)))
    file_of(filled).write_bytes(old)
    fresh = filled.vectors("image", "m")[1]
    found = filled.index("image", "m").nearest(fresh[3], 1)
    assert found[0][0] == ids[3] and found[0][1] > 0.999


def test_a_full_disk_does_not_stop_the_search(filled, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cers.pool.arrays.write_temporary", full)
    assert len(filled.index("image", "m")) == 12


def test_faiss_is_imported_only_when_needed(filled):
    out = python(
        """
from cers.pool import Pool, Selector
with Pool.open(sys.argv[1]) as pool:
    pool.list(); pool.get(pool.ids()[0]); pool.vectors("image", "m")
    print("faiss" in sys.modules, "torch" in sys.modules)
    pool.index("image", "m")
    print("faiss" in sys.modules, "torch" in sys.modules)
""",
        filled.folder,
    )
    assert out.split() == ["False", "False", str(sys.platform != "darwin"), "False"]


def test_no_faiss_under_macos(filled):
    """There, a process does not survive it and torch together."""
    out = python(
        """
import numpy as np
sys.platform = "darwin"
from cers.pool import Pool
with Pool.open(sys.argv[1]) as pool:
    print(len(pool.index("image", "m").nearest(np.ones(20), 3)), "faiss" in sys.modules)
""",
        filled.folder,
    )
    assert out.split() == ["3", "False"]
