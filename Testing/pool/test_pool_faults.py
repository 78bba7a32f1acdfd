"""What a bad day does to a pool: kills, several writers, damage, full and read-only disks."""

from __future__ import annotations

import gc
import os
import random
import signal
import sqlite3
import stat
import sys
import threading
import time

import numpy as np
import pytest
from poolkit import case, overwrite, python, rationale

from cers.errors import PoolError
from cers.pool import Pool, arrays
from cers.pool.database import FILE

ADD = """
from poolkit import case, rationale
from cers.pool import Pool
with Pool.open(sys.argv[1]) as pool:
    for n in range(int(sys.argv[2]), int(sys.argv[3])):
        print(pool.add(case(n, rationale=rationale())), flush=True)
"""


@pytest.mark.parametrize("name", ["plain", "mit Leer und Ümläut ß", "50%?#&x=1", "日本"])
def test_any_folder_name_will_do(tmp_path, name):
    with Pool.create(tmp_path / name / "pool") as pool:
        case_id = pool.add(case(1))
    with Pool.open(str(tmp_path / name / "pool"), read_only=True) as pool:
        assert pool.get(case_id).id == case_id and pool.verify() == []


def test_create_takes_an_empty_folder_or_opens_what_is_there(tmp_path):
    with Pool.create(tmp_path) as pool:
        pool.add(case(1))
    with Pool.create(tmp_path) as pool:
        assert len(pool) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").write_text("x")
    with pytest.raises(PoolError, match=r"thesis\.docx"):
        Pool.create(tmp_path / "other")
    (tmp_path / "file").write_text("x")
    with pytest.raises(PoolError, match="No pool can be made"):
        Pool.create(tmp_path / "file")


def test_what_is_not_a_pool_is_said_plainly(tmp_path):
    with pytest.raises(PoolError, match="There is no pool"):
        Pool.open(tmp_path)
    (tmp_path / "pool.sqlite").write_bytes(b"not a database, but long enough to be read as one" * 100)
    with pytest.raises(PoolError, match="damaged or not a pool"):
        Pool.open(tmp_path)
    (tmp_path / "pool.sqlite").write_bytes(b"")
    with pytest.raises(PoolError, match="not a CERS pool"):
        Pool.open(tmp_path)
    (tmp_path / "pool.sqlite").unlink()
    with sqlite3.connect(tmp_path / "pool.sqlite") as foreign:
        foreign.execute("CREATE TABLE bookmarks (url)")
    for enter in (Pool.open, Pool.create):
        with pytest.raises(PoolError, match="not a CERS pool"):
            enter(tmp_path)
    with sqlite3.connect(tmp_path / "pool.sqlite") as foreign:
        assert foreign.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)], "nothing was put into it"


def test_a_newer_pool_is_not_touched(tmp_path):
    Pool.create(tmp_path).close()
    with sqlite3.connect(tmp_path / "pool.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(PoolError, match="newer CERS"):
        Pool.open(tmp_path)


def test_a_closed_pool_says_so(tmp_path):
    pool = Pool.create(tmp_path)
    pool.close()
    pool.close()
    with pytest.raises(PoolError, match="closed"):
        pool.ids()


def test_two_processes_create_at_once(tmp_path):
    code = "from cers.pool import Pool\nprint(Pool.create(sys.argv[1]).uid)"
    running = [python(code, tmp_path / "pool", wait=False) for _ in range(4)]
    outputs = [p.communicate(timeout=120) for p in running]
    assert all(p.returncode == 0 for p in running), outputs
    assert len({out for out, _ in outputs}) == 1


def test_two_processes_add_at_once(tmp_path):
    Pool.create(tmp_path).close()
    running = [python(ADD, tmp_path, a, b, wait=False) for a, b in ((0, 30), (15, 45))]
    outputs = [p.communicate(timeout=120) for p in running]
    assert all(p.returncode == 0 for p in running), outputs
    with Pool.open(tmp_path) as pool:
        assert len(pool) == 45 and pool.verify() == []
        assert {i for out, _ in outputs for i in out.split()} == set(pool.ids())


def test_adding_deleting_reading_and_checking_at_once(tmp_path):
    """Four processes work on one pool for a while; none meets an error, and nothing is damaged at the end."""
    with Pool.create(tmp_path) as pool:
        ids = [pool.add(case(n, rationale=rationale())) for n in range(10)]
        pool.set_vectors("image", "m", ids, np.eye(10, 16))
    add = """
import time
from poolkit import case, rationale
from cers.pool import Pool
with Pool.open(sys.argv[1]) as pool:
    end = time.monotonic() + 4
    n = 0
    while time.monotonic() < end:
        new = pool.add(case(100 + n % 15, rationale=rationale()))
        if sys.argv[2] == "delete":
            try:
                pool.delete(new)
            except Exception as error:
                assert "no case" in str(error), error
        n += 1
"""
    read = """
import time
import numpy as np
from cers.pool import Pool, Query, Selector
with Pool.open(sys.argv[1]) as pool:
    end, selector = time.monotonic() + 4, Selector(pool, "m", None)
    while time.monotonic() < end:
        faults = pool.verify()
        assert not faults, faults
        assert len(selector.select(Query(np.eye(16)[0])).selected) == 1
        assert pool.get(sys.argv[2]).id == sys.argv[2] and pool.hash() and len(pool.list()) >= 10
"""
    running = [
        python(add, tmp_path, "keep", wait=False),
        python(add, tmp_path, "delete", wait=False),
        python(read, tmp_path, ids[0], wait=False),
        python(read, tmp_path, ids[1], wait=False),
    ]
    outputs = [p.communicate(timeout=120) for p in running]
    assert all(p.returncode == 0 for p in running), outputs
    with Pool.open(tmp_path) as pool:
        assert pool.verify() == []
        pool.clean()
        assert len(list((tmp_path / "arrays").rglob("*.npz"))) == len(pool)


def test_an_older_database_costs_no_picture(tmp_path):
    """After a restore of last night's copy the newer cases' pictures stay, however often the pool is checked."""
    with Pool.create(tmp_path) as pool:
        pool.add(case(0))
    older = (tmp_path / FILE).read_bytes()
    with Pool.open(tmp_path) as pool:
        pool.add(case(1))
    newer = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(older)
    with Pool.open(tmp_path) as pool:
        assert len(pool) == 1 and pool.verify() == [] and pool.unnamed() == 1
    (tmp_path / FILE).write_bytes(newer)
    with Pool.open(tmp_path) as pool:
        assert len(pool) == 2 and pool.verify() == [] and pool.unnamed() == 0


@pytest.mark.parametrize("lost", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
def test_no_new_pool_is_made_on_the_pictures_of_a_lost_one(tmp_path, lost):
    with Pool.create(tmp_path) as pool:
        pool.add(case(0))
    lost(tmp_path / FILE)
    with pytest.raises(PoolError, match="lost its file pool.sqlite. Restore it"):
        Pool.create(tmp_path)
    assert len(list((tmp_path / "arrays").rglob("*.npz"))) == 1


def test_kill_loses_nothing_that_was_promised(tmp_path):
    """Twenty times: kill -9 a process in the midst of adding; every id it printed is there, whole, and the pool is sound."""
    Pool.create(tmp_path).close()
    chance, promised = random.Random(7), set()
    for turn in range(20):
        process = python(ADD, tmp_path, 1000 * turn, 1000 * turn + 1000, wait=False)
        first = process.stdout.readline()
        time.sleep(chance.uniform(0, 0.06))
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
        lines = (first + out).split("\n")
        promised |= {line for line in lines[:-1] if line}  # the last line may be cut short
        with Pool.open(tmp_path) as pool:
            assert promised <= set(pool.ids())
    with Pool.open(tmp_path) as pool:
        assert pool.verify() == [] and len(promised) >= 20
        pool.clean()
        names = {row["id"] for row in pool.list()}
        assert len(list((tmp_path / "arrays").rglob("*.npz"))) == len(names), "files without a row were cleared"


@pytest.mark.parametrize("moment", ["write_temporary", "publish", "insert"])
def test_a_crash_at_each_step_leaves_a_sound_pool(tmp_path, moment, monkeypatch):
    """The same at the three exact places where a kill would hurt most."""
    with Pool.create(tmp_path) as pool:
        pool.add(case(1))
    code = """
import os
from poolkit import case
from cers.pool import Pool, arrays, store
moment = sys.argv[2]
if moment == "insert":
    Pool._log = staticmethod(lambda *a: os._exit(9))
else:
    real = getattr(arrays, moment)
    setattr(arrays, moment, lambda *a: (real(*a), os._exit(9)))
Pool.open(sys.argv[1]).add(case(2))
"""
    process = python(code, tmp_path, moment, wait=False)
    process.communicate(timeout=60)
    assert process.returncode == 9
    with Pool.open(tmp_path) as pool:
        assert len(pool) == 1 and pool.verify() == []
        pool.clean()
        assert len(list((tmp_path / "arrays").rglob("*.npz"))) == 1
        pool.add(case(2))
        assert len(pool) == 2 and pool.verify() == []
    for leftover in (tmp_path / "tmp").iterdir():
        os.utime(leftover, (0, 0))
    Pool.open(tmp_path).close()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_living_writers_file_is_not_cleared(tmp_path):
    with Pool.create(tmp_path) as pool:
        (tmp_path / "tmp").mkdir(exist_ok=True)
        (tmp_path / "tmp" / "busy.part").write_bytes(b"half")
        (tmp_path / "arrays" / "ab").mkdir(parents=True)
        (tmp_path / "arrays" / "ab" / "notes.txt").write_text("not ours")
        pool.clean()
        assert (tmp_path / "tmp" / "busy.part").exists() and (tmp_path / "arrays" / "ab" / "notes.txt").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows makes no symbolic links")
def test_nothing_is_cleared_where_a_link_points(tmp_path):
    Pool.create(tmp_path / "pool").close()
    elsewhere = tmp_path / "downloads"
    elsewhere.mkdir()
    (elsewhere / "film.part").write_bytes(b"half")
    os.utime(elsewhere / "film.part", (0, 0))
    (tmp_path / "pool" / "tmp").symlink_to(elsewhere)
    with Pool.open(tmp_path / "pool") as pool:
        pool.clean()
    assert (elsewhere / "film.part").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "swap"])
def test_a_damaged_file_is_named_and_never_shown(tmp_path, damage):
    with Pool.create(tmp_path) as pool:
        good, bad = pool.add(case(1)), pool.add(case(2))
        with sqlite3.connect(tmp_path / "pool.sqlite") as db:
            files = {i: tmp_path / "arrays" / f[:2] / f"{f}.npz" for i, f in db.execute("SELECT id, file FROM cases")}
        data = bytearray(files[bad].read_bytes())
        data[len(data) // 2] ^= 1
        {
            "flip": lambda: files[bad].write_bytes(data),
            "cut": lambda: files[bad].write_bytes(data[:100]),
            "empty": lambda: files[bad].write_bytes(b""),
            "gone": files[bad].unlink,
            "swap": lambda: files[bad].write_bytes(files[good].read_bytes()),
        }[damage]()
        faults = pool.verify()
        assert [(f.id, f.kind) for f in faults] == [(bad, "array")] and bad in faults[0].message
        with pytest.raises(PoolError, match=f"ase {bad}"):
            pool.get(bad)
        assert pool.get(good).id == good and bad in pool.ids()
        pool.delete(bad)
        pool.add(case(2))
        assert pool.verify() == []


def test_verify_names_faults_in_the_database(tmp_path):
    with Pool.create(tmp_path) as pool:
        ids = [pool.add(case(n, rationale=rationale())) for n in range(4)]
        pool.set_vectors("image", "m", ids, np.eye(4))
        with sqlite3.connect(tmp_path / "pool.sqlite") as db:
            db.execute("UPDATE rationales SET record = '{' WHERE case_id = ?", (ids[0],))
            db.execute("UPDATE cases SET content_hash = 'x' WHERE id = ?", (ids[1],))
            db.execute(
                "UPDATE vectors SET data = x'00' WHERE case_number = 3 AND "
                "set_number = (SELECT number FROM vector_sets WHERE kind = 'image')"
            )
            db.execute("DELETE FROM cases WHERE id = ?", (ids[3],))  # without foreign keys: leaves rows behind
        db.close()
        faults = pool.verify()
        assert {(f.id, f.kind) for f in faults} == {(ids[0], "rationale"), (ids[1], "case"), (ids[2], "vector"), (None, "database")}
        with pytest.raises(PoolError, match="differ in length"):
            pool.vectors("image", "m")
        for call in (pool.get, pool.meta, lambda i: pool.rationales([i])):
            with pytest.raises(PoolError, match="rationale of case .* not readable"):
                call(ids[0])


def test_a_damaged_database_is_said_plainly(tmp_path):
    with Pool.create(tmp_path) as pool:
        for n in range(40):
            pool.add(case(n, rationale=rationale("x" * 3000)))
    data = bytearray((tmp_path / "pool.sqlite").read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    (tmp_path / "pool.sqlite").write_bytes(data)
    with Pool.open(tmp_path, read_only=True) as pool:
        assert any(f.kind == "database" for f in pool.verify())
        with pytest.raises(PoolError, match="backup"):
            pool.list()
    (tmp_path / "pool.sqlite").write_bytes(data[:5000])
    with pytest.raises(PoolError):
        with Pool.open(tmp_path) as pool:
            pool.list()


def test_reading_only_changes_nothing(tmp_path):
    with Pool.create(tmp_path) as pool:
        case_id = pool.add(case(1))
    with Pool.open(tmp_path, read_only=True) as pool:
        assert pool.get(case_id).id == case_id and pool.index("thumbnail", "thumbnail-1").ids == [case_id]
        for change in (
            lambda: pool.add(case(2)),
            lambda: pool.delete(case_id),
            lambda: pool.review(case_id, "flagged"),
            lambda: pool.set_vectors("image", "m", [case_id], np.ones((1, 2))),
        ):
            with pytest.raises(PoolError, match="reading only"):
                change()
        assert pool.add(case(1)) == case_id, "nothing to write"
        assert pool.verify() == []
    assert not (tmp_path / "derived").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_a_write_protected_folder(tmp_path):
    """As another user, since permissions do not bind root."""
    with Pool.create(tmp_path / "pool") as pool:
        case_id = pool.add(case(1))
        ready = pool.get(case_id).image
    for path in [tmp_path / "pool", *(tmp_path / "pool").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in [tmp_path, *tmp_path.parents]:
        if path.owner() != "root" or path.stat().st_mode & stat.S_IXOTH:
            continue
        path.chmod(path.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
    code = """
import os
from poolkit import case
from cers.pool import Pool
from cers.errors import PoolError
def read():
    with Pool.open(sys.argv[1], read_only=True) as pool:
        assert pool.get(sys.argv[2]).image.shape == (48, 48) and not pool.verify()
        assert pool.index("thumbnail", "thumbnail-1").ids == [sys.argv[2]]
read(), case(1)                         # loads every library while they can be read
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
read()
try:
    with Pool.open(sys.argv[1]) as pool:
        pool.add(case(2))
except PoolError as error:
    print(error)
try:
    Pool.create(sys.argv[1] + "/sub")
except PoolError as error:
    print(error)
"""
    out = python(code, tmp_path / "pool", case_id)
    assert ready.shape == (48, 48) and len(out.strip().split("\n")) == 2 and "may write" in out or "permissions" in out, out


FULL = """
import resource
from poolkit import case, rationale
from cers.pool import Pool
from cers.errors import PoolError
pool = Pool.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
n = 100
try:
    while n < 1000:
        pool.add(case(n, size=int(sys.argv[3]), rationale=rationale("x" * 2000)))
        n += 1
except PoolError as error:
    print(n - 100, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
@pytest.mark.parametrize("limit,size", [(2000, 48), (200_000, 20), (4200, 40)])
def test_a_full_disk_leaves_the_pool_sound(tmp_path, limit, size):
    """The limit hits once the array file, once the database's log, each in the midst of an add."""
    with Pool.create(tmp_path) as pool:
        pool.add(case(1))
    added, _, message = python(FULL, tmp_path, limit, size).partition(" ")
    assert "full" in message or "space" in message, message
    with Pool.open(tmp_path) as pool:
        assert pool.verify() == [] and len(pool) == 1 + int(added)
        pool.add(case(2))
        assert len(pool) == 2 + int(added) and not list((tmp_path / "tmp").glob("*"))


def test_a_locked_pool_is_waited_for(tmp_path, monkeypatch):
    with Pool.create(tmp_path) as pool:
        other = sqlite3.connect(tmp_path / "pool.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        pool._db.connection().execute("PRAGMA busy_timeout = 50")
        with pytest.raises(PoolError, match="in use by another program"):
            pool.add(case(1))
        assert pool.ids() == [], "reading goes on"
        other.execute("ROLLBACK")
        other.close()
        pool.add(case(1))
        assert pool.verify() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_its_own_connection(tmp_path):
    out = python(
        """
import os
from poolkit import case
from cers.pool import Pool
pool = Pool.create(sys.argv[1])
pool.add(case(1))
child = os.fork()
pool.add(case(2 if child else 3))
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(len(pool), len(pool.verify()))
""",
        tmp_path,
    )
    assert out.split() == ["3", "0"]


@pytest.mark.parametrize("column, value", [("labels", "["), ("labels", '["a"]'), ("spacing", '"x"'), ("ijkToRAS", "{")])
def test_a_record_that_cannot_be_read_is_said_plainly(tmp_path, column, value):
    from cers.pool.map import project, values

    with Pool.create(tmp_path / "pool") as pool:
        case_id = pool.add(case(1))
        overwrite(tmp_path / "pool", column, value)
        for work in (pool.list, lambda: pool.get(case_id), lambda: pool.rows([case_id])):
            with pytest.raises(PoolError, match="damaged") as caught:
                work()
            assert case_id in str(caught.value) and "\n" not in str(caught.value)
        if column == "labels":
            for work in (pool.counts, lambda: values(pool, project(pool).ids)):
                with pytest.raises(PoolError, match="damaged"):
                    work()


def test_many_threads_read_while_the_collector_interrupts_them(tmp_path):
    """Python before 3.13 ends ``ast`` with a SystemError where another thread parses in the midst of it; numpy's headers are parsed so."""
    data, checksum = arrays.pack(image=np.arange(12, dtype=np.float32).reshape(3, 4), mask=np.ones((3, 4), np.uint8))
    path = tmp_path / f"{checksum}.npz"
    path.write_bytes(data)
    parsing, failed, right = 0, [], 0

    def pause(phase, info):
        nonlocal parsing
        if sys._getframe(1).f_code.co_name == "parse":
            parsing += 1
            time.sleep(0.002)

    def read():
        nonlocal right
        for _ in range(20):
            try:
                got = arrays.read(path, checksum, "a case")
            except SystemError as error:
                failed.append(error)
            else:
                right += np.array_equal(got["image"], np.arange(12).reshape(3, 4)) and bool(got["mask"].all())

    before = gc.get_threshold()
    gc.callbacks.append(pause)
    gc.set_threshold(1)
    try:
        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(pause)
    assert not failed and right == 160
    assert parsing or sys.version_info >= (3, 12)  # the collector did come in between; later Pythons run it elsewhere
