"""One table for all: what `cers train` reads from cases.csv is what `cers evaluate` and the import read from it."""

from __future__ import annotations

import phantom
import pytest

from cers.case import Geometry
from cers.case.io import pseudonym, write_segmentation
from cers.errors import InputError
from cers.evaluation.items import find_items
from cers.pool.table import read_table
from cers.training.config import TrainConfig
from cers.training.datasets import open_dataset
from cers.training.splits import make_split


@pytest.fixture
def folder(volumes, tmp_path):
    """Two volumes, v0 and v1, with label maps of their names."""
    for file in (tmp_path / "masks").iterdir():
        file.unlink()
    for seed in range(2):
        geometry = Geometry(phantom.matrix(), phantom.SHAPE)
        write_segmentation(tmp_path / "masks" / f"v{seed}.nii.gz", phantom.head(seed)[1], geometry, {1: "tumor"})
    return tmp_path


def trained(folder) -> dict[str, tuple]:
    """(group, diagnosis, modality) of each image as a training sees it."""
    data = open_dataset(folder, [], 64, "acquisition", folder / "cache")
    return {row["item"]: (row["group"], row.get("diagnosis") or None, row.get("modality") or None) for row in data.table}


def evaluated(folder) -> dict[str, tuple]:
    found = find_items(folder / "images", folder / "masks", csv=folder / "cases.csv")
    return {item.name: (item.group, item.diagnosis, item.modality) for item in found.items}


def imported(folder) -> None:
    read_table(folder / "cases.csv")


@pytest.mark.parametrize(
    "text",
    [
        "image,split,group,diagnosis,modality\nv0,train,g,glioma,MR\nv1,train,h,,MR\n",
        "\ufeffimage;split;group;diagnosis;modality\r\nv0;train;g;glioma;MR\r\nv1;train;h;;MR\r\n",
        "image\tsplit\tgroup\tdiagnosis\tmodality\nv0\ttrain\tg\tglioma\tMR\nv1\ttrain\th\t\tMR\n",
        "Image, Split ,GROUP,Diagnosis,Modality\n v0 ,Train, g , glioma ,MR \nv1,train,h, ,MR\n",
        "image,split,group,diagnosis,modality\nv0.nii.gz,train,g,glioma,MR\nv1.NII.GZ,train,h,,MR\n",
        "image,split,group,diagnosis,modality\n\nv0,train,g,glioma,MR\n,,,,\nv1,train,h,,MR\n\n",
        "image,split,group,diagnosis,modality,,\nv0,train,g,glioma,MR,,\nv1,train,h,,MR,,\n",
        '"image";"split";"group";"diagnosis"\n"v0";"train";"g";"glioma"\n"v1";"train";"h";""\n',
    ],
    ids=["plain", "mark, semicolons, CRLF", "tabs", "spaces and capitals", "endings", "blank lines", "unnamed columns", "quotation marks"],
)
def test_training_and_evaluation_read_the_same(folder, text):
    (folder / "cases.csv").write_text(text, encoding="utf-8", newline="")
    modality = None if '"v0"' in text else "MR"
    wanted = {"v0": ("g", "glioma", modality), "v1": ("h", None, modality)}
    assert evaluated(folder) == wanted and trained(folder) == wanted


@pytest.mark.parametrize(
    "text, words",
    [
        ("image,split,group\nv0,train,a\nv0,train,b\n", "v0 is listed twice"),
        ("image,split,group\nv0,train,a\nv0.nii.gz,test,a\n", "v0.nii.gz is listed twice"),
        ("image,split,group\nv0,train\n", "2 cells"),
        ("image,split,group\nv0,train,a,b\n", "4 cells"),
        ("image,split,group\n,train,a\n", "names no image"),
        ("image,split,group,plane\nv0,train,a,oblique\n", "plane 'oblique'"),
        ("image,split,group,Group\nv0,train,a,b\n", "'group' twice"),
        ('image,split,group\n"v0,train,a\n', "quotation marks"),
        ("name,split,group\nv0,train,a\n", "'name'|'image'"),
        ("", "is empty"),
    ],
)
def test_what_one_refuses_the_other_refuses_in_the_same_words(folder, text, words):
    (folder / "cases.csv").write_text(text, encoding="utf-8", newline="")
    for read in (evaluated, trained):
        with pytest.raises(InputError, match=words) as caught:
            read(folder)
        assert "\n" not in str(caught.value)


def test_a_name_in_other_letters_does_not_pass_for_none(folder):
    (folder / "cases.csv").write_text("image,split,group\nv0,train,a\nV1,train,a\n")
    with pytest.raises(InputError, match="lists V1, while an image is called v1"):
        evaluated(folder)
    with pytest.raises(InputError, match="V1 is listed in cases.csv but is not in .*, where one is called v1"):
        trained(folder)


def test_training_keeps_columns_that_say_nothing_of_a_case(folder):
    """A run may leave out what any column says; an import would lose it, so that it asks."""
    (folder / "cases.csv").write_text("image,split,group,Site\nv0,train,a,north\nv1,train,b,\n")
    data = open_dataset(folder, [], 64, "acquisition", folder / "cache")
    assert set(zip(data.column("item"), data.column("site"))) == {("v0", "north"), ("v1", "")}
    for read in (evaluated, imported):
        with pytest.raises(InputError, match="column 'site', which is not known"):
            read(folder)


def test_images_of_one_patient_of_the_table_are_kin_in_training_too(folder):
    """Evaluation draws them together; training must not part them. The name itself is kept by neither."""
    (folder / "cases.csv").write_text("image,split,group,patient\nv0,train,,Anna Muster\nv1,train,,Anna Muster\n")
    found = find_items(folder / "images", folder / "masks", csv=folder / "cases.csv")
    assert {item.patient for item in found.items} == {pseudonym("Anna Muster")}
    data = open_dataset(folder, [], 64, "acquisition", folder / "cache")
    kin = [set(row["kin"]) for row in data.table]
    assert set.intersection(*kin) == {f"patient {pseudonym('Anna Muster')}"} and "Anna" not in repr(data.table)
    with pytest.raises(InputError, match="of one patient, volume or group"):
        make_split(data, TrainConfig(data=str(folder), labelled=1.0, validation=0.5))


def test_an_empty_cell_of_the_table_says_nothing_of_a_slice(folder):
    (folder / "cases.csv").write_text("image,split,group,plane\nv0,train,a,\nv1,train,b,Axial\n")
    data = open_dataset(folder, [], 64, "acquisition", folder / "cache")
    assert set(data.column("plane")) == {"axial"}
