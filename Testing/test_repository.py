"""Rules that every tracked file keeps: sizes, line endings, no paths of one machine, and which part may import what."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
LONGEST_LINE = 140
MOST_LINES = 500
MOST_BYTES = 100_000_000
BINARY = {".png", ".safetensors"}
SLICER_ONLY = {"slicer", "qt", "ctk", "vtk", "vtkmodules", "PySide6"}
HEAVY = {"torch", "faiss", "transformers", "safetensors", "monai"}
UNSAFE = {"pickle", "dill", "joblib", "shelve", "marshal"}


def tracked() -> list[Path]:
    """Files that git tracks, as paths below the root; where there is no git, every file that a fresh archive would hold."""
    try:
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        names = []
    if not any(names):
        skipped = {".git", ".venv", ".cache", "demo", "runs", "build", "dist", "__pycache__", ".pytest_cache", ".ruff_cache", "Output"}
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file() and not skipped & set(p.relative_to(ROOT).parts)]
    return [Path(n) for n in names if n and (ROOT / n).is_file()]


FILES = tracked()
SOURCES = [f for f in FILES if f.suffix == ".py"]
TEXTS = [f for f in FILES if f.suffix not in BINARY]


def imports(file: Path, *, file_scope: bool = False) -> Iterator[tuple[str, int]]:
    """(top-level package, line) of every absolute import; with ``file_scope`` those only that run when the file is imported."""
    pending: list[ast.AST] = [ast.parse((ROOT / file).read_text(encoding="utf-8"), str(file))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0], node.lineno
        if file_scope and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        pending += ast.iter_child_nodes(node)


def below(*folders: str) -> list[Path]:
    return [f for f in SOURCES if f.parts[0] in folders]


def offenders(files: list[Path], forbidden: set[str], **options) -> list[str]:
    return [f"{file}:{line} imports {name}" for file in files for name, line in imports(file, **options) if name in forbidden]


def test_there_are_files_to_look_at():
    assert len(below("cers")) > 20 and below("CERSSegment") and Path("README.md") in TEXTS


def test_no_source_file_is_too_long():
    long = {str(f): n for f in SOURCES if (n := len((ROOT / f).read_text(encoding="utf-8").splitlines())) > MOST_LINES}
    assert not long


def test_no_line_of_the_segment_module_is_too_long():
    lines = {
        f"{f}:{n}"
        for f in SOURCES
        if f.parts[0] == "CERSSegment"
        for n, line in enumerate((ROOT / f).read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > LONGEST_LINE
    }
    assert not lines


@pytest.mark.parametrize("arguments", [["format", "--check"], ["check"]], ids=" ".join)
def test_sources_have_the_one_format_and_no_findings(arguments):
    pytest.importorskip("ruff", reason="ruff is not installed (extra test): neither format nor findings were checked")
    command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "--quiet", *map(str, SOURCES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_two_test_files_share_a_name():
    """pytest puts every test folder on the path, so one of two would hide the other. conftest.py is never imported by name."""
    names = [f.name for f in SOURCES if f.parts[0] == "Testing" and f.name not in ("conftest.py", "__init__.py")]
    assert not {name for name in names if names.count(name) > 1}


def test_text_files_are_utf8_with_lf_endings_and_a_last_newline():
    bad = []
    for file in TEXTS:
        data = (ROOT / file).read_bytes()
        if b"\r" in data or b"\0" in data or (data and not data.endswith(b"\n")):
            bad.append(str(file))
        data.decode("utf-8")
    assert not bad


def test_no_text_names_a_place_on_one_machine():
    places = re.compile(r"/" + r"work/|/" + r"root/|/" + r"home/\w|/" + r"Users/\w|[A-Z]:\\" + r"Users")
    own = {str(ROOT) + os.sep, str(Path.home()) + os.sep} - {os.sep * 2, os.sep}
    bad = []
    for file in TEXTS:
        for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), 1):
            if places.search(line) or any(place in line for place in own):
                bad.append(f"{file}:{number}: {line.strip()[:120]}")
    assert not bad


def test_the_science_never_imports_the_application():
    assert not offenders(below("cers", "benchmarks"), SLICER_ONLY)


def test_importing_the_package_is_cheap():
    code = "import sys, cers, cers.case, cers.pool, cers.rationale, cers.resources; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert "cers.pool" in loaded and not (HEAVY | SLICER_ONLY) & set(loaded)


def test_modules_never_import_what_only_the_worker_may():
    assert not offenders(below("CERSSegment", "CERSKnowledgePool"), HEAVY)


def test_modules_import_at_file_scope_only_what_slicer_ships():
    ours = {"cers", "CERSSegment", "CERSSegmentLib", "CERSKnowledgePool", "CERSKnowledgePoolLib"}
    allowed = sys.stdlib_module_names | {"slicer", "qt", "ctk", "vtk", "numpy", "SimpleITK"} | ours
    bad = [
        f"{f}:{line} imports {name}"
        for f in below("CERSSegment", "CERSKnowledgePool")
        for name, line in imports(f, file_scope=True)
        if name not in allowed and "Testing" not in f.parts
    ]
    assert not bad


def test_nothing_loads_code_from_data():
    assert not offenders(SOURCES, UNSAFE)
    calls = re.compile(r"(shell|trust_remote_code|allow_pickle)\s*=\s*True|yaml\.load\(|os\.system\(")
    bad = [
        f"{f}:{n}"
        for f in SOURCES
        if f.parts[0] != "Testing"  # tests may make the bad input that is then refused
        for n, line in enumerate((ROOT / f).read_text(encoding="utf-8").splitlines(), 1)
        if calls.search(line) or ("torch.load(" in line and "weights_only=True" not in line)
    ]
    assert not bad


def test_no_except_swallows_everything():
    bad = []
    for file in SOURCES:
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            every = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
            if node.type is None or (every and all(isinstance(s, (ast.Pass, ast.Continue)) for s in node.body)):
                bad.append(f"{file}:{node.lineno}")
    assert not bad


def test_the_repository_stays_small():
    sizes = {f: (ROOT / f).stat().st_size for f in FILES}
    assert sum(sizes.values()) < MOST_BYTES, sorted(sizes.items(), key=lambda item: -item[1])[:5]


def test_no_image_data_is_tracked():
    endings = (".nrrd", ".nii", ".nii.gz", ".dcm", ".mha", ".jpg", ".jpeg", ".npy", ".npz")
    assert not [str(f) for f in FILES if f.name.lower().endswith(endings)]


def test_required_files_are_there():
    wanted = [
        "CMakeLists.txt",
        "CERS.s4ext",
        "CERS.json",
        "LICENSE.txt",
        "README.md",
        "pyproject.toml",
        "Makefile",
        "constraints.txt",
        ".ci/run",
    ]
    assert not [name for name in wanted if not (ROOT / name).is_file()]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "Apache License" in (ROOT / "LICENSE.txt").read_text(encoding="utf-8")


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("file", ["README.md", ".ci/run"])
def test_every_make_command_that_is_written_down_exists(file):
    named = set(re.findall(r"(?:^|`|exec )make ([a-z][\w-]*)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))
    assert "test" in named and named <= make_targets()


@pytest.mark.parametrize("file", ["README.md", "Resources/TUTORIAL.md"])
def test_links_name_only_files_that_exist(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links and not [link for link in links if not (ROOT / file).parent.joinpath(link).exists()]


def test_debian_packages_are_the_same_in_ci_and_readme():
    listed = re.search(r"packages=\(([^)]*)\)", (ROOT / ".ci/run").read_text(encoding="utf-8")).group(1).split()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in listed if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", readme)]


def test_every_requirement_is_pinned():
    """Each package that pyproject.toml asks for has exactly the versions of constraints.txt."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]")[0]
    wanted = {m.lower().replace("_", "-") for m in re.findall(r'"([A-Za-z][\w-]*)(?:==|>=)', text)} - {"hatchling"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert {"torch", "transformers", "pytest"} <= wanted and not wanted - pinned


def test_one_range_of_pythons_is_supported():
    """What pip lets in, what make looks for and what the README names."""
    text = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "Makefile", "README.md")}
    accepted = SpecifierSet(re.search(r'^requires-python = "(.*)"$', text["pyproject.toml"], re.MULTILINE)[1])
    asked = re.search(r"<= sys.version_info < \(3, (\d+)\)", text["Makefile"]), re.search(r"not \(3, (\d+)\) <=", text["Makefile"])
    first, last = map(int, re.search(r"With Python 3\.(\d+) to 3\.(\d+) and", text["README.md"]).groups())
    supported = list(range(first, last + 1))
    assert supported == [minor for minor in range(30) if accepted.contains(f"3.{minor}.0")]
    assert supported == list(range(int(asked[1][1]), int(asked[0][1])))


def test_make_takes_a_python_and_a_folder_with_blanks(tmp_path):
    """Both are stubs here: the Python makes an environment in which everything can be installed."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    folder = tmp_path / "Ordner für CERS"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    python = tmp_path / "my programs" / "python3"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\ncase "$*" in *venv*) mkdir -p .venv/bin; cp "$0" .venv/bin/python;; esac\n')
    python.chmod(0o755)
    done = subprocess.run(["make", "setup", f"PYTHON={python}"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert sorted(p.name.split("-")[0] for p in (folder / ".venv").iterdir()) == [".run", ".test", "bin"]
