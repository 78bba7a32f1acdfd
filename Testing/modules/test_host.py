"""The host: what it offers is what Slicer offers, and its views, layouts and widgets behave as the real ones do."""

from __future__ import annotations

import apifacts
import numpy as np
import pytest

#: The host's class -> the class it stands in for, where the names differ.
STAND_INS = {"CoreIOManager": ["qSlicerIOManager"], "_ModuleManager": ["qSlicerModuleManager", "qSlicerModuleFactoryManager"],
             "_ModuleSelector": ["qSlicerModuleSelectorToolBar"]}  # fmt: skip


def _host_classes() -> list[type]:
    import slicerhost
    from slicerhost import application, ctkwidgets, layout, modules, mrmlwidgets, plots, sceneio, views

    parts = (application, ctkwidgets, layout, modules, mrmlwidgets, plots, sceneio, views)
    found = {c for part in parts for c in vars(part).values() if isinstance(c, type) and c.__module__.startswith(slicerhost.__name__)}
    return sorted((c for c in found if c.__name__ in STAND_INS or c.__name__[:3] in ("ctk", "qMR", "qSl")), key=lambda c: c.__name__)


def test_every_public_member_exists_in_slicer(host):
    assert len(_host_classes()) >= 15
    invented = []
    for cls in _host_classes():
        real = STAND_INS.get(cls.__name__, [cls.__name__])
        allowed = set().union(*(apifacts.members(name) for name in real))
        own = [c for c in cls.__mro__ if c.__module__.startswith("slicerhost")]
        qt_base = next(c for c in cls.__mro__ if c not in own)
        for name in {n for c in own for n in vars(c) if not n.startswith("_")}:
            if name not in allowed and not hasattr(qt_base, name) and name != "staticMetaObject":
                invented.append(f"{cls.__name__}.{name}")
    assert invented == []


def test_properties_are_properties_and_read_only_ones_refuse(host):
    from PySide6.QtCore import Property

    wrong = []
    for cls in _host_classes():
        if cls.__name__ in STAND_INS:
            continue
        facts = [apifacts.CLASSES[n] for n in apifacts.lineage(cls.__name__)]
        writable = {p for f in facts for p in set(f.get("properties", ())) - set(f.get("readonly", ()))}
        for name, value in vars(cls).items():
            if isinstance(value, Property) != (name in apifacts.members(cls.__name__, "properties")) and not name.startswith("_"):
                wrong.append(f"{cls.__name__}.{name}")
            elif isinstance(value, Property) and value.fset is not None and name not in writable:
                wrong.append(f"{cls.__name__}.{name} can be set")
    assert wrong == []


def test_pythonqt_manners(host):
    import ctk
    import qt

    button = qt.QPushButton()
    button.text = "Apply"
    button.setText(button.text + "!")
    assert button.text == "Apply!"
    seen = []
    assert button.connect("clicked(bool)", seen.append)
    button.clicked.connect(lambda: seen.append("plain"))
    button.click()
    assert seen == [False, "plain"]
    for widget, name in ((button, "txet"), (button, "setText"), (ctk.ctkSliderWidget(), "maximumValue"), (qt.QTimer(), "foo")):
        with pytest.raises(AttributeError, match=name):
            setattr(widget, name, 1)
    with pytest.raises(AttributeError):
        ctk.ctkSliderWidget().setMaximum(5)  # C++ only: not a slot of the real class

    class Own(qt.QWidget):
        pass

    own = Own()
    own.anything = 3
    assert own.anything == 3 and qt.Qt.AlignLeft == 1


def test_absent_parts_stay_absent(host):
    import slicer

    assert not hasattr(slicer, "packaging")
    with pytest.raises(ImportError):
        __import__("slicer.parameterNodeWrapper")


def test_settings_are_kept_apart_from_the_users(host):
    import qt
    import slicer

    assert qt.QSettings().fileName().startswith(slicer.app.temporaryPath)
    slicer.app.userSettings().setValue("CERS/Trial", "true")
    assert slicer.util.settingsValue("CERS/Trial", False, converter=slicer.util.toBool) is True
    qt.QSettings().remove("CERS/Trial")


def test_collapsible_button_hides_its_contents(host):
    import ctk
    import qt

    button = ctk.ctkCollapsibleButton()
    column = qt.QVBoxLayout(button)
    shown, hidden = qt.QLabel("a"), qt.QLabel("b")
    column.addWidget(shown)
    column.addWidget(hidden)
    hidden.setVisible(False)
    folds = []
    button.contentsCollapsed.connect(folds.append)
    button.show()
    button.collapsed = True
    assert not shown.isVisible() and button.checked is False
    button.collapsed = False
    assert shown.isVisible() and not hidden.isVisible() and folds == [True, False]


def test_node_combo_box_follows_the_scene(host, scene):
    import slicer

    combo = slicer.qMRMLNodeComboBox()
    combo.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    combo.noneEnabled = True
    changes = []
    combo.currentNodeIDChanged.connect(changes.append)
    combo.setMRMLScene(scene)
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "one")
    scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "child type")
    scene.AddNewNodeByClass("vtkMRMLTextNode", "other")
    assert combo.nodeCount() == 2 and combo.currentNode() is None
    combo.setCurrentNode(volume)
    assert changes == [volume.GetID()] and combo.currentNode() is volume
    scene.RemoveNode(volume)
    assert combo.currentNode() is None and changes[-1] == ""
    combo.showChildNodeTypes = False
    assert combo.nodeCount() == 0
    combo.setMRMLScene(None)


def test_subject_hierarchy_items_come_and_go(host, scene):
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "v")
    item = hierarchy.GetItemByDataNode(volume)
    assert item
    scene.RemoveNode(volume)
    assert hierarchy.GetItemByDataNode(volume) == 0


def _volume(host):
    values = np.zeros((20, 60, 60), np.int16)
    values[8:12, 20:40, 20:40] = 200
    return host.slicer.util.addVolumeFromArray(values, ijkToRAS=np.diag([-2.0, -2.0, 3.0, 1.0]), name="box")


def _brightness(host, view) -> float:
    import qt

    host.process(0.05)
    picture = view.grab().toImage().convertToFormat(qt.QImage.Format_Grayscale8)
    data = np.frombuffer(bytes(picture.constBits()), np.uint8).reshape(picture.height(), picture.bytesPerLine())
    return float(data[:, : picture.width()].mean())


def test_slice_view_shows_the_slice(host, window, screenshots):
    volume = _volume(host)
    host.slicer.util.setSliceViewerLayers(background=volume, fit=True)
    manager = host.app.layoutManager()
    assert manager.sliceViewNames() == ("Red", "Green", "Yellow")
    red = manager.sliceWidget("Red")
    red.sliceLogic().SetSliceOffset(30.0)
    inside = _brightness(host, red.sliceView())
    host.screenshot(window, screenshots / "host_views.png")
    red.sliceLogic().SetSliceOffset(3.0)
    assert inside > 10 and _brightness(host, red.sliceView()) < 2


def test_segments_are_drawn_in_their_colour(host, window):
    import qt

    volume = _volume(host)
    segmentation = host.slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = segmentation.GetSegmentation().AddEmptySegment("", "tumor", [1.0, 0.0, 0.0])
    mask = (host.slicer.util.arrayFromVolume(volume) > 0).astype(np.uint8)
    host.slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment, volume)
    host.slicer.util.setSliceViewerLayers(background=volume, fit=True)
    red = host.app.layoutManager().sliceWidget("Red")
    red.sliceLogic().SetSliceOffset(30.0)
    host.process(0.05)
    picture = red.sliceView().grab().toImage()
    middle = qt.QColor(picture.pixel(picture.width() // 2, picture.height() // 2))
    assert middle.red() > middle.green() + 60


def test_own_layout_with_a_modules_widget(host, window, screenshots):
    import qt
    import slicer

    manager = host.app.layoutManager()
    board = qt.QLabel("board")
    factory = slicer.qSlicerSingletonViewFactory()
    factory.setTagName("trialboard")
    factory.setWidget(board)
    manager.registerViewFactory(factory)
    changes = []
    manager.layoutChanged.connect(changes.append)
    before = manager.layout
    node = manager.layoutLogic().GetLayoutNode()
    node.AddLayoutDescription(
        5999,
        '<layout type="vertical" split="true"><item splitSize="500"><view class="vtkMRMLSliceNode" singletontag="Red">'
        '<property name="orientation" action="default">Axial</property></view></item>'
        '<item splitSize="500"><trialboard/></item></layout>',
    )
    manager.setLayout(5999)
    host.process(0.02)
    assert board.isVisible() and manager.sliceWidget("Red").isVisible() and not manager.sliceWidget("Green").isVisible()
    host.screenshot(window, screenshots / "host_layout.png")
    manager.setLayout(before)
    host.process(0.02)
    assert not board.isVisible() and manager.sliceWidget("Green").isVisible() and changes == [5999, before]


def test_scene_file_round_trip(host, scene, tmp_path):
    import slicer

    _volume(host)
    node = slicer.vtkMRMLScriptedModuleNode()
    node.SetSingletonTag("Trial")
    node.SetParameter("a", "b")
    scene.AddNode(node)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    scene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert slicer.util.arrayFromVolume(slicer.util.getNode("box")).max() == 200
    assert scene.GetSingletonNode("Trial", "vtkMRMLScriptedModuleNode").GetParameter("a") == "b"


def test_main_window_comes_and_goes(host, scene):
    import slicer

    window = host.show_main_window()
    assert slicer.util.mainWindow() is not None and host.app.layoutManager() is not None
    host.close_main_window()
    assert slicer.util.mainWindow() is None and host.app.layoutManager() is None
    assert host.show_main_window() is window
