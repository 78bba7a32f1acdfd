"""The page of one case: its picture, what is known of it, its rationale in every version, and what was done with it."""

from __future__ import annotations

from html import escape

import numpy as np
import qt
from CERSSegmentLib import Words
from CERSSegmentLib.Pictures import Picture, pixmap
from slicer.i18n import tr as _

from cers.case import PARTS
from cers.rationale import DESCRIPTORS

from . import SceneCase
from .Pages import addButton, wrap
from .PoolSession import PoolSession

PICTURE, FIELD = 248, 90  # pixels
FIELDS = {
    "diagnosis": lambda: _("Diagnosis"),
    "modality": lambda: _("Modality"),
    "body_site": lambda: _("Body site"),
    "patient_id": lambda: _("Patient"),
    "group": lambda: _("Group"),
    "annotator": lambda: _("Annotator"),
}
TIPS = {
    "diagnosis": lambda: _("What the lesion is, if it is known"),
    "modality": lambda: _("MR, CT, US …; an image gets evidence of its own modality only"),
    "body_site": lambda: _("For instance brain; an image gets evidence of its own body site only"),
    "patient_id": lambda: _("A pseudonym; an image never gets a case of its own patient as evidence"),
    "group": lambda: _("A name for cases that belong together, such as series of one scan; they are no evidence for one another"),
    "annotator": lambda: _("Who drew the mask"),
}
ACTIONS = {
    "added": lambda: _("added"),
    "changed": lambda: _("changed"),
    "reviewed": lambda: _("reviewed"),
    "rationale": lambda: _("rationale"),
    "trashed": lambda: _("moved to the trash"),
    "restored": lambda: _("restored"),
    "deleted": lambda: _("deleted for good"),
    "merged": lambda: _("merged"),
}
ZOOMS = (1, 2, 4)
USES = 5  # images named for which a case was a reference


class CasePage:
    """Args: page: an empty widget. neighbour(case id, step): the case before or after in the list. onOpen(case id)."""

    def __init__(self, page, session: PoolSession, onOpen, neighbour, say):
        self.page, self.session, self.onOpen, self.neighbour, self.say = page, session, onOpen, neighbour, say
        self.content: dict | None = None
        self._asked, self._image, self._mask, self._labelsWrong = "", None, None, False
        layout = qt.QVBoxLayout(page)
        layout.setContentsMargins(4, 6, 4, 4)
        self.title = qt.QLabel(_("Double-click a case in the table to see it here."), page)
        wrap(self.title)
        layout.addWidget(self.title)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.previous = addButton(self.page, line, _("Previous"), _("The case before in the list"), lambda: self._step(-1))
        self.next = addButton(self.page, line, _("Next"), _("The next case in the list"), lambda: self._step(1))
        self.toViews = addButton(
            self.page,
            line,
            _("Show in the views"),
            _("Opens image and contour in the slice views, where they lie in the patient"),
            self.openInViews,
        )
        self.body = qt.QWidget(page)
        layout.addWidget(self.body)
        layout.addStretch(1)
        layout = qt.QVBoxLayout(self.body)
        layout.setContentsMargins(0, 0, 0, 0)
        top = qt.QHBoxLayout()
        layout.addLayout(top)
        left, form = qt.QVBoxLayout(), qt.QFormLayout()
        form.setRowWrapPolicy(qt.QFormLayout.WrapLongRows)  # beside the picture a narrow panel has no room for name and field
        form.setFieldGrowthPolicy(qt.QFormLayout.AllNonFixedFieldsGrow)
        top.addLayout(left)
        top.addLayout(form, 1)
        self._setUpPicture(left)
        self.review = qt.QLabel(self.body)
        wrap(self.review)
        self.review.setMinimumWidth(FIELD)
        form.addRow(_("Review"), self.review)
        self.labels = qt.QLineEdit(self.body)
        self.labels.setToolTip(_("Names of the labels, separated by semicolons, in the order of their values"))
        self.labels.setMinimumWidth(FIELD)
        self.labels.textChanged.connect(lambda *_text: self._onLabels())
        form.addRow(_("Labels"), self.labels)
        self.fields = {}
        for name, words in FIELDS.items():
            self.fields[name] = qt.QLineEdit(self.body)
            self.fields[name].setToolTip(TIPS[name]())
            self.fields[name].setMinimumWidth(FIELD)
            form.addRow(words(), self.fields[name])
        self.saveFields = qt.QPushButton(_("Save"), self.body)
        self.saveFields.setToolTip(_("Saves the fields above; what was there before stays in the history"))
        self.saveFields.clicked.connect(lambda *_checked: self.onSaveFields())
        form.addRow("", self.saveFields)
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        self.note = qt.QLineEdit(self.body)
        self.note.setAccessibleName(_("Comment on your verdict"))
        self.note.setPlaceholderText(_("Comment on your verdict (optional)"))
        self.note.setToolTip(_("Kept in the history with your verdict"))
        line.addWidget(self.note, 1)
        self.verdicts = [
            addButton(self.page, line, words, tip, lambda key=key: self.onReview(key))
            for key, words, tip in (
                ("approved", _("Approve"), _("This case is right")),
                ("flagged", _("Flag"), _("This case needs a second look")),
                ("excluded", _("Exclude"), _("Never use this case as evidence; it stays in the pool")),
            )
        ]
        line = qt.QHBoxLayout()
        layout.addLayout(line)
        line.addWidget(qt.QLabel("<b>" + _("Rationale") + "</b>", self.body))
        self.versions = qt.QComboBox(self.body)
        self.versions.setAccessibleName(_("Version of the rationale"))
        self.versions.setToolTip(_("Every version is kept; saving makes a new one"))
        self.versions.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)  # a writer's name may be long
        self.versions.setMinimumContentsLength(7)
        self.versions.currentIndexChanged.connect(lambda *_index: self._showVersion())
        line.addWidget(self.versions, 1)
        self.saveText = addButton(
            self.page,
            line,
            _("Save as new"),
            _("Keeps your wording; sentences you left alone keep their measurement"),
            self.onSaveRationale,
        )
        self.parts = {}
        form = qt.QFormLayout()
        layout.addLayout(form)
        for part in PARTS:
            edit = self.parts[part] = qt.QPlainTextEdit(self.body)
            edit.setTabChangesFocus(True)
            edit.setToolTip(_("Write here and press Save as new; the earlier version stays"))
            edit.setFixedHeight(58)
            edit.textChanged.connect(lambda: self._updateButtons())
            form.addRow(Words.PART_NAMES[part](), edit)
        self.unmeasured = qt.QLabel(self.body)
        wrap(self.unmeasured)
        self.unmeasured.setTextFormat(qt.Qt.PlainText)
        layout.addWidget(self.unmeasured)
        self.text = qt.QTextBrowser(self.body)
        self.text.setAccessibleName(_("Measurements and history"))
        self.text.setMinimumHeight(220)
        self.text.setOpenLinks(False)
        self.text.anchorClicked.connect(lambda url: onOpen(url.toString()))
        layout.addWidget(self.text)
        self.clear()

    def _setUpPicture(self, layout) -> None:
        self.picture = qt.QLabel(self.body)
        self.picture.setFixedSize(PICTURE, PICTURE)
        self.picture.setToolTip(_("The case with the expert's contour"))
        layout.addWidget(self.picture)
        self.bright, self.contrast = qt.QSlider(qt.Qt.Horizontal, self.body), qt.QSlider(qt.Qt.Horizontal, self.body)
        for slider, words in ((self.bright, _("Level")), (self.contrast, _("Window"))):
            slider.setRange(0, 100)
            slider.setValue(50)
            slider.setToolTip(words)
            slider.valueChanged.connect(lambda *_value: self._draw())
            line = qt.QHBoxLayout()
            name = qt.QLabel(words, self.body)
            name.setMinimumWidth(52)
            name.setBuddy(slider)
            line.addWidget(name)
            line.addWidget(slider, 1)
            layout.addLayout(line)
        line = qt.QHBoxLayout()
        self.zoom = qt.QComboBox(self.body)
        self.zoom.setAccessibleName(_("Part of the slice"))
        self.zoom.setSizeAdjustPolicy(qt.QComboBox.AdjustToMinimumContentsLengthWithIcon)
        self.zoom.setMinimumContentsLength(4)
        for factor in ZOOMS:
            self.zoom.addItem(_("Whole slice") if factor == 1 else _("Lesion, {factor}×").format(factor=factor), factor)
        self.zoom.setToolTip(_("The whole slice, or the lesion enlarged"))
        self.zoom.currentIndexChanged.connect(lambda *_index: self._draw())
        self.contour = qt.QCheckBox(_("Contour"), self.body)
        self.contour.setChecked(True)
        self.contour.setToolTip(_("Draws the expert's outline"))
        self.contour.toggled.connect(lambda *_on: self._draw())
        line.addWidget(self.zoom, 1)
        line.addWidget(self.contour)
        self.before = addButton(self.page, line, "◀", _("Previous slice of the same volume"), lambda: self._slice(-1))
        self.after = addButton(self.page, line, "▶", _("Next slice of the same volume"), lambda: self._slice(1))
        for button in (self.before, self.after):
            button.setMaximumWidth(30)
            button.setAccessibleName(button.toolTip)
        layout.addLayout(line)
        layout.addStretch(1)

    @property
    def caseId(self) -> str:
        """The case shown or about to be, "" for none."""
        return self._asked

    def clear(self, words: str = "") -> None:
        self._asked, self.content, self._image = "", None, None
        self.title.setText(escape(words) or _("Double-click a case in the table to see it here."))
        self.body.setVisible(False)
        self._updateButtons()

    def open(self, case_id: str) -> None:
        """Asks for a case and shows it when it is there; until then nothing can be done with the one before."""
        self._asked = case_id
        self._updateButtons()
        self.session.ask(
            "pool_case",
            {"id": case_id},
            lambda content: self._show(case_id, content),
            lambda sentence: self.clear(sentence) if self._asked == case_id else None,
        )

    def again(self) -> None:
        """Something was changed."""
        if self._asked:
            self.open(self._asked)

    def _show(self, case_id: str, content: dict) -> None:
        if case_id != self._asked:
            return
        before = self.content if self.content and self.content["case"]["id"] == case_id else None
        typed = self._typed() if before else {}
        self.content, case = content, content["case"]
        self._image = np.load(content["image"], allow_pickle=False).astype(np.float32)
        self._mask = np.load(content["mask"], allow_pickle=False)
        small = self._image[:: max(1, self._image.shape[0] // 256), :: max(1, self._image.shape[1] // 256)]
        self._range = tuple(float(v) for v in np.percentile(small, (1, 99.5)))
        place = "" if case["slice_index"] is None else _(", slice {number}").format(number=case["slice_index"])
        facts = [f"{case['plane'] or ''}{place}".strip(", "), case["source"], _("added {date}").format(date=(case["created"] or "")[:10])]
        self.title.setText(f"<b>{escape(case['id'])}</b><br>" + escape(" · ".join(str(f) for f in facts if f)))
        self.review.setText(case["review"])
        self.labels.setText(typed.get("labels", "; ".join(case["labels"].values())))
        self.labels.setCursorPosition(0)
        for name, edit in self.fields.items():
            edit.setText(typed.get(name, case[name] or ""))
            edit.setCursorPosition(0)  # of a long one the beginning is seen
            edit.setToolTip(TIPS[name]() + (f"\n{case[name]}" if case[name] else ""))
        self.versions.blockSignals(True)
        self.versions.clear()
        for version in content["versions"]:
            self.versions.addItem(
                _("{number}: {writer}, {date}").format(number=version["version"], writer=version["writer"], date=version["created"][:10]),
                version["version"],
            )
        self.versions.blockSignals(False)
        self._showVersion()
        for part in PARTS:
            if part in typed:
                self.parts[part].setPlainText(typed[part])
        self.text.setHtml(self._html())
        self.body.setVisible(True)
        self._draw()
        self._updateButtons()

    def _typed(self) -> dict[str, str]:
        """What a person has written into the fields and parts and not saved yet."""
        case, version = self.content["case"], self._version()
        out = {name: edit.text for name, edit in self.fields.items() if edit.text.strip() != (case[name] or "")}
        if self.labels.text.strip() != "; ".join(case["labels"].values()):
            out["labels"] = self.labels.text
        shown = version["record"] if version else None
        return out | {p: edit.plainText for p, edit in self.parts.items() if " ".join(edit.plainText.split()) != partText(shown, p)}

    def _version(self) -> dict | None:
        """The version of the rationale that is chosen."""
        index = self.versions.currentIndex
        return self.content["versions"][index] if self.content and 0 <= index < len(self.content["versions"]) else None

    def _showVersion(self) -> None:
        version = self._version()
        for part, edit in self.parts.items():
            edit.blockSignals(True)
            edit.setPlainText(partText(version["record"] if version else None, part))
            edit.blockSignals(False)
        marked = [Words.sentence(s) for s in (version["record"]["statements"] if version else ()) if Words.unmeasured(s)]
        self.unmeasured.setText("\n".join([_("Claims that nobody measured:"), *marked]))
        self.unmeasured.setVisible(bool(marked))
        self._updateButtons()

    def _draw(self) -> None:
        if self._image is None:
            return
        low, high = self._range
        width = max(high - low, 1e-6) * 4 ** ((50 - self.contrast.value) / 50)
        middle = (low + high) / 2 + (50 - self.bright.value) / 50 * (high - low)
        image, mask = self._image, self._mask
        factor = self.zoom.itemData(self.zoom.currentIndex) or 1
        if factor > 1 and mask.any():
            rows, columns = np.nonzero(mask)
            box = [_window(int((at.min() + at.max()) // 2), size // factor, size) for at, size in zip((rows, columns), image.shape)]
            image, mask = image[tuple(box)], mask[tuple(box)]
        shown = np.clip((image - (middle - width / 2)) * (255 / width), 0, 255).astype(np.uint8)
        spacing = tuple(self.content["case"]["spacing"] or (1.0, 1.0))
        self.picture.setPixmap(pixmap(Picture(shown, mask, spacing), PICTURE, PICTURE, contour=bool(self.contour.checked)))

    def _html(self) -> str:
        content, quiet = self.content, Words.muted(self.page.palette)
        out = []
        numbers = (content["rationale"] or {}).get("descriptors") or {}
        rows = [
            (name.replace("_", " "), f"{value:g} {DESCRIPTORS[name][0]}", DESCRIPTORS[name][1])
            for name, value in numbers.items()
            if value is not None and name in DESCRIPTORS
        ]
        if content["alike"]:
            own = content["case"]["patient_id"]
            same = [", " + escape(_("same patient")) if own and a["patient_id"] == own else "" for a in content["alike"]]
            links = ", ".join(
                f'<a href="{escape(a["id"])}">{escape(a["id"][:8])}</a> ({a["similarity"]:.3f}{words})'
                for a, words in zip(content["alike"], same)
            )
            out.append(f"<p><b>{escape(_('Nearly the same picture'))}</b><br>{links}</p>")
        out.append(f"<p><b>{escape(_('Used as a reference'))}</b><br>{escape(usesText(content))}</p>")
        if rows:
            cells = "".join(
                f"<tr><td>{escape(n)}&nbsp;&nbsp;</td><td align='right'>{escape(v)}&nbsp;&nbsp;</td>"
                f"<td style='color:{quiet}'>{escape(d)}</td></tr>"
                for n, v, d in rows
            )
            out.append(f"<p><b>{escape(_('Measured'))}</b></p><table cellspacing='0'>{cells}</table>")
        out.append(f"<p><b>{escape(_('History'))}</b></p>" + auditHtml(content["audit"], quiet))
        return "".join(out)

    def _updateButtons(self) -> None:
        has, may = self.content is not None and self.content["case"]["id"] == self._asked, not self.session.readOnly
        slices = self.content["slices"] if has else []
        at = slices.index(self._asked) if self._asked in slices else -1
        self.before.setEnabled(at > 0)
        self.after.setEnabled(0 <= at < len(slices) - 1)
        self.toViews.setEnabled(has)
        for button in (self.previous, self.next):
            button.setEnabled(self.content is not None)
        for widget in (self.saveFields, self.note, *self.verdicts):
            widget.setEnabled(has and may)
        written = {part: edit.plainText for part, edit in self.parts.items()}
        current = self.content["rationale"] if has else None
        self.saveText.setEnabled(has and may and any(" ".join(t.split()) != partText(current, p) for p, t in written.items()))

    def _step(self, step: int) -> None:
        other = self.neighbour(self._asked, step)
        if other:
            self.onOpen(other)

    def _slice(self, step: int) -> None:
        slices = self.content["slices"] if self.content else []
        if self._asked in slices and 0 <= slices.index(self._asked) + step < len(slices):
            self.onOpen(slices[slices.index(self._asked) + step])

    def onReview(self, review: str) -> None:
        said, case_id = self.note.text, self.content["case"]["id"]
        self.session.change(
            "pool_review", {"ids": [case_id], "review": review, "note": said.strip() or None}, lambda _result: self._noteKept(case_id, said)
        )

    def _noteKept(self, case_id: str, said: str) -> None:
        """A comment is let go once it is kept: a change may be refused, and what was written meanwhile is another one."""
        if self._asked == case_id and self.note.text == said:
            self.note.setText("")

    def _onLabels(self) -> None:
        """What was said of the names of labels is over when they are changed."""
        if self._labelsWrong:
            self._labelsWrong = False
            self.say("")

    def onSaveFields(self) -> None:
        case = self.content["case"]
        changes = {name: edit.text.strip() or None for name, edit in self.fields.items() if (edit.text.strip() or None) != case[name]}
        names, old = [n.strip() for n in self.labels.text.split(";")], list(case["labels"].values())
        if len(names) != len(old) or not all(names):
            several = _("This case has {count} labels. Give each a name, separated by semicolons.")
            self.say((_("This case has one label. Give it one name.") if len(old) == 1 else several).format(count=len(old)), wrong=True)
            self._labelsWrong = True
            return
        rename = {a: b for a, b in zip(old, names) if a != b}
        if changes or rename:
            self.session.change(
                "pool_edit", {"ids": [case["id"]], "changes": changes, "rename": rename}, lambda _result: self.say(_("Saved."))
            )

    def onSaveRationale(self) -> None:
        current = self.content["rationale"]
        parts = {part: edit.plainText for part, edit in self.parts.items() if " ".join(edit.plainText.split()) != partText(current, part)}
        known = max((v["version"] for v in self.content["versions"]), default=0)
        self.session.change(
            "pool_rationale",
            {"id": self.content["case"]["id"], "parts": parts, "version": known},
            lambda result: self.say(_("Saved as version {number}.").format(number=result["version"])),
        )

    def openInViews(self) -> None:
        SceneCase.show(self.content["case"], self._image, self._mask)
        if not self.content["case"]["ijkToRAS"]:
            self.say(_("Where this case lies in the patient is not known, so it is shown at the origin."))


def partText(rationale: dict | None, part: str) -> str:
    """One part as it is kept, for editing: what the screen shows elsewhere has signs of its own between numbers and units."""
    return " ".join(" ".join(s["text"] for s in (rationale or {}).get("statements", []) if s["part"] == part).split())


def usesText(content: dict) -> str:
    """For how many images a case was a reference, and for which ones last."""
    count, uses = content["use_count"], content["uses"]
    if not count:
        return _("Not yet, as far as is on record.")
    words = _("For one image.") if count == 1 else _("For {count} images.").format(count=count)
    last = []
    for use in uses[:USES]:
        text = _("{day}, image {query}, slices {slices}").format(day=use["day"], query=use["query"][:8], slices=use["slices"])
        last.append(text if use["influence"] is None else text + _(", influence {value:.2f}").format(value=use["influence"]))
    return words + " " + _("Last: {uses}.").format(uses="; ".join(last))


def auditRows(entries: list[dict]) -> list[tuple[str, str, str, str, str]]:
    """(when, who, case id, what, note) of entries of the audit."""
    rows = []
    for e in entries:
        if e["field"] == "text":
            continue  # the versions are shown by themselves
        what = ACTIONS.get(e["action"], lambda e=e: e["action"])()
        if e["field"]:
            what += f" {e['field'].replace('_', ' ')}: {e['before'] or '–'} → {e['after'] or '–'}"
        rows.append((e["created"][:16].replace("T", " "), e["who"] or "–", e["case"], what, e["note"] or ""))
    return rows


def auditHtml(entries: list[dict], quiet: str) -> str:
    """Entries of one case's audit as rich text, newest first."""
    rows = [
        f"<tr><td style='color:{quiet}'>{escape(when)}&nbsp;&nbsp;</td><td>{escape(who)}&nbsp;&nbsp;</td>"
        f"<td>{escape(what + (f' ({note})' if note else ''))}</td></tr>"
        for when, who, _case, what, note in auditRows(entries)
    ]
    return f"<table cellspacing='0'>{''.join(rows)}</table>"


def _window(middle: int, length: int, size: int) -> slice:
    length = max(8, min(length, size))
    start = min(max(0, middle - length // 2), max(0, size - length))
    return slice(start, start + length)
