"""Reading images and masks, writing segmentations. Files go through SimpleITK; geometry is kept exactly, whatever its handedness."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import atomic_path, ending
from .dicom import check_frames, headers, is_dicom, pseudonym, quiet, rescale_varies, series_files, tells_spacing
from .geometry import Geometry
from .pitfalls import (
    as_itself,
    check_header,
    check_labels,
    check_namesakes,
    check_numbers,
    check_transparency,
    label_picture,
    reason,
    says_spacing,
)
from .records import Volume
from .terminology import label_styles
from .whole import check_whole

__all__ = ["atomic_path", "check_output", "pseudonym", "read_mask", "read_volume", "write_image", "write_segmentation"]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
AIR = -500  # HU; of an image without a modality that has darker voxels 0 is no background either
OUTPUTS = (".seg.nrrd", ".nrrd", ".nii.gz", ".nii", ".mha")
_KNOWN = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), a DICOM folder or file, PNG or JPG"


def read_volume(path: str | Path, *, modality: str | None = None, body_site: str | None = None) -> Volume:
    """One scalar image with its geometry.

    A picture (PNG, JPG) becomes one grey slice that an axial ``PlaneView`` shows as the picture lies; its pixels have no known size.
    Nor have those of a single slice of exactly 1 mm, which is what programs write where they know of none; DICOM says when it knows.
    Nor have voxels of NRRD, MetaImage and DICOM files that give none.

    Args:
        path: NIfTI, NRRD, MetaImage or DICOM file, DICOM folder, or picture.
        modality, body_site: override what the file says.

    Raises:
        InputError: no such file, not an image, several DICOM series, 4-D, vector or colour voxels, label map, empty, NaN.
            NaN and infinite voxels of a NIfTI file are none: its reader takes 0 for them, as they stand for what was not imaged;
            but in CT, where 0 is water.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"'{path}' does not exist. Check the path of the image.")
    if ending(path) == ".seg.nrrd":
        raise InputError(f"'{path.name}' is a segmentation, not an image. Give the image that it was drawn on.")
    facts: dict = {}
    picture, first = path.suffix.lower() in PICTURES, None
    if path.is_dir():
        files = series_files(path)
        first = Path(files[0])
        facts = headers(first)
        array, geometry = _read_itk(files, path)
    else:
        if is_dicom(path):
            first, facts = path, headers(path)
            if facts["modality"] == "SEG":
                raise InputError(f"'{path.name}' is a segmentation, not an image. Give the image that it was drawn on.")
            check_frames(path)
        array, geometry = _read_itk(path, path, picture=picture)
    volume = Volume(
        array,
        geometry,
        name=facts.get("name") or _stem(path),
        modality=(modality or facts.get("modality") or None),
        body_site=(body_site or facts.get("body_site") or None),
        patient_id=facts.get("patient_id"),
        spacing_known=not picture and _knows_spacing(path, first, geometry),
    )
    volume.modality = volume.modality and volume.modality.strip().upper()
    volume.modality = {"MRI": "MR"}.get(volume.modality, volume.modality)
    volume.body_site = volume.body_site and volume.body_site.strip().lower()
    if path.is_file() and (volume.modality == "CT" or volume.array.min() <= AIR):
        check_numbers(path)
    return replace(volume, volume_id=volume.content_hash[:16])


def header_spacing(path: str | Path) -> tuple[float, ...] | None:
    """The spacing that a reader takes from a file's header, in mm; None where it cannot be read."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet():
            reader.ReadImageInformation()
    except RuntimeError:
        return None
    return tuple(reader.GetSpacing())


def read_mask(path: str | Path, geometry: Geometry, *, apart: bool = False) -> tuple[np.ndarray, dict[int, str]]:
    """A label map on the grid of its image.

    The same physical grid stored with flipped or swapped axes is put into the image's order; a ``.seg.nrrd`` that Slicer cropped is
    put back into the full grid. Where segments of several layers overlap, the later segment wins. A mask picture is either a label
    picture (values below 64) or is cut at 127.

    Args:
        apart: refuse segments that overlap, for a label map can hold only one of them at a place.

    Returns:
        (k, j, i) uint8 with 0 as background; value -> name of every segment (``Unnamed`` where the file has none).

    Raises:
        InputError: not readable, DICOM SEG, another grid, values that are not whole numbers in 0..255, or grey levels; or ``apart``, and
            segments overlap.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"'{path}' does not exist. Check the path of the mask.")
    if path.is_dir():
        raise InputError(f"'{path}' is a folder. Give the file of the mask.")
    if is_dicom(path) and headers(path)["modality"] == "SEG":  # as an image it would be a stack of the frames of all segments
        raise InputError(
            f"The mask '{path.name}' is a DICOM segmentation. For import and evaluation its name must end in .dcm; else save it as "
            ".seg.nrrd in Slicer."
        )
    picture = path.suffix.lower() in PICTURES
    array, own, fields = _read_itk(path, path, picture=picture, layers=True, want_fields=True)
    segments = _segments(fields)
    if picture:
        array = label_picture(array, path)
        own = Geometry(geometry.ijkToRAS, array.shape[1:]) if array.shape[1:] == geometry.shape else own
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or (array != np.rint(array)).any():
            raise InputError(f"The mask '{path.name}' holds values that are not whole numbers. Save it as a label map.")
    if array.min() < 0 or array.max() > 255:
        raise InputError(f"The mask '{path.name}' holds values outside 0..255. Save it with label values from 1 to 255.")
    array = array.astype(np.uint8)
    if segments:
        labelmap, labels = _flatten(array, segments)
        if apart and (pair := _overlapping(array, segments)):
            raise InputError(
                f"In '{path.name}', the segments {pair[0]} and {pair[1]} overlap, so that they cannot be told apart in one label map. "
                "Save segments that exclude each other, or one file for each."
            )
    elif len(array) > 1:
        raise InputError(f"The mask '{path.name}' has {len(array)} values per voxel. Save it as one label map or as .seg.nrrd.")
    else:
        labelmap = array[0]
        labels = Unnamed(_values(labelmap))
        check_labels(labelmap, labels, path)
    return _onto(labelmap, own, geometry, path, cropped=bool(segments)), labels


def unnamed_values(path: str | Path) -> set[int]:
    """Label values of a mask file that does not name them; none where it does, or cannot be read, which ``read_mask`` tells."""
    path = Path(path)
    picture = path.suffix.lower() in PICTURES
    try:
        array, _, fields = _read_itk(path, path, picture=picture, layers=True, want_fields=True)
        if _segments(fields) or array.min() < 0 or array.max() > 255:
            return set()
        return set(_values(label_picture(array, path) if picture else array.astype(np.uint8)))
    except InputError:
        return set()


def _values(labelmap: np.ndarray) -> list[int]:
    """The values of a label map but 0."""
    return [int(v) for v in np.unique(labelmap) if v]


class Unnamed(dict[int, str]):
    """Labels of a mask that does not name them itself, under names made up here: what counts is the value.

    several: the mask's fellows hold other values, so that each is a label, also where it is alone.
    """

    def __init__(self, values: Iterable[int], several: bool = False):
        values = list(values)
        super().__init__({v: f"label {v}" if several or len(values) > 1 else "lesion" for v in values})


def write_segmentation(
    path: str | Path,
    labelmap: np.ndarray,
    geometry: Geometry,
    labels: dict[int, str],
    *,
    colors: dict[int, tuple[float, float, float]] | None = None,
    terminology: dict[int, str] | None = None,
) -> Path:
    """Write a label map in its own grid: whole or not at all.

    Args:
        path: ends in .seg.nrrd (Slicer segmentation with names, colours and terminology), .nrrd, .nii.gz, .nii or .mha.
        labelmap: (k, j, i) integers 0..255. labels: value -> name for every value in it; a label may be empty.
        colors: value -> RGB in 0..1; terminology: value -> Slicer entry string. Default: ``Resources/terminology.json`` by name.
    """
    path = check_output(path)
    labelmap = np.asarray(labelmap)
    if labelmap.shape != geometry.shape:
        raise InputError(f"The label map's shape {labelmap.shape} differs from the image's {geometry.shape}.")
    if labelmap.dtype.kind == "f" and not np.array_equal(labelmap, np.rint(labelmap)):
        raise InputError("The label map holds values that are not whole numbers. Cut probabilities at a threshold first.")
    unnamed = sorted({int(v) for v in np.unique(labelmap)} - {0} - set(labels))
    if unnamed or any(not 0 < v < 256 for v in labels):
        raise InputError(f"Labels must have values 1..255 and a name each; without one: {unnamed or sorted(labels)}.")
    labelmap = np.ascontiguousarray(labelmap, dtype=np.uint8)
    fields = _segment_fields(labelmap, labels, colors or {}, terminology or {}) if ending(path) == ".seg.nrrd" else {}
    return _write(path, labelmap, geometry, fields)


def write_image(path: str | Path, array: np.ndarray, geometry: Geometry) -> Path:
    """Write an image (k, j, i), or several as one vector image (n, k, j, i), as float32: whole or not at all."""
    path, array = check_output(path, (".nrrd", ".nii.gz", ".nii", ".mha")), np.asarray(array)
    if array.shape[-3:] != geometry.shape or array.ndim not in (3, 4):
        raise InputError(f"The image's shape {array.shape} does not fit its grid {geometry.shape}.")
    return _write(path, np.moveaxis(array, 0, -1) if array.ndim == 4 else array, geometry, {}, np.float32)


def _write(path: Path, array: np.ndarray, geometry: Geometry, fields: dict[str, str], dtype=np.uint8) -> Path:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=dtype), isVector=array.ndim == 4)
    itk = geometry.to_itk()
    image.SetSpacing(itk["spacing"])
    image.SetOrigin(itk["origin"])
    image.SetDirection(itk["direction"])
    for key, value in fields.items():
        image.SetMetaData(key, value)
    with atomic_path(path) as temporary:
        try:
            with quiet():
                sitk.WriteImage(image, str(temporary), useCompression=True)
                reader = sitk.ImageFileReader()
                reader.SetFileName(str(temporary))
                reader.ReadImageInformation()
            kept = Geometry.from_itk(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
        except RuntimeError as error:
            raise InputError(f"'{path}' could not be written: {reason(error)}") from error
        if not kept.same_grid(geometry, _tolerance(geometry)):  # NIfTI silently straightens a sheared grid
            raise InputError(f"The format of '{path.name}' cannot hold this image's sheared geometry. Write .nrrd or .seg.nrrd instead.")
    return path


def check_output(path: str | Path, suffixes: tuple[str, ...] = OUTPUTS) -> Path:
    """The path, if a file may be written there; its folder is made. Call it before a long computation, not after.

    Raises:
        InputError: unknown ending, the path is a folder, its folder cannot be written, or .nii is beside .nii.gz of one name.
    """
    path = Path(path)
    if not any(path.name.lower().endswith(s) and len(path.name) > len(s) for s in suffixes):
        raise InputError(f"'{path.name}' must end in one of {', '.join(suffixes)}.")
    try:
        if path.is_dir():
            raise InputError(f"'{path}' is a folder. Give the name of a file.")
        check_namesakes(path)
    except OSError as error:
        raise InputError(f"'{path.name}' cannot be the name of a file: {error.strerror}. Choose another one.") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder '{path.parent}' cannot be made: {error.strerror}.") from error
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"The folder '{path.parent}' is not writable. Choose another place.")
    return path


def _read_itk(source, path: Path, *, picture: bool = False, layers: bool = False, want_fields: bool = False):
    """(array, geometry[, header fields]); array is (k, j, i), or (layers, k, j, i) where ``layers``."""
    import SimpleITK as sitk

    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"'{path}' is an empty file. Copy or export it again.")
    if path.is_file():
        check_whole(path)
        check_header(path)
    try:
        with quiet(), as_itself(path) as own:
            if isinstance(source, list):
                image = sitk.ReadImage(source, sitk.sitkFloat64 if rescale_varies(source) else sitk.sitkUnknown, "GDCMImageIO")
            else:
                reader = sitk.ImageFileReader()
                reader.SetFileName(str(own))
                if path.is_file() and is_dicom(path):
                    reader.SetImageIO("GDCMImageIO")
                reader.ReadImageInformation()
                size = [n for n in reader.GetSize()[3:] if n > 1]
                if size:
                    raise InputError(
                        f"'{path.name}' is a 4-D image with {int(np.prod(size))} volumes. Take out one time point or channel first."
                    )
                if reader.GetNumberOfComponents() > 1 and not picture and not layers:
                    raise InputError(
                        f"'{path.name}' has {reader.GetNumberOfComponents()} values per voxel (colour or vector image). "
                        "Take out one channel first."
                    )
                image = reader.Execute()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise InputError(
                f"'{path.name}' has a sheared geometry, which its format cannot carry safely. Resample it in Slicer first."
            ) from error
        raise InputError(f"'{path}' could not be read as an image: {reason(error)} Known formats: {_KNOWN}.") from error
    while image.GetDimension() > 3:
        image = image[..., 0]
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    array = sitk.GetArrayFromImage(image)
    if picture:
        if layers and image.GetNumberOfComponentsPerPixel() in (2, 4):
            check_transparency(array, path)
        array = _grey(array, image.GetNumberOfComponentsPerPixel(), path)
        geometry = Geometry(np.diag([-1.0, -1.0, 1.0, 1.0]), array.shape)
    else:
        geometry = Geometry.from_itk(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    if layers:
        array = np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]
    if not want_fields:
        return array, geometry
    return array, geometry, {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment")}


def _grey(array: np.ndarray, components: int, path: Path) -> np.ndarray:
    """(1, rows, columns); colour becomes its luma (Rec. 601), an alpha channel is dropped."""
    if array.shape[0] != 1:
        raise InputError(f"'{path.name}' holds {array.shape[0]} pages. Save one page as a picture of its own.")
    if components == 1:
        return array
    if components == 2:
        return array[..., 0]
    kind = array.dtype
    grey = array[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.rint(grey).astype(kind) if kind.kind in "iu" else grey


def _segments(fields: dict[str, str]) -> list[tuple[str, int, int]]:
    """(name, label value, layer) of every segment in the header, in order."""
    numbers = sorted({int(m.group(1)) for key in fields if (m := re.match(r"Segment(\d+)_", key))})
    try:
        found = [
            (
                fields.get(f"Segment{n}_Name") or fields.get(f"Segment{n}_ID") or f"segment {n + 1}",
                int(fields.get(f"Segment{n}_LabelValue", 1)),
                # files of Slicer up to 4.10 have neither, and a layer for each segment
                int(fields.get(f"Segment{n}_Layer", 0 if f"Segment{n}_LabelValue" in fields else position)),
            )
            for position, n in enumerate(numbers)
        ]
    except ValueError as error:
        raise InputError("The segmentation's header has a segment without a proper label value. Save it again in Slicer.") from error
    if any(not 0 < value < 256 for _, value, _ in found):
        raise InputError("The segmentation's header has a segment with a label value outside 1..255. Save it again in Slicer.")
    return found


def _flatten(layers: np.ndarray, segments: list[tuple[str, int, int]]) -> tuple[np.ndarray, dict[int, str]]:
    values = [value for _, value, _ in segments]
    keep = len(set(values)) == len(values)  # values repeat when segments overlap and so lie in several layers
    if len(segments) > 255 or any(not 0 <= layer < len(layers) for _, _, layer in segments):
        raise InputError("The segmentation has more segments or layers than can be read. Export the lesion segments alone.")
    out = np.zeros(layers.shape[1:], np.uint8)
    labels = {}
    for position, (name, value, layer) in enumerate(segments):
        target = value if keep else position + 1
        labels[target] = name
        out[layers[layer] == value] = target
    return out, labels


def _overlapping(layers: np.ndarray, segments: list[tuple[str, int, int]]) -> tuple[str, str] | None:
    """Names of two segments that share a voxel, None if there are none."""
    for n, (name, value, layer) in enumerate(segments):
        for other, other_value, other_layer in segments[n + 1 :]:
            if layer != other_layer and ((layers[layer] == value) & (layers[other_layer] == other_value)).any():
                return name, other
    return None


def _tolerance(geometry: Geometry) -> float:
    """mm by which a file may lie beside a grid: what rounding makes, and far less than a voxel also under the microscope."""
    return min(0.01, 0.05 * min(geometry.spacing))


def _onto(labelmap: np.ndarray, own: Geometry, target: Geometry, path: Path, *, cropped: bool) -> np.ndarray:
    """The label map in the target's axis order and extent; nothing is resampled."""
    if own.same_grid(target, _tolerance(target)):
        return labelmap
    sizes = [" x ".join(map(str, g.shape[::-1])) for g in (own, target)]
    differs = f"{sizes[0]} voxels, the image {sizes[1]}" if sizes[0] != sizes[1] else "as many voxels, of another size or elsewhere"
    wrong = InputError(
        f"The mask '{path.name}' lies on another grid than its image (it has {differs}). "
        "Resample it to the image, for instance with Slicer's 'Resample Scalar/Vector/DWI Volume'."
    )
    step = np.linalg.inv(target.ijkToRAS) @ own.ijkToRAS  # mask voxel index -> image voxel index
    turn, shift = np.rint(step[:3, :3]), np.rint(step[:3, 3])
    far = np.array(own.shape[::-1], float)
    if (
        np.abs(step[:3, 3] - shift).max() > 0.01
        or np.abs((step[:3, :3] - turn) * far).max() > 0.02
        or not np.array_equal(np.abs(turn).sum(0), np.ones(3))
        or not np.array_equal(np.abs(turn).sum(1), np.ones(3))
    ):
        raise wrong
    source = [int(np.argmax(np.abs(turn[row]))) for row in range(3)]  # for image axis i, j, k the mask's axis
    signs = [int(turn[row, source[row]]) for row in range(3)]
    moved = np.transpose(labelmap, [2 - source[2 - axis] for axis in range(3)])
    moved = moved[tuple(slice(None, None, signs[2 - axis]) for axis in range(3))]
    start = [int(shift[2 - a]) - (moved.shape[a] - 1 if signs[2 - a] < 0 else 0) for a in range(3)]
    if start == [0, 0, 0] and moved.shape == target.shape:
        return np.ascontiguousarray(moved)
    if not cropped:
        raise wrong
    inside = tuple(slice(max(0, -s), max(0, min(n, t - s))) for s, n, t in zip(start, moved.shape, target.shape))
    if np.count_nonzero(moved[inside]) != np.count_nonzero(moved):
        raise wrong
    out = np.zeros(target.shape, np.uint8)
    part = moved[inside]
    out[tuple(slice(max(0, s), max(0, s) + n) for s, n in zip(start, part.shape))] = part
    return out


def _segment_fields(labelmap: np.ndarray, labels: dict, colors: dict, terminology: dict) -> dict[str, str]:
    """The header fields by which Slicer knows its segments."""
    k, j, i = labelmap.shape
    out = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    labels = dict(sorted(labels.items()))
    for n, ((value, name), (color, entry)) in enumerate(zip(labels.items(), label_styles(labels.values()))):
        color, entry = colors.get(value, color), terminology.get(value, entry)
        own = {
            "ID": f"Segment_{value}",
            "Name": " ".join(str(name).split()) or f"label {value}",
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{c:.6g}" for c in color),
            "ColorAutoGenerated": "0",
            "LabelValue": str(value),
            "Layer": "0",
            "Extent": f"0 {i - 1} 0 {j - 1} 0 {k - 1}",
            "Tags": f"Segmentation.Status:completed|TerminologyEntry:{entry}|",
        }
        out.update({f"Segment{n}_{key}": text for key, text in own.items()})
    return out


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(ending(path))] or path.name


def _knows_spacing(path: Path, dicom: Path | None, geometry: Geometry) -> bool:
    """Whether somebody measured how large the pixels are. dicom: a file of the image where it is DICOM."""
    if dicom is None:
        return says_spacing(path) and not geometry.default_pixels
    # 1 mm is what is put in where files of DICOM give no size
    return tells_spacing(dicom) or any(abs(s - 1) > 1e-6 for s in geometry.spacing[:2])
