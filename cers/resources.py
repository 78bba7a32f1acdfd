"""Where run-time files lie: the default model, terminology and prompts.

They are kept in ``Resources/`` beside this package, both in a checkout and in the Slicer extension; a wheel carries them inside the
package. ``CERS_RESOURCES`` names another folder that is looked at first.
"""

from __future__ import annotations

import os
from pathlib import Path

from .errors import CersError

ENVIRONMENT = "CERS_RESOURCES"


def folders() -> list[Path]:
    """The folders that are searched, in this order: the one named by ``CERS_RESOURCES``, the wheel's, the checkout's."""
    package = Path(__file__).resolve().parent
    chosen = os.environ.get(ENVIRONMENT)
    return ([Path(chosen)] if chosen else []) + [package / "Resources", package.parent / "Resources"]


def resource(name: str) -> Path:
    """Path of a run-time file or folder, such as ``"model"`` or ``"terminology.json"``.

    Raises:
        CersError: no searched folder holds it; the message names them.
    """
    for folder in folders():
        if (folder / name).exists():
            return folder / name
    searched = " or ".join(f"'{folder}'" for folder in folders())
    raise CersError(
        f"The file '{name}' that CERS needs was not found in {searched}. "
        f"Install CERS again, or set {ENVIRONMENT} to the folder that holds it."
    )
