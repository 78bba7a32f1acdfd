"""What training remembers of each picture: its image vector, which follows the encoder, and its rationale as expert case and as query."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..network.frame import normalise
from ..network.model import CersNet
from ..rationale import TextEmbedder, describe
from ..rationale.writer import VERSION
from . import distributed
from .batches import Batch, Batches, nearest, two_stage
from .config import TrainConfig
from .data import keep, whole
from .datasets import Dataset
from .methods import Outcome
from .splits import Split

NEAR = 12  # neighbours kept of each picture
BATCH = 32


class Narrator:
    """Rationales of training pictures under a mask: their words, and these as vectors."""

    def __init__(self, data: Dataset, embedder: TextEmbedder):
        self.data, self.embedder = data, embedder

    def describe(self, image: np.ndarray, mask: np.ndarray, row: int) -> str:
        plane = self.data.table[row].get("plane") or None
        return describe(image, mask, None, modality=self.data.modality, plane=plane).compact if mask.any() else ""

    def encode(self, texts: list[str]) -> np.ndarray:
        """(n, r), zeros for empty texts."""
        out = np.zeros((len(texts), self.embedder.dimension), np.float32)
        some = [n for n, t in enumerate(texts) if t]
        if some:
            out[some] = self.embedder.encode([texts[n] for n in some])
        return out

    def tell(self, batch: Batch, members: int) -> None:
        """References of made-up tasks get the rationale of what they show, measured once for a group (text embedding is dear).

        Without one, its absence would tell a task from the usual thing, and references with a rationale would be trusted less.
        """
        starts = [n for n in range(0, len(batch.rows), members) if batch.task[n]]
        texts = []
        for start in starts:
            n = start + int(batch.y_task[start : start + members].amax(1).sum((1, 2)).argmax())
            texts.append(self.describe(batch.x[n, 0].numpy(), (batch.y_task[n].amax(0) > 0.5).numpy(), int(batch.rows[n])))
        batch.told = list(zip(starts, self.encode(texts)))


class Memory:
    """Rows are positions in ``train``: the labelled, then the unlabelled pictures.

    vectors (t, d): unit. expert (l, r): rationale under the expert's mask, of the labelled. query (t, r): under the first mask, zeros
    until one was written.

    Args:
        cache: where what is found out is kept; None: nowhere. vectors: of a checkpoint; without them the encoder's first look is taken.
    """

    def __init__(
        self,
        data: Dataset,
        split: Split,
        config: TrainConfig,
        encoder,
        embedder: TextEmbedder | None,
        rank: int,
        world: int,
        cache: Path | None,
        vectors: np.ndarray | None = None,
    ):
        self.data, self.split, self.config, self.embedder, self.rank, self.world = data, split, config, embedder, rank, world
        self.narrator = Narrator(data, embedder) if embedder else None
        self.train = np.concatenate([split.labelled, split.unlabelled if config.method != "supervised" else split.unlabelled[:0]])
        self.place = {int(row): n for n, row in enumerate(self.train)}
        self.vectors = vectors if vectors is not None else self._first(encoder, cache)
        if len(self.vectors) != len(self.train):
            raise ValueError(f"{len(self.vectors)} image vectors, but {len(self.train)} pictures")
        r = embedder.dimension if embedder else 0
        self.expert = (
            self._kept(cache, "expert", [split.labelled, data.column("plane")[split.labelled], VERSION, embedder.hash], self._experts)
            if config.method == "cers"
            else np.zeros((len(split.labelled), r), np.float32)
        )
        self.query = np.zeros((len(self.train), r), np.float32)
        self.renewed = -1  # step of the last refresh
        order = np.random.default_rng(config.split_seed + 1).permutation(len(split.labelled))
        self.shown_as = order if config.evidence == "shuffled_rationale" else np.arange(len(split.labelled))

    def _first(self, encoder, cache: Path | None) -> np.ndarray:
        """Image vectors (t, d) by the weights that the run begins with."""
        c, device = self.config, next(encoder.parameters()).device
        scan = self._kept(
            cache,
            "scan",
            [self.train, c.size, _weights(c.initial), c.seed if c.initial == "random" else 0, c.network],
            lambda: distributed.sharded(self.train, self.rank, self.world, lambda rows: self._scan(encoder, rows, device)),
        )
        return _unit(scan, centre=True)

    def _kept(self, cache: Path | None, kind: str, what: list, make) -> np.ndarray:
        """The array from the cache; all processes take the same way, as ``make`` may need all of them."""
        if cache is None:
            return make()
        record = json.dumps([self.data.key, *(w.tolist() if isinstance(w, np.ndarray) else w for w in what)], sort_keys=True)
        path = Path(cache) / f"{kind}_{hashlib.sha256(record.encode()).hexdigest()[:16]}.npy"
        there = bool(distributed.agree([float(whole(path))])[0])
        if there:
            return np.load(path)
        array = make()
        if not self.rank:
            keep(path, array)
        return array

    @torch.no_grad()
    def _scan(self, encoder, rows: np.ndarray, device) -> np.ndarray:
        """How pictures look and where things lie in them: 4x4 pooled encoder features (n, d)."""
        encoder.eval()
        return self._embedded(rows, device, lambda x: F.adaptive_avg_pool2d(encoder(x)[-2], 4).flatten(1))

    def _embedded(self, rows: np.ndarray, device, embed) -> np.ndarray:
        out = []
        for start in range(0, len(rows), BATCH):
            x = torch.from_numpy(self.data.images[rows[start : start + BATCH]]).float()[:, None] / 255
            x = F.interpolate(x, (self.config.size,) * 2, mode="bilinear", antialias=True, align_corners=False)
            out.append(embed(normalise(x).to(device)).float().cpu().numpy())
        return np.concatenate(out)

    def _experts(self) -> np.ndarray:
        tell, data = self.narrator.describe, self.data
        return self.narrator.encode([tell(data.images[int(r)], data.masks[int(r)] > 0, int(r)) for r in self.split.labelled])

    def due(self, step: int) -> bool:
        return self.renewed < 0 or step - self.renewed >= max(1, self.config.refresh)

    @torch.no_grad()
    def refresh(self, net: CersNet, step: int, device: str) -> None:
        """Renew the image vectors: old and new are both unit vectors, mixed as an EMA of the steps between, and made unit again."""
        new = _unit(
            distributed.sharded(
                self.train, self.rank, self.world, lambda rows: self._embedded(rows, device, lambda x: net.encode(x).pooled)
            )
        )
        momentum = 0.0 if self.renewed < 0 else self.config.pool_momentum ** (step - self.renewed)
        self.vectors = new if momentum == 0 else _unit(momentum * self.vectors + (1 - momentum) * new)
        self.renewed = step

    def arrange(self, batches: Batches) -> None:
        """Who is near whom, by the present vectors and rationales."""
        labelled, unlabelled, kin, n = self.split.labelled, self.split.unlabelled, self.split.kin, len(self.split.labelled)
        keys = self.vectors[:n]
        near = nearest(keys, keys, kin[labelled], kin[labelled], NEAR)
        batches.near = labelled[near]
        if self.config.method == "supervised" or not len(unlabelled):
            return
        rest = self.vectors[n:]
        batches.near_unlabelled = unlabelled[nearest(keys, rest, kin[labelled], kin[unlabelled], NEAR)]
        c = self.config
        chosen = two_stage(
            rest, keys, self.query[n:], self.expert[self.shown_as], kin[unlabelled], kin[labelled], c.k_coarse, min(c.k, NEAR), c.cot_weight
        )
        batches.chosen = labelled[chosen]

    def rationales(self, batch: Batch, dimension: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the labelled as references (n, r) and of all as queries (n + u, r), as the step is to see them."""
        n = len(batch.rows)
        if self.config.method != "cers":
            return torch.zeros(n, dimension), torch.zeros(n + len(batch.unlabelled_rows), dimension)
        at = np.array([self.place[int(r)] for r in batch.rows])
        expert = torch.from_numpy(self.expert[self.shown_as[at]]).masked_fill((batch.removed & ~batch.task)[:, None], 0)
        for start, vector in batch.told:
            expert[start : start + self.config.members] = torch.from_numpy(vector)
        asking = np.concatenate([at, [self.place[int(r)] for r in batch.unlabelled_rows]]).astype(np.int64)
        return expert, torch.from_numpy(self.query[asking]) * batch.keep[:, None]

    def remember(self, batch: Batch, out: Outcome, step: int, groups: list[int]) -> None:
        """Measure the rationale under the first mask of some pictures, as inference does; all processes get to know.

        ``config.rationales`` pictures of every group and step, in turn; of an unlabelled picture under the teacher's mask of the weak view,
        of a labelled one under that of the plain decoder: its expert's would tell the answer.
        """
        c = self.config
        if not c.rationales:
            return
        m, u = c.members, 0 if out.first is None else len(batch.unlabelled_rows) // len(groups)
        rows, texts = [], []
        for at, g in enumerate(groups):
            for turn in range(c.rationales):
                # two of three turns go to the unlabelled
                spot = step * c.rationales + turn + g
                if u and spot % 3 < 2:
                    n = at * u + spot % u
                    row, x, p = batch.unlabelled_rows[n], batch.weak[n, 0], out.first[n]
                else:
                    n = at * m + spot % m
                    row, x, p = batch.rows[n], batch.x[n, 0], out.plain[n].detach().float().sigmoid()
                    if batch.task[n] or batch.removed[n]:
                        row = -1
                rows.append(int(row))
                texts.append(self.narrator.describe(x.float().cpu().numpy(), (p.amax(0) > 0.5).cpu().numpy(), int(row)) if row >= 0 else "")
        found = np.concatenate([np.array(rows, np.float32)[:, None], self.narrator.encode(texts)], 1)
        device = batch.x.device
        found = distributed.gather_plain(torch.from_numpy(found).to(device)).cpu().numpy()
        for record in found:
            if record[0] >= 0:
                self.query[self.place[int(record[0])]] = record[1:]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"vectors": torch.from_numpy(self.vectors), "query": torch.from_numpy(self.query)}

    def record(self) -> dict:
        return {"renewed": self.renewed}

    def restore(self, tensors: dict[str, torch.Tensor], record: dict) -> None:
        self.vectors, self.query, self.renewed = tensors["vectors"].numpy().copy(), tensors["query"].numpy().copy(), record["renewed"]


def _unit(vectors: np.ndarray, centre: bool = False) -> np.ndarray:
    if centre:
        vectors = vectors - vectors.mean(0)
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def _weights(initial: str) -> str:
    """What a run begins with: the name, or the content of a file, which another training may write anew."""
    return initial if initial in ("imagenet", "random") else hashlib.sha256(Path(initial).read_bytes()).hexdigest()
