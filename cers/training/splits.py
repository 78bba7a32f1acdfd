"""Who trains, who validates, and whether anything is on two sides: splits by group, and the leak report."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError, TrainingError
from ..pool.thumbnail import thumbnail
from .config import TrainConfig
from .datasets import OTHER, Dataset

NEAR_DUPLICATE = 0.99
SHOWN = 5  # examples of each kind of leak in the report


@dataclass
class Split:
    """Rows of the dataset. kin: (n,) number per picture, equal where two must never be on two sides or refer to each other."""

    labelled: np.ndarray
    unlabelled: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    kin: np.ndarray
    report: dict


def make_split(data: Dataset, config: TrainConfig) -> Split:
    """Split by group, near-duplicates and identical files counting as one group.

    Raises:
        InputError: no picture is left to train with. TrainingError: a leak, unless ``allow_leaks``.
    """
    excluded = _excluded(data, config.exclude)
    given, has_mask = data.column("split"), _drawn(data)
    items, item_of = np.unique(data.column("item"), return_inverse=True)
    first = np.array([np.flatnonzero(item_of == n)[0] for n in range(len(items))])
    thumbs, digests = _thumbnails(data, first), _digests(data, first)
    train_items = np.isin(given[first], ("train", OTHER)) & (data.kind != "volumes")  # slices of two patients may well look alike
    kin_items = _components(data.column("group")[first], digests, thumbs, train_items)
    kin = kin_items[item_of]
    rng = np.random.default_rng(config.split_seed)
    side = np.array([""] * len(data), dtype="<U12")
    side[given == "test"], side[given == "validation"] = "test", "validation"
    train = (given == "train") & ~excluded
    if not (given == "validation").any() and config.validation:
        order = rng.permutation(np.unique(kin[train]))
        if len(order) == 1:
            raise InputError(
                "All training pictures are of one patient, volume or group, so that none can be held out to see whether the model is "
                "any good. Add cases of other patients, or set validation to 0 to train without."
            )
        held = order[: max(1, round(len(order) * config.validation))]
        side[train & np.isin(kin, held)] = "validation"
    side[(given == "validation") & excluded] = ""
    train &= side == ""
    order, chosen, seen = rng.permutation(np.unique(kin[train])), [], 0
    wanted = config.labelled if config.labelled > 1 else config.labelled * len(np.unique(item_of[train]))
    for k in order:
        if seen >= wanted:
            break
        chosen.append(k)
        seen += len(np.unique(item_of[train & (kin == k)]))
    side[train] = "unlabelled"
    side[train & np.isin(kin, chosen)] = "labelled"
    side[(given == OTHER)] = "unlabelled"
    rows = {name: np.flatnonzero(side == name) for name in ("labelled", "unlabelled", "validation", "test")}
    if not has_mask[rows["labelled"]].any():
        raise InputError("No labelled picture is left to train with. Raise the labelled share, or exclude less.")
    leaks = leak_report(data, side, first, item_of, thumbs, digests)
    by = "group and identical files" if data.kind == "volumes" else "group, identical files, and thumbnails that correlate above 0.99"
    report = {
        "by": by,
        "counts": {k: len(v) for k, v in rows.items()},
        "excluded": int(excluded.sum()),
        "set_aside": data.set_aside,
        "leaks": leaks,
        "rows": {k: [data.table[r]["image"] for r in v] for k, v in rows.items()},
    }
    split = Split(rows["labelled"], rows["unlabelled"], rows["validation"], rows["test"], kin, report)
    if leaks["found"] and not config.allow_leaks:
        raise LeakError(
            f"The splits leak: {leaks['words']}. Correct the groups or the splits in the data, or set allow_leaks to train all the same.",
            split,
        )
    return split


class LeakError(TrainingError):
    """The leak report found something; ``split`` has it."""

    def __init__(self, message: str, split: Split):
        super().__init__(message)
        self.split = split


def leak_report(data: Dataset, side: np.ndarray, first, item_of, thumbs, digests) -> dict:
    """What training, validation and test pictures share: groups, byte-identical files, near-identical thumbnails."""
    simple = np.where(np.isin(side, ("labelled", "unlabelled")), "train", side)
    sides = {name: np.unique(item_of[simple == name]) for name in ("train", "validation", "test")}
    groups, names = data.column("group")[first], data.column("item")[first]
    out, words = {}, []
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        left, right = sides[a], sides[b]
        shared = sorted(set(groups[left]) & set(groups[right]))
        same = _same_files(digests, left, right)
        alike = [] if data.kind == "volumes" else _alike(thumbs, left, right)
        found = {"shared_groups": len(shared), "identical_files": len(same), "near_identical_pictures": len(alike)}
        out[f"{a}/{b}"] = {
            **found,
            "examples": {
                "shared_groups": [str(g) for g in shared[:SHOWN]],
                "identical_files": [[str(names[i]), str(names[j])] for i, j in same[:SHOWN]],
                "near_identical_pictures": [[str(names[i]), str(names[j])] for i, j in alike[:SHOWN]],
            },
        }
        words += [f"{count} {kind.replace('_', ' ')} between {a} and {b}" for kind, count in found.items() if count]
    return {"found": bool(words), "words": ", ".join(words), **out}


def _excluded(data: Dataset, exclude: dict) -> np.ndarray:
    out = np.zeros(len(data), bool)
    for column, values in exclude.items():
        values = [str(v) for v in (values if isinstance(values, (list, tuple)) else [values])]
        there = data.column(column)
        if lost := sorted(set(values) - set(there.astype(str))):
            known = ", ".join(sorted(set(there))[:8]) or "no value"
            raise InputError(f"No picture has {column} = {lost[0]}, so it cannot be excluded. The column has {known}.")
        out |= np.isin(there.astype(str), values)
    return out


def _drawn(data: Dataset) -> np.ndarray:
    return np.concatenate([np.array([m.any() for m in part]) for part in data.masks.parts]) if len(data) else np.zeros(0, bool)


def _thumbnails(data: Dataset, first: np.ndarray) -> np.ndarray:
    """(items, 1024) of each picture, or of a volume's middle slice."""
    stored = [data.table[n].get("thumbnail") for n in first]
    return np.stack([thumbnail(data.images[int(n)]) if t is None else np.array(t, np.float32) for n, t in zip(first, stored)])


def _digests(data: Dataset, first: np.ndarray) -> list[str]:
    out = []
    for n in first:
        row = data.table[n]
        out.append(row.get("digest") or hashlib.sha256(Path(row["file"]).read_bytes()).hexdigest())
    return out


def _alike(thumbs, left, right) -> list[tuple[int, int]]:
    if not len(left) or not len(right):
        return []
    i, j = np.nonzero(thumbs[left] @ thumbs[right].T > NEAR_DUPLICATE)
    return list(zip(left[i], right[j]))


def _same_files(digests, left, right) -> list[tuple[int, int]]:
    where = defaultdict(list)
    for n in left:
        where[digests[n]].append(n)
    return [(i, j) for j in right for i in where.get(digests[j], ())]


def _components(groups, digests, thumbs, train) -> np.ndarray:
    """A number per item; items of one group, of one file, or (within training) of near-identical pictures share it."""
    parent = np.arange(len(groups))

    def root(n):
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    for keys in (groups, digests):
        seen: dict = {}
        for n, key in enumerate(keys):
            parent[root(n)] = root(seen.setdefault(key, n))
    rows = np.flatnonzero(train)
    for start in range(0, len(rows), 512):
        part = rows[start : start + 512]
        i, j = np.nonzero(thumbs[part] @ thumbs[rows].T > NEAR_DUPLICATE)
        for a, b in zip(part[i], rows[j]):
            if a < b:
                parent[root(b)] = root(a)
    return np.array([root(n) for n in range(len(groups))])
