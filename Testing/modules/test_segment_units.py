"""Parts of CERS Segment without a worker: parameters, checks of volumes, pictures, the process client."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from segmentkit import ROOT, lib, load, part, unload  # noqa: F401 - fixtures


def test_self_test_of_the_module(host, scene, part, monkeypatch):
    """What "Reload and Test" runs inside the application."""
    monkeypatch.setattr(part("InstallLogic"), "missing", lambda: ["a package"])  # the run itself is tested elsewhere
    module = load(host)
    sys.modules["CERSSegment"].CERSSegmentTest().runTest()
    unload(host, module)


def test_nothing_heavy_is_imported():
    """In a process of its own, since other tests import what they need."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]; import slicerhost; host = slicerhost.start(); "
        "host.enter_module(host.load_module(sys.argv[2] + '/CERSSegment.py')); "
        "print(sorted({'torch', 'faiss', 'transformers', 'SimpleITK', 'pydicom'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "Testing" / "Host"), str(ROOT / "CERSSegment")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr


def test_parameter_survives_nonsense_in_a_scene(host, scene, part):
    module = part("Parameter")
    node = module.parameterNode()
    node.SetParameter("threads", "many")
    assert module.Parameter(node).threads == 0 and module.Parameter(node).device == "auto"
    with pytest.raises(AttributeError):
        module.Parameter(node).unknown = 1
    assert module.parameterNode() is node


@pytest.mark.parametrize(
    "kind, words", [("vector", "2 values"), ("colour", "colour image"), ("labels", "label map"), ("4-D", "4-D volume"), ("empty", "empty")]
)
def test_volumes_that_are_refused(host, scene, part, kind, words):
    import slicer
    import vtk

    classes = {
        "labels": "vtkMRMLLabelMapVolumeNode",
        "4-D": "vtkMRMLDiffusionWeightedVolumeNode",
        "vector": "vtkMRMLVectorVolumeNode",
        "colour": "vtkMRMLVectorVolumeNode",
        "empty": "vtkMRMLScalarVolumeNode",
    }
    node = slicer.mrmlScene.AddNewNodeByClass(classes[kind], kind)
    if kind != "empty":
        image = vtk.vtkImageData()
        image.SetDimensions(5, 4, 3)
        image.AllocateScalars(
            vtk.VTK_UNSIGNED_CHAR if kind == "colour" else vtk.VTK_SHORT, {"vector": 2, "colour": 3, "4-D": 6}.get(kind, 1)
        )
        node.SetAndObserveImageData(image)
    sentence = part("VolumeInput").reject(node)
    assert words in sentence and sentence.endswith(".") and kind in sentence


def test_refused_volume_is_told_in_the_panel(host, window, part):
    import slicer

    module = load(host)
    panel = host.enter_module(module)
    node = slicer.util.addVolumeFromArray(np.ones((3, 4, 5), np.uint8), name="drawn", nodeClassName="vtkMRMLLabelMapVolumeNode")
    panel.ui.inputSelector.setCurrentNode(node)
    host.process(0.05)
    assert "'drawn' is a label map" in panel.ui.statusLabel.text.replace("&#x27;", "'")
    assert not panel.ui.segmentButton.enabled and "label map" in panel.ui.segmentButton.toolTip
    unload(host, module)


def test_volume_is_copied_in_small_pieces(host, scene, part, tmp_path):
    import time

    kit, module = part("SelfTest"), part("VolumeInput")
    volume = kit.makeVolume(shape=(40, 256, 256))
    steps, longest = 0, 0.0
    generator = module.write(volume, str(tmp_path / "copy.npy"))
    while True:
        start = time.thread_time()
        try:
            next(generator)
        except StopIteration:
            break
        steps, longest = steps + 1, max(longest, time.thread_time() - start)
    assert steps >= 5 and longest < 0.05
    import slicer

    assert np.array_equal(np.load(tmp_path / "copy.npy"), slicer.util.arrayFromVolume(volume))


def test_world_geometry_includes_the_transform(host, scene, part):
    kit, module = part("SelfTest"), part("VolumeInput")
    volume = kit.makeVolume()
    plain = module.worldGeometry(volume).ijkToRAS
    assert np.allclose(plain, kit.MATRIX)
    parent = kit.makeTransform(volume)
    import slicer

    assert np.allclose(module.worldGeometry(volume).ijkToRAS, slicer.util.arrayFromTransformMatrix(parent) @ kit.MATRIX)


@pytest.mark.parametrize("kind", ["picture.png", "print.jpg", "gone.png", "stack.png"])
def test_pixels_of_a_picture_have_no_known_size(host, scene, part, kind, tmp_path):
    """Slicer gives 1 mm, or what the header says for printing; a person may know better."""
    import slicer
    from PIL import Image

    grey = np.random.default_rng(0).integers(0, 255, (40, 30), np.uint8)
    Image.fromarray(grey).save(tmp_path / kind, **({"dpi": (72, 72)} if kind == "print.jpg" else {}))
    module = part("VolumeInput")
    from cers.case.io import header_spacing

    volume = slicer.util.addVolumeFromArray(np.stack([grey] * (3 if kind == "stack.png" else 1)), name=kind)
    volume.SetSpacing(*header_spacing(tmp_path / kind)[:2], 1.0)
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(tmp_path / kind))
    volume.SetAndObserveStorageNodeID(storage.GetID())
    if kind == "gone.png":
        (tmp_path / kind).unlink()
    assert not module.spacingKnown(volume) and "pixels" in module.note(volume)
    volume.SetSpacing(0.43, 0.43, 1)
    assert module.spacingKnown(volume) == (kind != "gone.png") == (module.note(volume) == "")


@pytest.mark.parametrize(
    "shape, spacing, known", [((1, 40, 30), (1, 1, 1), False), ((1, 40, 30), (0.5, 0.5, 1), True), ((3, 40, 30), (1, 1, 1), True)]
)
def test_what_has_no_file_is_told_by_its_grid(host, scene, part, shape, spacing, known):
    import slicer

    volume = slicer.util.addVolumeFromArray(np.random.default_rng(0).integers(0, 255, shape, np.uint8), name="grey")
    volume.SetSpacing(*spacing)
    assert part("VolumeInput").spacingKnown(volume) == known


def test_patient_identifier_leaves_only_as_pseudonym(host, scene, part):
    import slicer
    from slicer import vtkMRMLSubjectHierarchyConstants as constants

    volume = part("SelfTest").makeVolume()
    node = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = node.CreateSubjectItem(node.GetSceneItemID(), "Jane Doe")
    node.SetItemAttribute(patient, constants.GetDICOMPatientIDAttributeName(), "4711")
    node.SetItemAttribute(
        patient,
        constants.GetDICOMLevelAttributeName() if hasattr(constants, "GetDICOMLevelAttributeName") else "Level",
        constants.GetDICOMLevelPatient(),
    )
    node.SetItemParent(node.GetItemByDataNode(volume), patient)
    node.SetItemAttribute(node.GetItemByDataNode(volume), constants.GetDICOMSeriesModalityAttributeName(), "MR")
    from cers.case.dicom import pseudonym

    origin = part("VolumeInput").origin(volume)
    assert origin == {"modality": "MR", "patient_id": pseudonym("4711")}


def test_picture_has_true_proportions_and_the_contour_where_it_belongs(host, part):
    import qt

    pictures = part("Pictures")
    mask = np.zeros((20, 40), np.uint8)
    mask[5:15, 10:30] = 1
    picture = pictures.Picture(np.full((20, 40), 100, np.uint8), mask, spacing=(2.0, 1.0), colour=(1.0, 0.0, 0.0))
    image = pictures.pixmap(picture, 200, 200).toImage()  # 40 mm x 40 mm fills the square
    red = [
        (x, y)
        for x in range(200)
        for y in range(200)
        if qt.QColor(image.pixel(x, y)).red() > 180 and qt.QColor(image.pixel(x, y)).green() < 90
    ]
    assert abs(min(x for x, _ in red) - 50) <= 2 and abs(max(x for x, _ in red) - 150) <= 2
    assert abs(min(y for _, y in red) - 50) <= 2 and abs(max(y for _, y in red) - 150) <= 2
    fine = pictures.pixmap(picture, 200, 200, ratio=2.0)  # a screen of high resolution: as large, of twice as many pixels
    assert (fine.width(), fine.height(), fine.devicePixelRatio()) == (400, 400, 2.0)
    assert pictures.drawn(picture, 200, 200, 2.0) and not pictures.drawn(picture, 200, 200, 1.5)
    without = pictures.pixmap(picture, 200, 200, contour=False).toImage()
    assert qt.QColor(without.pixel(50, 100)).red() == qt.QColor(without.pixel(50, 100)).green()


def test_windowing(host, part):
    windowed = part("Pictures").windowed
    assert windowed(np.array([[0.0, 50.0, 100.0, 500.0]]), (0, 100)).tolist() == [[0, 127, 255, 255]]
    assert windowed(np.array([[3, 3]]), None).dtype == np.uint8


EXIT = """
import sys
sys.path[:0] = sys.argv[1:4]
import slicerhost
host = slicerhost.start()
panel = host.enter_module(host.load_module(sys.argv[3] + "/CERSSegment.py"))
worker, answers = panel.control.logic.worker, []
worker.request("hello", {"protocol": 1}, onResult=answers.append)
host.wait_for(lambda: answers, 120)
print(int(worker._process.processId()), worker.folder)
if sys.argv[4] == "module unloaded":
    host.unload_modules()
elif sys.argv[4] == "stopped just now":
    worker.stop()
"""


@pytest.mark.parametrize("how", ["module unloaded", "stopped just now", "without a word"])
def test_nothing_is_complained_about_when_the_application_ends(how):
    """A process whose QProcess is taken down while it runs calls back into what is gone."""
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(ROOT), str(ROOT / "Testing" / "Host"), str(ROOT / "CERSSegment"), how],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    pid, folder = done.stdout.split()
    assert not os.path.exists(folder)
    if os.name == "posix":
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_interpreter_of_the_worker(host, part, monkeypatch, tmp_path):
    paths = part("Paths")
    monkeypatch.delenv("CERS_PYTHON", raising=False)
    python_slicer = tmp_path / "PythonSlicer"
    python_slicer.touch()
    python_slicer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert paths.pythonExecutable() == str(python_slicer)
    monkeypatch.setenv("CERS_PYTHON", "/somewhere/python")
    assert paths.pythonExecutable() == "/somewhere/python"
    monkeypatch.delenv("CERS_PYTHON")
    python_slicer.unlink()
    monkeypatch.setattr(sys, "executable", "/opt/Slicer/bin/SlicerApp-real")
    with pytest.raises(RuntimeError, match="CERS_PYTHON"):
        paths.pythonExecutable()
    assert (paths.packageFolder() / "cers").is_dir()


def hello(host, part) -> list:
    """What the first request to a worker of its own is answered with."""
    client, answers = part("WorkerClient").WorkerClient(), []
    client.request("hello", {"protocol": 1}, onResult=answers.append, onError=lambda *error: answers.append(error))
    host.wait_for(lambda: answers, 60)
    client.close()
    return answers


def test_interpreter_of_the_users_own_is_not_led_to_slicers_libraries(host, part, monkeypatch, tmp_path):
    monkeypatch.setenv("CERS_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONHOME", str(tmp_path / "Slicer" / "lib" / "Python"))  # Slicer's launcher sets it
    monkeypatch.setenv("CERS_MODELS", str(tmp_path))  # as a start-up script of Slicer may do: the panel goes by it, too
    assert hello(host, part)[0]["protocol"] == 1
    assert part("WorkerClient").workerCommand()[2]["CERS_MODELS"] == str(tmp_path)


def test_interpreter_of_the_users_own_that_is_of_no_use_is_named(host, part, monkeypatch):
    """The panel has no button for that one: it is not Slicer's to install into."""
    client = part("WorkerClient")
    monkeypatch.setenv("CERS_PYTHON", "/no/such/python")
    assert "'/no/such/python'" in hello(host, part)[0][1] and "as CERS_PYTHON." in hello(host, part)[0][1]
    words = client.crashSentence(["ModuleNotFoundError: No module named 'torch'"])
    assert "missing in '/no/such/python'" in words and "button" not in words
    monkeypatch.delenv("CERS_PYTHON")
    assert "button at the top" in client.crashSentence(["ModuleNotFoundError: No module named 'torch'"])


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no PYTHONSAFEPATH; Slicer's Python is 3.12")
def test_nothing_in_the_working_folder_is_run(host, part, monkeypatch, tmp_path):
    (tmp_path / "json.py").write_text("raise ImportError('this came with the images')\n")
    monkeypatch.chdir(tmp_path)
    assert hello(host, part)[0]["protocol"] == 1


@pytest.mark.parametrize(
    "line, words",
    [("ModuleNotFoundError: No module named 'torch'", "No module named 'torch'"), ("MemoryError", "memory"), ("", "unexpectedly")],
)
def test_crash_sentences(host, part, line, words):
    assert words in part("WorkerClient").crashSentence(["Traceback", line])


def client_of(part, tmp_path, script: str, **options):
    program = tmp_path / "worker.py"
    program.write_text(script)
    return part("WorkerClient").WorkerClient(lambda: (sys.executable, [str(program)], dict(os.environ)), **options)


def test_client_starts_late_and_again(host, part, tmp_path):
    script = (
        "import json, sys\nprint('a library that prints')\nprint(json.dumps({'type': 'ready', 'protocol': 1}), flush=True)\n"
        "for line in sys.stdin:\n    r = json.loads(line)\n    if r['method'] == 'die': sys.exit(3)\n"
        "    print(json.dumps({'id': r['id'], 'type': 'result', 'result': {'echo': r['params']}}), flush=True)\n"
    )
    client, results, errors = client_of(part, tmp_path, script), [], []
    assert client.state == "stopped"
    for n in range(3):
        client.request("echo", {"n": n}, onResult=results.append)
    host.wait_for(lambda: len(results) == 3, 20)
    assert [r["echo"]["n"] for r in results] == [0, 1, 2]
    folder = client.folder
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    client.request("die", onError=lambda *error: errors.append(error))
    host.wait_for(lambda: errors, 20)
    assert errors[0][0] == "worker" and client.state == "stopped" and not os.path.exists(folder)
    client.request("echo", {}, onResult=results.append)
    host.wait_for(lambda: len(results) == 4, 20)
    assert client.generation == 2
    client.stop()
    host.process(0.2)


def test_client_tells_of_another_version_and_of_no_start(host, part, tmp_path):
    errors = []
    client = client_of(part, tmp_path, 'print(\'{"type": "ready", "protocol": 99}\', flush=True)\ninput()\n')
    client.request("hello", onError=lambda *e: errors.append(e))
    host.wait_for(lambda: errors, 20)
    assert "another version" in errors[0][1]
    slow = client_of(part, tmp_path, "import time\ntime.sleep(60)\n", startWithin=200)
    slow.request("hello", onError=lambda *e: errors.append(e))
    host.wait_for(lambda: len(errors) == 2, 20)
    assert "did not start in time" in errors[1][1]
    absent = part("WorkerClient").WorkerClient(lambda: ("/no/such/python", [], {}))
    absent.request("hello", onError=lambda *e: errors.append(e))
    host.wait_for(lambda: len(errors) == 3, 20)
    assert "could not be started" in errors[2][1]
    host.process(0.2)


def test_client_kills_a_worker_that_does_not_answer_a_cancel(host, part, tmp_path):
    import time

    errors = []
    client = client_of(
        part, tmp_path, 'import time\nprint(\'{"type": "ready", "protocol": 1}\', flush=True)\ntime.sleep(60)\n', killAfter=300
    )
    identifier = client.request("segment", onError=lambda *e: errors.append(e))
    host.wait_for(lambda: client.state == "ready", 20)
    start = time.monotonic()
    client.cancel(identifier)
    host.wait_for(lambda: errors, 5)
    assert errors[0][0] == "cancelled" and 0.2 < time.monotonic() - start < 1.5
    host.process(0.2)
