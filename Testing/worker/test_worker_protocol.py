"""The worker as a process: bad lines, one answer each, cancelling, its end. None of these needs a model."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from cers import __version__
from cers.worker.client import Worker, WorkerError
from cers.worker.server import MAX_LINE

ROOT = Path(__file__).parents[2]


def scripted(methods: str) -> list[str]:
    """Command of a worker whose methods are given as source: for what real methods do only on a bad day."""
    code = f"""
import os, sys, time
import cers.worker.server as server
from cers.errors import InputError
{textwrap.dedent(methods)}
server._methods = lambda folder: dict(load_model=load_model)
sys.exit(server.serve())
"""
    return [sys.executable, "-c", code]


SLEEPER = """
def load_model(job, params):
    for n in range(2000):
        job.progress(n / 2000, f"step {n}")
        job.check()
        time.sleep(0.005)
    return {}
"""


def start() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "cers", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )


def test_ready_comes_first_and_hello_checks_the_version():
    with Worker() as worker:
        assert worker.ready["protocol"] == 1 and worker.ready["version"] == __version__ and worker.ready["pid"] == worker.process.pid
        assert worker.call("hello", protocol=1)["protocol"] == 1
        for other in (2, None, "1"):
            with pytest.raises(WorkerError, match="protocol 1") as caught:
                worker.call("hello", protocol=other)
            assert caught.value.code == "protocol"


def test_parameters_of_what_is_answered_at_once_are_checked_too():
    with Worker() as worker:
        for method, given, words in (
            ("hello", {"protocol": 1, "colour": "red"}, "has no parameter"),
            ("hello", {"protocol": 2, "colour": "red"}, "protocol 1, not 2"),
            ("cancel", {}, "needs the parameter 'request'"),
            ("cancel", {"request": None}, "needs the parameter 'request'"),
            ("cancel", {"request": "x", "now": True}, "has no parameter"),
            ("shutdown", {"now": True}, "has no parameter"),
        ):
            with pytest.raises(WorkerError, match=words) as caught:
                worker.call(method, **given)
            assert caught.value.code == "protocol"
        assert worker.call("cancel", request="never sent") == {"cancelled": False}


def test_starting_loads_no_heavy_library():
    code = (
        "import sys, cers.__main__, cers.worker, cers.worker.client; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'faiss', 'transformers', 'SimpleITK', 'typer', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


BAD = [
    b"nonsense\n",
    b"[1, 2]\n",
    b"7\n",
    b"null\n",
    b"{}\n",
    b'{"id": 1.5, "method": "hello"}\n',
    b'{"id": true, "method": "hello"}\n',
    b'{"id": null, "method": "hello"}\n',
    b'{"id": {"a": 1}, "method": "hello"}\n',
    b'{"id": "' + b"x" * 300 + b'", "method": "hello"}\n',
    b"\xff\xfe\x00\n",
    b"[" * 200_000 + b"\n",
    b'{"id": "a", "method"\n',
    b'{"id": ' + b"9" * 5000 + b', "method": "hello"}\n',
    b'{"id": "\\ud800", "method": "hello", "params": {"protocol": 1}}\n',
]


def test_bad_lines_are_answered_and_survived():
    process = start()
    lines = [
        *BAD,
        b"\n",
        b"   \n",
        b'{"id": "u", "method": "fly"}\n',
        b'{"id": "v"}\n',
        b'{"id": "w", "method": ["hello"]}\n',
        b'{"id": "x", "method": "hello", "params": [1]}\n',
        b'{"id": "y", "method": "case", "params": {"idd": "z"}}\n',
        b'{"id": "ok", "method": "hello", "params": {"protocol": 1}}\r\n',
    ]
    for line in lines:
        process.stdin.write(line)
    process.stdin.flush()
    events = [json.loads(process.stdout.readline()) for _ in range(1 + len(BAD) + 6)]
    process.stdin.close()
    assert process.wait(10) == 0
    answers = events[1:]
    assert Counter(e["id"] for e in answers) == Counter({None: len(BAD), "u": 1, "v": 1, "w": 1, "x": 1, "y": 1, "ok": 1})
    assert all(e["type"] == "error" and e["code"] == "protocol" and "\n" not in e["message"] for e in answers if e["id"] != "ok")


def test_a_huge_line_is_refused_and_survived():
    with Worker() as worker:
        worker.write(b'{"id": "big", "method": "hello", "params": {"x": "' + b"y" * (MAX_LINE + 1000) + b'"}}\n')
        assert "longer" in worker.faults.get(timeout=30)["message"]
        assert worker.call("hello", protocol=1)


def test_an_id_is_used_once():
    with Worker(scripted(SLEEPER)) as worker:
        first = worker.send("load_model")
        worker.write(json.dumps({"id": first.id, "method": "hello", "params": {"protocol": 1}}).encode() + b"\n")
        fault = worker.faults.get(timeout=10)
        assert fault["id"] is None and fault["code"] == "protocol" and "used before" in fault["message"]
        assert first.cancel()
        with pytest.raises(WorkerError):
            first.result(10)


def test_cancel_stops_what_runs_and_what_waits():
    with Worker(scripted(SLEEPER)) as worker:
        running, waiting = worker.send("load_model"), worker.send("load_model")
        time.sleep(0.3)
        started = time.monotonic()
        assert waiting.cancel()
        with pytest.raises(WorkerError) as caught:
            waiting.result(2)
        assert caught.value.code == "cancelled" and time.monotonic() - started < 1
        assert running.cancel()
        with pytest.raises(WorkerError) as caught:
            running.result(2)
        assert caught.value.code == "cancelled"
        assert not running.cancel()  # over already
        assert worker.call("cancel", request="never sent") == {"cancelled": False}
        assert worker.call("cancel", request={"a": 1}) == {"cancelled": False}


def test_progress_is_throttled():
    seen = []
    with Worker(scripted(SLEEPER)) as worker:
        request = worker.send("load_model", lambda fraction, message: seen.append((time.monotonic(), fraction, message)))
        time.sleep(1.5)
        request.cancel()
    assert 5 < len(seen) < 40 and all(0 <= f <= 1 for _, f, _ in seen)


def test_what_libraries_print_never_comes_between_the_answers():
    noisy = """
    def load_model(job, params):
        print("python noise"); sys.stdout.write("more\\n"); os.write(1, b"noise from C\\n"); os.system("echo noise of a child")
        return {"done": True}
    """
    with Worker(scripted(noisy)) as worker:
        assert worker.call("load_model") == {"done": True}
    assert {"python noise", "more", "noise from C", "noise of a child"} <= set(worker.log)


def test_the_unexpected_is_one_sentence_with_the_traceback_in_the_log():
    broken = """
    def load_model(job, params):
        raise ZeroDivisionError("a\\nb")
    """
    with Worker(scripted(broken)) as worker:
        for _ in range(2):
            with pytest.raises(WorkerError) as caught:
                worker.call("load_model")
            assert caught.value.code == "internal" and "\n" not in str(caught.value) and "load_model" in str(caught.value)
    assert any("ZeroDivisionError" in line for line in worker.log) and any(line.startswith("Traceback") for line in worker.log)


@pytest.mark.parametrize(
    "raised, code",
    [
        ("ModuleNotFoundError('No module named torch')", "packages"),
        ("MemoryError()", "memory"),
        ("InputError('Say so.')", "input"),
        ("RuntimeError('CUDA out of memory')", "memory"),
    ],
)
def test_errors_carry_a_code(raised, code):
    with Worker(scripted(f"def load_model(job, params):\n    raise {raised}\n")) as worker:
        with pytest.raises(WorkerError) as caught:
            worker.call("load_model")
        assert caught.value.code == code


def test_results_are_plain_json():
    odd = """
    def load_model(job, params):
        import numpy as np
        return {"nan": float("nan"), "np": np.float32(0.5), "inf": np.float64("inf"), "list": np.arange(2), 1: (2, None, True),
                "text": "\\ud800\\u00e9"}
    """
    with Worker(scripted(odd)) as worker:
        result = worker.call("load_model")
    assert (
        result["nan"] is None
        and result["np"] == 0.5
        and result["inf"] is None
        and result["list"] == [0, 1]
        and result["1"] == [2, None, True]
    )


def test_the_folder_is_private_and_goes_away():
    worker = Worker()
    folder = Path(worker.ready["folder"])
    if os.name == "posix":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "x.npy").write_bytes(b"x")
    assert worker.close() == 0 and not folder.exists()


def test_shutdown_answers_everything_and_ends():
    worker = Worker(scripted(SLEEPER))
    running, waiting = worker.send("load_model"), worker.send("load_model")
    time.sleep(0.2)
    assert worker.send("shutdown").result(5) == {}
    for request in (running, waiting):
        with pytest.raises(WorkerError) as caught:
            request.result(5)
        assert caught.value.code == "cancelled"
    assert worker.process.wait(5) == 0 and not Path(worker.ready["folder"]).exists()


def test_it_ends_with_its_stdin_even_in_the_midst_of_stubborn_work():
    stubborn = """
    def load_model(job, params):
        time.sleep(60)
    """
    worker = Worker(scripted(stubborn))
    request = worker.send("load_model")
    time.sleep(0.2)
    started = time.monotonic()
    assert worker.close(10) == 0 and time.monotonic() - started < 5
    with pytest.raises(WorkerError):
        request.result(5)
    assert not Path(worker.ready["folder"]).exists()


@pytest.mark.parametrize("named", [True, False])
def test_what_a_client_that_crashed_has_left_goes_with_the_worker(tmp_path, named):
    """An image on its way, for one. A folder that others use as well stays."""
    folder = tmp_path / "cers-own"
    folder.mkdir()
    (folder / "input-1.npy").write_bytes(b"an image")
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    environment["CERS_CLIENTS_FOLDER"] = str(folder if named else tmp_path)
    worker = subprocess.Popen(
        [sys.executable, "-m", "cers", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment
    )
    assert json.loads(worker.stdout.readline())["type"] == "ready"
    worker.communicate(timeout=60)
    assert folder.exists() == (not named) and tmp_path.exists()


@pytest.mark.skipif(os.name != "posix", reason="elsewhere a dead parent closes the pipe")
def test_it_ends_when_its_parent_dies():
    """The parent is killed while somebody else still holds the worker's stdin open."""
    code = """
import subprocess, sys, time
p = subprocess.Popen([sys.executable, "-m", "cers", "serve"], stdin=0, stdout=subprocess.PIPE)
print(p.stdout.readline().decode(), flush=True)
time.sleep(60)
"""
    read_end, write_end = os.pipe()
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=read_end, stdout=subprocess.PIPE, cwd=ROOT)
    ready = json.loads(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    try:
        deadline = time.monotonic() + 10
        while _alive(ready["pid"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _alive(ready["pid"]) and not Path(ready["folder"]).exists()
    finally:
        os.close(write_end)
        os.close(read_end)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return os.path.exists("/proc/self") is False


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_terminated_worker_leaves_nothing():
    worker = Worker()
    worker.process.terminate()
    worker.process.wait(5)
    assert not Path(worker.ready["folder"]).exists()
    with pytest.raises(WorkerError):
        worker.send("hello", protocol=1).result(5)
    worker.close()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_worker_that_is_ended_while_it_starts_leaves_nothing(tmp_path):
    code = """
import os, signal
from cers.worker.server import serve
install = signal.signal
def struck(number, handler):
    install(number, handler)
    os.kill(os.getpid(), number)
signal.signal = struck
serve()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and not done.stderr and not list(tmp_path.iterdir()), done
