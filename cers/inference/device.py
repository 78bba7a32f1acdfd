"""Which computing devices this machine has, and how its threads are shared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache


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


@lru_cache(maxsize=1)
def _numpy_blas():
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(internal_api="openblas")
    # torch may bring an OpenBLAS of its own, and that one has to keep its threads
    return found.select(filepath=[c.filepath for c in found.lib_controllers if "numpy" in c.filepath])


@contextmanager
def numpy_on_one_thread() -> Iterator[None]:
    """Inside, NumPy's matrix products take one thread.

    After each product OpenBLAS's further threads wait in a busy loop, and for some tenths of a second take the cores that torch needs: a
    slice alone takes twice as long. The products here are small and gain nothing from threads.
    """
    with _numpy_blas().limit(limits=1):
        yield
