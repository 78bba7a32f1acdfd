"""What the page of rationales says: plans, consents, reports and comparisons, in words and as rich text."""

from __future__ import annotations

from html import escape

from CERSSegmentLib import Words
from slicer.i18n import tr as _

from cers.case import PARTS

MOST_LINES = 40
WRITERS = {"measured": lambda: _("measured"), "person": lambda: _("a person"), "imported": lambda: _("imported")}
KINDS = {
    "number": lambda: _("changed number"),
    "polarity": lambda: _("contradicts the measurement"),
    "location": lambda: _("names a place"),
    "claim": lambda: _("claims more than was seen"),
    "missing": lambda: _("part left out"),
    "unmeasured": lambda: _("stays, but claims what was not measured"),
}


def writerName(name: str) -> str:
    return WRITERS[name]() if name in WRITERS else name


def overview(found: dict) -> str:
    """Who wrote the texts of the open pool."""
    parts = [f"{writerName(name)} {count:,}" for name, count in sorted(found["writers"].items(), key=lambda item: -item[1])]
    for key, words in (("missing", _("none yet {count}")), ("stale", _("measured by earlier rules {count}"))):
        if found[key]:
            parts.append(words.format(count=f"{len(found[key]):,}"))
    return _("Rationales by writer: {parts}").format(parts=" · ".join(parts)) if parts else _("This pool has no case yet.")


def plan(found: dict, quiet: str) -> str:
    """What a batch would do, what it would cost, and exactly what would be sent for its first case."""
    out = [
        _paragraph(
            _("Cases to write: {count}. Have this text already: {done}.").format(count=f"{len(found['ids']):,}", done=f"{found['done']:,}")
            + (" " + _("Written by a person, and stay: {count}.").format(count=found["persons"]) if found["persons"] else "")
        )
    ]
    if found["kept"]:
        out.append(_paragraph(keptTexts(found)))
    if found["replaces"]:
        out.append(_paragraph(_("Texts of others that would be replaced: {names}.").format(names=names(found["replaces"]))))
    if found["estimate"] is not None:
        out.append(_paragraph(estimate(found)))
    endpoint = found["endpoint"]
    if endpoint is not None:
        consent = (
            _("You have agreed to this address.")
            if endpoint["consent"]
            else _("You have not agreed to this address yet; Write asks first.")
        )
        out.append(_paragraph(_("Goes to {url}, {where}.").format(url=endpoint["url"], where=where(endpoint)) + " " + consent))
        if endpoint["key_problem"]:
            out.append(_paragraph("✖ " + endpoint["key_problem"]))
    preview = found["preview"]
    if preview is not None:
        title = (
            _("Exactly this would be sent for case {id} ({bytes} bytes):")
            if endpoint is not None
            else _("Exactly this would be asked for case {id} ({bytes} bytes):")
        )
        out.append("<p><b>" + escape(title.format(id=Words.shortId(preview["id"]), bytes=f"{preview['bytes']:,}")) + "</b></p>")
        out.append(f"<p style='color:{quiet}'>{_lines(preview['system'])}</p><p>{_lines(preview['user'])}</p>")
        if preview["picture"]:
            out.append(_paragraph(_("… and the picture below: body only, lesion outlined, no text.")))
    return "".join(out)


def keptTexts(found: dict) -> str:
    """Whose texts stay, and how they would not."""
    return _("Texts of others stay unless you tick the box for them: {names}.").format(names=names(found["kept"]))


def estimate(found: dict) -> str:
    """Requests, tokens, time and cost on one line."""
    e = found["estimate"]
    parts = [_("requests: {count}").format(count=f"{e['requests']:,}")]
    if found["cached"]:
        parts.append(_("answers at hand: {count}").format(count=f"{found['cached']:,}"))
    parts.append(_("about {into} tokens in and {out} out").format(into=f"{e['tokens_in']:,}", out=f"{e['tokens_out']:,}"))
    if e["seconds"] is not None:
        parts.append(
            _("about {minutes} min").format(minutes=max(1, round(e["seconds"] / 60)))
            if e["seconds"] >= 60
            else _("about {seconds} s").format(seconds=max(1, round(e["seconds"])))
        )
    else:
        parts.append(_("time not known before the first answers"))
    if e["cost"] is not None:
        parts.append(_("cost about {cost}").format(cost=f"{e['cost']:.2f}"))
    return " · ".join(parts)


def where(endpoint: dict) -> str:
    """On which machine an address is, and whether others can read along."""
    if endpoint["local"]:
        return _("on this machine")
    return _("which is not this machine") + (
        "" if endpoint["encrypted"] else _("; the connection is not encrypted, so others on the network can read it")
    )


def consentQuestion(endpoint: dict) -> str:
    """What the user agrees to, in plain words."""
    what = (
        _("the measured findings of each case and its picture (body only, lesion outlined)")
        if endpoint["picture"]
        else _("the measured findings of each case, without pictures")
    )
    return (
        _("CERS would send {what} to {url}, {where}.").format(what=what, url=endpoint["url"], where=where(endpoint))
        + "\n\n"
        + _("Names, dates and other header fields are not sent. A picture itself can still be personal data.")
        + "\n\n"
        + _("Do you agree? It holds for this address until you withdraw it on this page.")
    )


def names(counts: dict[str, int]) -> str:
    """Writers or persons, and how many texts are theirs."""
    return ", ".join(f"{writerName(name)} {count:,}" for name, count in counts.items())


def replaceQuestion(found: dict) -> str:
    count = sum(found["replaces"].values())
    return (
        (
            _("This replaces one text that others wrote: {names}.")
            if count == 1
            else _("This replaces {count} texts that others wrote: {names}.")
        ).format(count=f"{count:,}", names=names(found["replaces"]))
        + "\n\n"
        + _("What is replaced is kept as an earlier version of its case. Replace?")
    )


def startQuestion(found: dict) -> str:
    count = len(found["ids"])
    words = _("Write one rationale?") if count == 1 else _("Write {count} rationales?").format(count=f"{count:,}")
    return words + "\n\n" + estimate(found)


def addQuestion(found: dict) -> str:
    count = len(found["ids"])
    words = _("Add one rationale?") if count == 1 else _("Add {count} rationales?").format(count=f"{count:,}")
    return words + " " + _("Earlier versions stay.")


def stopped(again: bool) -> str:
    """What becomes of a batch that was cancelled. again: it also wrote cases that had the writer's text, so none counts as done."""
    if again:
        return _("Stopped; what was finished stays. As long as those that have this writer's text are written, too, Write begins anew.")
    return _("Stopped; what was finished stays, and Write goes on where it ended.")


def report(done: dict) -> str:
    """What a batch did; a case whose sentences gave way can be clicked."""
    out = [
        _paragraph(
            _("Written: {count}").format(count=f"{len(done['written']):,}")
            + (" · " + _("from answers at hand: {count}").format(count=f"{done['cached']:,}") if done["cached"] else "")
        )
    ]
    if done["cancelled"]:
        out.append(_paragraph(stopped(bool(done.get("again")))))
    if done["stopped"]:
        out.append(_paragraph("✖ " + done["stopped"]))
    if done["replaced"]:
        kinds = ", ".join(f"{KINDS[k]() if k in KINDS else k} ({n})" for k, n in sorted(done["replaced"].items()))
        out.append(_paragraph(_("Sentences that gave way to measured ones: {kinds}").format(kinds=kinds)))
    if done.get("unmeasured"):
        out.append(_paragraph(_("Sentences that claim what was not measured, and are marked so: {count}").format(count=done["unmeasured"])))
    changed = [w for w in done["written"] if w["replaced"]]
    if changed:
        links = ", ".join(
            f'<a href="compare:{escape(w["id"])}">{escape(Words.shortId(w["id"]))}</a> ({w["replaced"]})' for w in changed[:MOST_LINES]
        )
        more = "" if len(changed) <= MOST_LINES else " " + escape(_("… and {count} more.").format(count=len(changed) - MOST_LINES))
        out.append("<p>" + escape(_("See what gave way in:")) + f" {links}{more}</p>")
    out += [f"<div>✖ {escape(Words.shortId(f['id']))}: {escape(f['message'])}</div>" for f in done["faults"][:MOST_LINES]]
    if len(done["faults"]) > MOST_LINES:
        out.append(_paragraph(_("… and {count} more.").format(count=len(done["faults"]) - MOST_LINES)))
    return "".join(out)


def comparison(found: dict, quiet: str) -> str:
    """Measured and present text of a case side by side, and why sentences gave way."""
    rows = []
    for part in PARTS:
        cells = []
        for rationale in (found["measured"], found["current"]):
            own = [s for s in (rationale or {}).get("statements", []) if s["part"] == part]
            cells.append(
                " ".join(
                    f"<b>{escape(s['text'])}</b>"
                    if s.get("note") and not Words.unmeasured(s) and rationale is found["current"]
                    else escape(Words.sentence(s))
                    for s in own
                )
            )
        rows.append(
            f"<tr><td width='16%' style='color:{quiet};white-space:nowrap'>{escape(Words.PART_NAMES[part]())}&nbsp;&nbsp;</td>"
            f"<td width='42%'>{cells[0]}</td><td width='42%'>{cells[1]}</td></tr>"
        )
    head = f"<tr><td></td><td><b>{escape(_('Measured'))}</b></td><td><b>{escape(_('Now in the pool'))}</b></td></tr>"
    reasons = ""
    for f in found["findings"]:
        kind = KINDS[f["kind"]]() if f["kind"] in KINDS else f["kind"]
        what = _("“{sentence}”").format(sentence=f["sentence"]) if f["sentence"] else Words.PART_NAMES[f["part"]]()
        reasons += f"<div>{escape(kind)}: {escape(what)} – {escape(f['reason'])}</div>"
    note = _paragraph(_("Sentences in bold stand in place of the writer's; what was not measured is marked:")) + reasons if reasons else ""
    case = f'<a href="case:{escape(found["id"])}">{escape(_("Open the case"))}</a>'
    link = f'<p>{case} · <a href="report:">{escape(_("Back to the report"))}</a></p>'
    return f"<table cellpadding='3' width='100%'>{head}{''.join(rows)}</table>{note}{link}"


def log(entries: list[dict], quiet: str) -> str:
    """What was sent where, newest first."""
    if not entries:
        return escape(_("Nothing has ever been sent from here."))
    rows = []
    for e in entries:
        what = _("picture and findings") if e["picture"] else _("findings")
        words = f"{e['endpoint']} · {e['model']} · {what}, {e['bytes']:,} B · {e['outcome'] or _('not finished')}"
        rows.append(
            f"<div><span style='color:{quiet}'>{escape(e['time'][:16].replace('T', ' '))}</span> {escape(words)} "
            f"<span style='color:{quiet}'>{escape(e['sha256'][:12])}</span></div>"
        )
    return "".join(rows)


def table(found: dict, dry: bool) -> str:
    """What the import of a table did or would do."""
    words = (_("Rationales that would be added: {count} of {rows}.") if dry else _("Rationales added: {count} of {rows}.")).format(
        count=f"{len(found['ids']):,}", rows=f"{found['rows']:,}"
    )
    more = [
        text.format(count=found[key])
        for key, text in (
            ("unchanged", _("Here already: {count}.")),
            ("unmatched", _("Rows without a case in this pool: {count}.")),
            ("persons", _("Cases that keep a person's text: {count}.")),
        )
        if found[key]
    ]
    if found["kept"]:
        more.append(keptTexts(found))
    if found["replaces"]:
        more.append(_("Texts of others that give way: {names}.").format(names=names(found["replaces"])))
    if found.get("unmeasured"):
        more.append(
            _("Sentences that claim what was not measured, and are marked so: {count} of {all}.").format(
                count=found["unmeasured"], all=found["sentences"]
            )
        )
    if found["contradicting"]:
        more.append(
            _("Sentences that contradict the measurement of their case: {count} of {all}.").format(
                count=found["contradicting"], all=found["sentences"]
            )
        )
    faults = "".join("<div>✖ " + escape(_("Line {line}: {message}").format(**f)) + "</div>" for f in found["faults"][:MOST_LINES])
    return _paragraph(" ".join([words, *more])) + faults


def _paragraph(words: str) -> str:
    return f"<p>{escape(words)}</p>"


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")
