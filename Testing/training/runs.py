"""Very small training runs that the tests share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from cers.inference.tiny import ENCODER
from cers.training.config import TrainConfig
from cers.training.datasets import Dataset, open_dataset
from cers.training.splits import Split, make_split
from cers.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
NETWORK = {
    "encoder": ENCODER,
    "widths": [8, 12, 16],
    "deepest": 24,
    "key_channels": 16,
    "align": 16,
}
SMALL = {
    "frame": 64,
    "size": 64,
    "groups": 2,
    "members": 3,
    "unlabelled_members": 1,
    "lr": 3e-3,
    "lr_warmup": 2,
    "average": 0.9,
    "initial": "random",
    "network": NETWORK,
    "refresh": 3,
    "checkpoint_steps": 2,
    "validate": 0,
    "validation": 0.15,
    "labelled": 0.5,
    "validation_limit": 4,
}


def settings(folder: Path, **changes) -> TrainConfig:
    return TrainConfig.of({"data": str(folder), "steps": 6, **SMALL, **changes})


def opened(config: TrainConfig, tmp_path: Path) -> tuple[Dataset, Split]:
    data = open_dataset(config.data, config.unlabelled, config.frame, config.plane, tmp_path / "cache")
    return data, make_split(data, config)


def trainer(folder: Path, cache: Path, **changes) -> Trainer:
    config = settings(folder, **changes)
    data = open_dataset(config.data, [], config.frame, config.plane, cache)
    return Trainer(config, data, make_split(data, config), cache)


def start(out: Path, config: TrainConfig | None = None, cache: Path | None = None, processes: int = 0) -> subprocess.Popen:
    """The real command in a process of its own: a new run of a configuration, or one that resumes."""
    arguments = ["-m", "cers", "train", "--json"]
    if config is None:
        arguments += ["--resume", str(out)]
    else:
        file = out.parent / f"{out.name}.yaml"
        config.write(file)
        arguments += ["--config", str(file), "--out", str(out)]
    return start_with([*arguments, "--cache", str(cache or out.parent / "cache")], processes)


def start_with(arguments: list[str], processes: int = 0) -> subprocess.Popen:
    """Python with these arguments, by torchrun if there are to be several."""
    if processes:
        arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=180)
    assert process.returncode == code, err
    return out, err


def wait_for_step(out: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if json.loads((out / "status.json").read_text()).get("step", 0) >= step:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"step {step} was never told: {process.stderr.read() if process.poll() is not None else 'timeout'}")


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
