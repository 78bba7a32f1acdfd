"""The demonstration: a small pool of real cases, and one real volume segmented with evidence from it.

``python -m cers.demo`` writes ``demo/segmentation.seg.nrrd``, ``demo/evidence.html`` and ``demo/summary.json``, and prints a summary.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .case import Prediction, Volume
from .case.counts import by_plane, references_words, slices_words
from .case.io import atomic_path, read_mask, read_volume, write_segmentation
from .errors import CersError, InputError
from .evaluation.metrics import dice
from .resources import resource
from .sample import sample

QUERY = "brain1"
ABOUT = {  # modality, body site
    "brain1": ("MR", "brain"),
    "brain2": ("MR", "brain"),
    "lung1": ("CT", "lung"),
    "lung2": ("CT", "lung"),
    "breast1": ("MR", "breast"),
}
POOL = tuple(name for name in ABOUT if name != QUERY)
LABELS = {1: "tumor"}
NOTE = (
    f"These {len(POOL)} patients are a demonstration, not a clinical pool: too few to support a reading, and only one of them shows "
    "the same organ. Not for clinical use."
)


def read_sample(name: str) -> tuple[Volume, np.ndarray]:
    """A sample volume with what is known about it, and its expert mask (k, j, i) of 0 and 1."""
    image, label = sample(name)
    modality, body_site = ABOUT[name]
    volume = read_volume(image, modality=modality, body_site=body_site)
    volume.name, volume.patient_id = name, f"pyradiomics-{name}"
    mask, _ = read_mask(label, volume.geometry)
    return volume, (mask > 0).astype(np.uint8)


def build_pool(folder: Path):
    """A new pool at ``folder`` with lesion slices of the samples in ``POOL``; one that stood there before is replaced.

    Samples of the query's organ are kept in three planes, others along their acquisition.

    Raises:
        InputError: the folder holds something else than a pool.
    """
    from .pool import Pool
    from .pool.importer import import_volume

    if folder.exists():
        if not (folder / "pool.sqlite").is_file():
            raise InputError(f"'{folder}' is not a pool, so it was left as it is. Remove it or choose another output folder.")
        shutil.rmtree(folder)
    pool = Pool.create(folder)
    for name in POOL:
        volume, mask = read_sample(name)
        import_volume(pool, volume, mask, LABELS, source=f"pyradiomics 3.0.1 {name}", annotator="pyradiomics expert")
    return pool


def summarise(prediction: Prediction, expert: np.ndarray, pool, model, seconds: dict[str, float]) -> dict:
    """What ``summary.json`` holds.

    References, rejected candidates and coverage at the top are those of one slice: the largest lesion slice among those that have
    references, or of all where none has. Those of every slice are under ``slices``.
    """
    shown = max(prediction.evidence, key=lambda e: (bool(e.pixels and e.references), e.pixels))
    slices = [e.to_dict() for e in prediction.evidence]
    return {
        "case": QUERY,
        "dice": round(dice(prediction.labelmap, expert), 4),
        "volume_ml": round(sum(prediction.volume_ml.values()), 3),
        "expert_volume_ml": round(float((expert > 0).sum()) * prediction.geometry.voxel_ml, 3),
        "seconds": {step: round(value, 4) for step, value in seconds.items()},
        "slice": {"plane": shown.plane, "index": shown.index, "array_index": shown.array_index, "pixels": shown.pixels},
        "references": [r.to_dict() for r in shown.references],
        "rejected": [r.to_dict() for r in shown.rejected],
        "coverage": shown.coverage.to_dict(),
        "planes": {plane: asdict(count) for plane, count in by_plane(slices).items()},
        "slices": slices,
        "model_hash": model.hash,
        "pool_hash": pool.hash(),
        "pool": {
            "patients": len(POOL),
            "cases": [{k: case[k] for k in ("id", "patient_id", "modality", "body_site", "source")} for case in pool.list()],
        },
        "provenance": prediction.provenance,
        "note": NOTE,
    }


def describe(summary: dict, files: list[Path]) -> str:
    """The summary in words."""
    place, cases = summary["slice"], {case["id"]: case for case in summary["pool"]["cases"]}
    counts = by_plane(summary["slices"])
    seconds = {step: value for step, value in summary["seconds"].items() if "." not in step}
    lines = [
        "",
        f"Segmented {summary['case']} (contrast T1 MR of the brain) with evidence:",
        f"  lesion   {summary['volume_ml']:.1f} ml in {slices_words(counts)}; the expert's mask has "
        f"{summary['expert_volume_ml']:.1f} ml; Dice {summary['dice']:.3f}",
        f"  time     {seconds['total']:.1f} s (" + ", ".join(f"{k} {v:.2f}" for k, v in seconds.items() if k != "total") + ")",
        f"  evidence {references_words(counts)}" if summary["volume_ml"] else "  evidence none: no lesion was found",
        f"{'Largest of them' if summary['references'] else 'Largest lesion slice'}, {place['plane']} {place['index'] + 1}: "
        + summary["coverage"]["message"],
    ]
    for r in summary["references"]:
        case = cases[r["id"]]
        cot, influence = ("-" if r[k] is None else f"{r[k]:.2f}" for k in ("cot", "influence"))
        lines.append(
            f"  {r['rank']}. {r['id'][:12]} {case['source']}, {case['modality']} {case['body_site']}: visual {r['visual']:.2f}, "
            f"CoT {cot}, influence {influence}"
        )
    if summary["rejected"]:
        lines.append("Not used there, for instance:")
        shown = {}
        for r in summary["rejected"]:
            shown.setdefault((cases.get(r["id"], {}).get("source"), r["stage"]), r["reason"])
        lines += [f"  {source or 'case'}: {reason}" for (source, _), reason in list(shown.items())[:4]]
    return "\n".join([*lines, "", NOTE, "", *(f"Wrote {file}" for file in files)])


def run(output: Path, *, device: str = "cpu", threads: int | None = None, planes: str = "auto") -> dict:
    """Build the pool, segment, write the three files. Returns the summary."""
    from .inference import Segmenter, load_model
    from .inference.report import write_report

    seconds, start = {}, time.perf_counter()

    def lap(step: str) -> None:
        nonlocal start
        seconds[step], start = time.perf_counter() - start, time.perf_counter()

    volume, expert = read_sample(QUERY)
    for name in POOL:
        sample(name)
    lap("read")
    model = load_model(resource("model"), device=device, threads=threads)
    lap("load_model")
    files = [output / "segmentation.seg.nrrd", output / "evidence.html", output / "summary.json"]
    with build_pool(output / "pool") as pool:
        lap("build_pool")
        prediction = Segmenter(model, pool).segment(volume, planes)
        lap("segment")
        write_segmentation(files[0], prediction.labelmap, volume.geometry, prediction.labels)
        write_report(files[1], prediction, volume, pool, title="CERS demonstration")
        lap("write")
        steps = {**seconds, "total": sum(seconds.values()), **{f"segment.{step}": value for step, value in prediction.seconds.items()}}
        summary = summarise(prediction, expert, pool, model, steps)
    with atomic_path(files[2]) as target:
        target.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(describe(summary, files))
    return summary


def _unread() -> int:
    """Ends quietly where nobody reads the output any more; what is still buffered would be complained about at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="cers-demo", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("demo"), help="folder to write to (default: demo)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        "--planes",
        default="auto",
        choices=("auto", "acquisition", "three"),
        help="decode along the scanner's plane only, or along all three, which finds fewer false lesions (default: as the volume allows)",
    )
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models come from local folders and packages only
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        run(options.output, device=options.device, threads=options.threads, planes=options.planes)
        sys.stdout.flush()
    except CersError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # who read the summary has seen enough; the files are written
        return _unread()
    except OSError as error:
        print(
            f"Error: '{error.filename or options.output}' could not be written ({error.strerror}). Choose another folder with --output.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
