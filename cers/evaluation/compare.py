"""Result files: reading them, and the paired difference of two."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ..errors import InputError
from .metrics import METRICS
from .run import KIND
from .statistics import MEANS, counts, interval

LOWER_IS_BETTER = {"hd95"}
COMPARED = tuple(m for m in METRICS if not m.endswith("volume_difference"))  # the sign of a volume difference is not good or bad


def read_json(path: str | Path) -> dict:
    """A JSON object.

    Raises:
        InputError: the file cannot be read or holds none.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"), parse_constant=_no_number)
    except OSError as error:
        raise InputError(f"The result file '{path}' cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"'{path}' is not JSON. Give a file that 'cers evaluate --json' wrote.") from error
    if not isinstance(found, dict):
        raise InputError(f"'{path}' holds no result. Give a file that 'cers evaluate --json' wrote.")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def read_result(path: str | Path) -> dict:
    """A result of ``cers evaluate``. Raises InputError as ``read_json`` does, for any other file, and for a damaged one."""
    found = read_json(path)
    if found.get("kind") != KIND or found.get("format") != 1 or not isinstance(found.get("cases"), list):
        raise InputError(f"'{path}' is not a result of 'cers evaluate'. Give a file that its option --json wrote.")
    if problem := _damage(found):
        raise InputError(f"The result '{path}' is damaged: {problem}. Write it again with 'cers evaluate --json'.")
    return found


def _damage(result: dict) -> str | None:
    """What of a result cannot be compared, None if nothing."""
    units = result.get("units")
    if not isinstance(units, dict) or not {"hd95", "volume_difference", "surface_tolerance"} <= set(units):
        return "it does not say its units"
    names = set()
    for case in result["cases"]:
        name = case.get("image") if isinstance(case, dict) else None
        if not isinstance(name, str):
            return "one of its cases has no image"
        if name in names:
            return f"it has the case {name} twice"
        names.add(name)
        for metric in COMPARED:
            value = case.get(metric, "")
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)):
                return f"the {metric} of the case {name} is no number"
    return None


def compare_results(first: dict, second: dict) -> dict:
    """Second minus first on the same cases, with 95 % bootstrap intervals over cases (over groups where they are known).

    Returns:
        difference: metric -> value, low, high, n (cases in which both are defined), better, worse (cases in which the second is).

    Raises:
        InputError: the cases, their expert masks, groups, labels or units differ; the message names up to five of them.
    """
    a, b = ({c["image"]: c for c in r["cases"]} for r in (first, second))
    for only, which, other in ((sorted(set(a) - set(b)), "first", "second"), (sorted(set(b) - set(a)), "second", "first")):
        if only:
            raise InputError(
                f"The two results are not of the same cases: {_some(only)} only in the {which}. Evaluate both on the same "
                f"folders, or take {'it' if len(only) == 1 else 'them'} out of the {which} or into the {other}."
            )
    for key in ("labels", "units"):
        if first.get(key) != second.get(key):
            raise InputError(
                f"The two results differ in their {key} ({_differing(first.get(key), second.get(key))}), so they cannot be compared."
            )
    for key, what in (("expert", "expert mask"), ("group", "group")):
        if other := [n for n in a if a[n].get(key) != b[n].get(key)]:
            raise InputError(
                f"The two results have another {what} for {_some(sorted(other))}, so they cannot be compared. Evaluate both "
                "with the same masks and table."
            )
    names = sorted(a)
    groups = [a[n].get("group") for n in names]
    difference = {}
    for metric in COMPARED:
        values = [None if None in (a[n][metric], b[n][metric]) else b[n][metric] - a[n][metric] for n in names]
        sign = -1 if metric in LOWER_IS_BETTER else 1
        difference[metric] = {
            **interval(values, groups),
            "better": sum(v is not None and sign * v > 0 for v in values),
            "worse": sum(v is not None and sign * v < 0 for v in values),
        }
    return {
        "kind": "cers comparison",
        "format": 1,
        "cases": len(names),
        "units": first["units"],
        "rules": {"intervals": MEANS, **counts(groups)},
        "first": _about(first),
        "second": _about(second),
        "difference": difference,
    }


def _differing(first: dict | list | None, second: dict | list | None) -> str:
    """What differs between units or lists of labels, in words."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [k for k in {**first, **second} if first.get(k) != second.get(k)]
        return ", ".join(f"{k.replace('_', ' ')} {first.get(k, 'none')} against {second.get(k, 'none')}" for k in keys)
    return " against ".join(", ".join(map(str, value)) if value else "none" for value in (first, second))


def _about(result: dict) -> dict:
    return {k: result.get(k) for k in ("name", "model", "model_name", "pool", "planes")}


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
