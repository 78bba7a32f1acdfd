"""Bring the pool's vectors up to date with a model, and encode pool cases as references."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch

from ..case import Case
from ..case.terminology import same_meaning
from ..errors import Cancelled, PoolError
from ..network.evidence import References
from ..pool import Pool
from ..pool.records import modality_code
from ..rationale import TextEmbedder
from ..words import counted
from .model import Model
from .planes import to_frames

BATCH = 8


def case_frame(case: Case, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (1, 1, size, size), normalised, and masks (1, labels, size, size) of a case in the model's frame.

    Labels are matched by meaning; where the case has none of the model's names, all of its lesions count as the model's first label.
    """
    # an unknown modality is taken for the model's own, as for a query
    frame, image = to_frames(case.image[None], case.spacing, model.config.size, modality_code(case.modality or model.config.modality))
    known = [[value for value, name in case.labels.items() if same_meaning(name, label)] for label in model.labels.values()]
    if not any(known):
        masks = [case.mask > 0] + [np.zeros_like(case.mask, bool)] * (len(known) - 1)
    else:
        masks = [np.isin(case.mask, values) for values in known]
    return image, frame.crop(np.stack(masks).astype(np.float32)).transpose(0, 1)


def embed_pool(model: Model, pool: Pool, embedder: TextEmbedder, progress=None, cancel=None) -> int:
    """Compute the vectors that are missing or stale for this model; returns how many. What is done stays if cancelled.

    Raises:
        PoolError: vectors are missing and the pool is read-only. Cancelled.
    """
    stale, texts = pool.stale("image", model.hash), pool.stale("rationale", embedder.hash)
    total = len(stale) + len(texts)
    if total and pool.read_only:
        raise PoolError(
            f"Vectors of this model are missing or outdated for {counted(max(len(stale), len(texts)))} of the pool, and the pool was "
            "opened read-only. Open it once where it can be written."
        )
    done = 0

    def step(n: int) -> None:
        nonlocal done
        done += n
        if progress:
            progress(done / total, f"Embedding the pool: {done} of {total}")
        if cancel and cancel():
            raise Cancelled()

    for start in range(0, len(stale), BATCH):
        ids = stale[start : start + BATCH]
        frames = torch.cat([case_frame(pool.get(i), model)[0] for i in ids]).to(model.device)
        with torch.inference_mode():
            vectors = model.net.encode(frames).pooled.float().cpu().numpy()
        pool.set_vectors("image", model.hash, ids, vectors)
        step(len(ids))
    for start in range(0, len(texts), 64):
        current = pool.rationales(texts[start : start + 64])
        ids = list(current)
        vectors = embedder.encode([current[i][1].compact for i in ids])
        pool.set_vectors("rationale", embedder.hash, ids, vectors, versions={i: current[i][0] for i in ids})
        step(len(ids))
    return total


class ReferenceStore:
    """Pool cases encoded as references, kept by id; the least recently used go first."""

    def __init__(self, model: Model, pool: Pool, embedder: TextEmbedder, kept: int = 512):
        self.model, self.pool, self.embedder, self.kept = model, pool, embedder, kept
        self._rows: OrderedDict[tuple, References] = OrderedDict()

    def rows(self, ids: list[str], check: Callable[[], None] | None = None) -> dict[str, References]:
        """Reference records by id. A case whose rationale, labels or modality changed since is encoded anew.

        Args:
            check: called between batches; may raise to stop.
        """
        texts = {i: rationale.compact for i, (_, rationale) in self.pool.rationales(ids).items()}
        readings = self.pool.readings(ids)
        keys = {i: (i, texts.get(i, ""), readings.get(i)) for i in dict.fromkeys(ids)}
        missing = [i for i, key in keys.items() if key not in self._rows]
        for start in range(0, len(missing), BATCH):
            if check:
                check()
            self._encode(missing[start : start + BATCH], keys)
        for key in keys.values():
            self._rows.move_to_end(key)
        out = {i: self._rows[key] for i, key in keys.items()}
        while len(self._rows) > max(self.kept, len(out)):
            self._rows.popitem(last=False)
        return out

    def foreign(self, ids: list[str]) -> list[str]:
        """Names of the labels of those cases that show only what the model was not trained for, each once, in order."""
        known = list(self.model.labels.values())
        readings = self.pool.readings(ids)
        names = [list(json.loads(readings[i][0]).values()) for i in ids if i in readings]
        return list(dict.fromkeys(name for own in names if not any(same_meaning(a, b) for a in own for b in known) for name in own))

    def _encode(self, ids: list[str], keys: dict[str, tuple]) -> None:
        frames = [case_frame(self.pool.get(i), self.model) for i in ids]
        rationale = np.zeros((len(ids), self.model.net.config.rationale), np.float32)
        # of the very text in the key: the pool's vector may be of an older version, and what is kept here must not be
        some = [n for n, i in enumerate(ids) if keys[i][1]]
        if some:
            rationale[some] = self.embedder.encode([keys[ids[n]][1] for n in some])
        device = self.model.device
        with torch.inference_mode():
            encoded = self.model.net.encode(torch.cat([f[0] for f in frames]).to(device))
            stock = self.model.net.references(encoded, torch.cat([f[1] for f in frames]).to(device), torch.from_numpy(rationale).to(device))
        for n, i in enumerate(ids):
            self._rows[keys[i]] = stock.row(n)
