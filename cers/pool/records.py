"""Rows of the pool's database as what they mean: a case's metadata, its labels, its rationale."""

from __future__ import annotations

import json

from ..case import Rationale
from ..errors import PoolError

TEXT = ("plane", "patient_id", "volume_id", "group", "modality", "body_site", "diagnosis", "source", "annotator", "created", "review")
COLUMN = {"group": "group_id"}  # "group" is a word of SQL's own


def modality_code(value: str | None) -> str | None:
    """DICOM's code for a modality however it is written ("mri", " ct "); it decides how a picture is read. None if not known."""
    code = (value or "").strip().upper()
    return {"MRI": "MR"}.get(code, code) or None


def parse_rationale(case_id: str, record: str) -> Rationale:
    """A rationale from its JSON."""
    try:
        return Rationale.from_dict(json.loads(record))
    except (ValueError, KeyError, TypeError) as error:
        raise PoolError(
            f"The rationale of case {case_id} is not readable ({error}). Delete the case and add it again, or restore a backup."
        ) from error


def metadata_of(row) -> dict:
    """What is known of the case of a row of ``cases``, without its arrays and its rationale."""
    out = {name: row[COLUMN.get(name, name)] for name in ("id", "content_hash", *TEXT)}
    return {
        **out,
        "labels": labels_of(row),
        "spacing": _kept(row, "spacing", list),
        "ijkToRAS": _kept(row, "ijkToRAS", list),
        "slice_index": row["slice_index"],
        "shape": [row["rows"], row["columns"]],
        "rationale_version": row["rationale_version"],
    }


def labels_of(row) -> dict[str, str]:
    """Value -> name of a row of ``cases`` with the columns id and labels."""
    return _kept(row, "labels", dict) or {}


def _kept(row, column: str, kind: type):
    """What a column keeps as JSON, None for nothing.

    Raises:
        PoolError: it holds something else, as only a damaged disk or a foreign program leaves it.
    """
    try:
        value = json.loads(row[column] or "null")
    except (ValueError, TypeError, RecursionError):
        value = ...
    if value is None or isinstance(value, kind):
        return value
    raise PoolError(f"The pool's record of case {row['id']} is damaged: its {column} cannot be read. Restore pool.sqlite from a copy.")
