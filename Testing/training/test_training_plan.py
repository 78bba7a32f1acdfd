"""What is said before a run starts, and how runs look from outside: counts, leaks, time and memory; states, curves, stop and delete."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ROOT, end, settings, start, wait_for_step
from typer.testing import CliRunner

from cers.cli.app import app
from cers.errors import InputError, TrainingError
from cers.training import pictures, plan, runs
from cers.training import trainer as trainer_module
from cers.training.runfolder import RunFolder
from cers.training.trainer import train


@pytest.fixture(scope="module")
def done(folder, cache, tmp_path_factory):
    """A finished run of the method cers with two validations."""
    out = tmp_path_factory.mktemp("runs") / "Übung mit Lücke"
    assert train(settings(folder, steps=6, validate=2), out, cache) == "finished"
    return out


def test_a_check_counts_and_measures_and_writes_nothing(folder, cache, tmp_path, monkeypatch):
    """Not for a while either: it may be killed."""
    config = settings(folder, minutes=5.0, steps=0)
    said, there, kept, pace = [], [], set(cache.glob("scan_*")), plan._pace
    temporary = tmp_path / "temp"  # torch may put things of its own there
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(plan, "_pace", lambda *which: there.extend(temporary.glob("cers-*")) or pace(*which))
    report = plan.check(config, cache, said.append)
    assert said == ["Reading the pictures", "Looking for leaks", "Trying some steps"]
    assert report["counts"] == {"labelled": 12, "unlabelled": 12, "validation": 4, "test": 4} and report["labels"] == ["tumor"]
    assert report["may_start"] and not report["leaks"]["found"]
    e = report["estimate"]
    assert e["training"] == 300 and e["total"] >= 300 and e["steps"] * e["seconds_per_step"] == pytest.approx(300, rel=0.02)
    assert e["memory"] > 50e6 and e["fits"] in (True, None) and e["disk"] > 1e6
    assert (
        there == []
        and list(temporary.glob("cers-*")) == []
        and list(tmp_path.iterdir()) == [temporary]
        and set(cache.glob("scan_*")) == kept
    )
    text = "\n".join(plan.sentences(report))
    assert "12 labelled" in text and "No leak" in text and "About 5 min on cpu" in text


def test_the_command_checks_in_a_process(folder, tmp_path):
    record = tmp_path / "settings.json"
    leaky = tmp_path / "leaky"
    shutil.copytree(folder, leaky)
    rows = (leaky / "cases.csv").read_text().splitlines()
    rows[-1] = rows[-1].replace("g31", "g3")  # a test picture of a training patient
    (leaky / "cases.csv").write_text("\n".join(rows) + "\n")
    from dataclasses import asdict

    record.write_text(json.dumps({**asdict(settings(leaky)), "device": "auto"}))
    command = [sys.executable, "-m", "cers", "train", "--check", "--json", "--config", str(record)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=True)
    report = json.loads(out.stdout)
    assert report["leaks"]["found"] and "shared groups between train and test" in report["leaks"]["words"]
    assert not report["may_start"] and report["estimate"] is None and "Reading the pictures" in out.stderr
    record.write_text(json.dumps({**asdict(settings(leaky)), "data": str(tmp_path / "gone")}))
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert out.returncode == 1 and out.stderr.strip().splitlines()[-1].startswith("Error: There is no data folder")


def test_a_check_with_a_cache_makes_no_folder_of_its_own(folder, tmp_path, monkeypatch):
    """The panel's checks have one, and are killed where they are stopped."""
    there = []
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    monkeypatch.setattr(plan, "check", lambda _settings, cache, _say: there.append((cache, list((tmp_path / "temp").iterdir()))) or {})
    for more in (["--cache", str(tmp_path / "cache")], []):
        done = CliRunner().invoke(app, ["train", "--check", "--json", "--data", str(folder), "--steps", "1", *more])
        assert done.exit_code == 0, done.output
    assert there[0] == (tmp_path / "cache", []) and there[1][1] == [there[1][0]] and not there[1][0].exists()


def test_a_check_takes_away_what_a_killed_one_left(folder, tmp_path, monkeypatch):
    """Prepared pictures of patients; those of one that is at work stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    monkeypatch.setattr(plan, "check", lambda *_: {})
    for name, age in (("cers-frames-killed", 7200), ("cers-frames-busy", 60), ("other", 7200)):
        (tmp_path / "temp" / name / "deep").mkdir(parents=True)
        os.utime(tmp_path / "temp" / name, (time.time() - age,) * 2)
    done = CliRunner().invoke(app, ["train", "--check", "--json", "--data", str(folder), "--steps", "1"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "temp").iterdir()) == ["cers-frames-busy", "other"]


def test_smaller_batches_down_to_the_smallest(folder):
    config, seen = settings(folder, groups=8, members=5, unlabelled_members=2, size=256), []
    while (proposal := plan.smaller(config)) is not None:
        config = type(config)(**{**vars(config), **proposal}).check()
        seen.append(plan.load(config))
    assert seen == sorted(seen, reverse=True) and len(set(seen)) == len(seen) and config.size == 64 and config.groups == 2
    config = settings(folder, groups=8, members=5, unlabelled_members=2, size=256)
    fits = plan.fitting(config, fixed=1e9, needed=9e9, free=6e9)
    assert fits["groups"] == 4 and plan.fitting(config, fixed=8e9, needed=9e9, free=6e9) is None


def test_out_of_memory_is_said_with_a_batch_that_is_smaller(folder, cache, tmp_path, monkeypatch):
    def full(self, share):
        if self.step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, share)

    real = trainer_module.Trainer.one_step
    monkeypatch.setattr(trainer_module.Trainer, "one_step", full)
    with pytest.raises(TrainingError, match="not enough memory for 4 groups.*Train anew with 2 groups"):
        train(settings(folder, method="supervised", groups=4), tmp_path / "run", cache)
    run = runs.read_run(tmp_path / "run")
    assert run.state == "failed" and run.proposal["groups"] == 2 and "CUDA" not in run.reason and run.resumable
    again = settings(folder, method="supervised", **run.proposal)
    monkeypatch.undo()
    assert train(again, tmp_path / "smaller", cache) == "finished"
    for error in (MemoryError(), RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")):
        assert plan.out_of_memory(error)
    assert not plan.out_of_memory(RuntimeError("shapes differ")) and not plan.out_of_memory(ValueError("out of memory"))


def test_a_check_that_runs_out_of_memory_proposes_a_batch(folder, cache, monkeypatch):
    def full(self, share):
        raise MemoryError

    monkeypatch.setattr(trainer_module.Trainer, "one_step", full)
    report = plan.check(settings(folder, groups=4), cache)
    assert report["estimate"]["fits"] is False and report["estimate"]["proposal"]["groups"] == 2
    assert "not enough memory" in plan.sentences(report)[-1]


def test_a_finished_run_from_outside(done):
    run = runs.read_run(done)
    assert (run.state, run.step, run.live, run.resumable) == ("finished", 6, False, False) and run.name == "Übung mit Lücke"
    history = runs.History(done)
    assert history.update() and not history.update()
    assert [s for s, _ in history.curves["plain"]] == [3, 6] and len(history.curves["gain"]) == 2 and history.curves["loss"]
    step, retrieved = history.curves["retrieved"][-1]
    assert step == 6 and history.curves["gain"][-1][1] == pytest.approx(retrieved - history.curves["null"][-1][1])
    assert history.dice == retrieved
    found = runs.examples(done)
    assert [step for step, _ in found] == [3, 6]
    picture = np.asarray(Image.open(found[-1][1]))
    assert picture.shape == (120, 480, 3) and (picture == pictures.TRUTH).all(2).sum() > 100, "the expert's outline is drawn"
    assert runs.settings(done)["steps"] == 6
    assert [r.name for r in runs.list_runs(done.parent)] == [done.name] and runs.list_runs(done / "gone") == []


def test_the_dice_of_a_run_is_that_of_the_weights_it_ends_with(tmp_path):
    lines = [{"step": step, "validation_plain": value} for step, value in ((10, 0.6), (20, 0.8), (30, 0.7))]
    (tmp_path / runs.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = runs.History(tmp_path)
    assert history.dice is None and history.update() and history.dice == 0.7


def test_outlines_of_a_tile():
    found, drawn = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    found[10:30, 10:30], drawn[20:40, 10:30] = True, True
    out = pictures.tile(np.full((80, 80), 90, np.uint8), found, drawn)
    counts = [int((out == colour).all(2).sum()) for colour in (pictures.TRUTH, pictures.FOUND, pictures.BOTH)]
    assert out.shape == (120, 120, 3) and all(counts) and (out[0, 0] == 90).all()
    examples = pictures.Examples(None)
    examples.data = type("Data", (), {"images": np.zeros((20, 64, 64), np.uint8)})
    examples(np.arange(20), torch.zeros(20, 1, 64, 64), torch.zeros(20, 1, 64, 64))
    assert len(examples.tiles) == 2


def test_reading_runs_needs_no_library(done):
    code = (
        f"import sys; from cers.training import runs; run = runs.read_run({str(done)!r}); runs.History(run.folder).update()\n"
        "print(run.state, {m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'yaml', 'PIL', 'safetensors', 'typer'})"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.split() == ["finished", "set()"]


def test_live_stopped_killed(folder, cache, tmp_path):
    out = tmp_path / "run"
    process = start(out, settings(folder, method="supervised", steps=100000), cache)
    wait_for_step(out, 3, process)
    run = runs.read_run(out)
    assert run.state == "running" and run.live and run.pid == process.pid
    with pytest.raises(InputError, match="at work"):
        runs.remove(out)
    assert (out / "status.json").exists()
    runs.request_stop(out)
    assert runs.read_run(out).state in ("stopping", "stopped")
    end(process)
    run = runs.read_run(out)
    assert run.state == "stopped" and run.resumable and run.step >= 3
    process = start(out, None, cache)
    wait_for_step(out, run.step + 2, process)
    os.kill(process.pid, signal.SIGKILL)  # not waited for yet: its pid is still there
    deadline = time.monotonic() + 20
    while runs.read_run(out).live and time.monotonic() < deadline:
        time.sleep(0.02)
    run = runs.read_run(out)
    assert run.state == "crashed" and "without a word" in run.reason and run.resumable
    process.communicate()
    (out / "status.json").write_text("{half")
    assert runs.read_run(out).state == "crashed"
    left = runs.remove(out)
    assert not out.exists() and runs.list_runs(tmp_path) == []
    shutil.rmtree(left)


def test_a_stop_during_the_launch_counts_and_an_old_one_does_not(folder, cache, tmp_path):
    config = settings(folder, method="supervised", steps=3)
    new, old = tmp_path / "new", tmp_path / "old"
    for out, sooner in ((new, 5), (old, -5)):
        out.mkdir()
        runs.write_record(out / runs.LAUNCH, {"pid": os.getpid(), "started": time.time() - sooner})
        assert runs.read_run(out).state == "launching"
        runs.request_stop(out)
    assert runs.read_run(new).state == "stopping"
    assert train(config, new, cache) == "stopped" and train(config, old, cache) == "finished"
    assert not (new / runs.LAUNCH).exists() and runs.read_run(new).state == "stopped"
    assert train(config, new, cache, resume=True) == "finished"


@pytest.mark.parametrize(
    "left, words",
    [
        ("Traceback (most recent call last):\nModuleNotFoundError: No module named 'torch'\n", "needs is missing: No module named 'torch'"),
        ("noise\nError: The weights 'x' cannot be read.\n", "The weights 'x' cannot be read."),
        ("torch.OutOfMemoryError: CUDA\n", "not enough memory"),
        ("", "without a word"),
    ],
)
def test_a_process_that_died_before_it_reported(tmp_path, left, words):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    runs.write_record(tmp_path / runs.LAUNCH, {"pid": gone.pid, "started": time.time()})
    runs.write_record(tmp_path / runs.SETTINGS, {"data": "x"})
    (tmp_path / runs.OUTPUT).write_text(left)
    run = runs.read_run(tmp_path)
    assert run.state == "crashed" and words in run.reason and "Traceback" not in run.reason


def test_a_run_on_another_machine_is_believed_for_a_while(tmp_path):
    runs.write_record(tmp_path / "status.json", {"state": "running", "host": "elsewhere", "updated": time.time(), "step": 4, "share": 0.2})
    assert runs.read_run(tmp_path).state == "running"
    runs.write_record(tmp_path / "status.json", {"state": "running", "host": "elsewhere", "updated": time.time() - 3600})
    assert runs.read_run(tmp_path).state == "crashed"


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b"\xff\xfe\x00", b'{"step": NaN}', b'{"state": 3, "step": "x", "share": null, "metrics": 7, "proposal": 1}']
)
def test_a_status_that_makes_no_sense_is_borne(tmp_path, content):
    (tmp_path / "status.json").write_bytes(content)
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 0.5}\nnonsense\n[]\n{"step": 2, "loss": "x"}\n{"step": 3, "los')
    (tmp_path / "settings.json").write_bytes(content)
    run = runs.read_run(tmp_path)
    assert run.state == "crashed" and run.reason and run.step == 0
    history = runs.History(tmp_path)
    assert history.update() and history.curves["loss"] == [(1, 0.5)]
    if content != b'{"step": NaN}' and not content.startswith(b'{"state"'):
        with pytest.raises(InputError, match="cannot be read"):
            runs.settings(tmp_path)


def test_a_tail_reads_what_is_new_and_notices_a_new_file(tmp_path):
    path = tmp_path / "log.txt"
    tail = runs.Tail(path, most=64)
    assert tail.read() == (False, [])
    path.write_text("a\nb\nhal")
    assert tail.read() == (False, ["a", "b"])
    with open(path, "a") as f:
        f.write("f\n")
    assert tail.read() == (False, ["half"]) and tail.read() == (False, [])
    other = tmp_path / "other"
    other.write_text("new\n")
    os.replace(other, path)
    assert tail.read() == (True, ["new"])
    path.unlink()
    assert tail.read() == (True, [])
    path.write_text("x" * 100 + "\n" + "y\n")
    seen = [line for _ in range(4) for line in tail.read()[1]]
    assert seen[-1] == "y"


def test_names_of_folders(tmp_path):
    assert runs.new_folder(tmp_path / "new", "Übung: 1/2").name == "Übung  1 2"
    assert runs.new_folder(tmp_path / "new", "Übung: 1/2").name == "Übung  1 2 (2)"
    assert runs.read_run(runs.new_folder(tmp_path / "new")) is None, "an empty folder is no run"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="No folder for the run"):
        runs.new_folder(tmp_path / "file")
    with pytest.raises(InputError, match="is no training run"):
        runs.remove(tmp_path)


@pytest.mark.parametrize(
    "name, text", [("settings.json", '{"theme": "dark"}'), ("config.yaml", "host: x\n"), ("status.json", '{"state": "finished"}')]
)
def test_a_project_of_another_program_is_no_run(tmp_path, name, text):
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / name).write_text(text)
    assert runs.list_runs(tmp_path) == []
    with pytest.raises(InputError, match="is no training run"):
        runs.remove(project)
    assert (project / name).exists()


def test_deleting_a_run_keeps_and_names_what_is_not_its_own(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "step_00000001").mkdir(parents=True)
    (run / "data").mkdir()
    (run / "data" / "irreplaceable.nii.gz").write_bytes(b"x")
    runs.write_record(run / runs.SETTINGS, {"data": "x", "method": "cers", "evidence": "retrieved"})
    (run / ".cers-abc.json").write_text("")
    with pytest.raises(InputError, match="was deleted. Its folder stays.*not the run's: data"):
        runs.remove(run)
    assert [p.name for p in run.iterdir()] == ["data"] and (run / "data" / "irreplaceable.nii.gz").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["run"] and runs.list_runs(tmp_path) == []


def test_looking_does_not_keep_a_run_from_starting(tmp_path):
    """The look takes the lock for an instant; whoever wants it for good waits that long."""
    import threading

    with RunFolder(tmp_path):
        pass
    over = threading.Event()

    def look():
        while not over.is_set():
            runs.locked(tmp_path)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(30):
            with RunFolder(tmp_path):
                assert runs.locked(tmp_path)
    finally:
        over.set()
        watcher.join()
    assert not runs.locked(tmp_path)
