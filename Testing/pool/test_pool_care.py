"""Edits, reviews, rationale versions, trash, audit, queries; and a pool of the first format."""

from __future__ import annotations

import csv
import shutil
import sqlite3

import numpy as np
import pytest
from poolkit import case, python, rationale

from cers.case import Case, Rationale, Statement
from cers.errors import InputError, PoolError
from cers.pool import Pool, Query, select
from cers.pool.database import _SCHEMA, FILE


@pytest.fixture
def pool(tmp_path):
    with Pool.create(tmp_path / "pool") as made:
        yield made


def old_pool(folder):
    """A pool as the first format kept it, with a review and two rationale versions."""
    with Pool.create(folder) as pool:
        case_id = pool.add(case(1, rationale=rationale("First."), patient_id="p"))
        pool.add_rationale(case_id, rationale("Second."))
        pool.review(case_id, "flagged", reviewer="R", note="blurred")
        pool.set_vectors("image", "m", [case_id], np.ones((1, 4)))
    with sqlite3.connect(folder / FILE) as db:
        for statement in (
            "DELETE FROM provenance WHERE action IN ('reviewed', 'rationale')",
            "DROP INDEX cases_edited",
            "ALTER TABLE cases DROP COLUMN edited_hash",
            "ALTER TABLE provenance DROP COLUMN who",
            "DROP TABLE trash_vectors",
            "DROP TABLE trash",
            "DROP TABLE uses",
            "PRAGMA user_version = 1",
        ):
            db.execute(statement)
        fresh = sqlite3.connect(":memory:")
        fresh.executescript(_SCHEMA)
        tables = "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite%' ORDER BY name"
        assert [*db.execute(tables)] == [*fresh.execute(tables)]
    db.close()
    return case_id


def test_pool_of_the_first_format_opens_and_loses_nothing(tmp_path):
    case_id = old_pool(tmp_path / "p")
    with Pool.open(tmp_path / "p", read_only=True) as pool:  # as it is
        before = pool.hash()
        assert pool.get(case_id).rationale.text == "Texture: Second." and pool.trashed() == [] and pool.verify() == []
        assert pool.info()["cases"] == 1 and pool.audit()[0]["who"] is None and pool.find(case(1).content_hash) == [case_id]
    with Pool.open(tmp_path / "p") as pool:
        assert pool.hash() == before and pool.verify() == [] and pool.vectors("image", "m")[0] == [case_id]
        assert [e["action"] for e in pool.history(case_id)].count("reviewed") == 1
        entries = pool.audit()
        assert {e["action"] for e in entries} == {"added", "reviewed", "rationale"}
        review = next(e for e in entries if e["action"] == "reviewed")
        assert (review["who"], review["after"], review["note"]) == ("R", "flagged", "blurred")
        pool.trash([case_id])
        assert len(pool) == 0
    with Pool.open(tmp_path / "p") as pool:  # a second opening upgrades nothing twice
        assert len(pool.audit()) == len(entries) + 1


def test_upgrade_of_many_programs_at_once(tmp_path):
    case_id = old_pool(tmp_path / "p")
    code = "from cers.pool import Pool\nwith Pool.open(sys.argv[1]) as p: print(len(p.audit()), len(p.trashed()))"
    running = [python(code, tmp_path / "p", wait=False) for _ in range(3)]
    answers = {p.communicate(timeout=60)[0].strip() for p in running}
    assert answers == {"3 0"} and all(p.returncode == 0 for p in running)
    with Pool.open(tmp_path / "p") as pool:
        assert pool.get(case_id)


def test_metadata_edit_is_one_transaction_and_in_the_audit(pool):
    ids = [pool.add(case(n, modality="CT", body_site="brain")) for n in range(3)]
    assert pool.edit(ids, {"modality": "MR", "diagnosis": " glioma "}, who="Ana", note="wrong header") == 3
    assert {m["modality"] for m in pool.list()} == {"MR"} and pool.meta(ids[0])["diagnosis"] == "glioma"
    assert pool.edit(ids, {"modality": "MR"}) == 0
    entries = pool.audit([ids[1]])
    changed = next(e for e in entries if e["field"] == "modality")
    assert (changed["who"], changed["before"], changed["after"], changed["note"]) == ("Ana", "CT", "MR", "wrong header")
    with pytest.raises(PoolError, match="no case nobody"):
        pool.edit([ids[0], "nobody"], {"modality": "US"})
    assert pool.meta(ids[0])["modality"] == "MR", "all or nothing"
    with pytest.raises(InputError, match="plane"):
        pool.edit(ids, {"plane": "diagonal"})
    pool.edit(ids[:1], {"diagnosis": ""})
    assert pool.meta(ids[0])["diagnosis"] is None


def test_a_modality_is_kept_as_its_code_however_it_comes_in(pool):
    added, edited = pool.add(case(1, modality=" mri ")), pool.add(case(2))
    pool.edit([edited], {"modality": "ct"})
    assert pool.get(added).modality == "MR" and pool.get(edited).modality == "CT"
    assert [m["id"] for m in pool.list(modality="Mri")] == [added]
    pool.edit([edited], {"modality": " "})
    assert pool.get(edited).modality is None


def test_a_new_modality_makes_the_picture_vector_stale(pool):
    ids = [pool.add(case(n, modality="CT")) for n in range(2)]
    pool.set_vectors("image", "m", ids, np.eye(2))
    pool.edit([ids[0]], {"modality": "MR"})
    assert pool.stale("image", "m") == [ids[0]] and pool.stale("thumbnail", "thumbnail-1") == []


def test_label_edit_keeps_the_case_known(pool):
    original = case(1)
    case_id, other = pool.add(original), pool.add(case(2))
    before = pool.hash()
    assert pool.edit([case_id, other], {}, rename={"tumor": "glioma"}) == 2
    assert pool.get(case_id).labels == {1: "glioma"} and pool.verify() == [] and pool.hash() != before
    assert pool.add(original) == case_id, "importing the file again adds nothing"
    assert pool.add(Case(original.image, original.mask, {1: "glioma"})) == case_id, "nor does the corrected file"
    assert next(e for e in pool.audit([case_id]) if e["field"] == "labels")["before"] == "tumor"
    pool.edit([case_id, other], {}, rename={"glioma": "tumor"})
    assert pool.hash() == before
    mask = original.mask.copy()
    mask[0, 0] = 2
    two = pool.add(Case(original.image, mask, {1: "core", 2: "edema"}))
    with pytest.raises(InputError, match="same name"):
        pool.edit([two], {}, rename={"core": "edema"})
    with pytest.raises(InputError, match="name"):
        pool.edit([two], {}, rename={"core": " "})


def test_labels_that_make_two_cases_the_same_are_refused(pool):
    a = case(1)
    first, second = pool.add(a), pool.add(Case(a.image, a.mask, {1: "other"}))
    with pytest.raises(PoolError, match=first):
        pool.edit([second], {}, rename={"other": "tumor"})
    assert pool.get(second).labels == {1: "other"}


def test_excluded_case_is_never_a_reference(pool):
    ids = [pool.add(case(n, rationale=rationale())) for n in range(3)]
    pool.set_vectors("image", "m", ids, np.array([[1, 0.0], [1, 0.01], [1, 0.02]]))
    query = Query(np.array([1.0, 0.0]))
    assert len(select(pool, query, "m", None).ids) == 3
    pool.review_cases(ids[:2], "excluded", who="Ana", note="wrong side")
    assert [m["review"] for m in pool.list()] == ["excluded", "excluded", "unreviewed"]
    assert {e["note"] for e in pool.audit() if e["action"] == "reviewed"} == {"wrong side"}
    assert select(pool, query, "m", None).ids == [ids[2]]


def test_rationale_edit_is_a_version_that_keeps_its_measurements(pool):
    measured = Rationale(
        [
            Statement("texture", "Hyperintense (+30 %).", "contrast", 30.0, "%", "Hyperintense 30%."),
            Statement("texture", "Fine."),
            Statement("summary", "A lesion."),
        ],
        {"contrast": 30.0},
    )
    case_id = pool.add(case(1, rationale=measured))
    assert pool.edit_rationale(case_id, {"texture": "Hyperintense (+30 %). Fine."}) == 1, "the same words are no new version"
    assert pool.edit_rationale(case_id, {"texture": "Hyperintense (+30 %).  With a dark rim. Odd."}, who="Ana") == 2
    now = pool.get(case_id).rationale
    assert now.writer == "person" and now.descriptors == {"contrast": 30.0} and now.part("summary") == "A lesion."
    assert [(s.text, s.descriptor) for s in now.statements if s.part == "texture"] == [
        ("Hyperintense (+30 %).", "contrast"),
        ("With a dark rim.", None),
        ("Odd.", None),
    ]
    assert [v["version"] for v in pool.version_list(case_id)] == [2, 1] and pool.rationale_versions(case_id)[0] == measured
    entry = next(e for e in pool.audit([case_id]) if e["field"] == "text")
    assert entry["who"] == "Ana" and "Fine." in entry["before"] and "dark rim" in entry["after"]
    for bad in ({"colour": "x"}, {"texture": "x" * 5000}, {"texture": "", "summary": " "}):
        with pytest.raises(InputError):
            pool.edit_rationale(case_id, bad)
    bare = pool.add(case(2))
    assert pool.edit_rationale(bare, {"summary": "A small lesion."}, version=0) == 1


def test_going_back_to_the_measured_words_brings_their_measurements_back(pool):
    measured = Rationale([Statement("texture", "Hyperintense (+30 %).", "contrast", 30.0, "%", "Hyperintense 30%.")], {"contrast": 30.0})
    case_id = pool.add(case(1, rationale=measured))
    pool.edit_rationale(case_id, {"texture": "Bright."})
    assert pool.edit_rationale(case_id, {"texture": "Hyperintense (+30 %)."}) == 3
    assert pool.get(case_id).rationale.statements == measured.statements


def test_an_edit_of_a_version_that_is_no_longer_current_is_refused(pool):
    case_id = pool.add(case(1, rationale=rationale()))
    assert pool.edit_rationale(case_id, {"boundary": "Sharp."}, version=1) == 2
    with pytest.raises(PoolError, match="Version 2 of this rationale was saved meanwhile"):
        pool.edit_rationale(case_id, {"texture": "Coarse."}, version=1)
    assert pool.get(case_id).rationale.part("boundary") == "Sharp." and pool.meta(case_id)["rationale_version"] == 2


def test_trash_restores_everything(pool):
    keep, gone = pool.add(case(1)), pool.add(case(2, rationale=rationale("One.", contrast=3.0), patient_id="p"))
    pool.add_rationale(gone, rationale("Two."))
    pool.review(gone, "approved", reviewer="R")
    pool.set_vectors("image", "m", [keep, gone], np.eye(2))
    before, hash_ = pool.meta(gone), pool.hash()
    (number,) = pool.trash([gone], who="Ana", note="twice")
    assert pool.ids() == [keep] and pool.vectors("image", "m")[0] == [keep] and pool.info()["trashed"] == 1
    assert pool.trashed()[0]["case"]["patient_id"] == "p" and pool.trashed()[0]["note"] == "twice"
    pool.clean()
    assert pool.verify() == [] and pool.restore([number], who="Ana") == [gone]
    assert pool.meta(gone) == before and pool.hash() == hash_ and pool.vectors("image", "m")[0] == [keep, gone]
    assert [v["version"] for v in pool.version_list(gone)] == [2, 1] and pool.get(gone).mask.any()
    assert [e["action"] for e in pool.audit([gone])][:2] == ["restored", "trashed"]
    with pytest.raises(PoolError, match="no longer in the trash"):
        pool.restore([number])


def test_purge_removes_the_file_and_keeps_the_audit(pool):
    gone = pool.add(case(2))
    pool.trash([gone])
    assert pool.purge(who="Ana") == 1 and pool.trashed() == [] and not list((pool.folder / "arrays").rglob("*.npz"))
    assert pool.audit([gone])[0]["action"] == "deleted" and pool.purge() == 0


def test_case_added_again_while_in_the_trash(pool):
    gone = pool.add(case(2))
    (number,) = pool.trash([gone])
    assert pool.add(case(2)) == gone
    with pytest.raises(PoolError, match="added again"):
        pool.restore([number])
    pool.delete(gone)
    assert len(list((pool.folder / "arrays").rglob("*.npz"))) == 1, "the trash still needs the file"
    assert pool.restore([number]) == [gone] and pool.get(gone).mask.any()


def test_a_renamed_case_does_not_come_back_beside_its_twin(pool):
    case_id = pool.add(case(1))
    pool.edit([case_id], {}, rename={"tumor": "glioma"})
    (number,) = pool.trash([case_id])
    twin = case(1)
    twin.labels = {1: "glioma"}
    pool.add(twin)
    with pytest.raises(PoolError, match="added again meanwhile"):
        pool.restore([number])
    assert len(pool) == 1


def test_trash_is_all_or_nothing(pool):
    case_id = pool.add(case(1))
    with pytest.raises(PoolError, match="nobody"):
        pool.trash([case_id, "nobody"])
    assert pool.ids() == [case_id] and pool.trashed() == []


def test_killed_while_trashing_and_restoring(tmp_path):
    with Pool.create(tmp_path / "p") as pool:
        ids = {pool.add(case(n)) for n in range(4)}
    code = (
        "from cers.pool import Pool\np = Pool.open(sys.argv[1])\nprint('go', flush=True)\n"
        "while True:\n n = p.trash(p.ids()[:2]); p.restore(n)"
    )
    for _ in range(4):
        running = python(code, tmp_path / "p", wait=False)
        running.stdout.readline()
        running.stdout.close()
        try:
            running.wait(0.15)
        except Exception:  # it runs for ever
            running.kill()
        running.wait()
        running.stderr.close()
    with Pool.open(tmp_path / "p") as pool:
        assert set(pool.ids()) | {t["id"] for t in pool.trashed()} == ids and len(pool) + len(pool.trashed()) == 4 and pool.verify() == []


def test_audit_as_csv(pool, tmp_path):
    case_id = pool.add(case(1, source="=cmd|' /C calc'!A0", annotator="Ana"))
    pool.edit([case_id], {"diagnosis": 'Gliom, "grün"'}, who="Jörg")
    pool.review(case_id, "approved", reviewer="Ana", note="ok")
    target = tmp_path / "audit.csv"
    target.write_text("old")
    assert pool.export_audit(target) == 3
    rows = list(csv.DictReader(target.open(encoding="utf-8-sig", newline="")))
    assert [r["action"] for r in rows] == ["added", "changed", "reviewed"]
    assert rows[1]["after"] == 'Gliom, "grün"' and rows[1]["who"] == "Jörg"
    assert rows[0]["note"].startswith("'="), "a spreadsheet must not run what a file was called"
    with pytest.raises(InputError, match="another folder"):
        pool.export_audit(tmp_path / "no" / "a.csv")
    assert not list(tmp_path.glob("*.part"))
    assert len(pool.audit(limit=1)) == 1


def test_read_only_pool_refuses_every_change(tmp_path):
    with Pool.create(tmp_path / "p") as pool:
        case_id = pool.add(case(1, rationale=rationale()))
    with Pool.open(tmp_path / "p", read_only=True) as pool:
        for change in (
            lambda: pool.edit([case_id], {"modality": "MR"}),
            lambda: pool.trash([case_id]),
            lambda: pool.purge(),
            lambda: pool.edit_rationale(case_id, {"texture": "x."}),
            lambda: pool.review_cases([case_id], "approved"),
            lambda: pool.restore([1]),
        ):
            with pytest.raises(PoolError, match="reading only"):
                change()
        assert pool.matching(words="homogeneous") == [case_id] and pool.counts()["label"] == {"tumor": 1}


# ---- queries


def test_facets_words_and_ranges(pool):
    ids = [
        pool.add(
            case(
                n,
                modality=("MR", "CT")[n % 2],
                body_site="brain" if n < 3 else None,
                annotator="Ärztin",
                rationale=rationale("Homogeneous." if n else "Heterogeneous.", contrast=10.0 * n),
            )
        )
        for n in range(5)
    ]
    assert pool.matching() == ids and pool.matching({"modality": "CT"}) == [ids[1], ids[3]]
    assert pool.matching({"modality": ["MR"], "body_site": [None]}) == [ids[4]]
    assert pool.matching(words="ÄRZTIN heterogeneous") == [ids[0]] and pool.matching(words="100 %_") == []
    assert pool.matching(ranges={"contrast": (10, 30)}) == ids[1:4] and pool.matching(ranges={"contrast": (None, 5)}) == [ids[0]]
    assert pool.matching({"modality": "MR"}, "tumor", {"contrast": (1, None)}) == [ids[2], ids[4]]
    with pytest.raises(InputError, match="descriptor"):
        pool.matching(ranges={"'; DROP TABLE cases": (0, 1)})
    counts = pool.counts()
    assert counts["modality"] == {"MR": 3, "CT": 2} and counts["body_site"] == {"brain": 3, "": 2} and counts["label"] == {"tumor": 5}
    assert pool.counts(ids[:1])["modality"] == {"MR": 1}
    rows = pool.rows([ids[3], "gone", ids[0]])
    assert [r["id"] for r in rows] == [ids[3], ids[0]]
    assert rows[1]["first_line"] == "Texture: Heterogeneous." and rows[0]["writer"] == "measured"


def test_info(pool):
    assert pool.info()["cases"] == 0 and pool.info()["stale"] is None
    ids = [pool.add(case(n, patient_id="p" if n else None)) for n in range(3)]
    pool.set_vectors("image", "m", ids[:2], np.eye(2))
    info = pool.info()
    assert (info["cases"], info["patients"], info["without_rationale"], info["without_patient"], info["stale"]) == (3, 1, 3, 1, 1)
    assert info["bytes"] > 1000
    shutil.rmtree(pool.folder / "derived", ignore_errors=True)
