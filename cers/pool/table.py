"""The table (CSV) that tells an import what each image is."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from ..case.geometry import PLANES
from ..errors import InputError

COLUMNS = ("image", "patient", "group", "modality", "body_site", "diagnosis", "plane", "annotator", "label")
_IGNORED = ("split", "twin_in_train")  # said of data sets, not of cases


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
    try:
        text = path.read_text(encoding="utf-8-sig")
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
        _check_header(header, path)
        return [_row(header, cells, reader.line_num) for cells in reader if any(c.strip() for c in cells)]
    except csv.Error as error:
        raise InputError(
            f"The table {path.name} cannot be read after line {reader.line_num} ({error}). Check its quotation marks."
        ) from error


def _check_header(header: list[str], path: Path) -> None:
    if unknown := [h for h in header if h not in COLUMNS + _IGNORED]:
        raise InputError(
            f"The table {path.name} has the column {unknown[0]!r}, which is not known. Known columns are {', '.join(COLUMNS)}."
        )
    if "image" not in header:
        raise InputError(f"The table {path.name} has no column 'image' with the names of the images.")
    if repeated := sorted({h for h in header if header.count(h) > 1}):
        raise InputError(f"The table {path.name} has the column {repeated[0]!r} twice.")


def _row(header: list[str], cells: list[str], line: int) -> Row:
    values = {name: cell.strip() for name, cell in zip(header, cells) if cell.strip() and name not in _IGNORED}
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
