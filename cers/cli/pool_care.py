"""``cers pool``: review, restore, audit, health, export, merge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..words import counted, plural, were
from .options import Device
from .output import command, errors, fail, progress, quoted, say_json, stoppable
from .pool import _DIR, _JSON, _WHO, _open, _resolve, pool_app


@pool_app.command()
@command
def review(
    folder: _DIR,
    verdict: Annotated[str, typer.Argument(metavar="VERDICT", help="approved, flagged, excluded or unreviewed.")],
    cases: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, or their beginnings.")],
    note: Annotated[Optional[str], typer.Option(help="Why.")] = None,
    who: _WHO = None,
) -> None:
    """Record a verdict on cases. Those excluded stay in the pool but are never used as evidence."""
    with _open(folder, write=True) as pool:
        ids = list(dict.fromkeys(_resolve(pool, case) for case in cases))
        pool.review_cases(ids, verdict, who=who, note=note)
        print(f"{counted(len(ids))} {plural(len(ids), 'is', 'are')} now {verdict}.")


@pool_app.command()
@command
def restore(
    folder: _DIR,
    cases: Annotated[Optional[list[str]], typer.Argument(metavar="ID...", help="Beginnings of ids; none lists the trash.")] = None,
    who: _WHO = None,
    as_json: _JSON = False,
) -> None:
    """Bring deleted cases back from the trash, or list what lies there."""
    with _open(folder, write=bool(cases)) as pool:
        trashed = pool.trashed()
        if not cases:
            if as_json:
                say_json(trashed)
                return
            for entry in trashed:
                print("\t".join(str(entry[name] or "-") for name in ("id", "created", "who", "note")))
            print(f"{counted(len(trashed))} in the trash")
            return
        numbers = []
        for text in cases:
            found = [entry for entry in trashed if entry["id"].startswith(text)]
            meant = {entry["id"] for entry in found}
            if not text or (len(meant) != 1 and text not in meant):
                several = f"{counted(len(meant))} in the trash {plural(len(meant), 'has', 'have')}" if meant else "No case in the trash has"
                fail(f"Error: {several} an id that begins with '{text}'. See: cers pool restore {quoted(folder)}", 1)
            one = text if text in meant else meant.pop()
            numbers.append(next(entry["number"] for entry in found if entry["id"] == one))  # the newest
        ids = pool.restore(numbers, who=who)
    print(f"Restored {counted(len(ids))}.")


@pool_app.command()
@command
def clean(folder: _DIR, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete image files that no case names, as killed programs leave them. Not after restoring an older pool.sqlite: they may be all that
    is left of newer cases."""
    with _open(folder, write=True) as pool:
        if (count := pool.unnamed()) and not yes:
            if not sys.stdin.isatty():
                fail(f"No case names {count} of the image files. Add --yes to delete them.", 2)
            if not typer.confirm(f"Delete {counted(count, 'image file')} that no case names?"):
                fail("Cancelled. Nothing was deleted.", 130)
        print(f"Deleted {counted(pool.clean(), 'file')}.")


@pool_app.command()
@command
def audit(
    folder: _DIR,
    case: Annotated[Optional[str], typer.Option(help="Of this case only; its whole id if it is deleted.")] = None,
    csv: Annotated[Optional[Path], typer.Option(help="Write a table here instead.")] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="Entries shown.")] = 50,
    as_json: _JSON = False,
) -> None:
    """Show who changed what and when, newest first."""
    from ..errors import InputError

    with _open(folder) as pool:
        ids = None
        if case is not None:
            ids = [_resolve(pool, case) if any(i.startswith(case) for i in pool.ids()) else case]
        entries = pool.audit(ids, limit=count)
        if case is not None and not entries:
            raise InputError(f"Nothing is recorded of a case '{case}'. Check the id; of a deleted case give all of it.")
        if csv is not None:
            csv = _output(csv, ".csv", folder)
            print(f"Wrote {counted(pool.export_audit(csv, ids), 'entry', 'entries')} to {csv}.")
            return
    if as_json:
        say_json(entries)
        return
    for e in entries:
        what = f"{e['field']}: {e['before'] or '-'} -> {e['after'] or '-'}" if e["field"] else ""
        cells = (e["created"], e["who"] or "-", e["action"], e["case"], what, e["note"] or "")
        print("\t".join(" ".join(str(cell).split()) for cell in cells).rstrip())


@pool_app.command()
@command(cancelled="Cancelled. What was tried so far is kept; the same command goes on from there.")
def health(
    folder: _DIR,
    cases: Annotated[int, typer.Option("--try", min=0, help="Cases to segment with the rest of the pool, besides those tried before.")] = 0,
    model: Annotated[Optional[Path], typer.Option(help="Model folder for --try. Default: the model in use.")] = None,
    device: Annotated[Device, typer.Option()] = Device.auto,
    threads: Annotated[Optional[int], typer.Option(min=1)] = None,
    as_json: _JSON = False,
) -> None:
    """Look for duplicates across patients, masks and words that contradict, and gaps; the exit code is 1 if there is a finding.

    With --try also for masks that the rest of the pool does not bear out, and for references that make others worse.
    """
    from ..pool import check_health

    with _open(folder) as pool:
        with progress() as show:
            findings = check_health(pool, progress=show)
        if cases:
            tried = _try(pool, cases, model, device, threads)
            findings = tried.findings() + findings
            if not as_json:
                print(f"Tried so far: {len(tried.trials)} of {counted(tried.total)}.")
            if tried.faults:
                reason = next(iter(tried.faults.values()))
                errors.print(f"Not tried: {counted(len(tried.faults))}. {reason}", markup=False, soft_wrap=True)
        count = len(pool)
    if as_json:
        say_json([f.to_dict() for f in findings])
    else:
        for f in findings:
            more = f" and {len(f.ids) - 4} more" if len(f.ids) > 4 else ""
            print(f"{f.kind}: {f.message} ({', '.join(f.ids[:4])}{more})")
        print(f"{counted(count)}, {len(findings) or 'no'} {plural(len(findings), 'finding')}.")
    if findings:
        raise typer.Exit(1)


def _try(pool, cases: int, model: Path | None, device: Device, threads: int | None):
    from ..inference import Segmenter, load_model
    from ..inference.device import choose_device
    from ..inference.harm import check_harm

    segmenter = Segmenter(load_model(model, device=choose_device(device.value), threads=threads), pool)
    with progress() as show:
        return check_harm(segmenter, budget=cases, progress=show)


@pool_app.command()
@command
def export(
    folder: _DIR,
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="The file to write.")],
    cases: Annotated[Optional[list[str]], typer.Argument(metavar="[ID]...", help="Ids, or their beginnings; none = all.")] = None,
) -> None:
    """Write cases with all rationales and reviews to a zip file with checksums."""
    from ..pool import export_pool

    with _open(folder) as pool, progress() as show:
        file = _output(file, ".zip", folder)
        ids = [_resolve(pool, case) for case in cases] if cases else None
        count = export_pool(pool, file, ids, progress=show)
    print(f"Wrote {counted(count)} to {file}.")


def _output(path: Path, suffix: str, folder: Path) -> Path:
    """A file that may be written: of this ending, so that no image or database is replaced by a slip, and outside the pool."""
    from ..case.io import check_output
    from ..errors import InputError

    if folder.resolve() in path.resolve().parents:
        raise InputError(f"'{path}' lies inside the pool. Choose a place outside of it.")
    return check_output(path, (suffix,))


@pool_app.command()
@command(cancelled="Cancelled. What was merged so far stays in the pool.")
def merge(
    folder: _DIR,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A file of 'cers pool export', or another pool's folder.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    who: _WHO = None,
    as_json: _JSON = False,
) -> None:
    """Add another pool's cases that are not here yet. What is here is never changed, and what was deleted here stays in the trash."""
    from ..pool import merge as merge_into

    with _open(folder, write=not dry_run) as pool, progress() as show, stoppable("this case") as stop:
        report = merge_into(pool, source, dry_run=dry_run, who=who, progress=show, cancel=stop)
    if as_json:
        say_json(report.to_dict())
    else:
        here = plural(len(report.present), "was", "were")
        print(f"{'Would add' if dry_run else 'Added'} {counted(len(report.added))}; {len(report.present)} {here} here already.")
        for case_id, names in report.different.items():
            print(f"{case_id}: kept as it is here; the other differs in {', '.join(names)}.")
        if report.trashed:
            print(f"Left in the trash, where this pool has them: {counted(len(report.trashed))}. 'cers pool restore' brings them back.")
    if report.cancelled:
        fail(
            f"Cancelled: {were(report.left)} not merged. The same command goes on from there.",
            130,
        )
    if report.faults:
        fail(f"{counted(len(report.faults))} could not be merged. " + " ".join(report.faults[:5]), 1)
