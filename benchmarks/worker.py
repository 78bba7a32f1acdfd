"""Round trips through the worker process: a slice decoded again with other references, and how soon a cancel ends a segmentation."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from cers.demo import read_sample
from cers.inference.model import CONFIG
from cers.resources import resource
from cers.worker.client import Worker, WorkerError

from .common import OPEN, median_ms, options, program, report, timing_pool


def with_open_thresholds(model: Path, folder: Path) -> Path:
    """A copy of the model whose thresholds let any case serve, so that each slice has its full number of references."""
    folder.mkdir()
    for file in model.iterdir():
        if file.name != CONFIG:
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((model / CONFIG).read_text(encoding="utf-8"))
    config["selection"] = {**config.get("selection", {}), **OPEN}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return folder


def cancel_ms(worker: Worker, volume) -> float:
    """Milliseconds from a cancel in mid-run to the request's end."""
    path = Path(worker.ready["folder"]) / "cancel.npy"
    np.save(path, volume.array, allow_pickle=False)
    request = worker.send("segment", image=str(path), ijkToRAS=volume.geometry.ijkToRAS.tolist(), modality="MR", planes="three")
    time.sleep(0.5)
    start = time.perf_counter()
    request.cancel()
    try:
        request.result()
    except WorkerError as error:
        if error.code != "cancelled":
            raise
    return 1000 * (time.perf_counter() - start)


def main() -> int:
    given = options(__doc__, runs=21).parse_args()
    volume, _ = read_sample("brain1")
    with tempfile.TemporaryDirectory(prefix="cers-bench-") as folder:
        pool_folder = Path(folder) / "pool"
        timing_pool(pool_folder).close()
        start = time.perf_counter()
        with Worker() as worker:
            ready = time.perf_counter() - start
            model = with_open_thresholds(given.model or resource("model"), Path(folder) / "model")
            worker.call("load_model", path=str(model), threads=given.threads)
            worker.call("open_pool", path=str(pool_folder))
            result = worker.segment(volume.array, volume.geometry.ijkToRAS, modality="MR", body_site="brain", patient_id="benchmark")
            place = max(result["slices"], key=lambda s: s["pixels"])
            ids = [r["id"] for r in place["references"]]
            choices = iter(range(10**6))

            def again():
                return worker.call("resegment", plane=place["plane"], index=place["index"], dropped=[ids[next(choices) % len(ids)]])

            for _ in ids:
                again()
            rerun = median_ms(again, given.runs)
            hello = median_ms(lambda: worker.call("hello", protocol=1), given.runs)
            cancelled = statistics.median(cancel_ms(worker, volume) for _ in range(3))
    rows = [
        ("worker ready, from its start", 1000 * ready),
        ("hello", hello),
        (f"slice decoded again, {len(ids)} references", rerun),
        ("cancel to its end", cancelled),
    ]
    report("Round trips through the worker, milliseconds", ["request", "ms"], rows, given)
    return 0


if __name__ == "__main__":
    program(main)
