"""``cers pool``: make, fill, list, show, search, delete, verify."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import phantom
import pytest
import SimpleITK as sitk

from cers.case import Case, Rationale
from cers.case.io import write_image, write_segmentation
from cers.pool import Pool


@pytest.fixture
def folders(tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    geometry = phantom.volume().geometry
    for seed in (1, 2):
        image, mask = phantom.head(seed)
        write_image(images / f"case{seed}.nii.gz", image, geometry)
        write_segmentation(masks / f"case{seed}.seg.nrrd", mask, geometry, {1: "tumor"})
    return images, masks


def test_make_fill_and_list(cers, folders, tmp_path):
    images, masks = folders
    pool = tmp_path / "pool"
    assert cers("pool", "create", pool)[0] == 0
    assert json.loads(cers("pool", "list", pool, "--json")[1]) == []
    code, out, err = cers(
        "pool", "import", pool, "--images", images, "--masks", masks, "--modality", "MR", "--body-site", "brain", "--max-slices", "2"
    )
    assert code == 0 and "4 cases" in out and err == ""
    cases = json.loads(cers("pool", "list", pool, "--json")[1])
    assert len(cases) == 4 and {c["modality"] for c in cases} == {"MR"}
    code, out, _ = cers("pool", "import", pool, "--images", images, "--masks", masks, "--modality", "MR", "--max-slices", "2", "--json")
    assert code == 0 and json.loads(out)["added"] == 0 and json.loads(out)["cases"] == 4
    assert len(json.loads(cers("pool", "list", pool, "--json", "--modality", "CT")[1])) == 0
    cers("pool", "delete", pool, cases[0]["id"], "--yes")
    out = cers("pool", "import", pool, "--images", images, "--masks", masks, "--modality", "MR", "--max-slices", "2")[1]
    assert "Added 0 cases from 0 images; the pool has 3." in out and "Here already, or the same in another of these images: 3 cases" in out
    assert "Nothing else is in case2." in out and "Left in the trash, where this pool has them: 1 case." in out
    assert cers("pool", "restore", pool, cases[0]["id"])[0] == 0
    assert "4 cases" in cers("pool", "list", pool)[1]
    assert "already" in cers("pool", "create", pool)[1]


def test_masks_that_do_not_say_what_they_show_are_named(cers, folders, tmp_path):
    images, masks = folders
    (masks / "case1.seg.nrrd").rename(tmp_path / "old.seg.nrrd")
    plain = sitk.GetImageFromArray(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "old.seg.nrrd"))))
    plain.CopyInformation(sitk.ReadImage(str(images / "case1.nii.gz")))
    sitk.WriteImage(plain, str(masks / "case1.nii.gz"))  # a segmentation's names are lost
    pool = tmp_path / "pool"
    cers("pool", "create", pool)
    asked = ("pool", "import", pool, "--images", images, "--masks", masks, "--max-slices", "1")
    assert cers(*asked, "--label", "metastasis")[0] == 0
    found = {c["source"]: c["labels"] for c in json.loads(cers("pool", "list", pool, "--json")[1])}
    assert found == {"case1.nii.gz": {"1": "metastasis"}, "case2.nii.gz": {"1": "tumor"}}, "a mask's own name stays"


def test_a_bad_item_is_named_and_the_rest_goes_in(cers, folders, tmp_path):
    images, masks = folders
    (images / "case3.nii.gz").write_text("broken")
    write_segmentation(masks / "case3.seg.nrrd", phantom.head()[1], phantom.volume().geometry, {1: "tumor"})
    cers("pool", "create", tmp_path / "pool")
    code, out, err = cers("pool", "import", tmp_path / "pool", "--images", images, "--masks", masks)
    assert code == 1 and "case3" in err and "Traceback" not in err and "2 images" in out


def test_ctrl_c_during_an_import_tells_what_went_in(cers, folders, tmp_path, monkeypatch):
    import os
    import signal

    from cers.pool import importer

    real, pool = importer.import_volume, tmp_path / "pool"

    def press(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)  # while the first image is at work
        return real(*args, **kwargs)

    cers("pool", "create", pool)
    asked = ("pool", "import", pool, "--images", folders[0], "--masks", folders[1], "--max-slices", "2")
    handler = signal.default_int_handler
    inherited = signal.signal(signal.SIGINT, handler)  # a shell lets its background jobs ignore Ctrl-C
    try:
        monkeypatch.setattr(importer, "import_volume", press)
        code, out, err = cers(*asked)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert code == 130 and "Added 2 cases from 1 image;" in out and "1 image was not imported" in err, (out, err)
    monkeypatch.setattr(importer, "import_volume", real)
    code, out, _ = cers(*asked, "--json")
    assert code == 0 and json.loads(out)["added"] == 2 and not json.loads(out)["cancelled"], "it goes on"


def test_every_case_of_a_list_is_one_line(cers, tmp_path):
    with Pool.create(tmp_path / "pool") as pool:
        pool.add(Case(np.arange(64).reshape(8, 8), np.eye(8, dtype=np.uint8), {1: "tumor"}, diagnosis="one\ttwo\nthree\x1b[2J"))
    lines = cers("pool", "list", tmp_path / "pool")[1].splitlines()
    assert len(lines) == 3 and "one two three [2J" in lines[1] and len(lines[0].split("\t")) == len(lines[1].split("\t"))


def test_brackets_in_names_are_brackets_on_a_terminal(capsys, monkeypatch):
    from rich.console import Console

    from cers.cli import output, pool

    names = ["scan[a].nrrd", "grade [/b] ?", "[red]"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    pool._table([{"id": "1", "labels": {"1": names[0]}, "diagnosis": names[1], "source": names[2]}])
    told = capsys.readouterr().out
    assert all(name in told for name in names)
    for name in names:
        drawn = io.StringIO()
        monkeypatch.setattr(output, "errors", Console(file=drawn, force_terminal=True, width=200))
        with output.progress() as show:
            show(0.5, name)
        assert name in drawn.getvalue()


@pytest.mark.parametrize("filters", [["--review", "aproved"], ["--plane", "axail"]])
def test_a_slip_of_the_pen_is_not_no_case(cers, filled_pool, filters):
    code, out, err = cers("pool", "list", filled_pool, *filters)
    assert code == 2 and out == "" and filters[1] in err and ("approved" in err or "axial" in err)


def test_show(cers, filled_pool):
    case = json.loads(cers("pool", "list", filled_pool, "--json")[1])[0]
    code, out, _ = cers("pool", "show", filled_pool, case["id"][:8], "--json")
    shown = json.loads(out)
    assert code == 0 and shown["id"] == case["id"] and shown["rationale"]["statements"]
    code, out, _ = cers("pool", "show", filled_pool, case["id"])
    assert code == 0 and "Texture:" in out and "<meningioma> & co" in out
    code, _, err = cers("pool", "show", filled_pool, "zzz")
    assert code == 1 and "No case" in err


def test_search_by_text(cers, filled_pool):
    cases = {c["id"] for c in json.loads(cers("pool", "list", filled_pool, "--json")[1])}
    code, out, err = cers("pool", "search", filled_pool, "--text", "bright homogeneous lesion with a sharp edge", "-k", "3", "--json")
    found = json.loads(out)
    assert code == 0 and len(found) == 3 and {f["id"] for f in found} <= cases
    assert [f["similarity"] for f in found] == sorted((f["similarity"] for f in found), reverse=True)
    shown = Rationale.from_dict(json.loads(cers("pool", "show", filled_pool, found[0]["id"], "--json")[1])["rationale"]).compact
    again = json.loads(cers("pool", "search", filled_pool, "--text", shown, "-k", "1", "--json")[1])
    assert again[0]["similarity"] > 0.999
    assert cers("pool", "search", filled_pool, "--text", " ")[0] == 1


def test_search_by_image_finds_the_same_picture_first(cers, filled_pool, model, tmp_path):
    with Pool.open(filled_pool) as pool:
        case = pool.get(pool.ids()[2])
    image, _ = phantom.head(2, lesion=(32.0, 26.0, 4.0), radius=7.0)
    write_image(tmp_path / "v.nrrd", image, phantom.volume().geometry)
    code, out, _ = cers(
        "pool", "search", filled_pool, "--image", tmp_path / "v.nrrd", "--slice", case.slice_index, "--model", model, "-k", "2", "--json"
    )
    found = json.loads(out)
    assert code == 0 and len(found) == 2 and found[0]["volume_id"] == case.volume_id
    picture = np.clip(case.image / 4, 0, 255).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(picture), str(tmp_path / "p.png"))
    assert cers("pool", "search", filled_pool, "--image", tmp_path / "p.png", "--model", model)[0] == 0
    code, _, err = cers("pool", "search", filled_pool, "--image", tmp_path / "v.nrrd", "--slice", "99", "--model", model)
    assert code == 1 and "no slice 99" in err


def test_delete(cers, pool):
    ids = [c["id"] for c in json.loads(cers("pool", "list", pool, "--json")[1])]
    code, _, err = cers("pool", "delete", pool, ids[0], "zzz", "--yes")
    assert code == 1 and len(json.loads(cers("pool", "list", pool, "--json")[1])) == len(ids)
    assert cers("pool", "delete", pool, ids[0], ids[1], "--yes")[0] == 0
    assert [c["id"] for c in json.loads(cers("pool", "list", pool, "--json")[1])] == ids[2:]


def test_verify_exits_with_one_on_any_fault(cers, pool):
    code, out, _ = cers("pool", "verify", pool)
    assert code == 0 and "no faults" in out and "No case names" not in out
    arrays = sorted(p for p in (pool / "arrays").rglob("*") if p.is_file())
    arrays[0].write_bytes(arrays[0].read_bytes()[:-7])
    code, out, _ = cers("pool", "verify", pool, "--json")
    assert code == 1 and len(json.loads(out)["faults"]) == 1
    code, out, _ = cers("pool", "verify", pool)
    assert code == 1 and "1 fault." in out


@pytest.mark.parametrize("arguments", [["list"], ["verify"], ["show", "x"], ["delete", "x"], ["search", "--text", "x"]])
def test_no_pool_there(cers, tmp_path, arguments):
    code, out, err = cers("pool", arguments[0], tmp_path / "none", *arguments[1:])
    assert code == 1 and err.startswith("Error: ") and err.count("\n") == 1


def test_rationales_of_others_are_replaced_only_when_told(cers, pool):
    from dataclasses import replace

    with Pool.open(pool) as opened:
        first = opened.ids()[0]
        opened.add_rationale(first, replace(opened.get(first).rationale, writer="model-y"))
    code, out, _ = cers("rationale", "write", pool, "--writer", "measured")
    assert code == 0 and "Texts of others stay: model-y 1" in out and "Wrote 0" in out
    assert json.loads(cers("rationale", "write", pool, "--writer", "measured", "--dry-run", "--json")[1])["kept"] == {"model-y": 1}
    code, out, _ = cers("rationale", "write", pool, "--writer", "measured", "--over-others")
    assert code == 0 and "will be replaced: model-y 1" in out and "Wrote 1" in out


def test_a_table_of_rationales_replaces_those_of_others_only_when_told(cers, pool, tmp_path):
    from dataclasses import replace

    with Pool.open(pool) as opened:
        first = opened.ids()[0]
        opened.add_rationale(first, replace(opened.get(first).rationale, writer="model-y"))
    table = tmp_path / "texts.csv"
    table.write_text(f"case;texture;boundary;context;summary\n{first};Bright.;Sharp edge.;Alone.;A lesion.\n", encoding="utf-8")
    code, out, _ = cers("rationale", "import", pool, table)
    assert code == 0 and "Added 0 rationales" in out and "Texts of others stay: model-y 1. Add --over-others to replace them." in out
    code, out, _ = cers("rationale", "import", pool, table, "--over-others")
    assert code == 0 and "Added 1 rationale of" in out and "gave way, and stay as earlier versions: model-y 1" in out


def test_a_language_model_without_its_writer_is_not_the_measured_one(cers, pool):
    for options in (["--url", "http://localhost:1/v1", "--model", "m"], ["--model", "m.gguf"], ["--with-picture"]):
        code, out, err = cers("rationale", "write", pool, "--again", *options)
        assert code == 2 and "--writer endpoint" in err and out == ""


def test_a_missing_package_is_named_by_its_own_name(cers, pool, tmp_path, monkeypatch):
    """Not as an extra of cers: where that was not installed by pip, pip would look in its index for another package of that name."""
    monkeypatch.setattr("cers.rationale.writers.endpoint.keyring", lambda: None)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for package, arguments in (
        ("keyring", ["key", "set", "http://localhost:1/v1"]),
        ("xllamacpp", ["write", pool, "--again", "--writer", "local", "--model", tmp_path / "m.gguf", "--yes"]),
    ):
        code, _, err = cers("rationale", *arguments)
        assert code == 1 and f"pip install {package}" in err


def test_letters_that_the_system_cannot_write_are_no_error(tmp_path):
    """Windows writes to files and pipes in an encoding with few letters."""
    with Pool.create(tmp_path / "pool") as pool:
        pool.add(Case(np.arange(400.0).reshape(20, 20), np.eye(20, dtype=np.uint8), {1: "腫瘍"}, diagnosis="Ödem"))
    command = [sys.executable, "-m", "cers", "pool", "list", str(tmp_path / "pool")]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    words, read = (subprocess.run([*command, *more], env=environment, capture_output=True, timeout=300) for more in ([], ["--json"]))
    assert (words.returncode, words.stderr) == (0, b"") and "\\u816b\\u760d" in words.stdout.decode("cp1252")
    assert [(c["labels"], c["diagnosis"]) for c in json.loads(read.stdout)] == [({"1": "腫瘍"}, "Ödem")]
