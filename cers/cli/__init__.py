"""The ``cers`` command. Importing this is cheap; each command imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code: 0 done, 1 an error the user can mend, 2 wrong usage, 130 cancelled."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models come from local folders and packages only
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # they would be drawn over ours
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # Windows writes to files in an encoding that lacks most letters
    try:
        from .app import app  # may take seconds on a busy machine: Ctrl-C counts from the start

        app(argv, prog_name="cers")
    except KeyboardInterrupt:
        print("Cancelled.", file=sys.stderr)
        return 130
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(bool(done.code))
    finally:
        exec("")  # "python -m" ends by SIGINT where Ctrl-C met an exec of text, as of dataclasses, though it was caught; until the next one
        sys.stdout.flush()
    return 0
