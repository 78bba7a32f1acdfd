"""Synthetic annotated volumes: an ellipsoid head with a bright lesion, the same in the patient whatever grid it is sampled on."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from cers.case import Geometry, Volume
from cers.pool import Pool, import_volume

LESION = (18.0, -12.0, 6.0)  # RAS in mm
RADII = (11.0, 9.0, 10.0)


def grid(
    shape=(14, 56, 48), spacing=(2.6, 2.9, 9.0), flips=(1, 1, 1), order=(0, 1, 2), turn: float = 0.0, centre=(0.0, 0.0, 0.0)
) -> Geometry:
    """A grid whose middle voxel lies at ``centre``.

    Args:
        shape: (k, j, i). spacing: (i, j, k). flips, order: sign and RAS axis of i, j, k. turn: rotation in degrees, oblique to all axes.
    """
    matrix = np.eye(4)
    a, b = np.deg2rad(turn), np.deg2rad(turn / 2)
    rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    for column in range(3):
        axis = np.zeros(3)
        axis[order[column]] = flips[column]
        matrix[:3, column] = rotation @ axis * spacing[column]
    matrix[:3, 3] = np.array(centre) - matrix[:3, :3] @ (np.array(shape[::-1]) - 1) / 2
    return Geometry(matrix, shape)


def inside(geometry: Geometry, centre, radii) -> np.ndarray:
    """(k, j, i) bool: voxels in an ellipsoid given in RAS."""
    return (((_ras(geometry) - np.array(centre)) / np.array(radii)) ** 2).sum(-1) <= 1


def _ras(geometry: Geometry) -> np.ndarray:
    k, j, i = np.indices(geometry.shape)
    return geometry.ras(np.stack([i, j, k], -1))


def phantom(
    geometry: Geometry | None = None,
    patient: int = 0,
    lesion=LESION,
    modality: str | None = "MR",
    body_site: str | None = "brain",
    pattern: float = 170.0,
    radii=RADII,
    **fields,
) -> tuple[Volume, np.ndarray]:
    """Volume and its lesion mask (k, j, i). ``patient`` gives the head its own smooth pattern, of strength ``pattern``."""
    geometry = geometry or grid()
    rng = np.random.default_rng(patient)
    ras = _ras(geometry)
    head = inside(geometry, (0, 0, 0), np.array([56, 66, 52]) * rng.uniform(0.92, 1.08, 3))
    image = np.full(geometry.shape, 300.0)
    for _ in range(12):
        place, width = rng.uniform(-45, 45, 3), rng.uniform(8, 18)
        image += rng.uniform(-pattern, pattern) * np.exp(-((ras - place) ** 2).sum(-1) / (2 * width**2))
    image = np.where(head, image.clip(80, 520), 0)
    mask = inside(geometry, lesion, radii) & head
    image[mask] = 900
    if modality == "CT":
        image = np.where(head, image / 5, -1000)
    volume = Volume(np.rint(image).astype(np.int16), geometry, name=f"phantom{patient}", modality=modality, body_site=body_site, **fields)
    return volume, mask.astype(np.uint8)


def same_content(volume: Volume):
    """The volume stored in other axis orders and directions, each with the geometry that keeps every voxel where it is in the patient."""
    for order, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        array = np.transpose(volume.array, order)
        matrix = volume.geometry.ijkToRAS.copy()
        columns = matrix[:3, :3].copy()
        for new_axis, old_axis in enumerate(order):
            matrix[:3, 2 - new_axis] = columns[:, 2 - old_axis]
        for axis, flip in enumerate(flips):
            if flip:
                array = np.flip(array, axis)
                matrix[:3, 3] += matrix[:3, 2 - axis] * (array.shape[axis] - 1)
                matrix[:3, 2 - axis] *= -1
        yield (
            Volume(
                np.ascontiguousarray(array),
                Geometry(matrix, array.shape),
                modality=volume.modality,
                body_site=volume.body_site,
                patient_id=volume.patient_id,
                volume_id=volume.volume_id,
            ),
            order,
            flips,
        )


def to_original(array: np.ndarray, order, flips) -> np.ndarray:
    """An array on one of ``same_content``'s grids, back in the original voxel order."""
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis)
    return np.transpose(array, np.argsort(order))


def fill(pool: Pool, patients=(1, 2, 3), *, labels=None, **fields) -> list[str]:
    """Cases of several phantoms, each with its lesion elsewhere."""
    ids = []
    for patient in patients:
        rng = np.random.default_rng(100 + patient)
        volume, mask = phantom(patient=patient, lesion=np.array(LESION) + rng.uniform(-12, 12, 3), **fields)
        ids += import_volume(pool, volume, mask, labels or {1: "tumor"}, max_slices=4, patient_id=f"patient{patient}")
    return ids


def with_references(prediction):
    """Evidence of the slices that have references."""
    return [e for e in prediction.evidence if e.references]
