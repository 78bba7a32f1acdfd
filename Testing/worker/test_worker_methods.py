"""The worker with a real model, a real pool and a real volume."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import phantom
import pytest

from cers.case import PlaneView
from cers.worker.client import Worker, WorkerError


def refused(worker, method, **params) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        worker.call(method, **params)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def result(worker):
    v = phantom.volume()
    return worker.segment(v.array, v.geometry.ijkToRAS, name="DOE^JANE", modality="MR", body_site="brain")


def test_segmentation_is_that_of_the_library(worker, result, model, filled_pool):
    from cers.inference import Segmenter, load_model
    from cers.pool import Pool

    with Pool.open(filled_pool) as pool:
        expected = Segmenter(load_model(model), pool).segment(phantom.volume())
    assert np.array_equal(result["labelmap"], expected.labelmap) and result["labelmap"].any()
    assert result["volume_ml"] == pytest.approx(expected.volume_ml)
    assert len(result["slices"]) == len(expected.evidence) and any(s["references"] for s in result["slices"])
    assert result["provenance"]["model"] == expected.provenance["model"]


def test_nobody_is_named_in_the_log(worker, result):
    assert not any("DOE" in line for line in worker.log)


def test_a_slice_is_decoded_again_with_other_references(worker, result, tmp_path):
    view = PlaneView(phantom.volume().geometry, "axial")
    slice_ = max((s for s in result["slices"] if s["references"]), key=lambda s: s["pixels"])
    key = {"plane": slice_["plane"], "index": slice_["index"]}
    same = worker.call("resegment", **key)
    assert np.array_equal(np.load(same["mask"]), view.slices(result["labelmap"])[slice_["index"]])
    assert [r["id"] for r in same["evidence"]["references"]] == [r["id"] for r in slice_["references"]]
    first, last = slice_["references"][0]["id"], slice_["references"][-1]["id"]
    other = worker.call("resegment", **key, pinned=[last], dropped=[first])
    used = {r["id"]: r for r in other["evidence"]["references"]}
    assert used[last]["pinned"] and first not in used
    assert any(r["id"] == first and r["stage"] == "dropped" for r in other["evidence"]["rejected"])
    report = tmp_path / "r.html"
    assert worker.call("export_report", path=str(report), title="<b>Title</b>")["path"] == str(report)
    assert "&lt;b&gt;Title&lt;/b&gt;" in report.read_text() and "Dropped by the user" in report.read_text()
    shown = worker.call("slice", **key)
    assert np.array_equal(np.load(shown["mask"]), np.load(other["mask"])) and np.load(shown["image"]).dtype == np.uint8
    worker.call("resegment", **key)
    assert refused(worker, "resegment", plane="axial", index=99).code == "input"
    assert refused(worker, "resegment", plane="coronal", index=1).code == "input"
    assert refused(worker, "slice", plane="up", index=0).code == "input"
    assert refused(worker, "resegment", **key, pinned=["no such case"]).code == "pool"


def test_words_follow_a_slice_that_is_decoded_again(worker):
    v = phantom.volume()
    result = worker.segment(v.array, v.geometry.ijkToRAS, name="head", modality="MR", body_site="brain", planes="three")
    slice_ = max((s for s in result["slices"] if s["plane"] == "axial" and s["references"]), key=lambda s: s["pixels"])
    key = {"plane": "axial", "index": slice_["index"]}
    before = PlaneView(v.geometry, "axial").slices(result["labelmap"])[slice_["index"]]
    again = worker.call("resegment", **key, dropped=[r["id"] for r in slice_["references"]])
    mask = np.load(again["mask"])
    if mask.any():
        assert again["evidence"]["rationale"]["descriptors"]["area_mm2"] == pytest.approx((mask > 0).sum() * 1.5 * 1.5, rel=1e-4)
    assert again["evidence"]["first_rationale"] == slice_["first_rationale"]
    assert bool(again["crossed"]) == bool((mask != before).any()) and {s["plane"] for s in again["crossed"]} <= {"coronal", "sagittal"}
    reset = worker.call("resegment", **key)
    assert reset["evidence"]["rationale"] == slice_["rationale"]


def test_a_case_as_pictures(worker, filled_pool):
    from cers.pool import Pool

    with Pool.open(filled_pool) as pool:
        expected = pool.get(pool.ids()[0])
    case = worker.call("case", id=expected.id)
    assert np.array_equal(np.load(case["mask"]), expected.mask) and case["diagnosis"] == "<meningioma> & co"
    image = np.load(case["image"])
    assert image.dtype == np.uint8 and image.shape == expected.image.shape and image.max() > 200
    assert case["rationale"]["text"]
    assert refused(worker, "case", id="nope").code == "pool"
    assert refused(worker, "case").code == "protocol"
    assert refused(worker, "case", id=7).code == "protocol"


def test_describe(worker, tmp_path):
    image, mask = phantom.head()
    np.save(tmp_path / "i.npy", image[4])
    np.save(tmp_path / "m.npy", mask[4])
    found = worker.call("describe", image=str(tmp_path / "i.npy"), mask=str(tmp_path / "m.npy"), spacing=[1.5, 1.5])["rationale"]
    assert {s["part"] for s in found["statements"]} == {"texture", "boundary", "context", "summary"}
    for plane in ("up", ""):
        assert refused(worker, "describe", image=str(tmp_path / "i.npy"), mask=str(tmp_path / "m.npy"), plane=plane).code == "input"
    np.save(tmp_path / "m.npy", mask)
    assert refused(worker, "describe", image=str(tmp_path / "i.npy"), mask=str(tmp_path / "m.npy")).code == "input"
    assert refused(worker, "describe", image=str(tmp_path / "i.npy"), mask=str(tmp_path / "i.npy"), spacing=[0, 1]).code == "protocol"


def test_embed_and_search(worker, tmp_path):
    vectors = np.load(worker.call("embed", texts=["bright lesion", "bright lesion", "dark"])["vectors"])
    assert (
        vectors.shape[0] == 3
        and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
        and np.allclose(vectors[0], vectors[1], atol=1e-5)
    )
    assert worker.call("embed")["embedded"] >= 0
    found = worker.call("search", text="bright lesion with a sharp edge", k=2)["cases"]
    assert len(found) == 2 and found[0]["similarity"] >= found[1]["similarity"]
    np.save(tmp_path / "i.npy", phantom.head(1)[0][4])
    assert len(worker.call("search", image=str(tmp_path / "i.npy"), spacing=[1.5, 1.5])["cases"]) > 2
    assert refused(worker, "search").code == "protocol"
    assert refused(worker, "search", text="a", image="b").code == "protocol"
    assert refused(worker, "embed", texts=[1]).code == "protocol"


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda a: np.where(a > 500, np.nan, a).astype(np.float32), "not numbers"),
        (lambda a: np.zeros_like(a), "same value"),
        (lambda a: np.stack([a, a]), "3-D"),
        (lambda a: a[0], "3-D"),
        (lambda a: a.astype(complex), "real numbers"),
        (lambda a: np.zeros((0, 4, 4)), "voxel"),
        (lambda a: np.array([{}, 1], object), ".npy"),
    ],
)
def test_input_that_cannot_be_segmented(worker, make, words, tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.save(file, make(phantom.head()[0]), allow_pickle=True)
    error = refused(worker, "segment", image=str(tmp_path / "a.npy"), ijkToRAS=np.eye(4).tolist())
    assert error.code == "input" and words in str(error)


def test_parameters_that_make_no_sense(worker, tmp_path):
    np.save(tmp_path / "a.npy", phantom.head()[0])
    path, eye = str(tmp_path / "a.npy"), np.eye(4).tolist()
    assert refused(worker, "segment", image=str(tmp_path / "none.npy"), ijkToRAS=eye).code == "input"
    assert refused(worker, "segment", image=path, ijkToRAS=[[1, 2]]).code == "protocol"
    assert refused(worker, "segment", image=path, ijkToRAS=np.zeros((4, 4)).tolist()).code == "input"
    assert refused(worker, "segment", image=path, ijkToRAS=eye, planes="oblique").code == "input"
    assert refused(worker, "segment", image=path, ijkToRAS=eye, influence="yes").code == "protocol"
    assert refused(worker, "segment", image=path, ijkToRAS=eye, modality="CT").code == "input"
    assert refused(worker, "export_report", path=str(tmp_path / "r.pdf")).code == "input"


def test_cancel_in_mid_run_is_answered_soon_and_the_next_run_is_whole(worker, result):
    v = phantom.volume()
    folder = Path(worker.ready["folder"])
    np.save(folder / "long.npy", np.concatenate([v.array] * 40))
    seen = []
    request = worker.send(
        "segment",
        lambda fraction, message: seen.append(message),
        image=str(folder / "long.npy"),
        ijkToRAS=v.geometry.ijkToRAS.tolist(),
        planes="three",
    )
    deadline = time.monotonic() + 60
    while "Encoding slices" not in seen and time.monotonic() < deadline:
        time.sleep(0.01)
    started = time.monotonic()
    assert request.cancel()
    assert time.monotonic() - started < 0.5  # the answer to cancel does not wait for the work
    with pytest.raises(WorkerError) as caught:
        request.result(30)
    assert caught.value.code == "cancelled" and time.monotonic() - started < 5
    assert refused(worker, "resegment", plane="axial", index=4).code == "input"  # nothing is held of the cancelled run
    again = worker.segment(v.array, v.geometry.ijkToRAS, modality="MR", body_site="brain")
    assert np.array_equal(again["labelmap"], result["labelmap"])


def test_cases_added_meanwhile_are_used_and_the_pool_can_be_closed(worker, tmp_path, filled_pool):
    from cers.pool import Pool

    phantom.build_pool(tmp_path / "p", cases=1)
    v = phantom.volume()
    try:
        assert worker.call("open_pool", path=str(tmp_path / "p"))["cases"] == 2
        before = worker.segment(v.array, v.geometry.ijkToRAS)
        with Pool.open(filled_pool, read_only=True) as other, Pool.open(tmp_path / "p") as pool:
            new = pool.add(other.get(other.ids()[-1]))
        after = worker.segment(v.array, v.geometry.ijkToRAS)
        used = {r["id"] for s in after["slices"] for r in s["references"] + s["rejected"]}
        assert new in used and after["provenance"]["pool"] != before["provenance"]["pool"]
        assert worker.call("open_pool", path=None)["path"] is None
        alone = worker.segment(v.array, v.geometry.ijkToRAS)
        assert not any(s["references"] for s in alone["slices"]) and alone["provenance"]["pool"] is None
        assert refused(worker, "case", id=new).code == "pool"
    finally:
        worker.call("open_pool", path=str(filled_pool))


def test_a_failed_load_keeps_what_was_there(worker, tmp_path, model):
    assert refused(worker, "load_model", path=str(tmp_path)).code == "model"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert refused(worker, "load_model", path=str(tmp_path)).code == "model"
    assert refused(worker, "load_model", path=str(model), device="abacus").code == "input"
    assert refused(worker, "open_pool", path=str(tmp_path)).code == "pool"
    (tmp_path / "pool.sqlite").write_bytes(b"not a database at all")
    assert refused(worker, "open_pool", path=str(tmp_path)).code == "pool"
    v = phantom.volume()
    assert worker.segment(v.array, v.geometry.ijkToRAS)["labelmap"].any()


def test_order_of_requests_and_what_is_missing():
    with Worker() as worker:
        assert refused(worker, "case", id="x").code == "pool"
        assert refused(worker, "export_report", path="r.html").code == "input"
        assert refused(worker, "resegment", plane="axial", index=0).code == "input"
        np.save(Path(worker.ready["folder"]) / "a.npy", phantom.head()[0])
        error = refused(worker, "segment", image=str(Path(worker.ready["folder"]) / "a.npy"), ijkToRAS=np.eye(4).tolist())
        assert error.code == "model" and "load_model" in str(error)


def test_old_files_of_results_do_not_pile_up(worker, result):
    for _ in range(8):
        worker.call("slice", plane="axial", index=4)
    assert len(list(Path(worker.ready["folder"]).glob("slice-axial-4-*.npy"))) <= 4


def test_the_events_are_as_documented(worker, result):
    text = (Path(__file__).parents[2] / "cers" / "worker" / "PROTOCOL.md").read_text(encoding="utf-8")
    for method in worker.call("hello", protocol=1)["methods"]:
        assert f"| `{method}` |" in text
    for key in (k for k in result if k != "labelmap"):
        assert key in text
    assert json.dumps(result["provenance"])
