"""The measured section of a model card, written from result files so that no figure in it is typed by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..case.io import atomic_path
from ..errors import InputError
from ..words import counted
from .compare import read_json
from .failure import FAILURE, detection
from .leak import leaking
from .run import KIND
from .tables import drawn, labels_first, learned, markdown_table, mean_rows, number, part_rows, span, trust_rows

START, END = "<!-- measured -->", "<!-- /measured -->"
_HEADING = "## Measured"


def update_card(card: str, model_hash: str, files: Sequence[Path]) -> str:
    """The card with the part between its markers replaced; without markers the section is added at the end. All else stays as it is.

    Args:
        files: results of ``cers evaluate --json`` or ``benchmarks.accuracy --json``, one part each, in this order.

    Raises:
        InputError: a file is neither, damaged, or was measured with another model; or the card has the markers more than once.
    """
    if not files:
        raise InputError("No result file was given. Name at least one with --results.")
    block = "\n\n".join(_part(Path(f), model_hash) for f in files)
    block = f"{START}\nMeasured with the weights `{model_hash}`; 95 % bootstrap intervals in brackets.\n\n{block}\n{END}"
    if (card.count(START), card.count(END)) == (0, 0):
        return f"{card.rstrip()}\n\n{_HEADING}\n\n{block}\n".lstrip()
    if (card.count(START), card.count(END)) != (1, 1) or card.index(START) > card.index(END):
        raise InputError(f"The model card must have the markers {START} and {END} once each, in this order. Mend it, or remove them.")
    return re.sub(rf"{re.escape(START)}.*?{re.escape(END)}", lambda _: block, card, flags=re.DOTALL)


def write_card(path: Path, text: str) -> None:
    """Whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _part(file: Path, model_hash: str) -> str:
    result = read_json(file)
    if result.get("model") != model_hash:
        other = f"the model {result['model']}" if result.get("model") else "no model of CERS"
        raise InputError(f"'{file.name}' was measured with {other}, not with this one ({model_hash}). Evaluate this model first.")
    try:
        if result.get("kind") == KIND:
            return _evaluation(result, file)
        if "pictures" in result or "volumes" in result:
            return _accuracy(result)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"The result '{file}' is damaged: a figure is missing, or is none. Measure the model again.") from error
    raise InputError(f"'{file.name}' is not a result of 'cers evaluate' or of the accuracy benchmark.")


def _evaluation(result: dict, file: Path) -> str:
    about = [
        counted(result["images"], "image")
        + (f" of {run['of']} {run['on']} pictures, at the end of training" if (run := result.get("run")) else ""),
        f"pool of {counted(result['pool_cases'])} (`{result['pool'][:16]}`)" if result["pool"] else "no pool",
    ]
    if result["planes"] == "three":
        about.append("three planes fused")
    leak = result["leak"]
    about.append(f"{leaking(result)} of them in or close to the pool" if leak else "no leak report")
    if missing := len(result["left"]) + len(result["faults"]):
        about.append(f"{counted(missing, 'file')} not evaluated")
    about += filter(None, [learned(result), f"intervals {drawn(result)}", labels_first(result)])
    rows = mean_rows(result) + trust_rows(result) + part_rows(result)
    return f"### {_line(result['name'] or file.stem)}\n\n{'; '.join(about)}.\n\n{markdown_table(rows)}"


def _accuracy(result: dict) -> str:
    parts = []
    if result.get("pictures"):
        rows = [(name, span(row), row["n"]) for name, row in result["pictures"].items() if row["n"]]
        cases = [c for c in result.get("cases", []) if "coverage" in c]
        for score, words in (
            ("coverage", "coverage"),
            ("confidence", "mean probability in the mask"),
            ("agreement", "agreement of the decoders"),
        ):
            found = detection([c.get(score) for c in cases], [c["retrieved"] for c in cases])
            if found["value"] is not None:
                rows.append(
                    (
                        f"{words} as detector of Dice < {FAILURE:g}, AUROC ({counted(found['failures'], 'failure')})",
                        span(found),
                        found["n"],
                    )
                )
        for when, row in result.get("calibration", {}).items():
            rows.append((f"expected calibration error near the lesion, {when} the temperature", span(row), row["n"]))
        parts.append("### Test pictures\n\n" + markdown_table(rows, ("Dice", "mean [95 % interval]", "n")))
    if result.get("volumes"):
        lines = ["| volume | planes | Dice, retrieved | surface Dice, 2 mm | HD95, mm | Dice, no pool | ml | expert ml |", "|---" * 8 + "|"]
        columns = ("retrieved", "surface_dice", "hd95", "null", "ml", "expert_ml")
        lines += [
            f"| {_line(r['volume'])} | {r['planes']} | " + " | ".join(number(r.get(c)) for c in columns) + " |" for r in result["volumes"]
        ]
        parts.append("### Volumes\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _line(text: str) -> str:
    return " ".join(str(text).replace("|", "/").replace("<", "(").replace(">", ")").split())
