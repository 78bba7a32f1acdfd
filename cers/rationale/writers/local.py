"""Language models on this machine: a folder (or cached id) of transformers, or a GGUF file through llama.cpp. Nothing is downloaded."""

from __future__ import annotations

import importlib.util
import json
import secrets
import threading
import time
from pathlib import Path

from ...case import Case, Rationale
from ...errors import Cancelled, InputError, ModelError, WriterError
from .model import Answer, Request, Stop
from .prompt import Prompt

_CONTEXT = 4096  # tokens of prompt and answer together


class _Local:
    """Common to both kinds: text only, one case at a time."""

    with_picture = False
    parallel = 1

    def __init__(self, name: str, prompt: Prompt, *, max_tokens: int, threads: int | None, seconds: float):
        self.name, self.prompt, self.max_tokens, self.threads, self.seconds = name, prompt, max_tokens, threads, seconds
        self._lock = threading.Lock()

    def request(self, case: Case, measured: Rationale) -> Request:
        system, user = self.prompt.fill(case, measured, picture=False)
        return Request(system, user, json.dumps(_messages(system, user), ensure_ascii=False).encode("utf-8"))


def _messages(system: str, user: str) -> list[dict]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


class GgufModel(_Local):
    """A GGUF file, run by llama.cpp in this process (package xllamacpp).

    Raises:
        ModelError: the package is missing, or the file cannot be loaded.
    """

    def __init__(self, path: Path, prompt: Prompt, *, max_tokens: int = 700, threads: int | None = None, seconds: float = 600.0):
        super().__init__(path.stem, prompt, max_tokens=max_tokens, threads=threads, seconds=seconds)
        try:
            import xllamacpp
        except ImportError as error:
            raise ModelError("GGUF models need the package xllamacpp. Run: pip install xllamacpp") from error
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.verbosity = _CONTEXT, 1, -1
        params.offline, params.warmup, params.ui = True, False, False
        params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [secrets.token_hex(32)]  # its own server is of no use to others
        if threads:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"The model '{path}' cannot be loaded. Choose a whole GGUF file of a language model, not larger than the memory."
            ) from error

    def ask(self, request: Request, stop: Stop) -> Answer:
        with self._lock:
            if stop.is_set():
                raise Cancelled
            start = time.monotonic()
            try:
                answer = self._server.handle_chat_completions(
                    {
                        "messages": _messages(request.system, request.user),
                        "max_tokens": self.max_tokens,
                        "temperature": 0,
                        "t_max_predict_ms": int(1000 * self.seconds),
                    }
                )
                choice, usage = answer["choices"][0], answer.get("usage") or {}
                text = choice["message"]["content"]
            except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
                raise WriterError(
                    f"The model {self.name} gave no answer ({' '.join(str(error).split())[:120]}). Try another model."
                ) from error
        return _whole(
            self.name, text, choice.get("finish_reason") == "length", start, usage.get("prompt_tokens"), usage.get("completion_tokens")
        )


class TransformersModel(_Local):
    """A causal language model that transformers can load from a folder, or an id whose files are in its cache already.

    Raises:
        ModelError: not there, not a language model with a chat template, or not readable.
    """

    def __init__(
        self, path: str, prompt: Prompt, *, max_tokens: int = 700, threads: int | None = None, seconds: float = 600.0, device: str = "cpu"
    ):
        super().__init__(Path(path).name, prompt, max_tokens=max_tokens, threads=threads, seconds=seconds)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if threads:
            torch.set_num_threads(threads)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise ModelError(
                f"The language model '{path}' cannot be loaded ({type(error).__name__}). Choose a folder saved by "
                "transformers with safetensors weights; nothing is downloaded."
            ) from error
        if not self._tokenizer.chat_template:
            raise ModelError(
                f"The language model '{path}' has no chat template, so it cannot be given instructions. Choose an instruction-tuned model."
            )
        self._model = model.eval().to(device)

    def ask(self, request: Request, stop: Stop) -> Answer:
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        class Stopped(StoppingCriteria):
            def __call__(self, ids, scores, **kwargs):
                return torch.full((len(ids),), stop.is_set(), dtype=torch.bool, device=ids.device)

        with self._lock, torch.inference_mode():
            if stop.is_set():
                raise Cancelled
            start = time.monotonic()
            ids = self._tokenizer.apply_chat_template(
                _messages(request.system, request.user), add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(self._model.device)
            prompt = ids["input_ids"].shape[1]
            try:
                out = self._model.generate(
                    **ids,
                    max_new_tokens=self.max_tokens,
                    do_sample=False,
                    max_time=self.seconds,
                    stopping_criteria=StoppingCriteriaList([Stopped()]),
                    pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
                )
            except (RuntimeError, IndexError, ValueError) as error:
                raise WriterError(f"The model {self.name} failed ({' '.join(str(error).split())[:120]}). Try another model.") from error
            if stop.is_set():
                raise Cancelled
            new = out[0, prompt:]
            ends = self._model.generation_config.eos_token_id
            ended = len(new) > 0 and int(new[-1]) in (ends if isinstance(ends, list) else [ends])
            text = self._tokenizer.decode(new, skip_special_tokens=True)
        return _whole(self.name, text, not ended, start, prompt, len(new))


def _whole(name: str, text: str | None, cut: bool, start: float, tokens_in: int | None, tokens_out: int | None) -> Answer:
    if not (text or "").strip():
        raise WriterError(f"The model {name} gave an empty answer. Try another model.")
    if cut:
        raise WriterError(f"The answer of the model {name} did not come to an end. Try another model, or allow a longer answer.")
    return Answer(text.strip(), time.monotonic() - start, tokens_in, tokens_out)


def local_model(name: str, prompt: Prompt, **options) -> GgufModel | TransformersModel:
    """A model by file (.gguf), folder, installed package that ships a .gguf file, or id in the transformers cache.

    Raises:
        InputError: no name. ModelError: see the two classes.
    """
    if not name.strip():
        raise InputError("Name the local model: a .gguf file, a folder of transformers, or an installed package that ships one.")
    path = Path(name)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"There is no file {path}. Check its name.")
        return GgufModel(path, prompt, **options)
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        return (
            GgufModel(files[0], prompt, **options)
            if files and not (path / "config.json").exists()
            else TransformersModel(str(path), prompt, **options)
        )
    if name.isidentifier() and (spec := importlib.util.find_spec(name)):
        for place in spec.submodule_search_locations or ():
            if files := sorted(Path(place).glob("*.gguf")):
                return GgufModel(files[0], prompt, **options)
    return TransformersModel(name, prompt, **options)
