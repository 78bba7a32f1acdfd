"""The store of installed models: in, out, in use, and what a kill or a bad file leaves."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from cers.errors import Cancelled, InputError, ModelError
from cers.inference import load_model, packing, store
from cers.inference.tiny import tiny_model


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A store of the test's own, in a folder whose name has spaces and umlauts."""
    folder = tmp_path / "Meine Modelle für Köpfe"
    monkeypatch.setenv(store.ENVIRONMENT, str(folder))
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("other"), size=64, seed=4)


@pytest.fixture
def run(tmp_path, model_folder):
    """A finished run: its model lies in model/."""
    shutil.copytree(model_folder, tmp_path / "Lauf 1" / "model")
    (tmp_path / "Lauf 1" / "config.yaml").write_text("method: cers\n")
    return tmp_path / "Lauf 1"


def leftovers(home: Path) -> list[str]:
    return [p.name for p in home.iterdir() if p.name.startswith(".")] if home.exists() else []


def test_without_installed_models_the_shipped_one_is_in_use(home):
    entries = store.models()
    assert [e.id for e in entries] == ["shipped"] and entries[0].in_use and not entries[0].problem
    assert store.current()[:2] == ("shipped", "") and not home.exists(), "looking makes no folder"
    with pytest.raises(ModelError, match="No other model was in use"):
        store.back()


def test_install_use_and_back(home, run, other, model_folder):
    entry = packing.install(run)
    assert entry.folder.startswith(str(home)) and entry.name == "tiny untrained model" and entry.hash == load_model(model_folder).hash
    assert entry.id.startswith("tiny-untrained-model-") and not entry.in_use and not entry.problem and entry.source == str(run)
    assert load_model().hash != entry.hash, "installing changes nothing that is in use"
    assert store.use(entry.id).in_use and load_model().hash == entry.hash
    second = packing.install(other, name="Größeres Modell")
    assert second.name == "Größeres Modell" and second.id.startswith("Größeres-Modell-")
    store.use("Größeres Modell")
    assert [(e.id, e.in_use, e.previous) for e in store.models()] == [
        ("shipped", False, False),
        (second.id, True, False),
        (entry.id, False, True),
    ]
    assert store.back().id == entry.id and load_model().hash == entry.hash
    assert store.back().id == second.id, "one click back, one click forth"
    assert store.use("shipped").shipped and store.used() == ["shipped", second.id, entry.id]
    assert not leftovers(home)


def test_every_model_has_a_name(home, run):
    assert packing.install(run, "  ").name == "tiny untrained model"
    for own in ({"name": " "}, {}):
        config = json.loads((run / "model" / "config.json").read_text())
        config.pop("name", None)
        (run / "model" / "config.json").write_text(json.dumps({**config, **own}))
        entry = packing.install(run)
        assert entry.name == "Lauf 1" and entry.id.startswith("Lauf-1-")


def test_installing_twice_changes_nothing_but_adds_a_later_result(home, run):
    first = packing.install(run)
    assert packing.install(run).id == first.id and len(store.models()) == 2 and not first.has_result
    (run / "model" / "result.json").write_text(json.dumps({"mean": {"dice": {"value": 0.71}}, "cases": []}))
    assert packing.install(run).dice == 0.71 and len(store.models()) == 2


def test_out_and_in_again_is_the_same_model_without_names_of_cases(home, run, tmp_path, monkeypatch):
    (run / "model" / "result.json").write_text(
        json.dumps(
            {
                "mean": {"dice": {"value": 0.5}},
                "cases": [{"image": "Müller_Anna", "group": "Müller", "file": "/data/Müller_Anna.nii", "dice": 0.5}],
            }
        )
    )
    (run / "model" / "cases.png").write_bytes(b"picture")
    entry = packing.install(run)
    file = packing.export(entry.id, tmp_path / "Ausfuhr hier.zip")
    with zipfile.ZipFile(file) as archive:
        text = "".join(archive.read(n).decode("utf-8", "replace") for n in archive.namelist() if not n.endswith("safetensors"))
        assert not any("cases.png" in n for n in archive.namelist()) and "Müller" not in text and "/data" not in text
        assert all(n.startswith("tiny-untrained-model/") for n in archive.namelist()), "unpacked by hand it lies in one folder"
    monkeypatch.setenv(store.ENVIRONMENT, str(tmp_path / "another computer"))
    again = packing.install(file)
    assert (again.id, again.hash, again.dice) == (entry.id, entry.hash, 0.5)
    monkeypatch.setenv(store.ENVIRONMENT, str(home))
    with zipfile.ZipFile(packing.export(entry.id, tmp_path / "all.zip", pictures=True)) as archive:
        assert any("cases.png" in n for n in archive.namelist())
    with pytest.raises(InputError, match="must end in one of .zip"):
        packing.export(entry.id, tmp_path / "model.tar")


def test_what_is_in_use_or_shipped_is_not_deleted(home, run, other):
    first, second = packing.install(run), packing.install(other)
    store.use(first.id)
    store.use(second.id)
    with pytest.raises(InputError, match="is in use"):
        packing.delete(second.id)
    with pytest.raises(InputError, match="cannot be deleted"):
        packing.delete("shipped")
    for wrong in ("", "..", "../x", "nothing"):
        with pytest.raises(ModelError):
            packing.delete(wrong)
    packing.delete(first.id)
    assert not Path(first.folder).exists() and store.used() == [second.id, "shipped"], "the one before it is the previous one now"
    assert not leftovers(home)


def test_a_broken_model_is_listed_with_its_reason_and_can_be_deleted(home, run, other):
    entry, sound = packing.install(run), packing.install(other)
    weights = Path(entry.folder) / "model.safetensors"
    data = weights.read_bytes()
    for content, words in ((data[:-5], "not whole"), (b"", "not whole"), (data[:-1] + bytes([data[-1] ^ 1]), "have changed")):
        weights.write_bytes(content)
        broken = store.find(entry.id)
        assert words in broken.problem and broken.name == "tiny untrained model"
        with pytest.raises(ModelError, match="cannot be used"):
            store.use(entry.id)
    weights.unlink()
    (Path(entry.folder) / "config.json").write_text("{")
    assert store.find(entry.id).problem and not store.find(sound.id).problem
    (home / "empty").mkdir()
    assert "no config.json" in store.find("empty").problem
    packing.delete("empty")
    packing.delete(entry.id)
    assert [e.id for e in store.models()] == ["shipped", sound.id]


def test_a_broken_model_is_mended_by_installing_it_again(home, run):
    entry = packing.install(run)
    (Path(entry.folder) / "model.safetensors").write_bytes(b"x")
    assert (
        not packing.install(run).problem
        and len(store.models()) == 2
        and not leftovers(home)
        or all(n.startswith(".deleted") for n in leftovers(home))
    )


def test_the_model_in_use_gone_or_its_note_damaged_is_said(home, run):
    entry = packing.install(run)
    store.use(entry.id)
    shutil.rmtree(entry.folder)
    with pytest.raises(ModelError, match="no longer in"):
        load_model()
    assert [e.in_use for e in store.models()] == [False], "nothing is silently put in its place"
    assert store.use("shipped").in_use and load_model()
    (home / store.IN_USE).write_text('{"models": ["../../etc"]}')
    with pytest.raises(ModelError, match="damaged"):
        store.default_folder()
    assert store.use("shipped").in_use


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"not json"), "damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda f: (f / "config.json").write_text('{"format": 2}'), "format 1"),
        (lambda f: (f / "config.json").write_text(json.dumps({**json.loads((f / "config.json").read_text()), "size": 5})), "size"),
        (
            lambda f: (f / "config.json").write_text(json.dumps({**json.loads((f / "config.json").read_text()), "modality": ["MR"]})),
            "texts",
        ),
        (lambda f: (f / "config.json").write_bytes(b" " * (2 << 20)), "too large"),
    ],
)
def test_a_bad_folder_is_refused_in_one_sentence(home, run, change, words):
    change(run / "model")
    with pytest.raises((InputError, ModelError), match=words) as caught:
        packing.install(run)
    assert ".installing" not in str(caught.value), "the user knows nothing of that folder"
    assert not leftovers(home) and [e.id for e in store.models()] == ["shipped"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_refused(home, run, tmp_path):
    secret = tmp_path / "secret"
    (run / "model" / "MODEL_CARD.md").unlink()
    secret.write_text("secret")
    (run / "model" / "MODEL_CARD.md").symlink_to(secret)
    with pytest.raises(InputError, match="link"):
        packing.install(run)


def zipped(path: Path, folder: Path, extra=()) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("config.json", "model.safetensors"):
            archive.write(folder / name, name)
        for info, data in extra:
            archive.writestr(info, data)
    return path


def test_bad_zip_files_are_refused(home, model_folder, tmp_path):
    link = zipfile.ZipInfo("MODEL_CARD.md")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for extra, words in (
        ([("../evil", b"x")], "points outside"),
        ([("/etc/evil", b"x")], "points outside"),
        ([("C:\\evil", b"x")], "points outside"),
        ([(link, b"/etc/passwd")], "link"),
        ([("b/config.json", b"{}")], "several models"),
    ):
        with pytest.raises(InputError, match=words):
            packing.install(zipped(tmp_path / "bad.zip", model_folder, extra))
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * (3 << 20))
    with pytest.raises(InputError, match="too large"):
        packing.install(bomb)
    whole = zipped(tmp_path / "whole.zip", model_folder).read_bytes()
    for part in (b"", b"PK", whole[: len(whole) // 2]):
        (tmp_path / "part.zip").write_bytes(part)
        with pytest.raises(InputError, match="not a zip file of a model"):
            packing.install(tmp_path / "part.zip")
    record = json.loads((model_folder / "config.json").read_text())
    record["network"]["encoder"] = {"kind": "transformers", "path": "/somewhere"}
    (tmp_path / "needy").mkdir()
    (tmp_path / "needy" / "config.json").write_text(json.dumps(record))
    shutil.copy(model_folder / "model.safetensors", tmp_path / "needy")
    with pytest.raises(InputError, match="needs further files"):
        packing.install(zipped(tmp_path / "needy.zip", tmp_path / "needy"))
    assert not leftovers(home) and len(store.models()) == 1
    assert not packing.install(zipped(tmp_path / "good.zip", model_folder)).problem


def test_cancel_leaves_nothing(home, run):
    with pytest.raises(Cancelled):
        packing.install(run, cancel=lambda: True)
    assert not leftovers(home) and len(store.models()) == 1
    for missing in (run / "nothing", run.parent):
        with pytest.raises(InputError, match="There is no model"):
            packing.install(missing)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind here")
def test_a_store_that_cannot_be_written_is_said(home, run):
    home.mkdir()
    home.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            packing.install(run)
    finally:
        home.chmod(0o700)


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_state(home, run, other):
    """Two models are installed and used in turn by a process that is killed at a random moment."""
    old = packing.install(other)
    store.use(old.id)
    code = (
        "import sys\nfrom cers.inference import packing, store\nprint('go', flush=True)\n"
        "while True:\n"
        f"    store.use(packing.install({str(run)!r}).id)\n    store.use({old.id!r})\n"
        "    packing.delete(next(e.id for e in store.models() if not e.shipped and not e.in_use))\n"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    chance, hashes = random.Random(3), {load_model(run / "model").hash, load_model(other).hash}
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(1.5 + chance.random())
        process.send_signal(signal.SIGKILL if os.name != "nt" else signal.SIGTERM)
        process.wait()
        process.stdout.close()
        assert not [e.problem for e in store.models() if e.problem] and load_model().hash in hashes
    for path in home.glob(".installing-*"):
        os.utime(path, (0, 0))
    packing.install(run)
    assert not [n for n in leftovers(home) if n.startswith((".installing", ".deleted"))], "what the kills left is cleared away"
