"""DICOM SEG: the real file, and the ways in which such files differ."""

from __future__ import annotations

import shutil
import sys

import numpy as np
import pydicom
import pytest

from cers.case import Geometry
from cers.case.io import read_mask, read_volume
from cers.errors import InputError
from cers.pool import Pool, import_dicom, import_folder
from cers.pool.dicom import place, read_dicom_seg


@pytest.fixture(scope="module")
def liver(cers_data):
    folder = cers_data / "volumes" / "liver_ct_dicom"
    return folder / "ct", folder / "liver_seg.dcm", folder / "liver_seg.nrrd"


@pytest.fixture(scope="module")
def volume(liver):
    return read_volume(liver[0])


def make_seg(liver, volume, path, masks, kind="BINARY"):
    """A new DICOM SEG over the real series. masks: (k, j, i, segments) on the volume's grid."""
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept

    sources = [pydicom.dcmread(f) for f in sorted(liver[0].glob("*.dcm"))]
    for source in sources:
        source.SpecificCharacterSet, source.PatientName = "ISO_IR 192", "Test^Patient"  # the writer is strict about what it copies
    view = np.linalg.inv(volume.geometry.ijkToRAS)
    positions = [np.array([*s.ImagePositionPatient, 1.0], float) * (-1, -1, 1, 1) for s in sources]
    order = [int(round((view @ p)[2])) for p in positions]
    code = CodedConcept("49755003", "SCT", "Morphologically Abnormal Structure")
    by_hand = hd.seg.SegmentAlgorithmTypeValues.MANUAL
    described = [hd.seg.SegmentDescription(n + 1, f"Läsion {n + 1}", code, code, by_hand) for n in range(masks.shape[3])]
    seg = hd.seg.Segmentation(
        sources,
        masks[order],
        kind,
        described,
        hd.UID(),
        1,
        hd.UID(),
        1,
        "m",
        "m",
        "1",
        "1",
        omit_empty_frames=True,
        **({"max_fractional_value": 200} if kind == "FRACTIONAL" else {}),
    )
    seg.save_as(path)
    return path


def test_real_segmentation_agrees_with_its_nrrd_twin(liver, volume):
    mask, labels = read_dicom_seg(liver[1], volume.geometry, series=liver[0])
    twin, _ = read_mask(liver[2], volume.geometry)
    assert labels == {1: "Liver"} and mask.dtype == np.uint8 and np.array_equal(mask > 0, twin > 0) and mask.sum() > 100_000


def test_real_import(liver, volume, tmp_path):
    with Pool.create(tmp_path) as pool:
        ids = import_dicom(pool, liver[0], liver[1], body_site="liver", diagnosis="normal")
        cases = [pool.get(i) for i in ids]
        assert len(ids) == 3 and pool.verify() == []
        assert all((c.modality, c.body_site, c.plane, c.labels) == ("CT", "liver", "axial", {1: "Liver"}) for c in cases)
        assert cases[0].spacing == pytest.approx((0.810547, 0.810547)) and cases[0].volume_id == volume.volume_id
        for c in cases:
            rows, columns = np.nonzero(c.mask)
            assert c.image[c.mask > 0].mean() > 0 and columns.mean() < 256, "the liver is soft tissue on the picture's left"
        text = str(pool.list()) + str([pool.history(i) for i in ids])
        header = pydicom.dcmread(next(liver[0].glob("*.dcm")), stop_before_pixels=True)
        assert str(header.PatientName or "-none-") not in text and str(header.PatientID or "-none-") not in text


def test_folder_import_takes_dicom_series_and_seg(liver, tmp_path):
    shutil.copytree(liver[0], tmp_path / "i" / "case7")
    (tmp_path / "m").mkdir()
    shutil.copy(liver[1], tmp_path / "m" / "case7.dcm")
    with Pool.create(tmp_path / "pool") as pool:
        report = import_folder(pool, tmp_path / "i", tmp_path / "m", defaults={"modality": "MR", "body_site": "liver"})
        assert not report.faults and len(report.ids) == 3
        assert {(c["modality"], c["body_site"]) for c in pool.list()} == {("CT", "liver")}, "what the image says itself stands"


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_encodings_segments_and_missing_frames(liver, volume, tmp_path, kind):
    masks = np.zeros((*volume.geometry.shape, 2), np.uint8)
    masks[1, 100:120, 200:240, 0] = 1  # a lesion in the middle slice only
    masks[1, 150:160, 90:95, 1] = 1
    given = masks if kind != "FRACTIONAL" else masks * np.float32(0.75)
    path = make_seg(liver, volume, tmp_path / "s.dcm", given, kind)
    mask, labels = read_dicom_seg(path, volume.geometry, series=liver[0])
    assert labels == {1: "Läsion 1", 2: "Läsion 2"} and np.array_equal(mask, masks[..., 0] + 2 * masks[..., 1])


def test_overlapping_segments(liver, volume, tmp_path):
    masks = np.zeros((*volume.geometry.shape, 2), np.uint8)
    masks[:, 100:140, 200:240, 0] = 1
    masks[:, 110:120, 210:220, 1] = 1
    mask, _ = read_dicom_seg(make_seg(liver, volume, tmp_path / "s.dcm", masks), volume.geometry)
    assert np.array_equal(mask, np.where(masks[..., 1], 2, masks[..., 0]))


def test_flipped_and_permuted_grids_are_met(liver, volume):
    """The same image with its axes in another order: the outlines still lie at the same place in the patient."""
    mask, _ = read_dicom_seg(liver[1], volume.geometry)
    g = volume.geometry
    matrix = g.ijkToRAS @ np.array([[0, -1, 0, g.shape[2] - 1], [1, 0, 0, 0], [0, 0, -1, g.shape[0] - 1], [0, 0, 0, 1]])
    turned = Geometry(matrix, (g.shape[0], g.shape[2], g.shape[1]))
    other, _ = read_dicom_seg(liver[1], turned)
    assert np.array_equal(np.flip(other, (0, 1)).transpose(0, 2, 1), mask)


def test_outlines_off_the_image_are_refused(liver, volume):
    g = volume.geometry
    moved = g.ijkToRAS.copy()
    moved[0, 3] += 0.3
    with pytest.raises(InputError, match="do not lie on the image's pixels"):
        read_dicom_seg(liver[1], Geometry(moved, g.shape))
    with pytest.raises(InputError, match="do not lie on"):
        read_dicom_seg(liver[1], Geometry(g.ijkToRAS @ np.diag([2, 2, 1, 1]), g.shape))
    with pytest.raises(InputError, match="beyond the image"):
        read_dicom_seg(liver[1], Geometry(g.ijkToRAS, (2, *g.shape[1:])))
    assert not place(np.zeros((2, 2, 2), np.uint8), g, g, "x").any()


def test_files_that_are_no_segmentation(liver, volume, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_dicom_seg(tmp_path / "none.dcm", volume.geometry)
    (tmp_path / "text.dcm").write_text("no DICOM")
    data = liver[1].read_bytes()
    (tmp_path / "cut.dcm").write_bytes(data[: len(data) // 2])
    (tmp_path / "head.dcm").write_bytes(data[:2000])
    for path in (tmp_path / "text.dcm", next(liver[0].glob("*.dcm")), tmp_path / "cut.dcm", tmp_path / "head.dcm", tmp_path):
        with pytest.raises(InputError):
            read_dicom_seg(path, volume.geometry)


def test_another_patients_outline_is_refused(liver, volume, tmp_path):
    seg = pydicom.dcmread(liver[1])
    seg.FrameOfReferenceUID = "1.2.3.4"
    seg.save_as(tmp_path / "other.dcm")
    with pytest.raises(InputError, match="another examination"):
        read_dicom_seg(tmp_path / "other.dcm", volume.geometry, series=liver[0])


def test_a_segmentation_is_not_read_as_a_stack_of_its_frames(liver, volume, tmp_path):
    """Its frames are those of all segments one after the other: three of them fit the grid of three slices."""
    masks = np.zeros((*volume.array.shape, 2), np.uint8)
    masks[:, 10:20, 10:20, 0], masks[:1, 30:40, 30:50, 1] = 1, 1
    masks[2] = 0
    file = make_seg(liver, volume, tmp_path / "seg", masks)
    mask, _ = read_dicom_seg(file, volume.geometry)
    assert np.array_equal(mask, masks[..., 0] + 2 * masks[..., 1])
    for path in (file, liver[1]):
        with pytest.raises(InputError, match="is a DICOM segmentation"):
            read_mask(path, volume.geometry)
    with pytest.raises(InputError, match="is a folder"):
        read_mask(liver[0], volume.geometry)


def test_without_highdicom_the_way_out_is_told(monkeypatch, tmp_path):
    """Slicer 5.10 has no highdicom that CERS can use."""
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match="seg.dcm is a DICOM segmentation.*highdicom.*seg.nrrd"):
        read_dicom_seg(tmp_path / "seg.dcm", Geometry(np.eye(4), (1, 2, 2)))
