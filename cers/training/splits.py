"""Who trains, who validates, and whether anything is on two sides: splits by group, and the leak report."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..case.io import read_volume
from ..errors import InputError, TrainingError
from ..kin import Kin
from ..pool.thumbnail import thumbnail
from ..words import counted, plural
from .config import TrainConfig
from .data import free_mark
from .datasets import OTHER, Dataset, kin_of

NEAR_DUPLICATE = 0.99
SHOWN = 5  # examples of each kind of leak in the report


@dataclass
class Split:
    """Rows of the dataset. kin: (n,) number per picture, equal where two must never be on two sides or refer to each other.

    mark: changes with the pictures and with the side that each of them is on; free: with the volumes of ``lesion_free``.
    """

    labelled: np.ndarray
    unlabelled: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    kin: np.ndarray
    report: dict
    mark: str = ""
    free: str = ""

    @property
    def marks(self) -> dict[str, str]:
        """By which a run knows its pictures again."""
        return {"split": self.mark, "lesion_free": self.free}


def make_split(data: Dataset, config: TrainConfig) -> Split:
    """Split by group, patient and volume, near-duplicates and identical files counting as one group.

    Further unlabelled pictures do not change it: those that are kin of held-out ones are set aside. Only where one shows two groups to be
    kin of which one is held out, the other is held out, too.

    Raises:
        InputError: no picture is left to train with. TrainingError: a leak, unless ``allow_leaks``.
    """
    excluded = _excluded(data, config.exclude)
    given, has_mask = data.column("split"), _drawn(data)
    items, item_of = np.unique(data.places(), return_inverse=True)
    first = np.array([np.flatnonzero(item_of == n)[0] for n in range(len(items))])
    looks, digests = _looks(data, first, item_of), _digests(data, first)
    train_items = (given[first] == "train") & (data.kind != "volumes")  # slices of two patients may well look alike
    keys = _keys(data, item_of, len(items))
    more = given[first] == OTHER
    copies = _copies(data, item_of, looks)
    kin = _components(keys, digests, looks, copies, train_items, more)[item_of]
    own = _components(keys, digests, looks, copies, train_items, more, ~more)[item_of] if more.any() else kin
    rng = np.random.default_rng(config.split_seed)
    side = np.array([""] * len(data), dtype="<U12")
    side[given == "test"], side[given == "validation"] = "test", "validation"
    train = (given == "train") & ~excluded
    joined = np.zeros(len(data), bool)
    if not (given == "validation").any() and config.validation:
        order = rng.permutation(np.unique(own[train]))
        if len(order) == 1:
            raise InputError(
                "All training pictures are of one patient, volume or group, so that none can be held out to see whether the model is "
                "any good. Add cases of other patients, or set validation to 0 to train without."
            )
        held = order[: max(1, round(len(order) * config.validation))]
        chosen = train & np.isin(own, held)
        joined = train & np.isin(kin, kin[chosen]) & ~chosen
        side[chosen | joined] = "validation"
    side[(given == "validation") & excluded] = ""
    train &= side == ""
    order, chosen, seen = rng.permutation(np.unique(own[train])), [], 0
    wanted = config.labelled if config.labelled > 1 else config.labelled * len(np.unique(item_of[train]))
    for k in order:
        if seen >= wanted:
            break
        chosen.append(k)
        seen += len(np.unique(item_of[train & (own == k)]))
    side[train] = "unlabelled"
    side[train & np.isin(own, chosen)] = "labelled"
    further = (given == OTHER) & ~excluded
    held_out = further & np.isin(kin, kin[np.isin(side, ("validation", "test"))])
    side[further & ~held_out] = "unlabelled"
    rows = {name: np.flatnonzero(side == name) for name in ("labelled", "unlabelled", "validation", "test")}
    if not has_mask[given != OTHER].any():
        raise InputError(
            f"All masks are empty in a frame of {config.frame} x {config.frame} pixels, so that there is nothing to learn. Give masks in "
            "which something is drawn, or, if it is only too small for that, a larger frame."
        )
    if not has_mask[rows["labelled"]].any():
        raise InputError("No labelled picture is left to train with. Raise the labelled share, or exclude less.")
    leaks = leak_report(data, side, first, item_of, keys, looks, copies, digests)
    kept = [n for n, row in enumerate(first) if side[row] in ("validation", "test")]
    free = _held_out_free(config.lesion_free, {digests[n] for n in kept}, set().union(*(keys[n] for n in kept)))
    leaks["lesion_free"] = free[:SHOWN]
    if free:
        leaks["found"] = True
        leaks["words"] = ", ".join(
            [*filter(None, [leaks["words"]]), f"{counted(len(free), 'file')} of lesion_free {plural(len(free), 'is', 'are')} held out"]
        )
    by = "group, patient, volume, and identical files"
    if data.kind == "pictures":
        known = "group, patient" if any(data.column("patient")) else "group"
        by = f"{known}, identical files, and thumbnails that correlate above 0.99"
    elif data.kind == "pool":
        by = "group, patient, volume, and thumbnails that correlate above 0.99"
    elif _single(data, item_of).any():
        by = "group, patient, volume, identical files, and thumbnails of single pictures that correlate above 0.99 with any slice"
    names, count = data.column("image"), Counter(data.column("image").tolist())
    # two splits or folders may use one name, and a mean of runs asks by name what they were trained on
    names = np.array([f"{where}/{name}" if count[name] > 1 else name for name, where in zip(names.tolist(), given.tolist())])
    report = {
        "by": by,
        "counts": {k: len(v) for k, v in rows.items()},
        "excluded": int(excluded.sum()),
        "set_aside": [*data.set_aside, *np.unique(data.column("item")[held_out]).tolist()],
        "joined": names[joined].tolist(),
        "too_small": [name for name, row, where in zip(names.tolist(), data.table, side) if row.get("lost") and where in rows],
        "leaks": leaks,
        "rows": {k: names[v].tolist() for k, v in rows.items()},
    }
    mark = hashlib.sha256("\n".join([data.fingerprint(), *map(str, side)]).encode()).hexdigest()[:16]
    split = Split(rows["labelled"], rows["unlabelled"], rows["validation"], rows["test"], kin, report, mark, free_mark(config.lesion_free))
    if leaks["found"] and not config.allow_leaks:
        raise LeakError(
            f"The splits leak: {leaks['words']}. Correct the groups or the splits in the data, or set allow_leaks to train all the same.",
            split,
        )
    return split


def _held_out_free(volumes: list[str], files: set[str], kin: set[str]) -> list[str]:
    """Names of the volumes of ``lesion_free`` that are held out, as a file or by what they are of: their slices would be trained on."""
    out = []
    for path in (Path(volume.partition("=")[0]) for volume in volumes if files):
        same = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in files
        if same or not kin.isdisjoint(kin_of(read_volume(path))):
            out.append(path.name)
    return out


class LeakError(TrainingError):
    """The leak report found something; ``split`` has it."""

    def __init__(self, message: str, split: Split):
        super().__init__(message)
        self.split = split


def leak_report(data: Dataset, side: np.ndarray, first, item_of, keys, looks, copies, digests) -> dict:
    """What training, validation and test pictures share: groups, patients or volumes, byte-identical files, near-identical thumbnails."""
    simple = np.where(np.isin(side, ("labelled", "unlabelled")), "train", side)
    sides = {name: np.unique(item_of[simple == name]) for name in ("train", "validation", "test")}
    names = data.column("item")[first]
    out, words = {}, []
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        left, right = sides[a], sides[b]
        shared = sorted(set().union(*(keys[n] for n in left)) & set().union(*(keys[n] for n in right)))
        same = _same_files(digests, left, right)
        alike = _across(copies, left, right) if data.kind == "volumes" else _alike(looks, left, right)
        found = {"shared_groups": len(shared), "identical_files": len(same), "near_identical_pictures": len(alike)}
        out[f"{a}/{b}"] = {
            **found,
            "examples": {
                "shared_groups": shared[:SHOWN],
                "identical_files": [[str(names[i]), str(names[j])] for i, j in same[:SHOWN]],
                "near_identical_pictures": [[str(names[i]), str(names[j])] for i, j in alike[:SHOWN]],
            },
        }
        words += [f"{count} {kind.replace('_', ' ')} between {a} and {b}" for kind, count in found.items() if count]
    return {"found": bool(words), "words": ", ".join(words), **out}


def _keys(data: Dataset, item_of: np.ndarray, count: int) -> list[set[str]]:
    """Of each item: all that its pictures may share with others."""
    keys: list[set[str]] = [set() for _ in range(count)]
    for row, item in zip(data.table, item_of):
        keys[item].update(row["kin"])
    return keys


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


def _looks(data: Dataset, first: np.ndarray, item_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thumbnails (m, 1024) and the item of each: of each picture, of every case of a pool, or of a volume's middle slice.

    Of pictures there are two each, as a whole and of their frames: a copy may be cut to the body, and where one is stored smaller or
    anew, the frame's edges may be others.
    """
    if data.kind == "pictures":
        rows = np.tile(first + np.bincount(item_of) // 2, 2)
        stored = [data.table[n]["thumbnail"] for n in rows[: len(first)]] + [None] * len(first)
    else:
        rows = first if data.kind != "pool" else np.union1d(first, np.flatnonzero(data.column("split") != OTHER))
        stored = [data.table[n].get("middle", data.table[n].get("thumbnail")) for n in rows]
    thumbs = np.stack([thumbnail(data.images[int(n)]) if t is None else np.array(t, np.float32) for n, t in zip(rows, stored)])
    return thumbs, item_of[rows]


def _single(data: Dataset, item_of: np.ndarray) -> np.ndarray:
    """(items,) bool: single pictures in a folder that holds volumes, too."""
    return (np.bincount(item_of) == 1) & (data.kind == "volumes")


def _copies(data: Dataset, item_of: np.ndarray, looks) -> list[tuple[int, int]]:
    """Pairs of items near-identical in any slice: a single picture beside volumes and whatever it is like, or a labelled picture or case
    of a pool and an unlabelled volume; of two volumes, a labelled and an unlabelled one, in the middle slice of either."""
    further = data.column("split") == OTHER
    labelled, more = np.unique(item_of[~further]), np.flatnonzero(np.bincount(item_of[further]) > 1)
    single = np.flatnonzero(_single(data, item_of))
    if not (len(single) or len(more)):
        return []
    slices = np.stack([row["thumbnail"] for row in data.table]), item_of
    if data.kind == "volumes":
        found = _alike(slices, single, np.arange(item_of.max() + 1))
        found += [*_alike(looks, labelled, more, slices), *_alike(looks, more, labelled, slices)]
    else:
        found = _alike(slices, labelled, more)
    return [(a, b) for a, b in found if a != b]


def _digests(data: Dataset, first: np.ndarray) -> list[str]:
    out = []
    for n in first:
        row = data.table[n]
        out.append(row.get("digest") or hashlib.sha256(Path(row["file"]).read_bytes()).hexdigest())
    return out


def _alike(looks, left, right, beside=None) -> list[tuple[int, int]]:
    """Pairs of items of which any pictures are near-identical. beside: other pictures of those on the right."""
    (thumbs, item), (others, other) = looks, beside or looks
    here, there = np.flatnonzero(np.isin(item, left)), np.flatnonzero(np.isin(other, right))
    found: set[tuple[int, int]] = set()
    others = others[there].T
    for start in range(0, len(here), 512):
        part = here[start : start + 512]
        i, j = np.nonzero(thumbs[part] @ others > NEAR_DUPLICATE)
        found.update(zip(item[part][i].tolist(), other[there][j].tolist()))
    return sorted(found)


def _across(copies, left, right) -> list[tuple[int, int]]:
    left, right = set(left.tolist()), set(right.tolist())
    return sorted({(a, b) for pair in copies for a, b in (pair, pair[::-1]) if a in left and b in right})


def _same_files(digests, left, right) -> list[tuple[int, int]]:
    where = defaultdict(list)
    for n in left:
        where[digests[n]].append(n)
    return [(i, j) for j in right for i in where.get(digests[j], ())]


def _components(keys, digests, looks, copies, train, further, among=None) -> np.ndarray:
    """A number per item; items with a key in common, of one file, or of near-identical pictures share it. Of pictures that are neither
    train nor further only those near-identical to a further one, or ``copies``, do. among: the items that count, all by default."""
    kin = Kin()
    among = np.ones(len(keys), bool) if among is None else among
    seen: dict = {}
    for n in np.flatnonzero(among):
        for key in (*keys[n], ("file", digests[n])):
            kin.join(seen.setdefault(key, n), n)
    items, more, rest = (np.flatnonzero(chosen & among) for chosen in (train | further, further, ~(train | further)))
    for a, b in [*((a, b) for a, b in _alike(looks, items, items) if a < b), *_alike(looks, more, rest), *copies]:
        if among[a] and among[b]:
            kin.join(a, b)
    return np.array([kin.root(n) for n in range(len(keys))])
