"""What is known of a segmented volume, slice by slice: which slices hold lesions, their evidence, pictures and the user's choices."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import slicer
import vtk

from cers.case import Geometry, PlaneView
from cers.case.runs import from_runs

from . import Correction, VolumeInput


@dataclass
class Choices:
    """References that the user pinned and dropped in one slice."""

    pinned: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.pinned or self.dropped)


class EvidenceModel:
    """Result of one run.

    Args:
        summary: ``Prediction.summary()`` as the worker gave it. labelmap: (k, j, i) uint8 in the volume's grid.
        geometry: the grid in the world at the time of the run. volume, segmentation: nodes.
        box: (k, j, i) slices around everything in the label map that is not 0, None if it is empty. pool: folder of the references.

    Attributes:
        planes: plane name -> ``PlaneView``. slices: (plane, index) -> evidence as a dictionary (see ``cers.case.Evidence``).
        choices: what the user chose by (plane, index). rerun: slices that now show the user's choices, not the first run.
    """

    def __init__(
        self, summary: dict, labelmap: np.ndarray, geometry: Geometry, volume, segmentation, box: list[slice] | None = None, pool: str = ""
    ):
        self.summary, self.labelmap, self.geometry = summary, labelmap, geometry
        self.volume, self.segmentation, self.pool = volume, segmentation, pool
        self.labels = {int(value): name for value, name in summary["labels"].items()}
        self.slices = {(e["plane"], int(e["index"])): e for e in summary["slices"]}
        self.planes = {plane: PlaneView(geometry, plane) for plane in dict.fromkeys(plane for plane, _index in self.slices)}
        self.box = box
        self._areas: dict[str, np.ndarray] = {}
        self.choices: dict[tuple[str, int], Choices] = {}
        self.rerun: set[tuple[str, int]] = set()
        self._looks = VolumeInput.looks(volume)

    @property
    def alive(self) -> bool:
        """Whether volume and segmentation are still in the scene."""
        return all(node is not None and node.GetScene() is not None for node in (self.volume, self.segmentation))

    def spacing(self, key) -> tuple[float, float] | None:
        """(row, column) pixel size of a slice in mm, None where nobody measured it."""
        return self.planes[key[0]].spacing if self.summary.get("spacing_known", True) else None

    def choice(self, key) -> Choices:
        return self.choices.setdefault(key, Choices())

    def areas(self, plane: str) -> np.ndarray:
        """Voxels of the result in each display slice of a plane. Counted in the box around the result, and kept."""
        if plane not in self._areas:
            view, box = self.planes[plane], self.box
            counts = np.zeros(self.labelmap.shape[view.axes[0]], int)
            if box is not None:
                others = tuple(a for a in range(3) if a != view.axes[0])
                counts[box[view.axes[0]]] = np.count_nonzero(self.labelmap[tuple(box)], axis=others)
            self._areas[plane] = counts[::-1] if view.flips[0] else counts
        return self._areas[plane]

    def lesionSlices(self, plane: str) -> list[int]:
        """Display slices of a plane that hold any voxel of the result, upwards."""
        return [int(n) for n in np.flatnonzero(self.areas(plane))]

    def stops(self, plane: str) -> list[int]:
        """Display slices of a plane worth a look, upwards: those with a lesion; without any in the volume, those with what was left out."""
        if any(self.areas(p).any() for p in self.planes):
            return self.lesionSlices(plane)
        return sorted(index for (p, index), entry in self.slices.items() if p == plane and entry.get("left_out"))

    def largest(self) -> tuple[str, int] | None:
        """The slice with the most voxels of the result among those that have references, or of all where none has.

        Of several planes that of acquisition is taken, if it shows any such slice.
        Without any voxel the slice with most of what was left out, else the middle slice of that plane; None without slices.
        """
        for evident in (True, False):
            for plane in self.planes:
                found = [n for n in self.lesionSlices(plane) if not evident or self.slices.get((plane, n), {}).get("references")]
                if found:
                    return plane, max(found, key=lambda n: self.areas(plane)[n])
        left = {key: entry["left_out"] for key, entry in self.slices.items() if entry.get("left_out")}
        if left:
            return max(left, key=left.get)
        return next(((plane, len(view) // 2) for plane, view in self.planes.items()), None)

    def mask(self, key) -> np.ndarray:
        """(rows, columns) uint8 of the result in a slice, as displayed."""
        return self.planes[key[0]].slices(self.labelmap)[key[1]]

    def edited(self, key) -> bool:
        """Whether the segmentation shows something else in a slice by now than the result does."""
        if not self.alive:
            return False
        now = Correction.readSlice(self.segmentation, self.volume, self.labels, self.planes[key[0]], key[1])
        return now is not None and not np.array_equal(now, self.mask(key))

    def changed(self) -> Generator[None, None, bool]:
        """Whether that is so in any slice; looks at one after the other, for all at once take longer than the application can wait."""
        plane = next(iter(self.planes), None)
        for index in range(len(self.planes[plane]) if plane else 0):
            if self.edited((plane, index)):
                return True
            yield
        return False

    def leftOut(self, key) -> np.ndarray | None:
        """(rows, columns) bool of what this plane shows in a slice and the result leaves out; None where there is nothing."""
        runs = self.slices.get(key, {}).get("left_out_runs")
        return from_runs(runs, self.mask(key).shape) if runs else None

    def image(self, key) -> np.ndarray | None:
        """(rows, columns) of the volume in a slice, as displayed; None when the volume is gone or shows something else by now."""
        array = VolumeInput.voxels(self.volume)
        same = array is not None and array.shape == self.geometry.shape and VolumeInput.looks(self.volume) == self._looks
        return self.planes[key[0]].slices(array)[key[1]] if same else None

    def window(self) -> tuple[float, float] | None:
        """(lowest, highest) grey value that the slice views show."""
        display = self.volume.GetScalarVolumeDisplayNode() if self.volume is not None else None
        return (display.GetWindowLevelMin(), display.GetWindowLevelMax()) if display is not None else None

    def centre(self, key) -> np.ndarray:
        """World position (RAS, mm) of the middle of the lesion in a slice, else of the slice."""
        view, mask = self.planes[key[0]], self.mask(key)
        rows, columns = np.nonzero(mask)
        point = (np.mean(columns), np.mean(rows)) if len(rows) else ((mask.shape[1] - 1) / 2, (mask.shape[0] - 1) / 2)
        ras = (view.slice_ijkToRAS(key[1]) @ np.array([*point, 0.0, 1.0]))[:3]
        return self._toWorld(ras)

    def at(self, sliceNode) -> tuple[str, int] | None:
        """The slice of a decoded plane that a slice view shows, None where it shows none of them."""
        toRAS = slicer.util.arrayFromVTKMatrix(sliceNode.GetSliceToRAS())
        normal = np.linalg.inv(self._moved())[:3, :3] @ toRAS[:3, 2]
        position = self._fromWorld(toRAS[:3, 3])
        for plane, view in self.planes.items():
            across = view.slice_ijkToRAS(0)[:3, 2]
            if abs(normal @ across) > 0.9 * np.linalg.norm(across) * np.linalg.norm(normal):
                index = int(np.floor((np.linalg.inv(view.slice_ijkToRAS(0)) @ np.array([*position, 1.0]))[2] + 0.5))
                return (plane, index) if 0 <= index < len(view) else None
        return None

    def apply(self, key, mask: np.ndarray, evidence: dict, crossed: list[dict] = ()) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Takes over a re-run slice, and what slices of other planes that cross it show now.

        Returns it as (k, j, i) array one voxel thick, with its first voxel (k, j, i).
        """
        view = self.planes[key[0]]
        view.slices(self.labelmap)[key[1]] = mask
        self.slices[key] = evidence
        self.slices.update({(e["plane"], int(e["index"])): e for e in crossed})
        start, index = [0, 0, 0], [slice(None)] * 3
        start[view.axes[0]] = view.array_index(key[1])
        index[view.axes[0]] = slice(start[view.axes[0]], start[view.axes[0]] + 1)
        self._areas = {}
        used = np.argwhere(self.labelmap[tuple(index)]) + start
        if len(used):
            ends = list(zip(used.min(axis=0).tolist(), (used.max(axis=0) + 1).tolist()))
            before = self.box or [slice(*e) for e in ends]
            self.box = [slice(min(a, s.start), max(b, s.stop)) for (a, b), s in zip(ends, before)]
        return self.labelmap[tuple(index)], tuple(start)

    def _moved(self) -> np.ndarray:
        """(4, 4) from the world at the time of the run to the world now; only a linear transform can differ."""
        if not self.alive or not VolumeInput.linearWorld(self.volume):
            return np.eye(4)
        return VolumeInput.worldGeometry(self.volume).ijkToRAS @ np.linalg.inv(self.geometry.ijkToRAS)

    def _toWorld(self, point: np.ndarray) -> np.ndarray:
        return (self._moved() @ np.array([*self._bend(point, "GetTransformToWorld"), 1.0]))[:3]

    def _fromWorld(self, point: np.ndarray) -> np.ndarray:
        return self._bend((np.linalg.inv(self._moved()) @ np.array([*point, 1.0]))[:3], "GetTransformFromWorld")

    def _bend(self, point: np.ndarray, direction: str) -> np.ndarray:
        parent = self.volume.GetParentTransformNode() if self.volume is not None else None
        if parent is None or VolumeInput.linearWorld(self.volume):
            return point  # a linear transform is part of the geometry already
        transform = vtk.vtkGeneralTransform()
        getattr(parent, direction)(transform)
        return np.array(transform.TransformPoint(point))
