"""``cers evaluate`` and ``cers compare``: how good masks are, and whether one result is better than another."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..words import counted
from .options import Device, Planes
from .output import command, fail, progress, say_json


@command
def evaluate(
    images: Annotated[Path, typer.Argument(help="Folder of images: NIfTI, NRRD, MetaImage, DICOM folders, or PNG and JPG.")],
    masks: Annotated[Path, typer.Argument(help="Folder of expert masks with matching names (case7.nii.gz, case7_mask.nrrd, ...).")],
    pool: Annotated[Optional[Path], typer.Option(help="Knowledge pool to segment with; also looked through for leaks.")] = None,
    model: Annotated[Optional[Path], typer.Option(help="Model folder. Default: the model in use.")] = None,
    planes: Annotated[
        Planes, typer.Option(help="Slices to decode: of the plane the scanner took, of all three, fused, or as the volume allows.")
    ] = Planes.auto,
    predictions: Annotated[Optional[Path], typer.Option(help="Folder of masks to evaluate instead of running the model.")] = None,
    labels: Annotated[
        Optional[str],
        typer.Option(help="With --predictions: labels to compare one by one, '1=core, 2=edema'. Default: all that is not zero."),
    ] = None,
    csv: Annotated[
        Optional[Path],
        typer.Option(
            help="Table with a column image and any of: group, patient, diagnosis, modality, body_site, split. Intervals are then over "
            "groups and patients; images of the split train are counted."
        ),
    ] = None,
    json_file: Annotated[Optional[Path], typer.Option("--json", help="All figures and cases as JSON; - for stdout.")] = None,
    html: Annotated[Optional[Path], typer.Option(help="Figures and reliability diagram as one HTML file.")] = None,
    name: Annotated[Optional[str], typer.Option(help="What this evaluation is called in its files and in a model card.")] = None,
    without_leaks: Annotated[bool, typer.Option("--without-leaks", help="Leave out the images that the leak report names.")] = False,
    modality: Annotated[Optional[str], typer.Option(help="MR, CT, ... of images of which the table does not say it.")] = None,
    body_site: Annotated[Optional[str], typer.Option(help="brain, lung, ... of images of which the table does not say it.")] = None,
    device: Annotated[Device, typer.Option(help="Where to compute; auto takes the fastest there is.")] = Device.auto,
    threads: Annotated[Optional[int], typer.Option(min=1, help="CPU threads. More than the idle cores makes it slower.")] = None,
) -> None:
    """Compare masks with the expert's: Dice, IoU, HD95, surface Dice, lesions found, volume, calibration, with 95 % intervals.

    A leak report comes first: images that are in the pool, of a patient or group in it, or near-duplicates of its cases.
    Files without a partner are named. If a file cannot be used, the rest is evaluated and the exit code is 1.

    Examples:

    cers evaluate images masks --pool my-pool --csv cases.csv --json result.json --html result.html

    cers evaluate images masks --predictions other-program --csv cases.csv --json other.json
    """
    from ..case.io import atomic_path, check_output
    from ..evaluation.items import find_items
    from ..evaluation.leak import leak_words
    from ..evaluation.run import Evaluation, check_leaks
    from ..evaluation.tables import drawn, labels_first, mean_rows, part_rows, text_table, trust_rows

    if predictions is not None and model is not None:
        raise typer.BadParameter("give either --model or --predictions.")
    if predictions is not None and (planes is not Planes.auto or device is not Device.auto or threads is not None):
        raise typer.BadParameter("--planes, --device and --threads go with a model, which --predictions takes the place of.")
    if labels is not None and predictions is None:
        raise typer.BadParameter("--labels goes with --predictions; a model says its own labels.")
    if without_leaks and pool is None:
        raise typer.BadParameter("--without-leaks needs --pool.")
    wanted = _labels(labels) if labels is not None else None
    to_stdout = json_file is not None and str(json_file) == "-"
    files = [check_output(f, s) for f, s in ((None if to_stdout else json_file, (".json",)), (html, (".html", ".htm"))) if f is not None]
    say = (lambda *words: print(*words, file=sys.stderr)) if to_stdout else print
    found = find_items(images, masks, predictions=predictions, csv=csv, modality=modality, body_site=body_site)
    from ..pool import Pool

    opened = Pool.open(pool, read_only=not os.access(pool, os.W_OK)) if pool is not None else None
    try:
        with progress() as show:
            leak, faults = check_leaks(found, opened, show) if opened is not None else (None, {})
        say(leak_words(leak))
        for file, why in found.left.items():
            print(f"Not evaluated: {file}: {why}", file=sys.stderr)
        if found.untold:
            those = "is not in the table; it is" if found.untold == 1 else "are not in the table; they are"
            print(f"{counted(found.untold, 'image')} {those} evaluated without a group.", file=sys.stderr)
        skip = {row["image"]: "left out: it leaks (see the leak report)." for row in leak["images"]} if without_leaks else {}
        with progress() as show:
            segmenter = None
            if predictions is None:
                from ..inference import Segmenter, load_model
                from ..inference.device import choose_device

                segmenter = Segmenter(load_model(model, device=choose_device(device.value), threads=threads), opened)
            result = Evaluation(found, segmenter, planes.value, wanted).run(name=name, leak=leak, faults=faults, skip=skip, progress=show)
    finally:
        if opened is not None:
            opened.close()
    for file, why in result["faults"].items():
        print(f"Not evaluated: {file}: {why}", file=sys.stderr)
    if (count := result["training_images"]) > 0:
        those = "is" if count == 1 else "are"
        print(f"{counted(count, 'image')} {those} for training, says the table: who learned from that is judged too well.", file=sys.stderr)
    say(
        f"\n{counted(result['images'], 'image')}, 95 % bootstrap intervals {drawn(result)}"
        + (f"; {words}" if (words := labels_first(result)) else "")
        + "\n"
        + text_table(mean_rows(result) + part_rows(result) + trust_rows(result))
    )
    if json_file is not None and not to_stdout:
        _write_json(json_file, result, atomic_path)
    if html is not None:
        from ..evaluation.page import write_page

        write_page(html, result)
    if to_stdout:
        say_json(result)
    for file in files:
        say(f"Wrote {file}")
    if result["faults"]:
        fail(f"{len(result['faults'])} of {counted(len(found.items), 'image')} could not be evaluated.", 1)


@command
def compare(
    first: Annotated[Path, typer.Argument(help="Result that 'cers evaluate --json' wrote.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same cases.")],
    json_file: Annotated[Optional[Path], typer.Option("--json", help="The differences as JSON; - for stdout.")] = None,
) -> None:
    """Say by how much the second result differs from the first on the same cases, with 95 % intervals of the paired differences."""
    from ..case.io import atomic_path, check_output
    from ..evaluation.compare import compare_results, read_result
    from ..evaluation.tables import drawn, metric_name, span

    to_stdout = json_file is not None and str(json_file) == "-"
    if json_file is not None and not to_stdout:
        check_output(json_file, (".json",))
    found = compare_results(read_result(first), read_result(second))
    if to_stdout:
        say_json(found)
        return
    names = (first.name, second.name) if first.name != second.name else (first, second)
    print(f"{names[1]} minus {names[0]}, {counted(found['cases'])}, 95 % bootstrap intervals {drawn(found)}")
    for metric, row in found["difference"].items():
        print(f"{metric_name(metric, found['units']):<26}{span(row):<28}n={row['n']}  better {row['better']}, worse {row['worse']}")
    if json_file is not None:
        _write_json(json_file, found, atomic_path)
        print(f"Wrote {json_file}")


def _write_json(path: Path, value: dict, atomic_path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _labels(text: str) -> dict[int, str]:
    """ "1=core, 2=edema" -> {1: "core", 2: "edema"}."""
    out: dict[int, str] = {}
    for part in text.split(","):
        value, _, name = (p.strip() for p in part.partition("="))
        taken = {n.lower() for n in out.values()}  # the names of masks are matched whatever their case
        if not (value.isascii() and value.isdigit() and 0 < int(value) < 256 and name) or int(value) in out or name.lower() in taken:
            raise typer.BadParameter(f"--labels '{text}' is not understood. Write for instance 1=core, 2=edema.")
        out[int(value)] = name
    return out
