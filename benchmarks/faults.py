"""What a bad day does to CERS: kill -9 at random points, a full and a read-only disk, several writers at once, malformed input.

    python -m benchmarks.faults --points 300 --minutes 5

Looked for: something lost that was said to be safe, a pool or run that is damaged afterwards, a traceback, a hang. The exit code is 1 if
there is any.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads do not survive a fork
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from .common import machine
from .fork import Outcome, child, start, watch
from .operations import KILLINGS, Describe, case, filled, sound

SHARES = {"import": 0.25, "describe": 0.25, "correct": 0.1, "embed": 0.15, "train": 0.1, "install-model": 0.15}  # of the points


@dataclass
class Row:
    """What one kind of bad day gave. points: how often it was tried; hit: how often it struck in mid-work; faults: what was found."""

    name: str
    points: int = 0
    hit: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""

    def check(self, outcome: Outcome, *, may_refuse: bool = False) -> None:
        """Count a child's end; a traceback or a hang is a fault, and so is a refusal where there is no reason for one."""
        self.points += 1
        self.hit += outcome.state in ("killed", "refused")
        if outcome.state in ("crashed", "hung"):
            self.faults.append(f"{outcome.state}: {outcome.words[-400:]}")
        elif outcome.state == "refused" and (not may_refuse or not sentence(outcome.words)):
            self.faults.append(f"refused: {outcome.words}")


def sentence(words: str) -> bool:
    """Whether a message is fit for a user: not a traceback, not empty, not a page."""
    return 10 < len(words) < 900 and "Traceback" not in words and 'File "' not in words


def killing(name: str, points: int, folder: Path, model: Path, chance: random.Random, say) -> Row:
    """Kill an operation until it was struck in mid-work at ``points`` random moments."""
    row, begun = Row(f"kill -9: {name}"), time.monotonic()
    folder.mkdir()
    op = KILLINGS[name](folder, model)
    op.renew()
    whole = child(op.work)  # once to its end, for how long it takes
    if whole.state != "done" or (wrong := op.lost(whole.promised)):
        row.faults.append(f"not even undisturbed: {whole.state} {whole.words[-400:]} {wrong if whole.state == 'done' else ''}")
        return row
    op.renew()
    window = whole.seconds
    while row.hit < points and row.points < 10 * points:
        outcome = child(op.work, kill_after=chance.uniform(0, window))
        row.check(outcome)
        # what a killed run left behind is gone on with, which takes less time than the whole: aim earlier after a miss, later after a hit
        window = max(0.02, 0.8 * window) if outcome.state == "done" else min(1.1 * whole.seconds, 1.2 * window)
        try:
            row.faults += [f"after point {row.points}: {w}" for w in op.lost(outcome.promised)]
        except Exception as error:  # what is left behind cannot be read: the worst that can be found
            row.faults.append(f"after point {row.points}: {type(error).__name__}: {error}")
        if outcome.state == "done":
            op.renew()
        say(f"{name}: {row.hit} of {points}")
    last = child(op.work)  # and what is left can be gone on with
    row.faults += (
        [f"at the end: {w}" for w in op.lost(last.promised)] if last.state == "done" else [f"at the end: {last.state} {last.words[-400:]}"]
    )
    row.seconds = time.monotonic() - begun
    row.note = f"{whole.seconds:.2f} s undisturbed"
    return row


def mount(folder: Path, megabytes: int) -> bool:
    """A small file system of its own at ``folder``; False where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "cers-faults", str(folder)], capture_output=True, check=False, timeout=30
        )
    except OSError:
        return False
    return done.returncode == 0


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    mounted = mount(folder, megabytes)
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False, timeout=30)


def full_disk(points: int, folder: Path, model: Path, chance: random.Random, say) -> Row:
    """Operations that run out of space at a random byte; without the right to mount, out of file size."""
    import resource

    row, begun = Row("full disk"), time.monotonic()
    disk = folder / "disk"
    with small_disk(disk, 24) as mounted:
        row.note = "tmpfs of 24 MB" if mounted else "RLIMIT_FSIZE"
        place = disk / "work"
        place.mkdir(parents=True)
        ops = {}
        for name in ("import", "describe", "correct"):
            (place / name).mkdir()
            ops[name] = KILLINGS[name](place / name, model)
            ops[name].renew()
        while row.points < points:
            name = list(ops)[row.points % len(ops)]
            op, room = ops[name], int(chance.uniform(0, 120_000))

            def limited(promise, op=op, room=room) -> None:
                if not mounted:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
                op.work(promise)

            filler = disk / "filler"
            if mounted:
                free = os.statvfs(disk)
                with filler.open("wb") as file:
                    file.write(b"x" * max(0, free.f_bavail * free.f_frsize - room))
            outcome = child(limited, limit=120)
            row.check(outcome, may_refuse=True)
            filler.unlink(missing_ok=True)
            row.faults += [f"{name}, {room} bytes left: {w}" for w in op.lost(outcome.promised)]
            again = child(op.work, limit=120)
            if again.state != "done" or op.lost(again.promised):
                row.faults.append(f"{name}: not usable once there was room again: {again.state} {again.words[-300:]}")
            op.renew() if name == "import" else None
            say(f"full disk: {row.points} of {points}")
    row.seconds = time.monotonic() - begun
    return row


def read_only(folder: Path, model: Path, say) -> Row:
    """A pool on a disk that cannot be written: it is read, and refuses in words; where nothing can be mounted, as another user."""
    from cers.pool import Pool

    row, begun = Row("read-only disk"), time.monotonic()
    disk = folder / "disk"
    with small_disk(disk, 24) as mounted:
        disk.mkdir(exist_ok=True)
        op = Describe(disk, model)
        op.renew()
        with Pool.open(op.pool) as pool:
            ids = pool.ids()
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, capture_output=True, timeout=30)
        else:
            for path in sorted([op.pool, *op.pool.rglob("*")], reverse=True):
                path.chmod(0o555 if path.is_dir() else 0o444)
            if os.getuid() == 0:
                row.note = "skipped: root may write anywhere, and nothing can be mounted"
                return row
        row.note = "mounted read-only" if mounted else "permissions"

        def reads(promise) -> None:
            with Pool.open(op.pool, read_only=True) as pool:
                assert pool.ids() == ids and not pool.verify() and pool.get(ids[0]).rationale is not None

        def adds(promise) -> None:
            with Pool.open(op.pool) as pool:
                pool.add(case(99))

        def creates(promise) -> None:
            Pool.create(disk / "new")

        def exports(promise) -> None:
            from cers.pool.transfer import export_pool

            with Pool.open(op.pool, read_only=True) as pool:
                export_pool(pool, disk / "out.zip")

        row.check(child(reads, limit=120))
        for work in (op.work, adds, creates, exports):
            outcome = child(work, limit=120)
            row.check(outcome, may_refuse=True)
            if outcome.state == "done":
                row.faults.append("something was written to a read-only disk")
        say("read-only disk")
    row.seconds = time.monotonic() - begun
    return row


def together(minutes: float, folder: Path, say) -> Row:
    """Two writers and a reader on one pool; nobody meets an error."""
    from cers.pool import Pool

    row, begun = Row("two writers, one reader"), time.monotonic()
    filled(folder, 10)
    end = time.monotonic() + 60 * minutes

    def writes(seed: int):
        def work(promise) -> None:
            from cers.errors import PoolError

            chance, count = random.Random(seed), 0
            with Pool.open(folder) as pool:
                while time.monotonic() < end:
                    new = pool.add(case(1000 * seed + chance.randrange(40)))
                    pool.review(new, chance.choice(("approved", "flagged", "unreviewed")), reviewer=str(seed))
                    one = pool.get(new)
                    pool.add_rationale(new, one.rationale, who=str(seed))
                    pool.set_vectors("image", "m", [new], np.eye(1, 16, dtype=np.float32))
                    try:
                        if count % 3 == 0:
                            pool.delete(new)
                    except PoolError:
                        raise
                    count += 1
                promise(str(count))

        return work

    def reads(promise) -> None:
        from cers.pool import Query, Selector

        count = 0
        with Pool.open(folder) as pool:
            selector = Selector(pool, "m", None)
            while time.monotonic() < end:
                faults = pool.verify()
                assert not faults, faults
                selector.select(Query(np.eye(1, 16)[0]))
                assert len(pool.list()) >= 10 and pool.hash()
                count += 1
            promise(str(count))

    children = [start(work) for work in (writes(1), writes(2), reads)]
    outcomes = [watch(pid, pipe, None, 60 * minutes + 300) for pid, pipe in children]
    for outcome in outcomes:
        row.check(outcome)
    row.hit = sum(int(o.promised[-1]) for o in outcomes if o.promised)
    row.faults += sound(folder)
    row.note = f"{minutes:g} minutes; rounds: " + ", ".join(o.promised[-1] if o.promised else "-" for o in outcomes)
    row.seconds = time.monotonic() - begun
    say(row.note)
    return row


def malformed(most: int | None, folder: Path, model: Path, say) -> Row:
    """Input that nobody should give, through the commands and the worker."""
    from .malformed import inputs, run

    row, begun = Row("malformed input"), time.monotonic()
    kinds: dict[str, int] = {}
    for name, work in inputs(folder, model, most):
        outcome = child(lambda promise, work=work: run(work, promise), limit=120)
        before = len(row.faults)
        row.check(outcome, may_refuse=True)
        row.faults[before:] = [f"{name}: {f}" for f in row.faults[before:]]
        kinds[name.split(":")[0]] = kinds.get(name.split(":")[0], 0) + 1
        say(f"malformed input: {row.points}")
    row.note = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    row.seconds = time.monotonic() - begun
    return row


def campaign(
    points: int, minutes: float, most_malformed: int | None, folder: Path, only: list[str], seed: int, say=lambda words: None
) -> list[Row]:
    """All of it. ``folder`` must be empty; it can be deleted afterwards."""
    import torch

    from cers.inference.tiny import tiny_model

    torch.set_num_threads(1)
    import cers.inference.segmenter  # before the forks
    import cers.pool.index
    import cers.training.trainer  # noqa: F401

    chance, model = random.Random(seed), tiny_model(folder / "model", size=64)
    rows = [
        killing(name, max(1, round(points * share)), folder / name, model, chance, say)
        for name, share in SHARES.items()
        if not only or name in only
    ]
    rest = {
        "full-disk": lambda: full_disk(max(3, points // 10), folder / "full", model, chance, say),
        "read-only": lambda: read_only(folder / "read-only", model, say),
        "together": lambda: together(minutes, folder / "together", say),
        "malformed": lambda: malformed(most_malformed, folder / "malformed", model, say),
    }
    return rows + [make() for name, make in rest.items() if not only or name in only]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=60, help="kills in mid-work at random points, over all operations (default: 60)")
    parser.add_argument("--minutes", type=float, default=1.0, help="of two writers and one reader (default: 1)")
    parser.add_argument("--malformed", type=int, metavar="N", help="malformed inputs at most (default: all)")
    parser.add_argument("--only", nargs="+", default=[], choices=[*SHARES, "full-disk", "read-only", "together", "malformed"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was found here")
    given = parser.parse_args(arguments)
    if not hasattr(os, "fork"):
        parser.error("this needs a system with fork, such as Linux or macOS")
    begun = time.monotonic()

    def say(words: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{words:<60}", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="cers-faults-", ignore_cleanup_errors=True) as folder:
        rows = campaign(given.points, given.minutes, given.malformed, Path(folder), given.only, given.seed, say)
    print(table(rows))
    if given.json:
        given.json.write_text(
            json.dumps(
                {
                    "points": given.points,
                    "minutes": given.minutes,
                    "seed": given.seed,
                    "machine": machine(1),
                    "seconds": round(time.monotonic() - begun),
                    "rows": [asdict(r) for r in rows],
                },
                indent=1,
            )
            + "\n",
            encoding="utf-8",
        )
    return 1 if any(r.faults for r in rows) else 0


def table(rows: list[Row]) -> str:
    """As Markdown, and below it every fault."""
    lines = ["| bad day | tries | struck in mid-work | faults | seconds | note |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    lines += [f"| {r.name} | {r.points} | {r.hit} | {len(r.faults)} | {r.seconds:.0f} | {r.note} |" for r in rows]
    lines += [f"- {r.name}: {fault}" for r in rows for fault in r.faults]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
