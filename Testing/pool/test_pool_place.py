"""Pools on network drives: found out, said, and without a log that only one computer sees."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from poolkit import case

from cers.errors import PoolError
from cers.pool import Pool, place
from cers.pool.transfer import export_pool

LINUX = """22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/group\\040share rw - nfs4 server:/export rw
31 22 0:41 / /mnt/group\\040share/scratch rw - tmpfs tmpfs rw
32 22 0:42 / /media/far rw - fuse.sshfs host:/ rw
33 22 0:43 / /media/near rw - fuseblk /dev/sdb1 rw
"""
MACOS = """/dev/disk3s1 on / (apfs, sealed, local)
//me@server/share on /Volumes/the share (smbfs, nodev, nosuid)
"""


@pytest.mark.parametrize(
    "folder, far",
    [
        ("/data/a/pool", False),
        ("/mnt/group share/pool", True),
        ("/mnt/group share", True),
        ("/media/far/x", True),
        ("/mnt/group share/scratch/pool", False),
        ("/media/near/x", False),
        ("/mnt/group", False),
    ],
)
def test_linux(folder, far):
    assert place.is_network(place.kind_of(Path(folder), place.linux_mounts(LINUX))) is far


def test_macos_and_nonsense():
    mounts = place.macos_mounts(MACOS)
    assert place.is_network(place.kind_of(Path("/Volumes/the share/pool"), mounts)) and not place.is_network(
        place.kind_of(Path("/opt/a"), mounts)
    )
    assert (
        place.linux_mounts("garbage\n\n1 2 3 - \n") == {}
        and place.macos_mounts("what is this?") == {}
        and place.kind_of(Path("/a"), {}) == ""
    )


def journal(folder: Path) -> str:
    with sqlite3.connect(folder / "pool.sqlite") as db:
        mode = db.execute("PRAGMA journal_mode").fetchone()[0]
    db.close()
    return mode


def test_the_journal_fits_the_place(tmp_path, monkeypatch):
    assert place.on_network(tmp_path) is False
    with Pool.create(tmp_path / "pool") as pool:
        pool.add(case(1))
        assert journal(pool.folder) == "wal" and pool.info()["network"] is False
    monkeypatch.setattr(place, "on_network", lambda folder: True)
    with Pool.open(tmp_path / "pool") as pool, Pool.open(tmp_path / "pool") as other:
        assert journal(pool.folder) == "delete" and pool.info()["network"] is True, "copied there from a disk"
        other.add(case(2))
        pool.add(case(3))
        assert len(other.ids()) == 3 and not pool.verify()
    with Pool.create(tmp_path / "far") as pool:
        pool.add(case(1))
        assert journal(pool.folder) == "delete" and not list(pool.folder.glob("*-wal"))
    monkeypatch.undo()
    with Pool.open(tmp_path / "far") as pool:
        assert journal(pool.folder) == "wal" and len(pool) == 1


@pytest.mark.skipif(os.name != "posix", reason="rights of this kind are those of Linux and macOS")
def test_a_shared_pool_can_be_read_by_others(tmp_path):
    before = os.umask(0o022)
    try:
        with Pool.create(tmp_path / "pool") as pool:
            pool.add(case())
            export_pool(pool, tmp_path / "pool.zip")
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.suffix in (".npz", ".sqlite", ".zip")]
    assert len(files) == 3 and {oct(p.stat().st_mode & 0o777) for p in files} == {"0o644"}


@pytest.mark.skipif(os.name != "posix", reason="Windows lets nobody replace a file that is open")
def test_a_pool_that_was_replaced_takes_nothing_more(tmp_path):
    with Pool.create(tmp_path / "pool") as pool:
        first = pool.add(case())
        pool._db.connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(tmp_path / "pool" / "pool.sqlite", tmp_path / "backup")
        os.replace(tmp_path / "backup", tmp_path / "pool" / "pool.sqlite")
        with pytest.raises(PoolError, match="Open the pool again"):
            pool.ids()
    with Pool.open(tmp_path / "pool") as again:
        assert again.ids() == [first]


@pytest.mark.skipif(os.name == "nt", reason="there, such a path names a server")
def test_a_path_that_begins_with_two_slashes_names_no_host(tmp_path):
    r"""As \\server\share does under Windows; elsewhere it is the same place as with one."""
    with Pool.create(Path(f"/{tmp_path}") / "a pool") as pool:
        case_id = pool.add(case(1))
    with Pool.open(tmp_path / "a pool", read_only=True) as pool:
        assert pool.get(case_id).id == case_id
