"""The trainer: one loop for every method, from a configuration to a run folder with a model in it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ..errors import CersError, InputError, TrainingError
from ..inference.model import resolve_device
from ..network.encoder import EfficientNetLite
from ..network.model import CersNet, NetworkConfig
from ..rationale import TextEmbedder
from . import distributed, methods
from .ahead import Ahead, lost, processes, threads
from .batches import Batch, Batches, generator
from .config import TrainConfig
from .data import lesion_free
from .datasets import Dataset, open_dataset
from .losses import hard_dice, ramp
from .memory import Memory, Narrator
from .pictures import Examples
from .plan import check_files, check_machine, check_network, out_of_memory, smaller, words
from .runfolder import LOG, MODEL, SPLIT, RunFolder, misfit, signals
from .splits import LeakError, Split, make_split
from .texts import text_batch, token_table
from .validation import validate

log = logging.getLogger("cers.training")
TEXT = 99  # purpose of the generator of clinical texts
STATUS_SECONDS = 2.0
GONE = "Another process of this training has ended. If it does not say why, memory may have run out. Resume the training."


class Draw:
    """Draws the batch of a step, here or in another process."""

    def __init__(self, batches: Batches, groups: list[int], narrator: Narrator | None):
        self.batches, self.groups, self.narrator = batches, groups, narrator

    def __call__(self, step: int, semi: bool, tasks: float) -> Batch:
        c = self.batches.config
        batch = self.batches.draw(step, self.groups, semi, tasks, random_references=c.evidence == "random")
        if c.method == "cers" and c.evidence != "shuffled_rationale" and self.narrator:
            self.narrator.tell(batch, c.members)
        return batch


class Trainer:
    """The state of a run and its steps; ``train`` runs it in a folder.

    net: the student. teacher: its running mean, which is evaluated and saved. memory: image vectors and rationales of the pictures.

    Args:
        stored: state and tensors of a checkpoint to go on from; the weights that the run began with need not be there any more.
        trial: of some of the pictures only; what is found out about them is not kept in the cache.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        split: Split,
        cache: Path,
        rank: int = 0,
        world: int = 1,
        stored: tuple | None = None,
        trial: bool = False,
    ):
        self.config, self.data, self.split, self.rank, self.world = config.check(), data, split, rank, world
        if config.groups % (2 * world):
            fit = " or ".join(str(n) for n in range(1, world) if config.groups % (2 * n) == 0)
            raise InputError(
                f"{config.groups} groups cannot be spread over {world} processes in pairs. Start {fit}, or make groups a multiple of "
                f"{2 * world} in a new run."
            )
        self.device = resolve_device(config.device)
        loaders = processes(config.loaders, self.device, world)
        if own := threads(config.threads, self.device, loaders):
            torch.set_num_threads(own)
        torch.set_flush_denormal(True)
        torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
        torch.backends.cudnn.benchmark = not config.deterministic  # the shapes are the same in every step
        torch.manual_seed(config.seed)
        self.net = self._build(stored is None).to(self.device, memory_format=torch.channels_last)
        self.teacher = CersNet(self.net.config).to(self.device, memory_format=torch.channels_last)
        self.teacher.load_state_dict(self.net.state_dict())
        self.teacher.eval().requires_grad_(False)
        distributed.share_batch_norm(self.net)
        embedder = TextEmbedder() if config.method == "cers" or config.text else None
        if embedder and self.net.config.rationale != embedder.dimension:
            raise InputError(f"A network's 'rationale' must be {embedder.dimension} here, as many numbers as the text encoder gives.")
        self.tokens = token_table(data.table, embedder) if config.text else {}
        vectors = None if stored is None else stored[1]["memory"]["vectors"].numpy().copy()
        self.memory = Memory(data, split, config, self.net.encoder, embedder, rank, world, None if trial else cache, vectors)
        free = lesion_free(config.lesion_free, cache, config.frame) if config.lesion_free else None
        self.batches = Batches(data, split, config, free)
        self.memory.arrange(self.batches)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), config.lr, weight_decay=config.weight_decay)
        self.step, self.elapsed = 0, 0.0
        per = config.groups // world
        self.groups = list(range(rank * per, (rank + 1) * per))
        self.draw = Draw(self.batches, self.groups, self.memory.narrator)
        self.ahead = Ahead(loaders, self.draw, self._coming) if loaders else None
        self._share = 0.0
        if stored is not None:
            self.restore(*stored)

    def _build(self, begin: bool) -> CersNet:
        c = self.config
        net = CersNet(NetworkConfig(**{**c.network, "labels": self.data.labels}))
        if not begin:
            return net
        if c.initial == "imagenet":
            if isinstance(net.encoder, EfficientNetLite):
                net.encoder.load_imagenet()
            elif "path" not in net.config.encoder:
                raise InputError(
                    "There are no ImageNet weights for the encoder of the setting network. Set initial to random, or name a folder with "
                    "weights as path of the encoder."
                )
        elif c.initial != "random":
            try:
                net.load_state_dict(load_file(c.initial))
            except Exception as error:  # safetensors and torch raise their own kinds
                raise InputError(
                    f"The weights '{c.initial}' cannot be read or are of another network, for instance for other labels than "
                    f"{', '.join(self.data.labels)}. Start from ImageNet weights instead."
                ) from error
            if not all(torch.isfinite(v).all() for v in net.state_dict().values()):
                raise InputError(f"The weights '{c.initial}' hold values that are not numbers. Start from other weights.")
        return net

    @property
    def share(self) -> float:
        """How much of the budget is used up, 0..1; the same in all processes."""
        c = self.config
        share = max(self.step / c.steps if c.steps else 0.0, self.elapsed / (60 * c.minutes) if c.minutes else 0.0)
        return distributed.agree([share])[0] if c.minutes else share

    def one_step(self, share: float) -> dict:
        """One update; returns loss terms and the training Dice of both decoders, over the pictures of this process."""
        c, self._share = self.config, share
        batch = self._batch(share)
        semi = batch.weak is not None
        lr = c.lr * min(1.0, (self.step + 1) / max(1, c.lr_warmup)) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        expert, query = self.memory.rationales(batch, self.net.config.rationale)
        tokens = present = None
        if self.tokens:
            parts = [
                text_batch(
                    self.tokens,
                    [self.data.table[r] for r in batch.rows[n * c.members : (n + 1) * c.members]],
                    c.text,
                    generator(c, self.step, g, TEXT),
                )
                for n, g in enumerate(self.groups)
            ]
            tokens, present = (torch.cat(p).to(self.device) for p in zip(*parts))
        batch.to(self.device)
        weight = 0.0 if not semi else c.consistency * ramp((share - c.warmup) / max(1e-6, (1 - c.warmup) * c.ramp))
        step = methods.Step(self.net, self.teacher, c, weight, expert.to(self.device), query.to(self.device), tokens, present)
        self.net.train()
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=c.precision == "bfloat16"):
            out = methods.semi(step, batch) if semi else methods.supervised(step, batch)
            if c.method == "cers" and c.align:
                out.terms["align"] = c.align * self._align(out, batch, expert)
        loss = sum(term.float() for term in out.terms.values())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # read together and late: a GPU has to be waited for each time
        measured = {"loss": loss, **out.terms, "dice_plain": hard_dice(out.plain, batch.y).mean()}
        if out.fused is not None:
            measured["dice_fused"] = hard_dice(out.fused, batch.y_task).mean()
        figures = dict(zip(measured, torch.stack([v.detach().float() for v in measured.values()]).tolist()))
        if not math.isfinite(figures["loss"]):
            raise TrainingError(
                f"The loss is no longer a number at step {self.step}. Start a new run with a lower learning rate, or with another seed."
            )
        distributed.average_gradients(self.net.parameters())
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), c.clip)
        self.optimizer.step()
        distributed.mean_in_place(self.net.centre)
        self._follow()
        if c.method == "cers":
            self.memory.remember(batch, out, self.step, self.groups)
        self.step += 1
        return {"lr": lr, **self._mean(figures)}

    def _kind(self, share: float) -> tuple[bool, float]:
        """Of a step: whether it has unlabelled pictures, and the share of made-up tasks."""
        c = self.config
        semi = c.method != "supervised" and share >= c.warmup and len(self.split.unlabelled) > 0
        referring = c.referring and c.evidence != "random"
        return semi, (c.tasks + (c.tasks_end - c.tasks) * share) if referring else 0.0

    def _batch(self, share: float) -> Batch:
        if self.ahead is not None:
            batch = self.ahead.take(self.step)
            if batch is not None:
                return batch
            self._refresh(True)
            return self.ahead.take(self.step)
        semi, tasks = self._kind(share)
        self._refresh(semi)
        return self.draw(self.step, semi, tasks)

    def _coming(self, step: int) -> tuple[bool, float] | None:
        """``_kind`` of a step to come, None if the memory is to be refreshed before it. Of a run by the clock, as things are now."""
        c = self.config
        semi, tasks = self._kind(step / c.steps if c.steps and not c.minutes else self._share)
        return None if semi and c.method == "cers" and self.memory.due(step) else (semi, tasks)

    def _mean(self, figures: dict) -> dict:
        values = torch.tensor(list(figures.values()), dtype=torch.float64 if self.device == "cpu" else torch.float32, device=self.device)
        distributed.mean_in_place(values)
        return dict(zip(figures, values.tolist()))

    def _align(self, out: methods.Outcome, batch: Batch, expert: torch.Tensor) -> torch.Tensor:
        """Contrastive loss over the pictures of all processes that still show their lesion and whose text is of what they show."""
        shown = (~batch.removed & ~batch.task)[:, None].float()
        rows = distributed.gather_plain(torch.cat([expert.to(self.device), shown], 1))
        aligned = distributed.gather(out.encoded.aligned.float())
        some = torch.nonzero(rows[:, -1] > 0)[:, 0]
        encoded = methods.Encoded([], aligned, [], aligned, aligned, aligned[some], (0, 0), (0, 0))
        return self.net.align(encoded, rows[some, :-1]) if len(some) > 1 else aligned.sum() * 0

    @torch.no_grad()
    def _follow(self) -> None:
        """The teacher's weights move towards the student's."""
        decay = min(self.config.average, (1 + self.step) / (20 + self.step))
        pairs = list(zip(self.teacher.state_dict().values(), self.net.state_dict().values()))
        torch._foreach_lerp_(*map(list, zip(*(p for p in pairs if p[0].is_floating_point()))), 1 - decay)
        for mean, now in pairs:
            if not mean.is_floating_point():
                mean.copy_(now)

    def _refresh(self, semi: bool) -> None:
        if semi and self.config.method == "cers" and self.memory.due(self.step):
            self.memory.refresh(self.teacher, self.step, self.device)
            self.memory.arrange(self.batches)

    def state(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
        """Tensors by file, and the record that goes with them, from which ``restore`` goes on bit for bit."""
        moments, number = {}, {id(p): n for n, p in enumerate(self.net.parameters())}
        for p, record in self.optimizer.state.items():
            moments.update({f"{number[id(p)]}.{k}": v for k, v in record.items()})
        # all draws are named by seed and step, so that the step is the state of every generator
        return (
            {"student": self.net.state_dict(), "teacher": self.teacher.state_dict(), "optimizer": moments, "memory": self.memory.tensors()},
            {"elapsed": self.elapsed, "config": self.config.hash, **self.split.marks, "memory": self.memory.record()},
        )

    def restore(self, state: dict, tensors: dict[str, dict[str, torch.Tensor]]) -> None:
        fits(state, self.config, self.split)
        self.net.load_state_dict(tensors["student"])
        self.teacher.load_state_dict(tensors["teacher"])
        parameters = list(self.net.parameters())
        self.optimizer.state.clear()
        for key, value in tensors["optimizer"].items():
            n, name = key.split(".")
            p = parameters[int(n)]
            self.optimizer.state[p][name] = value if name == "step" else value.to(self.device, memory_format=_format(p))
        self.memory.restore(tensors["memory"], state["memory"])
        self.memory.arrange(self.batches)
        self.step, self.elapsed = state["step"], state["elapsed"]


def fits(state: dict, config: TrainConfig, split: Split) -> None:
    """InputError if a checkpoint is of other settings or other pictures."""
    if state["config"] != config.hash:
        raise InputError(
            "The run folder's checkpoint is of another configuration. Resume with the run's own config.yaml, or start a new run."
        )
    if any(state.get(name, mark) != mark for name, mark in split.marks.items()):
        raise InputError(
            "The pictures, or volumes of lesion_free, are not those that this run began with: some were added, taken away, changed or "
            "given other labels, so that held-out ones may have been trained on. Start a new run, from this one's weights if you like."
        )


def _format(p: torch.Tensor):
    last = p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def train(
    config: TrainConfig, folder: Path, cache: Path | None = None, resume: bool = False, progress: Callable[[float, str], None] | None = None
) -> str:
    """Train in a run folder; returns the state it ended in, "finished" or "stopped".

    Raises:
        InputError: data, settings or folder cannot be used. TrainingError: a leak, a full disk, or a loss that is not finite.
    """
    config.check()
    check_machine(config)
    check_network(config)
    check_files(config, begin=not resume)
    rank, world = distributed.start(config.device)
    folder = Path(folder)
    try:
        if rank:
            try:
                distributed.wait()  # process 0 has the lock, and has filled the cache
                return _run(config, None, folder, cache or folder / "cache", resume, rank, world, None)
            except RuntimeError as error:
                if distributed.lost(error):
                    raise TrainingError(GONE) from error
                raise
        with RunFolder(folder) as run:
            run.admit(resume)
            with run.room(LOG):
                handler = logging.FileHandler(run.path(LOG), encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            handler.handleError = lambda _record: None  # of a full disk the run itself tells
            log.addHandler(handler)
            log.setLevel(logging.INFO)
            try:
                return _run(config, run, folder, cache or folder / "cache", resume, rank, world, progress)
            except KeyboardInterrupt:  # while it prepares, or measures the finished model
                run.status("stopped", **run.told)
                raise
            except Exception as error:
                message = str(error)
                if gone := lost(error):
                    message = "A process that prepares batches was ended, as when memory runs out. Close other programs, then resume."
                elif gone := distributed.lost(error):
                    message = GONE
                elif not isinstance(error, CersError):
                    message = f"Training ended unexpectedly ({type(error).__name__}: {' '.join(message.split())[:200]}). "
                    message += "Its log has the details."
                facts: dict = {}
                if out_of_memory(error):
                    message, facts["proposal"] = _too_large(config)
                log.error("failed: %s", " ".join(message.split()), exc_info=None if facts or isinstance(error, CersError) else error)
                try:
                    run.status("failed", **run.told, error=message, **facts)
                except CersError as full:
                    log.error("%s", full)
                if facts or gone:
                    raise TrainingError(message) from error
                raise
            finally:
                log.removeHandler(handler)
                with suppress(OSError):  # its last lines, of a full disk
                    handler.close()
    finally:
        distributed.finish()


def _too_large(config: TrainConfig) -> tuple[str, dict | None]:
    """What to say when memory ran out, and the settings of a smaller batch."""
    what = f"{config.groups} groups of {config.members + config.unlabelled_members} pictures of {config.size} x {config.size} pixels"
    proposal = smaller(config)
    if proposal is None:
        return (
            f"There was not enough memory for {what}, and no smaller batch is possible. Close other programs, or use another device.",
            None,
        )
    return f"There was not enough memory for {what}. Train anew with {words(proposal)}, or close other programs and resume.", proposal


def _run(config, run: RunFolder | None, folder, cache, resume, rank, world, progress) -> str:
    from .finish import write_model

    if run is not None:
        run.begin(config, resume)
    if resume and (missed := [place for place in (config.data, *config.unlabelled) if not Path(place).is_dir()]):
        raise InputError(f"The run's pictures are not in '{missed[0]}' any more. Put them, or a link to them, back there, then resume.")
    data, split = prepare(config, run, cache)
    stored = (run or RunFolder(folder)).load() if resume else None
    if stored:
        fits(stored[0], config, split)
    elif resume and run is not None and (run.checkpoints() or run.path(MODEL).exists()):
        raise InputError(
            f"No checkpoint in '{folder}' can be read, so the run cannot go on. What it has made stays; start a new run in another folder."
        )
    if run is not None:
        run.settings(config)
        run.write_json(SPLIT, split.report)
        if world > 1:
            distributed.wait()  # the other processes may read the cache now
        run.status("starting", phase="memory", **run.told)
    if world > 1 and not distributed.all_have(split.mark):
        raise InputError("The processes of this training see different pictures, as if some had been changed meanwhile. Start it again.")
    try:
        trainer = Trainer(config, data, split, cache, rank, world, stored)
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        if not stored or out_of_memory(error):
            raise
        raise misfit(folder, stored[0]["step"]) from error
    if run is not None:
        run.forget_after(trainer.step)
    if stored:
        log.info("resumed at step %d", trainer.step)
    log.info("%s, evidence %s, configuration %s: %s", config.method, config.evidence, config.hash, split.report["counts"])
    if distributed.any_of(run is not None and run.stop_requested):
        return _stopped(trainer, run, trainer.share, {})
    try:
        with signals() as asked:
            ended = _loop(trainer, run, asked, progress)
    finally:
        if trainer.ahead is not None:
            trainer.ahead.close()
    if run is not None and ended == "finished":
        with run.room("the model"):
            figures = write_model(trainer, folder)
        run.metrics({"step": trainer.step, "final": figures})
        run.status("finished", step=trainer.step, share=1.0, metrics=figures)
        log.info("finished after %d steps: %s", trainer.step, figures)
    distributed.wait()
    return ended


def prepare(config: TrainConfig, run: RunFolder | None, cache: Path) -> tuple[Dataset, Split]:
    data = open_dataset(config.data, config.unlabelled, config.frame, config.plane, cache)
    data.follow(config.network.get("labels", []))
    if len(data.labels) > 1 and config.strip:
        log.info("skulls are stripped by one cut for all labels")
    try:
        split = make_split(data, config)
        if count := len(split.report["too_small"]):
            log.info("in %d slices a label is too small for a frame of %d pixels and counts as not drawn", count, config.frame)
        if count := len(split.report["joined"]):
            log.info("%d labelled pictures are held out because unlabelled ones show them to be kin of held-out ones", count)
        return data, split
    except LeakError as error:
        if run is not None:
            run.write_json(SPLIT, error.split.report)
        raise


def _loop(trainer: Trainer, run: RunFolder | None, asked, progress) -> str:
    c = trainer.config
    saved = trainer.step if trainer.step else -1
    begun, first, told, share = time.monotonic(), trainer.step, 0.0, trainer.share
    recent: list[dict] = []
    last: dict = {}
    # what was measured before a run was stopped, and no more: the stop may have come when the next point was due
    mark = int(distributed.agree([run.validated() if run is not None and trainer.step else 0.0])[0] * c.validate)
    while share < 1:
        if int(share * c.validate) > mark:
            mark = int(share * c.validate)  # its time does not count: the budget is for training
            examples = Examples(trainer.data)
            last = {f"validation_{k}": v for k, v in validate(trainer, c.validation_limit, examples).items()} if run is not None else {}
            distributed.wait()
            if run is not None:
                examples.write(run, trainer.step)
                run.metrics({"step": trainer.step, "share": share, **last})
                log.info("step %d: %s", trainer.step, last)
        started = time.monotonic()
        recent.append(trainer.one_step(share))
        trainer.elapsed += time.monotonic() - started
        share = trainer.share
        stop = distributed.any_of(asked() or (run is not None and run.stop_requested))
        now = time.monotonic()
        if run is not None and (len(recent) >= 50 or now - told > STATUS_SECONDS or stop or share >= 1):
            mean = {k: round(float(np.mean([r[k] for r in recent if k in r])), 5) for k in recent[-1]}
            pace = (now - begun) / max(1, trainer.step - first)
            left = min([(c.steps - trainer.step) * pace] * bool(c.steps) + [60 * c.minutes - trainer.elapsed] * bool(c.minutes))
            run.status(
                "running",
                step=trainer.step,
                steps=c.steps or None,
                share=round(share, 4),
                eta=round(max(0.0, left)),
                seconds_per_step=round(pace, 3),
                metrics={**mean, **last},
            )
            if len(recent) >= 20 or stop or share >= 1:
                run.metrics({"step": trainer.step, "share": round(share, 4), **mean})
                recent = []
            told = now
            if progress:
                shown = [f"{k.removeprefix('validation_')} {v:.3f}" for k, v in {"loss": mean["loss"], **last}.items()]
                progress(min(share, 1.0), f"step {trainer.step}, {' '.join(shown)}")
        if run is not None and (trainer.step % c.checkpoint_steps == 0 or stop or share >= 1) and saved != trainer.step:
            run.save(trainer.step, *trainer.state(), c.keep)
            saved = trainer.step
        if stop and share < 1:
            return _stopped(trainer, run, share, last)
    return "finished"


def _stopped(trainer: Trainer, run: RunFolder | None, share: float, last: dict) -> str:
    if run is not None:
        run.status("stopped", step=trainer.step, steps=trainer.config.steps or None, share=round(share, 4), metrics=last)
        run.clear_stop()
        log.info("stopped at step %d", trainer.step)
    return "stopped"
