"""Before a run starts: what it would train on, whether anything leaks, and how long and how much memory it would take, by trying it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..inference.model import quick_in_bfloat16, resolve_device
from ..network.model import NetworkConfig
from ..words import plural
from .config import TrainConfig
from .data import check_free
from .datasets import Dataset, open_dataset
from .splits import LeakError, Split, make_split

SAMPLE = 24  # pictures of each kind that the trial trains on
TRIAL_STEPS = 2  # timed ones of each stage, after one that is not
TRIAL_SECONDS = 90  # after which no further step is tried
ROOM = 0.85  # share of the free memory that a run may take
STOCK = 400  # pictures that a validation looks up references in, at most


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text, signs = str(error).lower(), ("out of memory", "can't allocate memory", "not enough memory", "alloc_cpu")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def smaller(config: TrainConfig) -> dict | None:
    """Settings of the next smaller batch: fewer groups, then fewer pictures in each, then smaller ones; None if there is none."""
    batch = {"groups": config.groups, "members": config.members, "unlabelled_members": config.unlabelled_members, "size": config.size}
    if config.groups > 2:
        return {**batch, "groups": max(2, config.groups // 4 * 2)}
    if config.unlabelled_members > 1:
        return {**batch, "unlabelled_members": config.unlabelled_members // 2}
    if config.members > 3:
        return {**batch, "members": max(3, config.members - 2)}
    if config.size > 64:
        return {**batch, "size": max(64, config.size * 3 // 4 // 32 * 32)}
    return None


def words(batch: dict) -> str:
    """A batch in words."""
    return (
        f"{batch['groups']} groups of {batch['members']} + {batch['unlabelled_members']} pictures of "
        f"{batch['size']} x {batch['size']} pixels"
    )


def load(config: TrainConfig) -> int:
    """What memory grows with: pixels in a batch."""
    return config.groups * (config.members + config.unlabelled_members) * config.size**2


def fitting(config: TrainConfig, fixed: float, needed: float, free: float) -> dict | None:
    """The largest smaller batch that fits.

    Args:
        fixed, needed: bytes before and at the height of a step with the batch as it is. free: bytes.

    Returns:
        Its settings; None if none fits.
    """
    each = max(0.0, needed - fixed) / load(config)
    while (proposal := smaller(config)) is not None:
        config = replace(config, **proposal)
        if fixed + each * load(config) <= ROOM * free:
            return proposal
    return None


def check_machine(config: TrainConfig) -> None:
    """InputError where the machine lacks the device, or computes in the precision by emulation only."""
    if not quick_in_bfloat16(resolve_device(config.device)) and config.precision == "bfloat16":
        raise InputError("This processor has no bfloat16 and would train tens of times slower with it. Set precision to float32.")


def check_network(config: TrainConfig) -> None:
    """InputError, or ModelError, where no network can be built of the settings; before pictures are read, which takes minutes."""
    try:
        NetworkConfig(**config.network).check()
    except TypeError as error:
        raise InputError("The setting network has a name that is not known. See cers.network.model.NetworkConfig.") from error


def check_files(config: TrainConfig, begin: bool = True) -> None:
    """InputError where a file that the settings name is not there; before pictures are read. begin: not of a run that goes on."""
    if begin and config.initial not in ("imagenet", "random") and not Path(config.initial).is_file():
        raise InputError(
            f"There is no file of weights '{config.initial}'. The setting initial is imagenet, random, or such a file: check its path."
        )
    check_free(config.lesion_free)


def check(config: TrainConfig, cache: Path, say: Callable[[str], None] = lambda _words: None, measure: bool = True) -> dict:
    """What a run would do, without training.

    Args:
        cache: where prepared pictures are kept; the run takes them from there. say: told what is being done. measure: try some steps.

    Returns:
        {"kind", "labels", "counts", "items", "groups", "modality", "split_by", "set_aside", "joined", "too_small", "leaks", "may_start",
        "estimate"}; the estimate is as ``estimate`` says, or None.

    Raises:
        InputError: data or settings cannot be used.
    """
    config.check()
    check_machine(config)
    check_network(config)
    check_files(config)
    say("Reading the pictures")
    data = open_dataset(config.data, config.unlabelled, config.frame, config.plane, cache)
    say("Looking for leaks")
    try:
        split, leaky = make_split(data, config), False
    except LeakError as error:
        split, leaky = error.split, True
    report = split.report
    train = np.concatenate([split.labelled, split.unlabelled])
    out = {
        "kind": data.kind,
        "labels": data.labels,
        "counts": report["counts"],
        "modality": data.modality,
        "items": len(np.unique(data.places()[train])),
        "groups": len(np.unique(split.kin[train])),
        "split_by": report["by"],
        "set_aside": len(report["set_aside"]),
        "joined": len(report["joined"]),
        "too_small": len(report["too_small"]),
        "leaks": report["leaks"],
        "may_start": not leaky,
        "estimate": None,
    }
    if measure and not leaky:
        out["estimate"] = estimate(config, data, split, cache, say) | {"disk_free": shutil.disk_usage(cache).free}
    return out


def estimate(config: TrainConfig, data: Dataset, split: Split, cache: Path, say: Callable[[str], None] = lambda _words: None) -> dict:
    """Time and memory, measured on some steps with a few of the pictures.

    Returns:
        {"device", "steps", "seconds_per_step", "preparing", "training", "validating", "total" (s), "memory", "memory_free" (bytes, None
        where not known), "fits" (None where not known), "proposal" (settings of a batch that fits, if this one does not), "disk" (bytes of
        the run folder)}; ``check`` adds "disk_free".
    """
    from .trainer import Trainer
    from .validation import validate

    say("Trying some steps")
    if config.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(config.device)
    free, few = memory_free(config.device), _few(config, data, split)
    try:
        started = time.monotonic()
        trainer = Trainer(config, data, few, cache, trial=True)  # a check may be killed, so it leaves nothing that has to be taken away
        trainer.ahead = None  # a few steps tell nothing of batches drawn ahead, so that a GPU may be quicker than this
        opening, end = time.monotonic() - started, started + TRIAL_SECONDS
        looking, describing = _preparing(trainer)
        fixed = memory_used(config.device)
        first = _pace(trainer, 0.0, end)
        semi = config.method != "supervised" and len(few.unlabelled) > 0
        second = _pace(trainer, min(1.0, config.warmup + 0.5 * (1 - config.warmup)), end) if semi else first
        started = time.monotonic()
        validate(trainer, len(few.validation))
        looked = (time.monotonic() - started) / max(1, len(few.validation) + min(STOCK, len(few.labelled)))
        needed = memory_used(config.device)
        weights = sum(p.numel() for p in trainer.net.parameters()) * 4
        rows = trainer.memory.vectors.shape[1] + trainer.memory.query.shape[1]
    except Exception as error:  # allocators raise their own kinds
        if not out_of_memory(error):
            raise
        return {"device": config.device, "steps": None, "memory": None, "memory_free": free, "fits": False, "proposal": smaller(config)}
    labelled, unlabelled = len(split.labelled), len(split.unlabelled) * (config.method != "supervised")
    pictures = labelled + unlabelled
    if semi and config.method == "cers":
        second += looking * pictures / max(1, config.refresh)  # all image vectors are renewed now and then
    mean = config.warmup * first + (1 - config.warmup) * second
    steps = min([config.steps] * bool(config.steps) + [int(60 * config.minutes / mean)] * bool(config.minutes))
    training = min([config.steps * mean] * bool(config.steps) + [60 * config.minutes] * bool(config.minutes))
    held = min(len(split.validation), config.validation_limit) + min(STOCK, labelled) * config.referring
    validating = (config.validate + 1) * held * looked if len(split.validation) else 0.0
    preparing = opening + looking * pictures + describing * labelled
    out = {
        "device": _device(config.device),
        "steps": max(1, steps),
        "seconds_per_step": round(mean, 3),
        "preparing": round(preparing),
        "training": round(training),
        "validating": round(validating),
        "total": round(preparing + training + validating),
    }
    memory = None if needed is None or fixed is None else needed + 2 * 4 * rows * pictures
    fits = None if memory is None or free is None else memory <= ROOM * free
    out |= {
        "memory": memory,
        "memory_free": free,
        "fits": fits,
        "disk": (config.keep + 1) * 4 * weights,
        "proposal": fitting(config, fixed, memory, free) if fits is False else None,
    }
    return out


def _few(config: TrainConfig, data: Dataset, split: Split) -> Split:
    """A split of some of the pictures, all of the kinds that are there."""
    rng = np.random.default_rng(0)

    def some(rows: np.ndarray, count: int) -> np.ndarray:
        return np.sort(rng.permutation(rows)[:count])

    labelled = some(split.labelled, max(SAMPLE, 2 * config.members))
    if not any(data.masks[int(r)].any() for r in labelled):  # volumes have many slices without a lesion
        labelled = split.labelled
    return Split(labelled, some(split.unlabelled, SAMPLE), some(split.validation, 8), split.test[:0], split.kin, split.report)


def _preparing(trainer) -> tuple[float, float]:
    """Seconds per picture to look at it, and per labelled one to describe it."""
    memory, started = trainer.memory, time.monotonic()
    memory._scan(trainer.net.encoder, memory.train, trainer.device)
    looking, started = (time.monotonic() - started) / len(memory.train), time.monotonic()
    if trainer.config.method == "cers":
        memory._experts()
    return looking, (time.monotonic() - started) / len(memory.split.labelled)


def _pace(trainer, share: float, end: float) -> float:
    """Seconds per step at a point of the schedule."""
    trainer.one_step(share)
    started, done = time.monotonic(), 0
    while not done or (done < TRIAL_STEPS and time.monotonic() < end):
        trainer.one_step(share)
        done += 1
    return (time.monotonic() - started) / done


def memory_used(device: str) -> float | None:
    """Most bytes that this process has held on the device so far, None where that is not known."""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_reserved(device))
    if device.startswith("mps"):
        return float(torch.mps.driver_allocated_memory())
    try:
        import resource
    except ImportError:  # Windows
        return None
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def memory_free(device: str) -> float | None:
    """Bytes that a process may take on the device, this one's included; None where that is not known."""
    if device.startswith("cuda"):
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    if device.startswith("mps"):
        return float(torch.mps.recommended_max_memory())
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            available = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
        with open("/proc/self/statm", encoding="ascii") as file:
            own = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, StopIteration, ValueError):
        return None
    return float(available * 1024 + own)


def _device(device: str) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


def sentences(report: dict) -> list[str]:
    """A report in words, for the terminal."""
    counts, e = report["counts"], report["estimate"]
    out = [
        f"{counts['labelled']} labelled and {counts['unlabelled']} unlabelled pictures to train on, "
        f"{counts['validation']} for validation; labels {', '.join(report['labels'])}; split by {report['split_by']}."
    ]
    if report["set_aside"]:
        out.append(f"Left out, because they are held-out pictures or related to them: {report['set_aside']}.")
    if report["joined"]:
        out.append(f"Held out as well, because unlabelled pictures show them to be related to held-out ones: {report['joined']}.")
    if report["too_small"]:
        out.append(f"Slices in which a label is too small for the stored frame, and counts as not drawn: {report['too_small']}.")
    out.append(f"Leaks: {report['leaks']['words']}." if report["leaks"]["found"] else "No leak was found.")
    if e is None:
        return out
    if e["steps"] is None:
        return [*out, "There is not enough memory for this batch." + (f" Try {words(e['proposal'])}." if e["proposal"] else "")]
    out.append(
        f"About {minutes(e['total'])} on {e['device']}: {e['steps']} {plural(e['steps'], 'step')} of {e['seconds_per_step']:.2f} s, "
        f"{minutes(e['preparing'])} to prepare, {minutes(e['validating'])} for validation."
    )
    if e["memory"] is not None:
        free = f" of {e['memory_free'] / 1e9:.1f} GB" if e["memory_free"] else ""
        out.append(
            f"About {e['memory'] / 1e9:.1f} GB{free} of memory"
            + ("." if e["fits"] is not False else ", which is too much." + (f" Try {words(e['proposal'])}." if e["proposal"] else ""))
        )
    return out


def minutes(seconds: float) -> str:
    """A time that nobody needs to the second."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
