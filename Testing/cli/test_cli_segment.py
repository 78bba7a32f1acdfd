"""``cers segment`` on files of every kind: the mask in the image's own geometry, evidence, exit codes, nothing half-written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import phantom
import pytest
import SimpleITK as sitk

from cers.case import Geometry
from cers.case.io import read_mask, write_image


def run_segment(cers, model, image, output, *more):
    code, out, err = cers("segment", image, "-o", output, "--model", model, "--modality", "MR", "--threads", "1", *more)
    assert code == 0, err
    return out


def world_mask(path) -> np.ndarray:
    """World positions of the mask's voxels by ITK alone, sorted."""
    image = sitk.ReadImage(str(path))
    inside = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1]
    linear = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    points = np.round(inside @ linear.T + image.GetOrigin(), 3)
    return points[np.lexsort(points.T)]


def test_everything_at_once(cers, model, filled_pool, image, tmp_path):
    out = run_segment(
        cers,
        model,
        image,
        tmp_path / "o.seg.nrrd",
        "--pool",
        filled_pool,
        "--report",
        tmp_path / "r.html",
        "--json",
        tmp_path / "r.json",
        "--probabilities",
        tmp_path / "p.nii.gz",
        "--text",
        "headache",
    )
    assert "tumor" in out and str(tmp_path / "o.seg.nrrd") in out
    geometry = phantom.volume().geometry
    mask, labels = read_mask(tmp_path / "o.seg.nrrd", geometry)
    result = json.loads((tmp_path / "r.json").read_text())
    assert labels == {1: "tumor"} and 0 < mask.mean() < 0.5
    assert result["volume_ml"]["tumor"] == pytest.approx(mask.sum() * geometry.voxel_ml)
    assert sum(s["pixels"] for s in result["slices"]) == mask.sum()
    assert any(s["references"] for s in result["slices"]) and result["provenance"]["pool"]
    assert result["provenance"]["settings"]["clinical_text"] is True and "headache" not in json.dumps(result)
    probability = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "p.nii.gz")))
    threshold = json.loads((model / "config.json").read_text())["threshold"]
    assert probability.shape == mask.shape and ((probability >= threshold) == (mask > 0)).mean() > 0.995
    page = (tmp_path / "r.html").read_text()
    assert "&lt;meningioma&gt; &amp; co" in page and "<meningioma>" not in page and "<script" not in page
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".cers-")]


ROTATION = np.linalg.qr(np.array([[0.9, 0.2, -0.1], [-0.25, 0.95, 0.15], [0.05, -0.2, 1.0]]))[0]
ROTATION = ROTATION * np.sign(np.diag(ROTATION))


STORED = {
    "as it is": ((0, 1, 2), (0, 0, 0)),
    "turned": ((0, 1, 2), (0, 1, 1)),
    "left-handed": ((0, 1, 2), (1, 0, 0)),
    "i and k swapped": ((2, 1, 0), (0, 0, 0)),
    "rolled": ((1, 2, 0), (0, 1, 0)),
    "rolled, left-handed": ((2, 0, 1), (1, 1, 1)),
}


def stored_otherwise(array: np.ndarray, affine: np.ndarray, name: str) -> tuple[np.ndarray, Geometry]:
    """The same voxels at the same places in the patient, in another storage order."""
    order, flips = STORED[name]
    out = np.transpose(array, order)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    own, start = np.eye(4), np.zeros(3)
    for axis in range(3):
        source = 2 - order[axis]
        own[:3, 2 - axis] = affine[:3, source] * (-1 if flips[axis] else 1)
        start[source] = array.shape[order[axis]] - 1 if flips[axis] else 0
    own[:3, 3] = (affine @ (*start, 1))[:3]
    return out, Geometry(own, out.shape)


@pytest.fixture(scope="module")
def masks_by_world():
    return {}


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("oblique", [False, True])
def test_the_mask_lies_at_one_place_in_the_patient_however_the_image_is_stored(cers, model, tmp_path, masks_by_world, name, oblique):
    """One head with anisotropic voxels, upright or oblique, through the whole program."""
    affine = phantom.matrix(ROTATION @ np.diag([-1, -1, 1]) if oblique else None)
    array, geometry = stored_otherwise(phantom.volume().array, affine, name)
    write_image(tmp_path / "image.nii.gz", array, geometry)
    run_segment(cers, model, tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz", "--no-influence")
    found = world_mask(tmp_path / "mask.nii.gz")
    expected = masks_by_world.setdefault(oblique, found)
    assert len(expected) > 100
    common = {tuple(np.round(p, 1)) for p in expected} & {tuple(np.round(p, 1)) for p in found}
    assert len(common) > 0.99 * max(len(expected), len(found))


@pytest.fixture
def finds_what_is_bright(monkeypatch):
    """The network's answer replaced by 'what is bright in its input': reading, framing, pasting back and writing stay as they are."""
    import torch

    from cers.inference import segmenter

    def fused(self, session, wanted, references, alone):
        frames = torch.stack([session.planes[plane].frames[index] for (plane, index), _ in wanted])
        return ((frames - 0.8) * 20).sigmoid(), torch.zeros(len(wanted), 1), torch.zeros(len(wanted), 1)

    monkeypatch.setattr(segmenter.Segmenter, "_fused", fused)


@pytest.mark.parametrize(
    "planes, suffix, name",
    [
        *(("acquisition", ".seg.nrrd", name) for name in STORED),
        *(("acquisition", suffix, name) for suffix in (".nrrd", ".nii.gz") for name in ("as it is", "rolled, left-handed")),
        *(("three", ".nrrd", name) for name in ("i and k swapped", "rolled, left-handed")),
    ],
)
def test_what_was_painted_at_a_place_is_found_at_that_place(cers, model, tmp_path, finds_what_is_bright, name, planes, suffix):
    """A bright rod in an oblique head; nothing may move it by half a voxel, in any storage order and format."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in phantom.SHAPE), indexing="ij")
    head = np.where(((j - 31.5) / 27) ** 2 + ((i - 27.5) / 22) ** 2 < 1, 200, 0)
    rod = ((j - 41) / 7) ** 2 + ((i - 20) / 5) ** 2 < 1
    affine = phantom.matrix(ROTATION @ np.diag([-1, -1, 1]))
    array, geometry = stored_otherwise(np.where(rod, 1000, head).astype(np.int16), affine, name)
    painted = stored_otherwise(rod, affine, name)[0]
    write_image(tmp_path / "image.nrrd", array, geometry)
    run_segment(cers, model, tmp_path / "image.nrrd", tmp_path / f"m{suffix}", "--planes", planes, "--no-influence")
    mask, _ = read_mask(tmp_path / f"m{suffix}", geometry)
    points = world_mask(tmp_path / f"m{suffix}") * (-1, -1, 1)
    expected = geometry.ras(np.argwhere(painted)[:, ::-1])
    assert 2 * (mask.astype(bool) & painted).sum() / (mask.sum() + painted.sum()) > (0.9 if planes == "acquisition" else 0.75)
    inverse = np.linalg.inv(geometry.ijkToRAS[:3, :3])
    assert np.abs(inverse @ (points.mean(0) - expected.mean(0))).max() < 0.25  # voxels, along each of the image's axes


def test_a_cropped_image_gets_a_mask_of_its_own_grid(cers, model, tmp_path):
    base = phantom.volume()
    affine = base.geometry.ijkToRAS.copy()
    affine[:3, 3] = base.geometry.ras((5, 9, 2))
    cut = base.array[2:7, 9:60, 5:50]
    write_image(tmp_path / "cut.nrrd", cut, Geometry(affine, cut.shape))
    run_segment(cers, model, tmp_path / "cut.nrrd", tmp_path / "m.nii.gz")
    read_mask(tmp_path / "m.nii.gz", Geometry(affine, cut.shape))


def test_three_planes(cers, model, image, tmp_path):
    run_segment(cers, model, image, tmp_path / "m.nrrd", "--planes", "three", "--json", tmp_path / "r.json", "--no-influence")
    result = json.loads((tmp_path / "r.json").read_text())
    assert {s["plane"] for s in result["slices"]} == {"axial", "coronal", "sagittal"}


def test_probabilities_that_are_not_the_mask_are_told(cers, model, image, tmp_path):
    files = ["--probabilities", tmp_path / "p.nrrd", "--json", tmp_path / "r.json", "--report", tmp_path / "r.html"]
    out = run_segment(cers, model, image, tmp_path / "m.nrrd", "--planes", "three", "--no-influence", *files)
    cut = json.loads((tmp_path / "r.json").read_text())["cut"]
    mask, p = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))) for name in ("m.nrrd", "p.nrrd"))
    reaches = p >= cut["threshold"]
    assert cut["below"] == ((mask > 0) & ~reaches).sum() and cut["above"] == (reaches & (mask == 0)).sum()
    assert cut["below"] + cut["above"] > 0
    words = f"{cut['below']} voxels of it are below, {cut['above']} voxels"
    assert words in out and words in (tmp_path / "r.html").read_text()


def test_a_picture(cers, model, filled_pool, tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray((phantom.head()[0][4] / 4).astype(np.uint8)), str(tmp_path / "p.png"))
    out = run_segment(cers, model, tmp_path / "p.png", tmp_path / "m.nrrd", "--pool", filled_pool, "--report", tmp_path / "r.html")
    assert "pixels" in out and "ml" not in out.split("Wrote")[0].replace("html", "")
    assert "axial" not in out and ("The pool covers this slice" in out or "No close case in this pool" in out)
    assert "axial slices" not in (tmp_path / "r.html").read_text()
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "m.nrrd"))).shape == (1, 64, 56)
    result = json.loads(run_segment(cers, model, tmp_path / "p.png", tmp_path / "m.nrrd", "--json", "-"))
    assert result["volume_ml"] is None and result["area_mm2"] is None and result["pixels"]["tumor"] > 0


def test_a_single_slice_has_an_area_and_no_volume(cers, model, tmp_path):
    base, middle = phantom.volume(), phantom.head()[0][4:5]
    write_image(tmp_path / "one.nii.gz", middle, Geometry(base.geometry.ijkToRAS, middle.shape))
    out = run_segment(
        cers, model, tmp_path / "one.nii.gz", tmp_path / "m.nrrd", "--report", tmp_path / "r.html", "--json", tmp_path / "r.json"
    )
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["volume_ml"] is None and result["area_mm2"]["tumor"] == pytest.approx(result["pixels"]["tumor"] * 1.5 * 1.5) != 0
    assert f"{result['area_mm2']['tumor']:.0f} mm²" in out and " ml" not in out
    words = re.sub("<[^>]+>", " ", (tmp_path / "r.html").read_text())
    assert f"{result['area_mm2']['tumor']:.0f} mm²" in words and not re.search(r"\d ml\b", words)
    assert "56 × 64 pixels" in words and "1.5 × 1.5 mm" in words and "1.5 × 5 mm" not in words


def test_a_volume_whose_file_gives_no_voxel_size_is_told_in_voxels(cers, model, filled_pool, tmp_path):
    """The reader puts in 1 mm, of which no volume in ml is told."""
    array = np.asarray(phantom.volume().array, np.float32)
    sizes = " ".join(map(str, array.shape[::-1]))
    header = f"NRRD0004\ntype: float\ndimension: 3\nsizes: {sizes}\nendian: little\nencoding: raw\n\n"
    (tmp_path / "v.nrrd").write_bytes(header.encode() + array.tobytes())
    files = ("--pool", filled_pool, "--report", tmp_path / "r.html", "--json", tmp_path / "r.json")
    out = run_segment(cers, model, tmp_path / "v.nrrd", tmp_path / "m.nrrd", *files)
    result = json.loads((tmp_path / "r.json").read_text())
    words = re.sub("<[^>]+>", " ", (tmp_path / "r.html").read_text())
    assert result["volume_ml"] is None and not result["spacing_known"] and result["pixels"]["tumor"] > 0
    assert f"{result['pixels']['tumor']} voxels" in out and not re.search(r"\d (ml|mm)\b", out)
    assert "size of the pixels not known" in words and not re.search(r"\d ml\b", words)


def test_json_on_stdout_and_nothing_else(cers, model, image, tmp_path):
    assert json.loads(run_segment(cers, model, image, tmp_path / "m.nrrd", "--json", "-"))["volume_ml"]


def test_without_a_pool_it_says_so(cers, model, image, tmp_path):
    out = run_segment(cers, model, image, tmp_path / "m.nrrd", "--report", tmp_path / "r.html")
    assert "without evidence" in out and "No pool" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{tmp}/missing.nrrd", "-o", "{tmp}/m.nrrd"], "does not exist"),
        (["{tmp}", "-o", "{tmp}/m.nrrd"], "or a single image file"),
        (["{image}", "-o", "{tmp}/m.png"], "must end in"),
        (["{image}", "-o", "{tmp}/m.nrrd", "--pool", "{tmp}/nowhere"], "no pool"),
        (["{image}", "-o", "{tmp}/m.nrrd", "--model", "{tmp}/nowhere"], "no CERS model"),
        (["{image}", "-o", "{tmp}/m.nrrd", "--report", "{tmp}/r.pdf"], "must end in"),
        (["{image}", "-o", "{image}"], "one and the same"),
        (["{image}", "-o", "{tmp}/m.nrrd", "--probabilities", "{tmp}/m.nrrd"], "one and the same"),
        (["{image}", "-o", "{tmp}/m.nii.gz", "--probabilities", "{tmp}/m.nii"], "would read the voxels of 'm.nii' for those of 'm.nii.gz'"),
        (["{image}", "-o", "{tmp}/m.nrrd", "--modality", "CT"], "model"),
        (["{image}", "-o", "{tmp}/m.nrrd", "--device", "mps"], "not available"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(cers, model, image, tmp_path, arguments, words):
    before = image.read_bytes()
    filled = [a.format(tmp=tmp_path, image=image) for a in arguments]
    code, out, err = cers("segment", *filled, *([] if "--model" in filled else ["--model", model]))
    assert code == 1 and out == "" and err.startswith("Error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert words.lower() in err.lower()
    assert [p.name for p in tmp_path.iterdir()] == ["image.nrrd"] and image.read_bytes() == before


def test_a_mask_is_not_taken_for_an_image(cers, model, tmp_path):
    write_image(tmp_path / "mask.nrrd", (np.indices((4, 40, 40)).sum(0) > 40).astype(np.uint8), Geometry(np.eye(4), (4, 40, 40)))
    code, out, err = cers("segment", tmp_path / "mask.nrrd", "-o", tmp_path / "m.nrrd", "--model", model)
    assert code == 1 and out == "" and "looks like a mask" in err and not (tmp_path / "m.nrrd").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["segment"],
        ["segment", "x.nrrd"],
        ["segment", "x", "-o", "y", "--planes", "oblique"],
        ["segment", "x", "-o", "y", "--threads", "0"],
        ["nonsense"],
        ["pool", "search", "x"],
    ],
)
def test_wrong_usage(cers, arguments):
    code, out, err = cers(*arguments)
    assert code == 2 and "Traceback" not in err


def test_an_earlier_output_is_replaced(cers, model, image, tmp_path):
    (tmp_path / "m.nrrd").write_text("old")
    run_segment(cers, model, image, tmp_path / "new" / "m.nrrd")
    run_segment(cers, model, image, tmp_path / "m.nrrd")
    assert read_mask(tmp_path / "m.nrrd", phantom.volume().geometry)[0].any()


def _at_work(process) -> None:
    """Waits until the command has loaded what it computes with, however busy the machine is."""
    maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 120
    while maps.exists() and "libtorch" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(4)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_leaves_nothing_behind(model, image, tmp_path):
    big = phantom.volume()
    write_image(tmp_path / "big.nrrd", np.concatenate([big.array] * 160), Geometry(big.geometry.ijkToRAS, (1280, 64, 56)))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cers",
            "segment",
            str(tmp_path / "big.nrrd"),
            "-o",
            str(tmp_path / "m.nrrd"),
            "--model",
            str(model),
            "--report",
            str(tmp_path / "r.html"),
            "--planes",
            "three",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it for what runs in the background
    )
    _at_work(process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == "" and "Traceback" not in err, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.nrrd", "image.nrrd"]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere no process ends by a signal")
@pytest.mark.parametrize("where", ["cers.cli.app.app", "cers.case.io.read_volume"])
def test_ctrl_c_in_the_midst_of_an_import_is_130_too(tmp_path, where):
    """Libraries make dataclasses by exec of text; interrupted there, ``python -m`` would end by the signal although it was caught."""
    (tmp_path / "probe.py").write_text(
        "import sys, cers.cli, cers.cli.app, cers.case.io\n"
        "def stop(*args, **kwargs): exec('raise KeyboardInterrupt')\n"
        f"{where} = stop\n"
        "sys.exit(cers.cli.main(['segment', 'x.nrrd', '-o', 'm.nrrd']))"
    )
    (tmp_path / "x.nrrd").touch()
    search = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "probe"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True
    )
    assert done.returncode == 130 and done.stdout == "" and done.stderr.startswith("Cancelled.")


def test_help_is_quick_and_teaches():
    code = "import sys, cers.cli.app; sys.exit(any(m in sys.modules for m in ('torch', 'faiss', 'SimpleITK', 'transformers', 'pydicom')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    for command in ([], ["segment"], ["pool"], ["pool", "import"], ["pool", "search"], ["info"]):
        done = subprocess.run([sys.executable, "-m", "cers", *command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "Usage" in done.stdout and done.stderr == ""


def test_info(cers, model, tmp_path):
    code, out, _ = cers("info", "--model", model, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["model"]["labels"] == ["tumor"] and "cpu" in facts["devices"] and facts["versions"]["torch"]
    code, out, _ = cers("info", "--model", model)
    assert code == 0 and "tiny untrained model" in out
    assert cers("info", "--model", tmp_path)[0] == 1
    assert cers("--version")[:2] == (0, "cers " + facts["versions"]["cers"] + "\n")
