"""What a step trains on. Every draw comes from a generator named by (seed, step, group, purpose), so that a step is the same however
often a run was stopped and over however many processes it is spread."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ..network.frame import normalise
from . import tasks
from .augment import crop_without_lesion, cut_box, fade, intensities, mirror_patch, slab, strip_skull, thick_slices, transplant, warp
from .config import TrainConfig
from .datasets import Dataset
from .splits import Split

GROUP, PICTURE, TASK, REFERENCE, STRONG, FEATURE, SECOND = range(7)  # purposes of a generator


def generator(config: TrainConfig, step: int, group: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, step, group, purpose])


@dataclass
class Batch:
    """Groups after groups: the labelled pictures of all of them, and the unlabelled ones of all of them.

    rows (n,), unlabelled_rows (u,): of the dataset. x (n, 1, s, s) normalised, y (n, labels, s, s): usual masks; y_task: what D_R is to
    find. weak, strong (u, 1, s, s). For unimatch second (u, 1, s, s), another strong view, and boxes (u, 2, s, s) bool: where strong and
    second are to show the picture ``other`` (u,) in place of their own. masks (n, labels, s, s): of the pictures as references. task (n,)
    bool: of a group whose task is made up. misled (n,) bool: of a group whose references all show the masks of others. removed (n,) bool:
    the lesion was taken away. index, valid (n + u, members): references of each labelled, then unlabelled picture, as numbers into the
    labelled. keep (n + u,) bool: queries that have a rationale. feature: generators for feature noise, one per unlabelled picture. told:
    (first labelled picture of a group whose task is made up, vector (r,) of that task's rationale), where rationales are used.
    """

    rows: np.ndarray
    unlabelled_rows: np.ndarray
    x: torch.Tensor
    y: torch.Tensor
    y_task: torch.Tensor
    masks: torch.Tensor
    task: torch.Tensor
    misled: torch.Tensor
    removed: torch.Tensor
    index: torch.Tensor
    valid: torch.Tensor
    keep: torch.Tensor
    weak: torch.Tensor | None
    strong: torch.Tensor | None
    second: torch.Tensor | None
    boxes: torch.Tensor | None
    other: torch.Tensor | None
    feature: list[np.random.Generator]
    told: list[tuple[int, np.ndarray]] = field(default_factory=list)

    def to(self, device: str) -> Batch:
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device, non_blocking=True))
        return self

    def mixed(self, x: torch.Tensor, view: int) -> torch.Tensor:
        """CutMix (Yun et al., ICCV 2019) of what the unlabelled pictures have, (u, c, s, s): inside the boxes that of the other one."""
        return torch.where(self.boxes[:, view : view + 1], x[self.other], x)


class Batches:
    """Draws batches. ``near``: for each labelled picture its nearest other labelled ones; ``near_unlabelled``: its nearest unlabelled
    ones; ``free``: pictures (n, h, w) without a lesion, or None; ``chosen``: for each unlabelled picture its references, by the two-stage
    selection. Set by the trainer whenever vectors change.
    """

    def __init__(self, data: Dataset, split: Split, config: TrainConfig, free: np.ndarray | None = None):
        self.data, self.split, self.config, self.free = data, split, config, free
        self.near: np.ndarray = np.empty((0, 0), np.int64)
        self.near_unlabelled: np.ndarray = np.empty((0, 0), np.int64)
        self.chosen: np.ndarray = np.empty((0, 0), np.int64)

    def draw(self, step: int, groups: list[int], semi: bool, tasks_share: float, random_references: bool = False) -> Batch:
        """The given groups (whole pairs) of a step. semi: with unlabelled pictures."""
        parts = [self._group(step, g, semi, tasks_share) for g in groups]
        m, u = self.config.members, len(parts[0]["unlabelled"])
        rows = np.concatenate([p["rows"] for p in parts])
        n = len(rows)
        references = [self._references(step, g, at, m, u, parts, random_references) for at, g in enumerate(groups)]
        index = np.concatenate([r[0][:m] for r in references] + [r[0][m:] for r in references])
        valid = np.concatenate([r[1][:m] for r in references] + [r[1][m:] for r in references])
        keep = np.concatenate([r[2][:m] for r in references] + [r[2][m:] for r in references])
        unlabelled = np.concatenate([p["unlabelled"] for p in parts])
        kin = self.split.kin
        asking = np.concatenate([rows, unlabelled])
        valid &= kin[rows][index] != kin[asking][:, None]
        y_task = torch.cat([p["y_task"] for p in parts])
        task = torch.from_numpy(np.repeat([p["task"] for p in parts], m))
        misled = np.repeat([r[4] for r in references], m)
        # without any reference that can be believed the usual thing is to be found, whatever the group's task
        asked = torch.from_numpy(valid[:n].any(1) & ~misled)
        y = torch.cat([p["y"] for p in parts])
        masks = y_task[torch.from_numpy(np.concatenate([r[3] for r in references]))]
        target = torch.where(asked[:, None, None, None], y_task, y)
        join = (lambda name: torch.cat([p[name] for p in parts])) if u else (lambda name: None)
        two = u > 0 and self.config.method == "unimatch"
        return Batch(
            rows,
            unlabelled,
            normalise(torch.cat([p["x"] for p in parts])),
            y,
            target,
            masks,
            task,
            torch.from_numpy(misled),
            torch.from_numpy(np.concatenate([p["removed"] for p in parts])),
            torch.from_numpy(index),
            torch.from_numpy(valid),
            torch.from_numpy(keep),
            join("weak"),
            join("strong"),
            join("second") if two else None,
            join("boxes") if two else None,
            torch.arange(len(parts) * u).reshape(-1, 2, u).flip(1).reshape(-1) if two else None,  # of the partner group
            [f for p in parts for f in p["feature"]],
        )

    def _pick(self, rng, candidates: np.ndarray, count: int) -> np.ndarray:
        """``count`` of the candidates; they repeat where there are fewer."""
        unique = np.unique(candidates)
        return rng.choice(unique, count, replace=len(unique) < count)

    def _group(self, step: int, g: int, semi: bool, tasks_share: float) -> dict:
        c, rng = self.config, generator(self.config, step, g, GROUP)
        labelled, unlabelled = self.split.labelled, self.split.unlabelled
        u = c.unlabelled_members if semi and len(unlabelled) else 0
        others = np.empty(0, np.int64)
        if u and g % 2:  # half of the groups: an unlabelled query and the references selected for it
            query = int(rng.integers(len(unlabelled)))
            rows = self._pick(rng, self.chosen[query], c.members)
            others = np.concatenate([[unlabelled[query]], self._pick(rng, self.near_unlabelled[np.searchsorted(labelled, rows[0])], u)])[:u]
        else:
            anchor = int(rng.integers(len(labelled)))
            rows = np.concatenate([[labelled[anchor]], self._pick(rng, self.near[anchor], c.members - 1)])
            if u:
                others = self._pick(rng, self.near_unlabelled[anchor], u)
        x = torch.from_numpy(self.data.images[np.concatenate([rows, others]).astype(np.int64)]).float()[:, None] / 255
        y = torch.from_numpy(self.data.onehot(rows))
        rng = generator(c, step, g, PICTURE)
        removed = np.zeros(len(rows), bool)
        for n, row in enumerate(rows):
            x[n], y[n], removed[n] = self._picture(x[n], y[n], self.data.table[row], rng)
        y_all = torch.cat([y, y.new_zeros(u, *y.shape[1:])])
        x, y_all = warp(x, y_all, 1, c.size, rng)
        y = y_all[: len(rows)]
        out = {"rows": rows, "unlabelled": others, "removed": removed, "task": False, "feature": []}
        labelled_x, y_task = x[: len(rows)], y
        rng = generator(c, step, g, TASK)
        if rng.random() < tasks_share:
            labelled_x, y_task, y = tasks.make(labelled_x, y, rng)
            out["task"] = True
        out.update(x=intensities(labelled_x, generator(c, step, g, PICTURE + 10)), y=y, y_task=y_task)
        if u:
            rng = generator(c, step, g, STRONG)
            weak = x[len(rows) :]
            strong = intensities(intensities(weak, rng), rng)
            if c.method == "unimatch":
                rng = generator(c, step, g, SECOND)
                out["second"] = normalise(intensities(intensities(weak, rng), rng))
                out["boxes"] = torch.stack([torch.stack([cut_box(c.size, rng), cut_box(c.size, rng)]) for _ in range(u)])
            out.update(
                weak=normalise(weak),
                strong=normalise(strong),
                feature=[np.random.default_rng([c.seed, step, g, FEATURE, n]) for n in range(u)],
            )
        return out

    def _picture(self, x, y, row: dict, rng) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Augmentations of a single stored frame (1, h, w) with masks (labels, h, w); and whether its lesion was taken away."""
        c, removed, draw = self.config, False, rng.random()
        union = y.amax(0, keepdim=True)
        if self.free is not None and rng.random() < c.free:
            x, y, removed = (
                torch.from_numpy(np.array(self.free[rng.integers(len(self.free))])).float()[None] / 255,
                torch.zeros_like(y),
                True,
            )
        elif draw < c.negative:
            way = rng.random()
            if way < 0.4:
                done = crop_without_lesion(x, union, rng)
            elif way < 0.8 and row.get("plane") != "sagittal":
                done = mirror_patch(x, union, rng, remove=True)
            else:
                done = transplant(x, union, rng)
            if done is not None:
                x, y, removed = done[0], torch.zeros_like(y), True
        elif draw < c.negative + c.decoy:
            done = mirror_patch(x, union, rng, remove=False)
            x = x if done is None else done[0]
        elif draw < c.negative + c.decoy + c.faint:
            x = fade(x, union, rng)
        if rng.random() < c.strip:
            state = rng.bit_generator.state
            stripped = []
            for label in y:  # the same cut for every label
                rng.bit_generator.state = state
                out, mask = strip_skull(x, label[None], rng)
                stripped.append(mask)
            x, y = out, torch.cat(stripped)
        if c.slab and rng.random() < c.slab:
            x, y = slab(x, y, rng)
            removed = removed or not bool(y.any())
        if rng.random() < c.thick:
            x = thick_slices(x, rng)
        return x, y, removed

    def _references(self, step: int, g: int, at: int, m: int, u: int, parts: list[dict], random: bool):
        """For the m labelled and u unlabelled of a group: index (m + u, m), valid, keep (m + u,), whose mask each of the m shows (m,), and
        whether all show another's."""
        c, rng = self.config, generator(self.config, step, g, REFERENCE)
        partner = at ^ 1
        index, valid = np.zeros((m + u, m), np.int64), np.zeros((m + u, m), bool)
        task = parts[at]["task"]
        for q in range(m + u):
            draw = rng.random()
            own = rng.permutation([n for n in range(m) if n != q])
            own = np.concatenate([own, [q]]) if q < m else own  # a labelled picture's own place is last and never valid
            foreign = rng.permutation(m)
            count = int(rng.integers(1, (m - 1 if q < m else m) + 1))
            nothing, elsewhere = draw < c.null, c.null <= draw < c.null + c.foreign and not task
            if q >= m:
                nothing, elsewhere = False, False
            index[q] = (partner * m + foreign) if elsewhere or random else (at * m + own)
            valid[q, :count] = not nothing
        keep = rng.random(m + u) >= c.drop_rationale
        shown = at * m + np.arange(m)
        misled = rng.random() < c.swap
        swap = (rng.random(m) < c.swap) | misled
        shown[swap] = partner * m + rng.permutation(m)[: swap.sum()]
        return index, valid, keep, shown, misled


def nearest(queries: np.ndarray, keys: np.ndarray, kin_queries: np.ndarray, kin_keys: np.ndarray, count: int) -> np.ndarray:
    """(q, count) positions of the most similar keys that are not kin; they repeat where there are fewer.

    Where all are kin, the most similar of these, but a query not itself: they may not be its references, but can stand beside it.
    """
    out = np.zeros((len(queries), count), np.int64)
    for n in range(len(queries)):
        score = keys @ queries[n]
        kin = kin_keys == kin_queries[n]
        if not kin.all():
            score[kin] = -9
        elif queries is keys and len(keys) > 1:
            score[n] = -9
        order = np.argsort(-score, kind="stable")[:count]
        out[n] = np.resize(order[score[order] > -9], count)
    return out


def two_stage(queries, keys, texts, text_keys, kin_queries, kin_keys, coarse: int, k: int, weight: float) -> np.ndarray:
    """(q, k) positions of references: the ``coarse`` most similar pictures, of these the best by visual + weight · rationale cosine.

    texts: (q, r) rationale vectors, zeros where there is none: then the picture decides alone.
    """
    first = nearest(queries, keys, kin_queries, kin_keys, min(coarse, len(keys)))
    out = np.empty((len(queries), min(k, first.shape[1])), np.int64)
    for start in range(0, len(queries), 256):  # the vectors of all references of all queries would not fit into memory
        part = slice(start, start + 256)
        score = np.einsum("qd,qkd->qk", queries[part], keys[first[part]])
        score += weight * np.einsum("qr,qkr->qk", texts[part], text_keys[first[part]])
        out[part] = np.take_along_axis(first[part], np.argsort(-score, axis=1, kind="stable")[:, :k], 1)
    return out
