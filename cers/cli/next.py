"""``cers next``: which unlabelled volumes of a folder to label next."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..words import counted
from .options import Device
from .output import command, errors, progress, say_json


@command(cancelled="Cancelled. What was measured so far is kept; the same command goes on from there.")
def next_(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of volumes: NIfTI, NRRD, MetaImage, DICOM folders.", show_default=False)
    ],
    pool: Annotated[Path, typer.Option(help="The knowledge pool that shall learn.")],
    count: Annotated[Optional[int], typer.Option("-n", "--count", min=1, help="Volumes to print; default all.")] = None,
    model: Annotated[Optional[Path], typer.Option(help="Model folder. Default: the model in use.")] = None,
    modality: Annotated[Optional[str], typer.Option(help="MR, CT, ... where the files do not say.")] = None,
    body_site: Annotated[Optional[str], typer.Option(help="brain, lung, ... where the files do not say.")] = None,
    device: Annotated[Device, typer.Option()] = Device.auto,
    threads: Annotated[Optional[int], typer.Option(min=1)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: JSON on stdout, nothing else.")] = False,
) -> None:
    """Rank the volumes of a folder that are not in the pool by how much a label of each would help.

    First come those that the pool covers badly, on which the two decoders disagree and of which the network is unsure; a volume much like one
    above it comes later. A second run takes what the first one measured.

    Example:

    cers next new-scans --pool my-pool -n 10
    """  # noqa: E501 - the help breaks its lines where they break here
    from ..inference import load_model
    from ..inference.device import choose_device
    from ..inference.next import rank_next
    from ..pool import Pool

    with Pool.open(pool, read_only=not os.access(pool, os.W_OK)) as opened, progress() as show:
        loaded = load_model(model, device=choose_device(device.value), threads=threads)
        report = rank_next(folder, opened, loaded, modality=modality, body_site=body_site, progress=show)
    if as_json:
        say_json(report.to_dict())
        return
    for n, volume in enumerate(report.volumes[:count], 1):
        print(f"{n:3}. {volume.path}  ({volume.score:.2f})\n     {volume.reason}")
    print(f"{counted(len(report.volumes), 'volume')} to label, {len(report.labelled)} labelled already, {len(report.faults)} not readable.")
    for name, reason in report.faults.items():
        errors.print(f"Not readable: {name}: {reason}", markup=False, soft_wrap=True)
