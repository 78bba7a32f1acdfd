"""``cers evaluate``, ``cers compare`` and ``cers model`` with a real small model: what they print, write and refuse."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import phantom
import pytest
import SimpleITK as sitk
from PIL import Image

from cers.case import Geometry
from cers.case.io import write_image, write_segmentation
from cers.evaluation.card import _evaluation
from cers.evaluation.leak import leaking
from cers.evaluation.page import write_page
from cers.pool import Pool
from cers.pool.importer import import_folder


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """images, masks: four pictures, the last without a mask; table.csv; pool: three more pictures and the very picture of case1."""
    top = tmp_path_factory.mktemp("evaluate")
    for seed in range(7):
        image, mask = phantom.head(seed, lesion=(26.0 + seed, 20.0 + seed, 4.0), radius=6.0)
        kind = "" if seed < 4 else "pool_"
        save(top / f"{kind}images" / f"case{seed}.png", image[4] / 900 * 255)
        if seed != 3:
            save(top / f"{kind}masks" / f"case{seed}.png", mask[4] * 255)
    for kind in ("images", "masks"):
        shutil.copy(top / kind / "case1.png", top / f"pool_{kind}" / "copy.png")
    (top / "table.csv").write_text("image,group,diagnosis\ncase0,a,glioma\ncase1,a,glioma\ncase2,b,meningioma\n")
    with Pool.create(top / "pool") as pool:
        report = import_folder(pool, top / "pool_images", top / "pool_masks", defaults={"modality": "MR", "body_site": "brain"})
        assert len(report.ids) == 4
    return top


def against_pool(folders, model) -> list:
    return ["evaluate", folders / "images", folders / "masks", "--pool", folders / "pool", "--model", model]


@pytest.fixture(scope="module")
def done(folders, model, tmp_path_factory):
    """One run as a process of its own that several tests look at: (completed process, result, folder of its files)."""
    out = tmp_path_factory.mktemp("out")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "cers",
            *against_pool(folders, model),
            "--csv",
            folders / "table.csv",
            "--json",
            out / "r.json",
            "--html",
            out / "r.html",
            "--threads",
            "1",
            "--device",
            "cpu",
            "--name",
            "four <pictures>",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr
    return run, json.loads((out / "r.json").read_text(encoding="utf-8")), out


def test_the_leak_report_comes_first(done):
    run, result, _ = done
    assert run.stdout.startswith("Leak report: 3 images against 4 cases of the pool: ")
    assert "area difference, px" in run.stdout and "HD95, px" in run.stdout
    assert "case1" in run.stdout.partition("Dice")[0] and run.stdout.index("Leak report") < run.stdout.index("Dice")
    assert "identical" in next(r for r in result["leak"]["images"] if r["image"] == "case1")
    assert "Not evaluated: case3: there is no mask of this name" in run.stderr and "case3" in result["left"]


def test_the_result_holds_everything(done, folders, cers, model):
    _, result, _ = done
    code, out, _ = cers("model", "show", model, "--json")
    assert code == 0 and result["model"] == json.loads(out)["hash"]
    with Pool.open(folders / "pool", read_only=True) as pool:
        assert result["pool"] == pool.hash() and result["pool_cases"] == 4
    assert result["images"] == 3 and [c["image"] for c in result["cases"]] == ["case0", "case1", "case2"]
    assert result["name"] == "four <pictures>"
    for row in result["mean"].values():
        assert set(row) >= {"value", "low", "high", "n"} and (row["value"] is None or row["low"] <= row["value"] <= row["high"])
    assert result["mean"]["dice"]["value"] == pytest.approx(np.mean([c["dice"] for c in result["cases"]]), abs=1e-4)
    assert result["rules"]["groups"] == 2 and set(result["by_diagnosis"]) == {"glioma", "meningioma"}
    assert set(result["calibration"]) == {"temperature", "everywhere", "near_lesion", "before", "before_near_lesion"}
    assert 0 <= result["calibration"]["everywhere"]["ece"]["value"] <= 1
    assert sum(b["voxels"] for b in result["calibration"]["everywhere"]["bins"]) == 3 * 64 * 56
    assert {"coverage", "confidence", "agreement"} <= set(result["failure"])
    assert set(result["failure"]["coverage"]["auroc"]) >= {"value", "n", "failures"}
    assert all(0 <= c["coverage"] <= 1 and c["references"] >= 0 for c in result["cases"])


def test_figures_are_those_of_the_masks_that_segment_writes(done, folders, cers, model, tmp_path):
    code, _, err = cers(
        "segment",
        folders / "images" / "case2.png",
        "-o",
        tmp_path / "m.nrrd",
        "--pool",
        folders / "pool",
        "--model",
        model,
        "--threads",
        "1",
        "--no-influence",
    )
    assert code == 0, err
    measure = sitk.LabelOverlapMeasuresImageFilter()
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "m.nrrd")))[0] > 0
    expert = np.asarray(Image.open(folders / "masks" / "case2.png")) > 0
    measure.Execute(*(sitk.GetImageFromArray(m.astype(np.uint8)) for m in (expert, mask)))
    assert done[1]["cases"][2]["dice"] == pytest.approx(measure.GetDiceCoefficient(), abs=1e-6)


def test_the_page_is_safe_and_has_the_diagram(done):
    page = (done[2] / "r.html").read_text(encoding="utf-8")
    assert "four &lt;pictures&gt;" in page and "<script" not in page and "http-equiv" in page
    assert 'aria-label="Reliability diagram"' in page and "LEAK" in page and "case3" in page and "src=" not in page
    lowest = page.partition("lowest Dice")[2].partition("</table>")[0]
    assert re.search(r'<td>case\d</td><td class="n">[\d.]+</td>', lowest)  # a number is never broken in two lines


def test_leaking_images_can_be_left_out(folders, model, cers, tmp_path):
    code, out, err = cers(
        *against_pool(folders, model),
        "--without-leaks",
        "--threads",
        "1",
        "--json",
        "-",
    )
    result = json.loads(out)
    assert code == 0 and "it leaks" in result["left"]["case1"] and "case1" not in [c["image"] for c in result["cases"]]
    assert err.startswith("Leak report") and result["leak"]["checked"] == 3
    assert result["leak"]["leaking"] and leaking(result) == 0
    assert "0 of them in or close to the pool" in _evaluation(result, Path("r.json"))
    page = write_page(tmp_path / "page.html", result).read_text(encoding="utf-8")
    assert "None of these is among the images of this page" in page


def test_volumes_without_a_pool_along_three_planes(model, cers, tmp_path):
    geometry = Geometry(phantom.matrix(), phantom.SHAPE)
    image, mask = phantom.head(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    write_image(tmp_path / "images" / "v.nii.gz", image, geometry)
    write_segmentation(tmp_path / "masks" / "v_mask.nii.gz", mask, geometry, {1: "tumor"})
    code, out, err = cers(
        "evaluate",
        tmp_path / "images",
        tmp_path / "masks",
        "--model",
        model,
        "--planes",
        "three",
        "--threads",
        "1",
        "--modality",
        "MR",
        "--json",
        tmp_path / "r.json",
    )
    result = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and out.startswith("Leak report: no pool was given") and "HD95, mm" in out
    assert result["leak"] is None and result["pool"] is None and "coverage" not in result["failure"] and result["planes"] == "three"
    assert result["calibration"]["before"] is None and result["calibration"]["near_lesion"] is not None


def test_a_file_that_cannot_be_used_gives_exit_code_1_after_the_rest(folders, cers, tmp_path):
    shutil.copytree(folders / "masks", tmp_path / "made")
    save(tmp_path / "made" / "case0.png", np.zeros((9, 9)))
    code, out, err = cers(
        "evaluate", folders / "images", folders / "masks", "--predictions", tmp_path / "made", "--json", tmp_path / "r.json"
    )
    result = json.loads((tmp_path / "r.json").read_text())
    assert code == 1 and "Not evaluated: case0" in err and "1 of 3 images could not be evaluated" in err
    assert result["images"] == 2 and result["mean"]["dice"]["value"] == 1.0 and "2 images" in out


def test_comparing_two_results(done, folders, cers, tmp_path):
    for place in ("p", "q"):
        shutil.copytree(folders / "masks", tmp_path / place)
    save(tmp_path / "q" / "case0.png", np.zeros((64, 56)))
    for place in ("p", "q"):
        assert (
            cers(
                "evaluate",
                folders / "images",
                folders / "masks",
                "--predictions",
                tmp_path / place,
                "--csv",
                folders / "table.csv",
                "--json",
                tmp_path / f"{place}.json",
            )[0]
            == 0
        )
    code, out, _ = cers("compare", tmp_path / "p.json", tmp_path / "q.json", "--json", tmp_path / "d.json")
    found = json.loads((tmp_path / "d.json").read_text())
    assert code == 0 and "q.json minus p.json, 3 cases" in out and found["difference"]["dice"]["value"] == pytest.approx(-1 / 3, abs=1e-4)
    assert found["difference"]["hd95"]["n"] == 2 and found["difference"]["hd95"]["undefined"] == 1
    (tmp_path / "q" / "case2.png").unlink()
    cers("evaluate", folders / "images", folders / "masks", "--predictions", tmp_path / "q", "--json", tmp_path / "q.json")
    code, out, err = cers("compare", tmp_path / "p.json", tmp_path / "q.json")
    assert code == 1 and not out and "case2 only in the first" in err


def test_the_card_is_written_from_results(done, cers, model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    before = (folder / "MODEL_CARD.md").read_text()
    code, out, err = cers("model", "card", folder, "--results", done[2] / "r.json")
    card = (folder / "MODEL_CARD.md").read_text()
    assert code == 0 and "MODEL_CARD.md" in out and card.startswith(before.rstrip()) and "### four (pictures)" in card
    assert f"{done[1]['mean']['dice']['value']:.3f} [" in card
    code, out, _ = cers("model", "show", folder)
    assert code == 0 and "temperature" in out and "### four (pictures)" in out
    wrong = tmp_path / "w.json"
    wrong.write_text(json.dumps({**done[1], "model": "0123"}))
    code, _, err = cers("model", "card", folder, "--results", wrong)
    assert code == 1 and "measured with the model 0123" in err and (folder / "MODEL_CARD.md").read_text() == card
    assert cers("model", "show", tmp_path / "nothing")[0] == 1


def test_training_images_are_told(folders, cers, tmp_path):
    names = sorted(p.name.split(".")[0] for p in (folders / "images").iterdir())
    table = tmp_path / "t.csv"
    table.write_text("image,split\n" + "".join(f"{n},{'Train' if k == 0 else 'test'}\n" for k, n in enumerate(names)), encoding="utf-8")
    made = shutil.copytree(folders / "masks", tmp_path / "made")
    files = ["--json", tmp_path / "r.json", "--html", tmp_path / "r.html"]
    code, _, err = cers("evaluate", folders / "images", folders / "masks", "--predictions", made, "--csv", table, *files)
    assert code == 0 and "1 image is for training, says the table: who learned from that" in err, err
    assert json.loads((tmp_path / "r.json").read_text())["training_images"] == 1
    assert "1 of them for training" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    "options, code",
    [
        (["--predictions", "x", "--model", "y"], 2),
        (["--labels", "1=a"], 2),
        (["--without-leaks"], 2),
        (["--predictions", "x", "--labels", "one"], 2),
        (["--predictions", "x", "--planes", "three"], 2),
        (["--predictions", "x", "--threads", "2"], 2),
        (["--predictions", "nowhere"], 1),
        (["--json", "r.txt"], 1),
        (["--pool", "nowhere"], 1),
    ],
)
def test_wrong_options(folders, cers, tmp_path, monkeypatch, options, code):
    monkeypatch.chdir(tmp_path)
    got, out, err = cers("evaluate", folders / "images", folders / "masks", *options)
    assert got == code and "Traceback" not in err and not list(tmp_path.iterdir())


def test_a_model_of_several_labels_in_one_folder_of_images_and_masks(cers, tmp_path):
    from cers.inference.tiny import tiny_model

    model = tiny_model(tmp_path / "model", labels=("front", "back"), size=64)
    geometry, folder = Geometry(phantom.matrix(), phantom.SHAPE), tmp_path / "both"
    folder.mkdir()
    for seed in range(2):
        image, mask = phantom.head(seed)
        halves = mask * 2
        halves[:, :30] = mask[:, :30]
        write_image(folder / f"v{seed}_image.nii.gz", image, geometry)
        write_segmentation(folder / f"v{seed}_label.nii.gz", halves, geometry, {1: "front", 2: "back"})
    code, out, err = cers("evaluate", folder, folder, "--model", model, "--threads", "1", "--json", "-")
    assert code == 0, err
    result = json.loads(out)
    assert result["labels"] == ["front", "back"] and set(result["by_label"]) == {"front", "back"} and result["left"] == {}
    for case in result["cases"]:
        assert case["dice"] == pytest.approx(np.mean([case["labels"][name]["dice"] for name in ("front", "back")]), abs=1e-6)
    assert sum(b["voxels"] for b in result["calibration"]["everywhere"]["bins"]) == 2 * 2 * np.prod(phantom.SHAPE)
    halves[halves == 2] = 3
    write_segmentation(folder / "v1_label.nii.gz", halves, geometry, {1: "front", 3: "middle"})
    code, out, err = cers("evaluate", folder, folder, "--model", model, "--threads", "1", "--json", "-")
    assert code == 1 and "has the label 3" in err and json.loads(out)["images"] == 1
