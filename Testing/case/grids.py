"""Voxel grids of every kind that scanners and programs produce, as RAS affines."""

from __future__ import annotations

import numpy as np


def turn(axis: int, degrees: float) -> np.ndarray:
    a, b = [n for n in range(3) if n != axis]
    matrix = np.eye(3)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def affine(linear, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = np.asarray(linear, float) @ np.diag(spacing)
    out[:3, 3] = origin
    return out


OBLIQUE = turn(2, 23.0) @ turn(0, -17.0) @ turn(1, 9.0)
GRIDS = {
    "ras": affine(np.eye(3), origin=(-30, 12.5, 7)),
    "lps": affine(np.diag([-1, -1, 1]), origin=(30.25, 40, -100)),
    "flipped k": affine(np.diag([-1, -1, -1]), (0.8, 0.8, 3), (5, 6, 7)),  # left-handed
    "left-handed": affine(np.diag([1, -1, 1]), (0.9, 1.1, 2.5), (-11, 60, 3)),
    "sagittal": affine([[0, 0, 1], [1, 0, 0], [0, -1, 0]], (0.7, 0.7, 4), (-20, -50, 60)),
    "coronal": affine([[-1, 0, 0], [0, 0, 1], [0, -1, 0]], (1, 1, 5), (40, -10, 80)),
    "anisotropic": affine(np.diag([-1, -1, 1]), (0.43, 0.61, 7.3), (1, 2, 3)),
    "oblique": affine(OBLIQUE, (0.75, 0.75, 5), (-13.7, 21.9, 4.4)),
    "oblique left-handed": affine(OBLIQUE @ np.diag([1, 1, -1]), (0.75, 1.25, 3), (101.3, -77.7, 55.5)),
    "oblique cropped": affine(OBLIQUE, (0.75, 0.75, 5), affine(OBLIQUE, (0.75, 0.75, 5), (-13.7, 21.9, 4.4))[:3] @ (7, 5, 2, 1)),
}
SHAPE = (9, 14, 11)  # k, j, i


def painted(matrix: np.ndarray, shape=SHAPE, ijk=(3, 9, 6)) -> tuple[np.ndarray, np.ndarray]:
    """A label map with one small box of voxels, and the world position of the box's middle."""
    mask = np.zeros(shape, np.uint8)
    i, j, k = ijk
    mask[k - 1 : k + 2, j - 2 : j + 3, i - 2 : i + 3] = 1
    return mask, (np.asarray(matrix) @ (i, j, k, 1))[:3]
