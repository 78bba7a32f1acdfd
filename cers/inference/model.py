"""A trained model as a folder: config.json, model.safetensors and its card."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ..errors import InputError, ModelError
from ..files import atomic_path
from ..pool import SelectionConfig
from .store import CARD, CONFIG, MODEL, WEIGHTS, default_folder

FORMAT = 1


@dataclass
class ModelConfig:
    """What belongs to a model besides its weights.

    Args:
        network: architecture (``cers.network.model.NetworkConfig``). labels: value in the label map -> name, in channel order.
        size: side of the input frame in pixels. modality, body_site: what it was trained on; also assumed of a query that does
            not say. temperature: logits are divided by it (Guo et al., ICML 2017). threshold: least calibrated probability of a label.
        minimum_ml: connected parts of a volume's mask below this size are dropped. selection: settings of ``SelectionConfig``.
        text_encoder: folder or package of the text encoder, None for the default; text_hash: of the one it was trained with.
    """

    network: dict
    labels: dict[str, str]
    size: int = 224
    modality: str | None = None
    body_site: str | None = None
    temperature: float = 1.0
    threshold: float = 0.5
    minimum_ml: float = 0.0
    selection: dict = field(default_factory=dict)
    text_encoder: str | None = None
    text_hash: str | None = None
    name: str = "CERS model"
    format: int = FORMAT

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read as a model configuration. Choose a folder with {CONFIG} and {WEIGHTS}.") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ModelError(f"{path} is not a CERS model configuration of format {FORMAT}. Choose another model folder.")
        known = {f.name for f in fields(cls)}
        if set(data) - known or not {"network", "labels"} <= set(data):
            raise ModelError(f"{path} lacks 'network' or 'labels', or has unknown settings: {sorted(set(data) - known)}.")
        config = cls(**data)
        if problem := config.problem():
            raise ModelError(f"{path} cannot be used: {problem}. Choose another model folder, or correct it.")
        return config

    def problem(self) -> str | None:
        """What is wrong with the settings, None if nothing is."""
        if not isinstance(self.network, dict) or not isinstance(self.labels, dict) or not isinstance(self.selection, dict):
            return "'network', 'labels' and 'selection' must be tables"
        if not isinstance(self.name, str) or not all(x is None or isinstance(x, str) for x in (self.modality, self.body_site)):
            return "'name', 'modality' and 'body_site' must be texts"
        channels = self.network.get("labels")
        if not isinstance(channels, list) or len(self.labels) != len(channels):
            return f"it names {len(self.labels)} labels, but the network has {len(channels) if isinstance(channels, list) else 'none'}"
        if not all(k.isascii() and k.isdigit() and 1 <= int(k) <= 255 and isinstance(v, str) for k, v in self.labels.items()):
            return "label values must be whole numbers from 1 to 255 with a name each"
        numbers = {"temperature": (1e-6, 1e6), "threshold": (0.0, 1.0), "minimum_ml": (0.0, 1e6)}
        for name, (low, high) in numbers.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                return f"'{name}' must be a number from {low:g} to {high:g}"
        if not isinstance(self.size, int) or not 32 <= self.size <= 4096:
            return "'size' must be a whole number from 32 to 4096"
        try:
            SelectionConfig(**self.selection)
        except (TypeError, InputError) as error:
            return f"its selection settings are not understood ({str(error).rstrip('.')})"
        return None


class Model:
    """A network ready to run. ``hash`` names weights and every setting that changes an embedding."""

    def __init__(self, net, config: ModelConfig, digest: str, folder: Path, device: str):
        self.net, self.config, self.hash, self.folder, self.device = net, config, digest, folder, device
        self.labels = {int(k): v for k, v in config.labels.items()}

    @property
    def selection(self) -> SelectionConfig:
        return SelectionConfig(**self.config.selection)

    @property
    def card(self) -> str:
        path = self.folder / CARD
        return path.read_text(encoding="utf-8") if path.exists() else ""


def resolve_device(device: str) -> str:
    """ "cpu", "cuda" or "mps" if it is there.

    Raises:
        InputError: the device is not one of these or not available here.
    """
    import torch

    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise InputError(f"Device '{device}' is not known. Use cpu, cuda or mps.")
    try:
        torch.device(device)
    except RuntimeError as error:
        raise InputError(f"Device '{device}' is not known. Use cpu, cuda or mps.") from error
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise InputError(f"Device '{device}' is not available on this machine. Use cpu, or install a PyTorch build for it.")
    return device


def quick_in_bfloat16(device: str = "cpu") -> bool:
    """Whether the device computes in bfloat16; a CPU without such instructions emulates it, tens of times slower than float32."""
    import torch

    return device.split(":")[0] != "cpu" or (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load_model(path: str | os.PathLike | None = None, device: str = "cpu", threads: int | None = None) -> Model:
    """The model in a folder, by default the one in use: the one that ships with CERS, unless another was chosen.

    Args:
        threads: torch threads of this process; None leaves them. More than the idle cores makes everything slower.

    Raises:
        ModelError: no model there, damaged, or of another kind. InputError: device or threads not usable.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from ..network.fuse import fuse
    from ..network.model import CersNet, NetworkConfig

    if threads is not None:
        if threads < 1:
            raise InputError("The number of threads must be 1 or more.")
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    device = resolve_device(device)
    folder = default_folder() if path is None else Path(path)
    weights = folder / WEIGHTS
    if not weights.is_file() or not (folder / CONFIG).is_file():
        inner = folder / MODEL
        hint = f"Did you mean '{inner}'?" if (inner / CONFIG).is_file() else "Choose another model folder."
        raise ModelError(f"There is no CERS model in '{folder}': it needs {CONFIG} and {WEIGHTS}. {hint}")
    config = ModelConfig.read(folder / CONFIG)
    try:
        data = weights.read_bytes()
    except OSError as error:
        raise ModelError(f"{weights} cannot be read ({error.strerror}). Check the file's permissions.") from error
    digest = model_hash(data, config)
    try:
        net = CersNet(NetworkConfig(**{"place": 0.0, "probe": 0.0, **config.network}))  # models of before say nothing of either
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load(data).items()})
        if not all(torch.isfinite(v).all() for v in net.state_dict().values()):  # with one of them every mask is empty
            raise ValueError
    except (SafetensorError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ModelError(f"The weights in '{folder}' are damaged or belong to another architecture. Get the model again.") from error
    net = fuse(net.eval()).to(device, memory_format=torch.channels_last).requires_grad_(False)
    return Model(net, config, digest, folder, device)


def model_hash(weights: bytes, config: ModelConfig) -> str:
    """16 hex digits over weights, architecture and input size; thresholds may change without making embeddings stale."""
    h = hashlib.sha256(weights)
    h.update(json.dumps([config.network, config.size], sort_keys=True).encode())
    return h.hexdigest()[:16]


def save_model(folder: str | os.PathLike, state: dict, config: ModelConfig, card: str = "", half: bool = True) -> Path:
    """Write a model folder; each file atomically, the configuration last. half: weights as float16, but for tensors that it cannot hold.

    Raises:
        ModelError: the configuration cannot be used, or a weight is not finite. InputError: a file cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    if problem := config.problem():
        raise ModelError(f"This model cannot be saved: {problem}.")
    if broken := [k for k, v in state.items() if not torch.isfinite(v).all()]:
        raise ModelError(f"This model cannot be saved: {len(broken)} of its tensors hold values that are not finite, {broken[0]} first.")
    most = torch.finfo(torch.float16).max
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: (v.to(torch.float16) if half and v.is_floating_point() and (not v.numel() or v.abs().max() <= most) else v).contiguous().cpu()
        for k, v in state.items()
    }
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(tensors, str(temporary))
    texts = {CARD: card, CONFIG: json.dumps(asdict(config), indent=1) + "\n"}
    for name, text in texts.items():
        if text:
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return folder
