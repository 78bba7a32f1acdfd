"""What a file says that its reader does not heed, and what would put a mask in the wrong place or tell a wrong size: refused."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import InputError
from .whole import all_finite, metaimage_header, nifti_header, nifti_parts

_TURNED = ("turned by 180°", "turned by 90°", "mirrored")
_NOT_MM = {"m", "meter", "meters", "cm", "um", "µm", "micron", "microns", "micrometer", "micrometers", "nm", "in", "inch"}
_NESTED = 8  # values besides 0 that labels may have which lie one in the other
_ORIENTATION = 0x0112  # of EXIF and TIFF; 1 is as stored

_REASONS = {
    "Zero-valued spacing": "its header gives a voxel size of 0.",
    "Bad direction": "the directions of its axes in the header do not span a volume.",
    "File cannot be read": "its voxels are missing, or end too early.",
    "Unknown PixelType: unsigned_char(1)": "it is grey with transparency; save it without.",
}


def unpacked_twin(path: Path) -> Path | None:
    """For ``a.nii.gz`` the file ``a.nii`` beside it, None if there is none."""
    if not path.name.lower().endswith(".nii.gz"):
        return None
    twin = path.with_name(path.name[:-3])
    return twin if twin.exists() else None


def check_namesakes(path: Path, others: Iterable[Path] = ()) -> None:
    """Whether a file that is to be written would be taken for another one, there already or among ``others``.

    Raises:
        InputError: one is a.nii and the other a.nii.gz, for NIfTI readers take the voxels of a.nii for both.
    """
    name = path.name
    twin = path.with_name(name[:-3]) if name.lower().endswith(".nii.gz") else path.with_name(name + ".gz")
    if name.lower().endswith((".nii", ".nii.gz")) and (twin.exists() or twin in others):
        first, second = sorted((name, twin.name), key=len)
        raise InputError(f"Other programs would read the voxels of '{first}' for those of '{second}'. Choose another name.")


@contextmanager
def as_itself(path: Path) -> Iterator[Path]:
    """The path from which the NIfTI reader takes this file's own voxels.

    Where ``a.nii`` lies beside ``a.nii.gz``, it takes the header of the one that it is given and the voxels of the other.
    """
    if not path.is_file() or unpacked_twin(path) is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="cers-") as folder:
        yield Path(shutil.copyfile(path, Path(folder) / "image.nii.gz"))


def check_header(path: Path) -> None:
    """Nothing where the header cannot be read, which the reader says better.

    Raises:
        InputError: a volume in NIfTI or Analyze without the size of its voxels, or with two that differ; an NRRD file in another unit
            than mm; a picture that is to be shown turned.
    """
    name = path.name.lower()
    try:
        if parts := nifti_parts(path):
            _check_voxel_size(path, parts[0])
        elif name.endswith((".jpg", ".jpeg", ".tif", ".tiff", ".png")):
            _check_turned(path)
        elif name.endswith((".nrrd", ".nhdr")):
            _check_unit(path)
    except (EOFError, OSError):
        return


def check_numbers(path: Path) -> None:
    """InputError where an image in NIfTI or Analyze of which 0 is no background has voxels that are not numbers."""
    if not all_finite(path):
        raise InputError(
            f"'{path.name}' contains voxels that are not numbers (NaN or infinite). They are read as 0, which would count as tissue. "
            "Replace them, for instance by -1000, and try again."
        )


def _check_voxel_size(path: Path, head: Path) -> None:
    header = nifti_header(head)
    if header is None:
        return
    used = [n for n in range(3) if n < header.dim[0] and header.dim[n + 1] > 1]
    if len(used) < 3:
        return
    pixdim = np.abs(np.array(header.pixdim, float))
    if not np.isfinite(pixdim).all() or not pixdim.all():
        raise InputError(
            f"'{path.name}' does not say how large its voxels are (pixdim {_times(pixdim)}). "
            "Convert the image again, or correct its header."
        )
    if header.older:
        return
    # an sform of another code may hold a scaling to an atlas; the reader then goes by the qform
    if header.sform > 0 and (header.qform <= 0 or header.sform == 1):
        axes = np.array(header.rows, float).reshape(3, 4)[:, :3]
        sform = np.linalg.norm(axes, axis=0)
        if not np.isfinite(sform).all() or not sform.all() or np.abs(axes.T @ axes / np.outer(sform, sform) - np.eye(3)).max() > 0.01:
            return  # sheared or of no use, which the reader refuses
        if np.abs(sform / pixdim - 1).max() > 0.01:
            raise InputError(
                f"'{path.name}' gives its voxels two sizes, {_times(pixdim)} (pixdim) and {_times(sform)} (sform), so that no length or "
                "volume would be sure. Convert the image again, or correct its header."
            )


def _times(sizes: np.ndarray) -> str:
    return " x ".join(f"{s:.4g}" for s in sizes)


def says_spacing(path: Path) -> bool:
    """Whether an NRRD or MetaImage file gives a size of its voxels, for which its reader otherwise takes 1 mm; True for other formats."""
    name = path.name.lower()
    if name.endswith((".mha", ".mhd")):
        fields, _ = metaimage_header(path)
        return not fields or not {"ElementSpacing", "ElementSize"}.isdisjoint(fields)
    if name.endswith((".nrrd", ".nhdr")):
        fields = _nrrd_header(path)
        return not fields or "space directions" in fields or "spacings" in fields and "nan" not in fields["spacings"].lower()
    return True


def _nrrd_header(path: Path) -> dict[str, str]:
    """Fields of an NRRD file's header, without its key/value pairs."""
    fields = {}
    with open(path, "rb") as file:
        if not file.readline(16).startswith(b"NRRD"):
            return {}
        for line in iter(lambda: file.readline(1 << 16).strip(), b""):
            key, colon, value = line.decode("latin-1").partition(": ")
            if colon and not line.startswith(b"#") and ":=" not in key:
                fields[key.strip().lower()] = value.strip()
    return fields


def _check_unit(path: Path) -> None:
    fields = _nrrd_header(path)
    units = {unit.strip().lower() for key in ("space units", "units") for unit in re.findall('"([^"]*)"', fields.get(key, ""))}
    if wrong := units & _NOT_MM:
        raise InputError(
            f"'{path.name}' gives the size of its voxels in {sorted(wrong)[0]}, which is read as mm. Save it again with sizes in mm."
        )


def _check_turned(path: Path) -> None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            turn = picture.getexif().get(_ORIENTATION, 1)
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return
    if turn in range(2, 9):
        how = {3: _TURNED[0], 6: _TURNED[1], 8: _TURNED[1]}.get(turn, _TURNED[2])
        raise InputError(
            f"'{path.name}' says that it is to be shown {how} (EXIF orientation {turn}), which not all programs do, so that a mask could "
            "lie elsewhere than it was drawn. Open it in a picture editor and save it as PNG."
        )


def check_transparency(array: np.ndarray, path: Path) -> None:
    """array: (..., 2 or 4) values of a mask picture, the last one how opaque a pixel is.

    Raises:
        InputError: the shape is drawn by transparency, which is dropped.
    """
    opaque = array[..., -1] > 0
    if not opaque.all() and not np.array_equal(opaque, (array[..., :-1] > 0).any(-1)):
        raise InputError(
            f"The mask '{path.name}' has transparent pixels that are not black, or black ones that are not transparent, so that it is "
            "not clear what belongs to it. Save it as black and white without transparency."
        )


def label_picture(array: np.ndarray, path: Path) -> np.ndarray:
    """The label map of a mask picture: its values where all are below 64, else cut at half of white.

    Raises:
        InputError: grey levels of which it is not clear what belongs to the mask.
    """
    if array.max() < 64:
        if path.suffix.lower() in (".jpg", ".jpeg") and array.any():
            raise InputError(f"The mask '{path.name}' holds label values, which JPEG does not keep. Save it as PNG.")
        check_labels(array, [int(v) for v in np.unique(array) if v], path)
        return array
    top = float(array.max())
    white, values = max(255.0, top), len(np.unique(array))
    # a soft or JPEG-worn edge is thin; broad greys are labels that a cut at 127 would merge or drop without a word
    levels = np.rint(array * (255 / white)) if top > 255 else array
    broad = np.count_nonzero((levels > 63) & (levels < 192)) > 0.2 * np.count_nonzero(levels > 63)
    if (broad and values <= 16) or (values <= _NESTED and _areas(levels, 0 if top <= 255 else 63)):
        raise InputError(
            f"The mask '{path.name}' has colours or several broad grey levels. Save it as black and white, or with label values 1, 2, 3."
        )
    if broad and array.dtype.kind in "iu" and array.dtype.itemsize > 1:  # probabilities: of low ones the highest is no white
        if top < 1 << 15:
            raise InputError(
                f"The mask '{path.name}' holds grey levels up to {top:.0f} in 16 bit, so that it is not clear which of them belong to it. "
                "Cut it at a threshold and save it as black and white."
            )
        levels = np.rint(array * (255 / max(top, 65535.0)))
    return (levels > 127).astype(np.uint8)


def _areas(levels: np.ndarray, least: int) -> bool:
    """Whether a value above ``least``, neither black nor white, fills a square of 3 x 3 pixels of a picture: an edge is not as broad."""
    plane = levels.reshape(levels.shape[-2:])
    for value in np.unique(plane[(plane > max(least, plane.min())) & (plane < 0.9 * plane.max())]):
        same = plane == value
        same = same[2:] & same[1:-1] & same[:-2]
        if (same[:, 2:] & same[:, 1:-1] & same[:, :-2]).any():
            return True
    return False


def check_labels(array: np.ndarray, values: Collection[int], path: Path) -> None:
    """array: (..., rows, columns) whole numbers of a mask file that does not name its labels, each of which counts as lesion; values: those
    in it but 0.

    Raises:
        InputError: they are grey levels, as of probabilities: more than a few, which pass over into each other and into the background
            little by little. Labels end where any other, or none, begins.
    """
    if len(values) <= _NESTED:
        return
    fullest, a, b = _borders(array)
    rim = np.maximum(a, b)[np.minimum(a, b) == 0]
    nearest = np.full(fullest.max() + 1, 256)
    np.minimum.at(nearest, np.concatenate([a, b]), np.tile(np.abs(a - b), 2))
    little = max(2, fullest.max() // 8)
    if rim.size and np.median(rim) <= 2 and (nearest[np.unique(fullest)] <= little).mean() > 0.7:
        raise InputError(
            f"The mask '{path.name}' holds grey levels, as of probabilities, and no labels: all that is not 0 would count as lesion. "
            "Cut it at a threshold and save it as a mask."
        )


def check_steps(array: np.ndarray, values: Collection[int], path: Path) -> None:
    """Arguments as ``check_labels``, of a mask that is compared with one of a single label.

    Raises:
        InputError: its few values rise one by one from 0, as low probabilities do. Labels of one mask that all lie one in the other in the
            order of their values are hardly compared so.
    """
    if len(values) < 3:
        return
    _, a, b = _borders(array)
    if a.size and (np.abs(a - b) == 1).mean() > 0.95:
        raise InputError(
            f"'{path.name}' holds {len(values)} values that rise one by one, as low probabilities do, where the other mask has one label: "
            "all that is not 0 would count as lesion. Cut it at a threshold and save it as a mask, or name the labels that are compared."
        )


def _borders(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fullest plane of (..., rows, columns) from 0 on, and the two values of neighbouring pixels in it wherever they differ."""
    planes = array.reshape(-1, *array.shape[-2:])
    fullest = planes[np.count_nonzero(planes, axis=(1, 2)).argmax()].astype(int)
    fullest -= fullest.min()
    pairs = (fullest[1:], fullest[:-1]), (fullest[:, 1:], fullest[:, :-1])
    a, b = (np.concatenate([pair[n].ravel() for pair in pairs]) for n in (0, 1))
    return fullest, a[a != b], b[a != b]


def reason(error: Exception) -> str:
    """Why ITK could not read or write a file: as a rule the last line of its error; some of them say nothing to a user."""
    text = str(error)
    for sign, words in _REASONS.items():
        if sign in text:
            return words
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    text = re.sub(r"^(sitk::ERROR: |ITK ERROR: |\w+\(0x[0-9a-f]+\): )+", "", lines[-1]) if lines else "unknown error."
    return text if text.endswith(".") else text + "."
