"""The request add_case: what a person corrected is used by the very next segmentation."""

from __future__ import annotations

import numpy as np
import phantom
import pytest

from cers.pool import Pool
from cers.worker.client import Worker, WorkerError


@pytest.fixture
def arrays(tmp_path):
    image, mask = phantom.head(7)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "mask.npy", mask)
    return {
        "image": str(tmp_path / "image.npy"),
        "mask": str(tmp_path / "mask.npy"),
        "ijkToRAS": phantom.matrix().tolist(),
        "labels": {"1": "tumor"},
        "annotator": "Ada",
        "modality": "MR",
        "body_site": "brain",
        "patient_id": "p7",
    }


def test_an_added_case_is_a_reference_of_the_next_run(model, tmp_path, arrays):
    with Pool.create(tmp_path / "pool"):
        pass
    image = phantom.head(7)[0]
    rng = np.random.default_rng(1)
    neighbour = np.roll(image, 2, axis=2) + rng.normal(0, 20, image.shape)  # another patient who looks much like this one
    with Worker() as worker:
        worker.call("load_model", path=str(model), threads=1)
        worker.call("open_pool", path=str(tmp_path / "pool"))
        before = worker.segment(neighbour, phantom.matrix(), modality="MR", body_site="brain", patient_id="p8")
        assert not any(s["references"] for s in before["slices"])
        added = worker.call("add_case", **arrays, proposed=arrays["mask"])
        assert (
            added["added"] and added["dice"] == 1.0 and added["cases"] == len(added["ids"]) and added["embedded"] == 2 * len(added["ids"])
        )
        after = worker.segment(neighbour, phantom.matrix(), modality="MR", body_site="brain", patient_id="p8")
        assert {r["id"] for s in after["slices"] for r in s["references"]} & set(added["ids"])
        itself = worker.segment(image, phantom.matrix(), modality="MR", body_site="brain", patient_id="p7")
        assert not any(s["references"] for s in itself["slices"])
        again = worker.call("add_case", **arrays)
        assert again["ids"] == added["ids"] and not again["added"] and again["cases"] == added["cases"]


def test_what_cannot_be_added_is_refused_in_one_sentence(model, tmp_path, arrays):
    with Pool.create(tmp_path / "pool"):
        pass
    with Worker() as worker:
        for change, words in (
            ({}, "No pool is open"),
            ({"annotator": None}, "needs the parameter 'annotator'"),
            ({"labels": {"one": "x"}}, "No pool"),
        ):
            with pytest.raises(WorkerError, match=words):
                worker.call("add_case", **{**arrays, **change})
        worker.call("open_pool", path=str(tmp_path / "pool"), read_only=True)
        with pytest.raises(WorkerError, match="can only be read"):
            worker.call("add_case", **arrays)
        with pytest.raises(WorkerError, match="whole numbers"):
            worker.call("add_case", **{**arrays, "labels": {"one": "x"}})
        worker.call("open_pool", path=str(tmp_path / "pool"))
        for labels in ({"1": ""}, {"1": "  "}, {"1": 5}, {"1": None}, {"0": "x"}, {"-1": "x"}, {"256": "x"}, {"9" * 5000: "x"}):
            for method in ("add_case", "pool_import_volume"):
                with pytest.raises(WorkerError, match="whole numbers from 1 to 255") as caught:
                    worker.call(method, **{**arrays, "labels": labels})
                assert caught.value.code == "protocol"
        with pytest.raises(WorkerError, match="At least one slice"):
            worker.call("pool_import_volume", **arrays, max_slices=0)
        assert worker.call("pool_info")["cases"] == 0
