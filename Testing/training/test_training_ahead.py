"""Batches drawn ahead by other processes are those that are drawn when needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import end, settings, start, trainer, wait_for_step

from cers.training.ahead import processes, threads
from cers.training.config import METHODS
from cers.training.runfolder import RunFolder
from cers.training.runs import locked
from cers.training.trainer import train


@pytest.mark.parametrize("method", METHODS)
def test_a_run_with_loaders_is_the_same_run(folder, cache, method):
    """Across the beginning of stage 2 and renewals of the image vectors, with made-up tasks and their rationales."""

    def run(loaders):
        made = trainer(folder, cache, method=method, steps=7, refresh=2, tasks=1.0, tasks_end=0.5, loaders=loaders)
        figures = [made.one_step(made.share) for _ in range(7)]
        return made, figures

    (alone, a), (helped, b) = run(0), run(2)
    helped.ahead.close()
    assert alone.config.hash == helped.config.hash
    assert a == b
    ours, theirs = alone.net.state_dict(), helped.net.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours) and np.array_equal(alone.memory.query, helped.memory.query)


def test_a_gpu_is_given_processes(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert processes(0, "cpu") == 0 and processes(3, "cpu") == 3
    assert processes(0, "cuda") == 4 and processes(0, "cuda", world=4) == 2 and processes(1, "cuda") == 1
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processes(0, "mps") == 1


def test_a_gpu_run_leaves_its_loaders_their_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert threads(0, "cuda", 4) == 8 and threads(3, "cuda", 4) == 3 and threads(0, "cuda", 12) == 1
    assert threads(0, "cpu", 4) == 0 and threads(0, "cuda", 0) == 0  # all


def test_a_run_by_the_clock_ends_with_loaders_too(folder, cache, tmp_path):
    assert train(settings(folder, steps=0, minutes=0.05, loaders=1), tmp_path / "run", cache) == "finished"


def test_draws_pass_to_a_process_that_shares_nothing(folder, cache):
    """As on Windows and macOS, where processes are not forked."""
    made = trainer(folder, cache, tasks=1.0)
    made.one_step(0.0)
    assert len(ForkingPickler.dumps(made.draw)) < 5_000_000  # pictures go by the names of their files
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        there = other.submit(made.draw, 1, False, 1.0).result(120)
    here = made.draw(1, False, 1.0)
    assert torch.equal(here.x, there.x) and here.told and np.array_equal(here.told[0][1], there.told[0][1])


def begin(folder, cache, tmp_path, **changes) -> subprocess.Popen:
    """A run with loaders in a process group of its own, up to its first step."""
    settings(folder, steps=100_000, loaders=2, **changes).write(tmp_path / "config.yaml")
    code = (
        "import sys\nfrom pathlib import Path\nfrom cers.training.config import TrainConfig\nfrom cers.training.trainer import train\n"
        "print(train(TrainConfig.read(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3])))"
    )
    command = [sys.executable, "-c", code, *map(str, (tmp_path / "config.yaml", tmp_path / "run", cache))]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert run.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    return run


@pytest.mark.skipif(os.name == "nt", reason="no kill -9 on Windows")
def test_a_killed_trainer_leaves_no_lock_behind(folder, cache, tmp_path):
    run = begin(folder, cache, tmp_path)
    try:
        assert locked(tmp_path / "run")
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert not locked(tmp_path / "run")
    with RunFolder(tmp_path / "run"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="no process groups on Windows")
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_run_whose_whole_group_is_asked_to_end_saves_its_step(folder, cache, tmp_path, asked):
    """As Ctrl-C in a terminal, ``timeout`` and the queue of a cluster do."""
    run = begin(folder, cache, tmp_path)
    os.killpg(run.pid, asked)
    out, _ = run.communicate(timeout=120)
    told = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (out.strip(), told["state"], run.returncode) == ("stopped", "stopped", 0)
    assert RunFolder(tmp_path / "run").checkpoints()[-1].name == f"step_{told['step']:08d}"
    with pytest.raises(ProcessLookupError):  # nobody is left
        os.killpg(run.pid, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are found by /proc")
def test_what_ends_a_loader_while_a_checkpoint_is_saved_is_told_without_a_warning():
    """safetensors catches the error and goes on in a way that warns."""
    code = """if True:
        import torch
        from cers.training import runfolder
        whole = torch.Tensor.untyped_storage
        def ended(self):
            torch.Tensor.untyped_storage = whole
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
        torch.Tensor.untyped_storage = ended
        from safetensors.torch import storage_ptr
        storage_ptr(torch.zeros(1))
    """
    found = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, timeout=100)
    assert found.returncode == 0 and found.stderr == ""


def test_a_loader_that_is_killed_is_said(folder, cache, tmp_path):
    run = tmp_path / "run"
    process = start(run, settings(folder, method="supervised", loaders=1, steps=100000), cache)
    wait_for_step(run, 5, process)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    err = end(process, 1)[1]
    assert "A process that prepares batches was ended" in err and err.count("\n") == 1, err
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
