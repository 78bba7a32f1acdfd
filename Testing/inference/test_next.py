"""What to label next: order, reasons, what is left out, and that what was measured once is not measured again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import phantom
import pytest
from typer.testing import CliRunner

from cers.case import Geometry
from cers.case.io import read_mask, read_volume, write_image
from cers.errors import Cancelled, InputError
from cers.inference import load_model
from cers.inference.next import LEAST_PIXELS, SLICES, Measurement, order, rank_next
from cers.pool import Pool
from cers.pool.corrections import add_correction
from cers.pool.folders import find_images


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return phantom.build_model(tmp_path_factory.mktemp("next-model"))


@pytest.fixture(scope="module")
def model(model_folder):
    return load_model(model_folder)


@pytest.fixture
def pool(tmp_path):
    phantom.build_pool(tmp_path / "pool")
    with Pool.open(tmp_path / "pool") as pool:
        yield pool


def write(path, seed: int, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, phantom.head(seed, **kwargs)[0], Geometry(phantom.matrix(), phantom.SHAPE))
    return path


@pytest.fixture
def scans(tmp_path):
    """Three volumes in a folder with an odd name, one of them twice."""
    folder = tmp_path / "Köpfe (neu)"
    for n in range(3):
        write(folder / ("sub" if n == 0 else "") / f"v{n}.nrrd", 10 + n)
    shutil.copy(folder / "v1.nrrd", folder / "v1 again.nrrd")
    return folder


def measurement(direction, *, disagreement=0.5, entropy=0.5) -> Measurement:
    vector = np.zeros((1, 4), np.float32)
    vector[0, : len(direction)] = direction
    return Measurement(
        vector / np.linalg.norm(vector),
        np.zeros((1, 1024), np.float32),
        ["x"],
        "v",
        None,
        "MR",
        "brain",
        "axial",
        True,
        1.0,
        disagreement,
        entropy,
    )


@pytest.mark.parametrize("size", [0, 10, 3000, None])
def test_what_was_kept_and_is_damaged_is_measured_again(tmp_path, size):
    kept = tmp_path / "kept.npz"
    measurement((1, 0)).save(kept)
    assert Measurement.load(kept).volume_id == "v"
    kept.write_bytes(kept.read_bytes()[:size] if size is not None else b"PK\x05\x06" + bytes(18))
    assert Measurement.load(kept) is None and Measurement.load(tmp_path / "none.npz") is None


def test_need_comes_first_and_more_of_the_same_last():
    known = {
        "a": measurement((1, 0)),
        "a2": measurement((1, 0.001)),
        "a3": measurement((1, 0.002)),
        "b": measurement((0, 1)),
        "c": measurement((0, 0, 1)),
    }
    coverage = {"a": 0.1, "a2": 0.1, "a3": 0.1, "b": 0.5, "c": 0.9}
    found = order(known, coverage)
    assert [v.path for v in found[:3]] == ["a", "b", "c"] and {v.path for v in found[3:]} == {"a2", "a3"}
    assert (
        "Much like a above (similarity 1.00)" in found[3].reason
        and "The pool hardly covers it (10 %)." in found[0].reason
        and found[0].like is None
    )
    scores = [v.score for v in found]
    assert scores == sorted(scores, reverse=True) and all(0 <= v.need <= 1 for v in found)
    sure = order(
        {"x": measurement((1,), disagreement=0, entropy=0), "y": measurement((0, 1), disagreement=1, entropy=1)}, {"x": 0.5, "y": 0.5}
    )
    assert "is fairly sure (0.00 bit)" in sure[1].reason and "is very unsure (1.00 bit)" in sure[0].reason
    assert [v.path for v in sure] == ["y", "x"] and order({}, {}) == []


def test_a_second_run_measures_nothing_and_a_copy_comes_last(scans, pool, model):
    said = []
    first = rank_next(scans, pool, model, modality="MR", progress=lambda f, m: said.append((f, m)))
    assert first.measured == 3 and {v.path for v in first.volumes} == {
        "sub/v0.nrrd",
        "v1.nrrd",
        "v2.nrrd",
        "v1 again.nrrd",
    }  # the copy is the same file
    assert first.volumes[-1].path.startswith("v1") and first.volumes[-1].like.startswith("v1")
    assert said[-1] == (1.0, "Done") and all(0 <= f <= 1 for f, _ in said) and [f for f, _ in said] == sorted(f for f, _ in said)
    again = rank_next(scans, pool, model, modality="MR")
    assert again.measured == 0 and again.volumes == first.volumes
    kept = sorted((pool.folder / "derived" / "next").glob("*.npz"))
    assert len(kept) == 3 and not pool.verify()
    kept[0].write_bytes(b"damaged")
    assert rank_next(scans, pool, model, modality="MR").measured == 1


def test_a_stopped_run_goes_on(scans, pool, model):
    seen = []

    def cancel():
        return len(seen) > 1

    with pytest.raises(Cancelled):
        rank_next(scans, pool, model, progress=lambda f, m: m.startswith("Looking") and seen.append(m), cancel=cancel)
    done = len(list((pool.folder / "derived" / "next").glob("*.npz")))
    assert 0 < done < 3
    assert rank_next(scans, pool, model).measured == 3 - done


def test_what_is_labelled_or_unreadable_is_named(scans, pool, model):
    write(scans / "w.nrrd", 30)
    shutil.copy(scans / "w.nrrd", scans / "w_mask.nrrd")
    (scans / "bad.nrrd").write_bytes(b"x" * 30)
    (scans / "flat.nrrd").write_bytes(b"")
    volume = read_volume(scans / "v2.nrrd")
    before = rank_next(scans, pool, model)
    assert set(before.faults) == {"bad.nrrd", "flat.nrrd"} and before.labelled == {"w.nrrd": "It has a mask beside it."}
    add_correction(pool, volume, phantom.head(12)[1], {1: "tumor"}, annotator="Ada")
    after = rank_next(scans, pool, model)
    assert "v2.nrrd" not in {v.path for v in after.volumes} and "in the pool already" in after.labelled["v2.nrrd"]


def test_coverage_follows_the_pool(tmp_path, model):
    """A volume is covered better once a like one was added, without being measured anew."""
    write(tmp_path / "scans" / "a.nrrd", 7)
    with Pool.create(tmp_path / "pool") as pool:
        empty = rank_next(tmp_path / "scans", pool, model).volumes[0]
        image, mask = phantom.head(7)
        other = phantom.volume(7)
        other.array = (np.roll(image, 2, axis=2) + np.random.default_rng(1).normal(0, 20, image.shape)).astype(np.float32)
        add_correction(pool, other, np.roll(mask, 2, axis=2), {1: "tumor"}, annotator="Ada")
        report = rank_next(tmp_path / "scans", pool, model)
        assert empty.coverage == 0 and report.volumes[0].coverage > 0.3 and report.measured == 0
    with Pool.open(tmp_path / "pool", read_only=True) as pool:
        assert rank_next(tmp_path / "scans", pool, model).measured == 1  # it can be ranked, but nothing is kept
        assert rank_next(tmp_path / "scans", pool, model, cache=tmp_path / "kept").measured == 1
        assert rank_next(tmp_path / "scans", pool, model, cache=tmp_path / "kept").measured == 0


def test_only_some_slices_of_a_long_volume_are_looked_at(tmp_path, pool, model):
    image = np.concatenate([phantom.head(3)[0]] * 10)
    (tmp_path / "long").mkdir()
    write_image(tmp_path / "long" / "a.nrrd", image, Geometry(phantom.matrix(), image.shape))
    report = rank_next(tmp_path / "long", pool, model)
    kept = Measurement.load(next((pool.folder / "derived" / "next").glob("*.npz")))
    assert report.measured == 1 and LEAST_PIXELS and 0 < len(kept.vectors) <= SLICES


def test_images_are_told_from_masks(tmp_path):
    for name in (
        "a.nii.gz",
        "b_0000.nrrd",
        "b.seg.nrrd",
        "c.nrrd",
        "c_seg.nii.gz",
        "notes.txt",
        ".hidden.nrrd",
        "deep/t1c.nii.gz",
        "deep/label.nii.gz",
        "pool/x.nrrd",
        "alone/label.nrrd",
        "d_0000.nrrd",
        "d_0000.seg.nrrd",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "I1").write_bytes(b"\0" * 128 + b"DICM")
    plain, masked = find_images(tmp_path, without=tmp_path / "pool")
    assert plain == ["a.nii.gz", "series"] and masked == ["b_0000.nrrd", "c.nrrd", "d_0000.nrrd", "deep/t1c.nii.gz"]


def test_a_folder_without_images_is_said(tmp_path, pool, model):
    for folder, words in ((tmp_path / "none", "does not exist"), (Path(__file__), "is a file"), (tmp_path, "There is no image")):
        with pytest.raises(InputError, match=words):
            rank_next(folder, pool, model)


def test_command_and_worker(scans, pool, model_folder, tmp_path):
    from cers.cli.app import app
    from cers.worker.client import Worker, WorkerError

    (scans / "bad.nrrd").write_bytes(b"x" * 30)
    common = ["next", str(scans), "--pool", str(pool.folder), "--model", str(model_folder), "--device", "cpu"]
    done = CliRunner().invoke(app, [*common, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert len(report["volumes"]) == 4 and list(report["faults"]) == ["bad.nrrd"] and report["measured"] == 3
    words = CliRunner().invoke(app, [*common, "-n", "2"])
    assert words.exit_code == 0 and "  1. " in words.output and "  3. " not in words.output and "4 volumes to label" in words.output
    assert (
        CliRunner().invoke(app, ["next", str(tmp_path / "none"), "--pool", str(pool.folder), "--model", str(model_folder)]).exit_code == 1
    )
    with Worker() as worker:
        with pytest.raises(WorkerError, match="No pool is open"):
            worker.call("next_rank", folder=str(scans))
        worker.call("load_model", path=str(model_folder), threads=1)
        worker.call("open_pool", path=str(pool.folder))
        ranked = worker.call("next_rank", folder=str(scans))
        assert ranked["volumes"] == report["volumes"] and ranked["measured"] == 0
        image, mask = phantom.head(7)
        for name, array in (("image", image), ("mask", mask)):
            np.save(tmp_path / f"{name}.npy", array)
        keep = tmp_path / "kept" / "a.seg.nrrd"
        worker.call(
            "add_case",
            image=str(tmp_path / "image.npy"),
            mask=str(tmp_path / "mask.npy"),
            ijkToRAS=phantom.matrix().tolist(),
            labels={"1": "tumor"},
            annotator="Ada",
            keep=str(keep),
        )
        assert np.array_equal(read_mask(keep, Geometry(phantom.matrix(), phantom.SHAPE))[0], mask)
        back = worker.call("next_mask", path=str(keep), ijkToRAS=phantom.matrix().tolist(), shape=list(phantom.SHAPE))
        assert back["labels"] == {"1": "tumor"} and np.array_equal(np.load(back["labelmap"]), mask)
        with pytest.raises(WorkerError, match="another grid"):
            worker.call("next_mask", path=str(keep), ijkToRAS=phantom.matrix(origin=(0, 0, 0)).tolist(), shape=list(phantom.SHAPE))
