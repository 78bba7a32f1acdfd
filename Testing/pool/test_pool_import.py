"""Annotated images of every kind become cases that show what the image shows."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from cers.case import Geometry, PlaneView, Volume
from cers.case.io import pseudonym, write_image, write_segmentation
from cers.errors import InputError, PoolError
from cers.pool import Pool, import_folder, import_volume
from cers.pool.folders import find_images
from cers.pool.importer import DryRun, spread
from cers.pool.table import read_table

RNG = np.random.default_rng(3)
TEXTURE = RNG.integers(0, 400, (9, 40, 44)).astype(np.int16)


@pytest.fixture
def pool(tmp_path):
    with Pool.create(tmp_path / "pool") as pool:
        yield pool


def volume_and_mask(direction=np.eye(3), spacing=(0.8, 0.9, 5.0)):
    """A made-up head of 9 slices and its lesion in slices 2 to 6, on a grid of any direction."""
    k, j, i = np.mgrid[:9, :40, :44]
    mask = ((k - 4) ** 2 / 6 + (j - 15) ** 2 / 60 + (i - 25) ** 2 / 40 < 1).astype(np.uint8)
    array = TEXTURE + 600 * mask.astype(np.int16)
    matrix = np.eye(4)
    matrix[:3, :3] = np.asarray(direction, float) @ np.diag(spacing)
    matrix[:3, 3] = (-20, 13, 50)
    return Volume(array, Geometry(matrix, array.shape), name="head", modality="MR", body_site="brain"), mask


def write(path, array, geometry):
    image = sitk.GetImageFromArray(array)
    itk = geometry.to_itk()
    image.SetSpacing(itk["spacing"]), image.SetOrigin(itk["origin"]), image.SetDirection(itk["direction"])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def picture(path, n=0, size=(50, 60), lesion=None):
    """A grey PNG, or with ``lesion`` the mask that belongs to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(n)
    array = rng.integers(0, 255, size).astype(np.uint8)
    if lesion is not None:
        array = np.zeros(size, np.uint8)
        array[lesion] = 255
    Image.fromarray(array).save(path)


BOX = (slice(10, 30), slice(15, 35))


# ---- volumes in memory


def test_the_largest_slice_of_every_label_is_taken(tmp_path, pool):
    array = RNG.integers(0, 400, (40, 32, 32)).astype(np.int16)
    mask = np.zeros(array.shape, np.uint8)
    mask[:, 8:24, 8:24] = 1
    mask[6, 10:13, 10:13], mask[5, 10, 10] = 2, 2
    geometry = Geometry(np.diag([1, 1, 5, 1.0]), array.shape)
    ids = import_volume(pool, Volume(array, geometry, name="v", modality="MR"), mask, {1: "tumor", 2: "metastasis"}, plane="axial")
    cases = [pool.get(i) for i in ids]
    assert len(cases) == 12 and [c.slice_index for c in cases if 2 in c.labels] == [6]
    write(tmp_path / "in" / "c.nrrd", array, geometry), write(tmp_path / "in" / "c_mask.nrrd", mask, geometry)
    report = import_folder(pool, tmp_path / "in", tmp_path / "in", defaults={"label": "1=tumor; 2=metastasis; 3=edema"}, max_slices=1)
    assert report.items == [("c", 1, ["tumor"])], "only what the kept cases show"


@pytest.mark.parametrize("most, musts, picks", [(3, [7], [0, 7, 9]), (3, [1, 2], [1, 2, 9]), (1, [3], [9]), (2, [4, 5], [4, 9])])
def test_slices_that_must_be_there(most, musts, picks):
    assert spread(np.arange(20, 30), most, 10, musts) == picks


def test_a_typed_modality_is_measured_as_its_code(pool):
    volume, mask = volume_and_mask()
    first = pool.get(import_volume(pool, volume, mask, {1: "tumor"}, modality="ct")[0])
    assert first.modality == "CT" and "dense" in first.rationale.text and "intense" not in first.rationale.text


def test_a_volume_gives_its_lesion_slices(pool):
    volume, mask = volume_and_mask()
    ids = import_volume(pool, volume, mask, {1: "tumor", 2: "unused"}, diagnosis="glioma", patient_id="p1")
    cases = [pool.get(i) for i in ids]
    view = PlaneView(volume.geometry, "axial")
    lesion = [n for n in range(9) if view.slices(mask)[n].sum() >= 10]
    assert [c.slice_index for c in cases] == lesion and len(lesion) == 5
    for c in cases:
        assert np.array_equal(c.image, view.slices(volume.array)[c.slice_index])
        assert np.array_equal(c.mask, view.slices(mask)[c.slice_index])
        assert c.labels == {1: "tumor"} and c.spacing == pytest.approx((0.9, 0.8)) and c.plane == "axial"
        assert (c.modality, c.body_site, c.patient_id, c.diagnosis) == ("MR", "brain", "p1", "glioma")
        assert c.volume_id == volume.content_hash[:16]
        assert c.rationale.writer == "measured" and c.rationale.descriptors and c.rationale.part("summary")
        ras = c.ijkToRAS @ (7, 9, 0, 1)
        k, j, i = np.rint(np.linalg.inv(volume.geometry.ijkToRAS) @ ras).astype(int)[2::-1]
        assert volume.array[k, j, i] == c.image[9, 7]
    assert import_volume(pool, volume, mask, {1: "tumor"}) == ids and len(pool) == len(ids)


def test_few_slices_are_spread_and_include_the_largest():
    area = np.array([0, 5, 20, 30, 40, 90, 41, 30, 20, 12, 11, 3, 0])
    assert spread(area, 99, 10) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert spread(area, 1, 10) == [5]
    for most in (2, 3, 4, 5):
        picks = spread(area, most, 10)
        assert 5 in picks and len(picks) == most and picks == sorted(picks) and all(area[p] >= 10 for p in picks)
    assert spread(area, 4, 100) == [5], "a small lesion still gives its largest slice"


def test_a_whole_head_is_seen_from_the_three_sides_that_segmentation_reads(pool):
    rng = np.random.default_rng(4)
    mask = np.zeros((24, 80, 72), np.uint8)
    mask[8:14, 30:44, 20:36] = 1
    volume = Volume(rng.normal(size=mask.shape).astype(np.float32), Geometry(np.diag([-2.0, -2.0, 6.0, 1]), mask.shape))
    assert volume.worth_crossing
    cases = [pool.get(i) for i in import_volume(pool, volume, mask, {1: "tumor"}, max_slices=4)]
    assert [c.plane for c in cases] == 4 * ["axial"] + 4 * ["coronal"] + 4 * ["sagittal"]
    assert len({c.volume_id for c in cases}) == 1
    for c in cases:
        view = PlaneView(volume.geometry, c.plane)
        assert np.array_equal(c.mask, view.slices(mask)[c.slice_index]) and c.spacing == pytest.approx(view.spacing)
    slab = Volume(volume.array[:12], Geometry(volume.geometry.ijkToRAS, (12, 80, 72)))
    assert {pool.meta(i)["plane"] for i in import_volume(pool, slab, mask[:12], {1: "tumor"})} == {"axial"}
    assert {pool.meta(i)["plane"] for i in import_volume(pool, volume, mask * 1, {1: "other"}, plane="coronal")} == {"coronal"}


@pytest.mark.parametrize("plane", ["coronal", "sagittal"])
def test_another_plane_can_be_asked_for(pool, plane):
    volume, mask = volume_and_mask()
    cases = [pool.get(i) for i in import_volume(pool, volume, mask, {1: "tumor"}, plane=plane, max_slices=3)]
    assert len(cases) == 3 and {c.plane for c in cases} == {plane} and cases[0].spacing[0] == pytest.approx(5.0)


def test_what_cannot_be_imported_is_said(pool):
    volume, mask = volume_and_mask()
    with pytest.raises(InputError, match="44 x 40 x 8 voxels"):
        import_volume(pool, volume, mask[:-1], {1: "tumor"})
    with pytest.raises(InputError, match="is empty"):
        import_volume(pool, volume, mask * 0, {1: "tumor"})
    with pytest.raises(InputError, match="no name"):
        import_volume(pool, volume, mask, {})
    with pytest.raises(InputError, match="name"):
        import_volume(pool, volume, mask, {1: "tumor"}, name="Smith")
    with pytest.raises(InputError, match="diagonal"):
        import_volume(pool, volume, mask, {1: "tumor"}, plane="diagonal")
    with pytest.raises(InputError, match="At least one slice"):
        import_volume(pool, volume, mask, {1: "tumor"}, max_slices=0)
    assert len(pool) == 0


def directions():
    for p in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield np.eye(3)[:, p] * signs


@pytest.mark.parametrize("direction", [*directions()][::5], ids=str)
def test_however_the_file_is_stored_the_case_looks_the_same(tmp_path, pool, direction):
    """One head, stored with other axis orders, flips and handedness: the same display slices, hence the same cases."""
    volume, mask = volume_and_mask()
    first = import_volume(pool, volume, mask, {1: "lesion"})
    source = np.argmax(np.abs(direction), axis=0)  # stored axis c runs along the original axis source[c]
    flip = [direction[source[c], c] < 0 for c in range(3)]
    axes = [2 - source[2 - a] for a in range(3)]

    def stored(array):
        return np.ascontiguousarray(np.transpose(array, axes)[tuple(slice(None, None, -1 if flip[2 - a] else 1) for a in range(3))])

    matrix = np.eye(4)
    step = volume.geometry.ijkToRAS[:3, :3]
    start = np.zeros(3)
    for c in range(3):
        matrix[:3, c] = step[:, source[c]] * (-1 if flip[c] else 1)
        start[source[c]] = volume.geometry.shape[::-1][source[c]] - 1 if flip[c] else 0
    matrix[:3, 3] = volume.geometry.ras(start)
    geometry = Geometry(matrix, stored(mask).shape)
    write(tmp_path / "i" / "head.nrrd", stored(volume.array), geometry)
    write(tmp_path / "m" / "head.nrrd", stored(mask), geometry)
    report = import_folder(pool, tmp_path / "i", tmp_path / "m")
    assert not report.faults and report.ids == first and report.added == 0


def test_an_oblique_volume_shows_its_own_slices(tmp_path, pool):
    angle = np.deg2rad(17)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    straight, mask = volume_and_mask()
    oblique, _ = volume_and_mask(tilt)
    write(tmp_path / "i" / "head.nii.gz", oblique.array, oblique.geometry)
    write(tmp_path / "m" / "head.nii.gz", mask, oblique.geometry)
    report = import_folder(pool, tmp_path / "i", tmp_path / "m")
    assert not report.faults
    assert report.ids == import_volume(pool, straight, mask, {1: "lesion"}), "nothing is resampled: same pixels, same cases"
    c = pool.get(report.ids[0])
    assert np.linalg.norm(c.ijkToRAS[:3, :3], axis=0) == pytest.approx((0.8, 0.9, 5.0), rel=1e-4)


# ---- folders


def test_pictures_with_a_table(tmp_path, pool):
    for n in range(3):
        picture(tmp_path / "i" / f"p{n}.jpg" if n else tmp_path / "i" / "p0.png", n)
        picture(tmp_path / "m" / f"p{n}.png", lesion=BOX)
    (tmp_path / "t.csv").write_text(
        "\ufeffimage,patient,group,modality,body_site,diagnosis,plane,annotator,label\n"
        'p0.png,Müller,g1,MR,brain,"glioma, grade 4",axial,AB,tumor\np1,P2,,MR,brain,,Sagittal,,\n',
        encoding="utf-8",
    )
    report = import_folder(pool, tmp_path / "i", tmp_path / "m", tmp_path / "t.csv", defaults={"annotator": "XY"})
    assert not report.faults and (report.added, report.images, report.unlisted) == (2, 2, ["p2"])
    a, b = (pool.get(i) for i in report.ids)
    assert (a.diagnosis, a.plane, a.annotator, a.group, a.labels) == ("glioma, grade 4", "axial", "AB", "g1", {1: "tumor"})
    assert (b.plane, b.annotator, b.group, b.labels, b.spacing, b.slice_index) == ("sagittal", "XY", None, {1: "lesion"}, None, None)
    assert a.patient_id == pseudonym("Müller") and "Müller" not in str(pool.list()) + str(pool.history(a.id))
    assert a.image.shape == (50, 60) and a.mask[10:30, 15:35].all() and a.mask.sum() == 400, "displayed as the picture lies"
    assert a.volume_id and a.volume_id != b.volume_id


def test_a_data_sets_own_table_is_read(tmp_path, pool):
    picture(tmp_path / "i" / "brisc_1.png")
    picture(tmp_path / "m" / "brisc_1.png", lesion=BOX)
    (tmp_path / "t.csv").write_text("image,split,group,diagnosis,plane,twin_in_train\nbrisc_1,train,17,glioma,axial,0\n")
    report = import_folder(pool, tmp_path / "i", tmp_path / "m", tmp_path / "t.csv")
    assert not report.faults and pool.get(report.ids[0]).group == "17"


def test_each_wrong_row_is_named_and_the_others_imported(tmp_path, pool):
    for n, name in enumerate(("good", "small", "nomask", "empty", "broken", "twice", "labels")):
        picture(tmp_path / "i" / f"{name}.png", n)
        picture(tmp_path / "m" / f"{name}.png", lesion=BOX)
    picture(tmp_path / "m" / "small.png", size=(20, 20), lesion=BOX)
    (tmp_path / "m" / "nomask.png").unlink()
    picture(tmp_path / "m" / "empty.png", lesion=(slice(0), slice(0)))
    (tmp_path / "i" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    lines = [
        "image,plane,label",
        "small,,",
        "nomask,,",
        "good,,",
        "empty,,",
        "broken,,",
        "twice,,",
        "twice,,",
        "absent,,",
        "good2,oblique,",
        ",,x",
        "a,b",
        "labels,,1=core;x",
        "Small,,",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    report = import_folder(pool, tmp_path / "i", tmp_path / "m", tmp_path / "t.csv")
    faults = {f.line: str(f) for f in report.faults}
    assert report.images == 2 and len(pool) == 2 and set(faults) == {2, 3, 5, 6, 8, 9, 10, 11, 12, 13, 14}
    for line, words in {
        2: "grid",
        3: "no mask",
        5: "empty",
        6: "broken",
        8: "line 7",
        9: "no image of this name",
        10: "oblique",
        11: "names no image",
        12: "2 cells",
        13: "not understood",
        14: "no image of this name in the folder, but one called 'small'. Write it so.",
    }.items():
        assert words in faults[line], faults[line]


@pytest.mark.parametrize(
    "text,words",
    [
        ("image,colour\na,red\n", "'colour'"),
        ("name\na\n", "'name'"),
        ("patient\na\n", "no column 'image'"),
        ("", "is empty"),
        ("image,image\na,b\n", "twice"),
        ('image\n"a\n', "quotation"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_as_a_whole(tmp_path, pool, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        import_folder(pool, tmp_path, tmp_path, tmp_path / "t.csv")


def test_table_encodings_and_separators(tmp_path):
    (tmp_path / "t.csv").write_text("image;diagnosis\r\na;x\r\n\r\nb;\r\n", newline="")
    assert [(r.image, r.values, r.line) for r in read_table(tmp_path / "t.csv")] == [("a", {"diagnosis": "x"}, 2), ("b", {}, 4)]
    (tmp_path / "t.csv").write_bytes("image,diagnosis\na,Ödem\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "none.csv")


def test_pairs_by_name_in_one_folder_or_two(tmp_path, pool):
    volume, mask = volume_and_mask()
    for n, (image, label) in enumerate([("a_image.nrrd", "a_label.nrrd"), ("b.nii.gz", "b-mask.nii.gz"), ("c_0000.nrrd", "c_seg.nrrd")]):
        write(tmp_path / "x" / image, volume.array + np.int16(n), volume.geometry)
        write(tmp_path / "x" / label, mask, volume.geometry)
    picture(tmp_path / "x" / "lonely.png")
    (tmp_path / "x" / "notes.txt").write_text("not an image")
    report = import_folder(pool, tmp_path / "x", tmp_path / "x", max_slices=2)
    assert report.images == 3 and len(report.ids) == report.added == 6
    assert [(f.item, f.message) for f in report.faults] == [("lonely", "there is no mask of this name. Add one, or take the image out.")]
    alone = tmp_path / "alone"
    write(alone / "t1c.nii.gz", volume.array + np.int16(9), volume.geometry)
    write(alone / "label.nii.gz", mask, volume.geometry)
    report = import_folder(pool, alone, alone, max_slices=1)
    assert (report.images, report.added, report.faults) == (1, 1, [])
    two = tmp_path / "two"
    for name in ("a.png", "a.jpg", "b.png"):
        picture(two / "i" / name)
    for name in ("a.png", "b_mask.png", "z.png"):
        picture(two / "m" / name, lesion=BOX)
    report = import_folder(pool, two / "i", two / "m")
    assert report.images == 1 and {f.item for f in report.faults} == {"a", "z"}


def test_what_is_here_already_is_told_apart_from_what_is_new(tmp_path, pool):
    volume, mask = volume_and_mask()
    for name, shown, seen in (
        ("a", volume.array, mask),
        ("b", volume.array, mask),
        ("c", volume.array + np.int16(1), mask),
        ("d", volume.array, np.where(np.arange(9)[:, None, None] == 4, 2 * mask, mask)),  # one slice of its own
    ):
        write(tmp_path / "x" / f"{name}.nrrd", shown, volume.geometry)
        write(tmp_path / "x" / f"{name}_seg.nrrd", seen.astype(np.uint8), volume.geometry)
    named = {"label": "1=tumor; 2=core"}
    dry = import_folder(DryRun(pool), tmp_path / "x", tmp_path / "x", defaults=named)
    report = import_folder(pool, tmp_path / "x", tmp_path / "x", defaults=named)
    assert (report.added, report.giving, report.present, report.repeated) == (11, 3, 9, ["b"]) and len(pool) == 11
    assert [report.items[1], report.items[3]] == [("b", 5, ["tumor"]), ("d", 5, ["core", "tumor"])]
    assert (dry.added, dry.giving, dry.present, dry.repeated) == (11, 3, 9, ["b"])
    again = import_folder(pool, tmp_path / "x", tmp_path / "x", defaults=named)
    assert (again.added, again.giving, again.present, again.repeated) == (0, 0, 20, ["a", "b", "c", "d"])


def test_what_was_thrown_out_stays_in_the_trash(tmp_path, pool):
    volume, mask = volume_and_mask()
    write(tmp_path / "x" / "a.nrrd", volume.array, volume.geometry)
    write(tmp_path / "x" / "a_seg.nrrd", mask, volume.geometry)
    ids = import_folder(pool, tmp_path / "x", tmp_path / "x").ids
    numbers = pool.trash(ids[:2])
    for at in (DryRun(pool), pool):
        report = import_folder(at, tmp_path / "x", tmp_path / "x")
        assert (report.added, report.present, report.trashed, report.repeated) == (0, 3, ids[:2], []) and report.ids == ids[2:]
    assert sorted(pool.ids()) == sorted(ids[2:]) and report.items == [("a", 3, ["lesion"])]
    assert set(pool.restore(numbers)) == set(ids[:2])
    assert import_folder(pool, tmp_path / "x", tmp_path / "x").present == 5
    pool.purge(pool.trash(ids[:1]))
    assert import_folder(pool, tmp_path / "x", tmp_path / "x").added == 1, "what was deleted for good may come back"


def test_a_name_is_one_name_however_its_letters_are_written(tmp_path, pool):
    """macOS writes "ü" as two characters in the names of files, other systems as one."""
    volume, mask = volume_and_mask()
    (one, two), folder = ("M\u00fcller", "Mu\u0308ller"), tmp_path / "f"
    folder.mkdir()
    write_image(folder / f"{one}.nrrd", volume.array, volume.geometry)
    write_segmentation(folder / f"{two}_mask.nrrd", mask, volume.geometry, {1: "tumor"})
    assert find_images(folder) == ([], [f"{one}.nrrd"])
    assert import_folder(DryRun(pool), folder, folder).added > 0
    (tmp_path / "t.csv").write_text(f"image,patient\n{two}.nrrd,J\u00f6rg\n", encoding="utf-8")
    assert not import_folder(pool, folder, folder, tmp_path / "t.csv").faults
    assert {c["patient_id"] for c in pool.list()} == {pseudonym("Jo\u0308rg")}


def test_label_names(tmp_path, pool):
    volume, mask = volume_and_mask()
    two = mask.copy()
    two[:, :, 26:] *= 2
    write(tmp_path / "i" / "v.nii", volume.array, volume.geometry)
    write(tmp_path / "m" / "v.nii", two, volume.geometry)
    for label, names in (("1=core; 2=edema", {1: "core", 2: "edema"}), ("", {1: "label 1", 2: "label 2"})):
        (tmp_path / "t.csv").write_text(f"image,label\nv.nii,{label}\n")
        report = import_folder(pool, tmp_path / "i", tmp_path / "m", tmp_path / "t.csv", max_slices=1)
        assert not report.faults and pool.get(report.ids[0]).labels == names
    (tmp_path / "t.csv").write_text("image,label\nv.nii,tumor\n")
    (fault,) = import_folder(pool, tmp_path / "i", tmp_path / "m", tmp_path / "t.csv").faults
    assert "2 labels" in fault.message


def test_a_mask_on_another_grid_is_named(tmp_path, pool):
    volume, mask = volume_and_mask()
    write(tmp_path / "i" / "v.nii", volume.array, volume.geometry)
    moved = volume.geometry.ijkToRAS.copy()
    moved[0, 3] += 2
    write(tmp_path / "m" / "v.nii", mask, Geometry(moved, mask.shape))
    (fault,) = import_folder(pool, tmp_path / "i", tmp_path / "m").faults
    assert "grid" in fault.message and len(pool) == 0


def test_progress_and_cancel(tmp_path, pool):
    for n in range(4):
        picture(tmp_path / "i" / f"p{n}.png", n)
        picture(tmp_path / "m" / f"p{n}.png", lesion=BOX)
    seen = []
    report = import_folder(pool, tmp_path / "i", tmp_path / "m", progress=lambda f, m: seen.append((f, m)), cancel=lambda: len(seen) == 3)
    assert (
        report.cancelled
        and report.left == 2
        and report.added == len(pool) == 2
        and seen[1:] == [(0, "Importing p0"), (0.25, "Importing p1")]
    )
    report = import_folder(pool, tmp_path / "i", tmp_path / "m", progress=lambda f, m: seen.append((f, m)))
    assert (report.images, report.added, len(pool)) == (4, 2, 4) and seen[-1] == (1.0, "2 cases added from 2 images")
    assert [f for f, _ in seen[3:]] == sorted(f for f, _ in seen[3:])


def test_trouble_with_the_pool_ends_the_import(tmp_path, pool):
    picture(tmp_path / "i" / "p.png")
    picture(tmp_path / "m" / "p.png", lesion=BOX)
    with Pool.open(pool.folder, read_only=True) as closed, pytest.raises(PoolError, match="reading only"):
        import_folder(closed, tmp_path / "i", tmp_path / "m")
    with pytest.raises(InputError, match="does not exist"):
        import_folder(pool, tmp_path / "none", tmp_path / "m")
    with pytest.raises(InputError, match="p.png is a file. Give the folder of images"):
        import_folder(pool, tmp_path / "i" / "p.png", tmp_path / "m")


# ---- real images


def test_real_pictures_and_their_table(cers_data, tmp_path, pool):
    root = cers_data / "brisc2025"
    wanted = (root / "cases.csv").read_text().splitlines()
    rows = [line for line in wanted[1:] if ",train," in line][::800]
    (tmp_path / "t.csv").write_text("\n".join([wanted[0], *rows]) + "\n")
    report = import_folder(
        pool, root / "images" / "train", root / "masks" / "train", tmp_path / "t.csv", defaults={"modality": "MR", "body_site": "brain"}
    )
    assert not report.faults and report.images == len(rows) == report.added
    c = pool.get(report.ids[0])
    reference = np.asarray(Image.open(root / "masks" / "train" / f"{rows[0].split(',')[0]}.png").convert("L")) > 127
    assert np.array_equal(c.mask > 0, reference) and c.plane in rows[0] and c.rationale.text


def test_real_volume(cers_data, tmp_path, pool):
    folder = cers_data / "volumes" / "brain1"
    report = import_folder(pool, folder, folder, defaults={"body_site": "brain", "modality": "MR"})
    assert not report.faults
    planes = Counter(c["plane"] for c in pool.list())
    assert 3 <= planes["axial"] <= 12 and planes["coronal"] == planes["sagittal"] == 12, "25 slices of 6.5 mm: a whole head"
