"""The fault campaign in small: the program finds nothing wrong, and would find it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the campaign needs fork")


def test_campaign_in_small(tmp_path):
    pytest.importorskip("torch")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.faults",
            "--points",
            "14",
            "--minutes",
            "0.05",
            "--malformed",
            "40",
            "--json",
            str(tmp_path / "found.json"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {r["name"]: r for r in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert {
        "kill -9: import",
        "kill -9: train",
        "kill -9: install-model",
        "full disk",
        "read-only disk",
        "two writers, one reader",
        "malformed input",
    } <= set(rows)
    assert rows["malformed input"]["points"] == 40 and sum(r["points"] for n, r in rows.items() if n.startswith("kill")) >= 12


def test_what_goes_wrong_is_noticed():
    from benchmarks.fork import child
    from benchmarks.malformed import bent
    from cers.errors import InputError

    def raises(error):
        def work(promise):
            promise("one")
            raise error

        return work

    refused = child(raises(InputError("The image is empty. Choose another one.")))
    assert refused.state == "refused" and refused.words.startswith("The image is empty") and refused.promised == ["one"]
    crashed = child(raises(KeyError("x")))
    assert crashed.state == "crashed" and "KeyError" in crashed.words
    assert child(lambda promise: time.sleep(60), limit=0.3).state == "hung"
    assert child(lambda promise: os._exit(7)).state == "crashed"
    killed = child(lambda promise: [(promise(str(n)), time.sleep(0.05)) for n in range(100)], kill_after=0.4)
    assert killed.state == "killed" and killed.promised[:1] == ["0"]
    assert child(lambda promise: promise("x")).state == "done" and len(dict(bent(b"x" * 999))) >= 10


def test_what_is_lost_is_noticed(tmp_path):
    from benchmarks.faults import Row
    from benchmarks.fork import Outcome
    from benchmarks.operations import Describe, Import
    from cers.pool import Pool

    (tmp_path / "a").mkdir()
    op = Import(tmp_path / "a", tmp_path)
    op.renew()
    assert op.lost(["not there"]) == ["case not there"]
    op = Describe(tmp_path, tmp_path)
    op.renew()
    with Pool.open(op.pool) as pool:
        one = pool.ids()[0]
    assert op.lost([f"{one} 1"]) == [] and op.lost([f"{one} 9"]) == [f"{one} 9"]
    next((op.pool / "arrays").rglob("*.npz")).write_bytes(b"")
    assert op.lost([])
    row = Row("x")
    row.check(Outcome("refused", words="Traceback: secret"), may_refuse=True)
    row.check(Outcome("hung"))
    row.check(Outcome("refused", words="The disk is full. Free some space."), may_refuse=True)
    row.check(Outcome("refused", words="The disk is full. Free some space."))
    assert row.points == 4 and len(row.faults) == 3
