"""Retrieval against the size of the pool, on random vectors: the nearest 50, and the whole selection with its reasons."""

from __future__ import annotations

import sys
import time

import numpy as np

from .common import median_ms, options, peak_mb, report

DIMENSION = 560  # of the default model's image vectors
TEXT_DIMENSION = 384


class MemoryPool:
    """What ``Selector`` asks of a pool, answered from memory: random vectors, three modalities, no rationales on file."""

    def __init__(self, size: int, seed: int = 0):
        from cers.pool.index import VectorIndex, _build

        random = np.random.default_rng(seed)
        self.ids = [f"{n:016x}" for n in range(size)]
        self.image, self.text, self.small = (unit(random, size, d) for d in (DIMENSION, TEXT_DIMENSION, 1024))
        start = time.perf_counter()
        self.vector_index = VectorIndex(self.ids, _build(self.image), "1")
        self.build_seconds = time.perf_counter() - start
        self.state = "1"
        self._row = {case_id: n for n, case_id in enumerate(self.ids)}

    def index(self, kind: str, model_hash: str):
        return self.vector_index

    def facets(self) -> list[tuple]:
        return [
            (case_id, f"p{n // 8}", f"v{n // 4}", None, ("MR", "CT", "MR")[n % 3], "brain", "axial", "unreviewed")
            for n, case_id in enumerate(self.ids)
        ]

    def vectors(self, kind: str, model_hash: str, ids=None):
        rows = [self._row[i] for i in ids]
        return list(ids), (self.text if kind == "rationale" else self.small)[rows]

    def rationales(self, ids) -> dict:
        return {}

    def __len__(self) -> int:
        return len(self.ids)


def unit(random, size: int, dimension: int) -> np.ndarray:
    vectors = random.standard_normal((size, dimension), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> int:
    parser = options(__doc__, runs=101)
    parser.set_defaults(threads=1)  # one is enough, and on a busy machine faster than two that wait for each other
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    import faiss

    from cers.pool import Query, SelectionConfig, Selector

    faiss.omp_set_num_threads(given.threads)
    random, rows = np.random.default_rng(1), []
    config = SelectionConfig(visual_threshold=-1.0, cot_threshold=0.0)
    for size in given.sizes:
        pool = MemoryPool(size)
        queries = iter(unit(random, 2 * given.runs + 2, DIMENSION))
        nearest = median_ms(lambda: pool.vector_index.search(next(queries), 50), given.runs)
        selector = Selector(pool, "model", "text")
        thumbnail, text = unit(random, 1, 1024)[0], unit(random, 1, TEXT_DIMENSION)[0]

        def select():
            return selector.select(
                Query(
                    next(queries),
                    thumbnail=thumbnail,
                    rationale_vector=text,
                    modality="MR",
                    body_site="brain",
                    patient_id="p1",
                    volume_id="v1",
                ),
                config,
            )

        select()
        rows.append((f"{size:,}", nearest, median_ms(select, given.runs), pool.build_seconds, pool.image.nbytes / 2**21))
    report(
        f"Retrieval, {DIMENSION} numbers a case",
        ["cases", "nearest 50, ms", "selection, ms", "build index, s", "index, MB"],
        rows,
        given,
        peak_mb=peak_mb(),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
