"""The loss of one step, by method. All methods share encoder, decoders, batches, augmentation and supervised loss.

mean_teacher: Tarvainen & Valpola, NeurIPS 2017. mutual_consistency: MC-Net, Wu et al., MedIA 2022, with D_S and D_R as the two
decoders. unimatch: Yang et al., CVPR 2023, in its medical form (Dice of hard labels; two strong views with CutMix, one of noisy
features). cers: D_S and D_R teach each other across views, D_R with references.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..network.model import CersNet, Encoded
from .batches import Batch
from .config import TrainConfig
from .losses import confident, consistency, dice_bce, pseudo_label, sharpen


@dataclass
class Step:
    """What a loss needs besides the batch. expert (n, r): rationales of the labelled as references; query (n + u, r): of all as queries.

    weight: of the unsupervised terms now. tokens, present: clinical texts of the labelled, or None.
    """

    net: CersNet
    teacher: CersNet
    config: TrainConfig
    weight: float
    expert: torch.Tensor
    query: torch.Tensor
    tokens: torch.Tensor | None = None
    present: torch.Tensor | None = None


@dataclass
class Outcome:
    """loss terms by name (their sum is minimised), logits of the labelled for the curve, and the first masks of the unlabelled."""

    terms: dict[str, torch.Tensor]
    plain: torch.Tensor
    fused: torch.Tensor | None
    encoded: Encoded
    first: torch.Tensor | None = None


def supervised(step: Step, b: Batch) -> Outcome:
    """Both decoders (D_R only where the method has it) on the labelled pictures; the only loss of stage 1."""
    encoded = step.net.encode(b.x, step.tokens, step.present)
    return _supervised(step, b, encoded, len(b.rows))


def _supervised(step: Step, b: Batch, encoded: Encoded, n: int) -> Outcome:
    rows = slice(0, n)
    labelled = encoded.rows(rows) if n < len(encoded.pooled) else encoded
    plain = step.net.decode_plain(labelled)
    terms = {"plain": dice_bce(plain.float(), b.y)}
    fused = None
    if step.config.fused:
        fused = _evidence(step, step.net, labelled, plain.float().sigmoid(), b, labelled, rows)
        terms["fused"] = dice_bce(fused.float(), b.y_task if step.config.referring else b.y)
    return Outcome(terms, plain, fused, labelled)


def _evidence(step: Step, net: CersNet, queries: Encoded, first: torch.Tensor, b: Batch, labelled: Encoded, rows: slice) -> torch.Tensor:
    """D_R's logits of queries; their references are the labelled pictures of the batch."""
    query = step.query[rows]
    if not step.config.referring:
        return net.decode_evidence(queries, first, query)[0]
    stock = net.references(labelled, b.masks, step.expert)
    return net.decode_evidence(queries, first, query, stock.gather(b.index[rows]), b.valid[rows])[0]


def semi(step: Step, b: Batch) -> Outcome:
    """Stage 2: the supervised loss and the method's own on the unlabelled pictures."""
    return {"mean_teacher": _mean_teacher, "mutual_consistency": _mutual, "unimatch": _unimatch, "cers": _cers}[step.config.method](step, b)


def _both(step: Step, b: Batch) -> tuple[Outcome, Encoded]:
    """One pass over labelled and strong views together: the supervised outcome, and the unlabelled as encoded."""
    n, tokens, present = len(b.rows), step.tokens, step.present
    if tokens is not None:  # the unlabelled have no text
        blank = len(b.strong)
        tokens = torch.cat([tokens, tokens.new_zeros(blank, *tokens.shape[1:])])
        present = torch.cat([present, present.new_zeros(blank, present.shape[1])])
    encoded = step.net.encode(torch.cat([b.x, b.strong]), tokens, present)
    return _supervised(step, b, encoded, n), encoded.rows(slice(n, None))


def _mean_teacher(step: Step, b: Batch) -> Outcome:
    with torch.no_grad():
        first = step.teacher.decode_plain(step.teacher.encode(b.weak)).float().sigmoid()
    out, strong = _both(step, b)
    out.terms["consistency"] = step.weight * consistency(step.net.decode_plain(strong).float().sigmoid(), first)
    out.first = first
    return out


def _mutual(step: Step, b: Batch) -> Outcome:
    out, strong = _both(step, b)
    plain = step.net.decode_plain(strong).float().sigmoid()
    fused = _evidence(step, step.net, strong, plain, b, out.encoded, slice(len(b.rows), None)).float().sigmoid()
    t = step.config.temperature
    out.terms["consistency"] = step.weight * (consistency(fused, sharpen(plain, t)) + consistency(plain, sharpen(fused, t))) / 2
    out.first = plain.detach()
    return out


def _unimatch(step: Step, b: Batch) -> Outcome:
    n, u = len(b.rows), len(b.weak)
    tokens = present = None
    if step.tokens is not None:
        tokens = torch.cat([step.tokens, step.tokens.new_zeros(3 * u, *step.tokens.shape[1:])])
        present = torch.cat([step.present, step.present.new_zeros(3 * u, step.present.shape[1])])
    encoded = step.net.encode(torch.cat([b.x, b.weak, b.mixed(b.strong, 0), b.mixed(b.second, 1)]), tokens, present)
    out = _supervised(step, b, encoded, n)
    weak, strong, second = (encoded.rows(slice(n + k * u, n + (k + 1) * u)) for k in range(3))
    decode = step.net.decode_plain
    first = decode(weak).float().sigmoid().detach()
    sure = confident(first, step.config.threshold)
    out.terms["consistency"] = step.weight * (
        pseudo_label(decode(strong), b.mixed(first, 0), b.mixed(sure, 0)) / 4
        + pseudo_label(decode(second), b.mixed(first, 1), b.mixed(sure, 1)) / 4
        + pseudo_label(decode(_drop_channels(weak, b)), first, sure) / 2
    )
    out.first = first
    return out


def _drop_channels(encoded: Encoded, b: Batch) -> Encoded:
    """Feature perturbation: half of the channels of every map blanked, drawn for each picture."""

    def drop(x: torch.Tensor) -> torch.Tensor:
        keep = torch.stack([torch.from_numpy((rng.random(x.shape[1]) < 0.5).astype("float32")) for rng in b.feature])
        return x * 2 * keep.to(x.device, x.dtype)[:, :, None, None]

    return Encoded(
        [drop(f) for f in encoded.features],
        drop(encoded.deepest),
        encoded.keys,
        encoded.layout,
        encoded.pooled,
        encoded.aligned,
        encoded.size,
        encoded.padded,
    )


def _cers(step: Step, b: Batch) -> Outcome:
    n, net, teacher = len(b.rows), step.net, step.teacher
    unlabelled = slice(n, None)
    with torch.no_grad():  # first mask and evidence mask of the weak view, by the teacher
        seen = teacher.encode(torch.cat([b.x, b.weak]) if step.config.referring else b.weak)
        labelled, weak = (seen.rows(slice(0, n)), seen.rows(unlabelled)) if step.config.referring else (None, seen)
        first = teacher.decode_plain(weak).float().sigmoid()
        second = _evidence(step, teacher, weak, first, b, labelled, unlabelled).float().sigmoid()
    out, strong = _both(step, b)
    plain_logits = net.decode_plain(strong).float()
    plain = plain_logits.sigmoid()
    fused = _evidence(step, net, strong, plain, b, out.encoded, unlabelled).float().sigmoid()
    t, c = step.config.temperature, step.config.threshold
    # a group whose task is made up says nothing about the unlabelled pictures beside it, and D_R with wrong masks nothing to D_S
    usual, right = (_of_group(~flag, step.config) for flag in (b.task, b.misled))
    to_fused, to_plain = confident(first, c), confident(second, c) * usual * right
    out.terms["consistency"] = (
        step.weight * (consistency(fused, sharpen(first, t), to_fused * usual) + consistency(plain, sharpen(second, t), to_plain)) / 2
    )
    out.first = first
    return out


def _of_group(flag: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """A flag (n,) of the labelled, the same in a group, as (u, 1, 1, 1) of the unlabelled pictures beside them."""
    return flag.reshape(-1, config.members)[:, 0].float().repeat_interleave(config.unlabelled_members)[:, None, None, None]
