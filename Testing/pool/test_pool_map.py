"""The map of a pool."""

from __future__ import annotations

import time

import numpy as np
import pytest
from poolkit import case

from cers.pool import Pool
from cers.pool.map import FACETS, principal, project, values


@pytest.fixture
def pool(tmp_path):
    with Pool.create(tmp_path / "pool") as made:
        yield made


def test_axes_are_those_of_the_largest_spread_with_a_fixed_sign():
    rng = np.random.default_rng(0)
    for n, d in ((400, 6), (5, 60)):
        vectors = rng.normal(size=(n, d)).astype(np.float32) * np.linspace(3, 0.1, d).astype(np.float32)
        points, explained = principal(vectors)
        _, singular, axes = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
        wanted = (vectors - vectors.mean(0)) @ axes[:2].T
        np.testing.assert_allclose(np.abs(points), np.abs(wanted), atol=1e-3)
        assert explained == pytest.approx((singular[:2] ** 2).sum() / (singular**2).sum(), rel=1e-4)
        np.testing.assert_array_equal(points, principal(vectors.copy())[0])
    for vectors in (np.zeros((0, 0)), np.zeros((1, 8)), np.ones((7, 3)), np.arange(4.0)[:, None]):
        points, explained = principal(vectors.astype(np.float32))
        assert points.shape == (len(vectors), 2) and np.isfinite(points).all() and 0 <= explained <= 1.0001


def test_empty_pool_then_pictures_then_the_model(pool):
    assert project(pool).ids == [] and values(pool, [])["label"] == []
    ids = [pool.add(case(n, modality="CT" if n % 2 else "MR")) for n in range(6)]
    found = project(pool)
    assert (found.ids, found.source, found.missing) == (ids, "pictures", 0)
    rng = np.random.default_rng(1)
    pool.set_vectors("image", "model", ids[:4], np.r_[rng.normal(5, 0.1, (2, 8)), rng.normal(-5, 0.1, (2, 8))])
    found = project(pool)
    assert (found.ids, found.source, found.missing) == (ids[:4], "model", 2) and found.explained > 0.9
    near, far = np.linalg.norm(found.points[0] - found.points[1]), np.linalg.norm(found.points[0] - found.points[2])
    assert far > 10 * near, "what is alike lies together"


def test_values_by_facet(pool):
    a = pool.add(case(1, modality="MR", annotator="Äne <b>"))
    b = pool.add(case(2))
    pool.review(b, "approved")
    got = values(pool, [a, b, "gone"])
    assert set(got) == set(FACETS)
    assert got["label"] == ["tumor", "tumor", ""] and got["modality"] == ["MR", "", ""] and got["review"] == ["unreviewed", "approved", ""]
    assert got["annotator"][0] == "Äne <b>"


def test_ten_thousand_points():
    vectors = np.random.default_rng(0).normal(size=(10_000, 320)).astype(np.float32)
    start = time.perf_counter()
    points, _ = principal(vectors)
    seconds = time.perf_counter() - start
    print(f"10,000 vectors of 320 numbers: {seconds:.2f} s")
    assert points.shape == (10_000, 2) and seconds < 20
