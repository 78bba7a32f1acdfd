"""What all commands share: progress on a terminal, errors as one line, JSON for machines."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from ..errors import Cancelled, CersError

errors = Console(stderr=True, highlight=False)


def command(function: Callable | None = None, *, cancelled: str = "Cancelled. No half-written file is left.") -> Callable:
    """Turn what goes wrong in a command into one line on stderr and an exit code."""
    if function is None:
        return functools.partial(command, cancelled=cancelled)

    @functools.wraps(function)
    def run(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (KeyboardInterrupt, Cancelled):
            fail(cancelled, 130)
        except CersError as error:
            fail(f"Error: {error}", 1)
        except ModuleNotFoundError as error:
            fail(f"Error: The Python package '{error.name}' is missing. Install CERS again with its requirements.", 1)
        except MemoryError:
            fail("Error: There was not enough memory. Close other programs, or crop the image.", 1)

    return run


def fail(message: str, code: int) -> None:
    print(" ".join(message.split()), file=sys.stderr)
    raise typer.Exit(code)


def quoted(path: Path) -> str:
    """As an argument of a command that can be copied into a shell."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


@contextmanager
def stoppable(what: str) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed, so that the work can end in order and be reported; pressed twice it stops at once.

    what: is still finished, for instance "this image".
    """
    asked, before = [], signal.getsignal(signal.SIGINT)

    def stop(*_signal) -> None:
        asked.append(1)
        signal.signal(signal.SIGINT, before)
        os.write(2, f"\nStopping after {what}. Press Ctrl-C again to stop at once.\n".encode())  # print is not safe in a handler

    own = threading.current_thread() is threading.main_thread() and before is signal.default_int_handler
    if own:  # where Ctrl-C means something else it stays so
        signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: bool(asked)
    finally:
        if own:
            signal.signal(signal.SIGINT, before)


def say_json(value) -> None:
    """A JSON document on stdout; one in plain ASCII where stdout is not UTF-8, which JSON has to be."""
    print(json.dumps(value, indent=1, ensure_ascii=not (sys.stdout.encoding or "").lower().startswith("utf")))


@contextmanager
def progress() -> Iterator[Callable[[float, str], None] | None]:
    """A progress callback that draws a bar on stderr; None where stderr is not a terminal."""
    if not errors.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
    ) as bar:
        task = bar.add_task("Starting", total=1.0)
        yield lambda fraction, message: bar.update(task, completed=fraction, description=message)
