"""One volume is the same volume however its axes run, and is read along the plane it was taken in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from grids import GRIDS, SHAPE, affine, turn

from cers.case import Geometry, PlaneView, Volume, acquisition_plane


def turned(volume: Volume, order: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> Volume:
    """The same voxels in the same places, stored with other axes."""
    array, matrix = volume.array, volume.geometry.ijkToRAS.copy()
    for axis, flip in enumerate(flips):
        if flip:
            column = 2 - axis
            matrix[:3, 3] += (array.shape[axis] - 1) * matrix[:3, column]
            matrix[:3, column] *= -1
            array = np.flip(array, axis)
    array = np.transpose(array, order)
    matrix[:, :3] = matrix[:, [2 - order[2 - c] for c in range(3)]]
    return replace(volume, array=np.ascontiguousarray(array), geometry=Geometry(matrix, array.shape))


@pytest.mark.parametrize("name", GRIDS)
def test_the_id_of_a_volume_does_not_depend_on_the_order_of_its_axes(name):
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    volume = Volume(array, Geometry(GRIDS[name], SHAPE))
    for order, flips in (((0, 1, 2), (True, False, False)), ((0, 1, 2), (False, True, True)), ((2, 0, 1), (False, False, True))):
        other = turned(volume, order, flips)
        place = np.array([1, 4, 2])
        assert float(array[place[2], place[1], place[0]]) in other.array  # they are turned, not made up
        assert other.content_hash == volume.content_hash
    moved = replace(volume, geometry=Geometry(affine(np.eye(3), origin=(0, 0, 0.5)) @ GRIDS[name], SHAPE))
    changed = array.copy()
    changed[0, 0, 0] += 1
    assert len({volume.content_hash, moved.content_hash, replace(volume, array=changed).content_hash}) == 3


def test_a_minus_zero_is_a_zero():
    array, plus, minus = np.arange(24.0).reshape(2, 3, 4), np.eye(4), np.eye(4)
    minus[minus == 0] = -0.0
    minus[3] = plus[3]
    assert Volume(array, Geometry(plus, array.shape)).content_hash == Volume(array, Geometry(minus, array.shape)).content_hash


SAGITTAL = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]], float)
CORONAL = np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]], float)


@pytest.mark.parametrize(
    "linear, spacing, shape, plane",
    [
        (SAGITTAL, (1, 1, 1), (1, 256, 256), "sagittal"),
        (SAGITTAL, (1.2, 1.2, 1), (1, 128, 128), "sagittal"),
        (CORONAL, (1, 1, 1), (1, 128, 128), "coronal"),
        (SAGITTAL, (1, 1, 1), (8, 256, 256), "sagittal"),
        (SAGITTAL, (1, 1, 1), (176, 256, 256), "axial"),
        (np.eye(3), (1, 1, 1), (155, 240, 240), "axial"),
        (CORONAL, (0.7, 0.7, 4), (30, 256, 256), "coronal"),
        (SAGITTAL, (0.7, 0.7, 4), (1, 256, 256), "sagittal"),
    ],
)
def test_the_plane_of_acquisition(linear, spacing, shape, plane):
    geometry = Geometry(affine(linear, spacing), shape)
    assert acquisition_plane(geometry) == plane
    if min(shape) == 1:
        assert len(PlaneView(geometry, plane)) == 1


@pytest.mark.parametrize("angles", [(30, 30, 50), (50, 40, 20), (0, 45, 0), (90, 45, 0), (45, 0, 0), (0, 0, 45)])
def test_the_plane_of_acquisition_shows_the_slices_that_were_taken_however_they_are_turned(angles):
    """As of a short-axis view of the heart: the plane to whose normal they are nearest alone is that of another axis."""
    linear = turn(2, angles[0]) @ turn(0, angles[1]) @ turn(1, angles[2])
    for left_handed in (1, -1):
        geometry = Geometry(affine(linear @ np.diag([1, 1, left_handed]), (0.7, 0.7, 8)), (10, 90, 100))
        views = [PlaneView(geometry, plane) for plane in ("axial", "coronal", "sagittal")]
        taken = PlaneView(geometry, acquisition_plane(geometry))
        assert taken.shape == (10, *taken.shape[1:]) and taken.slice_spacing == pytest.approx(8)
        assert sorted(view.axes[0] for view in views) == [0, 1, 2]
