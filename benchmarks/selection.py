"""What is the choice of references worth, and what could it be worth at most?

    python -m benchmarks.selection --data BRISC --weights Resources/model --size 224
    python -m benchmarks.selection --data BRISC --weights unseen/cers-retrieved-s0/model --size 128 --hold-out diagnosis=pituitary

One network, one pool of all training pictures, one set of queries: the validation pictures of the default split, or the test pictures of a
class kept out of training. Only the choice of the references differs: by look alone, at random, or by look and then by one of these, as the
query's first mask has it ("first"), the mask that references chosen by look led to ("second"), or its expert mask ("true", a ceiling that
no method can know): the embedded rationale ("words"), or the distance of the measured descriptors ("numbers"). "Mask alike" takes the
references whose masks overlap most with the query's own. Dice at the stored frame; differences to "look" in points, paired, 95 % bootstrap
over pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from benchmarks.common import between, program
from cers.errors import InputError
from cers.evaluation.statistics import interval
from cers.network.model import CersNet, NetworkConfig
from cers.pool.thumbnail import thumbnail
from cers.rationale import TextEmbedder, describe
from cers.rationale.descriptors import DESCRIPTORS, measure
from cers.training.config import TrainConfig
from cers.training.datasets import open_dataset
from cers.training.losses import hard_dice
from cers.training.splits import make_split
from cers.training.validation import frames, masks, pooled

BATCH, COARSE = 8, 50


class Study:
    """Queries and pool as arrays. similar (q, p): cosine of the images, -9 where a case may not serve the query."""

    def __init__(self, net: CersNet, data, queries: np.ndarray, stock: np.ndarray, size: int, k: int, cap: float):
        self.net, self.data, self.queries, self.stock, self.size, self.k = net, data, queries, stock, size, k
        self.embedder = TextEmbedder()
        small = [np.stack([thumbnail(data.images[int(r)]) for r in rows]) for rows in (queries, stock)]
        groups = data.column("group")
        self.barred = (groups[queries][:, None] == groups[stock][None]) | (small[0] @ small[1].T > cap)
        if (short := int(((~self.barred).sum(1) < k).sum())) > 0:
            raise InputError(
                f"{short} of the {len(queries)} queries have fewer than {k} cases that may serve them. Raise --cap or lower --k."
            )
        self.similar = np.where(self.barred, -9, pooled(net, data, queries, size) @ pooled(net, data, stock, size).T)
        self.encoded = [net.encode(frames(data, queries[s : s + BATCH], size)) for s in range(0, len(queries), BATCH)]
        self.plain = [net.decode_plain(e) for e in self.encoded]
        self.truth = torch.from_numpy(data.onehot(queries))
        self.first = np.concatenate([(self._up(p) > 0).numpy() for p in self.plain]).any(1)
        self.words, self.numbers = self.described(stock, [data.masks[int(r)] > 0 for r in stock])
        self.words_first, self.numbers_first = self.described(queries, self.first)
        self.words_true, self.numbers_true = self.described(queries, [data.masks[int(r)] > 0 for r in queries])
        given = ~np.isnan(self.numbers).all(0)  # without a pixel size some descriptors are never given
        self.middle, self.spread = np.zeros(len(given)), np.ones(len(given))
        self.middle[given], self.spread[given] = np.nanmean(self.numbers[:, given], 0), np.nanstd(self.numbers[:, given], 0) + 1e-6

    def _up(self, logits: torch.Tensor) -> torch.Tensor:
        return F.interpolate(logits, self.data.images.shape[1:], mode="bilinear", align_corners=False)

    def described(self, rows, drawn) -> tuple[np.ndarray, np.ndarray]:
        """Rationale vectors (n, r), zeros without a mask, and descriptors (n, d), NaN where not given."""
        numbers, texts = np.full((len(rows), len(DESCRIPTORS)), np.nan), {}
        for n, (row, mask) in enumerate(zip(rows, drawn)):
            if mask.any():
                image = self.data.images[int(row)]
                texts[n] = describe(image, mask, None, modality="MR", plane=self.data.table[int(row)].get("plane")).compact
                found = measure(image, mask, None, modality="MR")
                numbers[n] = [np.nan if found[d] is None or isinstance(found[d], str) else float(found[d]) for d in DESCRIPTORS]
        words = np.zeros((len(rows), self.embedder.dimension), np.float32)
        if texts:
            words[list(texts)] = self.embedder.encode(list(texts.values()))
        return words, numbers

    def near(self, numbers: np.ndarray) -> np.ndarray:
        """(q, p): minus the mean distance of the descriptors that both have, in standard deviations of the pool, each cut at 3."""
        a, b = (np.clip((x - self.middle) / self.spread, -3, 3) for x in (numbers, self.numbers))
        out = np.zeros((len(a), len(b)), np.float32)
        for n, row in enumerate(a):
            both = ~np.isnan(row) & ~np.isnan(b)
            out[n] = -np.where(both, np.abs(row - b), 0).sum(1) / np.maximum(both.sum(1), 1)
        return out

    def best(self, score: np.ndarray, k: int | None = None) -> np.ndarray:
        return np.argsort(-score, 1, kind="stable")[:, : k or self.k]

    def second_stage(self, agreement: np.ndarray, weight: float) -> np.ndarray:
        coarse = self.best(self.similar, COARSE)
        score = np.take_along_axis(np.where(self.barred, -99, self.similar + weight * agreement), coarse, 1)
        return np.take_along_axis(coarse, self.best(score), 1)

    def overlap(self, drawn: np.ndarray) -> np.ndarray:
        """Dice of masks (q, h, w) with those of the pool."""
        ours = torch.from_numpy(np.asarray(drawn, np.float32)).flatten(1)
        theirs = torch.from_numpy(np.stack([self.data.masks[int(r)] > 0 for r in self.stock]).astype(np.float32)).flatten(1)
        return (2 * ours @ theirs.T / (ours.sum(1)[:, None] + theirs.sum(1)[None]).clamp(min=1)).numpy()

    def decode(self, picks: np.ndarray, words: np.ndarray | None = None):
        """Logits (n, labels, h, w) of the queries, batch after batch, with the references ``picks`` (q, k), positions in the pool."""
        words = self.words_first if words is None else words
        for n, start in enumerate(range(0, len(self.queries), BATCH)):
            part = slice(start, start + BATCH)
            unique, index = np.unique(picks[part], return_inverse=True)
            rows = self.stock[unique]
            stock = self.net.references(
                self.net.encode(frames(self.data, rows, self.size)), masks(self.data, rows, self.size), torch.from_numpy(self.words[unique])
            )
            chosen = stock.gather(torch.from_numpy(index.reshape(picks[part].shape)))
            yield self._up(self.net.decode_evidence(self.encoded[n], self.plain[n].sigmoid(), torch.from_numpy(words[part]), chosen)[0])

    def dice(self, picks: np.ndarray, words: np.ndarray | None = None) -> np.ndarray:
        """Of each query."""
        found = torch.cat(list(self.decode(picks, words)))
        return hard_dice(found, self.truth).reshape(len(found), -1).mean(1).numpy()

    def rows(self):
        """(name, picks, query rationales or None) of all that is compared."""
        rng = np.random.default_rng(0)
        yield "look", self.best(self.similar), None
        yield "look, query without rationale", self.best(self.similar), np.zeros_like(self.words_first)
        yield "random", self.best(np.where(self.barred, -9, rng.random(self.similar.shape))), None
        yield f"random of the {COARSE} alike", self.second_stage(rng.random(self.similar.shape), 99), None
        second = (torch.cat(list(self.decode(self.best(self.similar)))) > 0).numpy().any(1)
        words_second, numbers_second = self.described(self.queries, second)
        for weight in (0.5, 2):
            yield f"words, second, {weight}", self.second_stage(words_second @ self.words.T, weight), words_second
            yield f"words, first, {weight}", self.second_stage(self.words_first @ self.words.T, weight), None
            yield f"words, true, {weight}", self.second_stage(self.words_true @ self.words.T, weight), None
        for weight in (0.1, 0.5):
            yield f"numbers, second, {weight}", self.second_stage(self.near(numbers_second), weight), words_second
            yield f"numbers, first, {weight}", self.second_stage(self.near(self.numbers_first), weight), None
            yield f"numbers, true, {weight}", self.second_stage(self.near(self.numbers_true), weight), None
        for weight in (0.2, 0.5, 9):
            yield f"mask alike, second, of the {COARSE} alike, {weight}", self.second_stage(self.overlap(second), weight), words_second
        truth = self.overlap(self.truth.numpy().max(1))
        yield f"mask alike, true, of the {COARSE} alike", self.second_stage(truth, 9), None
        yield "mask alike, true, of all", self.best(np.where(self.barred, -9, truth)), None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.selection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--weights", type=Path, required=True, help="a model folder: config.json and model.safetensors")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--k", type=int, default=5, help="references")
    parser.add_argument("--cap", type=float, default=0.99, help="thumbnail correlation above which a case is barred")
    parser.add_argument("--hold-out", metavar="COLUMN=VALUE")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    net = CersNet(NetworkConfig(**json.loads((given.weights / "config.json").read_text(encoding="utf-8"))["network"]))
    net.load_state_dict(load_file(given.weights / "model.safetensors"))
    config = TrainConfig(data=str(given.data), minutes=1, exclude={})
    data = open_dataset(config.data, [], config.frame, config.plane, given.cache)
    split = make_split(data, config)
    queries, stock = split.validation, split.labelled
    if given.hold_out:
        column, value = given.hold_out.split("=", 1)
        queries = split.test[data.column(column)[split.test] == value]
        stock = np.flatnonzero(data.column("split") == "train")
    with torch.inference_mode():
        study = Study(net.eval(), data, queries, stock, given.size, given.k, given.cap)
        print(f"{len(queries)} queries, a pool of {len(stock)}, {given.k} references, cap {given.cap}")
        result, base = {}, None
        for name, picks, words in study.rows():
            scores = study.dice(picks, words)
            base = scores if base is None else base
            difference = interval((scores - base).tolist())
            result[name] = {"dice": float(scores.mean()), **{f"minus_look_{k}": v for k, v in difference.items()}}
            print(
                f"{name:38s} {scores.mean():.4f}  minus look {100 * difference['value']:+.2f}{between(difference, '+.2f', 100)}",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    program(main)
