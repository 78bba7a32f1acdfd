"""The table (CSV) that tells an import, an evaluation or a training what each image is."""

from __future__ import annotations

import csv
import io
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from ..case.geometry import PLANES
from ..errors import InputError

COLUMNS = ("image", "patient", "group", "modality", "body_site", "diagnosis", "plane", "annotator", "label")
SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
OF_SETS = ("split", "twin_in_train")  # said of data sets, not of cases


@dataclass(frozen=True)
class Row:
    """One line of the table. values: column -> text, without empty ones. problem: what is wrong with the line, None if nothing is."""

    image: str
    line: int | None
    values: dict[str, str]
    problem: str | None = None


def read_table(path: Path) -> list[Row]:
    """All rows of a CSV file in UTF-8, separated by comma, semicolon or tab.

    Raises:
        InputError: not readable, no column ``image``, or a column that is not known (it is named).
    """
    rows = read_rows(path, COLUMNS + OF_SETS)[1]
    return [replace(row, values={k: v for k, v in row.values.items() if k not in OF_SETS}) for row in rows]


def read_rows(path: Path, known: tuple[str, ...] | None = None) -> tuple[list[str], list[Row]]:
    """The columns in lower case, and all rows with the values of all columns but ``image``. Columns without a name at the end are dropped.

    Args:
        known: the columns that there may be; None takes any.

    Raises:
        InputError: not readable, no column ``image``, a column twice or one that is not known.
    """
    try:
        text = composed(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"The table {path.name} is not in UTF-8. Save it as 'CSV UTF-8' and try again.") from error
    except OSError as error:
        raise InputError(f"The table {path} cannot be read ({error.strerror}).") from error
    header = text.partition("\n")[0]
    if not header.strip():
        raise InputError(f"The table {path.name} is empty. Its first line must name the columns, for instance image,patient,diagnosis.")
    separator = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = [name.strip().lower() for name in next(reader)]
        width = len(header)
        while header and not header[-1]:
            header.pop()
        _check_header(header, path, known)
        return header, [
            _row(header, _named(cells, len(header), width), reader.line_num) for cells in reader if any(c.strip() for c in cells)
        ]
    except csv.Error as error:
        raise InputError(
            f"The table {path.name} cannot be read after line {reader.line_num} ({error}). Check its quotation marks."
        ) from error


def composed(name: str) -> str:
    """A name in one form: macOS writes "ü" as two characters in the names of files, others as one, and nobody sees which."""
    return unicodedata.normalize("NFC", name)


def image_name(image: str) -> str:
    """An image's name as the table gives it, without the ending of its file."""
    ending = next((s for s in SUFFIXES if image.lower().endswith(s)), "")
    return image[: len(image) - len(ending)]


def _named(cells: list[str], columns: int, width: int) -> list[str]:
    """Without the empty cells below columns that have no name, which spreadsheets write."""
    return cells[:columns] if len(cells) == width and not any(c.strip() for c in cells[columns:]) else cells


def _check_header(header: list[str], path: Path, known: tuple[str, ...] | None) -> None:
    if unknown := [h for h in header if known is not None and h not in known]:
        raise InputError(
            f"The table {path.name} has the column {unknown[0]!r}, which is not known. Known columns are {', '.join(COLUMNS)}."
        )
    if "image" not in header:
        raise InputError(f"The table {path.name} has no column 'image' with the names of the images.")
    if repeated := sorted({h for h in header if header.count(h) > 1}):
        raise InputError(f"The table {path.name} has the column {repeated[0]!r} twice.")


def _row(header: list[str], cells: list[str], line: int) -> Row:
    values = {name: cell.strip() for name, cell in zip(header, cells) if cell.strip()}
    image = values.pop("image", "")
    problem = None
    if len(cells) != len(header):
        problem = f"the line has {len(cells)} cells, but the table has {len(header)} columns."
    elif not image:
        problem = "the line names no image."
    elif "plane" in values and values["plane"].lower() not in PLANES:
        problem = f"the plane {values['plane']!r} is not known. Use {', '.join(PLANES)}."
    if "plane" in values:
        values["plane"] = values["plane"].lower()
    return Row(image, line, values, problem)
