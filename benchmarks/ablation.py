"""Does evidence help? Trains methods and kinds of evidence at one budget and measures each on the clean test pictures.

Known classes, few labels (the pool is the labelled training pictures):

    python -m benchmarks.ablation --data DIR --out known --labelled 393 --minutes 5 --seeds 0 1 2 --rows supervised mean_teacher \
        mutual_consistency unimatch cers:none cers:random cers:shuffled_rationale cers:retrieved

A class that is never trained (the pool is its training pictures, all of them and 6, 30, 150; nothing is trained again):

    python -m benchmarks.ablation --data DIR --out unseen --hold-out diagnosis=pituitary --minutes 5 --seeds 0 1 2 \
        --rows supervised cers:retrieved

With ``--grown`` the pool has grown since the training. What is done already is not done again: a run that has finished (link its folder
into another ``--out`` to measure it with another pool), and rows that are in the JSON. References are the same for every network and
for copying: chosen by the 4x4 layout of ImageNet features, none of the query's group nor with a thumbnail correlation above 0.99.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from benchmarks.common import between
from cers.case.io import atomic_path
from cers.cli.output import progress
from cers.errors import CersError
from cers.evaluation.metrics import surface_distances
from cers.evaluation.statistics import interval
from cers.network.evidence import References
from cers.network.model import CersNet, NetworkConfig
from cers.pool.thumbnail import thumbnail
from cers.rationale import TextEmbedder, describe
from cers.rationale.descriptors import measure
from cers.training.batches import two_stage
from cers.training.config import NOT_DECIDING, TrainConfig
from cers.training.datasets import Dataset, open_dataset
from cers.training.runfolder import CONFIG, WEIGHTS
from cers.training.splits import Split, make_split
from cers.training.trainer import train
from cers.training.validation import frames, masks

from .common import machine

K, BATCH, POOLS = 4, 8, (0, 6, 30, 150)
TOLD = {"place told": {"place": 4.0}, "place told, probed": {"place": 4.0, "probe": 8.0}}  # rows with these settings of NetworkConfig
log = logging.getLogger("cers.benchmarks")


class Bench:
    """Test pictures, the pool, references by row, and what is known of each test picture.

    rows: of the test pictures in the dataset. stock: of the pool. picks: {row name: (n, k) positions in ``stock``}.
    """

    def __init__(
        self, data: Dataset, split: Split, held: tuple[str, str] | None, size: int, dev: int = 0, grown: bool = False, device: str = "cpu"
    ):
        self.data, self.size, self.device, test = data, size, device, split.test
        if held:
            column, value = held
            test = test[data.column(column)[test] == value]
            self.stock = np.flatnonzero((data.column("split") == "train") & (data.column(column) == value))
            if dev:  # to choose by: pictures of the pool in place of the test pictures
                test = np.sort(np.random.default_rng(11).choice(self.stock, dev, replace=False))
        else:
            self.stock = np.sort(np.concatenate([split.labelled, split.unlabelled])) if grown else split.labelled
        self.rows, self.held = test, held
        log.info("%d test pictures, a pool of %d", len(test), len(self.stock))
        self.truth = data.onehot(test) > 0
        every = np.concatenate([test, self.stock])
        vectors = self._layout(every)
        small = np.stack([thumbnail(data.images[int(r)]) for r in every])
        n = len(test)
        self.similar, self.alike = vectors[:n] @ vectors[n:].T, small[:n] @ small[n:].T
        self.vectors = vectors
        self.embedder = TextEmbedder()
        self.expert = self._rationales(self.stock, [data.masks[int(r)] > 0 for r in self.stock])
        self.contrast = np.array([self._contrast(r) for r in test])
        self.picks = self._picks()

    def _layout(self, rows: np.ndarray) -> np.ndarray:
        encoder = CersNet(NetworkConfig()).encoder.eval()
        encoder.load_imagenet()
        encoder.to(self.device)
        with torch.no_grad():
            v = np.concatenate(
                [
                    F.adaptive_avg_pool2d(encoder(frames(self.data, rows[s : s + 32], 128, self.device))[-2], 4).flatten(1).cpu().numpy()
                    for s in range(0, len(rows), 32)
                ]
            )
        v -= v.mean(0)
        return v / np.linalg.norm(v, axis=1, keepdims=True)

    def _contrast(self, row: int) -> float:
        found = measure(self.data.images[int(row)], self.data.masks[int(row)] > 0, None, modality="MR")["contrast"]
        return np.nan if found is None else abs(found)

    def _rationales(self, rows, drawn) -> np.ndarray:
        out = np.zeros((len(rows), self.embedder.dimension), np.float32)
        some = [n for n, m in enumerate(drawn) if m.any()]
        texts = [
            describe(
                self.data.images[int(rows[n])], drawn[n], None, modality="MR", plane=self.data.table[int(rows[n])].get("plane")
            ).compact
            for n in some
        ]
        if some:
            out[some] = self.embedder.encode(texts)
        return out

    def _allowed(self, cap: float, pool: np.ndarray | None = None) -> np.ndarray:
        groups = self.data.column("group")
        allowed = (self.alike <= cap) & (groups[self.rows][:, None] != groups[self.stock][None])
        if pool is not None:
            allowed &= np.isin(np.arange(len(self.stock)), pool)[None]
        return allowed

    def _nearest(self, allowed: np.ndarray, k: int = K) -> np.ndarray:
        """(n, k) positions, -1 where there are fewer."""
        score = np.where(allowed, self.similar, -9)
        order = np.argsort(-score, axis=1, kind="stable")[:, :k]
        return np.where(np.take_along_axis(score, order, 1) > -9, order, -1)

    def _picks(self) -> dict[str, np.ndarray]:
        rng, n = np.random.default_rng(5), len(self.stock)
        allowed, drawn = self._allowed(0.99), rng.integers(n, size=(len(self.rows), K))
        picks = {
            "retrieved": self._nearest(allowed),
            "retrieved, cap .9": self._nearest(self._allowed(0.9)),
            "random": np.where(np.take_along_axis(allowed, drawn, 1), drawn, -1),
        }
        if self.held:
            order = np.random.default_rng(7).permutation(n)
            for size in (s for s in POOLS if 0 < s < n):
                for cap, name in ((0.99, ""), (0.9, ", cap .9")):
                    picks[f"pool of {size}{name}"] = self._nearest(self._allowed(cap, order[:size]))
        return picks

    def two_stage(self, query: np.ndarray) -> np.ndarray:
        """References by picture and then rationale, (n, k)."""
        n = len(self.rows)
        kin = np.arange(n)
        out = np.full((n, K), -1)
        for q in range(n):  # each query has its own forbidden ones
            allowed = np.flatnonzero(self._allowed_row(q))
            if len(allowed):
                found = two_stage(
                    self.vectors[q : q + 1],
                    self.vectors[n:][allowed],
                    query[q : q + 1],
                    self.expert[allowed],
                    kin[:1] - 1,
                    np.zeros(len(allowed)),
                    50,
                    K,
                    0.5,
                )[0]
                out[q, : len(found)] = allowed[found]
        return out

    def _allowed_row(self, q: int) -> np.ndarray:
        groups = self.data.column("group")
        return (self.alike[q] <= 0.99) & (groups[self.stock] != groups[self.rows[q]])

    def score(self, drawn: np.ndarray) -> dict[str, list]:
        """Of masks (n, labels, h, w) at the stored frame, mean over labels: Dice, and HD95 in pixels of the frame (None without a mask)."""
        total = drawn.sum((2, 3)) + self.truth.sum((2, 3))
        dice = np.where(total > 0, 2 * (drawn & self.truth).sum((2, 3)) / np.maximum(total, 1), 1.0).mean(1).round(5).tolist()
        return {"dice": dice, "hd95": [self._hd95(*pair) for pair in zip(drawn, self.truth)]}

    @staticmethod
    def _hd95(drawn: np.ndarray, truth: np.ndarray) -> float | None:
        found = [
            max(np.percentile(there, 95), np.percentile(back, 95))
            for there, back in (surface_distances(d, t, (1.0, 1.0)) for d, t in zip(drawn, truth))
            if len(there) and len(back)
        ]
        return round(float(np.mean(found)), 3) if found else None

    def copies(self) -> dict[str, dict[str, list]]:
        """Vote of the references' masks, no network."""
        drawn = self.data.onehot(self.stock) > 0
        out = {}
        for name, picks in self.picks.items():
            if name != "random":
                for k in (1, K):
                    some = (picks[:, :k] >= 0)[:, :, None, None, None]
                    vote = np.stack(
                        [drawn[p].mean(0, where=s) if s.any() else np.zeros(drawn.shape[1:]) for p, s in zip(picks[:, :k], some)]
                    )
                    out[f"copy K={k}, {name}"] = self.score(vote >= 0.5)
        return out


@torch.no_grad()
def measure_net(bench: Bench, net: CersNet, config: TrainConfig) -> dict[str, dict[str, list]]:
    """Scores per test picture, by row: the plain decoder, and D_R with every kind of evidence, where it was trained."""
    net.eval().to(bench.device)
    size, device, n = config.size, bench.device, len(bench.rows)
    side = bench.data.images.shape[1:]

    def up(logits):
        return (F.interpolate(logits, side, mode="bilinear", align_corners=False) > 0).cpu().numpy()

    encoded = [net.encode(frames(bench.data, bench.rows[s : s + BATCH], size, device)) for s in range(0, n, BATCH)]
    plain = [net.decode_plain(e) for e in encoded]
    first = np.concatenate([up(p) for p in plain])
    out = {"plain": bench.score(first)}
    if not config.fused:
        return out
    texts = np.zeros((n, net.config.rationale), np.float32)
    if config.method == "cers":
        texts = bench._rationales(bench.rows, [m.any(0) for m in first])
    query = torch.from_numpy(texts).to(device)

    usual = net.config = replace(net.config, place=0.0, probe=0.0)

    def encode(*every, drawn=lambda rows: masks(bench.data, bench.stock[rows], size, device)) -> tuple[References, np.ndarray]:
        """References that any of ``every`` (n, k) picks, once, with all that rows may want to know of them; and where each is (-1: not)."""
        used = np.unique(np.concatenate([p[p >= 0] for p in every]))
        net.config = replace(usual, **{name: value for settings in TOLD.values() for name, value in settings.items()})
        parts = []
        for s in range(0, len(used), BATCH):
            rows = used[s : s + BATCH]
            keys = net.encode(frames(bench.data, bench.stock[rows], size, device))
            parts.append(net.references(keys, drawn(rows), torch.from_numpy(bench.expert[rows]).to(device)))
        net.config = usual
        where = np.full(len(bench.stock), -1)
        where[used] = np.arange(len(used))
        return References.join(parts), where

    def decode(picks, stock=None, expert=None):
        done = []
        for at, (e, p) in enumerate(zip(encoded, plain)):
            part = slice(at * BATCH, at * BATCH + len(p))
            if picks is None or not (picks[part] >= 0).any():
                done.append(up(net.decode_evidence(e, p.sigmoid(), query[part])[0]))
                continue
            chosen, (kept, where) = picks[part], stock
            valid = torch.from_numpy(chosen >= 0).to(device)
            references = kept.gather(torch.from_numpy(where[np.where(chosen >= 0, chosen, chosen.max())]).to(device))
            if expert is not None:
                references.rationale = torch.from_numpy(expert[chosen]).to(device)
            done.append(up(net.decode_evidence(e, p.sigmoid(), query[part], references, valid)[0]))
        return bench.score(np.concatenate(done))

    out["null"] = decode(None)
    if config.method != "cers":
        return out
    reasoned, retrieved = bench.two_stage(texts), bench.picks["retrieved"]
    own = encode(reasoned, *bench.picks.values())
    for name, picks in bench.picks.items():
        out[name] = decode(picks, own)
    others = np.random.default_rng(3).permutation(len(bench.stock))
    swapped = encode(retrieved, drawn=lambda rows: masks(bench.data, bench.stock[others[rows]], size, device))
    out["two-stage (with CoT)"] = decode(reasoned, own)
    out["shuffled rationale"] = decode(retrieved, own, expert=bench.expert[others])
    out["swapped masks"] = decode(retrieved, swapped)
    out["empty masks"] = decode(retrieved, encode(retrieved, drawn=lambda rows: masks(bench.data, bench.stock[rows], size, device) * 0))
    for more, settings in TOLD.items():
        net.config = replace(usual, **settings)
        for name, picks in bench.picks.items():
            out[f"{name}, {more}"] = decode(picks, own)
        out[f"swapped masks, {more}"] = decode(retrieved, swapped)
    net.config = usual
    return out


def table(result: dict) -> str:
    """Markdown: each row's mean over pictures and seeds with its interval over pictures, and paired differences."""
    collected: dict[tuple[str, str], list] = {("copy", name): [scores] for name, scores in result.get("copy", {}).items()}
    for run in result["runs"].values():
        for name, scores in run["scores"].items():
            collected.setdefault((run["method"], name), []).append(scores)
    mean = {key: np.mean([s["dice"] for s in scores], axis=0) for key, scores in collected.items()}
    distance = {key: np.array([s["hd95"] for s in scores], float) for key, scores in collected.items()}
    contrast = np.array(result["contrast"], float)
    low = contrast <= np.nanpercentile(contrast, 100 / 3)
    lines = [
        "| trained | evidence at test | seeds | Dice | 95 % interval | minus plain net | minus own null | low-contrast third: Dice | "
        "minus own null | HD95, px (masks) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]

    def difference(values, base, part=slice(None)):
        if base is None or base is values:
            return ""
        d = interval((values - base)[part].tolist())
        return f"{100 * d['value']:+.1f}{between(d, '+.1f', 100)}"

    for (method, name), values in sorted(mean.items(), key=lambda item: item[0][0] == "copy"):
        found = interval(values.tolist())
        null, far = mean.get((method, "null")), distance[method, name][:, low]
        cells = [
            method,
            name,
            len(collected[method, name]),
            f"{found['value']:.4f}",
            between(found, ".4f").strip(),
            difference(values, mean.get(("supervised", "plain"))),
            difference(values, null),
            f"{values[low].mean():.4f}",
            difference(values, null, low),
            f"{np.nanmean(far):.1f} ({np.isfinite(far).mean():.0%})" if np.isfinite(far).any() else "",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    about = result["about"]
    head = [
        f"n = {len(result['images'])} test pictures, pool of {result['pool']}, {about['budget']}, side {about['size']}; "
        f"{about['machine']['cpu']}, {about['machine']['threads']} threads. Differences in points of Dice, paired; "
        "intervals by bootstrap over pictures. HD95 is the mean over pictures with a mask, whose share stands beside it: what was missed "
        "has no distance. Pools of fewer cases are one drawing, the same for all seeds.",
        "",
    ]
    return "\n".join([*head, *lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="dataset folder with a test split")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs, ablation.json and ablation.md")
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--rows", nargs="+", default=["supervised", "cers:retrieved"], metavar="METHOD[:EVIDENCE][,NAME=VALUE]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--labelled", type=float, default=1.0, help="share or number of labelled training pictures")
    parser.add_argument("--hold-out", metavar="COLUMN=VALUE", help="a class kept out of training, whose training pictures are the pool")
    parser.add_argument(
        "--dev", type=int, default=0, metavar="N", help="with --hold-out: ask for N pictures of the pool, not the test pictures"
    )
    parser.add_argument(
        "--grown", action="store_true", help="the pool holds the unlabelled pictures, too, with their masks: cases annotated after training"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="further settings of TrainConfig, for instance groups=4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="where to train and measure, for instance cuda")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.threads)
    held = tuple(given.hold_out.split("=", 1)) if given.hold_out else None
    if held and len(held) < 2:
        parser.error(f"--hold-out '{given.hold_out}' is not understood. Write for instance diagnosis=pituitary.")
    try:
        base = {
            "data": str(given.data),
            "labelled": given.labelled,
            "minutes": given.minutes,
            "steps": given.steps,
            "size": given.size,
            "threads": given.threads,
            "device": given.device,
            "validate": 0,
            "exclude": {held[0]: held[1]} if held else {},
            **settings_of(given.set),
        }
        run_all(given, base, held)
    except CersError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def settings_of(texts: list[str]) -> dict:
    """NAME=VALUE; numbers, true, false and tables as JSON, all else as text."""

    def read(value: str):
        try:
            return json.loads(value)
        except ValueError:
            return value

    return {name: read(value) for name, _, value in (s.partition("=") for s in texts)}


def differing(before: dict, now: dict) -> str:
    """What decides a run and is not the same: "steps 250 against 1000"."""
    names = [n for n in {**before, **now} if n not in NOT_DECIDING and before.get(n) != now.get(n)]
    return ", ".join(f"{n} {before.get(n, 'not given')} against {now.get(n, 'not given')}" for n in names)


def run_all(given, base: dict, held) -> None:
    runs = []
    for row in given.rows:
        name, *own = row.split(",")
        method, _, evidence = name.partition(":")
        settings = base | settings_of(own) | {"method": method, "evidence": evidence or "retrieved"}
        runs += [(row, seed, TrainConfig.of(settings | {"seed": seed}, f"the settings of {row}")) for seed in given.seeds]
    runs.sort(key=lambda run: given.seeds.index(run[1]))  # a first table after the first seed
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "ablation.json"
    result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"runs": {}}
    if other := differing(result.get("about", {}).get("settings", base), base):
        raise CersError(f"The rows in '{file}' are of other settings ({other}). Choose another folder for this ablation.")
    first = runs[0][2]
    data = open_dataset(first.data, [], first.frame, first.plane, given.cache)
    split = make_split(data, first)
    bench = Bench(data, split, held, given.size, given.dev, given.grown, given.device)
    images = [data.table[int(r)]["image"] for r in bench.rows]
    if result.get("images", images) != images or result.get("pool", len(bench.stock)) != len(bench.stock):
        raise CersError(f"'{file}' is of other test pictures or another pool. Choose another folder for this ablation.")
    budget = " ".join([f"{given.minutes:g} minutes a run"] * bool(given.minutes) + [f"{given.steps} steps a run"] * bool(given.steps))
    result |= {
        "images": images,
        "pool": len(bench.stock),
        "contrast": [None if np.isnan(c) else round(float(c), 3) for c in bench.contrast],
        "split": {k: v for k, v in split.report.items() if k != "rows"},
        "held_out": held,
        "about": {"budget": budget, "size": given.size, "machine": machine(given.threads), "settings": base},
    }
    result.setdefault("copy", bench.copies())
    for row, seed, config in runs:
        name = f"{row.replace(':', '-').replace(',', '-')}-s{seed}"
        if result["runs"].get(name, {}).get("config") == config.hash:
            log.info("%s is done", name)
            continue
        folder, started = given.out / name, time.time()
        if (folder / WEIGHTS).exists():
            if other := differing(asdict(TrainConfig.read(folder / CONFIG)), asdict(config)):
                raise CersError(f"The run in '{folder}' had other settings ({other}). Choose another folder for this ablation.")
        else:
            with progress() as show:
                if train(config, folder, given.cache, resume=True, progress=show) == "stopped":
                    raise CersError(f"{name} was stopped; run the same command again to go on.")
        settings = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))["network"]
        net = CersNet(NetworkConfig(**settings))
        net.load_state_dict(load_file(folder / WEIGHTS))
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        result["runs"][name] = {
            "method": row,
            "seed": seed,
            "config": config.hash,
            "steps": status["step"],
            "scores": measure_net(bench, net, config),
        }
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
        (given.out / "ablation.md").write_text(table(result), encoding="utf-8")
        log.info(
            "%s: %d steps, %.0f s in all; %s",
            name,
            status["step"],
            time.time() - started,
            {k: round(float(np.mean(v["dice"])), 4) for k, v in result["runs"][name]["scores"].items()},
        )
    print(table(result))


if __name__ == "__main__":
    sys.exit(main())
