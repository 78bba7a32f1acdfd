"""Which computing devices this machine has."""

from __future__ import annotations


def devices() -> list[str]:
    """What ``device`` may be here, the fastest first."""
    import torch

    found = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def choose_device(wanted: str | None) -> str:
    """The device asked for; the fastest one where None or "auto" is asked for."""
    return devices()[0] if wanted in (None, "", "auto") else wanted
