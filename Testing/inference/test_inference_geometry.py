"""A mask lies where the lesion lies in the patient, however the volume is stored."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import LESION, grid, inside, phantom, same_content

from cers.case import PlaneView, Volume


def centre(mask, geometry) -> np.ndarray:
    return geometry.ras(np.argwhere(mask)[:, ::-1]).mean(0)


def check(prediction, volume, mask):
    found = prediction.labelmap > 0
    assert 2 * (found & (mask > 0)).sum() / (found.sum() + mask.sum()) > 0.9
    assert np.abs(centre(found, volume.geometry) - centre(mask, volume.geometry)).max() < 0.5 * min(volume.geometry.spacing)
    for e in prediction.evidence:
        assert e.pixels == np.take(found, e.array_index, PlaneView(volume.geometry, e.plane).axes[0]).sum()


GRIDS = {
    "plain": grid(),
    "oblique": grid(turn=17),
    "strongly oblique": grid(turn=38),
    "left-handed": grid(flips=(-1, 1, 1)),
    "LPS": grid(flips=(-1, -1, 1)),
    "upside down": grid(flips=(1, -1, -1)),
    "axes permuted": grid(shape=(44, 14, 50), spacing=(2.6, 9, 2.9), order=(0, 2, 1)),
    "coronal": grid(shape=(13, 48, 50), spacing=(2.7, 2.5, 9.5), order=(0, 2, 1)),
    "sagittal, oblique, left-handed": grid(shape=(13, 48, 50), spacing=(2.9, 2.6, 8), order=(1, 2, 0), flips=(-1, -1, -1), turn=12),
    "anisotropic in-plane": grid(spacing=(4.2, 2.2, 9.0)),
    "cropped": grid(shape=(9, 30, 32), spacing=(2.6, 2.9, 9), centre=(10, -5, 4)),
    "isotropic": grid(shape=(36, 40, 38), spacing=(3.6, 3.6, 3.6)),
    "far from the origin": grid(turn=9),
}


def clear(geometry):
    """A head of almost one signal with a large lesion, so that what is bright is the lesion."""
    return phantom(geometry, pattern=10.0, radii=(20.0, 17.0, 19.0))


@pytest.mark.parametrize("name", GRIDS)
def test_the_mask_is_where_the_lesion_is(marker, name):
    volume, mask = clear(GRIDS[name])
    if name == "far from the origin":
        matrix = volume.geometry.ijkToRAS.copy()
        matrix[:3, 3] += (812.5, -1033.25, 77)
        volume = Volume(volume.array, type(volume.geometry)(matrix, volume.array.shape), modality="MR", body_site="brain")
    check(marker.segment(volume, influence=False), volume, mask)


@pytest.mark.parametrize("name", ["plain", "oblique", "sagittal, oblique, left-handed"])
def test_the_mask_is_where_the_lesion_is_in_three_planes(marker, name):
    volume, mask = clear(GRIDS[name])
    check(marker.segment(volume, planes="three", influence=False), volume, mask)


def test_a_small_finding_comes_back_within_half_a_voxel(marker):
    geometry = grid(shape=(10, 70, 64), spacing=(2.2, 1.9, 9), flips=(1, -1, -1), turn=11)
    volume, _ = phantom(geometry, lesion=(500, 0, 0), pattern=10.0)
    at = np.array([40, 22, 5])  # i, j, k
    volume.array[3:8, 19:26, 37:44] = 900
    found = marker.segment(volume, influence=False).labelmap > 0
    assert found.any()
    assert np.linalg.norm(np.linalg.inv(geometry.ijkToRAS[:3, :3]) @ (centre(found, geometry) - geometry.ras(at)), np.inf) < 0.5


def test_the_way_a_volume_is_stored_changes_nothing(segmenter):
    """All 48 axis orders and directions, with the untrained network itself: the same mask at the same world positions."""
    geometry = grid(shape=(5, 26, 22), spacing=(5.0, 5.6, 20.0), turn=7)
    volume, _ = phantom(geometry)
    first = segmenter.segment(volume, influence=False)
    where = {tuple(np.round(p, 3)) for p in geometry.ras(np.argwhere(first.labelmap)[:, ::-1])}
    assert len(where) > 50
    for other, order, flips in same_content(volume):
        again = segmenter.segment(other, influence=False)
        assert again.labelmap.shape == other.array.shape
        found = {tuple(np.round(p, 3)) for p in other.geometry.ras(np.argwhere(again.labelmap)[:, ::-1])}
        assert found == where, (order, flips)
        assert [[r.id for r in e.references] for e in again.evidence] == [[r.id for r in e.references] for e in first.evidence]


def test_the_lesion_of_the_phantom_is_where_it_says(volume):
    _, mask = phantom()
    assert np.abs(centre(mask, volume.geometry) - np.array(LESION)).max() < 3
    assert mask.sum() == inside(volume.geometry, LESION, (11.0, 9.0, 10.0)).sum()
