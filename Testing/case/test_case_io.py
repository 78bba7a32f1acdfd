"""Images and masks as files: what is read, what is refused, and that voxels stay where they are in the patient."""

from __future__ import annotations

import os
import stat
import struct
import warnings

import numpy as np
import pytest
import SimpleITK as sitk
from grids import GRIDS, OBLIQUE, SHAPE, affine, painted

from cers.case import Geometry, PlaneView
from cers.case.io import atomic_path, pseudonym, read_mask, read_volume, write_image, write_segmentation
from cers.case.terminology import label_style, label_styles
from cers.errors import InputError

FORMATS = (".seg.nrrd", ".nrrd", ".nii.gz", ".mha")
GREY = np.random.default_rng(1).integers(0, 1000, SHAPE).astype(np.int16)


def ras_of(path) -> tuple[np.ndarray, np.ndarray]:
    """Array and RAS affine by ITK alone."""
    image = sitk.ReadImage(str(path))
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), np.diag([-1, -1, 1, 1]) @ lps


def centre(mask: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    k, j, i = np.argwhere(mask).mean(0)
    return (matrix @ (i, j, k, 1))[:3]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", GRIDS)
def test_a_mask_stays_where_it_was_painted(tmp_path, name, suffix):
    mask, world = painted(GRIDS[name])
    geometry = Geometry(GRIDS[name], SHAPE)
    write_segmentation(tmp_path / f"m{suffix}", mask, geometry, {1: "tumor"})
    array, matrix = ras_of(tmp_path / f"m{suffix}")
    assert np.array_equal(array, mask)
    assert np.abs(centre(array, matrix) - world).max() < 1e-3
    assert np.abs(matrix - GRIDS[name]).max() < (1e-4 if suffix == ".nii.gz" else 1e-9)
    back, labels = read_mask(tmp_path / f"m{suffix}", geometry)
    assert np.array_equal(back, mask) and list(labels) == [1]


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
@pytest.mark.parametrize("name", GRIDS)
def test_an_image_is_read_where_it_lies(tmp_path, name, suffix):
    geometry = Geometry(GRIDS[name], SHAPE)
    write_image(tmp_path / f"v{suffix}", GREY, geometry)
    volume = read_volume(tmp_path / f"v{suffix}")
    assert volume.geometry.same_grid(geometry, 1e-3) and np.array_equal(volume.array, GREY)
    assert volume.name == "v" and volume.spacing_known and volume.volume_id


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)])
def test_a_mask_with_turned_axes_is_put_into_the_images_order(tmp_path, order, flips):
    """The same physical grid, stored with its axes permuted and flipped by another program."""
    matrix = GRIDS["oblique left-handed"]
    mask, world = painted(matrix)
    stored = np.transpose(mask, order)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    own = np.eye(4)
    start = np.zeros(3)
    for axis in range(3):
        column, source = 2 - axis, 2 - order[axis]
        own[:3, column] = matrix[:3, source] * (-1 if flips[axis] else 1)
        start[source] = mask.shape[order[axis]] - 1 if flips[axis] else 0
    own[:3, 3] = (matrix @ (*start, 1))[:3]
    assert np.abs(centre(stored, own) - world).max() < 1e-9
    write_segmentation(tmp_path / "m.nrrd", stored, Geometry(own, stored.shape), {1: "tumor"})
    back, _ = read_mask(tmp_path / "m.nrrd", Geometry(matrix, SHAPE))
    assert np.array_equal(back, mask)


@pytest.mark.parametrize("change", ["shift", "spacing", "turn", "crop"])
def test_a_mask_of_another_grid_is_refused(tmp_path, change):
    matrix, shape = np.array(GRIDS["oblique"]), SHAPE
    other, own = matrix.copy(), shape
    if change == "shift":
        other[:3, 3] += 0.3 * matrix[:3, 0]
    elif change == "spacing":
        other[:3, 1] *= 1.02
    elif change == "turn":
        other[:3, :3] = affine(OBLIQUE)[:3, :3] @ matrix[:3, :3]
    else:
        own = (9, 14, 10)
    write_segmentation(tmp_path / "m.nrrd", np.ones(own, np.uint8), Geometry(other, own), {1: "x"})
    with pytest.raises(InputError, match="another grid"):
        read_mask(tmp_path / "m.nrrd", Geometry(matrix, shape))


def test_a_cropped_segmentation_goes_back_into_the_full_grid(tmp_path):
    matrix = np.array(GRIDS["oblique"])
    mask, _ = painted(matrix)
    cut = (slice(4, 9), slice(5, 13), slice(0, 8))
    own = matrix.copy()
    own[:3, 3] = (matrix @ (0, 5, 4, 1))[:3]
    write_segmentation(tmp_path / "m.seg.nrrd", mask[cut], Geometry(own, mask[cut].shape), {1: "tumor"})
    back, labels = read_mask(tmp_path / "m.seg.nrrd", Geometry(matrix, SHAPE))
    assert np.array_equal(back, mask) and labels == {1: "tumor"}
    outside = np.ones((9, 14, 11), np.uint8)
    own[:3, 3] = (matrix @ (3, 0, 0, 1))[:3]
    write_segmentation(tmp_path / "out.seg.nrrd", outside, Geometry(own, outside.shape), {1: "tumor"})
    with pytest.raises(InputError, match="another grid"):
        read_mask(tmp_path / "out.seg.nrrd", Geometry(matrix, SHAPE))


def test_what_is_no_single_scalar_volume_is_refused(tmp_path):
    base = np.zeros((4, 5, 6, 7), np.float32)
    base[1:] = np.random.default_rng(0).random((3, 5, 6, 7))
    sitk.WriteImage(sitk.GetImageFromArray(base, isVector=False), str(tmp_path / "four.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(base, isVector=True), str(tmp_path / "vector.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(np.full((4, 5, 6), 3, np.int16)), str(tmp_path / "flat.nrrd"))
    bad = base[1].copy()
    bad[0, 0, 0] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(bad), str(tmp_path / "nan.nrrd"))
    (tmp_path / "text.nrrd").write_text("not an image")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    bad[0, 0, 0] = np.finfo(np.float32).min  # as some formats mark missing voxels
    sitk.WriteImage(sitk.GetImageFromArray(bad), str(tmp_path / "fill.nrrd"))
    whole = (tmp_path / "nan.nrrd").read_bytes()
    (tmp_path / "cut.nrrd").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder").mkdir()
    for name, words in {
        "four.nii.gz": "4-D",
        "vector.nrrd": "values per voxel",
        "flat.nrrd": "same value",
        "nan.nrrd": "not numbers",
        "fill.nrrd": "as large as -3.4e\\+38",
        "text.nrrd": "could not be read",
        "empty.nii.gz": "empty file",
        "cut.nrrd": "could not be read",
        "missing.nrrd": "does not exist",
        "folder": "No DICOM",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            read_volume(tmp_path / name)
        assert "\n" not in str(caught.value)
    write_segmentation(tmp_path / "s.seg.nrrd", np.ones((2, 3, 4)), Geometry(np.eye(4), (2, 3, 4)), {1: "a"})
    with pytest.raises(InputError, match="is a segmentation"):
        read_volume(tmp_path / "s.seg.nrrd")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".hdr", ".img", ".img.gz"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_what_a_nifti_file_leaves_open_is_no_tissue_of_a_ct(tmp_path, suffix, kind):
    """Its reader takes 0 for NaN: dark in an MR, but water in a CT."""
    array = np.where(GREY > GREY.mean(), 40, -1000).astype(kind)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"whole{suffix}"))
    assert np.array_equal(read_volume(tmp_path / f"whole{suffix}", modality="CT").array, array)
    for value in (np.nan, np.inf):
        array[-1, -1, -1] = value
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"ct{suffix}"))
        sitk.WriteImage(sitk.GetImageFromArray(array + 1000), str(tmp_path / f"mr{suffix}"))
        for modality in ("CT", None):
            with pytest.raises(InputError, match=f"'ct{suffix}' contains voxels that are not numbers .* would count as tissue"):
                read_volume(tmp_path / f"ct{suffix}", modality=modality)
        assert read_volume(tmp_path / f"mr{suffix}", modality="MR").array[-1, -1, -1] == 0


def test_a_four_dimensional_file_with_one_volume_is_fine(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(GREY[None], isVector=False), str(tmp_path / "one.nii.gz"))
    assert read_volume(tmp_path / "one.nii.gz").array.shape == SHAPE


def test_a_sheared_nifti_header_is_refused_in_words(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(GREY), str(tmp_path / "shear.nii"))
    header = bytearray((tmp_path / "shear.nii").read_bytes())
    struct.pack_into("<hh", header, 252, 0, 1)  # sform only
    struct.pack_into("<12f", header, 280, -1, -0.4, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0)
    (tmp_path / "shear.nii").write_bytes(header)
    with pytest.raises(InputError, match="sheared"):
        read_volume(tmp_path / "shear.nii")


def test_a_sheared_grid_is_written_exactly_or_not_at_all(tmp_path):
    matrix = np.eye(4)
    matrix[0, 1] = 0.4
    mask, world = painted(matrix)
    for suffix in (".seg.nrrd", ".nrrd", ".mha"):
        write_segmentation(tmp_path / f"m{suffix}", mask, Geometry(matrix, SHAPE), {1: "tumor"})
        array, found = ras_of(tmp_path / f"m{suffix}")
        assert np.abs(centre(array, found) - world).max() < 1e-6
    with pytest.raises(InputError, match="sheared"):
        write_segmentation(tmp_path / "m.nii.gz", mask, Geometry(matrix, SHAPE), {1: "tumor"})
    assert not (tmp_path / "m.nii.gz").exists()


def test_pictures_are_shown_as_they_lie(tmp_path):
    grey = np.random.default_rng(2).integers(0, 255, (37, 51)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(grey), str(tmp_path / "a.png"))
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([grey] * 3, -1), isVector=True), str(tmp_path / "rgb.png"))
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([grey] * 4, -1), isVector=True), str(tmp_path / "rgba.png"))
    for name in ("a.png", "rgb.png", "rgba.png"):
        volume = read_volume(tmp_path / name)
        assert not volume.spacing_known
        assert np.array_equal(PlaneView(volume.geometry, "axial").slices(volume.array)[0], grey)


@pytest.mark.parametrize("values, expected", [((0, 1), (0, 1)), ((0, 255), (0, 1)), ((0, 1, 2), (0, 1, 2)), ((3, 250), (0, 1))])
def test_mask_pictures_of_every_habit(tmp_path, values, expected):
    picture = np.zeros((20, 30), np.uint8)
    for n, value in enumerate(values):
        picture[:, n * 10 :] = value
    sitk.WriteImage(sitk.GetImageFromArray(picture), str(tmp_path / "m.png"))
    mask, _ = read_mask(tmp_path / "m.png", Geometry(np.diag([-1, -1, 1, 1]), (1, 20, 30)))
    assert tuple(np.unique(mask)) == expected


def test_mask_pictures_with_labels_as_grey_levels_are_refused(tmp_path):
    picture = np.zeros((20, 30), np.uint8)
    picture[5:10, 5:15], picture[12:18, 5:15] = 128, 255
    sitk.WriteImage(sitk.GetImageFromArray(picture), str(tmp_path / "m.png"))
    with pytest.raises(InputError, match="grey levels"):
        read_mask(tmp_path / "m.png", Geometry(np.diag([-1, -1, 1, 1]), (1, 20, 30)))


@pytest.mark.parametrize(
    "array, words",
    [
        (np.full((2, 3, 4), 1.5, np.float32), "whole numbers"),
        (np.full((2, 3, 4), -1, np.int16), "0..255"),
        (np.full((2, 3, 4), 300, np.int16), "0..255"),
        (np.full((2, 3, 4), np.nan, np.float32), "whole numbers"),
    ],
)
def test_masks_that_are_no_label_maps_are_refused(tmp_path, array, words):
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "m.nrrd"))
    with pytest.raises(InputError, match=words):
        read_mask(tmp_path / "m.nrrd", Geometry(np.diag([-1, -1, 1, 1]), (2, 3, 4)))


def test_modality_and_site_can_be_overridden(tmp_path):
    write_image(tmp_path / "v.nrrd", GREY, Geometry(np.eye(4), SHAPE))
    volume = read_volume(tmp_path / "v.nrrd", modality="mri", body_site=" Brain ")
    assert (volume.modality, volume.body_site) == ("MR", "brain")


# DICOM


def dicom_series(
    folder,
    positions,
    *,
    patient="DOE^JANE-17",
    series="1.2.3.4",
    orientation=(1, 0, 0, 0, 1, 0),
    site="BRAIN",
    description="T1 post",
    rows=8,
    spacing=(0.5, 0.75),
):
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    for n, position in enumerate(positions):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        d.PatientID = d.PatientName = patient
        d.Modality, d.BodyPartExamined, d.SeriesDescription = "MR", site, description
        d.StudyInstanceUID, d.SeriesInstanceUID, d.InstanceNumber = "1.2.3", series, len(positions) - n
        d.ImagePositionPatient, d.ImageOrientationPatient = list(map(float, position)), list(map(float, orientation))
        d.PixelSpacing, d.SliceThickness = list(spacing), 3.0
        if not spacing:
            del d.PixelSpacing
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = rows, 10, 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
        d.PixelData = (np.arange(rows * 10, dtype=np.uint16) + 100 * n).tobytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            d.save_as(folder / f"{n}.dcm", enforce_file_format=True)
    return folder


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
@pytest.mark.parametrize("shape, mm, known", [((1, 8, 10), 1, False), ((1, 8, 10), 0.9, True), ((2, 8, 10), 1, True)])
def test_a_single_slice_of_exactly_1_mm_is_taken_for_a_picture(tmp_path, suffix, shape, mm, known):
    """It is what programs write that made it of a picture, and what a header without a spacing reads as."""
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    write_image(tmp_path / f"v{suffix}", array, Geometry(np.diag([-mm, -mm, 5, 1.0]), shape))
    assert read_volume(tmp_path / f"v{suffix}").spacing_known == known


@pytest.mark.parametrize("spacing, known", [((1.0, 1.0), True), ((), False), ((0.5, 0.75), True)])
def test_dicom_says_whether_its_pixels_have_a_size(tmp_path, spacing, known):
    folder = dicom_series(tmp_path / "s", [(0, 0, 0)], spacing=spacing)
    assert read_volume(folder).spacing_known == known == read_volume(folder / "0.dcm").spacing_known


def test_a_dicom_series_lies_where_its_header_says_and_names_nobody(tmp_path):
    volume = read_volume(dicom_series(tmp_path / "s", [(10, 20, 30 + 4 * n) for n in (2, 0, 1)]))
    assert volume.geometry.shape == (3, 8, 10)
    assert np.allclose(volume.geometry.ras((0, 0, 0)), (-10, -20, 30)) and np.allclose(volume.geometry.spacing, (0.75, 0.5, 4))
    assert [int(s.min()) for s in volume.array] == [100, 200, 0]  # sorted by position, not by name
    assert (volume.modality, volume.body_site, volume.name) == ("MR", "brain", "T1 post")
    assert volume.patient_id == pseudonym("DOE^JANE-17") and "DOE" not in repr(volume)


def test_an_oblique_dicom_series(tmp_path):
    axis_i, axis_j = OBLIQUE[:, 0], OBLIQUE[:, 1]
    normal = np.cross(axis_i, axis_j)
    volume = read_volume(
        dicom_series(tmp_path / "s", [np.array([5.0, -6, 7]) + 3.3 * n * normal for n in range(4)], orientation=(*axis_i, *axis_j))
    )
    expected = np.diag([-1, -1, 1]) @ np.stack([axis_i * 0.75, axis_j * 0.5, normal * 3.3], 1)
    assert np.allclose(volume.geometry.ijkToRAS[:3, :3], expected, atol=1e-5)


@pytest.mark.parametrize(
    "fault, words",
    [("gap", "not evenly spaced"), ("twice", "one position"), ("tilt", "sheared"), ("mixed", "orientations"), ("two", "2 image series")],
)
def test_dicom_folders_that_would_put_a_mask_in_the_wrong_place(tmp_path, fault, words):
    positions = [(0, 0, 3 * n) for n in range(5)]
    if fault == "gap":
        del positions[2]
    elif fault == "twice":
        positions[3] = positions[2]
    elif fault == "tilt":
        positions = [(0, 1.0 * n, 3 * n) for n in range(5)]
    folder = dicom_series(tmp_path / "s", positions)
    if fault == "mixed":
        dicom_series(tmp_path / "s" / "b", [(0, 0, 50)], orientation=(0, 1, 0, 0, 0, -1))
        os.replace(tmp_path / "s" / "b" / "0.dcm", tmp_path / "s" / "9.dcm")
        (tmp_path / "s" / "b").rmdir()
    elif fault == "two":
        dicom_series(tmp_path / "s" / "b", positions, series="1.2.3.5", description="T2")
    with pytest.raises(InputError, match=words) as caught:
        read_volume(folder)
    if fault == "two":
        assert "'T1 post'" in str(caught.value) and "'T2'" in str(caught.value)
    assert "DOE" not in str(caught.value)


def test_a_region_is_no_organ(tmp_path):
    assert read_volume(dicom_series(tmp_path / "s", [(0, 0, 0), (0, 0, 3)], site="HEAD")).body_site is None


def test_real_dicom_and_its_segmentation(cers_data):
    folder = cers_data / "volumes" / "liver_ct_dicom"
    volume = read_volume(folder)  # the SEG beside the images is not an image series
    assert volume.modality == "CT" and volume.array.shape == (3, 512, 512)
    mask, _ = read_mask(folder / "liver_seg.nrrd", volume.geometry)
    assert mask.sum() == 107098


# writing


def test_nothing_half_written(tmp_path):
    target = tmp_path / "m.nrrd"
    target.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"before" and os.listdir(tmp_path) == ["m.nrrd"]
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"after")
    assert target.read_bytes() == b"after" and os.listdir(tmp_path) == ["m.nrrd"]
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    "name, words", [("m.png", "must end in"), ("m", "must end in"), (".nrrd", "must end in"), ("sub.nrrd", "is a folder")]
)
def test_outputs_that_cannot_be(tmp_path, name, words):
    (tmp_path / "sub.nrrd").mkdir()
    with pytest.raises(InputError, match=words):
        write_segmentation(tmp_path / name, np.zeros(SHAPE), Geometry(np.eye(4), SHAPE), {1: "a"})


def test_labels_without_a_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="name"):
        write_segmentation(tmp_path / "m.nrrd", np.full(SHAPE, 2), Geometry(np.eye(4), SHAPE), {1: "a"})
    with pytest.raises(InputError, match="shape"):
        write_segmentation(tmp_path / "m.nrrd", np.zeros((1, 2, 3)), Geometry(np.eye(4), SHAPE), {1: "a"})
    assert not list(tmp_path.iterdir())


def test_every_label_style_is_a_proper_slicer_entry():
    from cers.case import terminology

    for name in [*terminology._table()["labels"], "something new"]:
        color, entry = label_style(name)
        parts = entry.split("~")
        assert len(parts) == 7 and all(len(p.split("^")) == 3 for p in (*parts[1:4], *parts[5:]))
        assert len(color) == 3 and all(0 <= c <= 1 for c in color)
    assert label_style("a thing", 0)[0] != label_style("a thing", 1)[0]


@pytest.mark.parametrize("names", [
    ["tumor core", "edema", "enhancing tumor"],
    ["a thing", "tumor"],
    ["pituitary tumor", "a", "b"],
    [f"part {n}" for n in range(40)],
    ["Tumor", "tumor ", "TUMOR"],
])  # fmt: skip
def test_no_two_labels_of_a_segmentation_have_one_colour(tmp_path, names):
    labels = {n + 1: name for n, name in enumerate(names)}
    write_segmentation(tmp_path / "m.seg.nrrd", np.zeros((2, 3, 4)), Geometry(np.eye(4), (2, 3, 4)), labels)
    image = sitk.ReadImage(str(tmp_path / "m.seg.nrrd"))
    colors = [image.GetMetaData(f"Segment{n}_Color") for n in range(len(names))]
    assert len(set(colors)) == len(names)
    assert [entry for _, entry in label_styles(names)] == [label_style(name)[1] for name in names]
    if "tumor" in names:
        assert np.allclose(np.array(colors[names.index("tumor")].split(), float), label_style("tumor")[0])
