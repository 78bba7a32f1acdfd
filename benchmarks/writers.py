"""Writers of rationales compared by what rationales are for, on pictures of BRISC 2025 with the tables of texts that come with it.

Own case: a text of one writer (row) looks for its case among the texts of another (column) or its own; chance is 1 in the number of
cases. Diagnosis: share of the five nearest other cases that have the case's diagnosis. Contradicting: share of sentences that clearly
contradict the measured descriptors. Anatomy: share of sentences that name a place that nothing measured.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from .common import options, program, report

MEASURED = "measured"


def cases(folder: Path, count: int, tables: dict[str, dict], seed: int = 0) -> list[dict]:
    """Cases with picture and mask whose texts all writers have, drawn with a fixed seed; near-duplicate groups give one case each."""
    from cers.case.io import read_mask, read_volume

    with (folder / "cases.csv").open(encoding="utf-8", newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if all(_stem(r["image"]) in table for table in tables.values())]
    out, groups = [], set()
    for n in np.random.default_rng(seed).permutation(len(rows)):
        row, stem = rows[n], _stem(rows[n]["image"])
        key = row["split"], row["group"]
        image, mask = folder / "images" / row["split"] / f"{stem}.jpg", folder / "masks" / row["split"] / f"{stem}.png"
        if key in groups or not image.is_file() or not mask.is_file():
            continue
        volume = read_volume(image)
        label = read_mask(mask, volume.geometry)[0]
        if label.any():
            groups.add(key)
            out.append({**row, "stem": stem, "image_array": volume.array[0], "mask_array": label[0] > 0})
        if len(out) == count:
            break
    return out


def _stem(name: str) -> str:
    return name.removesuffix(".jpg")


def own_case(queries: np.ndarray, gallery: np.ndarray) -> tuple[float, float]:
    """(share of queries whose own case comes first, share with it among the first five); both (cases, dimension), unit rows."""
    similar = queries @ gallery.T
    rank = (similar > np.diag(similar)[:, None]).sum(1)
    return float((rank == 0).mean()), float((rank < 5).mean())


def agreement(vectors: np.ndarray, diagnosis: np.ndarray, k: int = 5) -> float:
    """Share of the k nearest other cases with the same diagnosis."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -2)
    nearest = np.argsort(-similar, 1)[:, :k]
    return float((diagnosis[nearest] == diagnosis[:, None]).mean())


def main() -> int:
    parser = options(__doc__, runs=1)
    parser.set_defaults(threads=1)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("CERS_DATA", "../shared/data")) / "brisc2025",
        help="folder of BRISC 2025 with cases.csv and the tables of texts",
    )
    parser.add_argument("--count", type=int, default=400, help="cases (default: 400)")
    given = parser.parse_args()
    from cers.rationale import TextEmbedder, describe, read_cot_csv, to_rationale
    from cers.rationale.writers import contradicting, names_anatomy

    tables = {}
    for path in sorted(given.data.glob("cot_output_*.csv")):
        tables[path.stem.removeprefix("cot_output_").replace("_", " ")] = {r.image: r for r in read_cot_csv(path) if not r.missing}
    if not tables:
        parser.error(f"there are no tables cot_output_*.csv in {given.data}")
    sample = cases(given.data, given.count, tables)
    embedder = TextEmbedder(threads=given.threads)
    measured = [describe(c["image_array"], c["mask_array"], modality="MR", plane=c["plane"]) for c in sample]
    writers = {MEASURED: measured, **{name: [to_rationale(table[c["stem"]]) for c in sample] for name, table in tables.items()}}
    vectors = {name: embedder.encode([r.compact for r in texts]) for name, texts in writers.items()}
    # the sentences that people read, embedded as the tables' texts are
    vectors[f"{MEASURED}, in sentences"] = embedder.encode([r.text for r in measured])
    diagnosis = np.array([c["diagnosis"] for c in sample])
    share = np.unique(diagnosis, return_counts=True)[1] / len(sample)
    rows = []
    for name, own in vectors.items():
        first = [f"{a:.1%} / {b:.1%}" for a, b in (own_case(own, other) for key, other in vectors.items() if key in writers)]
        texts = writers.get(name, measured)
        sentences = [(s, m.descriptors, c["plane"]) for r, m, c in zip(texts, measured, sample) for s in r.statements]
        wrong = sum(len(contradicting(r, m.descriptors, c["plane"])) for r, m, c in zip(texts, measured, sample))
        anatomy = sum(names_anatomy(s.text) for s, *_ in sentences)
        rows.append(
            (
                name,
                *first,
                f"{agreement(own, diagnosis):.1%}",
                f"{wrong / len(sentences):.1%}",
                f"{anatomy / len(sentences):.1%}",
                len(sentences),
            )
        )
    rows.append(
        ("chance", *[f"{1 / len(sample):.1%} / {5 / len(sample):.1%}"] * len(writers), f"{float((share**2).sum()):.1%}", "", "", "")
    )
    report(
        f"Writers on {len(sample)} cases",
        [
            "writer of the query",
            *(f"own case in: {n}, first / top 5" for n in writers),
            "diagnosis in top 5",
            "contradicting",
            "anatomy",
            "sentences",
        ],
        rows,
        given,
    )
    return 0


if __name__ == "__main__":
    program(main)
