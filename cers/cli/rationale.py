"""``cers rationale``: have rationales written, import those of others, and keep in hand what is sent where."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..words import counted, plural, were
from .output import command, fail, progress, say_json, stoppable

rationale_app = typer.Typer(
    no_args_is_help=True,
    help="Have the rationales of a pool's cases written, and import those of others.\n\n"
    "cers rationale write my-pool --writer measured\n\n"
    "cers rationale write my-pool --writer endpoint --url http://localhost:11434/v1 --model qwen3 --dry-run",
)
consent_app = typer.Typer(no_args_is_help=True, help="What may be sent where. Without consent nothing is sent.")
key_app = typer.Typer(no_args_is_help=True, help="Keys of endpoints in the system's keyring (needs the package keyring).")
rationale_app.add_typer(consent_app, name="consent")
rationale_app.add_typer(key_app, name="key")

_POOL = Annotated[Path, typer.Argument(metavar="POOL", help="The pool's folder.", show_default=False)]
_URL = Annotated[str, typer.Argument(metavar="URL", help="The endpoint's base URL, such as http://localhost:11434/v1.", show_default=False)]
_JSON = Annotated[bool, typer.Option("--json", help="For machines: JSON on stdout, nothing else.")]
_PERSONS = Annotated[
    bool, typer.Option("--over-persons", help="Also where a person wrote the text; that version stays, but is no longer current.")
]
_OTHERS = Annotated[
    bool,
    typer.Option(
        "--over-others", help="Also where another language model or a table gave the text; that version stays, but is no longer current."
    ),
]


class Writer(str, Enum):
    measured = "measured"
    endpoint = "endpoint"
    local = "local"


@rationale_app.command()
@command(cancelled="Cancelled. What was written so far stays in the pool; the same command goes on from there.")
def write(
    folder: _POOL,
    writer: Annotated[
        Writer,
        typer.Option(help="measured: from the numbers, offline. endpoint: an OpenAI-compatible server. local: a model on this machine."),
    ] = Writer.measured,
    url: Annotated[Optional[str], typer.Option(help="Endpoint's base URL.")] = None,
    model: Annotated[
        Optional[str],
        typer.Option(
            help="Endpoint: the model's name there. Local: a .gguf file, a folder of transformers, "
            "or an installed package that ships a .gguf file."
        ),
    ] = None,
    picture: Annotated[bool, typer.Option("--with-picture/--text-only", help="Endpoint: send the redacted picture, too.")] = False,
    key_env: Annotated[
        Optional[str],
        typer.Option(
            help="Environment variable with the endpoint's key. Default: the keyring, then CERS_API_KEY if CERS_API_URL is an address "
            "of the same host. Over http to another machine anyone on the way can read the key; it says so."
        ),
    ] = None,
    prompt: Annotated[Optional[str], typer.Option(help="Prompt template: a name, or a .txt file.")] = None,
    case: Annotated[Optional[list[str]], typer.Option(help="Only this case (id or its beginning); may be repeated.")] = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Cases to write at most.")] = None,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Endpoint: requests at a time.")] = 4,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one request, from first to last byte.")] = 120.0,
    attempts: Annotated[int, typer.Option(min=1, max=20, help="Tries for one case.")] = 4,
    threads: Annotated[Optional[int], typer.Option(min=1, help="Local: CPU threads.")] = None,
    price: Annotated[
        Optional[tuple[float, float]], typer.Option(metavar="IN OUT", help="Price of a million tokens in and out, for the estimate.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also cases that have this writer's text, and without kept answers.")] = False,
    over_persons: _PERSONS = False,
    over_others: _OTHERS = False,
    save_picture: Annotated[
        Optional[Path], typer.Option(help="With --dry-run --with-picture: write the first case's picture here (.png).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the estimate and exactly what would be sent for the first case; send nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start without asking. It is no consent to send; see consent grant.")] = False,
    as_json: _JSON = False,
) -> None:
    """Write rationales, each as a new version of its case. Earlier versions stay; a second run does only what is missing.

    A language model's text is held to the measured numbers: what contradicts them gives way to the measured sentence, and is marked.
    """
    from ..rationale import writers

    if save_picture is not None and not (dry_run and picture):
        fail("No picture would be saved: add --dry-run and --with-picture to --save-picture.", 2)
    if writer is Writer.measured and (url or model or picture or key_env or prompt):
        fail("--url, --model, --with-picture, --key-env and --prompt are for language models: add --writer endpoint or --writer local.", 2)
    with _open(folder, write=not dry_run) as pool:
        ids = None if case is None else [_resolve(pool, c) for c in case]
        writer_model = _model(writer, url, model, picture, key_env, prompt, parallel, timeout, threads)
        over = {"again": again, "over_persons": over_persons, "over_others": over_others}
        plan = writers.plan(pool, writer_model, ids, **over, limit=limit, prices=price)
        if dry_run:
            _show_plan(plan, writer_model, as_json, save_picture)
            return
        if not as_json:
            _say_plan(plan)
        if writer is Writer.endpoint and plan.ids:
            _ask_consent(writer_model, as_json)
        if plan.replaces and not yes and not as_json and sys.stdin.isatty():
            if not typer.confirm(f"Replace {counted(sum(plan.replaces.values()), 'text')} of others?"):
                fail("Cancelled. Nothing was written.", 130)
        if writer is not Writer.measured and plan.ids and not yes:
            if not sys.stdin.isatty() or as_json:
                fail("Add --yes to start without being asked, or --dry-run to see what would be sent.", 2)
            if not typer.confirm("Start?"):
                fail("Cancelled. Nothing was written.", 130)
        retry = writers.Retry(attempts=attempts)
        with progress() as show, stoppable("the cases under way") as stop:
            report = writers.write(pool, writer_model, plan.ids, **over, retry=retry, progress=show, cancel=stop)
    if as_json:
        more = {"done_before": plan.done, "persons": plan.persons, "kept": plan.kept, "replaced_writers": plan.replaces}
        say_json({**report.to_dict(), **more})
    else:
        print(
            f"Wrote {counted(len(report.written), 'rationale')}"
            + (f", {report.cached} of them from kept answers." if report.cached else ".")
        )
        if report.replaced:
            print("Sentences that gave way to measured ones: " + ", ".join(f"{n} ({kind})" for kind, n in sorted(report.replaced.items())))
        if report.unmeasured:
            claim = "claims what was not measured; it stays" if report.unmeasured == 1 else "claim what was not measured; they stay"
            print(f"{counted(report.unmeasured, 'sentence')} {claim}, marked so.")
    for fault in report.faults:
        print(f"Not written: {fault.id}: {fault.message}", file=sys.stderr)
    if report.cancelled:
        left = len(plan.ids) - len(report.written) - len(report.faults)
        then = "With --again the same command begins anew." if again else "The same command goes on from there."
        fail(f"Cancelled: {were(left, 'rationale')} not written. {then}", 130)
    if report.stopped:
        fail(f"Stopped: {report.stopped}", 1)
    if report.faults:
        fail(f"{counted(len(report.faults), 'rationale')} could not be written.", 1)


def _model(writer: Writer, url, name, picture, key_env, prompt_name, parallel, timeout, threads):
    from ..errors import InputError
    from ..rationale import writers

    if writer is Writer.measured:
        return None
    if not name or (writer is Writer.endpoint) != bool(url):
        raise InputError("The endpoint writer needs --url and --model; the local writer needs --model alone.")
    prompt = writers.Prompt.load(prompt_name) if prompt_name else writers.Prompt.load()
    if writer is Writer.local:
        if picture:
            raise InputError("Local models write from the findings alone. Leave out --with-picture.")
        return writers.local_model(name, prompt, threads=threads)
    address = writers.endpoint_url(url)
    key = writers.find_key(address, key_env)
    _say_key(address, key)
    return writers.Endpoint(address, name, prompt, picture=picture, key=key, seconds=timeout, parallel=parallel)


def _say_key(address: str, key: str | None) -> None:
    """What the user should know of the key: that others can read it, or that the one at hand is not used."""
    from ..rationale.writers.endpoint import KEY_VARIABLE, URL_VARIABLE, key_in_clear

    if key_in_clear(address, key):
        print(f"The key goes to {address} unencrypted: anyone on the way can read it. Use an https address.", file=sys.stderr)
    elif key is None and os.environ.get(KEY_VARIABLE):
        print(
            f"{KEY_VARIABLE} is not sent to {address}. If it is for that host, set {URL_VARIABLE} to the address, or add "
            f"--key-env {KEY_VARIABLE}.",
            file=sys.stderr,
        )


def _ask_consent(model, as_json: bool) -> None:
    """On a terminal consent can be given on the spot; elsewhere the refusal says how."""
    from ..errors import WriterError
    from ..rationale import writers

    if model.ledger.allows(model.url, model.with_picture):
        return
    text = writers.consent_text(model.url, model.with_picture)
    if not sys.stdin.isatty() or as_json:
        raise WriterError(
            f"{text}. You have not agreed to this yet. To agree: cers rationale consent grant {model.url}"
            f"{' --with-picture' if model.with_picture else ''}"
        )
    print(text)
    if not typer.confirm("Do you agree?"):
        fail("Nothing was sent.", 130)
    model.ledger.grant(model.url, model.with_picture)


def _names(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _say_kept(kept: dict[str, int]) -> None:
    print(f"Texts of others stay: {_names(kept)}. Add --over-others to replace them.")


def _say_plan(plan) -> None:
    print(
        f"{counted(len(plan.ids))} to write; {plan.done} {plural(plan.done, 'has', 'have')} this text already"
        + (
            f"; {plan.persons} {plural(plan.persons, 'was written by a person and stays', 'were written by a person and stay')}."
            if plan.persons
            else "."
        )
    )
    if plan.kept:
        _say_kept(plan.kept)
    if plan.replaces:
        print(f"Texts of others that will be replaced: {_names(plan.replaces)}.")
    if (e := plan.estimate) is not None:
        cost = "price not known (see --price)" if e.cost is None else f"cost about {e.cost:.2f}"
        took = "" if e.seconds is None else f", about {e.seconds / 60:.0f} min" if e.seconds >= 90 else f", about {e.seconds:.0f} s"
        print(
            f"{counted(e.requests, 'request')}, {counted(plan.cached, 'answer')} at hand; about {e.tokens_in:,} tokens in and "
            f"{e.tokens_out:,} out{took}; {cost}."
        )


def _show_plan(plan, model, as_json: bool, save_picture: Path | None) -> None:
    """The estimate, and the first request just as it would leave."""
    first = plan.preview
    if save_picture is not None and first is not None and first.picture is not None:
        from ..case.io import atomic_path, check_output

        with atomic_path(check_output(save_picture, (".png",))) as temporary:
            temporary.write_bytes(first.picture)
    if as_json:
        estimate = None if plan.estimate is None else vars(plan.estimate)
        say_json(
            {
                "cases": plan.ids,
                "done": plan.done,
                "persons": plan.persons,
                "kept": plan.kept,
                "replaces": plan.replaces,
                "cached": plan.cached,
                "estimate": estimate,
                "preview": None
                if first is None
                else {
                    "to": getattr(model, "url", None),
                    "sha256": first.sha256,
                    "bytes": len(first.body),
                    "body": first.body.decode("utf-8"),
                },
            }
        )
        return
    _say_plan(plan)
    if first is None:
        return
    where = f"to {model.url}, model {model.name}" if hasattr(model, "url") else f"to the model {model.name} on this machine"
    print(f"\nOf the first case this would go {where} ({len(first.body):,} bytes, SHA-256 {first.sha256[:16]}):\n")
    print(f"{first.system}\n\n{first.user}")
    if first.picture is not None:
        print(
            f"\nand a picture of {len(first.picture):,} bytes"
            + (f", written to {save_picture}" if save_picture else "; --save-picture FILE.png shows it")
        )


@rationale_app.command("import")
@command(cancelled="Cancelled. What was imported so far stays in the pool.")
def import_(
    folder: _POOL,
    csv: Annotated[
        Path, typer.Argument(metavar="CSV", help="Table with the columns image (or case) and cot, or image and the four parts.")
    ],
    version: Annotated[Optional[str], typer.Option(help="Kept with the texts, to tell tables apart. Default: the file's name.")] = None,
    over_persons: _PERSONS = False,
    over_others: _OTHERS = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be added; change nothing.")] = False,
    as_json: _JSON = False,
) -> None:
    """Add a table's rationales to the cases of its images, as new versions of the writer "imported". Doing it twice adds nothing twice."""
    from ..rationale import writers

    over = {"over_persons": over_persons, "over_others": over_others}
    with _open(folder, write=not dry_run) as pool, progress() as show:
        report = writers.import_table(pool, csv, version=version, **over, dry_run=dry_run, progress=show)
    if as_json:
        say_json(report.to_dict())
    else:
        print(
            f"{'Would add' if dry_run else 'Added'} {counted(len(report.ids), 'rationale')} of {counted(report.rows, 'row')}; "
            f"{report.unchanged} {plural(report.unchanged, 'was', 'were')} there already, "
            f"{counted(report.unmatched, 'row')} {plural(report.unmatched, 'has', 'have')} no case in this pool"
            + (f", {counted(report.persons)} {plural(report.persons, 'keeps', 'keep')} a person's text." if report.persons else ".")
        )
        if report.kept:
            _say_kept(report.kept)
        if report.replaces:
            print(
                f"Texts of others that {'would give' if dry_run else 'gave'} way, and stay as earlier versions: {_names(report.replaces)}."
            )
        if report.unmeasured:
            claim = "claims what was not measured; it is" if report.unmeasured == 1 else "claim what was not measured; they are"
            print(f"{report.unmeasured} of {counted(report.sentences, 'sentence')} {claim} marked so.")
        if report.contradicting:
            contradict = plural(report.contradicting, "contradicts", "contradict")
            print(f"{report.contradicting} of {counted(report.sentences, 'sentence')} {contradict} the measured descriptors of their case.")
    for line, message in report.faults:
        print(f"Not imported: line {line}: {message}", file=sys.stderr)
    if report.faults:
        fail(f"{counted(len(report.faults), 'row')} could not be imported.", 1)


@rationale_app.command()
@command
def log(last: Annotated[int, typer.Option("-n", min=1, help="Entries to show.")] = 20, as_json: _JSON = False) -> None:
    """Show what was sent where: time, endpoint, size, hash, outcome. It holds no picture, text or case."""
    from ..rationale.writers import Ledger

    entries = Ledger().log(last)
    if as_json:
        say_json([vars(e) for e in entries])
        return
    for e in entries:
        took = "" if e.seconds is None else f"{e.seconds:.1f} s"
        print(
            "\t".join(
                [
                    e.time,
                    e.endpoint,
                    e.model,
                    "picture" if e.picture else "text",
                    f"{e.bytes} bytes",
                    e.sha256[:16],
                    e.outcome or "not finished",
                    took,
                ]
            )
        )
    print(counted(len(entries), "entry", "entries"))


@rationale_app.command("forget-answers")
@command
def forget_answers() -> None:
    """Drop the answers kept for asking twice. Rationales in pools stay."""
    from ..rationale.writers import Ledger

    print(f"Dropped {counted(Ledger().forget_answers(), 'answer')}.")


@consent_app.command("list")
@command
def consent_list(as_json: _JSON = False) -> None:
    """List the consents that hold."""
    from ..rationale.writers import Ledger

    consents = Ledger().consents()
    if as_json:
        say_json([vars(c) for c in consents])
        return
    for c in consents:
        print(f"{c.endpoint}\t{'findings and pictures' if c.picture else 'findings only'}\tsince {c.granted}")
    if not consents:
        print("No consent: nothing is sent anywhere.")


@consent_app.command("grant")
@command
def consent_grant(
    url: _URL,
    picture: Annotated[bool, typer.Option("--with-picture", help="Pictures, too.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="You have read it and agree.")] = False,
) -> None:
    """Agree that rationales of your cases may be asked of an endpoint. It says first what will be sent."""
    from ..rationale import writers

    address = writers.endpoint_url(url)
    print(writers.consent_text(address, picture))
    if not yes:
        if not sys.stdin.isatty():
            fail("Nothing was granted. Add --yes if you agree.", 2)
        if not typer.confirm("Do you agree?"):
            fail("Nothing was granted.", 130)
    writers.Ledger().grant(address, picture)
    print("Granted.")


@consent_app.command("withdraw")
@command
def consent_withdraw(url: Annotated[Optional[str], typer.Argument(metavar="URL", help="The endpoint; left out: all.")] = None) -> None:
    """Withdraw consent, for one endpoint or all. A batch under way stops at its next request."""
    from ..rationale import writers

    print(f"Withdrew {writers.Ledger().withdraw(None if url is None else writers.endpoint_url(url))} consents.")


@key_app.command("set")
@command
def key_set(url: _URL) -> None:
    """Keep an endpoint's key in the system's keyring. It is asked for, or read from stdin; never given on the command line."""
    from ..errors import InputError
    from ..rationale import writers
    from ..rationale.writers.endpoint import KEYRING_SERVICE

    ring, address = _keyring(), writers.endpoint_url(url)
    key = (typer.prompt("Key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not key:
        raise InputError("No key was given. Type it when asked, or send it on stdin.")
    with _keyring_errors(ring):
        ring.set_password(KEYRING_SERVICE, address, key)
    print("Kept in the keyring.")


@key_app.command("remove")
@command
def key_remove(url: _URL) -> None:
    """Take an endpoint's key out of the system's keyring."""
    from ..rationale import writers
    from ..rationale.writers.endpoint import KEYRING_SERVICE

    ring = _keyring()
    with _keyring_errors(ring):
        ring.delete_password(KEYRING_SERVICE, writers.endpoint_url(url))
    print("Removed from the keyring.")


def _keyring():
    from ..errors import InputError
    from ..rationale.writers.endpoint import keyring

    if (ring := keyring()) is None:
        raise InputError("The package keyring is not installed. Run: pip install keyring, or give --key-env instead.")
    return ring


def _keyring_errors(ring):
    from contextlib import contextmanager

    from ..errors import InputError

    @contextmanager
    def translated():
        try:
            yield
        except ring.errors.KeyringError as error:
            raise InputError(f"The system's keyring did not do that ({error}). Unlock it, or use an environment variable.") from error

    return translated()


def _open(folder: Path, write: bool):
    from ..pool import Pool

    return Pool.open(folder, read_only=not write or not os.access(folder, os.W_OK))


def _resolve(pool, text: str) -> str:
    from .pool import _resolve as resolve

    return resolve(pool, text)
