"""DICOM series and files of several frames that would be read with a wrong size, place or scale without a word."""

from __future__ import annotations

import warnings

import numpy as np
import pydicom
import pytest
from test_case_io import dicom_series

from cers.case.identity import identifying
from cers.case.io import pseudonym, read_volume
from cers.errors import InputError

PLACES = [(0, 0, 3 * n) for n in range(4)]


def edited(folder, n, **fields):
    """Slice ``n`` of a series with fields set, or removed where None."""
    data = pydicom.dcmread(folder / f"{n}.dcm")
    for name, value in fields.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(folder / f"{n}.dcm")


def enhanced(folder, heights, *, slopes=None, measures=True, places=True):
    """One enhanced MR file of frames at these heights in mm."""
    dicom_series(folder, [(0, 0, 0)])
    data = pydicom.dcmread(folder / "0.dcm")
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(data, name)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    data.NumberOfFrames = len(heights)
    data.PixelData = np.concatenate([np.arange(80, dtype=np.uint16) + 100 * n for n in range(len(heights))]).tobytes()

    def group(**fields):
        item = pydicom.Dataset()
        for name, value in fields.items():
            setattr(item, name, value)
        return pydicom.Sequence([item])

    shared = {"PlaneOrientationSequence": group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])}
    if measures:
        shared["PixelMeasuresSequence"] = group(PixelSpacing=[0.5, 0.75], SliceThickness=3)
    data.SharedFunctionalGroupsSequence = group(**shared)
    frames = []
    for n, height in enumerate(heights):
        own = {"PlanePositionSequence": group(ImagePositionPatient=[0, 0, height])} if places else {}
        if slopes:
            own["PixelValueTransformationSequence"] = group(RescaleSlope=slopes[n], RescaleIntercept=0, RescaleType="US")
        frames += group(**own)
    data.PerFrameFunctionalGroupsSequence = pydicom.Sequence(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(folder / "0.dcm", enforce_file_format=True)
    return folder / "0.dcm"


@pytest.mark.parametrize("heights", [(0, 3, 6, 9), (9, 5, 1, -3)])
def test_frames_of_one_file_lie_where_it_says(tmp_path, heights):
    file = enhanced(tmp_path / "s", heights)
    for path in (file, file.parent):
        volume = read_volume(path)
        assert np.allclose([volume.geometry.ras((0, 0, n))[2] for n in range(4)], heights) and volume.spacing_known
        assert np.allclose(volume.geometry.spacing, (0.75, 0.5, abs(heights[1] - heights[0])))
        assert [int(s.min()) for s in volume.array] == [0, 100, 200, 300]


@pytest.mark.parametrize(
    "heights, more, words",
    [
        ((0, 3, 9, 12), {}, "not evenly spaced"),
        ((0, 6, 3, 9), {}, "not stored in the order"),
        ((0, 3, 0, 3), {}, "one position"),
        ((0, 3, 6), {"places": False}, "3 frames without a place"),
        ((0, 3, 6), {"slopes": (1, 2, 3)}, "different scales"),
    ],
)
def test_frames_that_form_no_volume_are_refused(tmp_path, heights, more, words):
    file = enhanced(tmp_path / "s", heights, **more)
    for path in (file, file.parent):
        with pytest.raises(InputError, match=words):
            read_volume(path)


def test_slices_without_a_size_of_their_pixels_have_none(tmp_path):
    """The reader puts in 1 mm, by which a volume in ml would be told that nobody measured."""
    assert not read_volume(dicom_series(tmp_path / "a", PLACES, spacing=())).spacing_known
    assert not read_volume(enhanced(tmp_path / "b", (0, 3, 6), measures=False)).spacing_known
    assert read_volume(dicom_series(tmp_path / "c", PLACES, spacing=(1.0, 1.0))).spacing_known


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"PixelSpacing": [0.7, 0.75]}, "several pixel sizes"),
        ({"Rows": 4, "PixelData": bytes(80)}, "several heights"),
    ],
)
def test_slices_of_several_sizes_are_refused(tmp_path, fields, words):
    folder = dicom_series(tmp_path / "s", PLACES)
    edited(folder, 2, **fields)
    with pytest.raises(InputError, match=words):
        read_volume(folder)


def test_a_size_written_with_more_digits_is_the_same_one(tmp_path):
    folder = dicom_series(tmp_path / "s", PLACES)
    edited(folder, 2, PixelSpacing=["0.50", "0.7500001"])
    assert read_volume(folder).spacing_known


def test_a_second_time_point_is_called_so(tmp_path):
    """Among images at one position the files are not sorted by it, which read as a missing slice."""
    with pytest.raises(InputError, match="several images at one position"):
        read_volume(dicom_series(tmp_path / "s", PLACES + PLACES))


def test_each_slice_has_its_own_scale(tmp_path):
    folder = dicom_series(tmp_path / "s", PLACES)
    for n in (1, 2, 3):
        edited(folder, n, RescaleSlope=str(n + 0.5), RescaleIntercept="-1024")
    volume = read_volume(folder)
    for n, part in enumerate(volume.array):
        grey = np.arange(80).reshape(8, 10) + 100 * n
        assert np.allclose(part, grey * (n + 0.5) - 1024 if n else grey)


@pytest.mark.parametrize("n", [0, 3])
def test_a_slice_at_the_end_of_a_series_that_was_cut_is_not_left_out(tmp_path, n):
    folder = dicom_series(tmp_path / "s", PLACES)
    (folder / "notes.txt").write_text("no image")
    assert read_volume(folder).geometry.shape[0] == 4
    file = folder / f"{n}.dcm"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"'{n}.dcm' of the DICOM series cannot be read"):
        read_volume(folder)


def test_a_header_that_makes_no_sense_is_told_so(tmp_path):
    folder = dicom_series(tmp_path / "s", PLACES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edited(folder, 2, SamplesPerPixel=2)  # GDCM raises for the whole folder
    with pytest.raises(InputError, match="DICOM file whose header makes no sense"):
        read_volume(tmp_path)


def test_files_without_the_preamble_are_dicom_too(tmp_path):
    """GDCM reads them; what they say of the person and of their pixels must not be passed over."""
    folder = dicom_series(tmp_path / "s", PLACES)
    for n in range(4):
        (folder / f"{n}").write_bytes((folder / f"{n}.dcm").read_bytes()[132:])
        (folder / f"{n}.dcm").unlink()
    for path in (folder, folder / "0"):
        volume = read_volume(path)
        assert (volume.modality, volume.patient_id) == ("MR", pseudonym("DOE^JANE-17")) and volume.spacing_known
        assert identifying(path)["PatientID"].startswith("DOE")


def test_a_file_that_cannot_be_opened_is_told_so(tmp_path, monkeypatch):
    folder = dicom_series(tmp_path / "s", PLACES[:1])

    def denied(*_arguments, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(InputError, match="cannot be read .Permission denied"):
        read_volume(folder / "0.dcm")
