"""What is to be evaluated: images with their expert masks, by file name, and what a table knows of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np

from ..case import Volume
from ..case.io import PICTURES, pseudonym, read_mask, read_volume
from ..errors import InputError
from ..files import existing_folder
from ..pool.dicom import read_dicom_seg
from ..pool.importer import pair
from ..pool.table import COLUMNS, OF_SETS, image_name, read_rows


@dataclass(frozen=True)
class Item:
    """One image to be evaluated. prediction: a mask made before, None if a model is to make it. patient: pseudonym.
    split: what the table says, in lower case."""

    name: str
    image: Path
    mask: Path
    prediction: Path | None = None
    patient: str | None = None
    group: str | None = None
    diagnosis: str | None = None
    modality: str | None = None
    body_site: str | None = None
    split: str | None = None

    @property
    def picture(self) -> bool:
        return self.image.suffix.lower() in PICTURES

    def read(self) -> Volume:
        """The image; its patient is the table's, else the file's. Raises InputError as ``read_volume`` does."""
        volume = read_volume(self.image, modality=self.modality, body_site=self.body_site)
        return replace(volume, patient_id=self.patient or volume.patient_id)

    def kin(self, volume: Volume) -> list[str]:
        """What the image may share with related ones: its group and its patient, as far as they are known."""
        return [*filter(None, [self.group, volume.patient_id and f"patient {volume.patient_id}"])]


@dataclass(frozen=True)
class Found:
    """The pairs; left: name -> why a file is not evaluated; untold: images that the table does not list (0 without a table)."""

    items: list[Item]
    left: dict[str, str]
    untold: int = 0


def find_items(
    images: str | PathLike,
    masks: str | PathLike,
    *,
    predictions: str | PathLike | None = None,
    csv: str | PathLike | None = None,
    modality: str | None = None,
    body_site: str | None = None,
) -> Found:
    """Pairs of image and expert mask of two folders (which may be one), as ``cers pool import`` pairs them.

    Args:
        predictions: folder of masks made before, named as the images. csv: table with ``image`` and any of patient, group, diagnosis,
            modality, body_site; lines of images that are not in the folder are passed over.
        modality, body_site: of images of which the table does not say it.

    Raises:
        InputError: a folder or the table cannot be used, the table lists none of the images or one in other letters (A for a), no pair,
            a prediction is the expert mask itself, or pictures and volumes together.
    """
    asked = {"images": images, "expert masks": masks, "predictions": predictions}
    folders = [existing_folder(path, what) for what, path in asked.items() if path is not None]
    pairs, left = pair(folders[0], folders[1])
    made: dict[str, Path] = {}
    if predictions is not None:
        made_pairs, wrong = pair(folders[0], folders[2], mixed=folders[0].resolve() == folders[1].resolve())
        made = {name: files[1] for name, files in made_pairs.items()}
        for name, message in wrong.items():
            if name in pairs:
                left[name] = message.replace("there is no mask of this name. Add one", "there is no prediction of this name. Add one")
            elif name not in left:
                left[name] = message.replace("this mask", "this prediction")
    rows = {}
    for row in read_rows(Path(csv), COLUMNS + OF_SETS)[1] if csv is not None else ():
        name = image_name(row.image)
        if row.problem or name in rows:
            raise InputError(f"Line {row.line} of the table: {row.problem or f'{row.image} is listed twice.'}")
        rows[name] = row.values
    if csv is not None and pairs and not set(rows) & set(pairs):
        listed = f"it names {next(iter(rows))}" if rows else "it names none"
        raise InputError(
            f"The table {Path(csv).name} lists none of the images: {listed}, while an image is called {min(pairs)}. Write the names of the "
            "image files into its column 'image', without folders."
        )
    spelled = {name.casefold(): name for name in rows if name not in pairs}
    if near := next(((n, spelled[n.casefold()]) for n in sorted(pairs) if n not in rows and n.casefold() in spelled), None):
        raise InputError(
            f"The table {Path(csv).name} lists {near[1]}, while an image is called {near[0]}, so that its patient and group would not be "
            "known. Write it so."
        )
    items = []
    for name, (image, mask) in sorted(pairs.items()):
        if name in left:
            continue
        known = rows.get(name, {})
        items.append(
            Item(
                name,
                image,
                mask,
                made.get(name),
                pseudonym(known.get("patient", "")),
                known.get("group"),
                known.get("diagnosis"),
                known.get("modality", modality),
                known.get("body_site", body_site),
                known.get("split", "").lower() or None,
            )
        )
    if not items:
        raise InputError(
            f"No image in {images} has an expert mask{' and a prediction' if predictions is not None else ''} of its name. "
            "Name them alike: case7.nii.gz and case7.nii.gz or case7_mask.nii.gz."
        )
    if own := next((i for i in items if i.prediction is not None and i.prediction.samefile(i.mask)), None):
        raise InputError(
            f"The prediction of {own.name} is its expert mask itself ({own.mask}), which would agree with itself. Give the folder of the "
            "masks that the other program made."
        )
    kinds = {item.picture: item.name for item in items}
    if len(kinds) == 2:
        raise InputError(
            f"The folder holds pictures ({kinds[True]}) and volumes ({kinds[False]}), which are measured in pixels and in mm. "
            "Evaluate them one after the other."
        )
    return Found(items, dict(sorted(left.items())), sum(i.name not in rows for i in items) if csv is not None else 0)


def read_labels(path: Path, volume: Volume, image: Path, one_by_one: bool = False) -> tuple[np.ndarray, dict[int, str]]:
    """A mask file on the volume's grid, as ``read_mask``; a .dcm file is read as DICOM SEG of the image. one_by_one: labels stay apart."""
    if path.suffix.lower() == ".dcm":
        return read_dicom_seg(path, volume.geometry, series=image)
    return read_mask(path, volume.geometry, apart=one_by_one)
