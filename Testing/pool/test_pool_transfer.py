"""Export and merge: nothing lost, nothing twice, nothing from a damaged file; and what a pool from elsewhere may hold."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import zipfile

import pytest
from poolkit import case, overwrite, python, rationale

from cers.errors import Cancelled, InputError, PoolError
from cers.pool import Pool, arrays, export_pool, merge


@pytest.fixture
def pool(tmp_path):
    with Pool.create(tmp_path / "pool") as made:
        for n in range(3):
            made.add(case(n, rationale=rationale(f"Number {n}."), patient_id=f"p{n}", modality="MR"))
        made.add_rationale(made.ids()[0], rationale("Second."))
        made.review(made.ids()[1], "approved", reviewer="Ana", note="good")
        made.edit([made.ids()[2]], {}, rename={"tumor": "glioma"})
        yield made


@pytest.fixture
def other(tmp_path):
    with Pool.create(tmp_path / "other") as made:
        yield made


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_everything_arrives_once(pool, other, tmp_path, form):
    source = tmp_path / "x.zip" if form == "zip" else pool.folder
    if form == "zip":
        assert export_pool(pool, source) == 3
    assert len(merge(other, source, dry_run=True).added) == 3 and len(other) == 0
    report = merge(other, source, who="Bob")
    assert report.added == pool.ids() == other.ids() and not report.faults and other.verify() == []
    assert other.hash() == pool.hash()
    for i in pool.ids():
        assert other.meta(i) == pool.meta(i)
        assert [(v["version"], v["created"]) for v in other.version_list(i)] == [(v["version"], v["created"]) for v in pool.version_list(i)]
    assert [e["note"] for e in other.history(pool.ids()[1]) if e["action"] == "reviewed"] == ["good"]
    assert other.audit()[0]["who"] == "Bob" and other.stale("thumbnail", "thumbnail-1") == []
    again = merge(other, source)
    assert again.added == [] and again.present == pool.ids() and again.different == {} and other.hash() == pool.hash()


def test_what_a_killed_export_left_is_cleared_by_the_next_one(pool, tmp_path):
    killed = """
import os, sys
from cers.pool import Pool, export_pool
with Pool.open(sys.argv[1]) as pool:
    export_pool(pool, sys.argv[2], progress=lambda f, words: f > 0.5 and os._exit(9))
"""
    target = tmp_path / "out" / "x [1].zip"
    target.parent.mkdir()
    assert python(killed, pool.folder, target, wait=False).wait(60) == 9
    (left,) = target.parent.iterdir()
    (other := target.parent / ".y.zip-abc.part").write_bytes(b"of another file")
    for path in (left, other):
        os.utime(path, (0, 0))
    export_pool(pool, target)
    assert sorted(target.parent.iterdir()) == [other, target]


def test_own_case_stays_and_differences_are_told(pool, other, tmp_path):
    export_pool(pool, tmp_path / "x.zip", pool.ids()[:1])
    other.add(case(0, modality="CT", rationale=rationale("Mine.")))
    report = merge(other, tmp_path / "x.zip")
    assert report.different == {pool.ids()[0]: ["modality", "rationale"]} and other.meta(pool.ids()[0])["modality"] == "CT"


def test_what_was_deleted_here_is_not_brought_back(pool, other, tmp_path):
    export_pool(pool, tmp_path / "x.zip")
    merge(other, tmp_path / "x.zip")
    gone = other.ids()[::2]  # one of them renamed
    numbers = other.trash(gone)
    for dry in (True, False):
        report = merge(other, tmp_path / "x.zip", dry_run=dry)
        assert report.added == [] and report.trashed == gone and other.ids() == pool.ids()[1:2]
    other.purge(numbers[:1])
    assert merge(other, tmp_path / "x.zip").added == gone[:1]  # deleted for good: nothing else could bring it back
    assert other.restore(numbers[1:]) == gone[1:] and other.hash() == pool.hash()


@pytest.mark.parametrize("field,value", [("plane", "sagittal"), ("group", "g9")])
def test_plane_and_group_are_compared_too(pool, other, tmp_path, field, value):
    one = pool.ids()[0]
    export_pool(pool, tmp_path / "x.zip", [one])
    merge(other, tmp_path / "x.zip")
    other.edit([one], {field: value})
    assert merge(other, tmp_path / "x.zip").different == {one: [field]} and other.meta(one)[field] == value


def test_a_damaged_case_is_named_and_the_rest_arrives(pool, other, tmp_path):
    export_pool(pool, tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as old, zipfile.ZipFile(tmp_path / "y.zip", "w") as new:
        first = next(n for n in old.namelist() if n.endswith(".npz"))
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data[:-3] if name == first else data)
    report = merge(other, tmp_path / "y.zip")
    assert len(report.added) == 2 and len(report.faults) == 1 and "checksum" in report.faults[0] and other.verify() == []


def manifest(path, change):
    """Change the list of cases of an export and make its checksum right again."""
    with zipfile.ZipFile(path) as old:
        files = {n: old.read(n) for n in old.namelist()}
    content = json.loads(files["manifest.json"])
    change(content)
    data = files["manifest.json"] = json.dumps(content).encode()
    files["manifest.json.sha256"] = hashlib.sha256(data).hexdigest().encode()
    with zipfile.ZipFile(path, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)


@pytest.mark.parametrize("change", [
    lambda c: c["cases"][0]["case"].update(labels={"1": "other"}),
    lambda c: c["cases"][0]["case"].pop("labels"),
    lambda c: c["cases"][0]["rationales"][0].update(record={"statements": 3}),
    lambda c: c["cases"][0].update(file="../../../etc/passwd"),
    lambda c: c["cases"].__setitem__(0, "text"),
    lambda c: c["cases"][0]["case"].update(review="great"),
    lambda c: c["cases"][0]["case"].update(spacing=[0, 0]),
    lambda c: c["cases"][0]["case"].update(spacing=[float("nan"), 1]),
    lambda c: c["cases"][0]["case"].update(ijkToRAS=[[1, 0, 0]] * 3),
    lambda c: c["cases"][0]["case"].update(slice_index=1 << 70),
    lambda c: c["cases"][0]["case"].update(plane="diagonal"),
    lambda c: c["cases"][0]["case"].update(diagnosis={"a": 1}),
    lambda c: c["cases"][0].update(reviews=[{"review": "approved", "reviewer": {"a": 1}, "note": None, "created": "2020"}]),
    lambda c: c["cases"][0]["rationales"][0]["record"].update(descriptors={"contrast": "high"}),
    lambda c: c["cases"][0]["rationales"][0]["record"].update(descriptors={"contrast": float("nan")}),
    lambda c: c["cases"][0]["rationales"][0]["record"]["statements"][0].update(part="weather"),
    lambda c: c["cases"][0]["rationales"][0]["record"]["statements"][0].update(text=5),
])  # fmt: skip
def test_a_record_that_was_tampered_with(pool, other, tmp_path, change):
    export_pool(pool, tmp_path / "x.zip")
    manifest(tmp_path / "x.zip", change)
    report = merge(other, tmp_path / "x.zip")
    assert len(report.added) == 2 and len(report.faults) == 1 and other.verify() == [], report


def array_file(**raw: bytes) -> bytes:
    """An .npz file of members as they are given."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in raw.items():
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


def header(text: str) -> bytes:
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("image", [
    header("{'descr': '|u1', 'fortran_order': False, 'shape': (4194304, 4194304), }"),
    header("(" * 117),
    header("{'descr': '|u1', 'fortran_order': False, 'shape': (8, 8), }") + bytes(20_000),
])  # fmt: skip
def test_an_array_file_that_claims_too_much_is_named(pool, other, tmp_path, image, monkeypatch):
    monkeypatch.setattr(arrays, "LARGEST", 10_000)
    export_pool(pool, tmp_path / "x.zip")
    data = array_file(image=image, mask=image)
    sha256 = hashlib.sha256(data).hexdigest()
    manifest(tmp_path / "x.zip", lambda c: c["cases"][0].update(file=sha256))
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as archive:
        archive.writestr(f"arrays/{sha256}.npz", data)
    report = merge(other, tmp_path / "x.zip")
    assert len(report.added) == 2 and len(report.faults) == 1 and "not a valid array file" in report.faults[0], report


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06" + bytes(18), b"no zip at all"])
def test_what_is_no_export(other, tmp_path, data):
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(InputError):
        merge(other, tmp_path / "x.zip")
    with pytest.raises(InputError):
        merge(other, tmp_path / "none.zip")
    with pytest.raises(PoolError):
        merge(other, tmp_path / "pool-less" if (tmp_path / "pool-less").mkdir() else tmp_path / "pool-less")


def test_newer_and_damaged_lists_are_refused(pool, other, tmp_path):
    export_pool(pool, tmp_path / "x.zip")
    manifest(tmp_path / "x.zip", lambda c: c.update(format=9))
    with pytest.raises(InputError, match="newer"):
        merge(other, tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr("manifest.json.sha256", "0")
    with pytest.raises(InputError, match="checksum"):
        merge(other, tmp_path / "y.zip")
    with pytest.raises(InputError, match="itself"):
        merge(other, other.folder)


def test_cancel_keeps_what_was_merged_and_leaves_no_half_file(pool, other, tmp_path):
    export_pool(pool, tmp_path / "x.zip")
    calls = iter([False, False, True])
    report = merge(other, tmp_path / "x.zip", cancel=lambda: next(calls))
    assert report.cancelled and len(other) == 2 and other.verify() == []
    assert len(merge(other, tmp_path / "x.zip").added) == 1
    with pytest.raises(Cancelled):
        export_pool(pool, tmp_path / "z.zip", cancel=lambda: True)
    assert not (tmp_path / "z.zip").exists() and not list(tmp_path.glob(".*part"))
    with pytest.raises(InputError, match="another folder"):
        export_pool(pool, tmp_path / "no" / "z.zip")
    with pytest.raises(InputError, match="is a folder"):
        export_pool(pool, tmp_path)


@pytest.mark.parametrize("column, value", [("spacing", "[0, 0]"), ("ijkToRAS", "[[1], [1, 2]]"), ("labels", '{"a": "tumor"}')])
def test_a_case_of_impossible_numbers_is_said_plainly(tmp_path, column, value):
    with Pool.create(tmp_path / "pool") as pool:
        case_id = pool.add(case(1))
        overwrite(tmp_path / "pool", column, value)
        with pytest.raises(PoolError, match=f"{case_id}.*damaged"):
            pool.get(case_id)
        assert [(f.id, f.kind) for f in pool.verify()] == [(case_id, "case")]


@pytest.mark.parametrize("absolute", [True, False])
def test_a_pool_from_elsewhere_reaches_no_file_outside_its_folder(tmp_path, absolute):
    (tmp_path / "mine.npz").write_bytes(b"x")
    with Pool.create(tmp_path / "pool") as pool:
        case_id, other = pool.add(case(1)), pool.add(case(2))
        with sqlite3.connect(tmp_path / "pool" / "pool.sqlite") as db:
            name = str(tmp_path / "mine") if absolute else "../../../../../mine"
            db.execute("UPDATE cases SET file = ? WHERE id = ?", (name, case_id))
        db.close()
        (tmp_path / "pool" / "arrays" / name[:2]).mkdir(exist_ok=True)
        with pytest.raises(PoolError, match="no pool has"):
            pool.get(case_id)
        pool.delete(case_id)
        assert pool.ids() == [other] and (tmp_path / "mine.npz").read_bytes() == b"x"


def test_what_is_told_of_an_unreadable_rationale_helps(tmp_path):
    with Pool.create(tmp_path / "pool") as pool:
        case_id = pool.add(case(1, rationale=rationale("Sharp.")))
        with sqlite3.connect(tmp_path / "pool" / "pool.sqlite") as db:
            db.execute("UPDATE rationales SET record = '{'")
        db.close()
        with pytest.raises(PoolError, match="Delete the case and add it again"):
            pool.get(case_id)
        pool.trash([case_id])
        assert pool.get(pool.add(case(1, rationale=rationale("Sharp.")))).rationale.text == "Texture: Sharp."
