"""The evidence ablation as one picture, drawn from what ``benchmarks.ablation`` measured.

    python -m benchmarks.figure pituitary/ablation.json meningioma/ablation.json --known known/ablation.json --out evidence.png

Left: classes that were never trained, by the size of the pool. Right: what kinds of evidence change, against no reference. Bars are 95 %
bootstrap intervals over test pictures of the mean over seeds. Needs matplotlib: ``pip install -e ".[bench]"``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import program
from cers.errors import InputError
from cers.evaluation.statistics import interval

CAP = ", cap .9"
KINDS = (
    ("retrieved", "retrieved"),
    ("retrieved" + CAP, "retrieved, none alike > .9"),
    ("two-stage (with CoT)", "retrieved by look and rationale"),
    ("shuffled rationale", "retrieved, rationales shuffled"),
    ("random", "random cases"),
    ("swapped masks", "masks swapped"),
    ("empty masks", "masks empty"),
)
BLUE, ORANGE, GREEN, GREY = "#2a6f97", "#d1802b", "#5a8f4e", "#7a7a7a"
COLOURS = (BLUE, GREEN, "#8a5fa8", "#b04a4a")


def means(result: dict, method: str | None) -> dict[str, np.ndarray]:
    """Dice (pictures,) of every row, mean over seeds; ``method`` None: of copying."""
    if method is None:
        return {name: np.array(scores["dice"]) for name, scores in result["copy"].items()}
    runs = [run["scores"] for run in result["runs"].values() if run["method"] == method]
    return {name: np.mean([scores[name]["dice"] for scores in runs], axis=0) for name in (runs[0] if runs else {})}


def by_pool(result: dict, trained: str) -> tuple[list[int], list[np.ndarray], list[np.ndarray]]:
    """Pool sizes, Dice of D_R with references (none alike above 0.9) and of the better of both ways to copy them."""
    own, copied = means(result, trained), means(result, None)
    sizes = sorted(int(name.split()[2].rstrip(",")) for name in own if name.startswith("pool of") and name.endswith(CAP))
    names = [f"pool of {n}{CAP}" for n in sizes] + ["retrieved" + CAP]
    best = [max((copied[f"copy K={k}, {name}"] for k in (1, 4)), key=np.mean) for name in names]
    return [*sizes, result["pool"]], [own[name] for name in names], best


def read(path: Path, trained: str) -> dict:
    """What ``benchmarks.ablation`` wrote. Raises InputError: it is something else, or has no such row."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = sorted({run["method"] for run in found["runs"].values() if {name for name, _ in KINDS} <= run["scores"].keys()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path}' is not what benchmarks.ablation writes. Give the ablation.json of its folder.") from error
    if trained not in rows:
        raise InputError(f"'{path}' has no row {trained} to be drawn; it has {', '.join(rows) or 'none'}. Choose another with --trained.")
    return found


def _errors(values: list[np.ndarray]) -> tuple[list[float], list[list[float]]]:
    found = [interval(v.tolist()) for v in values]
    return [f["value"] for f in found], [[0 if f[end] is None else abs(f["value"] - f[end]) for f in found] for end in ("low", "high")]


def draw(unseen: list[dict], known: dict | None, trained: str, out: Path) -> None:
    """Write the picture.

    Args:
        unseen, known: what ``benchmarks.ablation`` wrote; known may be left out. trained: the row of all to draw.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n = len(unseen)
    figure, axes = plt.subplots(
        1, n + 1, figsize=(5 + 5 * n, 4.2), dpi=150, layout="constrained", gridspec_kw={"width_ratios": [1] * n + [1.15]}
    )
    places = {f"{result['held_out'][1]} (unseen)": (result, colour) for result, colour in zip(unseen, COLOURS)}
    for axis, (result, colour) in zip(axes, places.values()):
        _pools(axis, result, trained, colour)
    axes[0].legend(fontsize=8, loc="lower right", frameon=False)  # the same in all of them
    if known:
        places["known classes"] = known, ORANGE
    shifts = np.linspace(-0.22, 0.22, len(places)) if len(places) > 1 else [0.0]
    _kinds(axes[-1], {words: (means(result, trained), colour, shift) for (words, (result, colour)), shift in zip(places.items(), shifts)})
    about = "; ".join(f"{words}: {_budget(result, trained)}" for words, (result, _) in places.items())
    figure.text(0.995, 0.005, f"{about}; {unseen[0]['about']['size']} px; 95 % intervals over pictures", ha="right", fontsize=7, color=GREY)
    figure.get_layout_engine().set(rect=(0, 0.03, 1, 0.97), wspace=0.04)
    figure.savefig(out)
    plt.close(figure)


def _budget(result: dict, trained: str) -> str:
    seeds = len({run["seed"] for run in result["runs"].values() if run["method"] == trained})
    return f"{seeds} seed{'s' * (seeds > 1)}, {result['about']['budget']}"


def _pools(left, unseen: dict, trained: str, own_colour: str) -> None:
    sizes, own, copied = by_pool(unseen, trained)
    null, plain = means(unseen, trained)["null"], means(unseen, "supervised").get("plain")
    for values, colour, words, mark in (
        (own, own_colour, "CERS, references retrieved, none alike > .9", "o"),
        (copied, ORANGE, "masks of the references copied", "s"),
    ):
        value, error = _errors(values)
        left.errorbar(range(1, len(sizes) + 1), value, error, color=colour, marker=mark, capsize=3, label=words)
    value, error = _errors([null])
    left.errorbar([0], value, error, color=own_colour, marker="o", mfc="white", capsize=3, label="CERS, no reference")
    if plain is not None:
        left.axhline(plain.mean(), color=GREY, linestyle="--", label="network without references, same budget")
    left.set_xticks(range(len(sizes) + 1), ["0", *(f"{n:,}" for n in sizes)])
    left.set_xlabel("cases of that class in the pool")
    left.set_ylabel("Dice")
    left.set_ylim(0, None)
    left.set_title(f"{unseen['held_out'][1].capitalize()}, never trained, n = {len(unseen['images'])}", fontsize=10)
    left.spines[["top", "right"]].set_visible(False)


def _kinds(right, places: dict) -> None:
    for words, (rows, colour, shift) in places.items():
        value, error = _errors([100 * (rows[name] - rows["null"]) for name, _ in KINDS])
        right.errorbar(value, np.arange(len(KINDS)) + shift, xerr=error, fmt="o", color=colour, capsize=3, label=words)
    right.axvline(0, color=GREY, linewidth=1)
    right.set_yticks(range(len(KINDS)), [words for _, words in KINDS])
    right.invert_yaxis()
    right.set_xlabel("Dice minus that without any reference, points")
    right.set_title("What kinds of evidence change", fontsize=10)
    right.legend(fontsize=8, frameon=False, loc="lower right")
    right.spines[["top", "right"]].set_visible(False)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figure", description=__doc__, formatter_class=raw)
    parser.add_argument("unseen", type=Path, nargs="+", help="ablation.json of runs with --hold-out")
    parser.add_argument("--known", type=Path, help="ablation.json of a run without")
    parser.add_argument("--trained", default="cers:retrieved", help="row of the ablation to draw")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    try:
        unseen = [read(p, given.trained) for p in given.unseen]
        known = read(given.known, given.trained) if given.known else None
        draw(unseen, known, given.trained, given.out)
    except ImportError:
        print('Error: drawing needs matplotlib. Install it with: pip install -e ".[bench]"', file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    program(main)
