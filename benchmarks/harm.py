"""Does the pool check find wrong masks? Real cases, some of them with the mask of another case, tried with the shipped model.

    python -m benchmarks.harm --data BRISC --cases 150 --wrong 15
    python -m benchmarks.harm --images hippocampus/images --masks hippocampus/labels --volumes 20 --wrong 15

The first is a pool of what the model knows, the second one of a structure that it has never seen. Three signs are judged by how well they
tell the planted cases from the others (area under the ROC curve, 0.5 is chance): the Dice that a case adds to those it serves, the Dice of
its own mask with what the model draws there from the rest of the pool, and how far the references chosen beside it agree with its mask.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.accuracy import training_pool
from benchmarks.common import program
from benchmarks.far import LABELS, pairs, read
from cers.evaluation.statistics import auroc


def plant(pool, count: int, seed: int) -> set[str]:
    """Give ``count`` cases the mask of the next one among them, and a rationale measured with it, as their annotator would; the ids."""
    from cers.rationale import describe

    ids = sorted(pool.ids())
    cases = [pool.get(ids[i]) for i in np.random.default_rng(seed).permutation(len(ids))[:count]]
    masks, out = [case.mask for case in cases], set()
    for case, mask in zip(cases, masks[1:] + masks[:1]):
        rows, columns = (np.linspace(0, n - 1, size).round().astype(int) for n, size in zip(mask.shape, case.mask.shape))
        pool.delete(case.id)
        case.id, case.mask = "", mask[np.ix_(rows, columns)]
        case.rationale = describe(case.image, case.mask > 0, case.spacing, modality=case.modality, plane=case.plane)
        out.add(pool.add(case))
    return out


def volumes_pool(folder: Path, images: Path, masks: Path, count: int):
    from cers.pool import Pool, import_volume

    pool = Pool.create(folder)
    for image, mask in pairs(images, masks)[:count]:
        volume, truth = read(image, mask, "MR", "brain")
        if truth.any():
            import_volume(pool, volume, truth, LABELS)
    return pool


def judge(segmenter, wrong: set[str]) -> dict:
    """All signs against the planted ids, and the findings as a user would get them."""
    from cers.inference.harm import check_harm

    report = check_harm(segmenter, budget=10**6)
    mean, agreed = report.mean("gains"), report.mean("agreement")
    own = {i: t.with_evidence for i, t in report.trials.items()}
    out = {"cases": report.total, "wrong": len(wrong), "evidence_gain": report.evidence_gain}
    for name, sign in (("added to others", mean), ("own mask", own), ("agreement", agreed)):
        ids = list(sign)
        out[name] = {"judged": len(ids), "auroc": auroc([-sign[i] for i in ids], [i in wrong for i in ids])}
    out["signs"] = [[mean.get(i), own[i], agreed.get(i), i in wrong] for i in own]
    for kind in sorted({f.kind for f in report.findings()}):
        named = [f.ids[0] for f in report.findings() if f.kind == kind]
        out[f"findings: {kind}"] = {"named": len(named), "of them wrong": len(wrong & set(named))}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.harm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder in BRISC layout")
    parser.add_argument("--cases", type=int, default=150)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--volumes", type=int, default=20)
    parser.add_argument("--wrong", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.data and not (options.images and options.masks):
        parser.error("give --data, or --images and --masks")

    from cers.inference import Segmenter, load_model
    from cers.rationale import TextEmbedder

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pool"
        pool = (
            training_pool(options.data, folder, options.cases)
            if options.data
            else volumes_pool(folder, options.images, options.masks, options.volumes)
        )
        wrong = plant(pool, options.wrong, options.seed)
        result = judge(Segmenter(load_model(), pool, text_embedder=TextEmbedder()), wrong)
    print(json.dumps({k: v for k, v in result.items() if k != "signs"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)
