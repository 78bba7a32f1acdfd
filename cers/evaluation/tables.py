"""Figures as people read them: rows of text for the terminal, the model card and the report."""

from __future__ import annotations

from ..words import counted
from .failure import FEW

NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95",
    "surface_dice": "surface Dice",
    "lesion_sensitivity": "lesion sensitivity",
    "lesion_precision": "lesion precision",
    "lesion_f1": "lesion F1",
    "volume_difference": "volume difference",
    "relative_volume_difference": "relative volume difference",
}


def number(value: float | None) -> str:
    """Three decimals below 10, then fewer; a dash for None, and no minus before what is rounded to 0."""
    if value is None:
        return "-"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return text if float(text) else text.removeprefix("-")


def span(row: dict) -> str:
    """ "0.812 [0.790, 0.834]"; the value alone where its interval has no width, as of equal values, as if all were known."""
    return number(row["value"]) + (f" [{number(row['low'])}, {number(row['high'])}]" if _wide(row) else "")


def sure(row: dict) -> bool:
    """Whether the interval of a difference leaves out zero."""
    return _wide(row) and (row["low"] > 0 or row["high"] < 0)


def _wide(row: dict) -> bool:
    return row["low"] is not None and row["low"] < row["high"]


def drawn(result: dict) -> str:
    """What the bootstrap drew: "over cases", or "over 20 groups and 1 case without one"; and whether it was too little."""
    groups, alone = result["rules"]["groups"], result["rules"]["cases_without_group"]
    # 95 % intervals of 2, 3 and 4 hold the true mean in about 50, 75 and 80 % (normal values)
    few = " (so few that they are too narrow)" if 1 < groups + alone < FEW else ""
    if not groups:
        return f"over cases{few}"
    own = f" and {counted(alone)} without one" if alone else ""
    return f"over {counted(groups, 'group')}{own}{few}"


def labels_first(result: dict) -> str:
    """What the rows of ``mean_rows`` are of several labels: "first the mean over 2 labels"; "" of one."""
    return f"first the mean over {len(result['labels'])} labels" if result.get("labels") else ""


def learned(result: dict) -> str:
    """How many of the images the table calls training ones: "3 of them for training"; "" where none is one, or a result is older."""
    count = result.get("training_images") or 0
    return f"{count} of them for training" if count else ""


def metric_name(metric: str, units: dict) -> str:
    unit = f"at {units['surface_tolerance']}" if metric == "surface_dice" else units.get(metric)
    name = NAMES[metric].replace("volume", "area") if units["volume_difference"] in ("px", "mm²") else NAMES[metric]
    return name + (f", {unit}" if unit else "")


def mean_rows(result: dict) -> list[tuple[str, str, int]]:
    """(metric, mean with interval, number of cases in which it is defined)."""
    return [(metric_name(m, result["units"]), span(row), row["n"]) for m, row in result["mean"].items()]


def part_rows(result: dict) -> list[tuple[str, str, int]]:
    """Dice by label and by diagnosis, where there are several."""
    parts = [*result.get("by_label", {}).items(), *result.get("by_diagnosis", {}).items()]  # a diagnosis may be called like a label
    return [(f"Dice, {name}", span(row["dice"]), row["dice"]["n"]) for name, row in parts]


def trust_rows(result: dict) -> list[tuple[str, str, int]]:
    """The same of calibration and failure detection; empty for masks that no model of ours made."""
    rows, calibration, failure = [], result.get("calibration"), result.get("failure")
    parts = (
        ("near_lesion", "calibration error (ECE) near lesions"),
        ("before_near_lesion", "the same before temperature scaling"),
        ("everywhere", "calibration error (ECE) over all voxels"),
        ("before", "the same before temperature scaling"),
    )
    for key, name in parts if calibration else ():
        if calibration[key]:
            rows.append((name, span(calibration[key]["ece"]), calibration[key]["ece"]["n"]))
    for key in ("coverage", "confidence", "agreement") if failure else ():
        if key in failure and failure[key]["auroc"]["value"] is not None:
            found = failure[key]["auroc"]
            name = f"{key} as detector of Dice < {failure['below']:g}, AUROC ({counted(found['failures'], 'failure')})"
            rows.append((name, span(found), found["n"]))
    return rows


def text_table(rows: list[tuple[str, str, int]]) -> str:
    if not rows:
        return ""
    widths = [max(len(str(r[c])) for r in rows) for c in range(3)]
    return "\n".join(f"{r[0]:<{widths[0]}}  {r[1]:<{widths[1]}}  n={r[2]}" for r in rows)


def markdown_table(rows: list[tuple[str, str, int]], head: tuple[str, str, str] = ("", "mean [95 % interval]", "n")) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|"]
    return "\n".join(lines + ["| " + " | ".join(_cell(c) for c in r) + " |" for r in rows])


def _cell(value) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
