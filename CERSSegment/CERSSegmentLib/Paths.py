"""Where the ``cers`` package and a Python interpreter for the worker lie."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import slicer
from slicer.i18n import tr as _

PYTHON_VARIABLE = "CERS_PYTHON"
PYTHON_SETTING = "CERS/PythonExecutable"


def packageFolder() -> Path:
    """The folder that holds ``cers``: the checkout's root, or the folder of scripted modules once installed."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "cers" / "__init__.py").is_file():
            return folder
    raise RuntimeError(_("The 'cers' package was not found beside the module. Install the CERS extension again."))


def makeImportable() -> None:
    """Lets ``import cers`` work from an unbuilt checkout too. Appended, so that nothing else is hidden."""
    folder = str(packageFolder())
    if folder not in sys.path:
        sys.path.append(folder)


def chosenPython() -> str:
    """An interpreter of the user's own choice for the worker, '' if none was chosen."""
    return os.environ.get(PYTHON_VARIABLE) or slicer.util.settingsValue(PYTHON_SETTING, "") or ""


def pythonExecutable() -> str:
    """The interpreter that runs the worker.

    Inside the application ``sys.executable`` is the application itself; PythonSlicer is its interpreter.

    Raises:
        RuntimeError: no interpreter was found.
    """
    chosen = chosenPython()
    if chosen:
        return chosen
    name = "PythonSlicer.exe" if os.name == "nt" else "PythonSlicer"
    candidates = [shutil.which("PythonSlicer"), os.path.join(slicer.app.slicerHome or "", "bin", name)]
    if os.path.basename(sys.executable or "").lower().startswith("python"):
        candidates.append(sys.executable)
    for candidate in candidates:
        if candidate and os.path.isfile(candidate):
            return candidate
    raise RuntimeError(
        _("Slicer's Python interpreter was not found. Set the environment variable {name} to the one that CERS shall use.").format(
            name=PYTHON_VARIABLE
        )
    )
