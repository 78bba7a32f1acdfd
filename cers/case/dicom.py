"""One DICOM image series as a volume. GDCM (through SimpleITK) decodes and sorts; pydicom reads the few header fields we need."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..words import counted

_NOT_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "REG", "DOC"}
# A body region neither confirms nor contradicts an organ, so it says nothing about which references fit.
_REGIONS = {"head", "headneck", "chest", "thorax", "abdomen", "pelvis", "wholebody", "trunk", "extremity"}
_TAGS = [
    "SeriesInstanceUID",
    "Modality",
    "BodyPartExamined",
    "PatientID",
    "SeriesDescription",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "RescaleSlope",
    "RescaleIntercept",
    "NumberOfFrames",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ITK from writing warnings to stderr by itself; errors come as exceptions."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def pseudonym(patient_id: str) -> str | None:
    """A stable stand-in for a patient's identifier: the start of its SHA-256, None for an empty one."""
    text = unicodedata.normalize("NFC", str(patient_id or "").strip())  # one "ü", whether one character or two
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else None


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content; also without the preamble, as old programs wrote it and GDCM reads it.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(132)
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}).") from error
    return begin[128:] == b"DICM" or begin[:2] in (b"\x02\0", b"\x08\0") and begin[3:4] == b"\0" and begin[4:6].isalpha()


def headers(path: Path) -> dict[str, str | None]:
    """modality, body_site, patient_id (pseudonym) and name of a DICOM file; None where the file does not say."""
    data = _header(path)
    site = str(data.get("BodyPartExamined", "") or "").strip().lower()
    modality = str(data.get("Modality", "") or "").strip().upper() or None
    description = str(data.get("SeriesDescription", "") or "").strip()
    return {
        "modality": modality,
        "body_site": site if site and site not in _REGIONS else None,
        "patient_id": pseudonym(data.get("PatientID", "")),
        "name": description or f"{modality or 'DICOM'} series",
    }


def tells_spacing(path: Path) -> bool:
    """Whether a DICOM file says how large its pixels are."""
    data = _header(path)
    spacing = data.get("PixelSpacing") or _of_frame(data, 0, "PixelMeasuresSequence", "PixelSpacing")
    return bool(spacing) and all(float(mm) > 0 for mm in spacing)


def rescale_varies(files: list[str]) -> bool:
    """Whether the slices' values have different scales, as those of PET: the type that the first one needs may not hold the others."""
    data = [_header(Path(f)) for f in files]
    return len({(float(d.get("RescaleSlope") or 1), float(d.get("RescaleIntercept") or 0)) for d in data}) > 1


def check_frames(path: Path) -> None:
    """Frames of one file as slices of one volume. GDCM takes 1 mm for what it cannot make out, and goes by the first frame's scale.

    Raises:
        InputError: several frames that do not form one even, straight stack in their order, have no place, or several scales.
    """
    data = _header(path)
    count = int(data.get("NumberOfFrames") or 1)
    if count < 2 or data.get("Modality") == "NM":  # of nuclear medicine GDCM knows the older way to place frames
        return
    positions = [_of_frame(data, n, "PlanePositionSequence", "ImagePositionPatient") for n in range(count)]
    orientations = [_of_frame(data, n, "PlaneOrientationSequence", "ImageOrientationPatient") for n in range(count)]
    if any(p is None for p in [*positions, *orientations]):
        raise InputError(
            f"'{path.name}' has {count} frames without a place in the patient (a film?). Take out one frame, or save it as NRRD."
        )
    scales = {
        (
            _of_frame(data, n, "PixelValueTransformationSequence", "RescaleSlope"),
            _of_frame(data, n, "PixelValueTransformationSequence", "RescaleIntercept"),
        )
        for n in range(count)
    }
    if len(scales) > 1:
        raise InputError(f"The frames of '{path.name}' have values of different scales. Save the volume as NRRD in Slicer first.")
    _check_positions(np.array(positions, float), np.array(orientations, float))


def _of_frame(data, n: int, group: str, keyword: str):
    """A value of frame ``n`` of an enhanced DICOM file, or of all its frames; None where there is none."""
    for source, at in (("PerFrameFunctionalGroupsSequence", n), ("SharedFunctionalGroupsSequence", 0)):
        frames = data.get(source) or []
        if at < len(frames) and (found := frames[at].get(group)) and found[0].get(keyword) is not None:
            return found[0].get(keyword)
    return None


def series_files(folder: Path) -> list[str]:
    """Files of the one image series in a folder and the folders below it, sorted along the slice normal.

    Raises:
        InputError: no series; several (they are named); a header that GDCM stumbles over; slices that do not form one even, straight stack.
    """
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader
    series = {}
    for place in sorted({folder, *(p for p in folder.rglob("*") if p.is_dir())}):
        try:
            with quiet():
                found = {uid: reader.GetGDCMSeriesFileNames(str(place), uid) for uid in reader.GetGDCMSeriesIDs(str(place))}
        except RuntimeError as error:  # of what a single header holds; GDCM does not say whose
            raise InputError(
                f"'{place}' holds a DICOM file whose header makes no sense. Give the folder of one image series, exported anew."
            ) from error
        for uid, files in found.items():
            if files and headers(Path(files[0]))["modality"] not in _NOT_IMAGES:
                series[place, uid] = files
    if not series:
        raise InputError(
            f"No DICOM image series was found in '{folder}'. Give the folder that holds the files of one series, or a single image file."
        )
    if len(series) > 1:
        names = [
            f"'{headers(Path(f[0]))['name']}' ({counted(len(f), 'file')}, first '{Path(f[0]).relative_to(folder)}')"
            for f in series.values()
        ]
        raise InputError(f"'{folder}' holds {len(series)} image series: {'; '.join(sorted(names))}. Give a folder with one series only.")
    (place, uid), files = next(iter(series.items()))
    files = list(files)
    _check_left_out(place, uid, files)
    if len(files) > 1:
        _check_stack(files)
    else:
        check_frames(Path(files[0]))
    return files


def _check_left_out(place: Path, uid: str, files: list[str]) -> None:
    """GDCM leaves out without a word what it cannot read: at an end of the series nothing else would tell."""
    read = {Path(f).name for f in files}
    for path in sorted(place.iterdir()):
        if path.name in read or not path.is_file() or path.name.upper() == "DICOMDIR":
            continue
        try:
            if not is_dicom(path):
                continue
            data = _header(path)
        except (InputError, ValueError, EOFError, NotImplementedError):
            continue
        own = str(data.get("SeriesInstanceUID") or "")
        if own == uid and data.get("Rows"):
            raise InputError(f"'{path.name}' of the DICOM series cannot be read: it may end too early. Copy or export it again.")


def _header(path: Path):
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=is_dicom(path))
    except (pydicom.errors.InvalidDicomError, OSError) as error:
        raise InputError(f"'{path}' could not be read as DICOM. Check that the file is complete.") from error


def _check_stack(files: list[str]) -> None:
    """A gap, a second time point or a tilted gantry would put the mask in the wrong place: refuse them by name."""
    data = [_header(Path(f)) for f in files]
    if any(d.get("ImagePositionPatient") is None or d.get("ImageOrientationPatient") is None for d in data):
        raise InputError(
            "The DICOM files do not say where their slices lie (no ImagePositionPatient). Load a cross-sectional image series."
        )
    for field, what in (("Columns", "widths"), ("Rows", "heights"), ("PixelSpacing", "pixel sizes")):
        if len({_rounded(d.get(field)) for d in data}) > 1:
            raise InputError(f"The DICOM series mixes images of several {what}. Give a folder with one size only.")
    _check_positions(np.array([d.ImagePositionPatient for d in data], float), np.array([d.ImageOrientationPatient for d in data], float))


def _rounded(value) -> tuple[float, ...]:
    """A number or numbers of a header, to tell them apart: programs write them with more or fewer digits."""
    return tuple(round(float(v), 3) for v in np.atleast_1d([] if value is None else value))


def _check_positions(position: np.ndarray, orientation: np.ndarray) -> None:
    """position: (n, 3), orientation: (n, 6) of the slices in the order in which they are read."""
    if np.abs(orientation - orientation[0]).max() > 1e-3:
        raise InputError("The DICOM series mixes slices of several orientations (a localizer?). Give a folder with one orientation only.")
    normal = np.cross(orientation[0, :3], orientation[0, 3:])
    step = np.diff(position, axis=0)
    along = step @ normal
    median = float(np.median(np.abs(along)))
    if np.diff(np.sort(position @ normal)).min() < 1e-3:  # among such images, the order is not that of their places
        raise InputError("The DICOM series has several images at one position (time points or b-values). Take out one of them first.")
    if along.min() < 0 < along.max():
        raise InputError(
            "The DICOM slices are not stored in the order in which they lie. Load them in Slicer, and save them as NRRD first."
        )
    if np.abs(np.abs(along) - median).max() > 0.1 * median:
        raise InputError(
            f"The DICOM slices are not evenly spaced ({np.abs(along).min():.2f} to {np.abs(along).max():.2f} mm apart): "
            "one may be missing. Complete the series, or resample it in Slicer first."
        )
    if np.abs(step - along[:, None] * normal).max() > 0.05 * median:
        raise InputError(
            "The DICOM slices are sheared against each other (tilted gantry). Load the series in Slicer, which corrects this, "
            "and save it as NRRD first."
        )
