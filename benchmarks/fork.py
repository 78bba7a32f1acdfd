"""Work in forked processes that may be killed at any moment, and what they had promised by then.

Everything heavy is imported before the fork, so that a thousand points cost seconds, not hours. POSIX only.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from cers.errors import Cancelled, CersError


@dataclass
class Outcome:
    """How a child ended.

    state: done, refused (one sentence, in ``words``), killed, hung (past its limit), or crashed (a traceback in ``words``).
    promised: what it said was safe, in order; the last line counts only if it was whole.
    """

    state: str
    promised: list[str] = field(default_factory=list)
    words: str = ""
    seconds: float = 0.0


def start(work: Callable[[Callable[[str], None]], None]) -> tuple[int, int]:
    """(process id, reading end of its pipe) of a child that does ``work(promise)``."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    code = 0
    try:
        os.close(reading)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        try:
            work(lambda words: os.write(writing, b"+" + words.encode() + b"\n"))
        except (CersError, Cancelled) as error:
            os.write(writing, b"!" + str(error).encode() + b"\n")
            code = 3
        except MemoryError:
            os.write(writing, b"!There was not enough memory.\n")
            code = 3
        except BaseException:  # the very thing that is looked for; it is reported, not swallowed
            os.write(writing, b"?" + traceback.format_exc().strip().replace("\n", " | ").encode()[-3000:] + b"\n")
            code = 4
    finally:
        os._exit(code)  # never into the parent's clean-up


def watch(pid: int, reading: int, kill_after: float | None, limit: float) -> Outcome:
    """Wait for a child; kill -9 it ``kill_after`` seconds from now, or when ``limit`` is over."""
    begun, data, state = time.monotonic(), b"", ""
    end = begun + (limit if kill_after is None else kill_after)
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            state = "hung" if kill_after is None else "killed"
            os.kill(pid, signal.SIGKILL)
            end = float("inf")
            while chunk := os.read(reading, 1 << 16):
                data += chunk
            break
        chunk = os.read(reading, 1 << 16)
        if not chunk:
            break
        data += chunk
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    seconds = time.monotonic() - begun
    lines = data.decode(errors="replace").split("\n")[:-1]
    promised = [line[1:] for line in lines if line.startswith("+")]
    words = next((line[1:] for line in lines if line[:1] in ("!", "?")), "")
    if any(line.startswith("?") for line in lines):
        state = "crashed"
    elif any(line.startswith("!") for line in lines):
        state = "refused"
    elif not state:
        code = os.waitstatus_to_exitcode(status)
        state, words = ("done", "") if code == 0 else ("crashed", f"ended with code {code}")
    return Outcome(state, promised, words, seconds)


def child(work: Callable[[Callable[[str], None]], None], kill_after: float | None = None, limit: float = 600) -> Outcome:
    """Do ``work(promise)`` in a child and wait for it."""
    return watch(*start(work), kill_after, limit)
