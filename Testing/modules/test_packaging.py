"""What Slicer's build and extensions index will read, and what both modules must be for the application to load them."""

from __future__ import annotations

import ast
import json
import re
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import apifacts
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "Testing"))
import package_lists  # noqa: E402

MODULES = ("CERSSegment", "CERSKnowledgePool")
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
HEAVY = {"torch", "torchvision", "faiss", "transformers", "pandas", "matplotlib", "highdicom", "safetensors"}
AT_FILE_SCOPE = set(sys.stdlib_module_names) | {"slicer", "qt", "ctk", "vtk", "numpy", "SimpleITK"}


# ---- lists


@pytest.mark.parametrize(("cmake_file", "name"), sorted(package_lists.expected()))
def test_lists_name_every_file_and_no_other(cmake_file, name):
    files, tree = package_lists.listed(cmake_file, name), package_lists.expected()[cmake_file, name]
    assert {"absent": sorted(set(files) - set(tree)), "not packaged": sorted(set(tree) - set(files))} == {
        "absent": [],
        "not packaged": [],
    }, "run: python Testing/package_lists.py"
    assert len(files) == len(set(files))


def test_an_unlisted_and_an_absent_file_are_noticed(tmp_path, monkeypatch):
    for folder in ("cers", *MODULES):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "Resources").mkdir()
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    monkeypatch.setattr(package_lists, "ROOT", tmp_path)
    package_lists.update()
    assert package_lists.update() == []
    (tmp_path / "cers" / "case" / "extra.py").touch()
    (tmp_path / "cers" / "errors.py").unlink()
    files, tree = (
        set(package_lists.listed("cers/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS")),
        set(package_lists.expected()["cers/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"]),
    )
    assert files - tree == {"errors.py"} and tree - files == {"case/extra.py"}
    assert package_lists.update() == ["cers/CMakeLists.txt"]


def test_nothing_collides_when_the_modules_are_flattened_into_one_folder():
    placed = [
        f
        for m in MODULES
        for n in ("MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES")
        for f in package_lists.listed(f"{m}/CMakeLists.txt", n)
    ]
    placed += package_lists.listed("CMakeLists.txt", "CERS_RESOURCES")
    assert [f for f, n in Counter(placed).items() if n > 1] == []
    assert [f for f in placed if f.startswith(("..", "/", "cers/"))] == []


@pytest.mark.parametrize("module", MODULES)
def test_only_the_module_file_lies_where_modules_are_looked_for(module):
    scripts = package_lists.listed(f"{module}/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS")
    assert [f for f in scripts if "/" not in f] == [f"{module}.py"]
    assert {f.partition("/")[0] for f in scripts if "/" in f} == {f"{module}Lib"}


def test_configures_and_installs_and_the_installed_package_works(tmp_path):
    """A stand-in for Slicer's build tree takes the real CMake files; what they install is then used."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed: the CMake files are compared with the tree only")
    build, target = tmp_path / "build", tmp_path / "installed"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    steps = (
        [
            "cmake",
            *generator,
            "-S",
            str(ROOT),
            "-B",
            str(build),
            f"-DSlicer_DIR={ROOT / 'Testing' / 'Host' / 'cmake'}",
            "-DBUILD_TESTING=ON",
            "-DCMAKE_C_COMPILER_FORCED=TRUE",
            "-DCMAKE_CXX_COMPILER_FORCED=TRUE",
        ],
        ["cmake", "--install", str(build), "--prefix", str(target), "--component", "RuntimeLibraries"],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=120)
        if "compiler" in done.stderr and "could not find" in done.stderr.lower():
            pytest.skip("no C++ compiler: the CMake files are compared with the tree only")
        assert done.returncode == 0, done.stderr
    folder = target / "lib" / "Slicer-5.12" / "qt-scripted-modules"
    for module in MODULES:
        assert (folder / f"{module}.py").is_file() and (folder / "Resources" / "UI" / f"{module}.ui").is_file()
        assert (folder / "Resources" / "Icons" / f"{module}.png").is_file()
    code = (
        "import cers, cers.pool, cers.worker\nfrom cers.resources import resource\n"
        "print(cers.__file__, resource('terminology.json'), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else [sys.executable, "-c", code],
        env={"PYTHONPATH": str(folder), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [Path(line).is_relative_to(folder) for line in done.stdout.split()] == [True, True]


# ---- meta-information


def test_metadata_is_on_single_quoted_lines():
    for name in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS", "LICENSE_FILE", "README_FILE"):
        assert re.search(rf'^set\(EXTENSION_{name} "[^"\n]+"\)$', CMAKE, re.MULTILINE), name
    assert 'set(EXTENSION_DEPENDS "PyTorch")' in CMAKE
    assert CMAKE.index("EXTENSION_README_FILE") < CMAKE.index("Slicer_EXTENSION_GENERATE_CONFIG") < CMAKE.index("Slicer_EXTENSION_CPACK")
    for file in ("LICENSE.txt", "README.md"):
        assert f'"${{CMAKE_CURRENT_SOURCE_DIR}}/{file}"' in CMAKE and (ROOT / file).is_file(), file


def _s4ext() -> dict[str, str]:
    lines = (line.partition(" ") for line in (ROOT / "CERS.s4ext").read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {key: value for key, _space, value in lines if key}


def test_catalogue_entries_agree_with_the_project():
    entry, old = json.loads((ROOT / "CERS.json").read_text(encoding="utf-8")), _s4ext()
    assert re.search(r"^project\((\w+)\)", CMAKE, re.MULTILINE)[1] == "CERS"
    allowed = {
        "$schema",
        "category",
        "scm_url",
        "scm_revision",
        "scm_type",
        "build_dependencies",
        "dicom_support_rule",
        "build_subdirectory",
        "enabled",
        "tier",
    }
    assert set(entry) <= allowed and {"$schema", "category", "scm_url", "scm_revision"} <= set(entry)
    value = dict(re.findall(r'^set\(EXTENSION_(\w+) "([^"]*)"\)', CMAKE, re.MULTILINE))
    assert entry["build_dependencies"] == [value["DEPENDS"]] == [old["depends"]]
    assert (entry["scm_url"], entry["scm_revision"], entry["category"]) == (old["scmurl"], old["scmrevision"], old["category"])
    assert [old[k] for k in ("homepage", "description", "iconurl", "screenshoturls", "contributors")] == [
        value[k] for k in ("HOMEPAGE", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "CONTRIBUTORS")
    ]
    assert entry["scm_url"].removesuffix(".git") == value["HOMEPAGE"] and value["HOMEPAGE"].endswith("/SlicerCERS")


def test_pictures_of_the_catalogue_are_in_the_repository():
    for url in re.findall(r"https://raw\.githubusercontent\.com/[^\s\"]+", CMAKE):
        assert (ROOT / url.split("/main/", 1)[1]).is_file(), url


@pytest.mark.parametrize("path", ["Resources/CERS.png", *(f"{m}/Resources/Icons/{m}.png" for m in MODULES)])
def test_icons_are_128_pixels_square(path):
    data = (ROOT / path).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (128, 128) and len(data) < 50_000


def test_files_have_unix_line_ends():
    kinds = (".py", ".txt", ".cmake", ".ui", ".json", ".s4ext", ".md", ".toml")
    files = [p for f in ("cers", *MODULES, "Testing") for p in (ROOT / f).rglob("*") if p.suffix in kinds]
    files += [p for p in ROOT.iterdir() if p.suffix in kinds]
    assert [str(p) for p in files if b"\r\n" in p.read_bytes()] == []


# ---- code of the modules


def _sources(module: str) -> list[Path]:
    return sorted((ROOT / module).rglob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_module_file_is_thin(module):
    assert len((ROOT / module / f"{module}.py").read_text(encoding="utf-8").splitlines()) < 150


@pytest.mark.parametrize("path", [p for m in MODULES for p in _sources(m)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_gui_process_imports_nothing_heavy(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def names(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                yield from (a.name.partition(".")[0] for a in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.partition(".")[0]

    assert set(names(ast.walk(tree))) & HEAVY == set(), "the worker process is for these"
    # the libraries are imported when a panel is made; the module's own file already when the application starts
    own = {"cers", *(f"{m}Lib" for m in MODULES)} if path.stem not in MODULES else set()
    assert set(names(tree.body)) - AT_FILE_SCOPE - own == set(), "import it where it is used"
    if path.stem in MODULES:
        defining = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
        assert all(isinstance(n, defining) or ast.get_docstring(tree) and n is tree.body[0] for n in tree.body)


def _qt_has(name: str, member: str) -> bool:
    import qt

    return any(hasattr(getattr(qt, base, None), member) for base in ([name] if hasattr(qt, name) else apifacts.qt_bases(name)))


def _form_problems(path: Path) -> list[str]:
    """What a form asks of a class that the class does not have."""
    root = ET.parse(path).getroot()
    classes = {w.get("name"): w.get("class") for w in root.iter("widget")}
    problems = [f"{n} appears twice" for n, count in Counter(w.get("name") for w in root.iter("widget")).items() if count > 1]
    for widget in root.iter("widget"):
        cls = widget.get("class")
        for prop in widget.findall("property"):
            name = prop.get("name")
            known = name in apifacts.members(cls, "properties") if cls in apifacts.CLASSES else False
            if not known and not _qt_has(cls, name):
                problems.append(f"{widget.get('name')}: {cls} has no property {name}")
    declared = {c.findtext("class") for c in root.iter("customwidget")}
    used = {c for c in classes.values() if c[:1] != "Q"}
    problems += [f"{c} is not declared" for c in used - declared] + [f"{c} is not described" for c in used - set(apifacts.CLASSES)]
    for connection in root.iter("connection"):
        for who, what, kinds in (("sender", "signal", ("signals",)), ("receiver", "slot", ("callable", "signals"))):
            cls, member = classes[connection.findtext(who)], connection.findtext(what).partition("(")[0]
            if not (cls in apifacts.CLASSES and member in apifacts.members(cls, *kinds)) and not _qt_has(cls, member):
                problems.append(f"{cls} has no {what} {member}")
    return problems


@pytest.mark.parametrize("module", MODULES)
def test_form_uses_only_what_the_classes_have(host, module):
    assert _form_problems(ROOT / module / "Resources" / "UI" / f"{module}.ui") == []


def test_form_with_an_invented_property_is_noticed(host, tmp_path):
    text = (ROOT / "CERSKnowledgePool" / "Resources" / "UI" / "CERSKnowledgePool.ui").read_text(encoding="utf-8")
    (tmp_path / "form.ui").write_text(
        text.replace('name="settingKey"', 'name="settingsKey"').replace('name="wordWrap"', 'name="wrapWords"'), encoding="utf-8"
    )
    problems = " ".join(_form_problems(tmp_path / "form.ui"))
    assert "ctkPathLineEdit has no property settingsKey" in problems and "QLabel has no property wrapWords" in problems


@pytest.mark.parametrize("module", MODULES)
def test_code_uses_only_members_that_the_forms_widgets_have(host, module):
    root = ET.parse(ROOT / module / "Resources" / "UI" / f"{module}.ui").getroot()
    classes = {w.get("name"): w.get("class") for w in root.iter("widget")}
    problems = []
    for path in _sources(module):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            # ui.NAME.member and self.ui.NAME.member
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute)):
                continue
            owner = node.value.value
            if getattr(owner, "attr", getattr(owner, "id", "")) != "ui":
                continue
            cls = classes.get(node.value.attr)
            if cls is None:
                problems.append(f"{path.name}:{node.lineno}: the form has no widget {node.value.attr}")
            elif not (cls in apifacts.CLASSES and node.attr in apifacts.members(cls)) and not _qt_has(cls, node.attr):
                problems.append(f"{path.name}:{node.lineno}: {cls} has no {node.attr}")
    assert problems == []


# ---- the generic tests that Slicer runs on every module


def _loaded(host, name: str):
    if not hasattr(host.slicer.modules, name.lower()):
        for module in MODULES:  # in the order of their dependencies
            host.load_module(ROOT / module / f"{module}.py")
    return getattr(host.slicer.modules, name.lower())


@pytest.mark.parametrize("name", MODULES)
def test_module_describes_itself(host, name):
    module = _loaded(host, name)
    assert module.title.startswith("CERS ") and module.categories == ["Segmentation"] and module.contributors
    assert "Not for clinical use" in module.helpText and not module.icon.isNull()
    assert set(module.dependencies) <= {"Segmentations", "SubjectHierarchy", "Terminologies", "CERSSegment"}


@pytest.mark.parametrize("name", MODULES)
def test_widget_lives_and_dies_without_a_main_window(no_window, scene, name, caplog):
    host = no_window
    module = _loaded(host, name)
    frame = module.createNewWidgetRepresentation()
    frame.enter()
    host.process(0.05)
    scene.Clear(0)
    host.process(0.05)
    frame.exit()
    frame.self().cleanup()
    host.process(0.05)
    frame.delete()
    assert [r.getMessage() for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")] == []


@pytest.mark.parametrize("name", MODULES)
def test_widget_can_be_made_without_a_parent(no_window, scene, name):
    _loaded(no_window, name)
    widget = getattr(sys.modules[name], f"{name}Widget")()
    widget.setup()
    no_window.process(0.05)
    widget.cleanup()
    widget.parent.delete()


@pytest.mark.parametrize("name", MODULES)
def test_reload_gives_a_working_panel(no_window, scene, name):
    module = _loaded(no_window, name)
    module._widget = None  # a panel of its own, whatever panels earlier tests left and closed
    module.widgetRepresentation().enter()
    before = module.widgetRepresentation().self()
    before.onReload()
    no_window.process(0.05)
    after = module.widgetRepresentation().self()
    assert after is not before and after.control is not None and before.control is None
    after.enter()
    no_window.process(0.05)
    module.widgetRepresentation().exit()


@pytest.mark.parametrize("name", MODULES)
def test_logic_can_be_made_alone(no_window, scene, name):
    _loaded(no_window, name)
    logic = getattr(sys.modules[name], f"{name}Logic")()
    assert logic.getParameterNode() is logic.getParameterNode()
