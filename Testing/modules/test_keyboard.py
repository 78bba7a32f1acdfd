"""The panels without eyes and without a mouse: every field has a name for a screen reader, and Tab goes from top to bottom."""

from __future__ import annotations

import numpy as np
import pytest
from poolroom import own_panel, user  # noqa: F401 - fixtures
from segmentkit import SHAPE, loaded, visit  # noqa: F401 - fixtures


@pytest.fixture
def segmented(host, window, loaded):
    """CERS Segment with a result of one slice and its evidence, all parts open."""
    with visit(host, loaded, 1360, 1400) as person:
        from CERSSegmentLib import SegmentationResult, SelfTest, VolumeInput
        from CERSSegmentLib.EvidenceModel import EvidenceModel

        volume = SelfTest.makeVolume(name="head", matrix=np.diag([1.0, 1.0, 5.0, 1.0]), shape=SHAPE)
        labelmap, box = np.zeros(SHAPE, np.uint8), [slice(4, 5), slice(20, 40), slice(20, 40)]
        labelmap[tuple(box)] = 1
        segmentation = SegmentationResult.create(volume)
        list(SegmentationResult.fill(segmentation, volume, labelmap, box, {1: "tumor"}))
        reference = {"visual": 0.9, "cot": 0.8, "weight": 0.2, "influence": 0.1, "pinned": False}
        entry = {
            "plane": "axial",
            "index": 4,
            "array_index": 4,
            "rationale": None,
            "pixels": 400,
            "disagreement": 0.1,
            "confidence": 0.9,
            "coverage": {"value": 0.9, "covered": True, "message": "Close cases in this pool."},
            "references": [{"id": f"case{n}", "rank": n, **reference} for n in (1, 2)],
            "rejected": [{"id": "case3", "stage": "cot", "reason": "It is another patient's.", "visual": 0.5, "cot": 0.2}],
        }
        summary = {"labels": {"1": "tumor"}, "volume_ml": {"tumor": 2.0}, "seconds": {}, "slices": [entry], "provenance": {}}
        person.choose(volume)
        person.logic.finished.emit(EvidenceModel(summary, labelmap, VolumeInput.worldGeometry(volume), volume, segmentation, box))
        for part in (person.ui.advancedButton, person.ui.nextButton):
            part.collapsed = False
        host.process(0.5)
        assert not person.control.evidence.cards[1].widget.isHidden()
        yield person
        for part in (person.ui.advancedButton, person.ui.nextButton):
            part.collapsed = True


def fields(panel) -> list:
    """Everything that a person can use, seen or not, without what Qt itself makes such a field of: the line in a combo box, scroll bars."""
    import qt

    kinds = qt.QAbstractButton, qt.QLineEdit, qt.QComboBox, qt.QAbstractSpinBox, qt.QAbstractSlider, qt.QAbstractItemView
    kinds += qt.QTextEdit, qt.QPlainTextEdit
    whole = qt.QComboBox, qt.QAbstractSpinBox, qt.QLineEdit, qt.QAbstractScrollArea

    def inner(widget) -> bool:
        around = widget.parentWidget()
        while around is not None and around is not panel and not isinstance(around, whole):
            around = around.parentWidget()
        return isinstance(around, whole)

    return [w for w in panel.findChildren(qt.QWidget) if isinstance(w, kinds) and not inner(w)]


def name(widget) -> str:
    """What Qt tells a screen reader. Of a combo box that is its choice, on Linux, so none is left chosen meanwhile."""
    import qt
    from PySide6.QtGui import QAccessible

    def asked() -> str:
        return QAccessible.queryAccessibleInterface(widget).text(QAccessible.Name)

    if not isinstance(widget, qt.QComboBox):
        return asked()
    chosen, text, blocked = widget.currentIndex, widget.currentText, widget.blockSignals(True)
    widget.setCurrentIndex(-1)
    if widget.editable:
        widget.clearEditText()
    told = asked()
    widget.setCurrentIndex(chosen)
    if widget.editable:
        widget.setEditText(text)
    widget.blockSignals(blocked)
    return told


def unnamed(panel) -> list[str]:
    found = fields(panel)
    assert len(found) > 20
    return [
        f"{w.className()} {w.objectName} {w.toolTip} in {w.parentWidget().objectName}"
        for w in found
        if not any(letter.isalpha() for letter in name(w))
    ]


def test_every_field_of_cers_segment_has_a_name(segmented):
    assert unnamed(segmented.control.form) == []


def test_every_field_of_the_knowledge_pool_has_a_name(own_panel, user):
    assert unnamed(user.ui.pages.parentWidget()) == []


def test_tab_goes_from_top_to_bottom(segmented, host):
    import qt

    form, evidence = segmented.control.form, segmented.control.evidence
    window = form.window()  # it knows who has the focus in it even while another window is the active one
    walked = [segmented.ui.inputSelector.findChild(qt.QComboBox)]
    walked[0].setFocus()
    assert window.focusWidget() == walked[0]
    while True:
        host.app.sendEvent(walked[-1], qt.QKeyEvent(qt.QEvent.KeyPress, qt.Qt.Key_Tab, qt.Qt.NoModifier))
        here = window.focusWidget()
        if here is None or here in walked or not form.isAncestorOf(here):
            break
        walked.append(here)
    boxes = [qt.QRect(w.mapTo(form, qt.QPoint(0, 0)), w.size) for w in walked]
    for before, after, one, other in zip(boxes, boxes[1:], walked, walked[1:]):
        assert after.top() > before.top() or after.left() > before.left(), f"from '{name(one)}' up to '{name(other)}'"
    assert {segmented.ui.bodySiteCombo, segmented.ui.annotatorEdit, evidence.cards[1].choice.drop, evidence.export} <= set(walked)
