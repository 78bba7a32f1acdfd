"""Whether a NIfTI, MetaImage, BMP or JPEG file is all there: their readers take a file that ends too early and make up the rest."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError

_HEADER = 540  # bytes, of NIfTI-2; that of NIfTI-1 has 348
_CHUNK = 1 << 22


def check_whole(path: Path) -> None:
    """Nothing for other formats, whose readers notice it, and where the header makes no sense, which the reader says better.

    Raises:
        InputError: the file ends too early, or has compressed voxels that cannot be unpacked.
    """
    name = path.name.lower()
    try:
        if name.endswith((".jpg", ".jpeg")):
            whole = _has_end(path.read_bytes())
        elif parts := nifti_parts(path):
            whole = _is_long_enough(*parts)
        elif name.endswith((".mha", ".mhd")):
            whole = _unpacks(path)
        elif name.endswith(".bmp"):
            with open(path, "rb") as file:
                begin = file.read(6)
            whole = begin[:2] != b"BM" or path.stat().st_size >= int.from_bytes(begin[2:], "little")
        else:
            return
    except (EOFError, zlib.error, gzip.BadGzipFile):
        whole = False
    except OSError:
        return
    if not whole:
        raise InputError(f"'{path}' ends too early: a part of the image is missing. Copy or export it again.")


def metaimage_header(path: Path) -> tuple[dict[str, str], int]:
    """Fields of a MetaImage's header, and its length in bytes; no fields of what has none."""
    fields, length = {}, 0
    with open(path, "rb") as file:
        for line in iter(lambda: file.readline(4096), b""):
            length += len(line)
            key, equals, value = line.decode("latin-1").partition("=")
            if not equals:
                return {}, 0
            fields[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                return fields, length
    return {}, 0


def _unpacks(path: Path) -> bool:
    """Whether the compressed voxels of a MetaImage can be unpacked to their end; also where they are not compressed."""
    fields, length = metaimage_header(path)
    if fields.get("CompressedData", "").lower() != "true":
        return True
    if "CompressedDataSize" not in fields:  # its reader then unpacks noise
        raise InputError(f"'{path}' does not say how long its compressed voxels are. Save it again without compression.")
    local = fields["ElementDataFile"].upper() == "LOCAL"
    data, unpack = path if local else path.parent / fields["ElementDataFile"], zlib.decompressobj()
    with open(data, "rb") as file:
        file.seek(length if local else 0)
        while not unpack.eof and (part := file.read(1 << 16)):  # which may be 64 MB when unpacked
            unpack.decompress(part)
    return unpack.eof


def nifti_parts(path: Path) -> tuple[Path, Path] | None:
    """The files of header and voxels of NIfTI or Analyze: one, or the pair of .hdr and .img; None for other formats, or where one lacks."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return path, path
    packed = ".gz" if path.name.lower().endswith(".gz") else ""
    whole = path.with_name(path.name[: len(path.name) - len(packed)])
    if whole.suffix.lower() not in (".hdr", ".img"):
        return None
    ends = (end if whole.suffix.islower() else end.upper() for end in (".hdr", ".img"))
    # as their reader does: first the one that is not packed
    found = [next((f for f in (whole.with_suffix(end), whole.with_suffix(end + ".gz")) if f.is_file()), None) for end in ends]
    return None if None in found else (found[0], found[1])


def _is_long_enough(head: Path, voxels: Path) -> bool:
    """Whether header and voxels of a NIfTI file, or of a pair, are there."""
    header = nifti_header(head)
    if header is None:
        return True
    if not _packed(voxels):
        return voxels.stat().st_size >= header.length
    # the last bytes tell the size, so that only a file in several parts must be read to its end
    with gzip.open(voxels) as file:
        return _told(voxels) == header.length % (1 << 32) or _read(file, header.length) >= header.length


@dataclass(frozen=True)
class NiftiHeader:
    """What the header of a NIfTI file, or of the older Analyze, says that a reader may not heed.

    dim: number of axes, then their sizes. pixdim: mm a voxel, along the first three. qform, sform: codes, 0 where there is none.
    rows: (3, 4) of the sform. start, length: bytes from the begin of the voxels' file to the voxels, and to their end. kind: numpy's name
    of voxels that are real numbers, None for others. older: Analyze, which knows no place.
    """

    dim: tuple[int, ...]
    pixdim: tuple[float, ...]
    qform: int
    sform: int
    rows: tuple[float, ...]
    start: int
    length: int
    kind: str | None
    older: bool


# size of the header -> offsets and types of dim, type and bits of a voxel, offset of the voxels, pixdim, codes of the two forms,
# rows of the sform
_LAYOUTS = {
    348: ((40, "8h"), (70, "2h"), (108, "f"), (76, "8f"), (252, "2h"), (280, "12f")),
    540: ((16, "8q"), (12, "2h"), (168, "q"), (104, "8d"), (344, "2i"), (400, "12d")),
}
_REAL = {(16, 32): "f4", (64, 64): "f8"}


def nifti_header(path: Path) -> NiftiHeader | None:
    """The header of a file, packed or not, in either byte order; None for what is none, or makes no sense.

    Raises:
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    with gzip.open(path) if _packed(path) else open(path, "rb") as file:
        header = file.read(_HEADER)
    for order in "<>":
        size = struct.unpack_from(f"{order}i", header)[0] if len(header) >= 4 else 0
        if size not in _LAYOUTS or len(header) < size:
            continue
        dim, (kind, bits), (offset,), pixdim, codes, rows = (struct.unpack_from(order + kind, header, at) for at, kind in _LAYOUTS[size])
        if not (1 <= dim[0] <= 7 and bits > 0 and 0 <= offset < 1 << 40):
            return None
        voxels = math.prod(max(int(n), 1) for n in dim[1 : dim[0] + 1])
        older = size == 348 and header[344:346] not in (b"n+", b"ni")
        start, real = int(offset), _REAL.get((kind, bits))
        return NiftiHeader(dim, pixdim[1:4], *codes, rows, start, start + voxels * bits // 8, real and order + real, older)
    return None


def all_finite(path: Path) -> bool:
    """Whether all voxels of NIfTI or Analyze are numbers; also of what is none. Its reader takes 0 for those that are not."""
    parts = nifti_parts(path)
    header = nifti_header(parts[0]) if parts else None
    if header is None or header.kind is None:
        return True
    with gzip.open(parts[1]) if _packed(parts[1]) else open(parts[1], "rb") as file:
        file.seek(header.start)
        for at in range(header.start, header.length, _CHUNK):
            if not np.isfinite(np.frombuffer(file.read(min(_CHUNK, header.length - at)), header.kind)).all():
                return False
    return True


def _packed(path: Path) -> bool:
    """Whether a file is packed by gzip, whatever its name says, as its reader goes by it."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _has_end(jpeg: bytes) -> bool:
    """Whether an end of image follows the last begin of a scan; also of what is no JPEG. A small picture in the header has both."""
    return not jpeg.startswith(b"\xff\xd8") or b"\xff\xda" not in jpeg or jpeg.rfind(b"\xff\xd9") > jpeg.rfind(b"\xff\xda")


def _told(path: Path) -> int:
    """The uncompressed size modulo 2^32 that a gzip file of one part ends with."""
    with open(path, "rb") as file:
        file.seek(-4, 2)
        return int.from_bytes(file.read(4), "little")


def _read(file, wanted: int) -> int:
    """Number of bytes that can be read from the start, at most as many as are wanted."""
    file.seek(0)
    size = 0
    while size < wanted and (part := file.read(min(_CHUNK, wanted - size))):
        size += len(part)
    return size
