"""The mean of the weights of several runs as one model (model soup: Wortsman et al., ICML 2022), calibrated anew.

It is as small and as quick as one run's model. It is better than each as a rule where the runs began from the same trained weights; runs
from different random weights have nothing in common that could be averaged.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import InputError, TrainingError
from ..inference.model import CONFIG as MODEL_CONFIG
from ..inference.model import ModelConfig
from .config import TrainConfig
from .finish import write_model
from .runfolder import CONFIG, MODEL, SPLIT, WEIGHTS
from .trainer import Trainer, prepare


def mean_weights(files: Sequence[Path], shares: Sequence[float] | None = None) -> dict[str, torch.Tensor]:
    """Weighted mean of weights files; what is not a floating-point number is taken from the last.

    Raises:
        InputError: fewer than two, shares that do not fit them, or files that cannot be read or are of different networks.
    """
    shares = list(shares) if shares else [1.0] * len(files)
    if len(files) < 2:
        raise InputError("A mean needs at least two runs.")
    if len(shares) != len(files) or not all(0 <= s < math.inf for s in shares) or not sum(shares):
        raise InputError(f"{len(files)} runs need {len(files)} shares of 0 or more, not all of them 0.")
    read = []
    for file in files:
        try:
            read.append(load_file(file))
        except (OSError, SafetensorError) as error:
            raise InputError(f"The weights '{file}' cannot be read ({error}). Choose the folder of a finished run.") from error
    shapes = [{name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in read]
    for file, shape in zip(files, shapes):
        if shape != shapes[0]:
            raise InputError(f"'{file}' and '{files[0]}' are of different networks. Choose runs with the same labels and network.")
    total = sum(shares)

    def mean(name: str, last: torch.Tensor) -> torch.Tensor:
        if not last.is_floating_point():
            return last
        return sum((s / total) * weights[name].float() for s, weights in zip(shares, read)).to(last.dtype)

    return {name: mean(name, tensor) for name, tensor in read[-1].items()}


def _sides(run: Path) -> tuple[set[str], set[str]]:
    """Names of the pictures that a run was trained on, and of those that it holds out."""
    try:
        return _sides_of(json.loads((run / SPLIT).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{run / SPLIT}' cannot be read, so nobody knows what the run was trained on.") from error


def _sides_of(report: dict) -> tuple[set[str], set[str]]:
    rows = report["rows"]
    return {*rows["labelled"], *rows["unlabelled"]}, {*rows["validation"], *rows["test"]}


def mean_model(
    runs: Sequence[Path],
    folder: Path,
    shares: Sequence[float] | None = None,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda words: None,
) -> dict:
    """Write a model folder with the mean of finished runs; temperature, thresholds and figures are those of the last run's validation.

    Returns:
        Dice on the validation pictures, by decoding.

    Raises:
        InputError: the runs do not fit each other, one has trained on what the last one holds out, their data is not there any more or has
        changed, or ``folder`` exists.
    """
    folder, runs = Path(folder), [Path(run) for run in runs]
    if folder.exists():
        raise InputError(f"'{folder}' exists already. Choose a new folder for the model.")
    weights = mean_weights([run / WEIGHTS for run in runs], shares)
    configs = [TrainConfig.read(run / CONFIG) for run in runs]
    if len({(Path(c.data).resolve(), c.method) for c in configs}) > 1:
        raise InputError("The runs were not trained on one data set with one method, so none of them could tell how good their mean is.")
    if {c.initial for c in configs} & {"imagenet", "random"} and len({(c.initial, c.seed) for c in configs}) > 1:
        raise InputError(
            "Runs that began from different random weights have nothing in common that could be averaged. Train one model, then several "
            "runs from its weights (--initial RUN), and average these."
        )
    sides = [_sides(run) for run in runs]
    for run, (trained, _) in zip(runs, sides):
        if seen := trained & sides[-1][1]:
            raise InputError(
                f"'{run.name}' was trained on {len(seen)} of the {len(sides[-1][1])} pictures that '{runs[-1].name}' holds out, so that "
                "these cannot tell how good the mean is. Average runs of one split."
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        work = Path(temporary) / folder.name
        work.mkdir()
        say("Reading the data")
        cache = cache or runs[-1] / "cache"
        data, split = prepare(configs[-1], None, cache)
        if _sides_of(split.report) != sides[-1]:
            raise InputError(
                f"The pictures have changed since '{runs[-1].name}' was trained, so that the split is another one. Train it anew."
            )
        for run in runs:  # the same network may have its channels in another order
            names = list(ModelConfig.read(run / MODEL / MODEL_CONFIG).labels.values())
            if names != data.labels:
                raise InputError(
                    f"'{run.name}' was trained on the labels {', '.join(names)}, but the data now has {', '.join(data.labels)}, in this "
                    "order. Average runs that were trained on the data as it is."
                )
        trainer = Trainer(replace(configs[-1], initial="random"), data, split, cache)  # those that it began with may be gone
        trainer.config = configs[-1]
        trainer.teacher.load_state_dict(weights)
        say("Calibrating on the validation pictures")
        parts = [f"{run.name} ({share:g})" for run, share in zip(runs, shares or [1] * len(runs))]
        try:
            figures = write_model(trainer, work, f"Mean of the weights of {len(runs)} runs (share): {', '.join(parts)}.")
            shutil.move(work / "model", folder)
        except (InputError, OSError, SafetensorError, TrainingError) as error:
            if isinstance(error, InputError) and not isinstance(error.__cause__, OSError):
                raise
            raise InputError(f"The model could not be written to '{folder}'. Make room there, or choose another folder.") from error
    return figures
