"""A small head-like volume with one lesion, a pool of such cases and a small real model: for tests that run the whole path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cers.case import Geometry, Volume

SHAPE = (8, 64, 56)  # k, j, i
SPACING = (1.5, 1.5, 5.0)  # of i, j, k


def head(seed: int = 0, lesion=(30.0, 24.0, 4.0), radius: float = 7.0) -> tuple[np.ndarray, np.ndarray]:
    """Image int16 and lesion mask uint8, (k, j, i). ``lesion`` is its middle (j, i, k)."""
    rng = np.random.default_rng(seed)
    k, j, i = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    body = ((j - 31.5) / 27) ** 2 + ((i - 27.5) / 22) ** 2 < 1
    mask = body & (((j - lesion[0]) ** 2 + (i - lesion[1]) ** 2) / radius**2 + ((k - lesion[2]) / 2.2) ** 2 < 1)
    image = np.where(body, 300 + 40 * np.sin(j / 5.0 + seed) + rng.normal(0, 12, SHAPE), 0)
    image = np.where(mask, 640 + rng.normal(0, 40, SHAPE), image)
    return image.clip(0).astype(np.int16), mask.astype(np.uint8)


def matrix(linear=None, origin=(-40.0, 50.0, -20.0)) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = (np.diag([-1, -1, 1]) if linear is None else np.asarray(linear, float)) @ np.diag(SPACING)
    out[:3, 3] = origin
    return out


def volume(seed: int = 0, **fields) -> Volume:
    return Volume(head(seed)[0], Geometry(matrix(), SHAPE), **{"modality": "MR", "body_site": "brain", **fields})


def build_model(folder: Path, share: float = 0.1) -> Path:
    """A small untrained real model whose threshold makes about ``share`` of the phantom's frame a lesion, so that masks have a shape."""
    from cers.inference import Segmenter, load_model
    from cers.inference.tiny import tiny_model

    tiny_model(folder, size=64)
    probabilities = Segmenter(load_model(folder)).segment(volume(), influence=False).probabilities[0].astype(np.float32)
    inside = probabilities[head()[0] > 0]
    config = json.loads((folder / "config.json").read_text())
    config["threshold"] = float(np.quantile(inside, 1 - share))
    config["selection"].update(max_contradictions=99, contradiction_penalty=0.0)  # an untrained model's findings contradict everything
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def build_pool(folder: Path, cases: int = 3) -> Path:
    from cers.pool import Pool
    from cers.pool.importer import import_volume

    with Pool.create(folder) as pool:
        for seed in range(1, 1 + cases):
            image, mask = head(seed, lesion=(26.0 + 3 * seed, 20.0 + 3 * seed, 4.0), radius=5.0 + seed)
            import_volume(
                pool,
                Volume(image, Geometry(matrix(), SHAPE), name=f"phantom {seed}", modality="MR", body_site="brain"),
                mask,
                {1: "tumor"},
                max_slices=2,
                diagnosis="<meningioma> & co",
                patient_id=f"p{seed}",
            )
    return folder
