"""Finding cases of a pool by words or by a picture, outside any segmentation."""

from __future__ import annotations

import numpy as np

from ..errors import Cancelled, InputError
from ..pool import Pool


def search_text(pool: Pool, embedder, text: str, k: int = 10, progress=None, cancel=None) -> list[tuple[str, float]]:
    """Ids of the cases whose rationale is closest to a text, with the cosine, best first. Missing text vectors are computed first."""
    text = text.strip()
    if not text:
        raise InputError("The search text is empty. Write some words on texture, boundary or surroundings.")
    _check(pool, k)
    stale = pool.stale("rationale", embedder.hash)
    for start in range(0, len(stale), 64):
        if cancel and cancel():
            raise Cancelled()
        if progress:
            progress(start / len(stale), f"Embedding rationales: {start} of {len(stale)}")
        current = pool.rationales(stale[start : start + 64])
        vectors = embedder.encode([rationale.compact for _, rationale in current.values()])
        pool.set_vectors("rationale", embedder.hash, list(current), vectors, versions={i: version for i, (version, _) in current.items()})
    return pool.index("rationale", embedder.hash).nearest(embedder.encode([text])[0], k)


def search_image(
    pool: Pool, model, embedder, image: np.ndarray, spacing=None, modality: str | None = None, k: int = 10, progress=None, cancel=None
) -> list[tuple[str, float]]:
    """Ids of the cases that look most like a slice (rows, columns) in display order, with the cosine, best first.

    Args:
        spacing: (row, column) in mm, None where not known. Missing image vectors of the pool are computed first.
    """
    import torch

    from .embedding import embed_pool
    from .planes import to_frames

    image = np.asarray(image)
    if image.ndim != 2 or image.size == 0 or (image.dtype.kind == "f" and not np.isfinite(image).all()):
        raise InputError("Search by image needs one finite 2-D picture.")
    _check(pool, k)
    embed_pool(model, pool, embedder, progress, cancel)
    _, frame = to_frames(image[None], spacing, model.config.size, modality)
    with torch.inference_mode():
        vector = model.net.encode(frame.to(model.device)).pooled.float().cpu().numpy()[0]
    return pool.index("image", model.hash).nearest(vector / np.linalg.norm(vector), k)


def _check(pool: Pool, k: int) -> None:
    if k < 1:
        raise InputError("At least one case must be asked for.")
    if not len(pool):
        raise InputError("The pool is empty. Import cases first.")
