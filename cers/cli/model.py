"""``cers model``: what a model folder holds, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .output import command, say_json

model_app = typer.Typer(no_args_is_help=True, help="Show a model folder, and write measured figures into its card.\n\n"
                        "cers model card my-model --results result.json")


def _read(folder: Path | None):
    """(folder, configuration, hash) without loading the network."""
    from ..errors import ModelError
    from ..inference.model import CONFIG, WEIGHTS, ModelConfig, model_hash
    from ..resources import resource

    folder = resource("model") if folder is None else folder
    config = ModelConfig.read(folder / CONFIG)
    try:
        return folder, config, model_hash((folder / WEIGHTS).read_bytes(), config)
    except OSError as error:
        raise ModelError(f"The weights {folder / WEIGHTS} cannot be read: {error.strerror}.") from error


@model_app.command()
@command
def show(folder: Annotated[Optional[Path],
                           typer.Argument(metavar="[DIR]", help="Model folder. Default: the model that comes with CERS.")] = None,
         as_json: Annotated[bool, typer.Option("--json", help="For machines: configuration and hash, without the card.")] = False) -> None:
    """Print what a model was made for, its settings and its card."""
    from dataclasses import asdict

    from ..inference.model import CARD

    folder, config, digest = _read(folder)
    if as_json:
        say_json({"folder": str(folder), "hash": digest, **asdict(config)})
        return
    facts = {"name": config.name, "hash": digest, "folder": folder, "labels": ", ".join(f"{v} {n}" for v, n in config.labels.items()),
             "made for": f"{config.modality or 'any modality'}, {config.body_site or 'any body site'}",
             "input": f"{config.size} x {config.size}", "temperature": config.temperature, "threshold": config.threshold,
             "minimum ml": config.minimum_ml, "selection": ", ".join(f"{k} {v}" for k, v in config.selection.items()) or "defaults"}
    for name, value in facts.items():
        print(f"{name:<14}{value}")
    card = folder / CARD
    print("\n" + (card.read_text(encoding="utf-8") if card.is_file() else f"It has no {CARD}.").rstrip())


@model_app.command()
@command
def card(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder.")],
         results: Annotated[list[Path], typer.Option("--results", help="Result of 'cers evaluate --json' or of the accuracy "
                                                     "benchmark; may be given several times.")]) -> None:
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
