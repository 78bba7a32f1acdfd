"""The one step that installs what the worker needs: what is asked for, what is kept, and what is said when it fails."""

from __future__ import annotations

import re
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
from segmentkit import ROOT, lib, load, part, unload  # noqa: F401 - fixtures


def test_install_asks_once_and_keeps_what_slicer_has(host, part, monkeypatch):
    import slicer

    install, calls, asked = part("InstallLogic"), [], []
    monkeypatch.setattr(slicer.util, "pip_install", calls.append)
    monkeypatch.setattr(install, "_packagingModule", lambda: None)
    monkeypatch.setattr(install, "KEPT", ("numpy", "no-such-package-at-all"))
    wanted, kept = ["torch>=2.2", "faiss-cpu>=1.8", *install.WITHOUT_DEPENDENCIES], f"numpy=={np.__version__}"
    assert not install.install(wanted, confirm=lambda sentence: asked.append(sentence))
    assert calls == [] and len(asked) == 1 and "torch, faiss-cpu" in asked[0]
    assert install.install(wanted, confirm=lambda _sentence: True)
    assert calls == [["torch>=2.2", kept], ["faiss-cpu>=1.8", kept], ["--no-deps", install.WITHOUT_DEPENDENCIES[0]]]


def test_install_goes_through_the_pytorch_extension_and_pip_ensure(host, part, monkeypatch):
    import slicer

    install, calls = part("InstallLogic"), []
    extension = types.ModuleType("PyTorchUtils")

    class PyTorchUtilsLogic:
        def installTorch(self, askConfirmation=True, torchVersionRequirement=None):
            calls.append((askConfirmation, torchVersionRequirement))
            return object()

    extension.PyTorchUtilsLogic = PyTorchUtilsLogic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    monkeypatch.setattr(slicer.util, "pip_install", lambda _list: pytest.fail("pip was used"))
    monkeypatch.setattr(
        install,
        "_packagingModule",
        lambda: types.SimpleNamespace(
            pip_ensure=lambda requirements, skip_packages, prompt_install, requester: calls.append(
                ([str(r) for r in requirements], skip_packages)
            )
        ),
    )
    assert install.install(["torch>=2.2", "rich>=13"], confirm=lambda _sentence: True)
    assert calls == [(False, ">=2.2"), (["rich>=13"], ["numpy", "SimpleITK", "pydicom", "vtk"])]


def test_install_from_a_folder_needs_no_network(host, part, monkeypatch, tmp_path):
    import slicer

    install, calls = part("InstallLogic"), []
    monkeypatch.setattr(slicer.util, "pip_install", calls.append)
    with pytest.raises(install.InstallError, match="holds no wheel files"):
        install.install(["torch>=2.2"], str(tmp_path))
    (tmp_path / "torch-2.9-py3-none-any.whl").touch()
    assert install.install(["torch>=2.2"], str(tmp_path), confirm=lambda _s: pytest.fail("asked"))
    assert calls[0][:4] == ["--no-index", "--find-links", str(tmp_path), "torch>=2.2"] and f"numpy=={np.__version__}" in calls[0]


def dry_pip(arguments: list[str]) -> None:
    """pip as Slicer 5.10 runs it, but nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    print(done.stdout)
    done.check_returncode()


def wheel(folder, name: str, version: str, needs: str = "") -> None:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *([f"Requires-Dist: {needs}"] if needs else [])]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
        file.writestr(f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{name}-{version}.dist-info/RECORD", "")


def test_what_slicer_has_is_not_replaced(host, part, monkeypatch, tmp_path):
    """Slicer 5.10 has pydicom 2; a package that wants a newer one is refused, as pip would take both from the folder."""
    import slicer

    install = part("InstallLogic")
    monkeypatch.setattr(slicer.util, "pip_install", dry_pip)
    wheel(tmp_path, "cers_test_reader", "1.0", "pydicom>=99")
    wheel(tmp_path, "pydicom", "99.0")
    with pytest.raises(install.InstallError, match=r"from '.*': Cannot install .*pydicom.*conflict.*\. The folder must"):
        install.install(["cers_test_reader>=1"], str(tmp_path))


def test_an_old_pydicom_keeps_highdicom_away(host, part, monkeypatch):
    install = part("InstallLogic")
    version = install.metadata.version
    have = {"pydicom": "2.4.4", "highdicom": None}

    def answer(name):
        if have.get(name, "") is None:
            raise install.metadata.PackageNotFoundError(name)
        return have.get(name) or version(name)

    monkeypatch.delenv("CERS_PYTHON", raising=False)
    monkeypatch.setattr(install.metadata, "version", answer)
    assert "highdicom>=0.26" not in install.missing()
    have["pydicom"] = "3.0.2"
    assert "highdicom>=0.26" in install.missing()


def test_install_failure_is_one_sentence(host, part, monkeypatch):
    import slicer

    install = part("InstallLogic")

    def fail(_list):
        raise RuntimeError("long log\nno matching distribution")

    monkeypatch.setattr(slicer.util, "pip_install", fail)
    monkeypatch.setattr(install, "_packagingModule", lambda: None)
    with pytest.raises(install.InstallError, match="no matching distribution. Check the network"):
        install.install(["faiss-cpu>=1.8"], confirm=lambda _s: True)


def test_panel_installs_with_no_worker_at_work_and_tells_what_did_not_arrive(host, window, part, monkeypatch):
    """Windows replaces no file that a process has open; Slicer's installer ends well though a package is left out."""
    import qt

    module = load(host)
    panel = host.enter_module(module)
    worker, answers, states = panel.control.logic.worker, [], []
    worker.request("hello", {"protocol": 1}, onResult=answers.append)
    host.wait_for(lambda: answers, 60)
    process = worker._process
    monkeypatch.setattr(part("InstallLogic"), "missing", lambda: ["faiss-cpu>=1.9"])
    monkeypatch.setattr(part("InstallLogic"), "install", lambda *_given, **_more: states.append(process.state()) or True)
    panel.ui.installButton.click()
    assert states == [qt.QProcess.NotRunning] and "Not installed: faiss-cpu" in panel.ui.statusLabel.text
    unload(host, module)


def test_what_is_missing(host, part, monkeypatch):
    install = part("InstallLogic")
    monkeypatch.delenv("CERS_PYTHON", raising=False)
    monkeypatch.setattr(install, "REQUIREMENTS", ("numpy>=1", "numpy>=99", "no-such-package-at-all>=1"))
    monkeypatch.setattr(install, "WITHOUT_DEPENDENCIES", ())
    assert install.missing() == ["numpy>=99", "no-such-package-at-all>=1"]
    monkeypatch.setenv("CERS_PYTHON", "/usr/bin/python3")
    assert install.missing() == []


def test_what_a_package_needs_in_turn_is_missing_too(host, part, monkeypatch):
    """Slicer's installer goes on where one of many could not be had, and says only that all is well."""
    install = part("InstallLogic")
    version = install.metadata.version

    def answer(name):
        if name == "pluggy":
            raise install.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.delenv("CERS_PYTHON", raising=False)
    monkeypatch.setattr(install, "REQUIREMENTS", ("pytest>=8",))
    monkeypatch.setattr(install, "WITHOUT_DEPENDENCIES", ())
    assert install.missing() == []
    monkeypatch.setattr(install.metadata, "version", answer)
    assert [r.partition("<")[0].partition(">")[0] for r in install.missing()] == ["pluggy"]
    monkeypatch.setattr(install, "KEPT", ("pluggy",))
    assert install.missing() == []


def test_requirements_are_those_of_the_package(host, part):
    """Slicer gets what pyproject.toml asks for, in the same versions, except for what Slicer brings along."""
    install = part("InstallLogic")
    block = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]
    wanted = re.findall(r'"([^"]+)"', block)
    assert set(install.REQUIREMENTS) == {r for r in wanted if install._parse(r).name not in install.KEPT}
    assert install._parse(install.REQUIREMENTS[0]).name == "torch"
