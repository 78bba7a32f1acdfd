"""The end of a run: calibration and thresholds from validation pictures, weights, and a model folder that CERS can load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..evaluation.calibration import fit_temperature
from ..evaluation.card import write_card
from ..evaluation.result import ablation_rows
from ..evaluation.tables import drawn, markdown_table, mean_rows, trust_rows
from ..inference.model import CARD, ModelConfig, save_model
from ..words import plural
from .config import TrainConfig
from .datasets import only
from .outcome import measure
from .pictures import Examples
from .runfolder import RunFolder
from .validation import pooled, some, validate

FEW = 5  # groups; what fewer say of the temperature is not believed where it would make surer


def write_model(trainer, folder: Path, origin: str | None = None) -> dict:
    """Write ``model.safetensors`` and ``model/`` into the run folder; returns the validation figures.

    origin: what the card says of where the weights come from, if not from this run's steps.
    """
    c, data, split = trainer.config, trainer.data, trainer.split
    state = {k: v.detach().cpu() for k, v in trainer.teacher.state_dict().items()}
    if not c.text:
        state["text.strength"] = torch.zeros_like(state["text.strength"])  # an attention that was never trained must change nothing
    state |= _untrained(state, c)
    RunFolder(folder).save_weights(state)
    logits, truths = [], []

    examples = Examples(data)

    def keep(rows, best, truth) -> None:
        examples(rows, best, truth)
        logits.append(best.float().flatten().cpu()[::7])
        truths.append(truth.flatten().cpu()[::7])

    figures = validate(trainer, c.validation_limit, keep)
    examples.write(RunFolder(folder), trainer.step)
    selection = {}
    if len(split.validation) and c.method == "cers":
        sides = split.labelled, split.validation[: c.validation_limit]
        keys, queries = (pooled(trainer.teacher, data, rows, c.size, trainer.device) for rows in sides)
        selection = selection_thresholds(queries @ keys.T, trainer.memory.expert)
    temperature = _temperature(logits, truths, len(np.unique(split.kin[some(split.validation, c.validation_limit)])))
    labels = {str(n): name for n, name in enumerate(data.labels, 1)}
    config = ModelConfig(
        trainer.net.config.to_dict(),
        labels,
        size=c.size,
        modality=data.modality,
        body_site=only(row.get("body_site") for row in data.table),
        temperature=temperature,
        selection=selection,
        text_hash=trainer.memory.embedder.hash if trainer.memory.embedder else None,
        name=f"{c.method}, {folder.resolve().name}",
    )
    save_model(folder / "model", state, config, _card(trainer, figures, config, origin))
    if (result := measure(trainer, config, folder / "model")) is not None:
        write_card(folder / "model" / CARD, _card(trainer, figures, config, origin) + _measured(result))
    return figures


def _untrained(state: dict[str, torch.Tensor], c: TrainConfig) -> dict[str, torch.Tensor]:
    """Weights in place of those that the method does not train, for the whole network decodes an image: references that D_R never met
    change nothing, and without D_R its mask is that of D_S. A training that begins with them can learn both."""
    out = {}
    if not c.fused:
        for name in (n for n in state if n.startswith("fused.")):
            if (plain := f"plain.{name.removeprefix('fused.')}") in state:
                out[name] = state[plain].clone()
            elif ".mix.2." in name:  # MCAM adds nothing
                out[name] = torch.zeros_like(state[name])
    if not c.referring:
        for name in (n for n in state if n.startswith(("evidence.read.", "evidence.modulate."))):
            level, last = name.split(".")[2], name.split(".", 3)[3]
            if last == "2.bias":  # what is read of references is the null map
                out[name] = state[f"evidence.null.{level}"].clone()
            elif last == "2.weight" or name.startswith("evidence.modulate."):
                out[name] = torch.zeros_like(state[name])
    return out


def _temperature(logits: list[torch.Tensor], truths: list[torch.Tensor], groups: int) -> float:
    """Fitted to the pixels of the validation pictures; of few patients, or without a lesion, never such that it makes surer of itself."""
    if not logits or not any(t.any() for t in truths):
        return 1.0
    found = fit_temperature(torch.cat(logits), torch.cat(truths))
    return found if groups >= FEW else max(1.0, found)


def selection_thresholds(similar: np.ndarray, expert: np.ndarray) -> dict:
    """Settings of ``SelectionConfig`` from the cosines of held-out with training pictures (q, t) and the training rationales (t, r).

    visual_threshold: what nearly all of the fifth nearest reach, as many as serve as references; visual_high: the upper quarter of the
    nearest ones; cot_threshold: what nearly all pairs of rationales reach.
    """
    ordered = np.sort(similar, axis=1)[:, ::-1]
    low = min(float(np.percentile(ordered[:, min(4, ordered.shape[1] - 1)], 2)), 0.98)
    high = min(max(float(np.percentile(ordered[:, 0], 75)), low + 0.01), 1.0)
    some = expert[np.abs(expert).max(1) > 0]
    cot = float(np.percentile(some[:200] @ some[:200].T, 5)) if len(some) else 0.0
    return {"visual_threshold": round(low, 3), "visual_high": round(high, 3), "cot_threshold": round(cot, 3)}


def _card(trainer, figures: dict, config: ModelConfig, origin: str | None) -> str:
    c, counts = trainer.config, trainer.split.report["counts"]
    method = f"{c.method}, evidence {c.evidence}" if c.method == "cers" else c.method
    shown = some(trainer.split.validation, c.validation_limit)
    empty = sum(not trainer.data.masks[int(row)].any() for row in shown)
    each = "; of several labels the mean, each counted so by itself" if len(trainer.data.labels) > 1 else ""
    lines = [
        f"# {config.name}",
        "",
        origin or f"Method {method}, {trainer.step} {plural(trainer.step, 'step')}, configuration {c.hash}, seed {c.seed}.",
        f"Trained on {counts['labelled']} labelled and {counts['unlabelled'] if c.method != 'supervised' else 0} unlabelled pictures, "
        f"split by {trainer.split.report['by']}.",
        "",
        "| validation | Dice |",
        "| --- | ---: |",
        *(f"| {name} | {value:.4f} |" for name, value in figures.items()),
        "",
        f"n = {len(shown)} {plural(len(shown), 'slice or picture', 'slices or pictures')}, {empty} of them without a lesion, "
        f"which count as 1 where nothing is found in them and as 0 else{each}. Not for clinical use.",
        "",
    ]
    return "\n".join(lines)


def _measured(result: dict) -> str:
    run = result["run"]
    about = f"{result['images']} of {run['of']}" if result["images"] < run["of"] else str(result["images"])
    return (
        f"\n## On {run['on']} pictures\n\n{about} pictures, split by {run['split']}; 95 % bootstrap intervals {drawn(result)} in brackets. "
        f"Masks of the {'plain decoder' if run['decoder'] == 'plain' else 'evidence decoder'}.\n\n"
        f"{markdown_table(mean_rows(result) + trust_rows(result) + ablation_rows(result))}\n"
    )
