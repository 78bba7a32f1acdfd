"""A picture of a head with one lesion, drawn at any pixel size, and real cases."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import SimpleITK as sitk

SIZE_MM = (220.0, 180.0)


def draw(spacing=(1.0, 1.0), *, centre=(100.0, 62.0), radius=(16.0, 16.0), signal=1.5, blur=1.0, noise=0.04, texture=0.0, seed=0):
    """(image, mask) of a head 220 x 180 mm with an elliptic lesion; lengths in mm, brain signal 1, background 0."""
    rows, columns = (int(round(s / p)) for s, p in zip(SIZE_MM, spacing))
    y, x = np.meshgrid((np.arange(rows) + 0.5) * spacing[0], (np.arange(columns) + 0.5) * spacing[1], indexing="ij")
    head = ((y - 110) / 95) ** 2 + ((x - 90) / 75) ** 2
    mask = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 <= 1
    image = np.where(head <= 1, 1.0, 0.0)
    image[(head > 0.88) & (head <= 1)] = 1.8  # scalp
    image[(np.abs(y - 110) < 25) & (np.abs(x - 90) < 6)] = 0.45  # ventricles
    image = np.where(mask, signal, image)
    if texture:
        image = np.where(mask, image + texture * np.sign(np.sin(y / 1.5) * np.sin(x / 1.5)), image)
    smooth = sitk.GetArrayFromImage(sitk.DiscreteGaussian(_itk(image, spacing), blur**2 if blur else 1e-6))
    return smooth + noise * np.random.default_rng(seed).standard_normal(image.shape) * (head <= 1), mask


def _itk(image, spacing):
    out = sitk.GetImageFromArray(image.astype(np.float64))
    out.SetSpacing((float(spacing[1]), float(spacing[0])))
    return out


@pytest.fixture(scope="session")
def head():
    """The drawing function ``draw``."""
    return draw


@pytest.fixture(scope="session")
def brisc(cers_data):
    """300 training cases of BRISC 2025, drawn with a fixed seed: list of (row of cases.csv, image, mask) at their own size."""
    folder = cers_data / "brisc2025"
    with (folder / "cases.csv").open(encoding="utf-8", newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if r["split"] == "train"]
    out = []
    for n in np.random.default_rng(0).permutation(len(rows))[:300]:
        image, mask = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(folder / kind / "train" / f"{rows[n]['image']}.{ext}")))
            for kind, ext in (("images", "jpg"), ("masks", "png"))
        )
        image, mask = (a if a.ndim == 2 else a[..., 0] for a in (image, mask))
        if image.shape == mask.shape and (mask > 127).any():
            out.append((rows[n], image, mask > 127))
    return out
