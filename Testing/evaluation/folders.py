"""Folders of images and masks for the tests of evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import phantom
from PIL import Image

from cers.case import Geometry
from cers.case.io import write_image, write_segmentation


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) uint8 picture of the phantom with a pattern of its own, and its lesion mask."""
    image, mask = phantom.head(seed, lesion=(24.0 + 2 * (seed % 5), 20.0 + 3 * (seed % 4), 4.0), radius=6.0 + seed % 3)
    j, i = np.indices(image.shape[1:])
    pattern = 120 * np.sin((0.1 + 0.07 * (seed % 7)) * j + seed) * np.cos((0.35 - 0.04 * (seed % 5)) * i)
    flat = np.where(image[4] > 0, image[4] + pattern, 0)
    return (flat.clip(0, 900) / 900 * 255).astype(np.uint8), mask[4]


def save_picture(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_pictures(folder: Path) -> tuple[Path, Path]:
    """Four pictures with masks, and as predictions ``moved`` the same masks 2 pixels to the right."""
    for seed in range(4):
        image, mask = picture(seed)
        save_picture(folder / "images" / f"case{seed}.png", image)
        save_picture(folder / "masks" / f"case{seed}_mask.png", mask * 255)
        save_picture(folder / "moved" / f"case{seed}.png", np.roll(mask, 2, 1) * 255)
    return folder / "images", folder / "masks"


def write_volumes(folder: Path) -> tuple[Path, Path]:
    """Two volumes with masks."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for seed in range(2):
        image, mask = phantom.head(seed)
        geometry = Geometry(phantom.matrix(), phantom.SHAPE)
        write_image(folder / "images" / f"v{seed}.nii.gz", image, geometry)
        write_segmentation(folder / "masks" / f"v{seed}.seg.nrrd", mask, geometry, {1: "tumor"})
    return folder / "images", folder / "masks"
