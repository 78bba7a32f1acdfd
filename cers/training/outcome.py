"""What a finished run is worth: its model on the test pictures, else on the validation pictures, as ``result.json`` beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from PIL import Image

from ..case.io import atomic_path
from ..evaluation.result import Cases
from ..evaluation.statistics import related
from ..inference.model import ModelConfig, model_hash
from ..inference.store import PICTURES, RESULT, WEIGHTS
from .pictures import sheet, tile
from .validation import held_out, some

LIMIT = 300  # pictures at most that are measured: intervals hardly narrow beyond, and it takes minutes on a processor
SHOWN, COLUMNS = 60, 10


def measure(trainer, config: ModelConfig, folder: Path) -> dict | None:
    """Write ``result.json`` and the sheet of pictures, worst first, into a model's folder; the result, None without held-out pictures.

    Masks are compared at the size at which pictures are stored; a Dice of several labels is the mean over them.
    """
    split, data, c = trainer.split, trainer.data, trainer.config
    on = "test" if len(split.test) else "validation"
    every = getattr(split, on)
    rows = some(every, LIMIT)
    if not len(rows):
        return None
    cases, tiles = Cases(data.labels, config.temperature), []
    known = [data.table[int(row)] for row in rows]
    groups = dict(zip(map(int, rows), related([[row["group"], *row["kin"]] for row in known])))
    for part, found, _truth in held_out(trainer, rows, others=True):
        large = {
            arm: F.interpolate(x.float(), data.images.shape[1:], mode="bilinear", align_corners=False).cpu().numpy()
            for arm, x in found.items()
        }
        for n, (row, drawn) in enumerate(zip(part, data.onehot(part) > 0)):
            logits = {arm: values[n] for arm, values in large.items()}
            cases.add(_about(data.table[int(row)], groups[int(row)]), logits, drawn)
            tiles.append(tile(data.images[int(row)], (logits[list(logits)[-1]] > 0).any(0), drawn.any(0)))
    _picture(cases.rows, tiles, folder)
    report = split.report
    result = cases.result(
        config.name,
        model_hash((folder / WEIGHTS).read_bytes(), config),
        {
            "on": on,
            "of": len(every),
            "decoder": list(found)[-1],
            "split": report["by"],
            "counts": report["counts"],
            "leaks": report["leaks"]["words"],
            "configuration": c.hash,
            "method": c.method,
            "evidence": c.evidence,
            "steps": trainer.step,
            "seed": c.seed,
            "pixels": list(data.images.shape[1:]),
        },
    )
    with atomic_path(folder / RESULT) as temporary:
        temporary.write_text(json.dumps(result, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def _about(row: dict, group: str | None) -> dict:
    return {"image": row["image"], "group": group, "diagnosis": row.get("diagnosis") or None, "file": row.get("file")}


def _picture(rows: list[dict], tiles: list[np.ndarray], folder: Path) -> None:
    """The sheet: half of it the worst cases, the other half spread over the rest."""
    order = sorted(range(len(rows)), key=lambda n: (rows[n]["dice"], rows[n]["image"]))
    if len(order) > SHOWN:
        worst, rest = order[: SHOWN // 2], order[SHOWN // 2 :]
        order = worst + [rest[int(k)] for k in np.linspace(0, len(rest) - 1, SHOWN - len(worst)).round()]
    for place, n in enumerate(order):
        rows[n]["tile"] = place
    with atomic_path(folder / PICTURES) as temporary:
        Image.fromarray(sheet([tiles[n] for n in order], COLUMNS)).save(temporary, "PNG")
