"""Batches: resumed, cached, never over a person's text; tables of others; prompt templates; the command."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from writerkit import GOOD, always, draft, echo, serving, small_case, small_pool

from cers.case import Rationale, Statement
from cers.errors import InputError, PoolError, WriterError
from cers.pool import Pool
from cers.rationale.writers import Endpoint, Ledger, Prompt, Retry, import_table, plan, write
from cers.rationale.writers.prompt import names

ROOT = Path(__file__).resolve().parents[2]
QUICK = Retry(attempts=2, first=0.01, most=0.02)
PERSON = Rationale([Statement("texture", "As I see it.")], {}, "person", "1")


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "config")


def endpoint(server, ledger, name="model-x", prompt=None, **options):
    ledger.grant(server.url, True)
    return Endpoint(server.url, name, prompt or Prompt.load(), ledger=ledger, seconds=5.0, **{"parallel": 2, **options})


def test_a_second_run_does_only_what_is_missing(tmp_path, head, ledger):
    with serving(echo) as server, small_pool(tmp_path / "pool", head, 4) as pool:
        model, ids = endpoint(server, ledger), pool.ids()
        assert len(write(pool, model, plan(pool, model, ids[:2], ledger=ledger).ids, ledger=ledger).written) == 2
        rest = plan(pool, model, ledger=ledger)
        assert (rest.ids, rest.done, rest.estimate.requests) == (ids[2:], 2, 2) and rest.estimate.seconds is not None
        write(pool, model, rest.ids, ledger=ledger)
        assert len(server.bodies) == 4 and plan(pool, model, ledger=ledger).ids == []
        assert [r.writer for r in pool.rationale_versions(ids[0])] == ["measured", "model-x"]
        assert all(s.note is None for s in pool.get(ids[0]).rationale.statements)


def test_answers_are_kept_by_content_model_and_prompt(tmp_path, head, ledger):
    text = tmp_path / "mine.txt"
    text.write_text((ROOT / "Resources/prompts/rationale-1.txt").read_text("utf-8").replace("experienced", "careful"), "utf-8")
    with serving(echo) as server, small_pool(tmp_path / "pool", head, 2) as pool, small_pool(tmp_path / "other", head, 2) as other:
        model = endpoint(server, ledger)
        write(pool, model, pool.ids(), ledger=ledger)
        assert plan(other, model, ledger=ledger).cached == 2  # the same cases in another pool
        assert write(other, model, other.ids(), ledger=ledger).cached == 2 and len(server.bodies) == 2
        for different in (
            endpoint(server, ledger, "model-y"),
            endpoint(server, ledger, prompt=Prompt.load(text)),
            endpoint(server, ledger, picture=True),
        ):
            assert plan(other, different, ledger=ledger, again=True, over_others=True).cached == 0
            assert plan(other, different, ledger=ledger, again=True, over_others=True).estimate.requests == 2
        other.update(other.ids()[0], body_site="head")  # it stands in the prompt
        write(other, model, other.ids(), ledger=ledger)
        assert len(server.bodies) == 3
        write(other, model, other.ids(), ledger=ledger, again=True)
        assert len(server.bodies) == 5 and ledger.forget_answers() == 3


def test_two_batches_at_once_ask_once_for_each_case(tmp_path, head, ledger):
    """As the panel and a command over one pool do; what one asks for, the other waits for, and both go on with the rest."""

    def slow(number, handler):
        server.gate.wait(30)
        echo(number, handler)

    with serving(slow) as server, small_pool(tmp_path / "pool", head, 4) as pool, Pool.open(tmp_path / "pool") as again:
        model, ids = endpoint(server, ledger), pool.ids()
        with ThreadPoolExecutor(2) as both:
            reports = [both.submit(write, pool, model, ids, ledger=ledger)]
            until = time.monotonic() + 30
            while len(server.bodies) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            reports.append(both.submit(write, again, model, ids, ledger=ledger))
            until = time.monotonic() + 1
            while len(server.bodies) < 3 and time.monotonic() < until:  # for the other to begin
                time.sleep(0.01)
            server.gate.set()
            reports = [report.result() for report in reports]
        assert len(server.bodies) == len({draft(body) for body in server.bodies}) == 4
        assert [sorted(report.written) for report in reports] == [sorted(ids)] * 2 and sum(report.cached for report in reports) == 4
        assert all(len(pool.rationale_versions(case_id)) == 2 for case_id in ids)
    assert not list((ledger.path.parent / "asking").iterdir())


def test_a_persons_text_stays(tmp_path, head, ledger):
    with serving(echo) as server, small_pool(tmp_path / "pool", head, 2) as pool:
        model, first = endpoint(server, ledger), pool.ids()[0]
        pool.add_rationale(first, PERSON)
        assert plan(pool, model, ledger=ledger).persons == 1 and plan(pool, None).persons == 1
        report = write(pool, model, pool.ids(), ledger=ledger)  # as if it was written while the batch ran
        assert len(report.written) == 1 and "a person" in report.faults[0].message
        assert pool.get(first).rationale == PERSON
        assert (
            len(write(pool, model, plan(pool, model, ledger=ledger, over_persons=True).ids, ledger=ledger, over_persons=True).written) == 1
        )


def test_texts_of_others_stay_unless_told_and_are_named(tmp_path, head, ledger):
    with serving(echo) as server, small_pool(tmp_path / "pool", head, 4) as pool:
        model, ids = endpoint(server, ledger, parallel=1), pool.ids()
        pool.add_rationale(ids[0], replace(PERSON, writer="imported"))
        pool.add_rationale(ids[1], replace(PERSON, writer="model-y"))
        pool.edit_rationale(ids[2], {"summary": "Seen by me."}, who="Ana")
        for writer in (None, model):
            found = plan(pool, writer, ledger=ledger)
            assert (found.persons, found.kept, found.replaces) == (1, {"imported": 1, "model-y": 1}, {})
            assert found.ids == ([] if writer is None else ids[3:]), "measured texts can be had again"
        found = plan(pool, model, ledger=ledger, over_others=True, over_persons=True)
        assert found.ids == ids and found.replaces == {"imported": 1, "model-y": 1, "Ana": 1} and not found.kept
        assert plan(pool, model, ledger=ledger, over_others=True, limit=1).replaces == {"imported": 1}
        report = write(pool, model, ids, ledger=ledger)  # as if the others wrote while the batch ran
        assert report.written == ids[3:] and [f.id for f in report.faults] == ids[:3] and "model-y" in report.faults[1].message
        assert write(pool, model, found.ids, ledger=ledger, over_others=True, over_persons=True).written == ids
        assert len(pool.rationale_versions(ids[0])) == 3, "nothing is lost"


def test_measured_writer_adds_a_version_only_where_something_changed(tmp_path, head, ledger):
    with small_pool(tmp_path / "pool", head, 2) as pool:
        assert plan(pool, None).ids == [] and plan(pool, None).done == 2
        pool.add_rationale(pool.ids()[0], replace(PERSON, writer="imported"))
        todo = plan(pool, None, over_others=True).ids
        assert write(pool, None, todo, ledger=ledger, over_others=True).written == todo == pool.ids()[:1]
        assert [r.writer for r in pool.rationale_versions(pool.ids()[0])] == ["measured", "imported", "measured"]
        write(pool, None, pool.ids(), ledger=ledger)
        assert len(pool.rationale_versions(pool.ids()[1])) == 1 and not ledger.path.exists()


def test_a_case_deleted_meanwhile_does_not_stop_the_others(tmp_path, head, ledger):
    with serving(echo) as server, small_pool(tmp_path / "pool", head, 3) as pool:
        ids = pool.ids()
        server.script = lambda n, h: (pool.delete(ids[0]) if n == 0 else None, echo(n, h))
        report = write(pool, endpoint(server, ledger, parallel=1), ids, ledger=ledger)
        assert report.written == ids[1:] and [f.id for f in report.faults] == ids[:1]
        with pytest.raises(PoolError, match="no case"):
            plan(pool, None, [ids[0]])


def test_a_damaged_case_does_not_stop_the_others(tmp_path, head, ledger):
    with serving(echo) as server, small_pool(tmp_path / "pool", head, 3) as pool:
        ids, model = pool.ids(), endpoint(server, ledger)
        files = {path: path.read_bytes() for path in (tmp_path / "pool" / "arrays").rglob("*.npz")}
        for path, data in files.items():
            path.write_bytes(data[:100])
            try:
                pool.get(ids[0])
            except PoolError:
                break
            path.write_bytes(data)
        found = plan(pool, model, ledger=ledger)
        assert found.ids == ids and found.preview_id == ids[1]
        report = write(pool, model, ids, ledger=ledger)
        assert sorted(report.written) == sorted(ids[1:]) and [f.id for f in report.faults] == ids[:1]
        assert "damaged" in report.faults[0].message and report.stopped is None
        with pytest.raises(PoolError, match="damaged"):
            plan(pool, model, ids[:1], ledger=ledger)


def test_several_requests_run_at_a_time_and_no_more(tmp_path, head, ledger):
    lock, now, most = threading.Lock(), [0], [0]
    meet = threading.Barrier(3, timeout=5)

    def script(number, handler):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        if number < 3:
            meet.wait()
        with lock:
            now[0] -= 1
        echo(number, handler)

    with serving(script) as server, small_pool(tmp_path / "pool", head, 7) as pool:
        assert len(write(pool, endpoint(server, ledger, parallel=3), pool.ids(), ledger=ledger).written) == 7 and most[0] == 3


def test_estimate_of_cost(tmp_path, head, ledger):
    with serving(always(GOOD)) as server, small_pool(tmp_path / "pool", head, 3) as pool:
        model = endpoint(server, ledger)
        first = plan(pool, model, ledger=ledger, prices=(1.0, 10.0)).estimate
        assert first.seconds is None and 300 < first.tokens_in / 3 < 2000 and first.cost > 0 and not server.bodies
        write(pool, model, pool.ids()[:1], ledger=ledger)
        second = plan(pool, model, ledger=ledger, prices=(1.0, 10.0), limit=1).estimate
        assert (second.tokens_in, second.tokens_out, second.requests) == (700, 90, 1) and second.cost == pytest.approx(0.0016)


def test_an_unusable_config_folder_means_nothing_is_sent(tmp_path, head):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriterError, match="nothing was sent"):
        Ledger(tmp_path / "file").grant("http://x/v1", False)
    broken = Ledger(tmp_path / "config")
    broken.path.parent.mkdir()
    broken.path.write_bytes(b"not a database at all" * 100)
    with serving(echo) as server, small_pool(tmp_path / "pool", head, 1) as pool:
        report = write(pool, Endpoint(server.url, "m", Prompt.load(), ledger=broken), pool.ids(), ledger=broken)
        assert "nothing was sent" in report.stopped and server.connections == 0 and not report.written


# ---- tables


def test_tables_become_versions(tmp_path, head):
    table = tmp_path / "gpt5.csv"
    table.write_text(
        'image,cot\ncase0,"Texture: Hypointense.\nBoundary: b\nContext: c\nSummary: s"\n'
        'case1.png,"Texture: t\nBoundary: b\nContext: c\nSummary: s"\ncase2,"Texture: t"\nelsewhere,"Texture: t"\n',
        "utf-8",
    )
    with small_pool(tmp_path / "pool", head, 4) as pool:
        ids = pool.ids()
        pool.add_rationale(ids[1], PERSON)
        report = import_table(pool, table)
        assert (report.ids, report.persons, report.unmatched, report.contradicting) == (ids[:1], 1, 1, 1)
        assert [line for line, _ in report.faults] == [10]
        new = pool.get(ids[0]).rationale
        assert (new.writer, new.version, new.part("texture")) == ("imported", "gpt5", "Hypointense.")
        assert new.descriptors == pool.rationale_versions(ids[0])[0].descriptors and new.descriptors
        again = import_table(pool, table)
        assert (again.ids, again.unchanged) == ([], 1) and len(pool.rationale_versions(ids[0])) == 2
        over = import_table(pool, table, over_persons=True)
        assert over.ids == ids[1:2] and over.replaces == {"person": 1} and report.replaces == {}
        twin = small_case(9, head, source="case0.png")
        pool.add(twin)
        assert "2 cases" in import_table(pool, table).faults[0][1]


def test_a_table_replaces_texts_of_others_only_when_told(tmp_path, head):
    """As a writer does; another table is another's, the same one mended is not."""
    table, other = tmp_path / "gpt5.csv", tmp_path / "reader.csv"

    def text(words: str) -> str:
        return "image,cot\n" + "".join(f'case{n},"Texture: {words}\nBoundary: b\nContext: c\nSummary: s"\n' for n in range(3))

    table.write_text(text("First."), "utf-8")
    other.write_text(text("Other."), "utf-8")
    with small_pool(tmp_path / "pool", head, 3) as pool:
        ids = pool.ids()
        pool.add_rationale(ids[1], replace(pool.get(ids[1]).rationale, writer="model-y"))
        pool.add_rationale(ids[2], PERSON)
        for dry_run in (True, False):
            report = import_table(pool, table, dry_run=dry_run)
            assert (report.ids, report.kept, report.replaces, report.persons) == (ids[:1], {"model-y": 1}, {}, 1)
        assert pool.get(ids[1]).rationale.writer == "model-y"
        report = import_table(pool, other)
        assert (report.ids, report.kept, report.persons) == ([], {"imported": 1, "model-y": 1}, 1)
        table.write_text(text("Mended."), "utf-8")
        report = import_table(pool, table)
        assert (report.ids, report.kept, report.replaces) == (ids[:1], {"model-y": 1}, {"imported": 1})
        report = import_table(pool, other, over_others=True)
        assert (report.ids, report.kept, report.replaces, report.persons) == (ids[:2], {}, {"imported": 1, "model-y": 1}, 1)
        assert [r.writer for r in pool.rationale_versions(ids[1])] == ["measured", "model-y", "imported"]


def test_a_name_in_other_letters_is_told(tmp_path, head):
    (tmp_path / "t.csv").write_text(
        "image,cot\n" + "".join(f'{name},"Texture: t\nBoundary: b\nContext: c\nSummary: s"\n' for name in ("CASE0.PNG", "Case1", "none"))
    )
    with small_pool(tmp_path / "pool", head, 2) as pool:
        report = import_table(pool, tmp_path / "t.csv")
        assert (report.ids, report.unmatched) == ([], 1)
        assert [message for _, message in report.faults] == [
            "no case comes from 'CASE0.PNG', but one does from 'case0.png'. Write it so.",
            "no case comes from 'Case1', but one does from 'case1'. Write it so.",
        ]


def test_a_case_that_a_table_tells_of_twice_is_named(tmp_path, head):
    table = tmp_path / "two-readers.csv"
    rest = "\nBoundary: b\nContext: c\nSummary: s"
    table.write_text(
        f'image,cot\ncase0,"Texture: Dark.{rest}"\ncase0.png,"Texture: Bright.{rest}"\ncase0,"Texture: Dark.{rest}"\n', "utf-8"
    )
    with small_pool(tmp_path / "pool", head, 1) as pool:
        for dry_run in (True, False):
            report = import_table(pool, table, dry_run=dry_run)
            assert report.ids == pool.ids() and report.unchanged == 1
            assert [(line, "another text in line 2" in message) for line, message in report.faults] == [(6, True)]
        assert pool.get(pool.ids()[0]).rationale.part("texture") == "Dark."
        assert len(pool.rationale_versions(pool.ids()[0])) == 2


def test_what_a_table_claims_and_nobody_measured_is_marked_once(tmp_path, head):
    table = tmp_path / "gpt5.csv"
    table.write_text('image,cot\ncase0,"Texture: Low noise.\nBoundary: Sharp.\nContext: Near vessels.\nSummary: Round."\n', "utf-8")
    with small_pool(tmp_path / "pool", head, 1) as pool:
        report = import_table(pool, table)
        assert (report.unmeasured, report.sentences) == (2, 4) and report.to_dict()["unmeasured"] == 2
        text = pool.get(report.ids[0]).rationale.text
        assert "Low noise. [not measured: noise]" in text and "[not measured: vessels]" in text and "Sharp.\n" in text
        assert import_table(pool, table).unchanged == 1


def test_real_table(tmp_path, cers_data, head):
    name = "brisc2025_test_00001_gl_ax_t1"
    with Pool.create(tmp_path / "pool") as pool:
        pool.add(small_case(0, head, source=f"{name}.jpg"))
        for table in ("mask", "no_mask"):
            assert len(import_table(pool, cers_data / "brisc2025" / f"cot_output_gpt5_{table}.csv", over_others=True).ids) == 1
        assert [r.writer for r in pool.rationale_versions(pool.ids()[0])] == ["measured", "imported", "imported"]


# ---- templates


def test_templates(tmp_path):
    prompt = Prompt.load()
    assert names() == ["rationale-1"] and prompt.version.startswith("rationale-1+") and prompt == Prompt.load("rationale-1")
    for name in ("none", "../model/config", "a b"):
        with pytest.raises(InputError, match="rationale-1"):
            Prompt.load(name)
    for text in (
        "hello",
        "[system]\nx\n[user]\n$draft $patient\n[picture]\np\n[text only]\nt\n",
        "[system]\nx\n[user]\n$about\n[picture]\np\n[text only]\nt\n",
    ):
        (tmp_path / "own.txt").write_text(text)
        with pytest.raises(InputError):
            Prompt.load(tmp_path / "own.txt")


# ---- the command


@pytest.fixture
def cers(tmp_path, monkeypatch, capsys):
    """Run ``cers rationale`` in this process, as if no terminal were there: exit code, stdout and stderr."""
    from cers.cli import main

    monkeypatch.setenv("CERS_CONFIG", str(tmp_path / "config"))
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def run(*words):
        code = main(["rationale", *map(str, words)])
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return run


def test_the_command_from_consent_to_log(tmp_path, head, cers):
    with small_pool(tmp_path / "pool", head, 2) as pool:
        ids = pool.ids()
    with serving(echo) as server:
        words = ["write", tmp_path / "pool", "--writer", "endpoint", "--url", server.url, "--model", "m"]
        dry = cers(*words, "--with-picture", "--dry-run", "--save-picture", tmp_path / "seen.png")
        assert dry.returncode == 0 and "2 requests" in dry.stdout and "Measured findings" in dry.stdout
        assert (tmp_path / "seen.png").read_bytes()[:4] == b"\x89PNG"
        refused = cers(*words, "--yes")
        assert refused.returncode == 1 and "consent grant" in refused.stderr and "Traceback" not in refused.stderr
        assert cers("consent", "grant", server.url).returncode == 2 and server.connections == 0
        assert cers("consent", "grant", server.url, "--yes").returncode == 0
        assert server.url in cers("consent", "list").stdout
        assert cers(*words).returncode == 2 and server.connections == 0  # nobody is there to say yes
        done = cers(*words, "--yes", "--json")
        assert done.returncode == 0 and sorted(json.loads(done.stdout)["written"]) == sorted(ids) and len(server.bodies) == 2
        logged = json.loads(cers("log", "--json").stdout)
        assert [e["endpoint"] for e in logged] == [server.url] * 2
        assert "Withdrew 1" in cers("consent", "withdraw").stdout and "No consent" in cers("consent", "list").stdout


def test_the_command_says_what_is_wrong(tmp_path, head, cers):
    small_pool(tmp_path / "pool", head, 1).close()
    for words, said in (
        (["--writer", "endpoint"], "--url"),
        (["--writer", "local"], "--model"),
        (["--case", "zz"], "zz"),
        (["--writer", "endpoint", "--url", "http://k:s@x", "--model", "m"], "must not hold"),
        (["--writer", "local", "--model", str(tmp_path / "none.gguf")], "no file"),
    ):
        done = cers("write", tmp_path / "pool", *words)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    words = ("--writer", "endpoint", "--url", "http://x", "--model", "m", "--over-others", "--save-picture", tmp_path / "sent.png")
    for more in (["--dry-run"], ["--with-picture", "--yes"]):
        done = cers("write", tmp_path / "pool", *words, *more)
        assert done.returncode == 2 and "--with-picture" in done.stderr and not (tmp_path / "sent.png").exists()
    assert cers("write", tmp_path / "pool", *words, "--dry-run", "--with-picture").returncode == 0 and (tmp_path / "sent.png").exists()
    assert "1 has this text" in cers("write", tmp_path / "pool").stdout


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_in_mid_writing_tells_what_was_written(tmp_path, head, cers, monkeypatch):
    from cers.rationale.writers import batch

    small_pool(tmp_path / "pool", head, 6).close()
    real, handler = batch.measured_of, signal.default_int_handler

    def press(case):
        monkeypatch.setattr(batch, "measured_of", real)
        os.kill(os.getpid(), signal.SIGINT)  # while the first case is at work
        return real(case)

    inherited = signal.signal(signal.SIGINT, handler)  # a shell lets its background jobs ignore Ctrl-C
    try:
        monkeypatch.setattr(batch, "measured_of", press)
        done = cers("write", tmp_path / "pool", "--again", "--json")
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, inherited)
    report = json.loads(done.stdout)
    left = 6 - len(report["written"])
    assert done.returncode == 130 and report["cancelled"] and left > 0, done
    assert f"{left} rationales were not written" in done.stderr
    done = cers("write", tmp_path / "pool", "--again")
    assert done.returncode == 0 and "Wrote 6" in done.stdout
