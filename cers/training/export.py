"""From a training run to a model folder: temperature and selection thresholds from validation pictures, weights, configuration.

    python -m cers.training.export --data FOLDER --run RUN --out Resources/model
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ..evaluation.calibration import fit_temperature
from ..inference.model import ModelConfig, save_model
from ..network.frame import normalise
from ..network.model import CersNet, NetworkConfig
from ..rationale import TextEmbedder
from ..rationale.writer import VERSION
from .data import Slices, brisc
from .episodes import cached, rationale_vectors, split_by_group

log = logging.getLogger("cers.training")


@torch.no_grad()
def embed(net: CersNet, images: np.ndarray, size: int, batch: int = 16):
    """Image vectors (n, e) of stored frames, and the encoded batches one by one to ``each``."""
    out = []
    for start in range(0, len(images), batch):
        out.append(net.encode(to_input(images[start : start + batch], size)).pooled.numpy())
    return np.concatenate(out)


def to_input(images: np.ndarray, size: int) -> torch.Tensor:
    """Stored frames (n, h, w) uint8 -> network input (n, 1, size, size)."""
    x = torch.from_numpy(np.array(images)).float()[:, None] / 255
    return normalise(F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False))


@torch.no_grad()
def held_out_logits(net: CersNet, slices: Slices, held, train, vectors, expert, size: int, k: int = 5, pool: int = 800):
    """D_R's logits on validation pictures with retrieved training references, at the stored frame size, and Dice of D_S and D_R."""
    frame = slices.images.shape[1:]
    near = train[np.argsort(-(vectors[held] @ vectors[train].T), axis=1, kind="stable")[:, :k]]
    logits, dice = [], []
    for n, row in enumerate(held):
        encoded = net.encode(to_input(slices.images[[row]], size))
        plain = net.decode_plain(encoded)
        refs = near[n]
        masks = F.interpolate(torch.from_numpy(np.array(slices.masks[refs])).float()[:, None], (size, size), mode="area")
        stock = net.references(net.encode(to_input(slices.images[refs], size)), (masks > 0.5).float(), torch.from_numpy(expert[refs]))
        fused, _ = net.decode_evidence(encoded, plain.sigmoid(), torch.from_numpy(expert[[row]]), stock.gather(torch.arange(k)[None]))
        truth = torch.from_numpy(np.array(slices.masks[row]))[None, None].float()
        up = [F.interpolate(x, frame, mode="bilinear", align_corners=False) for x in (plain, fused)]
        dice.append([float(2 * ((x > 0) * truth).sum() / ((x > 0).sum() + truth.sum() + 1e-6)) for x in up])
        logits.append(up[1].flatten()[::7])
    return torch.cat(logits), np.array(dice)


def export(data: Path, run: Path, out: Path, cache: Path, size: int, name: str) -> ModelConfig:
    """Fit what is left to fit on the validation pictures of a run and write the model folder; returns its configuration."""
    settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
    slices, embedder = brisc(data, "train", cache), TextEmbedder()
    train, held = split_by_group(slices.table, settings["validation"], settings["seed"])
    net = CersNet(NetworkConfig(**settings["network"]))
    state = load_file(run / "model.safetensors")
    net.load_state_dict(state)
    net.eval()
    expert = cached(cache / f"rationale_{slices.key}_{VERSION}_{embedder.hash[:8]}.npy", lambda: rationale_vectors(slices, embedder))
    vectors = embed(net, slices.images, size)
    logits, dice = held_out_logits(net, slices, held, train, vectors, expert, size)
    truth = torch.cat([torch.from_numpy(np.array(slices.masks[row])).float().flatten()[::7] for row in held])
    similar = np.sort(vectors[held] @ vectors[train].T, axis=1)[:, ::-1]
    text = expert[held] @ expert[train].T
    close = np.argsort(-(vectors[held] @ vectors[train].T), axis=1)[:, :50]
    cot = np.take_along_axis(text, close, 1)
    selection = {"visual_threshold": round(float(np.percentile(similar[:, 49], 2)), 3), "visual_high": round(float(np.percentile(similar[:, 0], 75)), 3),
                 "cot_threshold": round(float(np.percentile(cot, 5)), 3)}
    config = ModelConfig(settings["network"], {"1": "tumor"}, size=size, modality="MR", body_site="brain", temperature=fit_temperature(logits, truth),
                         selection=selection, text_hash=embedder.hash, name=name)
    log.info("validation Dice plain %.4f, with evidence %.4f (n=%d); temperature %.3f; selection %s; nearest %s", *dice.mean(0), len(held),
             config.temperature, selection, np.percentile(similar[:, 0], (1, 5, 25, 50, 75, 95)).round(3))
    card = out / "MODEL_CARD.md"
    save_model(out, state, config, card.read_text(encoding="utf-8") if card.exists() else "")
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--size", type=int, default=224, help="side of the input frame in pixels")
    parser.add_argument("--name", default="CERS warm-up, brain tumour on contrast T1 MR")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    export(options.data, options.run, options.out, options.cache, options.size, options.name)


if __name__ == "__main__":
    main()
