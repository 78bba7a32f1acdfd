"""Everything that decides a training run, as one record: written to the run folder, hashed, and read back to resume."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml

from ..case.geometry import PLANES
from ..errors import InputError

METHODS = ("supervised", "mean_teacher", "mutual_consistency", "unimatch", "cers")
EVIDENCE = ("none", "random", "shuffled_rationale", "retrieved")
FUSED = ("mutual_consistency", "cers")  # methods that train D_R, too
SEMI = METHODS[1:]
NOT_DECIDING = ("device", "threads", "loaders", "keep", "checkpoint_steps")  # where and how fast a run goes; not its weights


@dataclass
class TrainConfig:
    """One run. A comparison of methods or evidence changes ``method`` or ``evidence`` and nothing else.

    Data:
        data: a folder in BRISC layout, a folder of volumes (images/, labels/), or a pool. unlabelled: further folders of images or volumes
        without masks. labelled: share (up to 1) or number (above 1) of training pictures (of volumes: of volumes) whose masks are used; the
        others are unlabelled. exclude: {column: value or values} kept out of training and validation. validation: share held out by group,
        as ``split_seed`` has it, which also chooses the labelled ones.
        frame: side in pixels at which pictures are stored. allow_leaks: train although the leak report found something.
    Budget: ``steps`` or ``minutes``, the first that is used up; with minutes a run is not bit-reproducible.
    Batch: ``groups`` (an even number for each process) of ``members`` labelled similar pictures, the references of each other, and of
        ``unlabelled_members`` unlabelled ones that have those as references. size: side of the network's input.
    Stage 1 takes the share ``warmup`` of the budget, stage 2 the rest; ``ramp``: share of stage 2 over which consistency comes in.
    consistency, threshold, temperature: weight, least confidence and sharpening of the unsupervised terms. average: EMA of the teacher.
    tasks, tasks_end: share of labelled groups turned into tasks that only their references define, at the start and at the end. 0 for known
        classes and few labels, where they cost some points; without them D_R learns to do without references (``benchmarks/RESULTS.md``).
    null, foreign, swap: shares of queries without references, with those of another group, and of references with another mask, as well
        as of groups in which all have one.
    drop_rationale: share of queries without a rationale. rationales: of how many pictures per group and step one is measured anew.
    refresh: steps after which the pool's image vectors are renewed; pool_momentum: their EMA per step. k_coarse, k, cot_weight: selection.
    negative, decoy, faint, strip, slab, thick: shares of pictures augmented so (``cers.training.augment``). text: share with a short
        clinical text. lesion_free: volumes without a lesion, or "IMAGE=MASK" for the slices that the mask does not meet; free: share of
        pictures that one of their slices takes the place of.
    loaders: processes that draw batches ahead; 0: none on the CPU, and on a GPU, which would wait for pictures, as many as it takes.
    network: settings of ``NetworkConfig``; its labels come from the data, in the order of those given here where they are the same.
    initial: "imagenet", "random" or a weights file.
    """

    data: str = ""
    unlabelled: list[str] = field(default_factory=list)
    labelled: float = 1.0
    exclude: dict = field(default_factory=dict)
    validation: float = 0.05
    split_seed: int = 0
    frame: int = 256
    plane: str = "acquisition"
    allow_leaks: bool = False
    method: str = "cers"
    evidence: str = "retrieved"
    steps: int = 0
    minutes: float = 0.0
    size: int = 128
    groups: int = 4
    members: int = 5
    unlabelled_members: int = 2
    lr: float = 1e-3
    lr_warmup: int = 100
    weight_decay: float = 1e-2
    clip: float = 5.0
    average: float = 0.995
    warmup: float = 0.3
    ramp: float = 0.5
    consistency: float = 1.0
    threshold: float = 0.9
    temperature: float = 0.1
    align: float = 0.1
    tasks: float = 0.5
    tasks_end: float = 0.2
    null: float = 0.35
    foreign: float = 0.1
    swap: float = 0.1
    drop_rationale: float = 0.3
    rationales: int = 1
    refresh: int = 250
    pool_momentum: float = 0.99
    k_coarse: int = 50
    k: int = 8
    cot_weight: float = 0.5
    negative: float = 0.0
    decoy: float = 0.0
    faint: float = 0.0
    lesion_free: list[str] = field(default_factory=list)
    free: float = 0.06
    strip: float = 0.0
    slab: float = 0.0
    thick: float = 0.0
    text: float = 0.0
    validate: int = 10
    validation_limit: int = 100
    checkpoint_steps: int = 200
    keep: int = 2
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    loaders: int = 0
    precision: str = "float32"
    deterministic: bool = True
    initial: str = "imagenet"
    network: dict = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """12 hex digits over all that decides the weights; where and how fast it runs is left out."""
        record = {k: v for k, v in asdict(self).items() if k not in NOT_DECIDING}
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def fused(self) -> bool:
        """Whether D_R is trained."""
        return self.method in FUSED

    @property
    def referring(self) -> bool:
        """Whether D_R ever meets references."""
        return self.method == "cers" and self.evidence != "none"

    def check(self) -> TrainConfig:
        """The record itself.

        Raises:
            InputError: a setting that cannot be used.
        """
        choices = {"method": METHODS, "evidence": EVIDENCE, "precision": ("float32", "bfloat16"), "plane": ("acquisition", *PLANES)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"The setting {name} is '{getattr(self, name)}'; choose one of {', '.join(known)}.")
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type == "list[str]" and isinstance(value, str):
                setattr(self, f.name, [value])
            elif kind := {"list[str]": list, "dict": dict, "bool": bool, "str": str}.get(f.type):
                texts = f.type != "list[str]" or not isinstance(value, list) or all(isinstance(v, str) for v in value)
                if not isinstance(value, kind) or not texts:
                    said = {list: "a list of texts", dict: "a table of names and values", bool: "true or false", str: "a text"}[kind]
                    raise InputError(f"The setting {f.name} must be {said}, not {value!r}.")
            if f.type in ("float", "int") and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0):
                raise InputError(f"The setting {f.name} must be a number of 0 or more, not {value!r}.")
            if f.type in ("float", "int") and (math.isinf(value) or value >= 2**63):
                raise InputError(f"The setting {f.name} is too large: {value!r}.")
            if f.type == "int" and value != int(value):
                raise InputError(f"The setting {f.name} must be a whole number, not {value!r}.")
            if f.type == "int":
                setattr(self, f.name, int(value))
        shares = (
            "validation",
            "warmup",
            "ramp",
            "tasks",
            "tasks_end",
            "null",
            "foreign",
            "swap",
            "drop_rationale",
            "negative",
            "decoy",
            "faint",
            "free",
            "strip",
            "slab",
            "thick",
            "text",
            "average",
            "pool_momentum",
        )
        for name in shares:
            if getattr(self, name) > 1:
                raise InputError(f"The setting {name} is a share from 0 to 1, not {getattr(self, name)}.")
        if not self.steps and not self.minutes:
            raise InputError("A run needs a budget: give steps or minutes.")
        if self.groups < 2 or self.groups % 2 or self.members < 2:
            raise InputError("A batch needs an even number of groups (2 or more) of 2 or more members.")
        for name in ("checkpoint_steps", "k", "k_coarse", "validation_limit", "clip"):
            if not getattr(self, name):
                raise InputError(f"The setting {name} must be more than 0.")
        for name, values in self.exclude.items():
            many = values if isinstance(values, list) else [values]
            if not isinstance(name, str) or not all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in many):
                raise InputError(f"The setting exclude has {name!r}: {values!r}; give the value as a text, in quotes, or a list of texts.")
        if not self.labelled:
            raise InputError("The labelled share is 0; at least some pictures need their masks.")
        if self.labelled > 1 and self.labelled != int(self.labelled):
            raise InputError(f"The setting labelled is a share up to 1, or a whole number of pictures or volumes, not {self.labelled}.")
        if self.validation == 1:
            raise InputError("With validation at 1 all pictures would be held out and none be left to train with. Give a smaller share.")
        if self.size < 32 or self.frame % 32 or self.frame < 32:
            raise InputError("The input side must be 32 or more, and the stored frame a multiple of 32.")
        if not 0.5 < self.threshold <= 1 or not self.temperature:
            raise InputError("The confidence threshold must lie above 0.5 and up to 1, and the temperature above 0.")
        if self.null + self.foreign > 1:
            raise InputError("The shares null and foreign together exceed 1.")
        return self

    def write(self, path: Path) -> None:
        """As YAML, whole or not at all."""
        from ..case.io import atomic_path

        with atomic_path(path) as temporary:
            temporary.write_text(
                f"# hash {self.hash}\n" + yaml.safe_dump(asdict(self), sort_keys=False, allow_unicode=True), encoding="utf-8"
            )

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """A configuration file, complete or with some of the settings; the others keep their defaults.

        Raises:
            InputError: not readable, not YAML, or with unknown settings.
        """
        return cls.of(read_settings(path) or {}, str(path))

    @classmethod
    def of(cls, record: dict, source: str = "the configuration") -> TrainConfig:
        if not isinstance(record, dict):
            raise InputError(f"In {source}, settings must be a table of names and values.")
        record = {"null" if name is None else name: value for name, value in record.items()}  # YAML reads a bare null so
        known = {f.name for f in fields(cls)}
        if unknown := sorted(map(str, set(record) - known)):
            raise InputError(f"In {source}, {', '.join(unknown)} is no setting. Known are {', '.join(sorted(known))}.")
        numbers = {f.name for f in fields(cls) if f.type == "float"}
        record = {name: _number(value) if name in numbers else value for name, value in record.items()}
        return cls(**record).check()


def _each_once(node: yaml.Node | None) -> None:
    """ConstructorError for a name that is given twice in a table: YAML would take the last in silence."""
    if not isinstance(node, (yaml.MappingNode, yaml.SequenceNode)):
        return
    seen: set[str] = set()
    for part in node.value:
        name, value = part if isinstance(part, tuple) else (None, part)
        if isinstance(name, yaml.ScalarNode) and name.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{name.value} is given twice", name.start_mark)
        seen.update([name.value] if isinstance(name, yaml.ScalarNode) else [])
        _each_once(value)


def read_settings(path: Path):
    """What a YAML file of settings says, None if it is empty.

    Raises:
        InputError: not readable, not UTF-8, not YAML (names the line), or a name is given twice.
    """
    said = f"'{path}' cannot be read as a training configuration"
    try:
        text = Path(path).read_text(encoding="utf-8")
        _each_once(yaml.compose(text, yaml.SafeLoader))
        return yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"{said} ({error.strerror}). Give a YAML file of settings.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{said}, because it is not in UTF-8. Save it with that encoding.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of a date such as 2024-13-45, of an alias of itself
        at = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or str(error)
        raise InputError(f"{said}: {f'line {at.line + 1}, ' if at else ''}{why}. Give a YAML file of settings.") from error


def _number(value):
    """YAML reads 1e-3 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
