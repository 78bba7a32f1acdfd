"""The requests about writers of rationales: what would be sent, consent, batches, tables, and the log of what was sent.

Connections are made here, in the worker, by ``rationale_write`` alone, and only to an endpoint that the user has agreed to.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from ..errors import InputError, WriterError
from ..rationale import writers
from ..rationale.writers.batch import measured_of
from .methods import Methods, params
from .pool_requests import _writable
from .server import Job

SCOPES = ("all", "missing", "stale")
_WRITER = {
    "writer_": str,
    "url": str,
    "model": str,
    "picture": bool,
    "key_source": str,
    "key_variable": str,
    "parallel": int,
    "timeout": (int, float),
}
_WHAT = {"scope": str, "ids": list, "again": bool, "over_persons": bool, "over_others": bool}


@dataclass
class Writing:
    """What the worker keeps between these requests: a loaded local model under its name, and the last batch."""

    name: str | None = None
    model: object | None = None
    report: writers.WriteReport | None = None


@params()
def overview(self: Methods, job: Job, given: dict) -> dict:
    return writers.overview(self._pool()).to_dict()


@params(**_WRITER, **_WHAT, prices=list)
def plan(self: Methods, job: Job, given: dict) -> dict:
    """What a batch would do and cost, and exactly what would be sent for its first case; opens no connection."""
    pool, prices = self._pool(), given.get("prices")
    if prices is not None and (len(prices) != 2 or not all(isinstance(p, (int, float)) and p >= 0 for p in prices)):
        raise InputError("The prices must be two numbers, for a million tokens in and out.")
    job.progress(0.1, "Loading the model" if given["writer"] == "local" else "Looking through the cases")
    model = _model(self, given, key=False)
    job.check()
    out = writers.plan(
        pool,
        model,
        _cases(pool, given),
        again=bool(given.get("again")),
        over_persons=bool(given.get("over_persons")),
        over_others=bool(given.get("over_others")),
        prices=None if prices is None else tuple(prices),
    )
    preview = None
    if out.preview is not None:
        picture = None if out.preview.picture is None else self._save("written-picture", _pixels(out.preview.picture))
        preview = {
            "id": out.preview_id,
            "system": out.preview.system,
            "user": out.preview.user,
            "picture": picture,
            "bytes": len(out.preview.body),
            "sha256": out.preview.sha256,
        }
    endpoint = None
    if isinstance(model, writers.Endpoint):
        endpoint = {
            **_where(model.url),
            "picture": model.with_picture,
            "consent": model.ledger.allows(model.url, model.with_picture),
            **_key_state(given, model.url),
        }
    return {
        "ids": out.ids,
        "done": out.done,
        "persons": out.persons,
        "cached": out.cached,
        "kept": out.kept,
        "replaces": out.replaces,
        "preview": preview,
        "endpoint": endpoint,
        "estimate": None if out.estimate is None else vars(out.estimate),
        "name": "measured" if model is None else model.name,
    }


@params(**_WRITER, **_WHAT)
def write(self: Methods, job: Job, given: dict) -> dict:
    """Write rationales; what was finished stays, also where it is cancelled, and ``rationale_report`` tells of it."""
    pool = _writable(self, given)
    self.writing.report = None
    ids = _cases(pool, given)
    job.progress(0.0, "Loading the model" if given["writer"] == "local" else "Beginning")
    model = _model(self, given, key=True)
    if isinstance(model, writers.Endpoint) and not model.ledger.allows(model.url, model.with_picture):
        raise WriterError(f"Nothing was sent to {model.url}, because you have not agreed to it.", fatal=True)
    wanted = {name: bool(given.get(name)) for name in ("again", "over_persons", "over_others")}
    todo = writers.plan(pool, model, ids, **wanted, estimate=False).ids
    job.check()
    self.writing.report = writers.write(pool, model, todo, **wanted, progress=job.progress, cancel=job.cancelled.is_set)
    return _report(self.writing.report)


@params()
def report(self: Methods, job: Job, given: dict) -> dict:
    """The last batch of this worker, also a cancelled one."""
    return {"report": None if self.writing.report is None else _report(self.writing.report)}


@params(id_=str)
def compare(self: Methods, job: Job, given: dict) -> dict:
    """A case's measured text beside its current one, with what was wrong with the sentences that gave way."""
    pool = self._pool()
    case = pool.get(given["id"])
    last = self.writing.report
    return {
        "id": case.id,
        "measured": measured_of(case).to_dict(),
        "current": None if case.rationale is None else case.rationale.to_dict(),
        "findings": [vars(f) for f in ([] if last is None else last.findings.get(case.id, []))],
    }


@params()
def consents(self: Methods, job: Job, given: dict) -> dict:
    return {"consents": [{**vars(c), **_where(c.endpoint)} for c in writers.Ledger().consents()]}


@params(url_=str, picture=bool)
def grant(self: Methods, job: Job, given: dict) -> dict:
    """Remember the user's consent for one endpoint. A client sends this only after the user has read what it means and agreed."""
    url = writers.endpoint_url(given["url"])
    writers.Ledger().grant(url, bool(given.get("picture")))
    return _where(url)


@params(url=str)
def withdraw(self: Methods, job: Job, given: dict) -> dict:
    return {"withdrawn": writers.Ledger().withdraw(None if given.get("url") is None else writers.endpoint_url(given["url"]))}


@params(last=int)
def log(self: Methods, job: Job, given: dict) -> dict:
    return {"entries": [vars(e) for e in reversed(writers.Ledger().log(given.get("last") or 200))]}


@params(csv_=str, version=str, over_persons=bool, over_others=bool, dry_run=bool)
def import_csv(self: Methods, job: Job, given: dict) -> dict:
    return writers.import_table(
        _writable(self, given),
        given["csv"],
        version=given.get("version"),
        dry_run=bool(given.get("dry_run")),
        over_persons=bool(given.get("over_persons")),
        over_others=bool(given.get("over_others")),
        progress=job.progress,
        cancel=job.cancelled.is_set,
    ).to_dict()


def _cases(pool, given: dict) -> list[str] | None:
    """Ids of the cases meant; None for all."""
    if given.get("ids") is not None:
        if not all(isinstance(i, str) for i in given["ids"]):
            raise InputError("'ids' must be a list of case ids.")
        return given["ids"]
    scope = given.get("scope") or "all"
    if scope not in SCOPES:
        raise InputError(f"There is no choice of cases '{scope}'. Use one of {', '.join(SCOPES)}, or give ids.")
    if scope == "all":
        return None
    state = writers.overview(pool)
    return state.missing if scope == "missing" else state.stale


def _model(self: Methods, given: dict, *, key: bool):
    """The writer asked for, None for the measured one. key: whether the endpoint's key is needed."""
    writer, name = given["writer"], (given.get("model") or "").strip()
    if writer == "measured":
        return None
    if writer == "local":
        if self.writing.name != name or self.writing.model is None:
            self.writing.model = None  # before the next one takes its memory
            self.writing.model, self.writing.name = writers.local_model(name, writers.Prompt.load()), name
        return self.writing.model
    if writer != "endpoint":
        raise InputError(f"There is no writer '{writer}'. Use measured, endpoint or local.")
    url, parallel, timeout = writers.endpoint_url(given.get("url") or ""), given.get("parallel") or 4, given.get("timeout") or 120.0
    if not 1 <= parallel <= 64 or not 1 <= timeout <= 3600:
        raise InputError("Ask for 1 to 64 requests at a time, and give each 1 to 3600 seconds.")
    secret = writers.key_from(given.get("key_source") or "none", url, given.get("key_variable")) if key else None
    return writers.Endpoint(
        url, name, writers.Prompt.load(), picture=bool(given.get("picture")), key=secret, parallel=parallel, seconds=timeout
    )


def _key_state(given: dict, url: str) -> dict:
    """Whether there is a key where the user said; never the key."""
    try:
        return {"key": writers.key_from(given.get("key_source") or "none", url, given.get("key_variable")) is not None, "key_problem": None}
    except InputError as error:
        return {"key": False, "key_problem": str(error)}


def _where(url: str) -> dict:
    return {"url": url, "host": urlsplit(url).hostname, "local": writers.is_loopback(url), "encrypted": url.startswith("https:")}


def _report(done: writers.WriteReport) -> dict:
    found = {i: [f.kind == "unmeasured" for f in done.findings.get(i, ())] for i in done.written}
    return {**done.to_dict(), "written": [{"id": i, "replaced": len(u) - sum(u), "unmeasured": sum(u)} for i, u in found.items()]}


def _pixels(png: bytes) -> np.ndarray:
    """(rows, columns, 3) uint8."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


TABLE: dict[str, Callable] = {
    "rationale_overview": overview,
    "rationale_plan": plan,
    "rationale_write": write,
    "rationale_report": report,
    "rationale_compare": compare,
    "rationale_consents": consents,
    "rationale_grant": grant,
    "rationale_withdraw": withdraw,
    "rationale_log": log,
    "rationale_import": import_csv,
}
