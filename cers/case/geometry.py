"""Where voxels lie in the patient, and how a volume is read as display slices and put back.

World coordinates are RAS in mm, as in Slicer. Arrays are (k, j, i), as ``slicer.util.arrayFromVolume`` gives them, so
``ijkToRAS @ (i, j, k, 1)`` is the centre of ``array[k, j, i]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError

FLAT = 4  # times that the next axis has as many slices as the shortest one of a slab
PLANES = ("axial", "coronal", "sagittal")

# display axes of each plane as RAS unit directions: (through-plane, rows downwards, columns to the right). Radiological convention.
_DISPLAY = {
    "axial": ((0, 0, 1), (0, -1, 0), (-1, 0, 0)),  # upwards; rows to posterior; columns to the patient's left
    "coronal": ((0, -1, 0), (0, 0, -1), (-1, 0, 0)),  # to posterior; rows to inferior; columns to the patient's left
    "sagittal": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),  # to the left; rows to inferior; columns to posterior
}


@dataclass(frozen=True, eq=False)
class Geometry:
    """Voxel grid in the patient.

    Args:
        ijkToRAS: (4, 4) affine from voxel index (i, j, k, 1) to RAS in mm. May be oblique, flipped or left-handed.
        shape: array shape (k, j, i).

    Raises:
        InputError: matrix not 4x4, not finite or singular; or a shape that is not three positive sizes.
    """

    ijkToRAS: np.ndarray
    shape: tuple[int, int, int]

    def __post_init__(self):
        matrix = np.array(self.ijkToRAS, dtype=np.float64)
        shape = tuple(int(n) for n in self.shape)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
            raise InputError("The image's geometry is not usable: its ijkToRAS matrix is singular or not finite. Check the file's header.")
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"The image must be one 3-D volume or one 2-D slice with at least one voxel, but its shape is {shape}.")
        matrix.setflags(write=False)
        object.__setattr__(self, "ijkToRAS", matrix)
        object.__setattr__(self, "shape", shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along (i, j, k)."""
        return tuple(float(n) for n in np.linalg.norm(self.ijkToRAS[:3, :3], axis=0))

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(abs(np.linalg.det(self.ijkToRAS[:3, :3])) / 1000.0)

    @property
    def single(self) -> bool:
        """Whether it is one slice: what it holds has an area, but no volume, for nobody measured how thick it is."""
        return min(self.shape) == 1

    @property
    def pixel_mm2(self) -> float:
        """Area of one pixel of a slice across the axis of the fewest voxels, in mm²."""
        across = int(np.argmin(self.shape[::-1]))
        a, b = (self.ijkToRAS[:3, n] for n in range(3) if n != across)
        return float(np.linalg.norm(np.cross(a, b)))

    @property
    def default_pixels(self) -> bool:
        """Whether it is one slice of pixels of exactly 1 mm: as a rule put in by a program, because the file gave none."""
        across = int(np.argmin(self.shape[::-1]))
        return self.single and all(abs(s - 1) < 1e-6 for n, s in enumerate(self.spacing) if n != across)

    @property
    def sheared(self) -> bool:
        """Whether axes are not at right angles, as with a tilted gantry: the spacing alone then gives no distances."""
        unit = self.ijkToRAS[:3, :3] / np.array(self.spacing)
        return bool(np.abs(unit.T @ unit - np.eye(3)).max() > 0.01)

    def ras(self, ijk) -> np.ndarray:
        """RAS position in mm of voxel indices (..., 3) given as (i, j, k)."""
        ijk = np.asarray(ijk, dtype=np.float64)
        return ijk @ self.ijkToRAS[:3, :3].T + self.ijkToRAS[:3, 3]

    def same_grid(self, other: Geometry, tolerance: float = 1e-3) -> bool:
        """Whether both grids have one shape and every corner lies within ``tolerance`` mm."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape[::-1]], indexing="ij")).reshape(3, -1).T
        return bool(np.abs(self.ras(corners) - other.ras(corners)).max() <= tolerance)

    @classmethod
    def from_itk(cls, size, spacing, origin, direction) -> Geometry:
        """From ITK's LPS convention: size, spacing and origin in (i, j, k), direction row-major of 9."""
        lps = np.eye(4)
        lps[:3, :3] = np.asarray(direction, float).reshape(3, 3) @ np.diag(spacing)
        lps[:3, 3] = origin
        return cls(np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, tuple(size)[::-1])

    def to_itk(self) -> dict:
        """ITK's spacing, origin and direction (LPS). The direction may be left-handed, as ITK allows."""
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.ijkToRAS
        spacing = np.array(self.spacing)
        return {"spacing": tuple(spacing), "origin": tuple(lps[:3, 3]), "direction": tuple((lps[:3, :3] / spacing).ravel())}


def acquisition_plane(geometry: Geometry) -> str:
    """The plane whose slices the scanner took: across the axis of the largest spacing.

    Where voxels are near cubes it is across the shortest axis if that is by far the shortest, and axial otherwise.
    """
    spacing, sizes = np.array(geometry.spacing), np.array(geometry.shape[::-1])
    axis, shortest = int(np.argmax(spacing)), int(np.argmin(sizes))
    if sizes[shortest] == 1:
        axis = shortest  # a single slice, whatever its header says of thickness
    elif spacing[axis] < 1.2 * np.median(spacing):
        if FLAT * sizes[shortest] > np.sort(sizes)[1]:
            return "axial"
        axis = shortest
    return ("sagittal", "coronal", "axial")[_voxel_axes(geometry).index(axis)]


def _voxel_axes(geometry: Geometry) -> tuple[int, int, int]:
    """The voxel axis (of i, j, k) for each of R, A and S: the assignment with the largest total alignment, so that no axis is used twice.

    The axis nearest to one alone can be another one where a grid is turned about several axes, as of a short-axis view of the heart.
    """
    aligned = np.abs(geometry.ijkToRAS[:3, :3] / np.array(geometry.spacing))
    return max(_PERMUTATIONS, key=lambda p: round(sum(float(aligned[r, c]) for r, c in enumerate(p)), 9))


class PlaneView:
    """A volume read as display slices of one plane: axes permuted and flipped to the nearest anatomical ones, nothing resampled.

    ``slices(array)`` gives (n, rows, columns) in radiological display order; ``volume(stack)`` is its exact inverse.
    Works for any handedness, since axes are matched one by one.

    Attributes:
        plane: "axial", "coronal" or "sagittal".
        axes: for (slice, row, column) the array axis (of k, j, i) it comes from; flips: whether it runs backwards.
        spacing: (row, column) pixel size in mm; slice_spacing: mm between slices.
    """

    def __init__(self, geometry: Geometry, plane: str):
        if plane not in PLANES:
            raise InputError(f"Plane '{plane}' is not known. Use one of {', '.join(PLANES)}.")
        self.geometry, self.plane = geometry, plane
        unit = geometry.ijkToRAS[:3, :3] / np.array(geometry.spacing)  # columns: RAS direction of i, j, k
        want = np.array(_DISPLAY[plane], float)
        score = want @ unit  # (3 display axes, i/j/k)
        axes = _voxel_axes(geometry)
        best = [axes[int(np.argmax(np.abs(row)))] for row in want]
        self.axes = tuple(2 - c for c in best)  # i, j, k are array axes 2, 1, 0
        self.flips = tuple(bool(score[r, c] < 0) for r, c in enumerate(best))
        size = [geometry.spacing[c] for c in best]
        self.slice_spacing, self.spacing = size[0], (size[1], size[2])
        self.shape = tuple(geometry.shape[a] for a in self.axes)

    def __len__(self) -> int:
        return self.shape[0]

    def slices(self, array: np.ndarray) -> np.ndarray:
        """(k, j, i) -> (n, rows, columns). A view, not a copy."""
        stack = np.transpose(array, self.axes)
        return stack[tuple(slice(None, None, -1) if f else slice(None) for f in self.flips)]

    def volume(self, stack: np.ndarray) -> np.ndarray:
        """(n, rows, columns) -> (k, j, i), the inverse of ``slices``."""
        stack = stack[tuple(slice(None, None, -1) if f else slice(None) for f in self.flips)]
        return np.transpose(stack, np.argsort(self.axes))

    def array_index(self, n: int) -> int:
        """Index along the volume's own slice axis of display slice ``n`` (``axes[0]`` says which array axis that is)."""
        return len(self) - 1 - n if self.flips[0] else n

    def display_index(self, array_index: int) -> int:
        """The display slice of an index along the volume's own slice axis."""
        return self.array_index(array_index)

    def slice_ijkToRAS(self, n: int) -> np.ndarray:
        """(4, 4) affine of display slice ``n`` as an image of its own: i = column, j = row, k = through-plane."""
        g = self.geometry
        matrix = np.eye(4)
        start = np.zeros(3)  # in (i, j, k)
        for display, (axis, flip) in enumerate(zip(self.axes, self.flips)):
            column = 2 - axis
            step = g.ijkToRAS[:3, column] * (-1 if flip else 1)
            matrix[:3, (2, 1, 0)[display]] = step
            start[column] = (g.shape[axis] - 1) if flip else 0
        matrix[:3, 3] = g.ras(start) + n * matrix[:3, 2]
        return matrix

    def nearest(self, ras) -> int:
        """The display slice closest to an RAS position in mm, clamped to the volume."""
        ijk = np.linalg.inv(self.geometry.ijkToRAS) @ np.array([*ras, 1.0])
        index = int(np.clip(round(float(ijk[2 - self.axes[0]])), 0, len(self) - 1))
        return self.display_index(index)


_PERMUTATIONS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
