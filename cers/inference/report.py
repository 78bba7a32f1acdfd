"""The evidence of a prediction as one HTML file: no scripts, no links to the network; it opens, enlarges and prints anywhere."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import __version__
from ..case import PARTS, WELL_COVERED, Evidence, PlaneView, Prediction, Rationale, Volume
from ..case.counts import by_plane
from ..case.io import atomic_path, check_output
from ..case.runs import from_runs
from ..case.sizes import amount, area, cut_words, told
from ..case.terminology import label_styles
from ..errors import PoolError
from ..pool import Pool
from ..rationale import beside
from ..words import counted
from .pictures import data_uri, display, svg_path, trim
from .report_style import STYLE

MAX_SLICES = 12
LEFT_OUT, LEFT_OUT_SHOWN = "#ffffff", 6  # colour; slices shown
EXPERT = "#2fc8f0"  # no lesion colour comes near it, also for colour-blind readers
_EDGES = {"axial": ("A", "R"), "coronal": ("S", "R"), "sagittal": ("S", "A")}  # top and left edge of a display slice
_STAGES = {
    "exclusion": "Excluded",
    "compatibility": "Not compatible",
    "morphology": "Looks different",
    "cot": "Findings differ",
    "limit": "Others were closer",
    "dropped": "Dropped by the user",
}
_HELP = """<p><b>Visual</b>: similarity of the image features, at most 1. <b>CoT</b>: how well the findings of the rationales (chains of
thought) agree, 0 to 1. <b>Agreement</b>: how well the other references of the slice explain this one's mask, at most 1; one that they
contradict is not counted, unless pinned. <b>Weight</b>: share of the evidence that the network gave this reference.
<b>Influence</b>: how much the mask changes without this reference alone, 0 to 1.</p>
<p>The findings of a slice are measured under the contour shown, those of a reference under the expert's. References are chosen by the
findings under the first contour, which the network draws before it sees any of them.</p>"""


class Written(NamedTuple):
    """A report: its file, how many reference cases it is to show, and how many of them could not be read and are there by name only."""

    path: Path
    cases: int
    unreadable: int

    def warning(self) -> str:
        """A sentence on cases that could not be read, else empty."""
        if not self.unreadable:
            return ""
        return (
            f"{counted(self.unreadable, 'reference case')} of {self.cases:,} could not be read; the report says so in place of the picture."
        )


def write_report(
    path: str | Path,
    prediction: Prediction,
    volume: Volume,
    pool: Pool | None,
    *,
    title: str | None = None,
    note: str | None = None,
    max_slices: int = MAX_SLICES,
) -> Written:
    """Write the report. Of the lesion slices ``max_slices`` come with pictures: first those that have references, and the largest first.

    Args:
        path: ends in .html. volume: the image the prediction was made of. pool: where the references lie, None if there was none.
        title: heading, default the volume's name. note: a remark for its top, for instance that the mask was changed since.

    Raises:
        InputError: the file cannot be written.
    """
    path = check_output(path, (".html", ".htm"))
    page = _Page(prediction, volume, pool, title or f"Segmentation of {volume.name}", max_slices, note or "")
    text = page.html()
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Written(path, len(page.cases), sum(isinstance(case, str) for case in page.cases.values()))


class _Page:
    def __init__(self, prediction: Prediction, volume: Volume, pool: Pool | None, title: str, max_slices: int, note: str = ""):
        self.prediction, self.volume, self.pool, self.title = prediction, volume, pool, title
        self.note = f'<p class="note"><b>{escape(note)}</b></p>' if note else ""
        self.views = {plane: PlaneView(prediction.geometry, plane) for plane in dict.fromkeys(e.plane for e in prediction.evidence)}
        self.pictures = {plane: display(view.slices(volume.array), volume.modality) for plane, view in self.views.items()}
        labels = dict(sorted(prediction.labels.items()))
        self.colors = {v: _hex(c) for v, (c, _) in zip(labels, label_styles(labels.values()))}
        self.lesions = sorted((e for e in prediction.evidence if e.pixels), key=lambda e: -e.pixels)
        self.shown = sorted(self.lesions, key=lambda e: not e.references)[:max_slices]
        self.symbols: dict[str, str] = {}  # each picture is stored once, however often it is shown
        self.ratios: dict[str, tuple[float, float]] = {}
        self.zooms: list[str] = []
        self.cases: dict[str, dict | str] = {}

    def html(self) -> str:
        sections = "".join(self.slice_section(e) for e in self.shown) or self.nothing()
        body = f"""<main><header><h1>{escape(self.title)}</h1><p class="soft">{escape(self.subtitle())}</p>
<p class="note"><b>Not for clinical use.</b> Research software; a qualified person must check every contour.</p>{self.note}
{self.facts()}{self.legend()}</header>
{sections}{self.left_out()}{self.all_slices()}{self.provenance()}
<footer>{_HELP}<p>Written by CERS {escape(__version__)}. {self.orientation()}
Click a picture to enlarge it.</p></footer></main>{"".join(self.zooms)}"""
        return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<title>{escape(self.title)}</title><style>{STYLE}</style></head><body>
<svg width="0" height="0" style="position:absolute" aria-hidden="true">{"".join(self.symbols.values())}</svg>{body}</body></html>
"""

    def orientation(self) -> str:
        return "Pictures in radiological orientation; the bar is 20 mm." if self.volume.spacing_known else ""

    # the top

    def subtitle(self) -> str:
        v, g = self.volume, self.prediction.geometry
        parts = [p for p in (v.modality, v.body_site) if p]
        sizes = [n for n in g.shape[::-1] if n > 1 or not g.single]
        parts.append(" \u00d7 ".join(map(str, sizes)) + (" pixels" if g.single else " voxels"))
        if v.spacing_known:
            # how thick a single slice is nobody measured
            parts.append(" \u00d7 ".join(f"{s:.3g}" for s, n in zip(g.spacing, g.shape[::-1]) if n > 1 or not g.single) + " mm")
        else:
            parts.append("size of the pixels not known")
        return " \u00b7 ".join(parts)

    def facts(self) -> str:
        sizes = self.prediction.sizes()
        rows = [(amount(sizes, name), name) for name in self.prediction.labels.values()]
        # a plane at a time: slices of different planes show the same lesion
        for plane, count in by_plane(e.to_dict() for e in self.prediction.evidence).items():
            seen = f"; references for {count.with_references} of them" if count.lesion and self.pool is not None else ""
            if not self.volume.is_picture:
                rows.append((f"{count.lesion} of {count.slices}", f"decoded {plane} slices with a lesion{seen}"))
        if self.lesions:
            sizes = [e.pixels for e in self.lesions]
            if all(e.confidence is not None for e in self.lesions):
                rows.append((f"{np.average([e.confidence for e in self.lesions], weights=sizes):.0%}", "mean probability inside the mask"))
            sizes = [e.pixels * e.marked for e in self.lesions]  # where neither marks anything, they say nothing
        if self.lesions and any(sizes):
            changed = np.average([e.disagreement for e in self.lesions], weights=sizes)
            rows.append((f"{changed:.0%}", "by which the two decoders differ (1 \u2212 Dice)"))
        return '<div class="facts">' + "".join(f"<div><b>{escape(a)}</b><span>{escape(b)}</span></div>" for a, b in rows) + "</div>"

    def legend(self) -> str:
        items = [(color, f"Predicted: {self.prediction.labels[value]}") for value, color in self.colors.items()]
        items.append((EXPERT, "Drawn by an expert"))
        if any(e.left_out for e in self.prediction.evidence):
            items.append(("#8a949e", "Dashed: shown by this plane, left out"))
        return '<div class="legend">' + "".join(f'<span style="--c:{c}">{escape(t)}</span>' for c, t in items) + "</div>"

    # one slice

    def size(self, pixels: int, view: PlaneView) -> str:
        """An area, in pixels where their size is not known."""
        return area(pixels, view.spacing) if self.volume.spacing_known else told(pixels, "pixel")

    def slice_section(self, e: Evidence) -> str:
        view = self.views[e.plane]
        facts = self.size(e.pixels, view)
        if e.confidence is not None:
            facts += f" \u00b7 mean probability {e.confidence:.0%}"
        facts += f" \u00b7 decoders differ by {e.disagreement:.0%}" if e.marked else " \u00b7 comes from the other planes"
        if e.left_out:
            facts += f" \u00b7 another {self.size(e.left_out, view)} shown by this plane, left out"
        references = "".join(self.reference(e, r) for r in e.references) if e.references else ""
        board = f'<div class="refs">{references}</div>' if references else self.no_reference(e)
        anchor = f"s-{e.plane}-{e.index}"
        return f"""<section id="{anchor}"><div class="head"><h2>{self.slice_name(e)}</h2><span class="soft small num">{facts}</span></div>
{self.coverage(e)}
<div class="board" style="--n:{len(e.references)}"><div class="card query">{self.query_picture(e, anchor)}<p class="name">This slice</p>
{_findings(e.rationale)}{_first(e)}</div>{board}</div>
{self.rejected(e)}</section>"""

    def slice_name(self, e: Evidence) -> str:
        count = len(self.views[e.plane])
        return "The picture" if count == 1 else f"{e.plane.capitalize()} slice {e.index + 1} of {count}"

    @staticmethod
    def coverage(e: Evidence) -> str:
        kind = "good" if e.coverage.covered and e.coverage.value >= WELL_COVERED else ("part" if e.coverage.covered else "")
        return f'<p class="coverage"><span class="dot {kind}"></span><span>{escape(e.coverage.message)}</span></p>'

    def no_reference(self, e: Evidence) -> str:
        text = (
            "No pool was open: the mask was made without evidence."
            if self.pool is None
            else "The mask was made without a reference. Judge it with particular care, or add annotated cases of this kind to the pool."
        )
        return f'<div class="empty"><b>{escape("No pool" if self.pool is None else "No close case in this pool")}</b>{escape(text)}</div>'

    def query_picture(self, e: Evidence, anchor: str) -> str:
        view = self.views[e.plane]
        mask = view.slices(self.prediction.labelmap)[e.index]
        paths = [(self.colors[v], svg_path(mask == v)) for v in self.prediction.labels if (mask == v).any()]
        if e.left_out:
            paths.append((LEFT_OUT, svg_path(from_runs(e.left_out_runs, mask.shape))))
        name = f"q-{e.plane}-{e.index}"
        self.symbol(name, self.pictures[e.plane][e.index], mask, paths, view.spacing, mm=self.volume.spacing_known)
        oriented = e.plane if self.volume.spacing_known else None
        return self.picture(name, anchor, f"{self.slice_name(e)} with the predicted contour", oriented)

    def reference(self, e: Evidence, r) -> str:
        case = self.case(r.id)
        anchor = f"s-{e.plane}-{e.index}"
        badge = f'<span class="rank">{r.rank}</span>' + ('<span class="pin">pinned</span>' if r.pinned else "")
        if isinstance(case, str):
            picture, name, findings = f'<div class="pic gone">{escape(case)}{badge}</div>', "Case not readable", ""
        else:
            picture = self.picture(case["symbol"], anchor, f"Reference {r.rank} with the expert contour", case["plane"], badge)
            name, findings = case["name"], _findings(case["rationale"])
        bars = "".join(
            _score(n, v)
            for n, v in (("Visual", r.visual), ("CoT", r.cot), ("Agreement", r.agreement), ("Weight", r.weight), ("Influence", r.influence))
        )
        return f"""<div class="card">{picture}<p class="name">{escape(name)}</p><p class="id">{escape(r.id)}</p>
<div class="scores">{bars}</div>{findings}</div>"""

    def case(self, case_id: str) -> dict | str:
        """What a card needs of a pool case; a sentence where the case cannot be read any more."""
        if case_id not in self.cases:
            try:
                if self.pool is None:
                    raise PoolError("The pool is not open.")
                case = self.pool.get(case_id)
            except PoolError as error:
                self.cases[case_id] = str(error)
            else:
                symbol = f"c-{len(self.cases)}"
                self.symbol(
                    symbol,
                    display(case.image, case.modality),
                    case.mask,
                    [(EXPERT, svg_path(case.mask > 0))],
                    case.spacing or (1.0, 1.0),
                    mm=case.spacing is not None,
                )
                words = (case.diagnosis or ", ".join(case.labels.values()), case.modality, case.body_site, case.plane)
                self.cases[case_id] = {
                    "symbol": symbol,
                    "name": " \u00b7 ".join(w for w in words if w),
                    "rationale": beside(case),
                    "plane": case.plane if case.ijkToRAS is not None else None,
                }
        return self.cases[case_id]

    def rejected(self, e: Evidence) -> str:
        if not e.rejected:
            return ""
        rows = "".join(
            f'<tr><td class="stage">{escape(_STAGES.get(r.stage, r.stage))}</td><td>{escape(r.reason)}</td>'
            f'<td class="n">{_number(r.visual)}</td><td class="n">{_number(r.cot)}</td><td class="id">{escape(r.id)}</td></tr>'
            for r in e.rejected
        )
        return f"""<details{" open" if e is self.shown[0] else ""}><summary>Candidates that were not used ({len(e.rejected)})</summary>
<table><thead><tr><th>Why</th><th>Reason</th>
<th class="n">Visual</th><th class="n">CoT</th><th>Case</th></tr></thead><tbody>{rows}</tbody></table></details>"""

    # pictures

    def symbol(
        self, name: str, image: np.ndarray, mask: np.ndarray, paths: list[tuple[str, str]], spacing: tuple[float, float], *, mm: bool
    ) -> None:
        """Keep a picture with its contours as an SVG symbol whose units are mm, or pixels where their size is not known."""
        rows, columns = trim(image, mask)
        part = image[rows, columns]
        (sy, sx), (h, w) = spacing, part.shape
        left, top = (columns.start or 0), (rows.start or 0)
        lines = "".join(
            f'<path d="{d}" fill="none" stroke="{color}" stroke-width="{width}" stroke-opacity="{opacity}" '
            + ('stroke-dasharray="4 4" ' if c == LEFT_OUT else "")
            + 'stroke-linejoin="round" vector-effect="non-scaling-stroke"/>'
            for c, d in paths
            for color, width, opacity in (("#000", 3.4, 0.5), (c, 1.7, 1))
        )
        bar = ""
        if mm and w * sx > 60:
            x, y = w * sx * 0.96, h * sy * 0.965
            bar = (
                f'<path d="M{x - 20:.4g} {y:.4g}H{x:.4g}" stroke="#d8dee4" stroke-width="2" vector-effect="non-scaling-stroke">'
                "<title>20 mm</title></path>"
            )
        width, height = w * sx, h * sy
        self.symbols[name] = (
            f'<symbol id="{name}" viewBox="0 0 {width:.6g} {height:.6g}">'
            f'<image href="{data_uri(part)}" width="{width:.6g}" height="{height:.6g}" preserveAspectRatio="none"/>'
            f'<g transform="scale({sx:.6g} {sy:.6g}) translate({-left} {-top})">{lines}</g>{bar}</symbol>'
        )
        self.ratios[name] = width, height

    def picture(self, name: str, anchor: str, label: str, plane: str | None, badge: str = "") -> str:
        w, h = self.ratios[name]
        zoom = f"z-{len(self.zooms)}"
        svg = (
            f'<svg viewBox="0 0 {w:.6g} {h:.6g}" role="img" aria-label="{escape(label)}">'
            f'<use href="#{name}" width="{w:.6g}" height="{h:.6g}"/></svg>'
        )
        self.zooms.append(f'<div class="zoom" id="{zoom}"><a href="#{anchor}" title="Back">{svg}</a></div>')
        edges = "".join(f'<i class="{c}">{t}</i>' for c, t in zip("tl", _EDGES[plane])) if plane in _EDGES else ""
        return f'<a class="pic" href="#{zoom}" title="Enlarge">{svg}{edges}{badge}</a>'

    # the end

    def nothing(self) -> str:
        text = "No voxel reached the model's threshold. This does not prove that there is no lesion."
        if any(e.left_out for e in self.prediction.evidence):
            text = "What single planes show is not borne out by the others; see below. This does not prove that there is no lesion."
        most = {plane: view.slices(self.prediction.probabilities.max(0)).max((1, 2)) for plane, view in self.views.items()}
        best = max(self.prediction.evidence, key=lambda e: most[e.plane][e.index], default=None)
        if best is None:
            return f'<section><div class="empty"><b>No lesion was found</b>{escape(text)}</div></section>'
        picture = self.query_picture(best, "top")
        return f"""<section id="top">
<div class="board" style="--n:0"><div class="card query">{picture}<p class="name">{self.slice_name(best)}</p>
<p class="small soft">the slice with the highest probability</p></div>
<div class="empty"><b>No lesion was found</b>{escape(text)}</div></div></section>"""

    def left_out(self) -> str:
        """What single planes show, by the slice that shows most of each run of slices, so that a reader can judge it."""
        left = [e for e in self.prediction.evidence if e.left_out]
        runs: dict[tuple[str, int], list[Evidence]] = {}
        for n, e in enumerate(sorted(left, key=lambda e: (e.plane, e.index))):
            runs.setdefault((e.plane, e.index - n), []).append(e)
        found = sorted((max(run, key=lambda e: e.left_out) for run in runs.values()), key=lambda e: -e.left_out)
        if not found:
            return ""
        cards = "".join(
            f'<div class="card">{self.query_picture(e, "left-out")}<p class="name">{self.slice_name(e)}</p>'
            f'<p class="small soft">{self.size(e.left_out, self.views[e.plane])}</p></div>'
            for e in found[:LEFT_OUT_SHOWN]
        )
        return f"""<section id="left-out"><div class="head"><h2>Left out of the mask</h2>
<span class="soft small num">in {counted(len(left), "slice")}</span></div>
<p class="soft small">What these slices show (dashed) the planes together do not bear out. It may be normal anatomy, or a lesion that other
planes miss. All of them: {escape(self.places(left))}.</p><div class="refs">{cards}</div></section>"""

    @staticmethod
    def places(slices: list[Evidence]) -> str:
        """For instance "axial 1, 6, 8; coronal 90": counted from 1, as in the names of slices."""
        planes: dict[str, list[int]] = {}
        for e in sorted(slices, key=lambda e: (e.plane, e.index)):
            planes.setdefault(e.plane, []).append(e.index + 1)
        return "; ".join(f"{plane} {', '.join(map(str, indices))}" for plane, indices in planes.items())

    def all_slices(self) -> str:
        if not self.lesions:
            return ""
        rows = "".join(
            f'<tr><td>{self._link(e)}</td><td class="n">{e.pixels}</td>'
            f'<td class="n">{"" if e.confidence is None else f"{e.confidence:.0%}"}</td>'
            f'<td class="n">{f"{e.disagreement:.0%}" if e.marked else ""}</td>'
            f'<td class="n">{len(e.references)}</td><td>{escape(e.coverage.message)}</td></tr>'
            for e in sorted(self.lesions, key=lambda e: (e.plane, e.index))
        )
        return f"""<section><h2>All slices with a lesion</h2><table><thead><tr><th>Slice</th><th class="n">Pixels</th>
<th class="n">Probability</th>
<th class="n">Decoders differ</th><th class="n">References</th><th>Coverage</th></tr></thead><tbody>{rows}</tbody></table></section>"""

    def _link(self, e: Evidence) -> str:
        return f'<a href="#s-{e.plane}-{e.index}">{self.slice_name(e)}</a>' if any(s is e for s in self.shown) else self.slice_name(e)

    def provenance(self) -> str:
        seconds = ", ".join(f"{name} {value:.2f}" for name, value in self.prediction.seconds.items())
        rows = [*_flat(self.prediction.provenance), ("seconds", seconds)]
        cells = "".join(f"<tr><td class='stage'>{escape(k)}</td><td class='num'>{escape(v)}</td></tr>" for k, v in rows)
        told = escape(cut_words(self.prediction.cut()))
        return f'<section><h2>Provenance</h2><p class="soft small">{told}</p><table><tbody>{cells}</tbody></table></section>'


def _score(name: str, value: float | None) -> str:
    width = 0.0 if value is None else min(max(value, 0.0), 1.0)
    return f'<em>{name}</em><u><b style="width:{width:.0%}"></b></u><strong>{_number(value)}</strong>'


def _first(e: Evidence) -> str:
    """By what the references were chosen, where that reads differently from what is shown."""
    if e.rationale is None or not e.references:
        return ""
    if e.first_rationale is None:
        words = "The first contour shows too little to be described, so the references were chosen by look alone."
    elif e.first_differs:
        words = "The references were chosen by the first contour, which reads differently (first against final) in: "
        words += "; ".join(e.first_differs) + "."
    else:
        return ""
    return f'<p class="small soft">{escape(words)}</p>'


def _findings(rationale: Rationale | None) -> str:
    if rationale is None:
        return '<dl><dd class="soft">No findings: the final mask is empty here.</dd></dl>'
    return "<dl>" + "".join(f"<dt>{p.capitalize()}</dt><dd>{escape(rationale.part(p))}</dd>" for p in PARTS if rationale.part(p)) + "</dl>"


def _number(value: float | None) -> str:
    if value is not None and 0 < round(value, 4) < 0.005:
        return "&lt;0.01"  # 0.00 would be none at all
    return "\u2013" if value is None else f"{value:.2f}"


def _flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    out = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, dict):
            out += _flat(value, "" if key == "settings" else f"{name}: ")
        else:
            out.append((name, "none" if value is None else str(value)))
    return out


def _hex(color) -> str:
    return "#" + "".join(f"{round(255 * min(max(c, 0.0), 1.0)):02x}" for c in color)
