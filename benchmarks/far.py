"""A far case for the shipped model: a structure it has never seen, taught by nothing but annotated cases in the pool.

    python -m benchmarks.far --images hippocampus/images --masks hippocampus/labels --pool 0 5 20 60 --queries 20

The first volumes by name go to the pool, as an annotator would add them, the last ones are segmented with the model as it is, and all
labels of a mask count as one. Copy: the mask of the reference that was chosen first, or the vote of all that were chosen (K), moved into
the query's frame, without any network.
With ``--train MINUTES`` a model is then trained on each pool, as *Training* in the module would, from the model and with the form's first
settings; and measured without and with the pool. Intervals are 95 % bootstrap over volumes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import between, machine, program
from cers.evaluation.metrics import dice
from cers.evaluation.statistics import interval

LABELS = {1: "structure"}


def pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Images and masks of one name, by name."""
    files = sorted(p for p in images.iterdir() if p.name.endswith((".nii.gz", ".nrrd")) and (masks / p.name).exists())
    if not files:
        raise SystemExit(f"Error: '{images}' and '{masks}' hold no image and mask of the same name.")
    return [(p, masks / p.name) for p in files]


def read(image: Path, mask: Path, modality: str, site: str):
    from cers.case.io import read_mask, read_volume

    volume = read_volume(image, modality=modality, body_site=site)
    volume.name = volume.patient_id = image.name.split(".")[0]
    return volume, (read_mask(mask, volume.geometry)[0] > 0).astype(np.uint8)


def copied(segmenter, most: int) -> np.ndarray:
    """(k, j, i) bool: each slice of the last volume with what at least half of its first ``most`` references have drawn there."""
    plane = next(iter(segmenter.session.planes.values()))
    maps = np.zeros((len(plane.raw), *plane.raw.shape[1:]), bool)
    for (_, index), found in segmenter.session.slices.items():
        if ids := found.selection.ids[:most]:
            records = segmenter.store.rows(ids)
            vote = sum(records[i].masks[None].float().cpu() for i in ids) / len(ids)
            maps[index] = plane.frame.paste(vote)[0, 0] >= 0.5
    return plane.view.volume(maps) > 0


def measure(model, embedder, pool, queries, modality: str, site: str) -> dict[str, list[float]]:
    """Dice of each query: the plain decoder, D_R with what the pool offers, and copying."""
    from cers.inference import Segmenter

    segmenter = Segmenter(model, pool, text_embedder=embedder)
    k = model.selection.k
    out: dict[str, list[float]] = {"plain": [], "retrieved": [], "copy K=1": [], f"copy K={k}": [], "covered": []}
    for image, mask in queries:
        volume, truth = read(image, mask, modality, site)
        found = segmenter.segment(volume, influence=False)
        plane = next(iter(segmenter.session.planes.values()))
        plain = plane.view.volume(plane.frame.paste(plane.plain)[:, 0] >= model.config.threshold) > 0
        out["plain"].append(dice(plain, truth))
        out["retrieved"].append(dice(found.labelmap > 0, truth))
        for most in (1, k):
            out[f"copy K={most}"].append(dice(copied(segmenter, most), truth) if pool is not None and len(pool) else 0.0)
        out["covered"].append(float(np.mean([bool(e.references) for e in found.evidence])))
    return out


def taught(model, pool: Path, folder: Path, minutes: float, start: str, threads: int) -> Path:
    """The folder of a model trained on a pool; start: "model" begins with the model's weights, else as ``TrainConfig.initial``."""
    from cers.inference.model import quick_in_bfloat16
    from cers.training.config import TrainConfig
    from cers.training.trainer import train

    own = {
        "initial": str(model.folder / "model.safetensors"),
        "network": {k: v for k, v in model.net.config.to_dict().items() if k != "labels"},
    }
    config = TrainConfig(
        data=str(pool),
        minutes=minutes,
        size=model.config.size,
        threads=threads,
        precision="bfloat16" if quick_in_bfloat16() else "float32",
        deterministic=False,
        **(own if start == "model" else {"initial": start}),
    )
    train(config, folder)
    return folder / "model"


def summed(scores: dict[str, list[float]]) -> dict:
    """Means with their intervals."""
    out = {name: interval(values) for name, values in scores.items()}
    return {**out, "retrieved - plain": interval([a - b for a, b in zip(scores["retrieved"], scores["plain"])])}


def words(scores: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {r['value']:.3f}{between(r)}" for name, r in summed(scores).items())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.far", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--pool", type=int, nargs="+", default=[0, 5, 20, 60], help="volumes in the pool")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--modality", default="MR")
    parser.add_argument("--body-site", default="brain")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--train", type=float, default=0, metavar="MINUTES", help="also train on each pool, for so long")
    parser.add_argument("--start", default="model", help="weights that training begins with: model, imagenet or random")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from cers.inference import load_model
    from cers.pool import Pool, import_volume
    from cers.rationale import TextEmbedder

    files = pairs(given.images, given.masks)
    if max(given.pool) + given.queries > len(files):
        raise SystemExit(f"Error: {len(files)} volumes are too few for a pool of {max(given.pool)} and {given.queries} queries.")
    model, embedder = load_model(given.model, threads=given.threads), TextEmbedder()
    result = {"machine": machine(given.threads), "model": model.hash, "queries": given.queries, "rows": {}}
    with tempfile.TemporaryDirectory() as temporary:
        pool = Pool.create(Path(temporary) / "pool")
        added = 0
        for size in sorted(given.pool):
            for image, mask in files[added:size]:
                volume, truth = read(image, mask, given.modality, given.body_site)
                if truth.any():
                    import_volume(pool, volume, truth, LABELS)
            added = size
            scores = measure(model, embedder, pool, files[-given.queries :], given.modality, given.body_site)
            result["rows"][size] = {"cases": len(pool), **summed(scores)}
            print(f"{size:4d} volumes, {len(pool):5d} cases: {words(scores)}", flush=True)
            if given.train and len(pool):
                made = taught(model, pool.folder, Path(temporary) / f"run {size}", given.train, given.start, given.threads)
                trained = load_model(made, threads=given.threads)
                for name, source in (("trained", None), ("trained, with the pool", pool)):
                    scores = measure(trained, embedder, source, files[-given.queries :], given.modality, given.body_site)
                    result["rows"][size][name] = summed(scores)
                    print(f"     {name}: {words(scores)}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)
