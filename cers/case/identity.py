"""What the header of an image says of the person: fields that are shown to the user before an import, and dropped."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from ..errors import InputError
from .dicom import is_dicom, quiet

# keywords of DICOM that name the person, the people around, or the event
DICOM_FIELDS = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "OtherPatientIDs",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientAge",
    "PatientSex",
    "PatientAddress",
    "PatientTelephoneNumbers",
    "PatientComments",
    "EthnicGroup",
    "Occupation",
    "MedicalRecordLocator",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "InstitutionName",
    "InstitutionAddress",
    "StationName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "RequestingPhysician",
    "StudyDescription",
    "ImageComments",
)
_TELLING = re.compile(
    r"patient|name|birth|date|address|physician|operator|institution|accession|comment|descrip|aux_file|subject|person", re.I
)
_TECHNICAL = re.compile(r"intent_name|form_code|ITK_|NRRD_|DICOM_.*(slope|spacing)", re.I)
_LONGEST = 120  # characters of a value that are shown


def identifying(path: str | PathLike) -> dict[str, str]:
    """Header fields of an image file or DICOM folder that may tell who the patient is: name -> value, without empty ones.

    Pixels are not looked at: a name that is burnt into the picture is not found.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():  # of a series any file will do
        first = next((p for p in sorted(path.rglob("*")) if p.is_file() and _is_dicom(p)), None)
        return {} if first is None else _dicom(first)
    return _dicom(path) if _is_dicom(path) else _other(path)


def _is_dicom(path: Path) -> bool:
    return is_dicom(path) or path.suffix.lower() == ".dcm"


def _dicom(path: Path) -> dict[str, str]:
    import pydicom

    try:
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(DICOM_FIELDS), force=is_dicom(path))
        return {name: text for name in DICOM_FIELDS if (text := _text(data.get(name)))}
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"'{path}' could not be read as DICOM. Check that the file is complete.") from error


def _other(path: Path) -> dict[str, str]:
    """NIfTI, NRRD, MetaImage and pictures: free fields whose name or place is one where names are found."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet():
            reader.ReadImageInformation()
            return {
                key: text
                for key in reader.GetMetaDataKeys()
                if _TELLING.search(key) and not _TECHNICAL.search(key)
                if (text := _text(reader.GetMetaData(key)))
            }
    except RuntimeError as error:
        raise InputError(f"'{path}' could not be read as an image. Check that the file is complete.") from error


def _text(value) -> str:
    text = "" if value is None else " ".join(str(value).encode("utf-8", "replace").decode().split()).strip("^[]' ")
    return text[:_LONGEST]
