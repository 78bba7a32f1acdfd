"""Files that a reader takes without a word, and that would put a mask in the wrong place or tell a wrong size."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from cers.case import Geometry
from cers.case.io import read_mask, read_volume, write_image, write_segmentation
from cers.errors import InputError

SHAPE = (5, 6, 7)
GREY = np.random.default_rng(1).integers(0, 1000, SHAPE).astype(np.int16)
PICTURE = Geometry(np.diag([-1.0, -1.0, 1.0, 1.0]), (1, 20, 30))


def nifti(path, *changes, array=GREY, spacing=(2, 3, 4)):
    """A NIfTI file with header fields changed. changes: (format, offset, values...)."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    data = bytearray(path.read_bytes())
    for form, offset, *values in changes:
        struct.pack_into(f"<{form}", data, offset, *values)
    path.write_bytes(data)
    return path


def test_a_packed_nifti_file_is_read_also_beside_an_unpacked_one_of_its_name(tmp_path):
    """Its reader takes the voxels of the unpacked one."""
    mask, geometry = (GREY > 500).astype(np.uint8), Geometry(np.diag([-1.0, -1.0, 1.0, 1.0]), SHAPE)
    write_segmentation(tmp_path / "brain.nii.gz", mask, geometry, {1: "tumor"})
    sitk.WriteImage(sitk.GetImageFromArray(GREY), str(tmp_path / "brain.nii"))
    assert np.array_equal(read_mask(tmp_path / "brain.nii.gz", geometry)[0], mask)
    assert np.array_equal(read_volume(tmp_path / "brain.nii").array, GREY)
    with pytest.raises(InputError, match="would read the voxels of 'brain.nii'"):
        write_segmentation(tmp_path / "brain.nii.gz", mask, geometry, {1: "tumor"})
    (tmp_path / "liver.nii.gz").write_bytes((tmp_path / "brain.nii.gz").read_bytes())
    with pytest.raises(InputError, match="voxels of 'liver.nii' for those of 'liver.nii.gz'"):
        write_segmentation(tmp_path / "liver.nii", mask, geometry, {1: "tumor"})


SFORM = ("12f", 280, -2, 0, 0, 0, 0, -3, 0, 0, 0, 0, 4, 0)


@pytest.mark.parametrize(
    "changes, words",
    [
        ([("2h", 252, 0, 1), SFORM, ("3f", 80, 1, 1, 1)], "two sizes, 1 x 1 x 1 .* 2 x 3 x 4"),
        ([("2h", 252, 1, 1), SFORM, ("3f", 80, 2, 3, 8)], "two sizes"),
        ([("3f", 80, 0, 3, 4)], "does not say how large"),
        ([("2h", 252, 0, 0), ("3f", 80, 0, 0, 0)], "does not say how large"),
        ([("3f", 80, 2, 3, float("nan"))], "does not say how large"),
    ],
)
def test_a_nifti_volume_whose_voxels_have_no_sure_size_is_refused(tmp_path, changes, words):
    nifti(tmp_path / "pair.hdr", *changes)
    for path in (nifti(tmp_path / "v.nii", *changes), tmp_path / "pair.img", tmp_path / "pair.hdr"):
        with pytest.raises(InputError, match=words):
            read_volume(path)


def test_an_analyze_volume_without_the_size_of_its_voxels_is_refused(tmp_path):
    """Its reader takes 1 mm."""
    older = ("4s", 344, bytes(4)), ("2h", 252, 1, 1)  # what stands where NIfTI has its forms is none
    assert read_volume(nifti(tmp_path / "v.hdr", *older)).geometry.spacing == (2, 3, 4)
    with pytest.raises(InputError, match="does not say how large"):
        read_volume(nifti(tmp_path / "v.hdr", *older, ("3f", 80, 0, 0, 0)))


def test_nifti_headers_of_every_honest_kind_are_read(tmp_path):
    atlas = ("12f", 280, -2.5, 0, 0, 0, 0, -3.3, 0, 0, 0, 0, 4, 0)
    metres = [("B", 123, 1), ("2h", 252, 1, 0), ("3f", 80, 0.002, 0.003, 0.004)]
    for n, changes in enumerate([[], [("2h", 252, 1, 4), atlas], metres, [("2h", 252, 0, 0)], [("3f", 80, -2, 3, 4)]]):
        volume = read_volume(nifti(tmp_path / f"{n}.nii", *changes))
        assert np.allclose(volume.geometry.spacing, (2, 3, 4)) and np.array_equal(volume.array, GREY)
    assert not read_volume(nifti(tmp_path / "slice.nii", ("3f", 80, 0, 0, 0), array=GREY[:1])).spacing_known


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_picture_that_is_to_be_shown_turned_is_refused(tmp_path, suffix):
    """Programs that draw masks turn it, and programs that read pixels do not."""
    picture, exif = Image.fromarray(np.arange(600, dtype=np.uint16).astype(np.uint8).reshape(20, 30)), Image.Exif()
    for turn in (1, 3, 6):
        exif[0x0112] = turn
        picture.save(tmp_path / f"{turn}{suffix}", exif=exif)
    assert read_volume(tmp_path / f"1{suffix}").array.shape == (1, 20, 30)
    for turn in (3, 6):
        with pytest.raises(InputError, match=f"turned by .* orientation {turn}"):
            read_volume(tmp_path / f"{turn}{suffix}")
        with pytest.raises(InputError, match="turned"):
            read_mask(tmp_path / f"{turn}{suffix}", PICTURE)


@pytest.mark.parametrize("colour, background, read", [(255, 0, True), (255, 255, False), (0, 0, False)])
def test_a_mask_that_is_drawn_by_transparency_alone_is_refused(tmp_path, colour, background, read):
    """The transparency is dropped, so that all of the picture, or nothing of it, would be the mask."""
    array = np.full((20, 30, 4), background, np.uint8)
    array[..., 3] = 0
    array[5:10, 5:15] = (colour, colour, colour, 255)
    Image.fromarray(array).save(tmp_path / "m.png")
    if read:
        assert read_mask(tmp_path / "m.png", PICTURE)[0].sum() == 50
    else:
        with pytest.raises(InputError, match="transparen"):
            read_mask(tmp_path / "m.png", PICTURE)


def seg_nrrd(path, layers, *segments, directions=(2, 3, 4)):
    """A segmentation with a list axis first. layers: (n, k, j, i); segments: header fields of each."""
    n, k, j, i = layers.shape
    x, y, z = directions
    lines = [
        "NRRD0004",
        "type: unsigned char",
        "dimension: 4",
        "space: left-posterior-superior",
        f"sizes: {n} {i} {j} {k}",
        f"space directions: none ({x},0,0) (0,{y},0) (0,0,{z})",
        "kinds: list domain domain domain",
        "encoding: raw",
        "space origin: (0,0,0)",
        *(f"Segment{m}_{key}:={value}" for m, fields in enumerate(segments) for key, value in fields.items()),
    ]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + np.ascontiguousarray(np.moveaxis(layers, 0, -1)).tobytes())
    return path


LAYERS = np.zeros((2, *SHAPE), np.uint8)
LAYERS[0, 1, 1:3, 1:3] = LAYERS[1, 3, 2:5, 2:5] = 1
GRID = Geometry(np.diag([-2.0, -3.0, 4.0, 1.0]), SHAPE)


def test_old_segmentations_have_a_layer_for_each_segment(tmp_path):
    """Up to Slicer 4.10 the header says neither layer nor label value."""
    file = seg_nrrd(tmp_path / "old.seg.nrrd", LAYERS, {"ID": "a", "Name": "tumor"}, {"ID": "b", "Name": "edema"})
    mask, labels = read_mask(file, GRID)
    assert labels == {1: "tumor", 2: "edema"} and np.array_equal(mask, LAYERS[0] + 2 * LAYERS[1])


@pytest.mark.parametrize("fields", [{"LabelValue": 300}, {"LabelValue": -1}, {"LabelValue": 0}, {"LabelValue": 1, "Layer": -1}])
def test_segments_that_cannot_be_are_refused(tmp_path, fields):
    file = seg_nrrd(tmp_path / "m.seg.nrrd", LAYERS, {"ID": "a", "Layer": 0, **fields})
    with pytest.raises(InputError, match="outside 1..255|more segments or layers"):
        read_mask(file, GRID)


def test_a_mask_of_micrometres_lies_on_its_pixels_or_is_refused(tmp_path):
    """10 voxels of 1 µm are 0.01 mm."""
    fine = np.diag([-0.001, -0.001, 0.001, 1.0])
    moved = fine.copy()
    moved[0, 3] = 0.003
    write_segmentation(tmp_path / "m.nrrd", np.ones(SHAPE), Geometry(moved, SHAPE), {1: "cell"})
    with pytest.raises(InputError, match="another grid"):
        read_mask(tmp_path / "m.nrrd", Geometry(fine, SHAPE))
    assert read_mask(tmp_path / "m.nrrd", Geometry(moved, SHAPE))[0].all()


def metaimage(path, data, *fields, spacing="2 3 4"):
    lines = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False", *fields]
    lines += [f"ElementSpacing = {spacing}"] if spacing else []
    lines += ["DimSize = 7 6 5", "ElementType = MET_SHORT", "ElementDataFile = LOCAL\n"]
    path.write_bytes("\n".join(lines).encode() + data)
    return path


def nrrd(path, *fields):
    lines = ["NRRD0004", "type: short", "dimension: 3", "sizes: 7 6 5", "endian: little", "encoding: raw", *fields]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + GREY.tobytes())
    return path


def test_compressed_voxels_of_a_metaimage_are_unpacked_or_refused(tmp_path):
    """Where they cannot be unpacked its reader gives what lay in memory."""
    packed = zlib.compress(GREY.tobytes())
    size = f"CompressedDataSize = {len(packed)}"
    volume = read_volume(metaimage(tmp_path / "v.mha", packed, "CompressedData = True", size))
    assert np.array_equal(volume.array, GREY)
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    for data, fields, words in (
        (packed, (), "does not say how long"),
        (packed[:-20] + bytes(20), (size,), "ends too early"),
        (bytes(damaged), (size,), "ends too early"),
    ):
        with pytest.raises(InputError, match=words):
            read_volume(metaimage(tmp_path / "v.mha", data, "CompressedData = True", *fields))


def test_a_bmp_that_ends_too_early_is_refused(tmp_path):
    Image.fromarray(np.arange(600, dtype=np.uint16).astype(np.uint8).reshape(20, 30)).save(tmp_path / "p.bmp")
    assert read_volume(tmp_path / "p.bmp").array.shape == (1, 20, 30)
    (tmp_path / "p.bmp").write_bytes((tmp_path / "p.bmp").read_bytes()[:-200])
    with pytest.raises(InputError, match="ends too early"):
        read_volume(tmp_path / "p.bmp")


LPS = "space: left-posterior-superior"
DIRECTIONS = "space directions: (2,0,0) (0,3,0) (0,0,4)"


def test_voxels_without_a_size_in_the_header_have_none(tmp_path):
    """The reader puts in 1 mm, by which a volume in ml would be told that nobody measured."""
    assert read_volume(nrrd(tmp_path / "a.nrrd", LPS, DIRECTIONS)).spacing_known
    assert read_volume(nrrd(tmp_path / "b.nrrd", "spacings: 2 3 4")).spacing_known
    assert not read_volume(nrrd(tmp_path / "c.nrrd")).spacing_known
    assert not read_volume(nrrd(tmp_path / "d.nrrd", "spacings: 2 3 nan")).spacing_known
    assert read_volume(metaimage(tmp_path / "a.mha", GREY.tobytes())).spacing_known
    assert not read_volume(metaimage(tmp_path / "b.mha", GREY.tobytes(), spacing=None)).spacing_known


def test_an_nrrd_file_in_another_unit_is_refused(tmp_path):
    read_volume(nrrd(tmp_path / "mm.nrrd", LPS, 'space units: "mm" "mm" "mm"', DIRECTIONS))
    for n, fields in enumerate([(LPS, 'space units: "um" "um" "um"', DIRECTIONS), ('units: "m" "m" "m"', "spacings: 2 3 4")]):
        with pytest.raises(InputError, match=r"in u?m, which is read as mm"):
            read_volume(nrrd(tmp_path / f"{n}.nrrd", *fields))


def test_faults_are_told_in_words(tmp_path):
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 2)).astype(np.uint8))
    grey.save(tmp_path / "a.png")
    for path, words in {
        metaimage(tmp_path / "a.mha", GREY.tobytes()[:9]): "voxels are missing, or end too early",
        metaimage(tmp_path / "b.mha", GREY.tobytes(), spacing="2 3 0"): "voxel size of 0",
        metaimage(tmp_path / "c.mha", GREY.tobytes(), "TransformMatrix = 0 0 0 0 0 0 0 0 0"): "do not span a volume",
        tmp_path / "a.png": "grey with transparency; save it without",
    }.items():
        with pytest.raises(InputError, match=words):
            read_volume(path)


@pytest.mark.parametrize("suffix", [".img", ".hdr", ".img.gz"])
def test_a_pair_of_header_and_voxels_that_ends_too_early_is_refused(tmp_path, suffix):
    sitk.WriteImage(sitk.GetImageFromArray(GREY), str(tmp_path / f"v{suffix}"))
    assert np.array_equal(read_volume(tmp_path / f"v{suffix}").array, GREY)
    voxels = tmp_path / ("v.img.gz" if suffix.endswith(".gz") else "v.img")
    voxels.write_bytes(voxels.read_bytes()[:-100])
    with pytest.raises(InputError, match="ends too early"):
        read_volume(tmp_path / f"v{suffix}")


def test_probabilities_are_not_written_as_a_label_map(tmp_path):
    """Made whole numbers, all below 1 would be background."""
    with pytest.raises(InputError, match="not whole numbers"):
        write_segmentation(tmp_path / "m.nrrd", np.full(SHAPE, 0.7), GRID, {1: "tumor"})
    with pytest.raises(InputError, match="cannot be the name of a file"):
        write_segmentation(tmp_path / ("m" * 300 + ".nrrd"), np.ones(SHAPE), GRID, {1: "tumor"})
    assert not list(tmp_path.iterdir())


def test_probabilities_as_grey_levels_are_no_labels(tmp_path):
    """All of them would count as lesion; a picture with a high one somewhere is cut at half."""
    rows, columns = np.indices((20, 30))
    blob = np.exp(-((rows - 10) ** 2 + (columns - 15) ** 2) / 40)
    Image.fromarray((50 * blob).astype(np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="as of probabilities"):
        read_mask(tmp_path / "m.png", PICTURE)
    Image.fromarray((250 * blob).astype(np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", PICTURE)[0].sum() == np.count_nonzero((250 * blob).astype(np.uint8) > 127)
    nested = np.digitize(blob, (0.2, 0.4, 0.6, 0.8)).astype(np.uint8)
    beside = np.where((rows > 5) & (rows < 15), columns // 2 + 1, 0).astype(np.uint8)  # 15 structures, one after the other
    inside = np.where((rows > 1) & (rows < 18), 1, 0).astype(np.uint8)  # 10 structures in one that lies around them all
    for n in range(10):
        inside[4 + 6 * (n // 5) :][:3, 4 + 5 * (n % 5) :][:, :3] = 4 + 3 * n
    for labels in (nested, beside, inside):
        Image.fromarray(labels).save(tmp_path / "m.png")
        assert np.array_equal(read_mask(tmp_path / "m.png", PICTURE)[0][0], labels)
    volume, grid = np.repeat(blob[None], 4, 0), Geometry(np.eye(4), (4, 20, 30))
    for soft in (0.1, 0.2):
        grey = (255 / (1 + np.exp((0.5 - volume) / soft))).astype(np.uint8)
        write_image(tmp_path / "m.nii.gz", grey, grid)
        with pytest.raises(InputError, match="as of probabilities"):
            read_mask(tmp_path / "m.nii.gz", grid)
    for labels in (nested, beside, inside, 7 * inside):
        write_image(tmp_path / "m.nii.gz", np.repeat(labels[None], 4, 0), grid)
        assert np.array_equal(read_mask(tmp_path / "m.nii.gz", grid)[0][2], labels)


def test_labels_in_a_jpeg_are_refused(tmp_path):
    """Its neighbours' values run into each other."""
    array = np.zeros((20, 30), np.uint8)
    array[5:10, 5:15], array[12:18, 5:15] = 1, 2
    Image.fromarray(array).save(tmp_path / "m.jpg", quality=75)
    with pytest.raises(InputError, match="JPEG does not keep"):
        read_mask(tmp_path / "m.jpg", PICTURE)
    Image.fromarray(255 * (array > 0).astype(np.uint8)).save(tmp_path / "m.jpg", quality=75)
    assert read_mask(tmp_path / "m.jpg", PICTURE)[0].sum() == np.count_nonzero(array)
    Image.fromarray(0 * array).save(tmp_path / "m.jpg")
    assert not read_mask(tmp_path / "m.jpg", PICTURE)[0].any()


@pytest.mark.parametrize("values, expected", [((0, 65535), 50), ((0, 65535, 9000), 50), ((0, 1000, 2000), None), ((0, 1, 2), 170)])
def test_mask_pictures_of_16_bit(tmp_path, values, expected):
    """Cut at 127, a faint edge would belong to the mask, and labels of hundreds would become one."""
    array = np.zeros((20, 30), np.uint16)
    array[5:10, 5:15] = values[1]
    array[12:18, 5:15] = values[-1] if len(values) > 2 else 0
    Image.fromarray(array).save(tmp_path / "m.png")
    if expected is None:
        with pytest.raises(InputError, match="grey levels"):
            read_mask(tmp_path / "m.png", PICTURE)
    else:
        assert read_mask(tmp_path / "m.png", PICTURE)[0].sum() == expected


@pytest.mark.parametrize("top, share", [(65535, 0.5), (40000, 65535 / 40000 / 2), (6553, None), (2000, None), (200, None)])
def test_probabilities_in_16_bit_are_cut_at_half_of_one(tmp_path, top, share):
    """And not at half of the highest, by which a prediction of 3 % would be as much of a lesion as one of 100 %."""
    rows, columns = np.indices((64, 64))
    blob = np.exp(-((rows - 30) ** 2 + (columns - 30) ** 2) / 80)
    Image.fromarray((top * blob).astype(np.uint16)).save(tmp_path / "m.png")
    geometry = Geometry(PICTURE.ijkToRAS, (1, 64, 64))
    if share is None:
        with pytest.raises(InputError, match=f"grey levels up to {top} in 16 bit"):
            read_mask(tmp_path / "m.png", geometry)
    else:
        assert np.array_equal(read_mask(tmp_path / "m.png", geometry)[0][0], blob > share)


@pytest.mark.parametrize("grey, white", [(85, 255), (128, 255), (200, 255), (1, 255), (30000, 65535)])
def test_a_small_label_beside_white_is_not_merged_or_dropped(tmp_path, grey, white):
    """Two labels as greys, or a label beside 255 for what is to be ignored; a soft edge of the same greys is none."""
    kind = np.uint8 if white == 255 else np.uint16
    array = np.zeros((20, 30), kind)
    array[4:16, 4:26] = white
    array[5:15, 3] = grey
    Image.fromarray(array).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", PICTURE)[0].sum() == 264 + 10 * (grey > 0.5 * white)
    array[8:12, 8:12] = grey
    Image.fromarray(array).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="several broad grey levels"):
        read_mask(tmp_path / "m.png", PICTURE)
