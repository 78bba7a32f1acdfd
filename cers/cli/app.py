"""``cers segment``, ``cers info``, ``cers serve`` and the place where the other commands join in."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from .. import __version__
from . import pool_care  # noqa: F401 - adds its commands to pool_app
from .evaluate import compare, evaluate
from .model import model_app
from .next import next_
from .options import Device, Planes
from .output import command, progress, say_json
from .pool import pool_app
from .rationale import rationale_app
from .train import train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Segment lesions with evidence: beside each mask, the expert-annotated reference cases it was decoded with.\n\n"
    "[bold]Begin with[/bold]   cers segment image.nrrd -o lesion.seg.nrrd --pool my-pool --report evidence.html\n\n"
    "Exit codes: 0 done, 1 an error that you can mend, 2 wrong usage, 130 cancelled. Not for clinical use.",
)
app.add_typer(pool_app, name="pool")
app.command()(train)
app.add_typer(rationale_app, name="rationale")
app.add_typer(model_app, name="model")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"cers {__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    pass


@app.command()
@command
def segment(
    image: Annotated[Path, typer.Argument(help="NIfTI, NRRD, MetaImage, a DICOM folder or file, PNG or JPG.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Segmentation to write, in the image's own geometry: .seg.nrrd (Slicer segmentation with names and "
            "terminology), .nrrd or .nii.gz. A file of that name is replaced.",
        ),
    ],
    pool: Annotated[Optional[Path], typer.Option(help="Knowledge pool with the reference cases. Without it there is no evidence.")] = None,
    model: Annotated[Optional[Path], typer.Option(help="Model folder. Default: the model in use (see 'cers model list').")] = None,
    planes: Annotated[
        Planes, typer.Option(help="Slices to decode: of the plane the scanner took, of all three, fused, or as the volume allows.")
    ] = Planes.auto,
    report: Annotated[Optional[Path], typer.Option(help="Evidence as one self-contained HTML file.")] = None,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="Result and evidence of every slice as JSON; - for stdout.")] = None,
    probabilities: Annotated[
        Optional[Path],
        typer.Option(
            help="Calibrated probabilities as .nrrd or .nii.gz (a vector image if the model has several labels). Where planes were fused, "
            "the mask is not these cut at the threshold; 'cut' in the JSON says by how many voxels."
        ),
    ] = None,
    text: Annotated[Optional[str], typer.Option(help="A short clinical text, for instance 'headache, known meningioma'.")] = None,
    modality: Annotated[Optional[str], typer.Option(help="MR, CT, ... where the file does not say or is wrong.")] = None,
    body_site: Annotated[Optional[str], typer.Option(help="brain, lung, ... where the file does not say or is wrong.")] = None,
    influence: Annotated[
        bool, typer.Option("--influence/--no-influence", help="Measure how much each reference changes the mask (takes longer).")
    ] = True,
    device: Annotated[Device, typer.Option(help="Where to compute; auto takes the fastest there is.")] = Device.auto,
    threads: Annotated[Optional[int], typer.Option(min=1, help="CPU threads. More than the idle cores makes it slower.")] = None,
) -> None:
    """Segment an image, and show the evidence for it.

    Files are written whole or not at all, and only after everything has been computed; Ctrl-C leaves nothing behind.

    Examples:

    cers segment brain.nii.gz -o lesion.nii.gz

    cers segment dicom-folder -o lesion.seg.nrrd --pool my-pool --report evidence.html --json result.json
    """
    from ..case.io import atomic_path, check_output, read_volume, write_image, write_segmentation
    from ..case.pitfalls import check_namesakes
    from ..case.sizes import cut_words
    from ..errors import InputError

    if not image.exists():  # before any folder is made for the outputs
        raise InputError(f"'{image}' does not exist. Check the path of the image.")
    to_stdout = json_file is not None and str(json_file) == "-"
    files = [check_output(output)]
    if report is not None:
        files.append(check_output(report, (".html", ".htm")))
    if json_file is not None and not to_stdout:
        files.append(check_output(json_file, (".json",)))
    if probabilities is not None:
        files.append(check_output(probabilities, (".nrrd", ".nii.gz", ".nii", ".mha")))
        if probabilities.name.lower().endswith(".seg.nrrd"):
            raise InputError("Probabilities are not a segmentation: write them as .nrrd or .nii.gz.")
    places = [f.resolve() for f in [*files, image]]
    if len(set(places)) < len(places):
        raise InputError("Two of the files are one and the same. Give the image and each output a name of its own.")
    for place in places[:-1]:
        check_namesakes(place, places)
    unread = ""
    with progress() as show:
        say = show or (lambda fraction, message: None)
        say(0.0, "Reading the image")
        volume = read_volume(image, modality=modality, body_site=body_site)
        low, high = volume.array.min(), volume.array.max()
        if ((volume.array == low) | (volume.array == high)).all():
            raise InputError(f"'{image.name}' holds two values only, so it looks like a mask. Give the image that it was drawn on.")
        say(0.02, "Loading the model")
        from ..inference import Segmenter, load_model
        from ..inference.device import choose_device
        from ..inference.report import write_report
        from ..pool import Pool

        opened = Pool.open(pool, read_only=not os.access(pool, os.W_OK)) if pool is not None else None
        try:
            segmenter = Segmenter(load_model(model, device=choose_device(device.value), threads=threads), opened)
            prediction = segmenter.segment(
                volume, planes=planes.value, text=text, influence=influence, progress=lambda f, m: say(0.1 + 0.85 * f, m)
            )
            say(0.96, "Writing")
            result = prediction.summary()
            if report is not None:
                unread = write_report(report, prediction, volume, opened).warning()
        finally:
            if opened is not None:
                opened.close()
        if probabilities is not None:
            maps = prediction.probabilities
            write_image(probabilities, maps[0] if len(maps) == 1 else maps, volume.geometry)
        write_segmentation(output, prediction.labelmap, volume.geometry, prediction.labels)
        if json_file is not None and not to_stdout:
            with atomic_path(json_file) as temporary:
                temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if unread:
        print(unread, file=sys.stderr)
    if to_stdout:
        say_json(result)
    else:
        told = cut_words(result["cut"]) if probabilities is not None else ""
        print("\n".join([*([told] if told else []), _words(volume, prediction, pool, files, segmenter.model.config.body_site)]))


def _words(volume, prediction, pool: Path | None, files: list[Path], made_for: str | None) -> str:
    from ..case.counts import by_plane, references_words, slices_words
    from ..case.sizes import amount
    from ..words import counted

    found = [e for e in prediction.evidence if e.pixels]
    sizes = prediction.sizes()
    amounts = [f"{name} {amount(sizes, name)}" for name in prediction.labels.values()]
    counts = by_plane(e.to_dict() for e in prediction.evidence)
    searched = "the picture" if volume.is_picture else counted(len(prediction.evidence), "slice")
    where = "" if volume.is_picture else f" in {slices_words(counts)}"  # nobody knows the plane of a picture
    lines = [
        f"{', '.join(amounts)}{where}, {prediction.seconds['total']:.1f} s."
        if found
        else f"No lesion was found in {searched} ({prediction.seconds['total']:.1f} s)."
    ]
    settings = prediction.provenance["settings"]
    if volume.worth_crossing and settings["planes_asked"] == "auto" and settings["planes"] != "three":
        lines.append(
            "Read along one plane only: most of what it shows is owed to references of what the model was not trained for, and the pool "
            "does not have them in all planes. --planes three reads all."
        )
    if made_for and volume.body_site and volume.body_site.lower() != made_for.lower():
        lines.append(f"The model was made for {made_for}, and the image is of {volume.body_site}: look at the mask with particular care.")
    if left := [e for e in prediction.evidence if e.left_out]:
        words = "something is shown that the planes together do not bear out. It was left out; a report (--report) shows it."
        lines.append(f"In {counted(len(left), 'slice')} {words}")
    if pool is None:
        lines.append("No pool was given, so the mask was made without evidence.")
    elif found:
        largest = max(found, key=lambda e: e.pixels)
        seen = "" if volume.is_picture else f"The pool has {references_words(counts)}. Largest: "
        lines.append(seen + largest.coverage.message)
    return "\n".join([*lines, *(f"Wrote {file}" for file in files)])


app.command("next")(next_)
app.command()(evaluate)
app.command()(compare)


@app.command()
@command
def info(
    model: Annotated[Optional[Path], typer.Option(help="Model folder. Default: the model in use (see 'cers model list').")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Print versions, the model, devices and threads."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from ..errors import CersError
    from ..inference.device import devices
    from ..inference.model import CONFIG, WEIGHTS, ModelConfig, model_hash
    from ..inference.store import default_folder

    versions = {"cers": __version__, "python": sys.version.split()[0]}
    for package in ("torch", "transformers", "faiss-cpu", "SimpleITK", "numpy", "pydicom", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    found: dict = {}
    try:
        folder = default_folder() if model is None else model
        config = ModelConfig.read(folder / CONFIG)
        found = {
            "folder": str(folder),
            "name": config.name,
            "hash": model_hash((folder / WEIGHTS).read_bytes(), config),
            "labels": list(config.labels.values()),
            "modality": config.modality,
            "body_site": config.body_site,
        }
    except (CersError, OSError) as error:
        if model is not None:
            reason = error if isinstance(error, CersError) else f"The model in '{model}' cannot be read: {error.strerror}."
            raise CersError(str(reason)) from error
        found = {"folder": None, "problem": str(error)}
    facts = {"versions": versions, "model": found, "devices": devices(), "threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    if as_json:
        say_json(facts)
        return
    for name, value in versions.items():
        print(f"{name:<14}{value or 'not installed'}")
    if found.get("name"):
        print(f"{'model':<14}{found['name']} ({found['hash']}) in {found['folder']}")
        made_for = f"{found['modality'] or 'any modality'}, {found['body_site'] or 'any body site'}"
        print(f"{'':<14}labels {', '.join(found['labels'])}; made for {made_for}")
    else:
        print(f"{'model':<14}none: {found['problem']}")
    print(f"{'devices':<14}{', '.join(facts['devices'])}\n{'threads':<14}{facts['threads']} of {facts['cpus']} CPUs")


@app.command()
def serve() -> None:
    """Run the worker: requests as JSON lines on stdin, answers on stdout (see cers/worker/PROTOCOL.md)."""
    from ..worker import serve as run

    raise typer.Exit(run())
