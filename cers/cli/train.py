"""``cers train``: one command for every method; the run folder is the place to watch, stop and resume from."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext, suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..words import plural
from .output import command, progress, quoted, say_json

FRAMES = "cers-frames-"  # folders of pictures that a check prepares


class Method(str, Enum):
    supervised = "supervised"
    mean_teacher = "mean_teacher"
    mutual_consistency = "mutual_consistency"
    unimatch = "unimatch"
    cers = "cers"


class EvidenceKind(str, Enum):
    none = "none"
    random = "random"
    shuffled_rationale = "shuffled_rationale"
    retrieved = "retrieved"


@command(cancelled="Cancelled. What was saved stays; a run that had begun goes on with: cers train --resume RUN")
def train(
    data: Annotated[
        Optional[Path],
        typer.Option(
            help="A folder with images/train, masks/train and cases.csv; a folder of volumes with images/ and labels/; or a knowledge pool."
        ),
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="Run folder, new or empty.")] = None,
    method: Annotated[
        Optional[Method], typer.Option(help="How unlabelled pictures are used, and whether references are. Default: cers.")
    ] = None,
    evidence: Annotated[
        Optional[EvidenceKind], typer.Option(help="References of D_R (method cers), for comparisons. Default: retrieved.")
    ] = None,
    labelled: Annotated[
        Optional[float], typer.Option(min=0, help="Share (0.1) or number (393) of training pictures or volumes whose masks count.")
    ] = None,
    unlabelled: Annotated[
        Optional[list[Path]], typer.Option(help="Folder of images or volumes without masks; may be given several times.")
    ] = None,
    exclude: Annotated[
        Optional[list[str]], typer.Option(help="COLUMN=VALUE kept out of training, for instance diagnosis=pituitary.")
    ] = None,
    minutes: Annotated[Optional[float], typer.Option(min=0, help="Budget in minutes of training; not bit-reproducible.")] = None,
    steps: Annotated[Optional[int], typer.Option(min=0, help="Budget in steps.")] = None,
    size: Annotated[Optional[int], typer.Option(min=32, help="Side of the network's input in pixels. Default: 128.")] = None,
    seed: Annotated[Optional[int], typer.Option(min=0, help="Seed of weights, batches and augmentation.")] = None,
    initial: Annotated[
        Optional[str],
        typer.Option(help="Weights to begin with: imagenet, random, a model's or run's folder, or a weights file. Default: imagenet."),
    ] = None,
    resume: Annotated[Optional[Path], typer.Option(help="Go on with this run folder; all settings are its own.")] = None,
    config: Annotated[
        Optional[Path], typer.Option(help="YAML file of settings, such as another run's config.yaml; options go first.")
    ] = None,
    setting: Annotated[Optional[list[str]], typer.Option("--set", help="Any other setting as NAME=VALUE, for instance groups=8.")] = None,
    device: Annotated[Optional[str], typer.Option(help="cpu, cuda, mps, or auto for the fastest there is. Default: cpu.")] = None,
    threads: Annotated[Optional[int], typer.Option(min=1, help="CPU threads.")] = None,
    cache: Annotated[
        Optional[Path], typer.Option(help="Where prepared pictures are kept, to be shared by runs. Default: in the run folder.")
    ] = None,
    allow_leaks: Annotated[bool, typer.Option("--allow-leaks", help="Train although training and held-out pictures overlap.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Do not train: print what it would train on, the leak report, and time and memory, measured on some steps."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print how it ended, or what --check found, as JSON.")] = False,
) -> None:
    """Train a model: warm-up on labelled pictures, then, with unlabelled ones, semi-supervised.

    The run folder holds config.yaml, status.json, metrics.jsonl, log.txt, split.json with the leak report, checkpoints/ and, at the end, model/,
    which cers segment --model takes. Ctrl-C, SIGTERM or a file named stop in the run folder finish the step, save, and end; --resume goes on.
    On several processes: torchrun --nproc-per-node 2 -m cers train ...

    Examples:

      cers train --data brisc --out run --labelled 0.1 --minutes 30

      cers train --data brisc --out peer --labelled 0.1 --minutes 30 --method unimatch

      cers train --data my-pool --unlabelled scans/ --out run --steps 2000

      cers train --data my-pool --minutes 30 --check

      cers train --resume run
    """  # noqa: E501 - the help breaks its lines where they break here
    from ..errors import InputError
    from ..training.config import TrainConfig
    from ..training.runfolder import CONFIG, STATUS

    if resume is not None:
        if out is not None and out.resolve() != resume.resolve():
            raise InputError("Give either --out for a new run or --resume for an old one.")
        new = {"--data": data, "--method": method, "--evidence": evidence, "--labelled": labelled, "--unlabelled": unlabelled}
        new |= {
            "--exclude": exclude,
            "--minutes": minutes,
            "--steps": steps,
            "--size": size,
            "--seed": seed,
            "--initial": initial,
            "--config": config,
        }
        new |= {"--set": setting, "--allow-leaks": allow_leaks or None}
        if told := [name for name, value in new.items() if value is not None and value != []]:
            raise InputError(f"A run goes on with its own settings, so {', '.join(told)} cannot be given with --resume. Start a new run.")
        if not (resume / CONFIG).exists():
            raise InputError(
                f"'{resume / CONFIG}' cannot be read as a training configuration, as it is not there. Give the folder of a run that has "
                "begun, or start a new one."
            )
        settings = TrainConfig.read(resume / CONFIG)
        settings = replace(settings, device=device or settings.device, threads=threads or settings.threads)
    else:
        if out is None and not check:
            raise InputError("A run needs a folder: give --out for a new run, or --resume for an old one.")
        record = {} if config is None else _record(config)
        given = {
            "method": method and method.value,
            "evidence": evidence and evidence.value,
            "data": data and str(data),
            "labelled": labelled,
            "unlabelled": [str(f) for f in unlabelled] if unlabelled else None,
            "exclude": _pairs(exclude) if exclude else None,
            "minutes": minutes,
            "steps": steps,
            "size": size,
            "seed": seed,
            "initial": initial,
            "device": device,
            "threads": threads,
            "allow_leaks": allow_leaks or None,
        }
        record |= {k: v for k, v in given.items() if v is not None} | _settings(setting or [])
        settings = TrainConfig.of(record)
        if not settings.data:
            raise InputError("There is nothing to train on: give --data with a dataset folder or a pool.")
        settings = _absolute(settings)
    if settings.device == "auto":
        from ..inference.device import choose_device

        settings = replace(settings, device=choose_device("auto"))
    if check:
        _check(settings, cache or (out and out / "cache"), as_json)
        return
    from ..training.trainer import train as run

    folder = resume or out
    with progress() as show:
        ended = run(settings, folder, cache, resume=resume is not None, progress=show)
    if os.environ.get("RANK", "0") != "0":
        return
    status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    if as_json:
        say_json({"run": str(folder), **status})
    elif ended == "stopped":
        print(f"Stopped at step {status['step']}. Go on with: cers train --resume {quoted(folder)}")
    else:
        words = {"plain": "plain decoder", "null": "without references", "retrieved": "with references"}
        scores = ", ".join(f"{words[k]} {status['metrics'][k]:.4f}" for k in words if k in status["metrics"])
        print(
            f"Finished after {status['step']} {plural(status['step'], 'step')}. Validation Dice: {scores or 'no validation pictures'}.\n"
            f"The model is in {folder / 'model'}."
        )


def _absolute(settings):
    """With paths that mean the same wherever the run is resumed from."""

    from ..training.runfolder import WEIGHTS

    def full(path: str) -> str:
        return str(Path(path).expanduser().resolve())

    initial, network = settings.initial, settings.network
    if initial not in ("imagenet", "random"):
        place = Path(full(initial))
        initial = str(place / WEIGHTS if place.is_dir() else place)  # a run's folder has them beside its model's
        network = {**_channels(Path(initial)), **network}
    free = ["=".join(map(full, entry.split("=", 1))) for entry in settings.lesion_free]
    data, more = full(settings.data), [full(f) for f in settings.unlabelled]
    return replace(settings, data=data, unlabelled=more, lesion_free=free, initial=initial, network=network)


def _channels(weights: Path) -> dict:
    """The names of the channels of a model's or run's weights, as a setting of the network, where there are several and they are known."""
    from ..inference.store import CONFIG, MODEL, read_json

    for config in (weights.parent / MODEL / CONFIG, weights.parent / CONFIG):
        network = (read_json(config) or {}).get("network")
        labels = network.get("labels") if isinstance(network, dict) else None
        if isinstance(labels, list) and len(labels) > 1 and all(isinstance(name, str) for name in labels):
            return {"labels": labels}
    return {}


def _check(settings, cache: Path | None, as_json: bool) -> None:
    import sys
    import tempfile

    from ..training.plan import check, sentences

    if not cache:
        _sweep(Path(tempfile.gettempdir()))
    frames = nullcontext(cache) if cache else tempfile.TemporaryDirectory(prefix=FRAMES, ignore_cleanup_errors=True)
    with frames as place, progress() as show:
        report = check(
            settings,
            Path(place),
            (lambda words: show(0.0, words)) if show else (lambda words: print(words, file=sys.stderr, flush=True)),
        )
    if as_json:
        say_json(report)
    else:
        print("\n".join(sentences(report)))


def _sweep(folder: Path) -> None:
    """Removes the pictures that checks left which were killed."""
    import shutil
    import time

    from ..training.data import ABANDONED_SECONDS

    for left in folder.glob(f"{FRAMES}*"):
        with suppress(OSError):  # another check was quicker
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _record(path: Path) -> dict:
    from ..errors import InputError
    from ..training.config import read_settings

    record = read_settings(path)
    if not isinstance(record, dict):
        raise InputError(f"'{path}' holds no table of settings.")
    return record


def _pairs(texts: list[str]) -> dict:
    from ..errors import InputError

    out: dict = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise InputError(f"'{text}' is not of the form NAME=VALUE.")
        out.setdefault(name, []).append(value)
    return out


def _settings(texts: list[str]) -> dict:
    import yaml

    from ..errors import InputError

    out = {}
    for name, values in _pairs(texts).items():
        try:
            out[name] = yaml.safe_load(values[-1])
        except (yaml.YAMLError, ValueError) as error:  # a date such as 2024-13-45 is a ValueError
            raise InputError(f"The value of {name} cannot be read: '{values[-1]}'.") from error
    return out
