"""Accuracy of the shipped model, with and without evidence: BRISC test pictures, brain1, and skull-stripped BraTS volumes.

    python -m benchmarks.accuracy --data FOLDER --json accuracy.json

Test pictures that have a near-identical twin in training are left out. The pool of the pictures is made of training pictures
(``--pool-size`` of them, drawn at random); that of the volumes is the demonstration's. Intervals are 95 % bootstrap over cases.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import between, machine, program
from cers.errors import InputError
from cers.evaluation.calibration import Reliability, near_lesion, without_temperature
from cers.evaluation.metrics import compare_masks, dice
from cers.evaluation.statistics import interval

TUMOR_CORE = (1, 3, 4)  # BraTS labels whose union looks like BRISC's masks


class RandomSelector:
    """Stands where the two-stage selection stands and returns random cases: the control for what selection is worth."""

    def __init__(self, pool, k: int):
        self.ids, self.rng = pool.ids(), np.random.default_rng(0)
        self.k = min(k, len(self.ids))

    def select(self, query, config=None, pinned=(), dropped=()):
        from cers.case import Coverage, Reference
        from cers.pool import Selection

        ids = self.rng.choice(self.ids, self.k, replace=False)
        return Selection([Reference(str(i), n, 0.0) for n, i in enumerate(ids, 1)], [], Coverage(1.0, True, "random"))


def training_pool(data: Path, folder: Path, size: int):
    """A pool of random BRISC training pictures; one that is there already is completed, for its import may have been broken off.

    Raises:
        InputError: it holds other cases, test pictures among them perhaps.
    """
    from cers.pool import Pool
    from cers.pool.database import FILE
    from cers.pool.importer import import_folder

    with open(data / "cases.csv", newline="", encoding="utf-8") as f:
        rows = [r for r in csv.DictReader(f) if r["split"] == "train"]
    chosen = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:size]]
    pool = Pool.open(folder) if (folder / FILE).is_file() else Pool.create(folder)
    with tempfile.TemporaryDirectory() as temporary:
        table = Path(temporary) / "pool.csv"
        with open(table, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, ["image", "group", "diagnosis", "plane"])
            writer.writeheader()
            writer.writerows({k: r[k] for k in writer.fieldnames} for r in chosen)
        report = import_folder(
            pool,
            data / "images" / "train",
            data / "masks" / "train",
            table,
            defaults={"modality": "MR", "body_site": "brain", "label": "tumor"},
        )
    if others := len(set(pool.ids()) - set(report.ids)):
        raise InputError(
            f"The pool '{folder}' holds {others} cases that are none of these {size} training pictures. Choose another folder."
        )
    print(f"pool of {len(pool)} training pictures ({len(report.faults)} not imported)", flush=True)
    return pool


def pictures(model, embedder, data: Path, pool, limit: int) -> tuple[dict, list[dict], dict]:
    """Rows of the table for the clean test pictures, the cases, and the calibration error near the lesion before and after temperature."""
    from cers.case.io import read_mask, read_volume
    from cers.inference import Segmenter

    with open(data / "cases.csv", newline="", encoding="utf-8") as f:
        rows = [r for r in csv.DictReader(f) if r["split"] == "test" and r["twin_in_train"] == "0"][: limit or None]
    if not rows:
        raise InputError(f"'{data / 'cases.csv'}' lists no picture of the split test with 0 in the column twin_in_train.")
    retrieved, null, random = (Segmenter(model, p, text_embedder=embedder) for p in (pool, None, pool))
    random.selector = RandomSelector(pool, model.selection.k)
    retrieved.segment(read_volume(data / "images" / "test" / f"{rows[0]['image']}.jpg"), influence=False)  # embeds the pool
    texts = {"glioma": "Suspected glioma.", "meningioma": "Suspected meningioma.", "pituitary": "Suspected pituitary."}
    cases, before, after = [], Reliability(), Reliability()
    for n, row in enumerate(rows):
        volume = read_volume(data / "images" / "test" / f"{row['image']}.jpg")
        truth = read_mask(data / "masks" / "test" / f"{row['image']}.png", volume.geometry)[0] > 0
        found = retrieved.segment(volume, influence=False)
        plane = retrieved.session.planes["axial"]
        plain = plane.view.volume(plane.frame.paste(plane.plain)[:, 0] >= model.config.threshold)
        evidence = found.evidence[0]
        if (near := near_lesion(found.labelmap > 0, truth)) is not None:
            probability, lesion = found.probabilities[0][near].astype(np.float32), truth[near]
            after.add(probability, lesion)
            before.add(without_temperature(probability, model.config.temperature), lesion)
        cases.append(
            {
                "image": row["image"],
                "diagnosis": row["diagnosis"],
                "plane": row["plane"],
                "plain": dice(plain, truth),
                "null": dice(null.segment(volume, influence=False).labelmap > 0, truth),
                "retrieved": dice(found.labelmap > 0, truth),
                "random": dice(random.segment(volume, influence=False).labelmap > 0, truth),
                "text": dice(retrieved.segment(volume, text=texts[row["diagnosis"]], influence=False).labelmap > 0, truth),
                "references": len(evidence.references),
                "coverage": evidence.coverage.value,
                "confidence": evidence.confidence,  # None of an empty mask, as in cers evaluate: it foretells nothing
                "agreement": 1 - evidence.disagreement,
            }
        )
        if (n + 1) % 50 == 0:
            print(
                n + 1,
                {k: round(float(np.mean([c[k] for c in cases])), 4) for k in ("plain", "null", "random", "retrieved", "text")},
                flush=True,
            )
    table = {k: interval([c[k] for c in cases]) for k in ("plain", "null", "random", "retrieved", "text")}
    table["retrieved - null"] = interval([c["retrieved"] - c["null"] for c in cases])
    table["retrieved - plain"] = interval([c["retrieved"] - c["plain"] for c in cases])
    table["retrieved - random"] = interval([c["retrieved"] - c["random"] for c in cases])
    for kind in ("glioma", "meningioma", "pituitary"):
        table[f"retrieved, {kind}"] = interval([c["retrieved"] for c in cases if c["diagnosis"] == kind])
    calibration = {name: curve.summary()["ece"] for name, curve in (("before", before), ("after", after)) if len(curve)}
    return table, cases, calibration


def volumes(model, embedder, data: Path, folder: Path) -> list[dict]:
    """Dice of volumes with the demonstration's pool and without a pool, by plane choice."""
    from cers.case.io import read_mask, read_volume
    from cers.demo import build_pool, read_sample
    from cers.inference import Segmenter

    pool = build_pool(folder)
    queries = [("brain1", *read_sample("brain1"))]
    if not (found := sorted((data.parent / "volumes").glob("brats_*"))):
        print(f"There are no volumes brats_* in '{data.parent / 'volumes'}': brain1 only.", flush=True)
    for path in found:
        volume = read_volume(path / "t1c.nii.gz", modality="MR", body_site="brain")
        queries.append((path.name, volume, np.isin(read_mask(path / "label.nii.gz", volume.geometry)[0], TUMOR_CORE)))
    out = []
    for name, volume, truth in queries:
        for planes in ("acquisition", "three"):
            with_pool = Segmenter(model, pool, text_embedder=embedder)
            found = with_pool.segment(volume, planes, influence=False)
            alone = Segmenter(model, None, text_embedder=embedder).segment(volume, planes, influence=False)
            scores = compare_masks(found.labelmap > 0, truth > 0, volume.geometry.spacing[::-1], 2.0)
            row = {
                "volume": name,
                "planes": planes,
                "retrieved": round(scores["dice"], 4),
                "surface_dice": round(scores["surface_dice"], 4),
                "hd95": scores["hd95"] and round(scores["hd95"], 1),
                "null": round(dice(alone.labelmap > 0, truth > 0), 4),
                "ml": round(sum(found.volume_ml.values()), 2),
                "expert_ml": round(float((truth > 0).sum() * volume.geometry.voxel_ml), 2),
            }
            print(row, flush=True)
            out.append(row)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in BRISC layout; volumes are looked for beside it")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pool", type=Path, help="keep the pool of training pictures here, and use it if it is there")
    parser.add_argument("--pool-size", type=int, default=1500)
    parser.add_argument("--limit", type=int, default=0, help="only so many pictures (0: all)")
    parser.add_argument("--only", choices=["pictures", "volumes"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from cers.inference import load_model
    from cers.rationale import TextEmbedder

    model, embedder = load_model(options.model, threads=options.threads), TextEmbedder()
    result = {"machine": machine(options.threads), "model": model.hash}
    with tempfile.TemporaryDirectory() as temporary:
        if options.only != "volumes":
            folder = options.pool or Path(temporary) / "pool"
            pool = training_pool(options.data, folder, options.pool_size)
            result["pictures"], result["cases"], result["calibration"] = pictures(model, embedder, options.data, pool, options.limit)
            for name, row in result["pictures"].items():
                if row["n"]:
                    print(f"{name:22s} {row['value']:.4f} {between(row, '.4f')}  n={row['n']}")
        if options.only != "pictures":
            result["volumes"] = volumes(model, embedder, options.data, Path(temporary) / "demo_pool")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)
