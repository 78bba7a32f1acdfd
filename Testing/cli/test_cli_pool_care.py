"""``cers pool``: review, restore, audit, health, export, merge."""

from __future__ import annotations

import json


def listed(cers, pool, *options):
    return [c["id"] for c in json.loads(cers("pool", "list", pool, "--json", *options)[1])]


def test_review_delete_restore_audit(cers, pool, tmp_path):
    ids = listed(cers, pool)
    assert cers("pool", "review", pool, "excluded", ids[0][:10], "--note", "blurred", "--who", "Ana")[0] == 0
    assert listed(cers, pool, "--review", "excluded") == ids[:1]
    code, _, err = cers("pool", "review", pool, "superb", ids[0])
    assert code == 1 and "approved" in err
    code, out, _ = cers("pool", "delete", pool, ids[0], "--yes", "--who", "Ana")
    assert code == 0 and "restore" in out and listed(cers, pool) == ids[1:]
    assert ids[0] in cers("pool", "restore", pool)[1] and json.loads(cers("pool", "restore", pool, "--json")[1])[0]["who"] == "Ana"
    assert cers("pool", "restore", pool, "zzz")[0] == 1
    assert cers("pool", "restore", pool, ids[0][:8])[0] == 0 and set(listed(cers, pool)) == set(ids)
    entries = json.loads(cers("pool", "audit", pool, "--case", ids[0][:10], "--json")[1])
    assert [e["action"] for e in entries[:3]] == ["restored", "trashed", "reviewed"] and entries[2]["note"] == "blurred"
    assert "reviewed" in cers("pool", "audit", pool)[1] and cers("pool", "audit", pool, "--csv", tmp_path / "a.csv")[0] == 0
    for more in ([], ["--json"], ["--csv", tmp_path / "none.csv"]):
        code, out, err = cers("pool", "audit", pool, "--case", "zzz", *more)
        assert code == 1 and out == "" and "'zzz'" in err and not (tmp_path / "none.csv").exists()
    assert (tmp_path / "a.csv").read_text(encoding="utf-8-sig").startswith("created,who,action")
    assert cers("pool", "delete", pool, ids[0], "--yes", "--for-good")[0] == 0 and "0 cases" in cers("pool", "restore", pool)[1]


def test_only_clean_deletes_what_no_case_names(cers, pool):
    left = pool / "arrays" / "ab" / f"ab{'0' * 62}.npz"
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"x")
    code, out, _ = cers("pool", "verify", pool)
    assert code == 0 and "No case names 1 of the image files" in out and left.exists()
    code, _, err = cers("pool", "clean", pool)
    assert code == 2 and "--yes" in err and left.exists()
    assert cers("pool", "clean", pool, "--yes")[1] == "Deleted 1 file.\n" and not left.exists()


def test_an_ambiguous_beginning_is_refused(cers, pool, monkeypatch):
    from cers.pool import Pool

    ids = listed(cers, pool)[:2]
    entries = [{"number": n, "id": i} for n, i in enumerate(("ab1", "ab2", "ab1"))]
    asked = []
    with monkeypatch.context() as m:
        m.setattr(Pool, "trashed", lambda self: entries)
        m.setattr(Pool, "restore", lambda self, numbers, who=None: asked.append(numbers) or numbers)
        code, _, err = cers("pool", "restore", pool, "ab")
        assert code == 1 and "2 cases in the trash have an id that begins with 'ab'" in err and not asked
        assert cers("pool", "restore", pool, "ab1")[0] == 0 and asked == [[0]], "of one case the newest"
        m.setattr(Pool, "ids", lambda self: ["ab1", "ab2"])
        code, _, err = cers("pool", "audit", pool, "--case", "ab")
        assert code == 1 and "2 cases" in err
    assert listed(cers, pool)[:2] == ids


def test_one_of_something_is_not_told_as_several(cers, pool, tmp_path):
    first, second, *more = listed(cers, pool)
    cers("pool", "delete", pool, *more, "--yes", "--for-good")
    assert "Wrote 1 rationale." in cers("rationale", "write", pool, "--case", first, "--again")[1]
    assert "2 cases in this pool have" in cers("pool", "audit", pool, "--case", "")[2]
    cers("pool", "delete", pool, second, "--yes", "--for-good")
    assert "1 case in this pool has" in cers("pool", "audit", pool, "--case", "")[2]
    table = tmp_path / "texts.csv"
    table.write_text("image,cot\nnowhere.png,Texture: dark.\n", encoding="utf-8")
    assert "0 rationales of 1 row; 0 were there already, 1 row has no case in this pool" in cers("rationale", "import", pool, table)[1]
    other = tmp_path / "other"
    assert cers("pool", "create", other)[0] == 0 and "Added 1 case; 0 were here" in cers("pool", "merge", other, pool)[1]
    assert "Added 0 cases; 1 was here already." in cers("pool", "merge", other, pool)[1]


def test_no_other_file_is_replaced(cers, pool, tmp_path):
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"scan")
    for arguments in (["export", pool, scan], ["audit", pool, "--csv", scan]):
        code, _, err = cers("pool", *arguments)
        assert code == 1 and "must end in" in err and scan.read_bytes() == b"scan"
    before = (pool / "pool.sqlite").read_bytes()
    for name in ("pool.sqlite", "x.zip"):
        code, _, err = cers("pool", "export", pool, pool / name)
        assert code == 1 and "inside the pool" in err
    assert (pool / "pool.sqlite").read_bytes() == before and not (pool / "x.zip").exists()


def test_health(cers, pool):
    code, out, err = cers("pool", "health", pool)
    assert code in (0, 1) and "cases" in out and "Traceback" not in err
    assert isinstance(json.loads(cers("pool", "health", pool, "--json")[1]), list)


def test_health_tries_cases_and_goes_on_where_it_was(cers, pool, model):
    total = len(listed(cers, pool))
    code, out, err = cers("pool", "health", pool, "--try", 1, "--model", model, "--device", "cpu")
    assert code in (0, 1) and f"Tried so far: 1 of {total} cases." in out and "Traceback" not in err
    out = cers("pool", "health", pool, "--try", 100, "--model", model, "--device", "cpu")[1]
    assert f"Tried so far: {total} of {total} cases." in out
    code, out, _ = cers("pool", "health", pool, "--try", 1, "--model", model, "--device", "cpu", "--json")
    assert isinstance(json.loads(out), list) and code in (0, 1)
    code, out, err = cers("pool", "health", pool, "--try", 1, "--model", pool / "no model")
    assert code == 1 and err.startswith("Error: ") and not out


def test_export_and_merge(cers, pool, tmp_path):
    ids = listed(cers, pool)
    assert cers("pool", "export", pool, tmp_path / "x.zip")[0] == 0
    cers("pool", "create", tmp_path / "new")
    assert f"Would add {len(ids)}" in cers("pool", "merge", tmp_path / "new", tmp_path / "x.zip", "--dry-run")[1]
    assert len(json.loads(cers("pool", "merge", tmp_path / "new", tmp_path / "x.zip", "--json")[1])["added"]) == len(ids)
    assert listed(cers, tmp_path / "new") == ids and "Added 0 cases" in cers("pool", "merge", tmp_path / "new", pool)[1]
    cers("pool", "delete", tmp_path / "new", ids[0], "--yes")
    told = cers("pool", "merge", tmp_path / "new", pool)[1]
    assert "Added 0 cases" in told and "Left in the trash, where this pool has them: 1 case." in told
    assert cers("pool", "restore", tmp_path / "new", ids[0])[0] == 0
    (tmp_path / "y.zip").write_text("no")
    code, _, err = cers("pool", "merge", tmp_path / "new", tmp_path / "y.zip")
    assert code == 1 and err.startswith("Error: ") and err.count("\n") == 1
