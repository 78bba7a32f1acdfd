"""What the user's own folder remembers of writers: consents, what was sent where, and answers received.

One SQLite file, safe for several processes. The log holds hashes, times and addresses, never a picture, a text or a case.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ...errors import Cancelled, WriterError
from ...files import lock

ENVIRONMENT = "CERS_CONFIG"
FILE = "writers.sqlite"
ASKING = "asking"  # folder of a file for each answer that is being asked for
_LOCKED = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}  # what the systems say; other errors come from places without locks
_SCHEMA = """
CREATE TABLE IF NOT EXISTS consents (endpoint TEXT PRIMARY KEY, picture INTEGER NOT NULL, granted TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sent (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time TEXT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL,
    sha256 TEXT NOT NULL, bytes INTEGER NOT NULL, picture INTEGER NOT NULL,
    outcome TEXT, seconds REAL, tokens_in INTEGER, tokens_out INTEGER
);
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID;
"""


def config_folder() -> Path:
    """The user's folder for settings of CERS: ``CERS_CONFIG``, or where the system keeps such folders."""
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(chosen)
    import typer

    return Path(typer.get_app_dir("cers"))


@dataclass(frozen=True)
class Consent:
    """The user's leave to send to one endpoint: measured findings, and with ``picture`` the redacted picture too."""

    endpoint: str
    picture: bool
    granted: str


@dataclass(frozen=True)
class Sent:
    """One request that left. outcome: HTTP status or what went wrong; None while it is under way or if the program was killed then."""

    time: str
    endpoint: str
    model: str
    sha256: str
    bytes: int
    picture: bool
    outcome: str | None
    seconds: float | None
    tokens_in: int | None
    tokens_out: int | None


class Ledger:
    """Consents, log and answers in ``folder`` (default: ``config_folder``). The file is made when first written to.

    Raises:
        WriterError: from every method, when the file cannot be used.
    """

    def __init__(self, folder: Path | None = None):
        self.path = (config_folder() if folder is None else Path(folder)) / FILE

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = not self.path.exists()
            with closing(sqlite3.connect(self.path, timeout=30)) as db:
                if new:
                    self.path.chmod(0o600)
                    db.execute("PRAGMA journal_mode = WAL")
                db.executescript(_SCHEMA)
                with db:
                    yield db
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> WriterError:
        return WriterError(
            f"The file {self.path} with consents and log cannot be used ({error}), so nothing was sent. Check the "
            "folder's permissions and free space.",
            fatal=True,
        )

    # ---- consent

    def consents(self) -> list[Consent]:
        """All that hold now."""
        if not self.path.exists():
            return []
        with self._database() as db:
            return [Consent(e, bool(p), g) for e, p, g in db.execute("SELECT endpoint, picture, granted FROM consents ORDER BY endpoint")]

    def allows(self, endpoint: str, picture: bool) -> bool:
        """Whether this may be sent there. Asked before each request, so that a withdrawal stops a batch under way."""
        return any(c.endpoint == endpoint and (c.picture or not picture) for c in self.consents())

    def grant(self, endpoint: str, picture: bool) -> None:
        """Remember the user's consent until it is withdrawn; it replaces an earlier one for this endpoint."""
        with self._database() as db:
            db.execute("INSERT OR REPLACE INTO consents VALUES (?, ?, ?)", (endpoint, int(picture), _now()))

    def withdraw(self, endpoint: str | None = None) -> int:
        """Forget the consent for one endpoint, or all; how many there were."""
        if not self.path.exists():
            return 0
        with self._database() as db:
            if endpoint is None:
                return db.execute("DELETE FROM consents").rowcount
            return db.execute("DELETE FROM consents WHERE endpoint = ?", (endpoint,)).rowcount

    # ---- log

    def sending(self, endpoint: str, model: str, sha256: str, size: int, picture: bool) -> int:
        """Note a request before it leaves, so that not even a kill hides it; the entry's number for ``sent``."""
        with self._database() as db:
            return db.execute(
                "INSERT INTO sent (time, endpoint, model, sha256, bytes, picture) VALUES (?, ?, ?, ?, ?, ?)",
                (_now(), endpoint, model, sha256, size, int(picture)),
            ).lastrowid

    def sent(self, number: int, outcome: str, seconds: float, tokens_in: int | None = None, tokens_out: int | None = None) -> None:
        """Note what became of it."""
        with self._database() as db:
            db.execute(
                "UPDATE sent SET outcome = ?, seconds = ?, tokens_in = ?, tokens_out = ? WHERE number = ?",
                (outcome[:200], round(seconds, 3), tokens_in, tokens_out, number),
            )

    def log(self, last: int | None = None) -> list[Sent]:
        """What went where, newest last."""
        if not self.path.exists():
            return []
        with self._database() as db:
            rows = db.execute(
                "SELECT time, endpoint, model, sha256, bytes, picture, outcome, seconds, tokens_in, tokens_out FROM sent "
                "ORDER BY number DESC LIMIT ?",
                (-1 if last is None else last,),
            ).fetchall()
        return [Sent(*r[:5], bool(r[5]), *r[6:]) for r in reversed(rows)]

    # ---- answers

    def answer(self, key: str) -> str | None:
        """An answer kept under this key."""
        if not self.path.exists():
            return None
        with self._database() as db:
            row = db.execute("SELECT text FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def answered(self, keys: list[str]) -> set[str]:
        """Those of the keys that have an answer."""
        found: set[str] = set()
        if self.path.exists():
            with self._database() as db:
                for start in range(0, len(keys), 500):
                    part = keys[start : start + 500]
                    found.update(r[0] for r in db.execute(f"SELECT key FROM answers WHERE key IN ({','.join('?' * len(part))})", part))
        return found

    @contextmanager
    def alone(self, key: str, wait: Callable[[float], bool]) -> Iterator[None]:
        """As the only one who asks for the answer of this key; another may have kept it just before.

        Args:
            wait: sleeps for some seconds; true to wait no longer for the other, which raises ``Cancelled``.
        """
        path = self.path.parent / ASKING / key
        try:
            for folder in (self.path.parent, path.parent):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = open(path, "ab")
        except OSError as error:
            raise self._unusable(error) from error
        with file:
            while True:
                try:
                    lock(file)
                except OSError as error:
                    if error.errno in _LOCKED:
                        if wait(0.2):
                            raise Cancelled from error
                        continue
                break
            try:
                yield
            finally:
                with suppress(OSError):  # Windows keeps what others have open
                    path.unlink()

    def keep(self, key: str, text: str) -> None:
        """Keep an answer."""
        with self._database() as db:
            db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", (key, text, _now()))

    def forget_answers(self) -> int:
        """Drop every kept answer; how many there were."""
        if not self.path.exists():
            return 0
        with self._database() as db:
            return db.execute("DELETE FROM answers").rowcount


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
