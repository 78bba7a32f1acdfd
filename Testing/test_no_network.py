"""No code path opens a connection without consent: one test watches every call that could, another reads every file that could make one."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Loaded by every Python process that the test starts, and by those that they start, before anything else.
WATCH = """
import os, sys
_LOG = os.environ["CERS_TEST_NETWORK"]
_CALLS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto", "socket.sendmsg")
def _watch(event, args):
    if event in _CALLS and int(getattr(args[0], "family", 0)) != 1:       # 1: between processes of one machine
        with open(_LOG, "a", encoding="utf-8") as file:
            file.write(f"{event} {args[1:] if event.startswith('socket.s') or event == 'socket.connect' else args} {sys.argv[:4]}\\n")
        raise OSError("The network is blocked by a test.")
sys.addaudithook(_watch)
"""

# What a user does with the command, the worker and a training, one after another.
WORK = """
import json, sys
from pathlib import Path
import numpy as np
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/Testing", sys.argv[2] + "/Testing/training"]
import phantom
from typer.testing import CliRunner
from cers.case import Geometry
from cers.case.io import write_image, write_segmentation
from cers.cli.app import app
from cers.worker.client import Worker, WorkerError
import runs

here = Path(sys.argv[1])
done = []
def cers(*arguments, code=(0,)):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code in code, (arguments, result.output, result.exception)
    done.append(" ".join(map(str, arguments[:2])))
    return result.output

model = phantom.build_model(here / "model")
(here / "images").mkdir(); (here / "masks").mkdir()
for seed in range(8):
    image, mask = phantom.head(seed, lesion=(26.0 + seed, 22.0 + seed % 3, 4.0))
    geometry = Geometry(phantom.matrix(), phantom.SHAPE)
    write_image(here / "images" / f"v{seed}.nii.gz", image, geometry)
    write_segmentation(here / "masks" / f"v{seed}.seg.nrrd", mask, geometry, {1: "tumor"})
pool = here / "pool"
cers("info")
cers("pool", "create", pool)
cers("pool", "import", pool, "--images", here / "images", "--masks", here / "masks", "--modality", "MR", "--body-site", "brain")
cers("pool", "list", pool, "--json")
cers("pool", "search", pool, "--text", "bright, sharp edge")
cers("pool", "health", pool, code=(0, 1))
cers("pool", "verify", pool)
cers("pool", "export", pool, here / "pool.zip")
cers("segment", here / "images" / "v0.nii.gz", "-o", here / "out.seg.nrrd", "--pool", pool, "--model", model,
     "--modality", "MR", "--body-site", "brain", "--report", here / "out.html")
cers("evaluate", here / "images", here / "masks", "--model", model, "--json", here / "result.json",
     "--modality", "MR", "--body-site", "brain")
cers("rationale", "write", pool, "--writer", "measured", "--again")
cers("rationale", "write", pool, "--writer", "endpoint", "--url", "http://127.0.0.1:9/v1", "--model", "m", "--dry-run")
cers("rationale", "write", pool, "--writer", "endpoint", "--url", "http://127.0.0.1:9/v1", "--model", "m", "--yes", code=(1,))
cers("rationale", "write", pool, "--writer", "endpoint", "--url", "https://models.example.org/v1",
     "--model", "m", "--with-picture", "--yes", code=(1,))
cers("model", "list")
file = here / "run.yaml"
runs.settings(pool, steps=2, validation_limit=2, allow_leaks=True).write(file)
cers("train", "--config", file, "--out", here / "run", "--cache", here / "cache")
cers("model", "install", here / "run")
with Worker() as worker:
    for method, params in (("load_model", {"path": str(model)}), ("open_pool", {"path": str(pool)}), ("embed", {}), ("pool_info", {}),
                           ("pool_map", {}), ("pool_health", {}), ("pool_harm", {"cases": 2}), ("rationale_overview", {}),
                           ("rationale_plan", {"writer": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "m", "picture": True}),
                           ("next_rank", {"folder": str(here / "images")})):
        worker.call(method, **params)
        done.append(method)
    try:
        worker.call("rationale_write", writer="endpoint", url="http://127.0.0.1:9/v1", model="m")
        raise AssertionError("written without consent")
    except WorkerError as error:
        assert "not agreed" in str(error), error
    before = Path(sys.argv[3]).exists()
    worker.call("rationale_grant", url="http://127.0.0.1:9/v1")
    worker.call("rationale_write", writer="endpoint", url="http://127.0.0.1:9/v1", model="m", again=True)
print(json.dumps({"done": done, "before": before}))
"""


def test_nothing_connects_before_consent(tmp_path):
    """Every call that could reach a network is watched, in this chain of processes; only after consent is there one."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    (tmp_path / "hook").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(WATCH)
    log = tmp_path / "network.txt"
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "hook"), str(ROOT)]),
        "CERS_TEST_NETWORK": str(log),
        "OMP_NUM_THREADS": "1",
        "CERS_CONFIG": str(tmp_path / "config"),
        "CERS_MODELS": str(tmp_path / "models"),
    }
    env.pop("HF_HUB_OFFLINE", None)  # it must not need to be told
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(tmp_path / "work"), str(ROOT), str(log)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + (log.read_text() if log.exists() else "")
    told = json.loads(done.stdout.splitlines()[-1])
    assert not told["before"] and len(told["done"]) >= 25
    assert log.read_text().startswith("socket.getaddrinfo ('127.0.0.1', 9"), "the watch sees what happens after consent"


# module that can reach a network -> files that may import it
MAY_IMPORT = {
    "socket": {
        "cers/rationale/writers/endpoint.py",
        "cers/training/runs.py",
        "cers/training/runfolder.py",
        "CERSKnowledgePool/CERSKnowledgePoolLib/TrainingLaunch.py",
    },
    **{name: {"cers/rationale/writers/endpoint.py"} for name in ("http", "urllib.request", "ssl")},
}
NEVER = {
    "requests",
    "httpx",
    "aiohttp",
    "urllib3",
    "ftplib",
    "smtplib",
    "telnetlib",
    "xmlrpc",
    "socketserver",
    "asyncio",
    "websockets",
    "grpc",
    "paramiko",
}
CALLS = {
    "downloadFile",
    "downloadFromURL",
    "load_state_dict_from_url",
    "snapshot_download",
    "hf_hub_download",
    "QNetworkAccessManager",
    "QTcpSocket",
    "QUdpSocket",
    "QSslSocket",
    "create_connection",
}


def _modules(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_only_the_endpoint_writer_can_connect():
    for folder in ("cers", "CERSSegment", "CERSKnowledgePool"):
        for path in (ROOT / folder).rglob("*.py"):
            name, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
            for module in _modules(tree):
                assert module.split(".")[0] not in NEVER, (name, module)
                for risky, allowed in MAY_IMPORT.items():
                    assert not (module == risky or module.startswith(risky + ".")) or name in allowed, (name, module)
            used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {
                n.id for n in ast.walk(tree) if isinstance(n, ast.Name)
            }
            assert not used & CALLS, (name, used & CALLS)
            if "socket" in _modules(tree) and "writers" not in name:
                own = {
                    n.attr
                    for n in ast.walk(tree)
                    if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "socket"
                }
                assert own <= {"gethostname"}, (name, own)
