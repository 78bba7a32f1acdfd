"""How alike are two experts' masks of one picture? A ceiling for every figure of Dice on these data.

    python -m benchmarks.twins --data BRISC

Pictures that are the same pixel for pixel in the stored frame but have masks of their own. Dice of both masks, the mean of all pairs of a
picture, over pictures with its 95 % bootstrap interval. Pairs whose masks are equal, too, may be copies; they are counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks.common import program
from cers.evaluation.statistics import interval
from cers.training.datasets import open_dataset


def pairs(data) -> list[dict]:
    """Every two rows of one picture: {"group", "diagnosis", "dice"}; a picture without any lesion in both masks is left out."""
    same: dict[bytes, list[int]] = {}
    for row in range(len(data.images)):
        same.setdefault(np.asarray(data.images[row]).tobytes(), []).append(row)
    diagnoses, out = data.column("diagnosis"), []
    for number, rows in enumerate(rows for rows in same.values() if len(rows) > 1):
        for a, b in combinations(rows, 2):
            first, second = np.asarray(data.masks[a]) > 0, np.asarray(data.masks[b]) > 0
            if total := int(first.sum() + second.sum()):
                out.append(
                    {"group": number, "diagnosis": str(diagnoses[a]), "dice": 2 * int((first & second).sum()) / total, "rows": [a, b]}
                )
    return out


def table(found: list[dict]) -> dict[str, dict]:
    """By diagnosis and in all: pictures, pairs, pairs with equal masks, Dice over pictures and over those pairs only whose masks differ."""

    def summed(chosen: list[dict]) -> dict:
        def dice(some: list[dict]) -> dict:
            groups = sorted({p["group"] for p in some})
            return interval([float(np.mean([p["dice"] for p in some if p["group"] == g])) for g in groups])

        unequal = [p for p in chosen if p["dice"] < 1]
        return {
            "pictures": len({p["group"] for p in chosen}),
            "pairs": len(chosen),
            "equal": len(chosen) - len(unequal),
            "dice": dice(chosen),
            "dice of unequal": dice(unequal),
        }

    names = sorted({p["diagnosis"] for p in found})
    return {**{name: summed([p for p in found if p["diagnosis"] == name]) for name in names}, "all": summed(found)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in BRISC layout")
    parser.add_argument("--frame", type=int, default=256)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        result = table(pairs(open_dataset(str(given.data), [], given.frame, "acquisition", Path(cache))))

    def shown(dice: dict) -> str:
        ends = f" [{dice['low']:.3f}, {dice['high']:.3f}]" if dice["low"] is not None else ""
        return "" if dice["value"] is None else f"{dice['value']:.3f}{ends}"

    print("| | pictures | pairs | masks equal | Dice of the two masks | of those that differ |\n|---|---:|---:|---:|---|---|")
    for name, row in result.items():
        print(f"| {name} | {row['pictures']} | {row['pairs']} | {row['equal']} | {shown(row['dice'])} | {shown(row['dice of unequal'])} |")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    program(main)
