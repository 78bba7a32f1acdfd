"""Stop, resume, kill, lock, full disk; several processes. Real processes, very small networks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from pictures import _picture
from runs import end, metrics, settings, start, start_with, wait_for_step
from safetensors.torch import load_file, save_file

from cers.case import Case
from cers.errors import InputError, TrainingError
from cers.pool import Pool
from cers.training import distributed, runfolder, trainer
from cers.training.datasets import open_dataset
from cers.training.plan import check
from cers.training.runfolder import RunFolder
from cers.training.runs import read_run
from cers.training.splits import make_split
from cers.training.trainer import Trainer, prepare, train


def same(a, b) -> bool:
    a, b = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def test_stopped_killed_and_resumed_equals_uninterrupted(folder, cache, tmp_path):
    config = settings(folder, method="mean_teacher", steps=240, checkpoint_steps=3)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = start(straight, config, cache)
    process = start(broken, config, cache)
    wait_for_step(broken, 5, process)
    process.send_signal(signal.SIGTERM)
    out, _ = end(process)
    told = json.loads(out)
    assert told["state"] == "stopped" and 5 <= told["step"] < 240 and RunFolder(broken).checkpoints()[-1].name == f"step_{told['step']:08d}"
    process = start(broken, None, cache)
    wait_for_step(broken, told["step"] + 10, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    reached = json.loads((broken / "status.json").read_text())["step"]
    kept = int(RunFolder(broken).checkpoints()[-1].name[5:])
    assert kept >= reached - 3
    process = start(broken, None, cache)
    wait_for_step(broken, kept + 5, process)
    (broken / "stop").touch()
    assert json.loads(end(process)[0])["state"] in ("stopped", "finished") and not (broken / "stop").exists()
    assert json.loads(end(start(broken, None, cache))[0])["state"] == "finished"
    end(whole)
    assert same(straight, broken)
    steps = [r["step"] for r in metrics(broken)]
    assert steps == sorted(steps) and steps[-1] == 240


@pytest.mark.parametrize("method", ["cers", "unimatch"])
def test_resume_is_bit_for_bit(folder, cache, tmp_path, method):
    """At every point of the schedule: within warm-up, at its end, between refreshes."""
    config = settings(folder, method=method, steps=8)
    data = open_dataset(config.data, [], config.frame, config.plane, cache)
    split = make_split(data, config)

    def states(breaks):
        run = Trainer(config, data, split, cache)
        while run.step < 8:
            if run.step in breaks:
                with RunFolder(tmp_path / f"{method}{run.step}") as place:
                    tensors, record = run.state()
                    place.save(run.step, tensors, record, 2)
                    stored = place.load()
                run = Trainer(config, data, split, cache)
                run.restore(*stored)
            run.one_step(run.share)
        return run.net.state_dict(), run.memory.query

    (a, query), (b, again) = states(()), states((1, 3, 4, 6))
    assert all(torch.equal(a[k], b[k]) for k in a) and np.array_equal(query, again)


def test_one_run_in_a_folder_at_a_time(folder, cache, tmp_path):
    with RunFolder(tmp_path / "run"):
        with pytest.raises(InputError, match="Another training"):
            train(settings(folder, method="supervised"), tmp_path / "run", cache)
    assert not (tmp_path / "run" / "status.json").exists()
    train(settings(folder, method="supervised", steps=2), tmp_path / "run", cache)
    with pytest.raises(InputError, match="already holds a run"):
        train(settings(folder, method="supervised", steps=2), tmp_path / "run", cache)
    with pytest.raises(InputError, match="another configuration"):
        train(settings(folder, method="supervised", steps=4), tmp_path / "run", cache, resume=True)


def test_a_run_is_not_written_over_anything(folder, cache, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    (mine / ".tmpA1b2C3").write_text("mine, too")
    with pytest.raises(InputError, match=r"holds other files \(notes.txt\)"):
        train(settings(folder, method="supervised", steps=2), mine, cache)
    assert (mine / ".tmpA1b2C3").exists()
    (mine / "notes.txt").unlink()
    (mine / "settings.json").write_text('{"theme": "dark"}')
    with pytest.raises(InputError, match=r"holds other files \(settings.json\)"):
        train(settings(folder, method="supervised", steps=2), mine, cache)
    assert (mine / "settings.json").read_text() == '{"theme": "dark"}'
    run, config = tmp_path / "run", settings(folder, method="supervised", steps=2)
    train(config, run, cache)
    before = (run / "status.json").read_bytes(), (run / "model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints")  # to save room
    with pytest.raises(InputError, match="already holds a run"):
        train(config, run, cache)
    assert ((run / "status.json").read_bytes(), (run / "model.safetensors").read_bytes()) == before, "it is still a finished run"
    with pytest.raises(InputError, match="No checkpoint in .* can be read"):
        train(config, run, cache, resume=True)
    assert (run / "model.safetensors").read_bytes() == before[1]
    told = json.loads((run / "status.json").read_text())
    assert told["state"] == "failed" and told["step"] == 2 and told["metrics"]


def test_a_run_does_not_go_on_with_other_pictures(cache, tmp_path):
    rng = np.random.default_rng(1)

    def add(pool, count):
        for _ in range(count):
            image, mask = _picture(rng, 80)
            pool.add(Case(image.astype(np.float32), mask.astype(np.uint8), {1: "tumor"}, plane="axial"))

    with Pool.create(tmp_path / "pool") as pool:
        add(pool, 10)
    run, config = tmp_path / "run", settings(tmp_path / "pool", steps=6, labelled=1.0)
    (tmp_path / "run").mkdir()
    (run / "stop").touch()
    (run / "launch.json").write_text('{"started": 0}')  # a stop that came after the start counts
    assert train(config, run, cache) == "stopped"
    with RunFolder(run) as place:
        data, split = prepare(config, None, cache)
        place.save(1, *Trainer(config, data, split, cache).state(), 2)
    kept = (run / "split.json").read_bytes()
    with Pool.open(tmp_path / "pool") as pool:
        pool.review(pool.ids()[0], "approved")  # says nothing of the picture
        first = pool.ids()[0]
    assert prepare(config, None, cache)[1].mark == split.mark
    with Pool.open(tmp_path / "pool") as pool:
        pool.delete(first)
        add(pool, 1)
    with pytest.raises(InputError, match="not those that this run began with"):
        train(config, run, cache, resume=True)
    assert (run / "split.json").read_bytes() == kept


def test_a_full_disk_keeps_the_last_checkpoint(folder, cache, tmp_path, monkeypatch):
    config, run, count = settings(folder, method="supervised", steps=8), tmp_path / "run", []
    real = runfolder.save_file

    def full(tensors, path):
        count.append(path)
        if len(count) > 9:  # in the third checkpoint of four files
            open(path, "wb").write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(runfolder, "save_file", full)
    with pytest.raises(TrainingError, match="disk is full.*step_00000004 is kept"):
        train(config, run, cache)
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed" and "disk is full" in status["error"]
    assert not list((run / "checkpoints").glob(".*"))
    monkeypatch.undo()
    assert train(config, run, cache, resume=True) == "finished"
    train(config, tmp_path / "other", cache)
    assert same(run, tmp_path / "other")


def test_a_damaged_checkpoint_is_passed_over(folder, cache, tmp_path):
    run, config = tmp_path / "run", settings(folder, method="supervised", steps=6)
    train(config, run, cache)
    kept = RunFolder(run).checkpoints()
    assert [p.name for p in kept] == ["step_00000004", "step_00000006"]
    (kept[-1] / "optimizer.safetensors").write_bytes(b"\x00" * 40)
    before = load_file(run / "model.safetensors")
    train(config, run, cache, resume=True)
    after = load_file(run / "model.safetensors")
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_two_processes_train_as_one(folder, cache, tmp_path):
    """Same batches, batch statistics, gradients and contrastive loss over both."""
    config = settings(folder, groups=4, steps=6, checkpoint_steps=100, refresh=2, null=0.0)
    end(start(tmp_path / "two", config, cache, processes=2))
    train(config, tmp_path / "one", cache)
    one, two = (next(r for r in metrics(tmp_path / name) if "loss" in r) for name in ("one", "two"))
    assert one["loss"] == pytest.approx(two["loss"], rel=2e-3)
    assert one["align"] == pytest.approx(two["align"], rel=1e-2) and one["consistency"] == pytest.approx(
        two["consistency"], rel=0.1, abs=1e-4
    )
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for k in a:
        if a[k].is_floating_point():
            assert (a[k] - b[k]).abs().max() < 0.02 * max(1.0, float(a[k].abs().max())), k


def test_processes_that_see_different_pictures_do_not_train(folder, cache, tmp_path):
    """As when a case comes into the pool while the first process prepares the pictures for all."""
    for name, seed in (("0", 0), ("1", 5)):
        settings(folder, steps=400, method="supervised", groups=4, split_seed=seed).write(tmp_path / f"{name}.yaml")
    script, where = tmp_path / "train.py", ["--out", str(tmp_path / "run"), "--cache", str(cache)]
    script.write_text(
        "import os, pathlib\nfrom cers.cli import main\n"
        "config = pathlib.Path(__file__).with_name(os.environ['RANK'] + '.yaml')\n"
        f"raise SystemExit(main(['train', '--config', str(config), *{where}]))\n"
    )
    _, err = end(start_with([str(script)], processes=2), 1)
    run = read_run(tmp_path / "run")
    assert run.state == "failed" and "see different pictures" in run.reason and run.reason in err and run.step == 0


def test_the_others_wait_however_long_the_first_one_reads_pictures(tmp_path):
    """Or measures the finished model: torch would take it for lost after 10 minutes on GPUs, 30 without."""
    script = tmp_path / "wait.py"
    script.write_text(
        "import datetime, time, torch.distributed.distributed_c10d as c10d\n"
        "from cers.training import distributed\n"
        "c10d.default_pg_timeout = datetime.timedelta(seconds=2)\n"
        "if distributed.start('cpu')[0] == 0:\n"
        "    time.sleep(5)\n"
        "distributed.wait()\n"
        "distributed.finish()\n"
    )
    end(start_with([str(script)], processes=2))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_gone_is_said_by_the_others(folder, cache, tmp_path, monkeypatch, rank):
    def broken(*_args):
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:63382")

    monkeypatch.setattr(distributed, "start", lambda _device: (rank, 2))
    monkeypatch.setattr(trainer, "_run", broken)
    with pytest.raises(TrainingError, match="Another process of this training has ended") as caught:
        train(settings(folder, steps=3, method="supervised"), tmp_path / "run", cache)
    run = read_run(tmp_path / "run")
    assert run is None if rank else (run.state, run.reason) == ("failed", str(caught.value))


@pytest.mark.parametrize("world", ["2", "many"])
def test_an_environment_that_only_says_how_many_is_said(folder, cache, tmp_path, monkeypatch, world):
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match=f"The {world} processes .* could not join .*unset WORLD_SIZE"):
        train(settings(folder, steps=1), tmp_path / "run", cache)
    assert not (tmp_path / "run").exists()


def test_groups_must_fit_the_processes(folder, cache):
    config = settings(folder, groups=2)
    data = open_dataset(config.data, [], config.frame, config.plane, cache)
    with pytest.raises(InputError, match="Start 1, or make groups a multiple of 4"):
        Trainer(config, data, make_split(data, config), cache, 0, 2)


def test_status_and_configuration_say_what_was_done(folder, cache, tmp_path):
    config = settings(folder, method="supervised", steps=3)
    train(config, tmp_path / "run", cache)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "finished" and status["pid"] == os.getpid() and status["step"] == 3 and "plain" in status["metrics"]
    again = type(config).read(tmp_path / "run" / "config.yaml")
    assert again == config and again.hash == config.hash
    assert config.hash in (tmp_path / "run" / "config.yaml").read_text() and "finished" in (tmp_path / "run" / "log.txt").read_text()
    assert settings(folder, method="supervised", steps=3, lr=2e-3).hash != config.hash


def test_weights_to_begin_with_must_fit_the_encoder(folder, cache, tmp_path):
    """An encoder without ImageNet weights does not begin at random in silence, nor does one with damaged weights."""
    with pytest.raises(InputError, match="no ImageNet weights for the encoder.*Set initial to random"):
        train(settings(folder, method="supervised", initial="imagenet"), tmp_path / "run", cache)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read or are of another network"):
        train(settings(folder, method="supervised", initial=str(other)), tmp_path / "other", cache)
    train(settings(folder, method="supervised", steps=1), tmp_path / "start", cache)
    weights = load_file(tmp_path / "start" / "model" / "model.safetensors")
    next(v for v in weights.values() if v.is_floating_point()).view(-1)[0] = float("nan")
    save_file(weights, other)
    with pytest.raises(InputError, match="hold values that are not numbers"):
        train(settings(folder, method="supervised", initial=str(other)), tmp_path / "third", cache)


@pytest.mark.parametrize("quick", [True, False])
def test_bfloat16_is_refused_where_it_is_emulated(folder, cache, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: quick)
    config = settings(folder, method="supervised", precision="bfloat16", steps=1)
    if quick:
        assert train(config, tmp_path / "run", cache) == "finished"
        return
    for attempt in (lambda: train(config, tmp_path / "run", cache), lambda: check(config, cache)):
        with pytest.raises(InputError, match="no bfloat16.*Set precision to float32"):
            attempt()
    assert not (tmp_path / "run").exists()
