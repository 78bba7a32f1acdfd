"""The record of where cases served as references."""

from __future__ import annotations

import os
import sqlite3

import pytest
from poolkit import case

from cers.case import Coverage, Evidence, Reference
from cers.errors import PoolError
from cers.pool import Pool
from cers.pool.database import FILE, SCHEMA_VERSION
from cers.pool.health import check_health


def evidence(index: int, *references: Reference) -> Evidence:
    return Evidence("axial", index, index, list(references), [], Coverage(0.5, True, ""), None, 10, 0.0, 0.9)


@pytest.fixture
def pool(tmp_path):
    with Pool.create(tmp_path / "pool") as made:
        for n in range(3):
            made.add(case(n, patient_id=f"p{n}", modality="MR", body_site="brain"))
        yield made


def test_uses_are_means_over_slices_and_count_once_a_day(pool):
    a, b, _ = pool.ids()
    state = pool.state
    run = [
        evidence(0, Reference(a, 1, 0.9, 0.8, 0.6, 0.1), Reference(b, 2, 0.8, 0.8, 0.2, None)),
        evidence(1, Reference(a, 1, 0.9, 0.8, 0.4, 0.3)),
    ]
    for _ in range(2):
        assert pool.record_uses("f" * 64, "model", run, "2026-01-02") == 2
    assert pool.uses(a) == [{"day": "2026-01-02", "query": "f" * 16, "model": "model", "slices": 2, "weight": 0.5, "influence": 0.2}]
    assert pool.uses(b)[0]["influence"] is None
    pool.record_uses("f" * 64, "model", run, "2026-01-03")
    pool.record_uses("e" * 64, "model", run[1:])
    assert pool.use_counts() == {a: 2, b: 1} and pool.use_counts([b]) == {b: 1} and pool.queries_recorded() == (2, "2026-01-02")
    assert pool.uses(a)[0]["day"] > "2026-01-03" and len(pool.uses(a, limit=1)) == 1
    assert pool.state == state, "no case changed, so that caches stay good"
    assert pool.record_uses("d" * 64, "model", [evidence(0)]) == 0


def test_uses_outlive_the_trash_and_can_be_switched_off(pool):
    a = pool.ids()[0]
    run = [evidence(0, Reference(a, 1, 0.9, 0.8, 0.6, 0.1))]
    pool.record_uses("f" * 64, "model", run)
    numbers = pool.trash([a])
    pool.restore(numbers)
    assert len(pool.uses(a)) == 1
    pool.set_records_uses(False)
    assert not pool.records_uses and pool.record_uses("e" * 64, "model", run) == 0 and len(pool.uses(a)) == 1
    pool.set_records_uses(True, forget=True)
    assert pool.records_uses and pool.uses(a) == [] and pool.verify() == []


def test_read_only_pool_is_left_alone(pool):
    a = pool.ids()[0]
    with Pool.open(pool.folder, read_only=True) as closed:
        assert closed.record_uses("f" * 64, "m", [evidence(0, Reference(a, 1, 0.9, 0.8))]) == 0
        assert closed.uses(a) == [] and not closed.records_uses
        with pytest.raises(PoolError, match="reading only"):
            closed.set_records_uses(False)


def second_format(folder) -> None:
    with sqlite3.connect(folder / FILE) as db:
        db.execute("DROP TABLE uses")
        db.execute("PRAGMA user_version = 2")
    db.close()


def test_pool_of_the_second_format(pool):
    a = pool.ids()[0]
    pool.close()
    second_format(pool.folder)
    with Pool.open(pool.folder, read_only=True) as old:
        assert old.uses(a) == [] and old.use_counts() == {} and old.queries_recorded() == (0, None) and check_health(old) is not None
    with Pool.open(pool.folder) as new:
        assert new._db.version == SCHEMA_VERSION and new.uses(a) == [] and new.verify() == []


def test_pool_that_may_not_be_written_opens_for_reading(pool, monkeypatch):
    """An older pool, too: it is read as it is."""
    pool.close()
    second_format(pool.folder)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    before = (pool.folder / FILE).read_bytes()
    with Pool.open(pool.folder) as old:
        assert old.read_only and len(old.rows(old.ids())) == 3 and old.get(old.ids()[0]) is not None and old.trashed() == []
        with pytest.raises(PoolError, match="may write"):
            old.update(old.ids()[0], modality="CT")
    assert (pool.folder / FILE).read_bytes() == before


def test_health_names_cases_never_used(pool):
    a, b, c = pool.ids()
    for n in range(25):
        pool.record_uses(f"{n:016x}", "m", [evidence(0, Reference(a, 1, 0.9, 0.8), Reference(b, 2, 0.9, 0.8))], "2999-01-01")
    found = [f for f in check_health(pool) if f.kind == "unused"]
    assert [f.ids for f in found] == [[c]] and "25 images" in found[0].message
