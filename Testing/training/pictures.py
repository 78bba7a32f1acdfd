"""A small folder in BRISC layout: round heads with a bright lesion, some of them near-duplicates of each other."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from cers.case import Case
from cers.pool import Pool


def write(folder: Path, count: int = 28, twins: int = 4, size: int = 80, seed: int = 0) -> Path:
    """``count`` training pictures, the last ``twins`` of them copies of the first with a little noise, and four test pictures."""
    rng = np.random.default_rng(seed)
    rows, pictures = [], {}
    for n in range(count + 4):
        split = "train" if n < count else "test"
        name = f"{split}_{n:03d}"
        twin = n - (count - twins) if count - twins <= n < count else None
        image, mask = _picture(rng, size) if twin is None else (pictures[twin][0] + rng.normal(0, 1, (size, size)), pictures[twin][1])
        pictures[n] = image, mask
        for kind, array, ending in (("images", image, "jpg"), ("masks", mask * 255, "png")):
            path = folder / kind / split / f"{name}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(path, **({"quality": 95} if ending == "jpg" else {}))
        rows.append(
            {
                "image": name,
                "split": split,
                "group": f"g{n if twin is None else twin}",
                "diagnosis": ("glioma", "meningioma")[n % 2],
                "plane": ("axial", "coronal", "sagittal")[n % 3],
                "twin_in_train": "",
            }
        )
    with open(folder / "cases.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _picture(rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    r, c = np.indices((size, size))
    middle = size / 2 + rng.uniform(-3, 3, 2)
    axes = size * rng.uniform(0.33, 0.44, 2)
    head = ((r - middle[0]) / axes[0]) ** 2 + ((c - middle[1]) / axes[1]) ** 2 <= 1
    image = np.full((size, size), 90.0)
    for _ in range(6):
        place, width = rng.uniform(0, size, 2), rng.uniform(5, 14)
        image += rng.uniform(-45, 45) * np.exp(-((r - place[0]) ** 2 + (c - place[1]) ** 2) / (2 * width**2))
    side = rng.choice([-1, 1])
    spot = middle + np.array([rng.uniform(-0.4, 0.4) * axes[0], side * rng.uniform(0.35, 0.5) * axes[1]])
    mask = ((r - spot[0]) / rng.uniform(6, 10)) ** 2 + ((c - spot[1]) / rng.uniform(6, 9)) ** 2 <= 1
    mask &= head
    image = np.where(head, image.clip(40, 150), 0)
    image[mask] = 240
    return image + rng.normal(0, 2, image.shape), mask


def pool_of(path: Path, count: int, **metadata) -> Path:
    """A pool of ``count`` such pictures, each a volume of its own. metadata: of each case; a number means as many values in turn."""
    rng = np.random.default_rng(1)
    with Pool.create(path) as pool:
        for n in range(count):
            image, mask = _picture(rng, 80)
            own = {name: f"{name}{n % value}" if isinstance(value, int) else value for name, value in metadata.items()}
            pool.add(
                Case(
                    image.astype(np.float32), mask.astype(np.uint8), {1: own.pop("label", "tumor")}, volume_id=f"v{n}", plane="axial", **own
                )
            )
    return path
