"""Header fields that may tell who the patient is, in every kind of file."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset

from cers.case.identity import identifying
from cers.errors import InputError


def test_other_formats(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    for key, value in (("PatientName", "Doe^Jane"), ("descrip", "scan of J. Doe"), ("scanner", "quick")):
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    assert identifying(tmp_path / "a.nrrd") == {"PatientName": "Doe^Jane", "descrip": "scan of J. Doe"}
    sitk.WriteImage(image, str(tmp_path / "a.nii"))
    assert identifying(tmp_path / "a.nii") == {}
    header = bytearray((tmp_path / "a.nii").read_bytes())
    header[148:162] = b"scan of J. Doe"  # where NIfTI has its free text
    (tmp_path / "a.nii").write_bytes(header)
    assert identifying(tmp_path / "a.nii") == {"descrip": "scan of J. Doe"}
    plain = sitk.GetImageFromArray(np.zeros((4, 5), np.uint8))
    sitk.WriteImage(plain, str(tmp_path / "a.png"))
    assert identifying(tmp_path / "a.png") == {}
    (tmp_path / "b.nrrd").write_text("broken")
    with pytest.raises(InputError):
        identifying(tmp_path / "b.nrrd")


def test_dicom(tmp_path):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.PatientName, data.PatientID, data.StudyDate, data.Modality, data.OperatorsName = "Doe^Jane", "4711", "20200102", "MR", ""
    (tmp_path / "study" / "deep").mkdir(parents=True)
    (tmp_path / "study" / "readme.txt").write_text("no image")
    data.save_as(tmp_path / "study" / "deep" / "IM1")
    assert identifying(tmp_path / "study") == {"PatientName": "Doe^Jane", "PatientID": "4711", "StudyDate": "20200102"}
    (tmp_path / "empty").mkdir()
    assert identifying(tmp_path / "empty") == {}
