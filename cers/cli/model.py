"""``cers model``: what a model folder holds, its card, and the models that are installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..words import counted, plural
from .output import command, progress, quoted, say_json

model_app = typer.Typer(
    no_args_is_help=True,
    help="Show models, install them, choose which one is in use, and write measured figures into "
    "their cards.\n\ncers model install runs/my-run --use",
)
_Json = Annotated[bool, typer.Option("--json", help="For machines.")]
_Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name, id or hash as 'cers model list' shows it; 'shipped' for the one that comes with CERS.")
]


def _read(folder: Path | None):
    """(folder, configuration, hash) without loading the network."""
    from ..errors import ModelError
    from ..inference.model import CONFIG, WEIGHTS, ModelConfig, model_hash
    from ..inference.store import default_folder

    folder = default_folder() if folder is None else folder
    config = ModelConfig.read(folder / CONFIG)
    try:
        return folder, config, model_hash((folder / WEIGHTS).read_bytes(), config)
    except OSError as error:
        raise ModelError(f"The weights {folder / WEIGHTS} cannot be read: {error.strerror}.") from error


@model_app.command()
@command
def show(
    folder: Annotated[Optional[Path], typer.Argument(metavar="[DIR]", help="Model folder. Default: the model in use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: configuration and hash, without the card.")] = False,
) -> None:
    """Print what a model was made for, its settings and its card."""
    from dataclasses import asdict

    from ..inference.model import CARD

    folder, config, digest = _read(folder)
    if as_json:
        say_json({"folder": str(folder), "hash": digest, **asdict(config)})
        return
    facts = {
        "name": config.name,
        "hash": digest,
        "folder": folder,
        "labels": ", ".join(f"{v} {n}" for v, n in config.labels.items()),
        "made for": f"{config.modality or 'any modality'}, {config.body_site or 'any body site'}",
        "input": f"{config.size} x {config.size}",
        "temperature": config.temperature,
        "threshold": config.threshold,
        "minimum ml": config.minimum_ml,
        "selection": ", ".join(f"{k} {v}" for k, v in config.selection.items()) or "defaults",
    }
    for name, value in facts.items():
        print(f"{name:<14}{value}")
    card = folder / CARD
    print("\n" + (card.read_text(encoding="utf-8") if card.is_file() else f"It has no {CARD}.").rstrip())


@model_app.command()
@command
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder.")],
    results: Annotated[
        list[Path],
        typer.Option("--results", help="Result of 'cers evaluate --json' or of the accuracy benchmark; may be given several times."),
    ],
) -> None:
    """Write the measured section of MODEL_CARD.md from result files; everything else in the card stays as it is.

    The section lies between <!-- measured --> and <!-- /measured -->, and is added at the end where there are no such lines.
    Only results of this very model are taken.
    """
    from ..evaluation.card import update_card, write_card
    from ..inference.model import CARD

    folder, config, digest = _read(folder)
    path = folder / CARD
    before = path.read_text(encoding="utf-8") if path.is_file() else f"# {config.name}\n"
    write_card(path, update_card(before, digest, results))
    print(f"Wrote {path} from {len(results)} result file{'s' * (len(results) > 1)}.")


@model_app.command()
@command(cancelled="Cancelled. No model was written.")
def mean(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Folders of finished runs on one data set.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write; must not exist.")],
    shares: Annotated[
        Optional[list[float]], typer.Option("--share", help="Share of each run, in their order; give it once for each. Default: all alike.")
    ] = None,
    cache: Annotated[Optional[Path], typer.Option(help="Where the runs kept their slices. Default: the cache of the last run.")] = None,
    as_json: _Json = False,
) -> None:
    """Average the weights of runs that began from the same trained weights, and calibrate the mean on the last run's validation pictures.

    cers train --config a.yaml --out run-a; cers train --config b.yaml --out run-b; cers model mean run-a run-b -o my-model
    """
    from ..training.soup import mean_model

    figures = mean_model(runs, out, shares, cache, lambda words: print(words, file=sys.stderr))
    if as_json:
        say_json({"folder": str(out), "validation": figures})
    else:
        print(f"Wrote {out}; Dice on validation pictures: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        print(f"Use it with: cers segment IMAGE --model {quoted(out)}, or install it: cers model install {quoted(out)} --use")


@model_app.command("list")
@command
def list_(as_json: _Json = False) -> None:
    """Print the models that are installed; the one in use is marked with *, the one before with -."""
    from ..inference.store import models, root

    found = models()
    if as_json:
        say_json({"folder": str(root()), "models": [entry.to_dict() for entry in found]})
        return
    for entry in found:
        mark = "*" if entry.in_use else "-" if entry.previous else " "
        unknown = "its card has the figures" if entry.shipped else "not measured"
        facts = f"Dice {entry.dice:.3f}" if entry.dice is not None else unknown
        print(f"{mark} {entry.id:<44} {entry.name}; {facts}" + (f"; BROKEN: {entry.problem}" if entry.problem else ""))


@model_app.command()
@command(cancelled="Cancelled. Nothing was installed.")
def install(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="Folder of a finished training run, a model folder, or a zip file that 'cers model export' wrote."
        ),
    ],
    name: Annotated[Optional[str], typer.Option(help="Name of the model here. Default: its own.")] = None,
    use_it: Annotated[bool, typer.Option("--use", help="Use it from now on.")] = False,
    as_json: _Json = False,
) -> None:
    """Verify a model and copy it to the models of this user."""
    from ..inference.packing import install as put
    from ..inference.store import use as choose

    with progress() as show:
        entry = put(source, name, show)
    if use_it:
        entry = choose(entry.id)
    more = "It is in use now." if entry.in_use else f"Use it with: cers model use {entry.id}"
    _say(entry, as_json, f"Installed '{entry.name}' as {entry.id}. {more}")


@model_app.command()
@command
def use(
    model: Annotated[
        Optional[str],
        typer.Argument(
            metavar="[MODEL]", help="Name, id or hash as 'cers model list' shows it; 'shipped' for the one that comes with CERS."
        ),
    ] = None,
    previous: Annotated[bool, typer.Option("--previous", help="The one that was in use before.")] = False,
    as_json: _Json = False,
) -> None:
    """Choose the model that is taken where none is named, here and in 3D Slicer. A pool's vectors are renewed when it is next used."""
    from ..errors import InputError
    from ..inference.store import back
    from ..inference.store import use as choose

    if (model is None) == (not previous):
        raise InputError("Name either the model to use, or --previous.")
    entry = back() if previous else choose(model)
    _say(entry, as_json, f"'{entry.name}' is in use now.")


@model_app.command()
@command
def export(
    model: _Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .zip. A file of that name is replaced.")],
    cases: Annotated[
        bool, typer.Option("--with-cases", help="Add names and pictures of its test cases. Without it, hashes take the place of names.")
    ] = False,
) -> None:
    """Write a model as one zip file, for another computer."""
    from ..inference.packing import export as pack

    print(f"Wrote {pack(model, output, cases)}")


@model_app.command()
@command
def delete(model: _Model) -> None:
    """Delete an installed model, also a broken one; not the one in use, nor the one that comes with CERS."""
    from ..inference.packing import delete as remove

    print(f"Deleted '{remove(model)}'.")


@model_app.command()
@command
def compare(first: _Model, second: _Model, as_json: _Json = False) -> None:
    """Compare two models: case by case where both were measured on the same pictures, else by their means."""
    from ..evaluation.result import compare_models
    from ..evaluation.tables import drawn, metric_name, span
    from ..inference.store import find

    found = compare_models(find(first), find(second))
    if as_json:
        say_json(found)
        return
    for side in (found["first"], found["second"]):
        words = (
            f"Dice {span(side['mean']['dice'])} on {side['images']} {side['on'] or 'evaluated'} {plural(side['images'], 'picture')}"
            if side["mean"]
            else "no figures of single cases"
        )
        print(f"{side['name']}: {words}")
    if found["difference"] is None:
        print(found["reason"])
        return
    print(f"\nSecond minus first, paired over {counted(found['cases'])}, 95 % bootstrap intervals {drawn(found)}:")
    for metric, row in found["difference"].items():
        if row["value"] is not None:
            print(
                f"{metric_name(metric, found['units']):<28}{span(row):<28}better in {row['better']}, worse in {row['worse']} of {row['n']}"
            )


def _say(entry, as_json: bool, words: str) -> None:
    if as_json:
        say_json(entry.to_dict())
    else:
        print(words)
