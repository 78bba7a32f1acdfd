"""What CERS Segment says below its button: an error goes with its cause, a word on a result stays with the result."""

from __future__ import annotations

import numpy as np
import pytest
from segmentkit import loaded, visit  # noqa: F401 - fixtures


@pytest.fixture
def user(host, loaded, window):
    with visit(host, loaded) as person:
        from CERSSegmentLib import SelfTest

        person.choose(SelfTest.makeVolume())
        yield person


@pytest.mark.parametrize("field, words", [("poolPath", "pool folder"), ("modelPath", "model folder")])
def test_an_error_goes_when_its_cause_is_changed(user, tmp_path, field, words):
    path = getattr(user.ui, field)
    path.currentPath = str(tmp_path / "gone")
    user.press()
    assert "✖" in user.status() and words in user.status()
    user.ui.textEdit.setText("ring-enhancing")
    assert words in user.status(), "nothing was done about it"
    path.currentPath = str(tmp_path)
    assert user.status() == ""


def test_an_error_about_the_volume_goes_with_the_volume(user):
    import slicer

    gray = user.ui.inputSelector.currentNode()
    colour = slicer.util.addVolumeFromArray(np.zeros((3, 8, 8, 3), np.uint8), name="photo", nodeClassName="vtkMRMLVectorVolumeNode")
    user.ui.inputSelector.setCurrentNode(colour)
    assert "colour image" in user.status()
    user.ui.textEdit.setText("ring-enhancing")
    assert "colour image" in user.status()
    user.ui.inputSelector.setCurrentNode(gray)
    assert user.status() == ""


def test_the_missing_name_is_not_asked_for_once_it_is_there(user, tmp_path):
    from CERSSegmentLib import SegmentationResult

    volume = user.ui.inputSelector.currentNode()
    segmentation = SegmentationResult.create(volume)
    labelmap = np.ones(tuple(reversed(volume.GetImageData().GetDimensions())), np.uint8)
    list(SegmentationResult.fill(segmentation, volume, labelmap, [slice(0, n) for n in labelmap.shape], {1: "tumor"}))
    user.ui.outputSelector.setCurrentNode(segmentation)
    user.ui.poolPath.currentPath = str(tmp_path)
    user.ui.annotatorEdit.setText("")
    user.ui.addButton.click()
    assert "Write your name" in user.status()
    user.ui.textEdit.setText("ring-enhancing")
    assert "Write your name" in user.status()
    user.ui.annotatorEdit.setText("A")
    assert user.status() == ""


def test_what_the_worker_complained_of_goes_with_any_change_and_a_warning_stays(user):
    user.logic.said.emit("error", "There was not enough memory.")
    user.ui.threadsSpin.setValue(2)
    assert user.status() == ""
    user.logic.said.emit("warning", "No lesion was found in this volume.")
    user.ui.threadsSpin.setValue(1)
    assert "No lesion was found" in user.status()
