"""The annotator's loop in CERS Segment: segment, correct, add to the pool, and the next run uses it. With the real worker."""

from __future__ import annotations

import numpy as np
import phantom
import pytest
from segmentkit import loaded, visit  # noqa: F401 - fixtures

from cers.errors import InputError
from cers.pool import Pool

pytestmark = pytest.mark.filterwarnings("ignore")

EDITOR = """
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget


class SegmentEditor(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "Segment Editor"


class SegmentEditorWidget(ScriptedLoadableModuleWidget):
    pass
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("torch", reason="torch is not installed: the worker needs it")
    return phantom.build_model(tmp_path_factory.mktemp("model") / "model", share=0.2)


@pytest.fixture
def pool(tmp_path):
    with Pool.create(tmp_path / "pool"):
        pass
    return tmp_path / "pool"


@pytest.fixture
def user(host, loaded, window):
    with visit(host, loaded) as person:
        person.ui.annotatorEdit.setText("Ada Lovelace")
        yield person


def head(patient: str, seed: int = 7, shift: int = 0):
    """A volume node of a patient with that DICOM patient id."""
    import slicer
    from slicer import vtkMRMLSubjectHierarchyConstants as constants

    array = np.roll(phantom.head(seed)[0], shift, axis=2)
    if shift:
        array = array + np.random.default_rng(1).normal(0, 20, array.shape)
    volume = slicer.util.addVolumeFromArray(array.astype(np.float32), ijkToRAS=phantom.matrix(), name=f"head of {patient}")
    node = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = node.CreateSubjectItem(node.GetSceneItemID(), patient)
    node.SetItemAttribute(item, constants.GetDICOMPatientIDAttributeName(), patient)
    node.SetItemAttribute(item, "Level", constants.GetDICOMLevelPatient())
    node.SetItemParent(node.GetItemByDataNode(volume), item)
    return volume


def paint(segmentation, volume, mask) -> None:
    """What a person leaves behind in the Segment Editor."""
    import slicer
    from CERSSegmentLib import SegmentationResult

    slicer.util.updateSegmentBinaryLabelmapFromArray(
        mask.astype(np.uint8), segmentation, SegmentationResult.ownSegments(segmentation)["tumor"], volume
    )


def add(user) -> str:
    user.said.clear()
    user.ui.addButton.click()
    user.wait()
    assert len(user.said) == 1
    return user.said[0][1]


def test_correct_add_and_the_next_volume_is_segmented_with_it(user, model, pool, host, screenshots):
    import slicer

    volume = head("one")
    assert not user.ui.correctFrame.isVisibleTo(user.control.form)
    user.segment(volume, pool, model)
    proposed = user.control.controller.model.labelmap.copy()
    assert proposed.any() and not any(e["references"] for e in user.control.controller.model.slices.values())
    key = user.control.controller.key
    corrected = phantom.head(7)[1]
    paint(user.segmentation, volume, corrected)
    mine = user.segmentation.GetSegmentation().AddEmptySegment("mine", "Mine")
    user.segmentation.GetDisplayNode().SetSegmentVisibility(
        user.segmentation.GetSegmentation().GetNthSegmentID(0), False
    )  # must not matter
    sentence = add(user)
    host.screenshot(user.window, screenshots / "segment_added.png")
    assert user.said[0][0] == "good" and "added to the pool" in sentence and "Mine" in sentence, sentence
    assert (
        user.control.controller.key == key and user.segmentation.GetSegmentation().GetSegment(mine) is not None
    )  # saving does not advance
    from cers.case import PlaneView
    from cers.pool.corrections import proposal

    with Pool.open(pool) as kept:
        cases = [kept.get(i) for i in kept.ids()]
        expected = 2 * ((proposed > 0) & (corrected > 0)).sum() / ((proposed > 0).sum() + (corrected > 0).sum())
        assert f"{expected:.2f}" in sentence
        view = PlaneView(user.control.controller.model.geometry, "axial")
        for case in cases:
            assert np.array_equal(case.mask, view.slices(corrected)[case.slice_index]) and case.labels == {1: "tumor"}
            assert np.array_equal(proposal(kept, case.id), view.slices(proposed)[case.slice_index] > 0)
            assert case.annotator == "Ada Lovelace" and "head of" not in str(case.metadata()) and case.rationale is not None
    ids = {case.id for case in cases}
    assert "in the pool already" in add(user)
    user.segment(head("two", shift=2), pool, model)
    used = {r["id"] for e in user.control.controller.model.slices.values() for r in e["references"]}
    assert used and used <= ids
    slicer.mrmlScene.Clear(0)


def test_a_second_correction_is_a_new_version(user, model, pool):
    volume = head("one")
    user.segment(volume, pool, model)
    corrected = phantom.head(7)[1]
    paint(user.segmentation, volume, corrected)
    add(user)
    corrected[:, :28] = 0
    paint(user.segmentation, volume, corrected)
    assert "stay in the pool, but are no longer used" in add(user)
    with Pool.open(pool) as kept:
        reviews = [m["review"] for m in kept.list()]
    assert "excluded" in reviews and "unreviewed" in reviews


def test_one_slice_is_not_told_as_several(user, model, pool):
    import slicer

    image, lesion = phantom.head(7)
    n = int(lesion.sum((1, 2)).argmax())
    volume = slicer.util.addVolumeFromArray(image[n : n + 1].astype(np.float32), ijkToRAS=phantom.matrix(), name="one slice")
    user.segment(volume, pool, model)
    paint(user.segmentation, volume, lesion[n : n + 1])
    assert "One slice was added to the pool" in add(user)
    assert "(one slice)" in add(user)
    paint(user.segmentation, volume, np.roll(lesion[n : n + 1], 3, axis=2))
    assert "One earlier slice of this volume stays" in add(user)


def test_the_name_asked_for_is_the_one_given_in_the_knowledge_pool(user):
    import slicer

    slicer.app.userSettings().setValue("CERS/Annotator", "Ben")
    try:
        user.control.enter()
        assert user.ui.annotatorEdit.text == "Ben"
    finally:
        slicer.app.userSettings().remove("CERS/Annotator")


def test_what_cannot_be_added_is_told_in_one_sentence(user, model, pool, monkeypatch):
    volume = head("one")
    user.segment(volume, "", model)
    assert add(user).startswith("No pool is chosen")
    user.ui.poolPath.currentPath = str(pool)
    user.ui.annotatorEdit.setText("")
    assert "your name" in add(user)
    user.ui.annotatorEdit.setText("Ada")
    paint(user.segmentation, volume, np.zeros(phantom.SHAPE))
    assert "empty" in add(user)
    paint(user.segmentation, volume, phantom.head(7)[1])
    ask = user.logic.worker.request
    monkeypatch.setattr(
        user.logic.worker,
        "request",
        lambda method, params=None, *a, **k: ask(method, {**params, "read_only": True} if method == "open_pool" else params, *a, **k),
    )
    sentence = add(user)
    assert user.said[0][0] == "error" and "can only be read" in sentence
    with Pool.open(pool) as kept:
        assert len(kept) == 0


def test_correct_opens_the_segment_editor_on_the_result(user, model, host, tmp_path):
    import slicer
    from CERSSegmentLib import Correction, SegmentationResult

    volume = head("one")
    user.segment(volume, "", model)
    user.ui.correctButton.click()
    assert "no Segment Editor" in user.status()
    (tmp_path / "SegmentEditor.py").write_text(EDITOR)
    host.load_module(tmp_path / "SegmentEditor.py")
    try:
        user.ui.correctButton.click()
        assert user.window.moduleSelector().selectedModule == "SegmentEditor"
        node = slicer.mrmlScene.GetSingletonNode("SegmentEditor", "vtkMRMLSegmentEditorNode")
        assert node.GetSegmentationNode() is user.segmentation and node.GetSourceVolumeNode() is volume
        assert node.GetSelectedSegmentID() == SegmentationResult.ownSegments(user.segmentation)["tumor"]
        user.window.moduleSelector().selectModule("CERSSegment")
    finally:
        del slicer.modules.segmenteditor
    slicer.mrmlScene.RemoveNode(volume)
    assert "no longer in the scene" in Correction.reject(user.segmentation) and not user.ui.addButton.enabled


@pytest.mark.parametrize("moved", [False, True])
def test_mask_is_read_in_the_volumes_grid(host, scene, loaded, moved):
    """Also where the editor gave the segment another grid, or painted beyond the volume."""
    import slicer
    from CERSSegmentLib import Correction, SegmentationResult, SelfTest

    volume, array = SelfTest.makeVolume(), SelfTest.lesionMap()
    if moved:
        SelfTest.makeTransform(volume)
    segmentation = SegmentationResult.create(volume)
    box = [slice(0, n) for n in array.shape]
    list(SegmentationResult.fill(segmentation, volume, array, box, {1: "tumor", 2: "edema"}))

    def read():
        generator = Correction.read(segmentation, volume, {1: "tumor", 2: "edema"})
        while True:
            try:
                next(generator)
            except StopIteration as end:
                return end.value

    assert np.array_equal(read(), array)
    own = SegmentationResult.ownSegments(segmentation)
    beyond = np.zeros((2, array.shape[1] + 6, 5), np.uint8)
    beyond[:] = 1
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    image = SegmentationResult.oriented(volume, beyond, (-1, -3, -2))
    logic.SetBinaryLabelmapToSegment(image, segmentation, own["edema"], logic.MODE_REPLACE, image.GetExtent())
    expected = np.where(array == 1, 1, 0)
    expected[:1, :, :3] = 2
    assert np.array_equal(read(), expected)
    if not moved:  # the segmentation alone is moved, by one voxel along i
        parent = SelfTest.makeTransform(segmentation)
        shift = np.eye(4)
        shift[:3, 3] = SelfTest.MATRIX[:3, 0]
        parent.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(shift))
        expected = np.where(np.roll(array, 1, axis=2) == 1, 1, 0)
        expected[:1, :, :4] = 2
        assert np.array_equal(read(), expected)


def test_what_was_not_segmented_is_not_kept(user, model, pool):
    """A sequence shows another time point by now."""
    import slicer
    import vtk

    volume = head("one")
    user.segment(volume, pool, model)
    assert user.control.controller.queryPicture() is not None
    other = vtk.vtkImageData()
    other.DeepCopy(volume.GetImageData())
    volume.SetAndObserveImageData(other)
    voxels = slicer.util.arrayFromVolume(volume)
    voxels[:] = np.roll(voxels, 9, axis=1) + 100
    slicer.util.arrayFromVolumeModified(volume)
    assert user.control.controller.queryPicture() is None  # no contour on a picture that it was not drawn on
    assert "another time point" in add(user)
    with Pool.open(pool) as opened:
        assert not len(opened)


def test_a_renamed_segment_is_kept_under_its_new_name(user, model, pool):
    from CERSSegmentLib import SegmentationResult

    user.segment(head("one"), pool, model)
    content, own = user.segmentation.GetSegmentation(), SegmentationResult.ownSegments(user.segmentation)
    segment = content.GetSegment(own["tumor"])
    assert segment.GetName() == "Tumor" and SegmentationResult.namesNow(user.segmentation, {1: "tumor"}) == {1: "tumor"}
    segment.SetName("Left_tumor (final)")
    assert SegmentationResult.namesNow(user.segmentation, {1: "tumor"}) == {1: "tumor"}
    segment.SetName(" Hippocampus ")
    assert "name of its segment: Hippocampus." in add(user)
    with Pool.open(pool) as opened:
        assert {name for case in opened.list() for name in case["labels"].values()} == {"Hippocampus"}
    segment.SetName("Edema")
    with pytest.raises(InputError, match="same name"):
        SegmentationResult.namesNow(user.segmentation, {1: "tumor", 2: "edema"})


def test_a_duplicate_of_the_segment_is_a_backup(user, model, pool):
    import slicer
    from CERSSegmentLib import SegmentationResult

    volume = head("two")
    user.segment(volume, pool, model)
    content, own = user.segmentation.GetSegmentation(), SegmentationResult.ownSegments(user.segmentation)["tumor"]
    content.CopySegmentFromSegmentation(content, own, False)
    assert content.GetNumberOfSegments() == 2 and SegmentationResult.ownSegments(user.segmentation) == {"tumor": own}
    corrected = phantom.head(7)[1]
    slicer.util.updateSegmentBinaryLabelmapFromArray(corrected.astype(np.uint8), user.segmentation, own, volume)
    add(user)
    view = user.control.controller.model.planes["axial"]
    with Pool.open(pool) as opened:
        kept = [opened.get(i) for i in opened.ids()]
    assert kept and all(np.array_equal(c.mask > 0, view.slices(corrected)[c.slice_index] > 0) for c in kept)
    content.RemoveSegment(own)
    assert list(SegmentationResult.ownSegments(user.segmentation)) == ["tumor"]  # the backup is what is left


def test_a_rerun_keeps_what_a_person_had_drawn(user, model, pool):
    import slicer
    from CERSSegmentLib import SegmentationResult

    from cers.case import Case

    square = np.zeros((64, 64), np.uint8)
    square[20:40, 20:40] = 1
    with Pool.open(pool) as opened:
        case = opened.add(Case(np.random.default_rng(0).normal(100, 20, (64, 64)).astype("f4"), square, {1: "tumor"}, volume_id="v"))
    volume = head("one")
    user.segment(volume, pool, model)
    evidence, key = user.control.controller.model, user.control.controller.key
    view = evidence.planes[key[0]]

    def drawn():
        own = SegmentationResult.ownSegments(user.segmentation)["tumor"]
        return view.slices(slicer.util.arrayFromSegmentBinaryLabelmap(user.segmentation, own, volume))[key[1]].copy()

    paint(user.segmentation, volume, np.roll(phantom.head(7)[1], 2, axis=2))
    mine = drawn()
    user.control.controller.pin(case, True)
    user.control.controller.rerun()
    user.wait()
    assert "by hand" in user.said[-1][1] and not np.array_equal(drawn(), mine)
    user.ui.previousButton.click()
    assert np.array_equal(drawn(), mine) and user.control.controller.model is evidence


def test_a_rerun_of_a_result_as_it_was_keeps_nothing(user, model, pool):
    from CERSSegmentLib import SegmentationResult

    user.segment(head("one"), pool, model)
    user.control.controller.rerun()
    user.wait()
    assert "by hand" not in user.said[-1][1] and SegmentationResult.previous(user.segmentation) is None


def test_cancelled_while_vectors_are_made_says_what_stays(user, model, pool, host):
    from cers.case import Case

    volume = head("three")
    user.segment(volume, pool, model)
    square, rng = np.zeros((64, 64), np.uint8), np.random.default_rng(0)
    square[20:40, 20:40] = 1
    with Pool.open(pool) as opened:  # another annotator's import, without vectors yet
        for n in range(200):
            opened.add(Case(rng.normal(100, 20, (64, 64)).astype("f4"), square, {1: "tumor"}, volume_id=f"v{n}"))
        before = len(opened)
    user.said.clear()
    seen = []
    user.logic.progressed.connect(lambda _fraction, words: seen.append(words))
    user.ui.addButton.click()
    host.wait_for(lambda: any("Embedding" in words for words in seen), 60, "embedding")
    user.ui.segmentButton.click()
    user.wait()
    with Pool.open(pool) as opened:
        assert len(opened) > before
    assert "stay there" in user.said[-1][1]
