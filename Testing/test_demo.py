"""The demonstration and its sample volumes: what it writes, and what it says when something is missing."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cers import demo, sample
from cers.case import Geometry
from cers.case.io import read_mask, read_volume, write_image, write_segmentation
from cers.errors import InputError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package archive with small files, pinned as the real one is; returns what the downloader leaves and how often it was asked."""
    folder = tmp_path / "registry"
    folder.mkdir()
    archive, calls = folder / sample.ARCHIVE[0], []
    files = {(name, part): f"{name} {part}".encode() for name in sample.FILES for part in sample.PARTS}
    with tarfile.open(archive, "w:gz") as tar:
        for (name, part), data in files.items():
            member = tarfile.TarInfo(f"pyradiomics-3.0.1/data/{name}_{part}.nrrd")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        outside = tarfile.TarInfo("../outside.nrrd")
        tar.addfile(outside, io.BytesIO(b""))

    def download(command, **options):
        if "unearth" in command:
            calls.append(command)
            target = command[command.index("--download") + 1]
            (Path(target) / archive.name).write_bytes(archive.read_bytes())
        return sample.subprocess.CompletedProcess(command, 0, "", "")

    def pin(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    monkeypatch.setattr(sample, "FILES", {name: tuple(pin(files[name, part]) for part in sample.PARTS) for name in sample.FILES})
    monkeypatch.setattr(sample, "ARCHIVE", (archive.name, pin(archive.read_bytes())))
    monkeypatch.setattr(sample.subprocess, "run", download)
    monkeypatch.setenv("CERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CERS_DATA", raising=False)
    return archive, calls


def test_samples_are_downloaded_once_and_only_named_files_are_kept(package, tmp_path):
    said = []
    image, label = sample.sample("brain2", said.append)
    assert image.read_bytes() == b"brain2 image" and label.read_bytes() == b"brain2 label"
    assert len(list((tmp_path / "cache" / "samples").iterdir())) == 10 and not list(tmp_path.rglob("outside.nrrd"))
    sample.sample("lung1", said.append)
    assert len(package[1]) == 1 and len(said) == 1


def test_a_damaged_file_in_the_cache_is_replaced(package, tmp_path):
    image, _ = sample.sample("brain2")
    image.write_bytes(b"torn")
    assert sample.sample("brain2")[0].read_bytes() == b"brain2 image" and len(package[1]) == 2


def test_a_local_copy_is_used_first_and_only_if_it_is_the_same(package, tmp_path, monkeypatch):
    local = tmp_path / "data" / "volumes" / "brain1"
    local.mkdir(parents=True)
    for part in sample.PARTS:
        (local / f"{part}.nrrd").write_bytes(f"brain1 {part}".encode())
    monkeypatch.setenv("CERS_DATA", str(tmp_path / "data"))
    assert sample.sample("brain1")[0] == local / "image.nrrd" and not package[1]
    (local / "image.nrrd").write_bytes(b"another image")
    assert sample.sample("brain1")[0].read_bytes() == b"brain1 image"


def test_a_package_with_another_checksum_is_refused(package, tmp_path):
    package[0].write_bytes(package[0].read_bytes() + b"x")
    with pytest.raises(InputError, match="checksum differs"):
        sample.sample("brain1")
    assert not list((tmp_path / "cache").rglob("*.nrrd"))


def test_offline_without_a_cache_gives_one_sentence_of_help(package, monkeypatch):
    def offline(command, **options):
        raise sample.subprocess.CalledProcessError(1, command, stderr="Traceback\nConnectError: no network\n")

    monkeypatch.setattr(sample, "_index_urls", list)
    monkeypatch.setattr(sample.subprocess, "run", offline)
    with pytest.raises(InputError, match="connect to the package registry .* CERS_DATA .*no network"):
        sample.sample("brain1")


def test_unknown_sample():
    with pytest.raises(InputError, match="brain1, brain2"):
        sample.sample("heart1")


@pytest.mark.parametrize(
    "config, urls",
    [
        ("", []),
        ("global.index-url='https://mirror/simple'\nglobal.timeout='60'\n", ["https://mirror/simple"]),
        ("global.index-url='https://mirror/simple'\n:env:.index-url='https://other/simple'\n", ["https://other/simple"]),
    ],
)
def test_pips_own_registry_is_used(monkeypatch, config, urls):
    monkeypatch.setattr(sample.subprocess, "run", lambda command, **options: sample.subprocess.CompletedProcess(command, 0, config, ""))
    assert sample._index_urls() == urls


# ---- the program, on made-up volumes and an untrained model


@pytest.fixture
def volumes(tmp_path, monkeypatch):
    """Small volumes with a bright ball, in place of the samples, and an untrained model in place of the shipped one."""
    from cers.inference.tiny import tiny_model

    random = np.random.default_rng(0)
    k, j, i = np.mgrid[:6, :64, :64]
    for n, name in enumerate(demo.ABOUT):
        body = (j - 32) ** 2 + (i - 32) ** 2 < 28**2
        ball = (j - 24 - n) ** 2 + (i - 30) ** 2 + (3 * (k - 3)) ** 2 < 36
        array = (body * 400 + ball * 500 + random.normal(0, 20, body.shape)).astype(np.int16)
        geometry = Geometry(np.array([[-1.0, 0, 0, 30], [0, -1, 0, 30], [0, 0, 5, -10 - n], [0, 0, 0, 1]]), array.shape)
        write_image(tmp_path / f"{name}_image.nrrd", array, geometry)
        write_segmentation(tmp_path / f"{name}_label.nrrd", ball.astype(np.uint8), geometry, {1: "lesion"})
    monkeypatch.setattr(demo, "sample", lambda name: (tmp_path / f"{name}_image.nrrd", tmp_path / f"{name}_label.nrrd"))
    folder = tiny_model(tmp_path / "resources" / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))  # three planes of random masks agree on little
    (folder / "config.json").write_text(json.dumps({**config, "threshold": 0.3}), encoding="utf-8")
    monkeypatch.setenv("CERS_RESOURCES", str(tmp_path / "resources"))
    return tmp_path


def test_the_demonstration_writes_mask_report_and_summary(volumes, tmp_path, capsys):
    output = tmp_path / "out put ü"
    assert demo.main(["-o", str(output), "--threads", "1", "--planes", "three"]) == 0
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert 0 <= summary["dice"] <= 1 and summary["volume_ml"] > 0 and len(summary["model_hash"]) == 16 and len(summary["pool_hash"]) == 64
    assert {"read", "load_model", "build_pool", "segment", "segment.encode", "segment.evidence", "total"} <= summary["seconds"].keys()
    assert (
        sum(s["plane"] == "axial" for s in summary["slices"]) == 6
        and {s["plane"] for s in summary["slices"]} == {"axial", "coronal", "sagittal"}
        and {"value", "covered", "message"} <= summary["coverage"].keys()
    )
    assert all({"id", "rank", "visual", "cot", "influence"} <= r.keys() for r in summary["references"])
    cases = {c["id"]: c for c in summary["pool"]["cases"]}
    assert {c["patient_id"] for c in cases.values()} == {f"pyradiomics-{name}" for name in demo.POOL}
    refused = {cases[r["id"]]["modality"]: r["reason"] for r in summary["rejected"] if r["stage"] == "compatibility"}
    assert "CT" in refused["CT"] and all(cases[r["id"]]["modality"] == "MR" for r in summary["references"])

    volume = read_volume(volumes / "brain1_image.nrrd")
    mask, names = read_mask(output / "segmentation.seg.nrrd", volume.geometry)
    assert names == {1: "tumor"} and (mask > 0).sum() * volume.geometry.voxel_ml == pytest.approx(summary["volume_ml"], abs=1e-3)
    html = (output / "evidence.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in html and "<script" not in html and "http://" not in html
    printed = capsys.readouterr().out
    assert "not a clinical pool" in printed and f"Dice {summary['dice']:.3f}" in printed


def test_it_can_be_run_again_over_its_own_output(volumes, tmp_path):
    first = demo.run(tmp_path / "demo", threads=1)
    second = demo.run(tmp_path / "demo", threads=1)
    assert first["pool_hash"] == second["pool_hash"] and first["dice"] == second["dice"]


def test_a_folder_that_is_no_pool_is_not_deleted(volumes, tmp_path, capsys):
    precious = tmp_path / "demo" / "pool" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("years")
    assert demo.main(["-o", str(tmp_path / "demo"), "--threads", "1"]) == 1
    assert precious.read_text() == "years" and "is not a pool" in capsys.readouterr().err


def test_output_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert demo.main(["-o", str(tmp_path / "file" / "demo")]) == 1
    assert "could not be written" in capsys.readouterr().err


def test_a_reader_who_stops_reading_is_no_error(volumes, tmp_path, monkeypatch, capfd):
    """``make demo | head`` ends quietly; the files are written by then."""

    def closed(*_words, **_options):
        raise BrokenPipeError

    with monkeypatch.context() as patched:
        patched.setattr(demo, "print", closed, raising=False)
        patched.setattr(demo, "_unread", lambda: 0)  # the test's own output goes on
        assert demo.main(["-o", str(tmp_path / "demo"), "--threads", "1"]) == 0
    assert (tmp_path / "demo" / "summary.json").is_file() and not capfd.readouterr().err


@pytest.mark.parametrize("a, b, value", [([1, 1, 0, 0], [0, 1, 1, 0], 0.5), ([0, 0], [0, 0], 1.0), ([1, 0], [0, 0], 0.0)])
def test_dice(a, b, value):
    assert demo.dice(np.array(a), np.array(b)) == value
