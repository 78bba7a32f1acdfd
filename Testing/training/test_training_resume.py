"""What happens to a run folder, its data and its process between start and end, as it does to people's."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from runs import metrics, settings
from safetensors.torch import load_file
from typer.testing import CliRunner

from cers.cli.app import app
from cers.errors import InputError, TrainingError
from cers.inference import model
from cers.training import runfolder, trainer
from cers.training.config import TrainConfig
from cers.training.runfolder import RunFolder
from cers.training.runs import read_run
from cers.training.soup import mean_model
from cers.training.trainer import train


def test_the_finder_may_leave_its_file_among_checkpoints(folder, cache, tmp_path):
    config, run = settings(folder, method="supervised", steps=3), tmp_path / "run"
    train(config, run, cache)
    (run / "checkpoints/.DS_Store").write_bytes(b"mine")
    assert train(config, run, cache, resume=True) == "finished"


@pytest.mark.parametrize("begun", ["now", "by an earlier version"])
def test_a_run_does_not_go_on_with_other_volumes_without_a_lesion(folder, cache, tmp_path, begun):
    free, run = tmp_path / "free.png", tmp_path / "run"
    Image.open(folder / "images/train/train_001.jpg").save(free)
    config = settings(folder, method="supervised", steps=4, lesion_free=[str(free)], allow_leaks=True)
    train(config, run, cache)
    shutil.rmtree(run / "checkpoints/step_00000004")
    assert train(config, run, cache, resume=True) == "finished"
    if begun != "now":
        for state in run.glob("checkpoints/*/state.json"):
            record = json.loads(state.read_text())
            record.pop("lesion_free", None)
            state.write_text(json.dumps(record))
    Image.open(folder / "images/train/train_000.jpg").save(free)
    if begun != "now":
        assert train(config, run, cache, resume=True) == "finished"
    else:
        with pytest.raises(InputError, match="lesion_free.* are not those that this run began with"):
            train(config, run, cache, resume=True)


def test_a_run_goes_on_with_data_that_were_copied_anew_but_not_with_others(folder, cache, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "pictures")  # other tests read the one that is shared
    free, run = tmp_path / "free.png", tmp_path / "run"
    Image.open(folder / "images/train/train_001.jpg").save(free)
    config = settings(folder, method="supervised", steps=4, lesion_free=[str(free)], allow_leaks=True)
    train(config, run, cache)
    shutil.rmtree(run / "checkpoints/step_00000004")
    for file in (free, *folder.rglob("*.*")):  # as a copy without the dates of its files has it
        os.utime(file, (1e9, 1e9))
    assert train(config, run, cache, resume=True) == "finished"
    shutil.rmtree(run / "checkpoints/step_00000004")
    outline = folder / "masks/train/train_001.png"
    before = outline.stat()
    outline.write_bytes(outline.with_name("train_002.png").read_bytes())
    os.utime(outline, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(InputError, match="are not those that this run began with"):
        train(config, run, cache, resume=True)


@pytest.mark.parametrize("damage", ["a file is missing", "nothing in the state", "no state"])
def test_an_incomplete_checkpoint_is_passed_over(folder, cache, tmp_path, damage):
    config, run = settings(folder, method="supervised", steps=6), tmp_path / "run"
    train(config, run, cache)
    before, last = load_file(run / "model.safetensors"), RunFolder(run).checkpoints()[-1]
    if damage == "a file is missing":
        (last / "teacher.safetensors").unlink()
    else:
        (last / "state.json").write_text("{}" if damage == "nothing in the state" else "[1]")
    assert train(config, run, cache, resume=True) == "finished"
    after = load_file(run / "model.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert [r["step"] for r in metrics(run) if "final" in r] == [6]


def test_a_checkpoint_with_a_file_of_another_run_is_named(folder, cache, tmp_path):
    config, run, other = settings(folder, steps=4), tmp_path / "run", tmp_path / "other"
    train(config, run, cache)
    train(settings(folder, steps=4, network={**config.network, "widths": [12, 12, 16]}), other, cache)
    for name in ("student", "memory"):
        shutil.copytree(run, tmp_path / name)
        shutil.copy(other / f"checkpoints/step_00000004/{name}.safetensors", tmp_path / name / "checkpoints/step_00000004")
    (tmp_path / "memory/checkpoints/step_00000004/memory.safetensors").unlink()
    shutil.copy(run / "checkpoints/step_00000004/student.safetensors", tmp_path / "memory/checkpoints/step_00000004/memory.safetensors")
    for name in ("student", "memory"):
        with pytest.raises(InputError, match="checkpoint of step 4 .* does not fit its run"):
            train(config, tmp_path / name, cache, resume=True)


@pytest.mark.parametrize("name", ["student", "teacher", "optimizer", "memory"])
def test_a_checkpoint_with_a_file_of_another_step_is_named(folder, cache, tmp_path, name):
    config, run = settings(folder, steps=4), tmp_path / "run"
    train(config, run, cache)
    shutil.copy(run / f"checkpoints/step_00000002/{name}.safetensors", run / "checkpoints/step_00000004")
    with pytest.raises(InputError, match="checkpoint of step 4 .* does not fit its run"):
        train(config, run, cache, resume=True)
    shutil.rmtree(run / "checkpoints/step_00000004")
    assert train(config, run, cache, resume=True) == "finished"


def test_a_run_goes_on_without_the_weights_that_it_began_with(folder, cache, tmp_path):
    """Bit for bit, across a refresh of image vectors, with loaders and unlabelled pictures; and its mean can be made."""
    first, weights = tmp_path / "first", tmp_path / "begin.safetensors"
    train(settings(folder, steps=1), first, cache)
    shutil.copy(first / "model.safetensors", weights)
    config = settings(folder, steps=9, initial=str(weights), checkpoint_steps=1, keep=9)
    for name in ("straight", "broken"):
        train(config, tmp_path / name, tmp_path / name / "cache")
    for checkpoint in RunFolder(tmp_path / "broken").checkpoints()[5:]:
        shutil.rmtree(checkpoint)
    shutil.rmtree(tmp_path / "broken/cache")
    weights.unlink()
    config.loaders = 2
    assert train(config, tmp_path / "broken", tmp_path / "broken/cache", resume=True) == "finished"
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert mean_model([tmp_path / "straight", tmp_path / "broken"], tmp_path / "mean", [1, 2], cache)["plain"] >= 0
    for shares in ([float("nan"), 1], [float("inf"), 1]):
        with pytest.raises(InputError, match="2 shares of 0 or more"):
            mean_model([tmp_path / "straight", tmp_path / "broken"], tmp_path / "none", shares, cache)


def test_metrics_and_examples_are_of_this_run_only(folder, cache, tmp_path):
    """A run that ended before its first checkpoint is begun anew in its folder, by resuming it or with other settings."""
    config, run = settings(folder, steps=4, validate=2), tmp_path / "run"
    for settled, resume in ((config, True), (settings(folder, steps=3, seed=4), False)):
        train(config, run, cache)
        for name in ("checkpoints", "model"):
            shutil.rmtree(run / name)
        (run / "model.safetensors").unlink()
        (run / "metrics.jsonl").open("ab").write(b'{"step": null}\n{"step": 9, "lo\xff\x00')
        train(settled, run, cache, resume=resume)
        steps = [r["step"] for r in metrics(run)]
        assert steps == sorted(steps) and steps[-1] == settled.steps
        assert sorted(p.name for p in (run / "examples").iterdir())[-1] == f"step_{settled.steps:08d}.png"
        shutil.rmtree(run)


def test_a_run_that_ended_while_it_read_pictures_can_be_resumed(folder, tmp_path, monkeypatch):
    config, run, cache = settings(folder, method="supervised", steps=1), tmp_path / "run", tmp_path / "cache"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match="prepared pictures could not be written"):
        train(config, run, cache)
    monkeypatch.undo()
    assert read_run(run).resumable
    done = CliRunner().invoke(app, ["train", "--resume", str(run), "--cache", str(cache)])
    assert done.exit_code == 0, done.output


def test_a_stop_when_a_validation_is_due_loses_no_point_of_the_curve(folder, cache, tmp_path, monkeypatch):
    config, run = settings(folder, method="supervised", steps=8, validate=4), tmp_path / "run"
    train(config, tmp_path / "straight", cache)
    step = trainer.Trainer.one_step

    def stopped(self, share):
        figures = step(self, share)
        if self.step in (3, 4, 5):
            (run / "stop").touch()
        return figures

    monkeypatch.setattr(trainer.Trainer, "one_step", stopped)
    ends = [train(config, run, cache, resume=n > 0) for n in range(4)]
    assert ends == ["stopped", "stopped", "stopped", "finished"]
    points, straight = ([r for r in metrics(place) if "loss" not in r] for place in (run, tmp_path / "straight"))
    assert [r["step"] for r in points] == [2, 4, 6, 8] and points == straight


def test_what_an_earlier_process_died_of_is_not_said_of_a_later_one(folder, cache, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def ending(error):
        def end(*_):
            raise error

        return end

    config, run = settings(folder, method="supervised", steps=1), tmp_path / "run"
    monkeypatch.setattr(trainer, "open_dataset", ending(InputError("The disk is full.")))
    with pytest.raises(InputError):
        train(config, run, cache)
    (run / "output.txt").write_text("Error: The disk is full.\n")
    os.utime(run / "output.txt", (1e9, 1e9))
    monkeypatch.setattr(trainer, "open_dataset", ending(Killed()))
    with pytest.raises(Killed):
        train(config, run, cache, resume=True)
    found = read_run(run)
    assert found.state == "crashed" and "without a word" in found.reason


@pytest.mark.skipif(os.name == "nt", reason="quoted otherwise")
def test_the_command_to_go_on_can_be_copied(folder, cache, tmp_path):
    run, file = tmp_path / "mein Lauf (Köpfe)", tmp_path / "settings.yaml"
    settings(folder, method="supervised", steps=1).write(file)
    run.mkdir()
    (run / "stop").touch()
    (run / "launch.json").write_text('{"started": 0}')
    done = CliRunner().invoke(app, ["train", "--config", str(file), "--out", str(run), "--cache", str(cache)])
    assert shlex.split(done.output.partition("Go on with: ")[2]) == ["cers", "train", "--resume", str(run)], done.output


def test_a_resume_says_where_pictures_are_missed(folder, cache, tmp_path):
    data, run = tmp_path / "Köpfe", tmp_path / "run"
    shutil.copytree(folder, data)
    config = settings(data, method="supervised", steps=2)
    train(config, run, cache)
    data.rename(tmp_path / "away")
    with pytest.raises(InputError, match="pictures are not in '.*Köpfe' any more.*then resume"):
        train(config, run, cache, resume=True)
    os.symlink(tmp_path / "away", data)
    assert train(config, run, cache, resume=True) == "finished"
    done = CliRunner().invoke(app, ["train", "--resume", str(tmp_path / "typo")])
    assert done.exit_code == 1 and "it is not there. Give the folder of a run" in done.output and done.output.count("\n") == 1


def test_a_disk_that_is_full_when_the_model_is_written(folder, cache, tmp_path, monkeypatch):
    config, run, real = settings(folder, method="supervised", steps=2), tmp_path / "run", os.replace

    def full(source, target):
        if "model" in str(target) and str(target).endswith("model.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(model, "CONFIG", "model.json")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(TrainingError, match="The model could not be written .* disk is full; the checkpoint step_00000002 is kept"):
        train(config, run, cache)
    monkeypatch.undo()
    assert {p.name for p in (run / "model").iterdir()} == {"model.safetensors", "MODEL_CARD.md"}, "nothing half-written takes up room"
    for left in ("model/.cers-killed.json", "model/.tmpQ3x8Zk", ".tmpa1B2c3"):
        (run / left).write_bytes(b"half")
    assert train(config, run, cache, resume=True) == "finished" and not list(run.rglob(".*"))
    again = tmp_path / "again"
    train(TrainConfig.of({**vars(config), "seed": 0}), again, cache)
    monkeypatch.setattr(model, "CONFIG", "model.json")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="model could not be written to '.*mean'. Make room"):
        mean_model([run, again], tmp_path / "mean", None, cache)
    assert not (tmp_path / "mean").exists() and not list(tmp_path.glob(".mean*"))


def test_a_run_in_the_present_folder_has_its_name(folder, cache, tmp_path, monkeypatch):
    (tmp_path / "Lauf").mkdir()
    monkeypatch.chdir(tmp_path / "Lauf")
    train(settings(folder, method="supervised", steps=1), ".", cache)
    assert model.ModelConfig.read(tmp_path / "Lauf/model/config.json").name == "supervised, Lauf"


@pytest.mark.skipif(os.name == "nt", reason="no such rights on Windows")
def test_others_may_read_all_that_a_run_leaves(folder, tmp_path):
    """A run folder may be shared: another person resumes it, or installs its model."""
    before = os.umask(0o022)
    try:
        train(settings(folder, steps=1), tmp_path / "run", tmp_path / "run/cache")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files and not [path for path in files if path.stat().st_mode & 0o444 != 0o444]


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_second_ctrl_c_ends_at_once(folder, cache, tmp_path, monkeypatch, capfd):
    """Where a validation takes long; what was saved stays, and the run goes on from it."""
    config, run = settings(folder, method="supervised", steps=8, validate=2, checkpoint_steps=2), tmp_path / "run"
    monkeypatch.setattr(runfolder, "AGAIN_SECONDS", 0.2)

    def impatient(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun passes it on, too
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr(trainer, "validate", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(config, run, cache)
    assert capfd.readouterr().err.count("Press Ctrl-C again to stop at once") == 1
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    monkeypatch.undo()
    assert train(config, run, cache, resume=True) == "finished"


@pytest.mark.parametrize("left", [0, 100, 1000])
@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_prepared_pictures_that_were_cut_short_are_made_again(folder, tmp_path, kind, left):
    data, cache = folder, tmp_path / "cache"
    if kind == "volumes":
        data = tmp_path / "data"
        for name in ("images", "masks"):
            shutil.copytree(folder / name / "train", data / name)
    config = settings(data, steps=2)
    train(config, tmp_path / "first", cache)
    kept = {path: path.read_bytes() for path in cache.iterdir()}
    for path, content in kept.items():
        path.write_bytes(content[: min(left, len(content) - 2)])
    train(config, tmp_path / "second", cache)
    assert {path: path.read_bytes() for path in cache.iterdir()} == kept


def test_a_log_that_cannot_be_written_is_said(folder, cache, tmp_path):
    (tmp_path / "run/log.txt").mkdir(parents=True)
    with pytest.raises(TrainingError, match="Log.txt could not be written to"):
        train(settings(folder, steps=1), tmp_path / "run", cache)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_log_without_room_ends_no_run(folder, cache, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.txt").symlink_to("/dev/full")
    assert train(settings(folder, steps=1, method="supervised"), tmp_path / "run", cache) == "finished"
