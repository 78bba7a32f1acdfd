"""Which images lie in a folder, and which of them have a mask beside them."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from ..files import existing_folder
from .importer import _IMAGE, _MASK, SUFFIXES, _core

_PAIRED = (".raw", ".zraw", ".img")  # data files of .mhd, .nhdr and .hdr, read through their header


def find_images(folder: Path, without: Path | None = None) -> tuple[list[str], list[str]]:
    """Paths below ``folder``, with "/" in between, of the images without a mask and of those with one, each sorted.

    A folder with DICOM files counts as one image. Hidden files and folders are left out, as is the folder ``without``.

    Raises:
        InputError: no such folder, or it cannot be read.
    """
    existing_folder(folder, "images")
    plain, masked = [], []
    barred = without.resolve() if without is not None else None

    def refuse(error: OSError) -> None:
        raise InputError(f"The folder '{error.filename}' cannot be read ({error.strerror}). Check its permissions.") from error

    for root, folders, files in os.walk(folder, onerror=refuse):
        here = Path(root)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (here / f).resolve() != barred)
        files = sorted(f for f in files if not f.startswith("."))
        stems = {f: f[: -len(ending)] for f in files if (ending := next((s for s in SUFFIXES if f.lower().endswith(s)), None))}
        if not stems and here != folder and any(_is_dicom(here / f) for f in files[:3]):
            plain.append(here.relative_to(folder).as_posix())
            continue
        masks = {f: _core(s, _MASK) for f, s in stems.items() if f"_{s.lower()}".endswith(_MASK) or f.lower().endswith(".seg.nrrd")}
        images = {f: _core(s, _IMAGE) for f, s in stems.items() if f not in masks}
        lone = len(images) == len(masks) == 1 and "" in masks.values()  # "t1c.nii.gz" and "label.nii.gz", alone
        for name, core in images.items():
            path = (here / name).relative_to(folder).as_posix()
            has = lone or core in masks.values() or _core(stems[name], ()) in masks.values()
            (masked if has else plain).append(path)
    return sorted(plain), sorted(masked)


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in _PAIRED:
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
