"""The requests that care for a pool, in a real worker."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import phantom
import pytest

from cers.case import Case
from cers.case.io import write_image, write_segmentation
from cers.pool import Pool
from cers.worker.client import Worker, WorkerError


@pytest.fixture(scope="module")
def pool_worker():
    with Worker() as worker:
        yield worker


@pytest.fixture
def worker(pool_worker, tmp_path):
    pool_worker.call("open_pool", path=str(phantom.build_pool(tmp_path / "pool", cases=2)))
    yield pool_worker
    pool_worker.call("open_pool")


def refused(worker, method, **params) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        worker.call(method, **params)
    assert "\n" not in str(caught.value)
    return caught.value


def test_look_change_undo(worker, tmp_path):
    info = worker.call("pool_info")
    ids = worker.call("pool_query")["ids"]
    assert info["cases"] == len(ids) > 1 and not info["read_only"] and info["counts"]["review"] == {"unreviewed": len(ids)}
    got = worker.call("pool_rows", ids=ids[:2], thumbnails=40)
    pictures = np.load(got["thumbnails"])
    assert pictures.shape == (2, 40, 40, 3) and (pictures == (51, 217, 255)).all(-1).any((1, 2)).all() and got["rows"][0]["first_line"]
    page = worker.call("pool_case", id=ids[0])
    assert np.load(page["mask"]).any() and page["versions"][0]["version"] == 1 and page["audit"] and ids[0] in page["slices"]
    assert worker.call("pool_edit", ids=ids, changes={"diagnosis": "glioma"}, rename={"tumor": "lesion"}, who="Ana")["changed"] == len(ids)
    worker.call("pool_review", ids=ids[:1], review="excluded", who="Ana", note="blurred")
    assert worker.call("pool_rationale", id=ids[0], parts={"summary": "A lesion, seen by a person."}, who="Ana") == {"version": 2}
    assert worker.call("pool_query", words="seen person", facets={"review": "excluded"})["ids"] == ids[:1]
    assert worker.call("pool_query", ranges={"contrast": [None, -101]})["ids"] == []
    numbers = worker.call("pool_delete", ids=ids[:1], who="Ana")["numbers"]
    assert worker.call("pool_info")["trashed"] == 1 and worker.call("pool_trash")["cases"][0]["id"] == ids[0]
    assert worker.call("pool_trash", numbers=[]) == {"numbers": numbers, "cases": []}
    assert len(worker.call("pool_trash", numbers=[*numbers, 99])["cases"]) == 1
    assert worker.call("pool_restore", numbers=numbers)["ids"] == ids[:1] and worker.call("pool_purge") == {"deleted": 0}
    assert worker.call("pool_audit", limit=1)["entries"][0]["action"] == "restored"
    assert worker.call("pool_audit", path=str(tmp_path / "a.csv"))["lines"] > 4 and (tmp_path / "a.csv").exists()
    found = worker.call("pool_health")
    assert isinstance(found["findings"], list) and found["cases"] == len(ids)


def test_words_find_by_meaning(worker):
    found = worker.call("pool_query", meaning="bright lesion with a sharp edge")
    assert found["ids"] and found["similarity"] == sorted(found["similarity"], reverse=True)


def test_export_create_merge(worker, tmp_path):
    count = worker.call("pool_export", path=str(tmp_path / "x.zip"))["cases"]
    assert worker.call("pool_create", path=str(tmp_path / "new"))["cases"] == 0
    assert len(worker.call("pool_merge", path=str(tmp_path / "x.zip"), dry_run=True)["added"]) == count
    assert worker.call("pool_info")["cases"] == 0
    assert len(worker.call("pool_merge", path=str(tmp_path / "x.zip"))["added"]) == count == worker.call("pool_info")["cases"]


def test_import_of_a_volume_and_of_a_folder(worker, tmp_path):
    volume, (image, mask) = phantom.volume(), phantom.head(5)
    np.save(tmp_path / "i.npy", image)
    np.save(tmp_path / "m.npy", mask)
    given = {
        "image": str(tmp_path / "i.npy"),
        "mask": str(tmp_path / "m.npy"),
        "ijkToRAS": volume.geometry.ijkToRAS.tolist(),
        "labels": {"1": "tumor"},
        "modality": "MR",
        "annotator": "Ana",
        "max_slices": 2,
    }
    before = worker.call("pool_info")["cases"]
    assert worker.call("pool_import_volume", **given, dry_run=True)["added"] == 2 and worker.call("pool_info")["cases"] == before
    done = worker.call("pool_import_volume", **given)
    assert done["added"] == 2 and worker.call("pool_rows", ids=done["ids"])["rows"][0]["annotator"] == "Ana"
    assert worker.call("pool_import_volume", **given)["added"] == 0
    worker.call("pool_delete", ids=done["ids"][:1])
    again = worker.call("pool_import_volume", **given)
    assert (again["added"], again["present"], again["trashed"]) == (0, 1, done["ids"][:1]) and again["ids"] == done["ids"][1:]
    folder = tmp_path / "f"
    folder.mkdir()
    write_image(folder / "a.nii.gz", phantom.head(6)[0], volume.geometry)
    write_segmentation(folder / "a_mask.seg.nrrd", phantom.head(6)[1], volume.geometry, {1: "tumor"})
    (folder / "b.nii.gz").write_text("broken")
    given = {"images": str(folder), "masks": str(folder), "body_site": "brain", "max_slices": 1}
    dry = worker.call("pool_import_folder", **given, dry_run=True)
    assert dry["added"] == 1 and len(dry["faults"]) == 1
    assert worker.call("pool_import_folder", **given)["added"] == 1 and worker.call("pool_import_folder", **given)["added"] == 0


def test_what_cannot_be_done_is_said(worker, tmp_path):
    assert refused(worker, "pool_rows", ids=[3]).code == "protocol"
    assert refused(worker, "pool_query", ranges={"contrast": [1]}).code == "protocol"
    assert refused(worker, "pool_query", facets={"colour": "red"}).code == "input"
    assert refused(worker, "pool_case", id="none").code == "pool"
    assert refused(worker, "pool_restore", numbers=[99]).code == "pool"
    path = Path(worker.call("pool_info")["path"])
    worker.call("open_pool", path=str(path), read_only=True)
    assert worker.call("pool_info")["read_only"]
    assert refused(worker, "pool_review", ids=worker.call("pool_query")["ids"], review="approved").code == "pool"
    assert refused(worker, "pool_import_folder", images=str(tmp_path), masks=str(tmp_path)).code == "pool"


def test_zero_is_not_taken_for_not_given(worker, tmp_path):
    assert "At least one case" in str(refused(worker, "search", text="bright", k=0))
    assert "At least one case" in str(refused(worker, "pool_harm", cases=0))


def test_sizes_and_texts_that_cannot_be(worker):
    ids = worker.call("pool_query")["ids"][:1]
    for size in (-1, 100_000):
        assert refused(worker, "pool_rows", ids=ids, thumbnails=size).code == "protocol"
    for change in ({"changes": {"modality": 5}}, {"rename": {"tumor": None}}, {"rename": {"tumor": 3}}):
        assert refused(worker, "pool_edit", ids=ids, **change).code == "protocol"


def test_paths_and_shapes_that_cannot_be(worker, tmp_path):
    for method in ("open_pool", "pool_create", "pool_export", "pool_merge"):
        assert refused(worker, method, path="a\0b").code == "protocol"
    eye = np.eye(4).tolist()
    for shape in (["x", 2, 3], [1, 2], [0, 4, 4], [1.5, 2, 3], [True, 2, 3]):
        assert refused(worker, "next_mask", path=str(tmp_path / "m.seg.nrrd"), ijkToRAS=eye, shape=shape).code == "protocol"
    assert worker.call("pool_info")["cases"] > 0, "the open pool stays open"


def test_an_import_shows_what_the_headers_say_and_keeps_it_only_when_told(worker, tmp_path):
    import SimpleITK as sitk

    (tmp_path / "in").mkdir()
    image, mask = phantom.head(9)
    picture = sitk.GetImageFromArray(image)
    picture.SetMetaData("PatientName", "Doe^Jane")
    sitk.WriteImage(picture, str(tmp_path / "in" / "a.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(mask), str(tmp_path / "in" / "a_mask.nrrd"))
    given = {"images": str(tmp_path / "in"), "masks": str(tmp_path / "in")}
    dry = worker.call("pool_import_folder", **given, dry_run=True)
    assert dry["identity"] == {"PatientName": {"images": 1, "values": ["Doe^Jane"]}} and dry["items"][0]["item"] == "a" and dry["added"]
    done = worker.call("pool_import_folder", **given)
    assert "Doe" not in str(worker.call("pool_rows", ids=done["ids"])) + str(worker.call("pool_audit"))
    assert not any("Doe" in line for line in worker.log)


def test_a_cancelled_import_or_merge_still_tells_what_went_in(worker, tmp_path):
    from PIL import Image

    for folder, n in ((f, n) for f in ("i", "m") for n in range(40)):
        (tmp_path / folder).mkdir(exist_ok=True)
        picture = np.full((200, 200), 40, np.uint8)
        picture[20 + n : 60 + n, 30:70] = 200
        Image.fromarray(picture if folder == "i" else np.where(picture > 100, 255, 0).astype(np.uint8)).save(tmp_path / folder / f"{n}.png")
    with Pool.create(tmp_path / "other") as other:  # so many that the merge tells of its progress before it is done
        noise = np.random.default_rng(0)
        for n in range(60):
            mask = np.zeros((200, 200), np.uint8)
            mask[20 + n : 60 + n, 100:140] = 1
            image = noise.normal(100, 10, mask.shape).astype(np.float32)
            other.add(Case(image, mask, {1: "lesion"}, patient_id=str(n), modality="MR", body_site="brain"))
    before = worker.call("pool_import_report")
    asked = {"images": str(tmp_path / "i"), "masks": str(tmp_path / "m")}
    for method, params in (("pool_import_folder", asked), ("pool_merge", {"path": str(tmp_path / "other")})):
        began = threading.Event()
        worker.call("pool_import_report", forget=True)
        request = worker.send(method, lambda f, _words, began=began: f > 0 and began.set(), **params)
        assert began.wait(60)
        request.cancel()
        with pytest.raises(WorkerError) as caught:
            request.result()
        found = worker.call("pool_import_report")
        added = found["report"]["added"]
        added = added if isinstance(added, int) else len(added)
        assert caught.value.code == "cancelled" and found["report"]["cancelled"] and found["report"]["left"] > 0
        assert added == found["cases"] - before["cases"], "what is told is what is there"
        before = found
    assert worker.call("pool_import_report", forget=True)["report"] and worker.call("pool_import_report")["report"] is None
