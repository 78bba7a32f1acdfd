"""Outlines from DICOM SEG, put on the grid of their image series. highdicom decodes the file, whatever its frame order or encoding."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from ..case import Geometry
from ..errors import InputError

_TOLERANCE = 0.05  # voxels by which a segmented pixel may lie beside its image pixel


def read_dicom_seg(path: str | PathLike, geometry: Geometry, *, series: str | PathLike | None = None) -> tuple[np.ndarray, dict[int, str]]:
    """A DICOM SEG as a label map on an image's grid.

    Where segments overlap, the one with the higher number wins. Fractional segments are cut at one half.

    Args:
        series: file or folder of the image; its frame of reference is then compared, so that no other patient's outline is taken.

    Returns:
        (k, j, i) uint8; value -> segment label. Values are the positions of the segments, from 1.

    Raises:
        InputError: not a DICOM SEG, damaged, of another frame of reference, or not on the image's grid; or highdicom is not there.
    """
    path = Path(path)
    try:
        import highdicom as hd
        import pydicom
    except ImportError as error:  # as in Slicer 5.10, whose pydicom is too old for it
        raise InputError(
            f"{path.name} is a DICOM segmentation, which needs the Python package highdicom ({error}). Save it in Slicer as .seg.nrrd."
        ) from error
    try:
        seg = hd.seg.segread(path)
        numbers = list(seg.segment_numbers)
        labels = {n: str(seg.get_segment_description(s).segment_label) for n, s in enumerate(numbers, 1)}
    except FileNotFoundError:
        raise InputError(f"The DICOM segmentation {path} does not exist. Check its name.") from None
    except (pydicom.errors.InvalidDicomError, ValueError, TypeError, AttributeError, KeyError, IndexError, OSError) as error:
        raise InputError(f"{path.name} is not a readable DICOM segmentation ({error}).") from error
    if len(numbers) > 255:
        raise InputError(f"{path.name} has {len(numbers)} segments; at most 255 can be kept. Export the lesion segments only.")
    if series is not None:
        _same_frame(seg, path, Path(series))
    try:
        if seg.segmentation_type == hd.seg.SegmentationTypeValues.FRACTIONAL:
            volume, array = None, None
            for value, number in enumerate(numbers, 1):
                volume = seg.get_volume(segment_numbers=[number], rescale_fractional=True)
                inside = volume.array[..., 0] >= 0.5
                array = np.zeros(inside.shape, np.uint8) if array is None else array
                array[inside] = value
        else:
            volume = seg.get_volume(segment_numbers=numbers, combine_segments=True, relabel=True, skip_overlap_checks=True)
            array = volume.array
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError) as error:
        raise InputError(f"The segments of {path.name} cannot be read as a volume ({error}).") from error
    lps = np.asarray(volume.affine, float)[:, [2, 1, 0, 3]]  # highdicom's columns follow the array's axes (k, j, i)
    own = Geometry(np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps, array.shape)
    return place(array, own, geometry, path.name), labels


def place(labelmap: np.ndarray, own: Geometry, target: Geometry, name: str) -> np.ndarray:
    """Every labelled voxel at its place in the target's grid, whose axes may be ordered, flipped and cropped otherwise.

    Nothing is interpolated: a voxel that does not meet one of the target's is an error.
    """
    out = np.zeros(target.shape, np.uint8)
    found = np.argwhere(labelmap)
    if not len(found):
        return out
    ijk = (own.ras(found[:, ::-1]) - target.ijkToRAS[:3, 3]) @ np.linalg.inv(target.ijkToRAS[:3, :3]).T
    index = np.rint(ijk).astype(np.int64)
    voxel = np.sort(own.spacing)[:2] - np.sort(target.spacing)[:2]  # in the plane only: between segmented slices there may be gaps
    if np.abs(ijk - index).max() > _TOLERANCE or np.abs(voxel).max() > 0.01 * min(target.spacing):
        raise InputError(
            f"The outlines of {name} do not lie on the image's pixels. They were drawn on another series or resampled; "
            "choose the series that they were drawn on."
        )
    if (index < 0).any() or (index >= np.array(target.shape[::-1])).any():
        raise InputError(
            f"The outlines of {name} reach beyond the image. They were drawn on another series, or slices of this one are missing."
        )
    out[index[:, 2], index[:, 1], index[:, 0]] = labelmap[tuple(found.T)]
    return out


def _same_frame(seg, path: Path, series: Path) -> None:
    import pydicom

    for file in sorted(series.rglob("*")) if series.is_dir() else [series]:
        if not file.is_file():
            continue
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["FrameOfReferenceUID"])
        except (pydicom.errors.InvalidDicomError, OSError):
            continue  # a stray file; the image itself has been read already
        frame = header.get("FrameOfReferenceUID")
        if frame and seg.get("FrameOfReferenceUID") and frame != seg.FrameOfReferenceUID:
            raise InputError(f"{path.name} belongs to another examination than the images: their frames of reference differ.")
        if frame:
            return
