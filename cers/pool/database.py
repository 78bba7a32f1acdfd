"""The pool's SQLite file: schema, connections and transactions. Everything above it sees only ``PoolError``."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from ..errors import PoolError
from . import place

FILE = "pool.sqlite"
SCHEMA_VERSION = 3
_APPLICATION = 0x43455253  # "CERS", so that another program's SQLite file is not taken for a pool
_BUSY_SECONDS = 30.0

# A ``state`` is a random word that every change replaces; caches compare it. A counter would come back after a restored backup.
_SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cases (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    content_hash TEXT NOT NULL UNIQUE,
    image_hash TEXT NOT NULL,
    file TEXT NOT NULL,
    rows INTEGER NOT NULL, columns INTEGER NOT NULL,
    labels TEXT NOT NULL,
    spacing TEXT, ijkToRAS TEXT,
    plane TEXT, slice_index INTEGER,
    patient_id TEXT, volume_id TEXT, group_id TEXT,
    modality TEXT, body_site TEXT, diagnosis TEXT, source TEXT, annotator TEXT,
    created TEXT NOT NULL,
    review TEXT NOT NULL DEFAULT 'unreviewed' CHECK (review IN ('unreviewed', 'approved', 'flagged', 'excluded')),
    rationale_version INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX cases_image ON cases (image_hash);
CREATE INDEX cases_volume ON cases (volume_id);
CREATE TABLE rationales (
    case_id TEXT NOT NULL REFERENCES cases (id) ON DELETE CASCADE,
    version INTEGER NOT NULL,
    writer TEXT NOT NULL,
    record TEXT NOT NULL,
    created TEXT NOT NULL,
    PRIMARY KEY (case_id, version)
) WITHOUT ROWID;
CREATE TABLE reviews (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    case_id TEXT NOT NULL REFERENCES cases (id) ON DELETE CASCADE,
    review TEXT NOT NULL, reviewer TEXT, note TEXT, created TEXT NOT NULL
);
CREATE INDEX reviews_case ON reviews (case_id);
CREATE TABLE provenance (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    case_id TEXT NOT NULL,                               -- no foreign key: it outlives the case
    action TEXT NOT NULL, detail TEXT NOT NULL, created TEXT NOT NULL
);
CREATE INDEX provenance_case ON provenance (case_id);
CREATE TABLE vector_sets (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL, model_hash TEXT NOT NULL, dimension INTEGER NOT NULL, state TEXT NOT NULL DEFAULT '',
    UNIQUE (kind, model_hash)
);
CREATE TABLE vectors (
    set_number INTEGER NOT NULL REFERENCES vector_sets (number) ON DELETE CASCADE,
    case_number INTEGER NOT NULL REFERENCES cases (number) ON DELETE CASCADE,
    rationale_version INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (set_number, case_number)
) WITHOUT ROWID;
CREATE INDEX vectors_case ON vectors (case_number);
"""
# What each later format adds to the one before; a new pool is made as format 1 and goes through them, too.
# Format 2: edited_hash is the content hash with the labels' present names, where they were edited; who did what; the trash.
# Format 3: where cases served as references. No foreign key: a case that comes back from the trash has its uses still.
_UPGRADES = {
    1: """
ALTER TABLE cases ADD COLUMN edited_hash TEXT;
CREATE INDEX cases_edited ON cases (edited_hash);
ALTER TABLE provenance ADD COLUMN who TEXT;
INSERT INTO provenance (case_id, action, detail, created, who)
    SELECT case_id, 'reviewed', json_object('review', json_array(NULL, review), 'note', note), created, reviewer FROM reviews
    ORDER BY number;
INSERT INTO provenance (case_id, action, detail, created, who)
    SELECT case_id, 'rationale', json_object('version', json_array(version - 1, version)), created, writer FROM rationales
    WHERE version > 1 ORDER BY created, version;
CREATE TABLE trash (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    case_id TEXT NOT NULL, file TEXT NOT NULL, record TEXT NOT NULL, who TEXT, note TEXT, created TEXT NOT NULL
);
CREATE INDEX trash_file ON trash (file);
CREATE TABLE trash_vectors (
    trash_number INTEGER NOT NULL REFERENCES trash (number) ON DELETE CASCADE,
    set_number INTEGER NOT NULL REFERENCES vector_sets (number) ON DELETE CASCADE,
    rationale_version INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (trash_number, set_number)
) WITHOUT ROWID
""",
    2: """
CREATE TABLE uses (
    case_id TEXT NOT NULL, query TEXT NOT NULL, model TEXT NOT NULL, day TEXT NOT NULL,
    slices INTEGER NOT NULL, weight REAL, influence REAL,
    PRIMARY KEY (case_id, query, model, day)
) WITHOUT ROWID
""",
}


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's and the file system's errors about the pool of this database file, as one ``PoolError`` that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            what = "is in use by another program that does not let go. Close that program, or try again in a moment"
        elif "readonly" in text or "read-only" in text or "unable to open" in text:
            what = "cannot be opened for this. Check that it exists and that you may write in its folder"
        elif "full" in text or "disk I/O" in text:
            what = "could not be written: the disk is full or not reachable. Free some space and try again; what was saved before is safe"
        else:
            what = "is damaged or not a pool. Restore it from a backup"
        raise PoolError(f"The pool database {path} {what} ({text}).") from error
    except OSError as error:
        raise PoolError(
            f"The pool {path.parent} could not be read or written ({error.strerror or error}). Check free space "
            "and the folder's permissions; what was saved before is safe."
        ) from error


def _upgrade(connection: sqlite3.Connection, version: int) -> None:
    """Bring a pool's tables from a format to the present one, inside the caller's transaction."""
    for step in range(version, SCHEMA_VERSION):
        for statement in _UPGRADES[step].strip().split(";\n"):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


class _Connection(sqlite3.Connection):
    """A connection that can be referred to weakly, so that those of ended threads close by themselves."""


def _journal(network: bool) -> str:
    return "DELETE" if network else "WAL"


def _file(path: Path) -> tuple[int, int] | None:
    """Which file has a name now, None where none has: another one of the same name is another file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Database:
    """One connection per thread and process to a pool's SQLite file in WAL mode. An older pool is brought to the present format, unless
    it is opened for reading only; one that may not be written is always opened so.

    On a network drive the log of several computers would be lost to one another, so there an older kind of journal is used.

    Attributes: version: the pool's format. read_only: whether it may only be read. network: whether it lies on a network drive.

    Raises:
        PoolError: not a pool, of a newer version, damaged, locked for too long, or not writable.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        self.folder, self.path = folder, folder / FILE
        self.read_only = read_only or not (os.access(self.path, os.W_OK) and os.access(folder, os.W_OK))  # SQLite writes beside it
        self._local = threading.local()
        self._connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._closed = False
        self._file = _file(self.path)
        self.network = place.on_network(folder)
        with self.translated():
            self.version = self._check(self.connection())
            if not self.read_only:
                self._set_journal(self.connection())

    @classmethod
    def create(cls, folder: Path, settings: dict[str, str]) -> None:
        """Write an empty pool's file; one transaction, so a killed creator leaves either nothing or a whole pool."""
        with translated(folder / FILE), closing(sqlite3.connect(folder / FILE, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:

            def empty() -> bool:  # else another process was quicker, or it is some other program's file
                return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0

            if not empty():
                return
            connection.execute(f"PRAGMA journal_mode = {_journal(place.on_network(folder))}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                if empty():
                    for statement in _SCHEMA.split(";\n"):
                        connection.execute(statement)
                    _upgrade(connection, 1)
                    connection.executemany("INSERT INTO settings VALUES (?, ?)", [*settings.items(), ("state", "new")])
                    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def connection(self) -> sqlite3.Connection:
        """This thread's connection."""
        if self._closed:
            raise PoolError("The pool has been closed. Open it again to go on.")
        connection = getattr(self._local, "connection", None)
        if connection is not None and _file(self.path) != self._file:
            raise PoolError(f"The file of the pool {self.folder} was replaced or removed, for instance by a backup. Open the pool again.")
        if connection is None or self._local.process != os.getpid():  # a connection must not cross a fork
            connection = self._connect()
            self._local.connection, self._local.process = connection, os.getpid()
            with self._lock:
                self._connections.add(connection)
        return connection

    def _connect(self) -> sqlite3.Connection:
        path = quote(str(self.path.absolute()).replace(os.sep, "/"))
        host = "//" if path.startswith("//") else ""  # of //server/share, as Windows names one, SQLite would take the server for a host
        uri = f"file:{host}{path}?mode={'ro' if self.read_only else 'rw'}"
        try:
            return self._configure(uri)
        except sqlite3.OperationalError:
            # A WAL file on read-only media cannot make its shared memory; without a pending log it is safe to read as it lies.
            log = self.path.with_name(FILE + "-wal")
            if not self.read_only or not self.path.exists() or (log.exists() and log.stat().st_size) or os.access(self.folder, os.W_OK):
                raise
            return self._configure(uri + "&immutable=1")

    def _configure(self, uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, factory=_Connection
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")  # a committed case survives a power cut, too
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> int:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION or version < 1:
            raise PoolError(f"{self.path} is not a CERS pool. Choose a pool's folder, or create a new pool.")
        if version > SCHEMA_VERSION:
            raise PoolError(
                f"The pool {self.folder} was made by a newer CERS (pool format {version}, this version reads up to "
                f"{SCHEMA_VERSION}). Update CERS to use it."
            )
        if version == SCHEMA_VERSION or self.read_only:
            return version
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                version = connection.execute("PRAGMA user_version").fetchone()[0]  # another process may have been quicker
                _upgrade(connection, version)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
            self.read_only = True  # it can still be read as it is
            return version
        return SCHEMA_VERSION

    def _set_journal(self, connection: sqlite3.Connection) -> None:
        """The kind of journal that fits the place, also where the pool was copied from another one."""
        wanted = _journal(self.network)
        if connection.execute("PRAGMA journal_mode").fetchone()[0].upper() != wanted:
            connection.execute("PRAGMA busy_timeout = 200")
            try:
                connection.execute(f"PRAGMA journal_mode = {wanted}")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) and "busy" not in str(error):  # others are at work here: the last one to open it will do it
                    raise
            finally:
                connection.execute(f"PRAGMA busy_timeout = {round(1000 * _BUSY_SECONDS)}")

    def translated(self):
        """See ``translated``."""
        return translated(self.path)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """All statements inside see one state of the pool."""
        with self.translated():
            connection = self.connection()
            if connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def write(self, bump: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction that excludes other writers; changes the pool's state unless told not to. One inside another is part of it."""
        if self.read_only:
            raise PoolError(f"The pool {self.folder} is open for reading only. Open it where and as someone who may write, to change it.")
        with self.translated():
            connection = self.connection()
            if getattr(self._local, "writing", False) and connection.in_transaction:
                yield connection
                return
            connection.execute("BEGIN IMMEDIATE")
            self._local.writing = True
            try:
                yield connection
                if bump:
                    connection.execute("UPDATE settings SET value = lower(hex(randomblob(8))) WHERE key = 'state'")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._local.writing = False

    def close(self) -> None:
        """Close every thread's connection. May be called twice."""
        self._closed = True
        with self._lock:
            for connection in list(self._connections):
                connection.close()
