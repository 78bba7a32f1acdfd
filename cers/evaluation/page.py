"""A result as one HTML file without scripts, with the reliability diagram as SVG."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from ..case.io import atomic_path, check_output
from ..inference.report_style import STYLE
from ..words import counted
from .leak import leak_words, leaking
from .tables import drawn, labels_first, learned, mean_rows, metric_name, number, part_rows, trust_rows

_SIDE, _PAD = 260, 44
_WORST = 15


def reliability_svg(curves: dict[str, dict]) -> str:
    """The reliability diagram: mean probability against share of lesion, one line per curve, and the diagonal of perfect calibration.

    Args:
        curves: name -> a part of ``calibration`` (at most two). A bin without voxels has no point; a point's area grows with them.
    """

    def at(x: float, y: float) -> tuple[float, float]:
        return round(_PAD + x * _SIDE, 1), round(14 + (1 - y) * _SIDE, 1)

    parts = []
    for n in range(6):
        (x, bottom), (left, y) = at(n / 5, 0), at(0, n / 5)
        parts.append(
            f'<path d="M{x} 14V{bottom}M{left} {y}H{_PAD + _SIDE}" stroke="#e1e6eb"/>'
            f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{n / 5:g}</text>'
            f'<text x="{left - 7}" y="{y + 4}" text-anchor="end">{n / 5:g}</text>'
        )
    (x0, y0), (x1, y1) = at(0, 0), at(1, 1)
    parts.append(f'<path d="M{x0} {y0}L{x1} {y1}" stroke="#8a96a3" stroke-dasharray="4 4"/>')
    for n, ((name, curve), color) in enumerate(zip(curves.items(), ("#0b6e7f", "#b7791f"))):
        bins = [b for b in curve["bins"] if b["voxels"]]
        most = max((b["voxels"] for b in bins), default=1)
        points = [(*at(b["probability"], b["lesion"]), 2 + 4 * (b["voxels"] / most) ** 0.5) for b in bins]
        line = "M" + "L".join(f"{x} {y}" for x, y, _ in points) if points else ""
        parts.append(
            f'<path d="{line}" fill="none" stroke="{color}" stroke-width="2"/>'
            + "".join(f'<circle cx="{x}" cy="{y}" r="{r:.1f}" fill="{color}"/>' for x, y, r in points)
            + f'<text x="{_PAD + 10}" y="{32 + 17 * n}" fill="{color}" font-weight="600">{escape(name)}</text>'
        )
    parts.append(
        f'<text x="{_PAD + _SIDE / 2}" y="{_SIDE + 50}" text-anchor="middle">probability</text>'
        f'<text transform="translate(12 {14 + _SIDE / 2}) rotate(-90)" text-anchor="middle">share of lesion</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIDE + _PAD + 16} {_SIDE + 60}" width="{_SIDE + _PAD + 16}" '
        f'font-family="system-ui,sans-serif" font-size="12" fill="#5b6875" role="img" aria-label="Reliability diagram">'
        + "".join(parts)
        + "</svg>\n"
    )


def curves(result: dict) -> dict[str, dict]:
    """The curves near lesions of a result, after and, where there is one, before temperature scaling."""
    calibration = result.get("calibration") or {}
    found = {"calibrated": calibration.get("near_lesion"), "before temperature scaling": calibration.get("before_near_lesion")}
    return {name: curve for name, curve in found.items() if curve}


def write_page(path: str | Path, result: dict) -> Path:
    """Write the page, whole or not at all. Raises InputError: it cannot be written."""
    path = check_output(path, (".html", ".htm"))
    with atomic_path(path) as temporary:
        temporary.write_text(_html(result), encoding="utf-8")
    return path


def _html(result: dict) -> str:
    title = escape(result["name"] or "Evaluation")
    about = [
        counted(result["images"], "image"),
        f"model {result['model_name']} ({result['model']})" if result["model"] else "given predictions",
        f"pool of {counted(result['pool_cases'])}" if result["pool"] else "no pool",
        *filter(None, [learned(result), labels_first(result)]),
    ]
    leak = result["leak"]
    among = leaking(result)
    klass = "note" if among else "soft small"
    words = leak_words(leak) + ("\nNone of these is among the images of this page." if leak and leak["leaking"] and not among else "")
    tables = _table(("", "mean [95 % interval]", "n"), mean_rows(result) + part_rows(result) + trust_rows(result))
    lines = curves(result)
    diagram = f"<section><h2>Are its probabilities to be believed?</h2>{reliability_svg(lines)}</section>" if lines else ""
    shown = [m for m in ("dice", "hd95", "surface_dice", "lesion_f1") if m in result["mean"]]
    worst = sorted(result["cases"], key=lambda c: c["dice"])[:_WORST]
    rows = [(c["image"], *(number(c[m]) for m in shown)) for c in worst]
    missing = {**result["left"], **result["faults"]}
    gone = "<section><h2>Not evaluated</h2>" + _table(("file", "why"), list(missing.items())) + "</section>" if missing else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>{STYLE}</style></head><body><main>
<header><h1>{title}</h1><p class="soft">{escape(", ".join(about))}</p></header>
<p class="{klass}" style="white-space:pre-wrap">{escape(words)}</p>
<section><h2>Figures</h2>{tables}<p class="soft small">Intervals: {escape(result["rules"]["intervals"])}, {drawn(result)}. None is shown
where all draws give the same.</p></section>
{diagram}<section><h2>The {len(rows)} lowest Dice</h2>{_table(("image", *(metric_name(m, result["units"]) for m in shown)), rows)}</section>
{gone}<footer><p>Written by CERS {escape(result["cers"])}. Not for clinical use.</p></footer></main></body></html>
"""


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    """Columns of numbers alone stay in one line each, however long the names beside them are."""
    rows = [[str(cell) for cell in row] for row in rows]
    kinds = ["" if n == 0 or any(c.isalpha() for row in rows for c in row[n]) else ' class="n"' for n in range(len(head))]

    def line(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells)) + "</tr>"

    return "<table>" + line("th", head) + "".join(line("td", row) for row in rows) + "</table>"
