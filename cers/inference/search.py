"""Finding cases of a pool by words or by a picture, outside any segmentation."""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import Cancelled, InputError
from ..pool import Pool
from ..pool.records import modality_code

BATCH = 64
# vectors of cases that lack one in pools that may only be read: {(kind, model hash, pool state): {id: vector}}
_remembered: WeakKeyDictionary[Pool, dict[tuple[str, str, str], dict[str, np.ndarray]]] = WeakKeyDictionary()


def search_text(pool: Pool, embedder, text: str, k: int = 10, progress=None, cancel=None) -> list[tuple[str, float]]:
    """Ids of the cases whose rationale is closest to a text, with the cosine, best first.

    Missing text vectors are computed first; in a pool that may only be read they are not kept with it.
    """
    text = text.strip()
    if not text:
        raise InputError("The search text is empty. Write some words on texture, boundary or surroundings.")
    _check(pool, k)

    def encode(ids: list[str]):
        current = pool.rationales(ids)
        vectors = embedder.encode([rationale.compact for _, rationale in current.values()])
        return list(current), vectors, {i: version for i, (version, _) in current.items()}

    extra = _embed(pool, "rationale", embedder.hash, encode, progress, cancel)
    return _nearest(pool, "rationale", embedder.hash, embedder.encode([text])[0], k, extra)


def search_image(
    pool: Pool, model, embedder, image: np.ndarray, spacing=None, modality: str | None = None, k: int = 10, progress=None, cancel=None
) -> list[tuple[str, float]]:
    """Ids of the cases that look most like a slice (rows, columns) in display order, with the cosine, best first.

    Args:
        spacing: (row, column) in mm, None where not known. Missing image vectors of the pool are computed first, as for a text.
    """
    import torch

    from .embedding import case_frame, embed_pool
    from .planes import to_frames

    image = np.asarray(image)
    if image.ndim != 2 or image.size == 0 or (image.dtype.kind == "f" and not np.isfinite(image).all()):
        raise InputError("Search by image needs one finite 2-D picture.")
    _check(pool, k)

    def encode(ids: list[str]):
        frames = torch.cat([case_frame(pool.get(i), model)[0] for i in ids]).to(model.device)
        with torch.inference_mode():
            return ids, model.net.encode(frames).pooled.float().cpu().numpy(), None

    if pool.read_only:
        extra = _embed(pool, "image", model.hash, encode, progress, cancel)
    else:
        extra = {}
        embed_pool(model, pool, embedder, progress, cancel)
    _, frame = to_frames(image[None], spacing, model.config.size, modality_code(modality or model.config.modality))
    with torch.inference_mode():
        vector = model.net.encode(frame.to(model.device)).pooled.float().cpu().numpy()[0]
    return _nearest(pool, "image", model.hash, vector / np.linalg.norm(vector), k, extra)


def _embed(pool: Pool, kind: str, model_hash: str, encode: Callable, progress, cancel) -> dict[str, np.ndarray]:
    """Make the vectors that are missing. They are kept in the pool; where it may only be read, in memory, and returned.

    encode: ids -> (ids, vectors, version of each rationale, or None).
    """
    extra = _remembered.setdefault(pool, {}).setdefault((kind, model_hash, pool.state), {}) if pool.read_only else {}
    todo = [i for i in pool.stale(kind, model_hash) if i not in extra]
    for start in range(0, len(todo), BATCH):
        if cancel and cancel():
            raise Cancelled()
        if progress:
            progress(start / len(todo), f"Embedding the pool: {start} of {len(todo)}")
        ids, vectors, versions = encode(todo[start : start + BATCH])
        if pool.read_only:
            extra.update(zip(ids, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))
        else:
            pool.set_vectors(kind, model_hash, ids, vectors, versions=versions)
    return extra


def _nearest(pool: Pool, kind: str, model_hash: str, vector: np.ndarray, k: int, extra: dict[str, np.ndarray]) -> list[tuple[str, float]]:
    """The closest of the pool's index and of the cases that only have a vector in memory."""
    found = pool.index(kind, model_hash).nearest(vector, k) + [(i, float(np.clip(v @ vector, -1, 1))) for i, v in extra.items()]
    return sorted(found, key=lambda f: (-f[1], f[0]))[:k]


def _check(pool: Pool, k: int) -> None:
    if k < 1:
        raise InputError("At least one case must be asked for.")
    if not len(pool):
        raise InputError("The pool is empty. Import cases first.")
