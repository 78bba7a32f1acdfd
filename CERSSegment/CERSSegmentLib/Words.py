"""What the screen says of a slice's evidence."""

from __future__ import annotations

import re
from html import escape

import qt
from slicer.i18n import tr as _

from cers.case import PARTS, WELL_COVERED, Statement
from cers.case.counts import by_plane
from cers.case.sizes import area as areaOf
from cers.case.sizes import digits, percent, small

PART_NAMES = {
    "texture": lambda: _("Texture"),
    "boundary": lambda: _("Boundary"),
    "context": lambda: _("Context"),
    "summary": lambda: _("Summary"),
}
PLANE_NAMES = {"axial": lambda: _("axial"), "coronal": lambda: _("coronal"), "sagittal": lambda: _("sagittal")}
STAGE_NAMES = {
    "exclusion": lambda: _("Left out"),
    "compatibility": lambda: _("Does not fit"),
    "morphology": lambda: _("Looks different"),
    "cot": lambda: _("Described differently"),
    "limit": lambda: _("Not among the best"),
    "dropped": lambda: _("Dropped by you"),
}
UNIT = re.compile(r"(?<=\d) (?=%|mm|cm|bit)")
AGREE, DISAGREE = 0.1, 0.3  # disagreement of the two decoders, 1 - Dice
SURE = 0.5  # mean probability inside the mask; below, background is more likely than lesion
CONTRADICTED = 0.15  # agreement with the other references; below, one is not counted (cers.network.evidence.AGREED)


def muted(palette) -> str:
    """A colour name between text and background, for what matters less; right in light and dark style."""
    text, ground = palette.color(qt.QPalette.WindowText), palette.color(qt.QPalette.Window)
    return "#%02x%02x%02x" % tuple(round(0.65 * getattr(text, c)() + 0.35 * getattr(ground, c)()) for c in ("red", "green", "blue"))


def place(model, key) -> str:
    """Where the slice is: number, plane, and which lesion slice it is; of a picture nobody knows the plane."""
    plane, index = key
    if len(model.planes[plane]) == 1 and model.spacing(key) is None:
        return _("A picture") + " · " + (_("with a lesion") if model.lesionSlices(plane) else _("no lesion found"))
    words = _("Slice {n} of {total}, {plane}").format(n=index + 1, total=len(model.planes[plane]), plane=PLANE_NAMES[plane]())
    lesions = model.lesionSlices(plane)
    if index in lesions:
        words += " · " + _("lesion slice {n} of {total}").format(n=lesions.index(index) + 1, total=len(lesions))
    else:
        words += " · " + _("no lesion found here")
    return words


def rerun(model, key, chosen: bool) -> str:
    """That a slice, which need not be in view by now, was segmented again. chosen: with references pinned or dropped."""
    plane, index = key
    alone = len(model.planes[plane]) == 1
    which = _("The picture") if alone else _("Slice {n} ({plane})").format(n=index + 1, plane=PLANE_NAMES[plane]())
    words = (
        _("{slice} was segmented again with your references.") if chosen else _("{slice} was segmented again without a choice of yours.")
    )
    return words.format(slice=which)


def references(model) -> str:
    """How many lesion slices have references, plane by plane: slices of different planes show the same lesion."""
    counts = [
        _("{some} of {all} {plane}").format(some=c.with_references, all=c.lesion, plane=PLANE_NAMES[plane]())
        for plane, c in by_plane(model.slices.values()).items()
        if c.lesion
    ]
    return _("References for {counts} lesion slices.").format(counts=", ".join(counts))


def coverage(evidence: dict) -> tuple[bool, str]:
    """(whether the pool covers the slice well, the sentence to show)."""
    entry = evidence["coverage"]
    return bool(entry["covered"]) and float(entry.get("value", 1.0)) >= WELL_COVERED, str(entry["message"])


def trust(evidence: dict, spacing: tuple[float, float] | None = None) -> tuple[bool, str]:
    """(whether nothing speaks against the mask, the sentence to show). spacing: pixel size in mm, where known."""
    confidence, disagreement = evidence.get("confidence"), float(evidence.get("disagreement") or 0.0)
    left = _area(int(evidence.get("left_out") or 0), spacing)
    if not evidence.get("pixels"):
        if left:
            words = _("Nothing found by the planes together. This one shows {area} (dashed), left out: look at this slice yourself.")
            return False, words.format(area=left)
        if disagreement > DISAGREE:
            return False, _("Nothing found with the references, but the plain decoder marks something here. Look at this slice yourself.")
        return True, _("Nothing found in this slice.")
    if not evidence.get("marked", True):
        return False, _("Neither decoder marks anything here: this part of the mask comes from the other planes.")
    agreement = round(100 * (1 - disagreement))
    if disagreement <= AGREE:
        words = _("The two decoders agree ({percent}\u00a0%)")
    elif disagreement <= DISAGREE:
        words = _("The two decoders agree in part ({percent}\u00a0%)")
    else:
        words = _("The two decoders disagree (only {percent}\u00a0% in common): check this slice")
    words = words.format(percent=agreement)
    sure = confidence is None or confidence >= SURE
    if confidence is not None:
        words = (_("Confidence {value:.2f}") if sure else _("Low confidence {value:.2f}")).format(value=confidence) + " · " + words
    if left:
        words += " · " + _("{area} more shown by this plane (dashed), left out").format(area=left)
    return sure and disagreement <= DISAGREE and not left, words


def notDecoded() -> str:
    """Of a slice without evidence, in a plane that was decoded."""
    return _("This slice was not decoded: nothing was found near it, or it shows no part of the body.")


def _area(pixels: int, spacing: tuple[float, float] | None) -> str:
    """An area in cm² or mm², in pixels where their size is not known, '' for none."""
    if not pixels:
        return ""
    if spacing is None:
        return (_("one\u00a0pixel") if pixels == 1 else _("{count}\u00a0pixels")).format(count=pixels)
    return areaOf(pixels, spacing).replace(" ", "\u00a0")


def amount(sizes: dict, label: str) -> str:
    """How much of a label was found (see ``cers.case.sizes.amount``), in the language of the screen."""
    if sizes.get("volume_ml"):
        ml = sizes["volume_ml"][label]
        if small(ml):  # never told as 0.0 ml
            return _("{amount} mm³").format(amount=digits(1000 * ml))
        return _("{amount:.1f} ml").format(amount=ml)
    if sizes.get("area_mm2"):
        return _("{amount} mm²").format(amount=digits(sizes["area_mm2"][label]))
    count = sizes["pixels"][label]
    if sizes.get("picture_share"):
        words = _("one pixel ({percent} % of the picture)") if count == 1 else _("{count} pixels ({percent} % of the picture)")
        return words.format(count=count, percent=percent(sizes["picture_share"][label]))
    return (_("one voxel") if count == 1 else _("{count} voxels")).format(count=count)


def added(result: dict, others: list[str]) -> str:
    """What became of a result that a person gave to the pool (the worker's answer to "add_case"). others: segments that were left out."""
    count, replaced = len(result["added"]), len(result["replaced"])
    if not count and not replaced:
        held = len(result["ids"])
        slices = _("one slice") if held == 1 else _("{count} slices").format(count=held)
        return _("This result is in the pool already ({slices}); nothing was added.").format(slices=slices)
    words = []
    if count:
        words.append(
            _("One slice was added to the pool; the next Segment can use it.")
            if count == 1
            else _("{count} slices were added to the pool; the next Segment can use them.").format(count=count)
        )
        if result["renamed"]:
            words.append(_("The label has the name of its segment: {names}.").format(names=", ".join(result["renamed"])))
    if result.get("dice") is not None:
        words.append(_("Dice with what the model had proposed: {dice:.2f}.").format(dice=result["dice"]))
    if replaced:
        words.append(
            _("One earlier slice of this volume stays in the pool, but is no longer used.")
            if replaced == 1
            else _("{count} earlier ones of this volume stay in the pool, but are no longer used.").format(count=replaced)
        )
    if others:
        words.append(_("Not kept, because they do not stem from CERS: {names}.").format(names=", ".join(others)))
    return " ".join(words)


def scores(reference: dict) -> str:
    """Visual score, CoT score and influence of a reference on one line, or that the others contradict it."""
    parts = [_("visual\u00a0{value:.2f}").format(value=reference["visual"])]
    parts.append(_("CoT –") if reference.get("cot") is None else _("CoT\u00a0{value:.2f}").format(value=reference["cot"]))
    agreement = reference.get("agreement")
    if agreement is not None and agreement < CONTRADICTED and not reference.get("pinned"):
        parts.append(_("contradicted"))
    elif reference.get("influence") is not None:
        slight = 0 < round(reference["influence"], 4) < 0.005  # never told as 0.00, which is none at all
        parts.append(
            _("influence\u00a0below\u00a00.01") if slight else _("influence\u00a0{value:.2f}").format(value=reference["influence"])
        )
    return "\u00a0· ".join(parts)


def scoresHelp() -> str:
    """What the scores mean."""
    return _(
        "visual: how alike the two pictures are to the network (1 = the same)\n"
        "CoT: how well the two rationales agree (1 = fully)\n"
        "influence: how much the mask changes without this reference (0 = not at all)\n"
        "contradicted: the other references do not bear its mask out, so it is not counted; pin it to count it all the same"
    )


def caseTitle(case: dict | None) -> str:
    """What a pool case is called."""
    if case is None:
        return _("Case")
    name = case.get("diagnosis") or next(iter((case.get("labels") or {}).values()), None) or _("case")
    name = str(name).replace("_", " ")
    return name[:1].upper() + name[1:]


def caseOrigin(case: dict | None) -> str:
    """Modality, body site and plane of a pool case, as far as known."""
    if case is None:
        return ""
    return " · ".join(str(case[name]) for name in ("modality", "body_site", "plane") if case.get(name))


def unmeasured(statement: dict) -> bool:
    """Whether a written sentence claims what was not measured (see ``cers.case.Statement``)."""
    return str(statement.get("note") or "").startswith(Statement.UNMEASURED)


def sentence(statement: dict) -> str:
    """A sentence of a rationale; what was not measured is said."""
    return f"{statement['text']} [{statement['note']}]" if unmeasured(statement) else str(statement["text"])


def part(rationale: dict | None, name: str) -> str:
    """The sentences of one rationale part, '' where there are none; no line ends between a number and its unit."""
    if not rationale:
        return ""
    text = " ".join(sentence(s) for s in rationale.get("statements", []) if s.get("part") == name)
    return UNIT.sub("\u00a0", text)


def rationaleHtml(rationale: dict | None, palette, parts=PARTS) -> str:
    """Parts of a rationale as rich text, each with its name."""
    rows = [
        f'<p style="margin:0 0 3px 0"><span style="color:{muted(palette)}">{escape(PART_NAMES[p]())}.</span> '
        f"{escape(part(rationale, p))}</p>"
        for p in parts
        if part(rationale, p)
    ]
    return "".join(rows)


def queryHtml(evidence: dict | None, spacing: tuple[float, float] | None, palette, edited: bool = False) -> str:
    """The rationale of the slice shown, measured under its contour, and where the first mask read differently.

    Args:
        spacing: (row, column) in mm, if known. edited: whether a person changed the segmentation in this slice since.
    """
    evidence = evidence or {}
    words = rationaleHtml(evidence.get("rationale"), palette)
    said = [_("Changed by hand since: this is the result before.")] if edited else []
    if words:
        said += [measuredOn(evidence), contour(evidence, spacing) + ".", first(evidence)]
    elif evidence.get("pixels"):  # of a scene that an earlier version saved, which measured the first mask
        words = escape(_("Nothing was measured in this slice. {contour}.").format(contour=contour(evidence, spacing)))
    else:
        words = escape(_("Nothing was found in this slice, so there is nothing to describe."))
    note = escape(" ".join(s for s in said if s))
    return words + (f'<p style="margin:0 0 3px 0; color:{muted(palette)}"><i>{note}</i></p>' if note else "")


def measuredOn(evidence: dict) -> str:
    """Which mask the words of a slice were measured under."""
    if "first_rationale" in evidence:
        return _("Measured under the contour.")
    return _("Measured on the first mask, not under the contour: an earlier version did so.")


def first(evidence: dict) -> str:
    """What the references were chosen by, and where it reads differently from the words shown; '' without references."""
    if not evidence.get("references") or "first_rationale" not in evidence:
        return ""
    if not evidence["first_rationale"]:
        return _("The first mask shows too little to be described, so the references were chosen by look alone.")
    words = _("The references were chosen by the words of the first mask.")
    if evidence.get("first_differs"):
        words += " " + _("It reads differently (first against final) in: {what}.").format(what="; ".join(evidence["first_differs"]))
    return words


def contour(evidence: dict, spacing: tuple[float, float] | None) -> str:
    """What the contour in the picture of a slice is. spacing: (row, column) in mm, None where pixels have no known size."""
    area = _area(int(evidence.get("pixels") or 0), spacing)
    return _("The contour is the final mask, {area}").format(area=area) if area else _("The final mask is empty here")


def rejectedHtml(evidence: dict, palette) -> str:
    """The rejected candidates as rich text: by stage, and those with the same reason together."""
    stages: dict[str, dict[str, list[str]]] = {}
    for entry in evidence.get("rejected", []):
        stages.setdefault(entry["stage"], {}).setdefault(str(entry["reason"]), []).append(shortId(entry["id"]))
    rows = []
    for stage, reasons in stages.items():
        lines = [
            f'{escape(reason)} <span style="color:{muted(palette)}">({escape(", ".join(ids))})</span>' for reason, ids in reasons.items()
        ]
        name = STAGE_NAMES[stage]() if stage in STAGE_NAMES else stage
        rows.append(f'<p style="margin:0 0 4px 0"><b>{escape(name)}</b><br/>{"<br/>".join(lines)}</p>')
    return "".join(rows)


def shortId(identifier: str) -> str:
    """The start of a case's id, enough to tell cases apart on the screen."""
    return identifier[:8]
