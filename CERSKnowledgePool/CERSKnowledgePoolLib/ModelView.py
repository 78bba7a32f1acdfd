"""One model in detail: key facts, its figures with intervals, what evidence does for it, its calibration, and example cases."""

from __future__ import annotations

from html import escape
from pathlib import Path

import ctk
import qt
from CERSSegmentLib import Words
from CERSSegmentLib.Later import Later
from slicer.i18n import tr as _

from cers.evaluation.tables import mean_rows, metric_name, number, span, sure, trust_rows
from cers.inference import store

from .ModelPlots import CALIBRATION, CURVES, NAMES, ModelPlots, curves
from .Pages import wrap
from .TrainingRuns import when

TILE, ICON, COLUMNS = 120, 96, 10  # side of a picture in the sheet and on the screen; pictures in a row of the sheet
MOST_RESULT = 8 << 20  # bytes that are read at once
SHOWN = ("dice", "iou", "hd95", "surface_dice", "lesion_sensitivity", "lesion_precision")
ARMS = {
    "plain": lambda: _("Plain decoder, no evidence"),
    "null": lambda: _("Evidence decoder, no references"),
    "random": lambda: _("Random references"),
    "retrieved": lambda: _("Retrieved references"),
}
BAR, GOOD, BAD, WIDTH = "#0b6e7f", "#2e9e5b", "#d64545", 150


class ModelView:
    """Args: layout: of the page, to which the view is added."""

    def __init__(self, page, layout):
        self.page = page
        self.entry: dict | None = None
        self.result: dict | None = None
        self._sheet, self._later = None, Later()
        self.frame = qt.QWidget(page)
        layout.addWidget(self.frame)
        column = qt.QVBoxLayout(self.frame)
        column.setContentsMargins(0, 0, 0, 0)
        self.facts, self.figures = self._label(column), self._label(column)
        self.evidence = self._label(column)
        self.plots = ModelPlots()
        self.legend = self._label(column)
        self.plot = self.plots.views[CALIBRATION]
        self.plot.setMinimumHeight(200)
        column.addWidget(self.plot)
        self.casesLabel = self._label(column)
        self.cases = qt.QListWidget(self.frame)
        self.cases.setAccessibleName(_("Example cases"))
        self.cases.setViewMode(qt.QListWidget.IconMode)
        self.cases.setResizeMode(qt.QListWidget.Adjust)
        self.cases.setMovement(qt.QListWidget.Static)
        self.cases.setIconSize(qt.QSize(ICON, ICON))
        self.cases.setGridSize(qt.QSize(ICON + 16, ICON + 24))
        self.cases.setUniformItemSizes(True)
        self.cases.setMinimumHeight(2 * (ICON + 24) + 8)
        self.cases.setToolTip(_("Green: the expert's outline. Orange: the model's. Yellow: both."))
        self.cases.currentRowChanged.connect(lambda *_row: self._showCase())
        column.addWidget(self.cases)
        self.case = self._label(column)
        self.cardSection = ctk.ctkCollapsibleButton(self.frame)
        self.cardSection.text = _("Model card")
        self.cardSection.collapsed = True
        column.addWidget(self.cardSection)
        inner = qt.QVBoxLayout(self.cardSection)
        self.card = qt.QTextBrowser(self.cardSection)
        self.card.setAccessibleName(_("Model card"))
        self.card.setOpenLinks(False)
        self.card.setMinimumHeight(220)
        inner.addWidget(self.card)
        self.show(None)

    def _label(self, column):
        label = qt.QLabel(self.frame)
        wrap(label)
        label.setTextFormat(qt.Qt.RichText)
        label.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
        column.addWidget(label)
        return label

    def cleanup(self) -> None:
        self._later.stop()
        self.plots.cleanup()

    def show(self, entry: dict | None) -> None:
        """Shows a model as ``model_list`` describes it, None for none."""
        self.entry, self.result = entry, None
        self._later.stop()
        self.frame.setVisible(entry is not None)
        if entry is None:
            self.plots.clear()
            self.cases.clear()
            return
        problem = ""
        try:
            self.result = readResult(entry)
        except ValueError as error:
            problem = str(error)
        self.facts.setText(self._facts(entry))
        self._showFigures(problem)
        self.cases.clear()
        self.case.setText("")
        self._later.do("cases", self._showCases)
        self.cardSection.setVisible(not entry["problem"])
        self._later.do("card", self._showCard)

    def _facts(self, entry: dict) -> str:
        words = f"<b>{escape(entry['name'])}</b>"
        if entry["problem"]:
            return words + f"<br><span style='color:{BAD}'>✖</span> " + escape(entry["problem"])
        rows = [
            (_("Labels"), ", ".join(entry["labels"].values())),
            (_("Made for"), ", ".join(x for x in (entry["modality"], entry["body_site"]) if x) or _("any image")),
            (_("Input"), _("{size} × {size} pixels").format(size=entry["size"])),
        ]
        if entry["hash"]:
            rows.append((_("Weights"), f"{entry['hash']}, {entry['bytes'] / 1e6:.1f} MB"))
        if entry["source"] and not entry["shipped"]:
            rows.append((_("From"), entry["source"] + (f", {when(entry['installed'])}" if entry["installed"] else "")))
        run = (self.result or {}).get("run")
        if run:
            rows.append(
                (
                    _("Trained"),
                    _("{method}, {steps} steps on {labelled} labelled and {unlabelled} unlabelled pictures").format(
                        method=run["method"],
                        steps=f"{run['steps']:,}",
                        labelled=f"{run['counts']['labelled']:,}",
                        unlabelled=f"{run['counts']['unlabelled']:,}",
                    ),
                )
            )
        muted = Words.muted(self.page.palette)
        return (
            words
            + "<table cellpadding='1'>"
            + "".join(f"<tr><td style='color:{muted}'>{escape(a)}&nbsp;&nbsp;</td><td>{escape(b)}</td></tr>" for a, b in rows)
            + "</table>"
        )

    def _showFigures(self, problem: str) -> None:
        result, some = self.result, self.result is not None
        muted = Words.muted(self.page.palette)
        self.figures.setVisible(not (self.entry or {}).get("problem"))
        if not some:
            for widget in (self.evidence, self.legend, self.plot):
                widget.setVisible(False)
            words = problem or _("No figures: this model was not measured when it was trained. Its card below may have some.")
            self.figures.setText(f"<span style='color:{muted}'>{escape(words)}</span>")
            self.plots.clear()
            return
        run = result.get("run") or {}
        count = (
            _("{some} of {all}").format(some=result["images"], all=run["of"])
            if run.get("of", 0) > result["images"]
            else str(result["images"])
        )
        one = count == "1"
        if run.get("on") == "test":
            head = (
                _("On one test picture, which the training never saw")
                if one
                else _("On {count} test pictures, which the training never saw")
            )
        elif run.get("on") == "validation":
            pictures = _("On one validation picture") if one else _("On {count} validation pictures")
            head = pictures + _(", by which settings were chosen: a test would turn out lower")
        else:
            head = _("On one picture") if one else _("On {count} pictures")
        head = head.format(count=count)
        means = {**result, "mean": {m: result["mean"][m] for m in SHOWN if m in result["mean"]}}
        self.figures.setText(
            f"{escape(head)} <span style='color:{muted}'>({escape(_('95 % intervals in brackets'))})</span>"
            + _table([(name, words) for name, words, _n in mean_rows(means) + trust_rows(result)])
        )
        arms = (result.get("ablation") or {}).get("arms") or {}
        if len(arms) > 1:
            self.evidence.setText(f"<b>{escape(_('What evidence does for it'))}</b>" + _bars(arms, result["ablation"]["differences"]))
        self._later.do("evidence", lambda: self.evidence.setVisible(len(arms) > 1))
        lines = curves(result)
        if lines:
            # a portion each: showing a plot takes as long as filling it
            self._later.do("plots", lambda: self.plots.show(lines))
            self._later.do("plot", lambda: self.plot.setVisible(True))
            self.legend.setText(
                " &nbsp; ".join(f"<span style='color:{colour(n)}'>■</span> {escape(NAMES[n]())}" for n in CURVES if n in lines)
            )
        else:
            self.plots.clear()
            self.plot.setVisible(False)
        self._later.do("legend", lambda: self.legend.setVisible(bool(lines)))

    # cases

    def _showCases(self) -> None:
        self.cases.clear()
        self.case.setText("")
        found = [c for c in (self.result or {}).get("cases", []) if isinstance(c.get("tile"), int)]
        path = Path(self.entry["folder"]) / store.PICTURES
        self._sheet = qt.QPixmap(str(path)) if found and path.is_file() else None
        some = self._sheet is not None and not self._sheet.isNull()
        self._cases = sorted(found, key=lambda c: c["tile"]) if some else []
        # a portion each: reading the pictures and showing the list
        self._later.do("list", self._listCases)

    def _listCases(self) -> None:
        some = bool(self._cases)
        for n, widget in enumerate((self.casesLabel, self.cases, self.case)):
            self._later.do(("shown", n), lambda widget=widget: widget.setVisible(some))
        if not some:
            return
        self.casesLabel.setText(
            f"<b>{escape(_('Cases, worst first'))}</b> "
            + escape(_("{some} of {all}").format(some=len(self._cases), all=self.result["images"]))
            + f" &nbsp; <span style='color:#2e9e5b'>■</span> {escape(_('expert'))}"
            f" <span style='color:#ff9628'>■</span> {escape(_('model'))}"
        )
        for n, case in enumerate(self._cases):
            item = qt.QListWidgetItem(number(case["dice"]))
            item.setToolTip(str(case["image"]))
            self.cases.addItem(item)
            self._later.do(("tile", n), lambda n=n: self._showTile(n))

    def _showTile(self, n: int) -> None:
        row, column = divmod(self._cases[n]["tile"], COLUMNS)
        if n < self.cases.count:
            self.cases.item(n).setIcon(qt.QIcon(self._sheet.copy(column * TILE, row * TILE, TILE, TILE)))

    def _showCase(self) -> None:
        n = self.cases.currentRow
        if not 0 <= n < len(self._cases):
            self.case.setText("")
            return
        case = self._cases[n]
        parts = [
            f"<b>{escape(str(case['image']))}</b>",
            *(escape(str(case[k])) for k in ("diagnosis",) if case.get(k)),
            *(f"{escape(metric_name(m, self.result['units']))} {number(case[m])}" for m in ("dice", "hd95", "surface_dice") if m in case),
        ]
        arms = case.get("arms") or {}
        words = " · ".join(parts)
        if len(arms) > 1:
            words += "<br>" + escape(", ".join(f"{ARMS[a]()} {number(v)}" for a, v in arms.items() if a in ARMS))
        if case.get("file"):
            words += "<br>" + escape(str(case["file"]))
        self.case.setText(words)

    def _showCard(self) -> None:
        try:
            self.card.setMarkdown((Path(self.entry["folder"]) / store.CARD).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            self.card.setPlainText(_("This model has no card."))


def readResult(entry: dict) -> dict | None:
    """The result of a model, None where it has none.

    Raises:
        ValueError: it is damaged or too large, with a sentence.
    """
    path = Path(entry["folder"]) / store.RESULT
    if not entry["folder"] or not path.is_file():
        return None
    found = store.read_json(path) if path.stat().st_size <= MOST_RESULT else None
    if (
        found is None
        or not isinstance(found.get("cases"), list)
        or not isinstance((found.get("mean") or {}).get("dice"), dict)
        or not isinstance(found.get("units"), dict)
    ):
        raise ValueError(_("The figures of this model cannot be read; the model itself is not affected."))
    return found


def comparison(found: dict, palette) -> str:
    """What ``model_compare`` says, as HTML."""
    first, second = found["first"], found["second"]
    head = f"<b>{escape(_('{second} compared with {first}').format(first=first['name'], second=second['name']))}</b>"
    if found["difference"] is None:
        means = [(side["name"], "Dice " + span(side["mean"]["dice"])) for side in (first, second) if side["mean"]]
        return head + "<br>" + escape(found["reason"]) + (_table(means) if means else "")
    rows = []
    for metric, row in found["difference"].items():
        if metric in SHOWN and row["value"] is not None:
            better = (row["value"] > 0) != (metric == "hd95")
            mark = f"<span style='color:{GOOD if better else BAD}'>{'▲' if better else '▼'}</span> " if sure(row) else ""
            one = _("better in {better}, worse in {worse} of one case")
            words = one if row["n"] == 1 else _("better in {better}, worse in {worse} of {n} cases")
            words = words.format(better=row["better"], worse=row["worse"], n=row["n"])
            rows.append(
                f"<tr><td>{mark}{escape(metric_name(metric, found['units']))}&nbsp;&nbsp;</td><td align='right'>{escape(signed(row))}"
                f"&nbsp;&nbsp;</td><td style='color:{Words.muted(palette)}'>{escape(words)}</td></tr>"
            )
    several = _("Difference on the same {count} cases; an arrow where its interval leaves out zero:")
    return (
        head
        + "<br>"
        + escape((_("Difference on the same case:") if found["cases"] == 1 else several).format(count=found["cases"]))
        + "<table cellpadding='2'>"
        + "".join(rows)
        + "</table>"
    )


def signed(row: dict) -> str:
    words = span(row)
    return "+" + words if row["value"] > 0 else words


def colour(curve: str) -> str:
    return "#%02x%02x%02x" % tuple(round(255 * part) for part in CURVES[curve])


def _table(rows: list[tuple[str, str]]) -> str:
    return (
        "<table cellpadding='2'>"
        + "".join(f"<tr><td>{escape(a)}&nbsp;&nbsp;</td><td align='right'>{escape(b)}</td></tr>" for a, b in rows)
        + "</table>"
    )


def _bars(arms: dict, differences: list[dict]) -> str:
    """Dice by kind of evidence as bars, and the paired differences."""
    rows = ""
    for arm, row in arms.items():
        if arm in ARMS and row["value"] is not None:
            full = max(1, round(WIDTH * row["value"]))
            rows += (
                f"<tr><td>{escape(ARMS[arm]())}&nbsp;&nbsp;</td><td><table cellspacing='0' cellpadding='0'><tr>"
                f"<td width='{full}' bgcolor='{BAR}'>&nbsp;</td><td width='{WIDTH - full}'></td></tr></table></td>"
                f"<td align='right'>&nbsp;{escape(span(row))}</td></tr>"
            )
    for d in differences:
        if d["value"] is not None and d["arm"] in ARMS and d["minus"] in ARMS and (d["arm"], d["minus"]) != ("null", "plain"):
            mark = f"<span style='color:{GOOD if d['value'] > 0 else BAD}'>{'▲' if d['value'] > 0 else '▼'}</span> " if sure(d) else ""
            words = _("{arm} minus {minus}").format(arm=ARMS[d["arm"]](), minus=ARMS[d["minus"]]())
            rows += f"<tr><td colspan='2'>{mark}{escape(words)}&nbsp;&nbsp;</td><td align='right'>{escape(signed(d))}</td></tr>"
    return "<table cellpadding='2'>" + rows + "</table>"
