"""A pool of ten thousand cases, which must not hold up the application."""

from __future__ import annotations

import json
import sqlite3
import time

from poolroom import CASES, HISTORY, pool_folder, user  # noqa: F401 - fixtures
from segmentkit import BLOCKED_MS, Gaps

from cers.pool import Pool


def fill_to_ten_thousand(folder) -> None:
    """Copies of the five cases: what the table shows of them is real."""
    with sqlite3.connect(folder / "pool.sqlite") as db:
        columns = [r[1] for r in db.execute("PRAGMA table_info(cases)") if r[1] not in ("number", "id", "content_hash")]
        names = ", ".join(columns)
        db.execute(
            f"INSERT INTO cases (id, content_hash, {names}) WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1999) "
            f"SELECT id || x, content_hash || x, {names} FROM cases, n"
        )
        db.execute(
            "INSERT INTO rationales SELECT c.id, 1, r.writer, r.record, r.created FROM cases c JOIN rationales r "
            "ON r.case_id = substr(c.id, 1, 16) AND c.id <> r.case_id"
        )
    db.close()


def test_ten_thousand_cases(user, pool_folder, screenshots):
    """10,000 rows are filled and scrolled without holding up the application."""
    fill_to_ten_thousand(pool_folder)
    user.choose(pool_folder)
    table, host = user.cases.table, user.host
    assert len(table.ids) == 10_000 and json.dumps(table.ids)

    def timed(work) -> float:
        start = time.thread_time()
        work()
        return 1000 * (time.thread_time() - start)

    ids, fill, took = list(table.ids), table._fill, []
    table._fill = lambda *a: took.append(timed(lambda: fill(*a)))
    first = min(timed(lambda: table.show(ids)) for _ in range(3))
    user.settle()
    for at in (0.3, 0.9, 0.5):
        bar = user.cases.view.verticalScrollBar()
        moved = timed(lambda bar=bar, at=at: bar.setValue(int(at * bar.maximum)))
        took.append(moved)
        user.settle()
        assert user.cell(table._inView()[2], "Labels") == "tumor"
    del table._fill
    host.screenshot(host.window, screenshots / "knowledge_pool_10000.png")
    print(f"10,000 cases: first fill {first:.1f} ms, portions and scrolling at most {max(took):.1f} ms")
    assert first < BLOCKED_MS and max(took) < BLOCKED_MS
    user.cases.words.setText("lung")
    user.settle()
    assert len(table.ids) == 2000


def test_the_trash_of_ten_thousand_cases_holds_nothing_up(user, pool_folder):
    """Deleting, restoring and emptying go on in the worker; the application stays at hand."""
    fill_to_ten_thousand(pool_folder)
    user.choose(pool_folder)
    control, history, longest = user.control, user.control.history, {}

    def timed(name: str, *steps) -> None:
        for step in steps:
            with Gaps(user.host.qt) as gaps:
                user.host.process(0.05)
                step()
                user.settle(240)
            longest[name] = max(longest.get(name, 0), *gaps.work)

    control.cases.showOnly(list(user.ids()), "all of them")  # as a finding does: the subset is kept in step
    user.settle()
    timed("choose", user.cases.view.selectAll)
    timed("delete", user.cases.buttons["delete"].click)
    assert len(user.ids()) == 0
    timed("look", lambda: user.page(HISTORY))
    assert len(history.trash.numbers) == 10_000 and "10,000" in history.trashLabel.text
    timed("scroll", lambda: history.trash.view.verticalScrollBar().setValue(5000))
    timed("choose in the trash", history.trash.view.selectAll)
    timed("restore", history.restore.click)
    assert len(history.trash.numbers) == 0 and len(Pool.open(pool_folder, read_only=True)) == 10_000
    user.page(CASES)
    user.cases.showAll()
    user.settle()
    timed("choose", user.cases.view.selectAll)
    timed("delete", user.cases.buttons["delete"].click)
    user.page(HISTORY)
    history.trash.view.selectAll()
    history.confirm = lambda question: "10,000" in question
    timed("empty", history.purge.click)
    history.confirm = history._ask
    assert len(history.trash.numbers) == 0
    print("10,000 cases in the trash, longest ms:", {name: round(ms, 1) for name, ms in longest.items()})
    assert max(longest.values()) < BLOCKED_MS, longest
