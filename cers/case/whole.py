"""Whether a NIfTI, MetaImage, BMP or JPEG file is all there: their readers take a file that ends too early and make up the rest."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

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
        elif name.endswith((".nii", ".nii.gz")):
            whole = _is_long_enough(path)
        elif name.endswith((".img", ".hdr")):
            whole = _pair_is_long_enough(path)
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


def _is_long_enough(path: Path) -> bool:
    """Whether header and voxels of a NIfTI file are there."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # whatever its name says, as its reader goes by it
    with gzip.open(path) if packed else open(path, "rb") as file:
        wanted = _length(file.read(_HEADER))
        if wanted is None:
            return True
        if not packed:
            return path.stat().st_size >= wanted
        # the last bytes tell the size, so that only a file in several parts must be read to its end
        return _told(path) == wanted % (1 << 32) or _read(file, wanted) >= wanted


def _pair_is_long_enough(path: Path) -> bool:
    """Whether the voxels in .img are there, where .hdr beside it is the header of NIfTI or Analyze."""
    header, voxels = (path.with_suffix(end if path.suffix.islower() else end.upper()) for end in (".hdr", ".img"))
    if not header.is_file() or not voxels.is_file():
        return True
    with open(header, "rb") as file:
        wanted = _length(file.read(_HEADER))
    return wanted is None or voxels.stat().st_size >= wanted


def _length(header: bytes) -> int | None:
    """Bytes that header and voxels take, None for what is no NIfTI header."""
    for order in "<>":
        if len(header) >= 348 and struct.unpack_from(f"{order}i", header)[0] == 348:
            sizes, (bits,) = struct.unpack_from(f"{order}8h", header, 40), struct.unpack_from(f"{order}h", header, 72)
            (offset,) = struct.unpack_from(f"{order}f", header, 108)
        elif len(header) >= _HEADER and struct.unpack_from(f"{order}i", header)[0] == _HEADER:
            sizes, (bits,) = struct.unpack_from(f"{order}8q", header, 16), struct.unpack_from(f"{order}h", header, 14)
            (offset,) = struct.unpack_from(f"{order}q", header, 168)
        else:
            continue
        if not (1 <= sizes[0] <= 7 and bits > 0 and 0 <= offset < 1 << 40):
            return None
        voxels = 1
        for n in sizes[1 : sizes[0] + 1]:
            voxels *= max(int(n), 1)
        return int(offset) + voxels * bits // 8
    return None


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
