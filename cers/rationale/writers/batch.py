"""Writing the rationales of many cases: what is to do and what it will cost, then one request a case, retried, cached, verified.

Each finished case is in the pool at once, as a new version; stopped at any moment, a second run goes on where the first one ended.
An error is an error: it is reported for its case and never becomes text.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...case import Case, Rationale
from ...errors import Cancelled, CersError, InputError, PoolError, WriterError
from ...words import counted
from ..parse import parse_cot
from ..writer import VERSION, describe
from .ledger import Ledger
from .model import Model, Request, Stop, answer_key
from .verify import Finding, verify

if TYPE_CHECKING:
    from ...pool import Pool

PERSON, MEASURED = "person", "measured"
_TOKENS_OUT = 220  # of a rationale, where nothing is known of the model yet
_PICTURE_TOKENS = 800  # of a picture of 512 pixels, about, with the services of today
_SAMPLE = 8  # cases whose requests are made to estimate the rest
_ROW_OF_FAILURES = 5  # so many cases without an answer in a row, and the server is taken to be down


@dataclass(frozen=True)
class Estimate:
    """What a batch will take. tokens: of all requests, about. seconds, cost: None where there is nothing to tell them from."""

    requests: int
    tokens_in: int
    tokens_out: int
    seconds: float | None = None
    cost: float | None = None


@dataclass
class Plan:
    """ids: cases to write. done: have this writer's text already. persons: texts by a person, which stay. cached: answers at hand.

    kept: name of another writer -> its texts, which stay. replaces: name of a writer or person -> texts that would give way.
    """

    ids: list[str] = field(default_factory=list)
    done: int = 0
    persons: int = 0
    cached: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    replaces: dict[str, int] = field(default_factory=dict)
    preview: Request | None = None
    preview_id: str | None = None
    estimate: Estimate | None = None


@dataclass(frozen=True)
class WriteFault:
    """A case that got no new rationale, and why."""

    id: str
    message: str


@dataclass
class WriteReport:
    """What a batch did. replaced: sentences that gave way to measured ones, by kind. unmeasured: sentences that stay, marked as such.

    stopped: why it ended early, None if it did not.
    """

    written: list[str] = field(default_factory=list)
    cached: int = 0
    replaced: dict[str, int] = field(default_factory=dict)
    unmeasured: int = 0
    faults: list[WriteFault] = field(default_factory=list)
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0
    stopped: str | None = None
    cancelled: bool = False

    def to_dict(self) -> dict:
        return {
            "written": self.written,
            "cached": self.cached,
            "replaced": self.replaced,
            "unmeasured": self.unmeasured,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "stopped": self.stopped,
            "cancelled": self.cancelled,
            "faults": [{"id": f.id, "message": f.message} for f in self.faults],
        }


@dataclass(frozen=True)
class Retry:
    """attempts: tries for one case. first, most: seconds before the second try and at most; in between they double, with some chance."""

    attempts: int = 4
    first: float = 1.0
    most: float = 60.0
    longest_order: float = 600.0  # a server that asks for a longer pause is not waited for

    def pause(self, attempt: int, asked: float | None) -> float:
        """Seconds before try ``attempt`` + 1; what the server asked for, if more."""
        own = min(self.most, self.first * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)
        return max(own, asked or 0.0)


def measured_of(case: Case) -> Rationale:
    """The measured rationale of a case, as when it was imported."""
    return describe(case.image, case.mask > 0, case.spacing, modality=case.modality, plane=case.plane)


def plan(
    pool: Pool,
    model: Model | None,
    ids: Sequence[str] | None = None,
    *,
    ledger: Ledger | None = None,
    again: bool = False,
    over_persons: bool = False,
    over_others: bool = False,
    limit: int | None = None,
    prices: tuple[float, float] | None = None,
    estimate: bool = True,
) -> Plan:
    """What a batch would do; nothing is sent and nothing changed.

    Args:
        model: None for the measured writer. ids: cases; None for all.
        again: also cases that have this writer's text of this version. over_persons: also cases whose text a person wrote.
        over_others: also cases whose text another language model or a table gave; a measured one can be had again and never counts.
        limit: cases to write at most. prices: of a million tokens in and out, in any currency.
        estimate: False for the ids alone, without making a request of any case.
    """
    writer, version = (MEASURED, VERSION) if model is None else (model.name, model.prompt.version)
    listed = {row["id"]: row for row in pool.list()}
    if ids is not None and (unknown := [i for i in ids if i not in listed]):
        raise PoolError(f"There is no case {unknown[0]} in this pool. It may have been deleted; list the pool again.")
    wanted = list(listed) if ids is None else list(dict.fromkeys(ids))
    current = pool.rationales(wanted)
    out, foreign = Plan(), {}
    for case in wanted:
        rationale = current[case][1] if case in current else None
        if rationale is not None and rationale.writer == PERSON and not over_persons:
            out.persons += 1
        elif rationale is not None and (rationale.writer, rationale.version) == (writer, version) and not again:
            out.done += 1
        elif rationale is None or rationale.writer in (writer, MEASURED):
            out.ids.append(case)
        elif rationale.writer == PERSON or over_others:
            out.ids.append(case)
            foreign[case] = rationale.writer
        else:
            out.kept[rationale.writer] = out.kept.get(rationale.writer, 0) + 1
    out.ids = out.ids[:limit]
    names = pool.persons([case for case in out.ids if foreign.get(case) == PERSON])
    out.replaces = dict(Counter(names.get(case, foreign[case]) for case in out.ids if case in foreign).most_common())
    if model is None or not out.ids or not estimate:
        return out
    ledger = Ledger() if ledger is None else ledger
    known = ledger.answered([answer_key(model, listed[i]) for i in out.ids])
    fresh = out.ids if again else [i for i in out.ids if answer_key(model, listed[i]) not in known]
    out.cached = len(out.ids) - len(fresh)
    sample = (fresh or out.ids)[:: max(1, len(fresh or out.ids) // _SAMPLE)][:_SAMPLE]
    requests: dict[str, Request] = {}
    for case_id in sample:
        try:
            case = pool.get(case_id)
            requests[case_id] = model.request(case, measured_of(case))
        except (PoolError, InputError):  # a damaged case, which the batch will name
            if case_id == sample[-1] and not requests:
                raise
    out.preview_id, out.preview = next(iter(requests.items()))
    out.estimate = _estimate(model, list(requests.values()), len(fresh), ledger, prices)
    return out


def _estimate(model: Model, requests: list[Request], count: int, ledger: Ledger, prices: tuple[float, float] | None) -> Estimate:
    """From earlier requests of the same kind where there are any, else from the length of the texts."""
    url = getattr(model, "url", None)
    past = [s for s in ledger.log(1000) if s.outcome == "200" and (s.endpoint, s.model, s.picture) == (url, model.name, model.with_picture)]
    into = statistics.median([len(r.system + r.user) / 4 for r in requests]) + (_PICTURE_TOKENS if model.with_picture else 0)
    out: float = _TOKENS_OUT
    if counted := [(s.tokens_in, s.tokens_out) for s in past if s.tokens_in and s.tokens_out]:
        into, out = (statistics.median(c) for c in zip(*counted))
    seconds = statistics.median([s.seconds for s in past]) * count / model.parallel if past else None
    tokens = round(into * count), round(out * count)
    cost = None if prices is None else (tokens[0] * prices[0] + tokens[1] * prices[1]) / 1e6
    return Estimate(count, *tokens, seconds, cost)


def write(
    pool: Pool,
    model: Model | None,
    ids: Sequence[str],
    *,
    ledger: Ledger | None = None,
    again: bool = False,
    over_persons: bool = False,
    over_others: bool = False,
    retry: Retry = Retry(),
    progress: Callable[[float, str], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> WriteReport:
    """Write the rationales of these cases, each as a new version.

    Args:
        model: None for the measured writer. again: do not take kept answers.
        cancel: asked several times a second; what was finished stays.

    Raises:
        PoolError: the pool cannot be written. KeyboardInterrupt: as raised, after requests under way were closed.
    """
    return _Batch(pool, model, Ledger() if ledger is None else ledger, again, over_persons, over_others, retry).run(
        list(ids), progress, cancel
    )


class _Batch:
    def __init__(self, pool: Pool, model: Model | None, ledger: Ledger, again: bool, over_persons: bool, over_others: bool, retry: Retry):
        self.pool, self.model, self.ledger, self.again, self.retry = pool, model, ledger, again, retry
        self.over_persons, self.over_others = over_persons, over_others
        self.report, self.stop = WriteReport(), Stop()
        self._quiet_until, self._quiet = 0.0, threading.Lock()
        self._listed = {row["id"]: row for row in pool.list()} if model is not None else {}

    def run(self, ids: list[str], progress, cancel) -> WriteReport:
        parallel = 1 if self.model is None else max(1, self.model.parallel)
        waiting, running, failures = deque(ids), {}, 0
        executor = ThreadPoolExecutor(parallel, thread_name_prefix="cers-writer")
        try:
            while waiting or running:
                if cancel is not None and cancel():
                    self.report.cancelled = True
                    break
                # few are begun ahead, so that pictures do not pile up in memory
                while waiting and len(running) < 2 * parallel:
                    case_id = waiting.popleft()
                    running[executor.submit(self._one, case_id)] = case_id
                for done in wait(running, timeout=0.1, return_when=FIRST_COMPLETED).done:
                    failures = self._finish(running.pop(done), done, failures)
                    if progress is not None:
                        count = len(ids) - len(waiting) - len(running)
                        progress(count / len(ids), f"{count} of {counted(len(ids), 'rationale')}")
                if self.report.stopped is not None:
                    break
        finally:
            self.stop.set()
            executor.shutdown(wait=True, cancel_futures=True)
        for done, case_id in running.items():  # answers that came in while we stopped were paid for
            if not done.cancelled():
                self._finish(case_id, done, failures)
        return self.report

    def _finish(self, case_id: str, done: Future, failures: int) -> int:
        """Keep what one case gave; the number of cases in a row that the model failed at."""
        try:
            rationale, findings, cached = done.result()
            added = None
            while added is None:  # again where somebody writes just then
                version, current = self.pool.rationales([case_id]).get(case_id, (None, None))
                there = MEASURED if current is None else current.writer
                if there == PERSON and not self.over_persons:
                    raise WriterError("a person has written its rationale meanwhile, which stays.")
                if there not in (PERSON, MEASURED, rationale.writer) and not self.over_others:
                    raise WriterError(f"its rationale is by another writer ({there}) and stays.")
                same = current is not None and current.to_dict() == rationale.to_dict()
                added = version if same else self.pool.add_rationale(case_id, rationale, after=version)
        except Cancelled:
            return failures
        except PoolError as error:
            if case_id in self.pool.ids():  # else it was deleted while its rationale was being written
                raise
            self.report.faults.append(WriteFault(case_id, str(error)))
            return failures
        except CersError as error:
            self.report.faults.append(WriteFault(case_id, str(error)))
            if isinstance(error, WriterError) and error.fatal:
                self.report.stopped = str(error)
            elif isinstance(error, WriterError) and error.transient:
                if failures + 1 >= _ROW_OF_FAILURES:
                    self.report.stopped = f"{_ROW_OF_FAILURES} cases in a row got no answer, the last time because: {error}"
                return failures + 1
            return failures
        self.report.written.append(case_id)
        self.report.cached += cached
        if findings:
            self.report.findings[case_id] = findings
        for finding in findings:
            if finding.kind == "unmeasured":
                self.report.unmeasured += 1
            else:
                self.report.replaced[finding.kind] = self.report.replaced.get(finding.kind, 0) + 1
        return 0

    def _one(self, case_id: str) -> tuple[Rationale, list[Finding], bool]:
        """(rationale, what was replaced or marked in it, whether the answer was at hand) of one case."""
        if self.stop.is_set():
            raise Cancelled
        try:
            case = self.pool.get(case_id)
        except PoolError as error:
            raise WriterError(str(error)) from error  # of this case alone: damaged, or deleted meanwhile
        measured = measured_of(case)
        if self.model is None:
            return measured, [], False
        key = answer_key(self.model, self._listed[case_id])
        # another batch may be asking for it just now
        with nullcontext() if self.again else self.ledger.alone(key, self.stop.wait):
            text = None if self.again else self.ledger.answer(key)
            cached = text is not None
            parsed = parse_cot(self._ask(self.model.request(case, measured)) if text is None else text)
            if not parsed.parts:
                raise WriterError(
                    f"The model {self.model.name} did not answer in the four parts, but with: {parsed.rest[:80]!r}. Try another model."
                )
            if not cached:
                self.ledger.keep(key, "\n".join(f"{part.capitalize()}: {body}" for part, body in parsed.parts.items()))
        rationale, findings = verify(
            parsed, measured, writer=self.model.name, version=self.model.prompt.version, plane=case.plane, seen=self.model.with_picture
        )
        return rationale, findings, cached

    def _ask(self, request: Request) -> str:
        """The model's text, with as many tries as allowed."""
        for attempt in range(1, self.retry.attempts + 1):
            while (pause := self._quiet_until - time.monotonic()) > 0:
                if self.stop.wait(pause):
                    raise Cancelled
            try:
                answer = self.model.ask(request, self.stop)
            except WriterError as error:
                asked = error.retry_after
                if not error.transient or attempt == self.retry.attempts or (asked or 0) > self.retry.longest_order:
                    raise
                pause = self.retry.pause(attempt, asked)
                if asked is not None:  # the server asks all of us, not only this case
                    with self._quiet:
                        self._quiet_until = max(self._quiet_until, time.monotonic() + pause)
                elif self.stop.wait(pause):
                    raise Cancelled from error
                continue
            with self._quiet:
                self.report.tokens_in += answer.tokens_in or 0
                self.report.tokens_out += answer.tokens_out or 0
            return answer.text
        raise WriterError("No try was allowed. Allow at least one.")
