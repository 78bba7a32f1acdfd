"""``cers pool``: make, fill, read, search and check a knowledge pool."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..words import counted, plural, were
from .output import command, fail, progress, say_json, stoppable

pool_app = typer.Typer(
    no_args_is_help=True,
    help="Make, fill, read, search and check a knowledge pool: a folder of expert-annotated "
    "reference cases.\n\ncers pool create my-pool\n\n"
    "cers pool import my-pool --images images --masks masks --modality MR --body-site brain",
)
MOST_FAULTS = 20  # printed
_DIR = Annotated[Path, typer.Argument(metavar="DIR", help="The pool's folder.", show_default=False)]
_WHO = Annotated[Optional[str], typer.Option(help="Who does it, for the audit.")]
_JSON = Annotated[bool, typer.Option("--json", help="For machines: JSON on stdout, nothing else.")]


def _open(folder: Path, write: bool = False):
    from ..pool import Pool

    return Pool.open(folder, read_only=not write and not os.access(folder, os.W_OK))


@pool_app.command()
@command
def create(folder: _DIR) -> None:
    """Make an empty pool in a new or empty folder. An existing pool is left as it is."""
    from ..pool import Pool

    with Pool.create(folder) as pool:
        print(f"Made an empty pool in {folder}." if not len(pool) else f"{folder} is a pool already, with {counted(len(pool))}.")


@pool_app.command("import")
@command(cancelled="Cancelled. What was imported so far stays in the pool.")
def import_(
    folder: _DIR,
    images: Annotated[Path, typer.Option(help="Folder of images: NIfTI, NRRD, MetaImage, PNG, JPG, or DICOM folders.")],
    masks: Annotated[Path, typer.Option(help="Folder of masks with matching names (case7.nii.gz, case7_mask.nrrd, ...); DICOM SEG too.")],
    csv: Annotated[
        Optional[Path],
        typer.Option(
            help="Table with a column image and any of: patient, group, modality, body_site, "
            "diagnosis, plane, annotator, label. Only its images are imported."
        ),
    ] = None,
    modality: Annotated[Optional[str], typer.Option(help="For all cases that do not say: MR, CT, ...")] = None,
    body_site: Annotated[Optional[str], typer.Option(help="For all cases that do not say: brain, lung, ...")] = None,
    label: Annotated[
        Optional[str],
        typer.Option(help="What masks show that do not say: tumor, or '1=core; 2=edema'. Without it, lesion; or label 1, label 2, ..."),
    ] = None,
    max_slices: Annotated[int, typer.Option(min=1, help="Slices taken from one volume at most, along each plane.")] = 12,
    keep_identity: Annotated[
        bool, typer.Option("--keep-identity", help="Keep what the headers say of the patient, in the field source.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be added; change nothing.")] = False,
    as_json: _JSON = False,
) -> None:
    """Add annotated images. A volume gives several cases: lesion slices spread over it, the largest among them; along all three planes
    where it is large enough for a segmentation to read it so (a whole head), else along the plane that the scanner took.

    What cannot be imported is named and does not stop the rest; the exit code is then 1. Doing it twice adds nothing twice.
    """
    from ..pool.importer import DryRun, import_folder

    defaults = {key: value for key, value in (("modality", modality), ("body_site", body_site), ("label", label)) if value}
    with _open(folder, write=not dry_run) as pool:
        with progress() as show, stoppable("this image") as stop:
            report = import_folder(
                DryRun(pool) if dry_run else pool,
                images,
                masks,
                csv,
                progress=show,
                cancel=stop,
                defaults=defaults,
                max_slices=max_slices,
                keep_identity=keep_identity,
            )
        count = len(pool)
    if as_json:
        say_json({**report.to_dict(), "cases": count})
    else:
        print(
            f"{'Would add' if dry_run else 'Added'} {counted(report.added)} from {counted(report.giving, 'image')}; the pool has {count}."
        )
        if report.present:
            print(f"Here already, or the same in another of these images: {counted(report.present)}.")
        if report.repeated:
            more = len(report.repeated) - MOST_FAULTS
            print(f"Nothing else is in {', '.join(report.repeated[:MOST_FAULTS])}{f' and {more} more' if more > 0 else ''}.")
        if report.trashed:
            print(f"Left in the trash, where this pool has them: {counted(len(report.trashed))}. 'cers pool restore' brings them back.")
        if report.identity:
            print(
                f"Header fields that may tell who the patient is were {'kept' if keep_identity else 'dropped'}: "
                + ", ".join(f"{name} ({images})" for name, (images, _) in sorted(report.identity.items()))
            )
        if report.unlisted:
            print(f"Left out, as the table does not name them: {counted(len(report.unlisted), 'image')}.")
    for fault in report.faults[:MOST_FAULTS]:
        print(f"Not imported: {fault}", file=sys.stderr)
    if (more := len(report.faults) - MOST_FAULTS) > 0:
        print(f"... and {more} more; --json names all of them.", file=sys.stderr)
    if report.cancelled:
        fail(
            f"Cancelled: {were(report.left, 'image')} not imported. The same command goes on from there.",
            130,
        )
    if report.faults or not report.images:
        fail(f"{len(report.faults)} items could not be imported." if report.faults else "No pair of image and mask was found.", 1)


@pool_app.command("list")
@command
def list_(
    folder: _DIR,
    as_json: _JSON = False,
    modality: Annotated[Optional[str], typer.Option()] = None,
    body_site: Annotated[Optional[str], typer.Option()] = None,
    plane: Annotated[Optional[str], typer.Option(help="axial, coronal or sagittal.")] = None,
    diagnosis: Annotated[Optional[str], typer.Option()] = None,
    label: Annotated[Optional[str], typer.Option()] = None,
    review: Annotated[Optional[str], typer.Option(help="approved, flagged, excluded or unreviewed.")] = None,
) -> None:
    """List the cases, all or those that match."""
    from ..case.geometry import PLANES
    from ..pool.store import REVIEWS

    for name, given, known in (("plane", plane, PLANES), ("review", review, REVIEWS)):
        if given is not None and given not in known:  # no case would match a slip of the pen, as if there were none
            raise typer.BadParameter(f"--{name} '{given}' is not one of {', '.join(known)}.")
    wanted = {"modality": modality, "body_site": body_site, "plane": plane, "diagnosis": diagnosis, "label": label, "review": review}
    with _open(folder) as pool:
        cases = pool.list(**{key: value for key, value in wanted.items() if value is not None})
    if as_json:
        say_json(cases)
        return
    _table(cases)
    print(counted(len(cases)))


@pool_app.command()
@command
def show(
    folder: _DIR, case: Annotated[str, typer.Argument(metavar="ID", help="The case's id, or its beginning.")], as_json: _JSON = False
) -> None:
    """Show one case: its metadata and its rationale."""
    with _open(folder) as pool:
        meta = pool.meta(_resolve(pool, case))
    if as_json:
        say_json(meta)
        return
    rationale = meta.pop("rationale")
    for key, value in meta.items():
        if value not in (None, "", []) and key != "ijkToRAS":
            print(f"{key.replace('_', ' '):<18}{', '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}")
    if rationale:
        print(f"\n{rationale['text']}\n(written by: {rationale['writer']}, version {rationale['version']})")


@pool_app.command()
@command
def search(
    folder: _DIR,
    text: Annotated[Optional[str], typer.Option(help="Words on texture, boundary or surroundings.")] = None,
    image: Annotated[Optional[Path], typer.Option(help="A picture, or a volume of which --slice is taken.")] = None,
    slice_: Annotated[Optional[int], typer.Option("--slice", min=0, help="Slice of the acquisition plane; default the middle one.")] = None,
    count: Annotated[int, typer.Option("-k", min=1, help="Cases to give.")] = 10,
    model: Annotated[Optional[Path], typer.Option(help="Model folder for --image. Default: the one in use.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[Optional[int], typer.Option(min=1)] = None,
    as_json: _JSON = False,
) -> None:
    """Find cases whose rationale is close to a text, or that look like an image.

    Examples:

    cers pool search my-pool --text "ring-like rim, well-defined, near the surface"

    cers pool search my-pool --image slice.png -k 5
    """
    if (text is None) == (image is None):
        raise typer.BadParameter("give either --text or --image.")
    with _open(folder) as pool, progress() as show_progress:
        if text is not None:
            from ..inference.search import search_text
            from ..rationale import TextEmbedder

            found = search_text(pool, TextEmbedder(threads=threads), text, count, show_progress)
        else:
            found = _search_image(pool, image, slice_, count, model, device, threads, show_progress)
        cases = [{**pool.meta(i), "similarity": round(score, 4)} for i, score in found]
    if as_json:
        say_json(cases)
    else:
        _table(cases, "similarity")


def _search_image(pool, path: Path, index: int | None, count: int, model: Path | None, device: str, threads: int | None, show_progress):
    from ..case import PlaneView, acquisition_plane
    from ..case.io import read_volume
    from ..errors import InputError
    from ..inference import load_model
    from ..inference.device import choose_device
    from ..inference.search import search_image
    from ..rationale import TextEmbedder

    volume = read_volume(path)
    view = PlaneView(volume.geometry, acquisition_plane(volume.geometry))
    index = len(view) // 2 if index is None else index
    if index >= len(view):
        raise InputError(f"'{path.name}' has {counted(len(view), 'slice')}, 0 to {len(view) - 1}; there is no slice {index}.")
    loaded = load_model(model, device=choose_device(device), threads=threads)
    spacing = view.spacing if volume.spacing_known else None
    return search_image(
        pool,
        loaded,
        TextEmbedder(loaded.config.text_encoder),
        view.slices(volume.array)[index],
        spacing,
        volume.modality or loaded.config.modality,
        count,
        show_progress,
    )


@pool_app.command()
@command
def delete(
    folder: _DIR,
    cases: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, or their beginnings.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    for_good: Annotated[bool, typer.Option("--for-good", help="Not to the trash.")] = False,
    who: _WHO = None,
) -> None:
    """Move cases to the pool's trash, from which 'cers pool restore' brings them back. On a terminal it asks first."""
    with _open(folder, write=True) as pool:
        ids = list(dict.fromkeys(_resolve(pool, case) for case in cases))  # all are known before the first is deleted
        several = f"{len(ids)} of {counted(len(pool))}"
        question = f"Delete {several} for good?" if for_good else f"Move {several} to the trash?"
        if not yes and sys.stdin.isatty() and not typer.confirm(question):
            fail("Cancelled. Nothing was deleted.", 130)
        numbers = pool.trash(ids, who=who)
        if for_good:
            pool.purge(numbers, who=who)
        print(
            f"Deleted {counted(len(ids))}; the pool has {len(pool)}." + ("" if for_good else " Bring them back with 'cers pool restore'.")
        )


@pool_app.command()
@command
def verify(folder: _DIR, as_json: _JSON = False) -> None:
    """Read everything in the pool and name every fault; the exit code is 1 if there is one. It changes nothing."""
    with _open(folder) as pool:
        faults, count = pool.verify(), len(pool)
        unnamed = 0 if any(f.kind == "database" for f in faults) else pool.unnamed()
    if as_json:
        say_json({"cases": count, "unnamed_files": unnamed, "faults": [{"id": f.id, "kind": f.kind, "message": f.message} for f in faults]})
    else:
        for fault in faults:
            print(f"{fault.id or 'pool'}: {fault.message}")
        print(f"{counted(count)}, {len(faults) or 'no'} {plural(len(faults), 'fault')}.")
        if unnamed:
            print(f"No case names {unnamed} of the image files. If pool.sqlite is not an older copy, 'cers pool clean' deletes them.")
    if faults:
        raise typer.Exit(1)


def _resolve(pool, text: str) -> str:
    """The one id that begins with a text."""
    from ..errors import PoolError

    ids = pool.ids()
    matches = [text] if text in ids else [i for i in ids if i.startswith(text)]
    if len(matches) != 1 or not text:
        found = f"{counted(len(matches))} in this pool {plural(len(matches), 'has', 'have')}" if matches else "No case in this pool has"
        raise PoolError(f"{found} an id that begins with '{text}'. See 'cers pool list'.")
    return matches[0]


def _cell(case: dict, column: str) -> str:
    value = ", ".join(case["labels"].values()) if column == "labels" else case.get(column)
    # one line, and nothing that a terminal would obey: the words may come from anywhere
    return "-" if value is None else " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def _table(cases: list[dict], extra: str | None = None) -> None:
    columns = ([extra] if extra else []) + ["id", "modality", "body_site", "plane", "diagnosis", "labels", "source", "review"]
    rows = [[_cell(case, column) for column in columns] for case in cases]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(*(c.replace("_", " ") for c in columns), box=None, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table)  # a name may hold brackets
    else:
        for row in [columns, *rows]:
            print("\t".join(row))
