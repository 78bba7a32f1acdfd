"""Small fingerprints of a picture: one that survives re-encoding (near-duplicates) and one that does not (the same pixels)."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

SIZE = 32
HASH = "thumbnail-1"  # changes when the function below changes, so that old thumbnails become stale


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Area-averaged 32 x 32 picture with mean 0 and norm 1, so that a dot product is the correlation of two pictures.

    Args:
        image: (rows, columns), any real dtype.

    Returns:
        (1024,) float32; all zero for a constant picture, which then resembles nothing.
    """
    picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    small = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64).ravel()
    small -= small.mean()
    norm = np.linalg.norm(small)
    if norm <= 1e-6 * max(1.0, float(np.abs(image).max(initial=0))):
        return np.zeros(SIZE * SIZE, np.float32)
    return (small / norm).astype(np.float32)


def image_hash(image: np.ndarray) -> str:
    """SHA-256 of one display slice's pixels and size, without mask or labels: tells that a pool case is the very picture in question."""
    h = hashlib.sha256(str((image.dtype.str, image.shape)).encode())
    h.update(np.ascontiguousarray(image).tobytes())
    return h.hexdigest()
