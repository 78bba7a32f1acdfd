"""Stage 1, warm-up: both decoders supervised, image and rationale aligned, references drawn from the training pictures.

    python -m cers.training.warmup --data FOLDER --out RUN --minutes 60
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ..network.frame import normalise
from ..network.model import CersNet, NetworkConfig
from ..rationale import TextEmbedder
from ..rationale.writer import VERSION
from .augment import crop_without_lesion, intensities, mirror_patch, strip_skull, thick_slices, transplant, warp
from .data import Slices, brisc, lesion_free
from .episodes import Episodes, cached, neighbours, rationale_vectors, scan_vectors, split_by_group
from .losses import dice_bce, hard_dice
from .texts import clinical_text

log = logging.getLogger("cers.training")


@dataclass
class WarmupConfig:
    """Settings of a warm-up run; written to the run folder as they are.

    minutes: budget; the learning rate follows its share used up. sizes: (share of the budget until which, side in pixels).
    negative: share of pictures to show without their lesion; decoy: whose other region is replaced, the lesion staying.
    lesion_free: volumes, as `lesion_free` takes them; free: share of pictures replaced by one of their slices. thick: share blurred along
    one axis, as a reformat of thick slices is. swap: share of references that get another picture's mask. requery: share of the budget after which the queries' rationales
    are written from D_S's own masks, as at inference, instead of the experts'. start: weights to begin from instead of ImageNet's.
    """

    minutes: float = 60.0
    sizes: tuple = ((0.45, 144), (1.0, 192))
    groups: int = 4
    members: int = 5
    lr: float = 1e-3
    weight_decay: float = 1e-2
    align: float = 0.1
    negative: float = 0.3
    decoy: float = 0.12
    strip: float = 0.2
    lesion_free: tuple = ()
    free: float = 0.06
    thick: float = 0.15
    swap: float = 0.08
    text: float = 0.15
    requery: float = 0.6
    average: float = 0.995
    validation: float = 0.05
    seed: int = 0
    threads: int = 2
    bfloat16: bool = False
    limit: int = 0
    start: str | None = None


class Warmup:
    """One run. ``step`` trains on one batch; ``run`` goes on until the budget is used."""

    def __init__(self, slices: Slices, config: WarmupConfig, folder: Path, cache: Path, embedder: TextEmbedder | None = None,
                 network: NetworkConfig | None = None):
        self.config, self.folder = config, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.rng = np.random.default_rng(config.seed)
        self.slices, self.embedder = slices, embedder or TextEmbedder()
        self.train, self.held = split_by_group(slices.table, config.validation, config.seed)
        self.net = CersNet(network or NetworkConfig(labels=["tumor"])).to(memory_format=torch.channels_last)
        if config.start:
            self.net.load_state_dict(load_file(config.start))
        elif self.net.config.encoder == {"kind": "efficientnet-lite0"}:
            self.net.encoder.load_imagenet()
        self.free = lesion_free(list(config.lesion_free), cache) if config.lesion_free else None
        key = slices.key
        self.images, self.masks = np.asarray(slices.images), np.asarray(slices.masks)
        vectors = cached(cache / f"scan_{key}.npy", lambda: scan_vectors(self.net.encoder, self.images))
        self.near = neighbours(vectors[self.train], self.images[self.train], slices.column("group")[self.train])
        self.held_near = self._held_neighbours(vectors)
        self.expert = torch.from_numpy(cached(cache / f"rationale_{key}_{VERSION}_{self.embedder.hash[:8]}.npy", lambda: rationale_vectors(slices, self.embedder)))
        self.query = self.expert.clone()
        self.requeried = False
        self.episodes = Episodes(self.train, self.near, self.rng, config.groups, config.members, related=slices.column("group")[self.train])
        self.average = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.net.parameters(), config.lr, weight_decay=config.weight_decay)
        self.tokens = {t: torch.from_numpy(self.embedder.encode_tokens(t)) for t in self._texts()}
        self.steps = 0
        (self.folder / "config.json").write_text(json.dumps({**asdict(config), "network": self.net.config.to_dict()}, indent=1))
        log.info("training %d, validation %d pictures", len(self.train), len(self.held))

    def _held_neighbours(self, vectors, count: int = 5) -> np.ndarray:
        score = vectors[self.held] @ vectors[self.train].T
        return self.train[np.argsort(-score, axis=1, kind="stable")[:, :count]]

    def _texts(self) -> list[str]:
        return sorted({clinical_text(row, form) for row in self.slices.table for form in range(3)})

    def batch(self, size: int):
        """images (n, 1, size, size), masks, rows: one training batch after augmentation."""
        c, rng = self.config, self.rng
        rows = self.train[self.episodes.draw()]
        x = torch.from_numpy(self.images[rows]).float()[:, None] / 255
        y = torch.from_numpy(self.masks[rows]).float()[:, None]
        removed = np.zeros(len(rows), bool)
        for n, row in enumerate(rows):
            done, draw = None, rng.random()
            if self.free is not None and rng.random() < c.free:
                x[n, 0] = torch.from_numpy(self.free[rng.integers(len(self.free))]).float() / 255
                y[n] = 0
                removed[n] = True
            elif draw < c.negative:
                done = self._without_lesion(x[n], y[n], self.slices.table[row].get("plane"))
                removed[n] = done is not None
            elif draw < c.negative + c.decoy:
                done = mirror_patch(x[n], y[n], rng, remove=False)
            if done is not None:
                x[n], y[n] = done
            if rng.random() < c.strip:
                x[n], y[n] = strip_skull(x[n], y[n], rng)
            if rng.random() < c.thick:
                x[n] = thick_slices(x[n], rng)
        x, y = warp(x, y, c.groups, size, rng)
        return normalise(intensities(x, rng)), y, rows, removed

    def _without_lesion(self, image, mask, plane):
        """One of three ways to show no lesion; mirroring needs a plane with two sides."""
        way = self.rng.random()
        if way < 0.4:
            return crop_without_lesion(image, mask, self.rng)
        if way < 0.8 and plane != "sagittal":
            return mirror_patch(image, mask, self.rng, remove=True)
        return transplant(image, mask, self.rng)

    def step(self, size: int, lr: float) -> dict:
        """One update; returns losses and training Dice of both decoders."""
        c, rng = self.config, self.rng
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        x, y, rows, removed = self.batch(size)
        n = len(rows)
        expert, query = self.expert[rows].clone(), self.query[rows].clone()
        gone = torch.from_numpy(removed)
        expert[gone] = 0
        # half of the lesion-free keep one, as a false finding of pass 1 would have: a rationale must not prove a lesion
        query[torch.from_numpy(rng.random(n) < np.where(removed, 0.5, 0.3))] = 0
        tokens, present = self._batch_tokens(rows)
        swap = torch.from_numpy(rng.random(n) < c.swap)
        reference_masks = torch.where(swap[:, None, None, None], y[torch.from_numpy(rng.permutation(n))], y)
        index, valid = self.episodes.references()
        self.net.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=c.bfloat16):
            encoded = self.net.encode(x.contiguous(memory_format=torch.channels_last), tokens, present)
            plain = self.net.decode_plain(encoded)
            stock = self.net.references(encoded, reference_masks, expert)
            fused, _ = self.net.decode_evidence(encoded, plain.float().sigmoid(), query, stock.gather(index), valid)
            shown = torch.from_numpy(np.flatnonzero(~removed))
            align = self.net.align(encoded.rows(shown), self.expert[rows][shown])
        supervised = dice_bce(plain.float(), y) + dice_bce(fused.float(), y)
        loss = supervised + c.align * align.float()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimizer.step()
        self.steps += 1
        decay = min(c.average, (1 + self.steps) / (20 + self.steps))
        with torch.no_grad():
            for k, v in self.net.state_dict().items():
                a = self.average[k]
                a.lerp_(v, 1 - decay) if a.is_floating_point() else a.copy_(v)
        return {"loss": loss.item(), "align": align.item(), "plain": hard_dice(plain, y).mean().item(), "fused": hard_dice(fused, y).mean().item()}

    def _batch_tokens(self, rows):
        some = self.rng.random(len(rows)) < self.config.text
        forms = self.rng.integers(3, size=len(rows))
        texts = [self.tokens[clinical_text(self.slices.table[r], f)] if s else None for r, f, s in zip(rows, forms, some)]
        length = max([1, *(len(t) for t in texts if t is not None)])
        tokens, present = torch.zeros(len(rows), length, self.embedder.dimension), torch.zeros(len(rows), length, dtype=torch.bool)
        for n, t in enumerate(texts):
            if t is not None:
                tokens[n, : len(t)], present[n, : len(t)] = t, True
        return tokens, present

    def averaged(self) -> CersNet:
        """A copy of the network with the running mean of the weights, for evaluation."""
        net = CersNet(self.net.config)
        net.load_state_dict(self.average)
        return net.eval()

    @torch.no_grad()
    def plain_masks(self, net: CersNet, rows, size: int, batch: int = 20) -> np.ndarray:
        """D_S's masks (n, h, w) bool at the size of the stored frames."""
        out = []
        for start in range(0, len(rows), batch):
            x = torch.from_numpy(self.images[rows[start : start + batch]]).float()[:, None] / 255
            x = normalise(F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False))
            logits = net.decode_plain(net.encode(x))
            out.append((F.interpolate(logits, self.images.shape[1:], mode="bilinear", align_corners=False)[:, 0] > 0).numpy())
        return np.concatenate(out)

    def requery(self, size: int) -> None:
        """Write the queries' rationales from the plain decoder's masks, as inference does."""
        started = time.time()
        masks = self.plain_masks(self.averaged(), np.arange(len(self.slices)), size)
        self.query = torch.from_numpy(rationale_vectors(self.slices, self.embedder, masks))
        self.requeried = True
        log.info("query rationales rewritten from pass-1 masks in %.0f s", time.time() - started)

    @torch.no_grad()
    def validate(self, size: int, limit: int = 200) -> dict:
        """Mean Dice on validation pictures: plain, null evidence, retrieved references from the training pictures, and swapped masks."""
        net = self.averaged()
        if not len(self.held):
            return {}
        scores = {"plain": [], "null": [], "retrieved": [], "swapped": []}
        for n in range(0, min(limit, len(self.held)), 5):
            rows = self.held[n : n + 5]
            refs = self.held_near[n : n + 5]

            def load(r):
                x = torch.from_numpy(self.images[r]).float()[:, None] / 255
                y = torch.from_numpy(self.masks[r]).float()[:, None]
                return normalise(F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)), (F.interpolate(y, (size, size), mode="area") > 0.5).float()

            x, y = load(rows)
            encoded = net.encode(x)
            plain = net.decode_plain(encoded)
            query = self.query[rows]
            xr, yr = load(refs.ravel())
            er = net.encode(xr)
            index = torch.arange(refs.size).reshape(refs.shape)
            stock = net.references(er, yr, self.expert[refs.ravel()])
            wrong = net.references(er, yr.roll(refs.shape[1] + 2, 0), self.expert[refs.ravel()])
            scores["plain"].append(hard_dice(plain, y))
            scores["null"].append(hard_dice(net.decode_evidence(encoded, plain.sigmoid(), query)[0], y))
            scores["retrieved"].append(hard_dice(net.decode_evidence(encoded, plain.sigmoid(), query, stock.gather(index))[0], y))
            scores["swapped"].append(hard_dice(net.decode_evidence(encoded, plain.sigmoid(), query, wrong.gather(index))[0], y))
        return {k: float(torch.cat(v).mean()) for k, v in scores.items()}

    def save(self, name: str = "model.safetensors") -> Path:
        """Averaged weights as safetensors, written atomically."""
        path = self.folder / name
        temporary = path.with_suffix(".tmp")
        save_file({k: v.contiguous() for k, v in self.average.items()}, str(temporary))
        os.replace(temporary, path)
        return path

    def run(self) -> None:
        """Train until the budget is used; a line of metrics every 50 steps, validation and a checkpoint every tenth of the budget."""
        c = self.config
        started, marks, recent = time.time(), 0, []
        while True:
            share = max((time.time() - started) / (60 * c.minutes), self.steps / c.limit if c.limit else 0)
            if share >= 1:
                break
            size = next(s for until, s in c.sizes if share < until)
            if not self.requeried and share >= c.requery:
                self.requery(size)
            lr = c.lr * min(1.0, (self.steps + 1) / 100) * 0.5 * (1 + np.cos(np.pi * share))
            recent.append(self.step(size, lr))
            if self.steps % 50 == 0:
                mean = {k: round(float(np.mean([r[k] for r in recent])), 4) for k in recent[0]}
                log.info("step %d share %.3f size %d images/s %.1f %s", self.steps, share, size, self.steps * 20 / (time.time() - started), mean)
                recent = []
            if share * 10 >= marks + 1:
                marks = int(share * 10)
                metrics = {"step": self.steps, "share": round(share, 3), "size": size, **self.validate(size, 100)}
                with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as f:
                    f.write(json.dumps(metrics) + "\n")
                log.info("validation %s", metrics)
                self.save()
        self.save()
        log.info("done after %d steps, %s", self.steps, self.validate(c.sizes[-1][1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder in BRISC layout: images/, masks/, cases.csv")
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=0, help="stop after so many steps, if that comes first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--start", help="weights (safetensors) of an earlier run to begin from")
    parser.add_argument("--lesion-free", nargs="*", default=[], help="MR volumes of heads: IMAGE without a lesion, or IMAGE=MASK, whose slices off the mask are used")
    parser.add_argument("--bfloat16", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    config = WarmupConfig(minutes=options.minutes, seed=options.seed, threads=options.threads, bfloat16=options.bfloat16, limit=options.steps,
                          lr=options.lr, start=options.start, lesion_free=tuple(options.lesion_free))
    Warmup(brisc(options.data, "train", options.cache), config, options.out, options.cache).run()


if __name__ == "__main__":
    main()
