"""How far the volumes of a list to label are: kept beside the pool, in small files that no two annotators share.

``<pool>/labelling/`` holds for each volume and annotator one JSON file with the state, each saved mask as a .seg.nrrd file of its own,
and for each annotator the last ranking. Nothing is read, changed and written back, so that nobody overwrites what another one said.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from slicer.i18n import tr as _

from cers.errors import InputError

FOLDER = "labelling"
TODO, WORK, DONE = "to do", "in work", "finished"
STATES = (TODO, WORK, DONE)


@dataclass(frozen=True)
class Entry:
    """What one annotator said of one volume. changed: ISO 8601 UTC; mask: name of the file of the saved mask, '' if there is none."""

    state: str
    who: str
    changed: str
    mask: str = ""


class LabelNextState:
    """The states of all volumes of a pool, as all annotators left them.

    Args:
        pool: its folder. annotator: whose changes are written.
    """

    def __init__(self, pool: str, annotator: str):
        self.folder, self.annotator = Path(pool) / FOLDER, annotator.strip()
        self._own = _fileName(self.annotator)
        self._entries: dict[str, list[Entry]] = {}
        self.read()

    def read(self) -> None:
        """Takes over what anyone has written since; a file that cannot be read counts as not there."""
        self._entries = {}
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []:
            identifier = path.name.split(".")[0]
            data = _load(path)
            if data.get("state") in STATES and not path.name.startswith("ranking."):
                who, changed, mask = (str(data.get(name) or "") for name in ("who", "changed", "mask"))
                self._entries.setdefault(identifier, []).append(Entry(data["state"], who, changed, os.path.basename(mask)))

    def entry(self, identifier: str) -> Entry:
        """The latest word on a volume."""
        return max(self._entries.get(identifier, []), key=lambda e: e.changed, default=Entry(TODO, "", ""))

    def mask(self, identifier: str) -> str:
        """Path of the mask that was saved last, by whomever; '' if there is none."""
        saved = [e for e in self._entries.get(identifier, []) if e.mask and (self.folder / e.mask).is_file()]
        return str(self.folder / max(saved, key=lambda e: e.changed).mask) if saved else ""

    def newMask(self, identifier: str) -> str:
        """A path for a mask that is about to be saved; no earlier one is overwritten."""
        moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")
        return str(self.folder / f"{identifier}.{self._own}.{moment}.seg.nrrd")

    def set(self, identifier: str, state: str, mask: str = "") -> None:
        """Writes a state. A mask that was saved before stays the saved one where none is given.

        Raises:
            InputError: it could not be written, for instance because the pool may only be read.
        """
        own = next((e for e in self._entries.get(identifier, []) if e.who == self.annotator), None)
        entry = Entry(state, self.annotator, datetime.now(timezone.utc).isoformat(), os.path.basename(mask) or (own.mask if own else ""))
        self._write(f"{identifier}.{self._own}.json", vars(entry))
        self._entries[identifier] = [e for e in self._entries.get(identifier, []) if e.who != self.annotator] + [entry]

    def ranking(self) -> dict:
        """This annotator's last ranking, {} if there is none."""
        return _load(self.folder / f"ranking.{self._own}.json")

    def keepRanking(self, ranking: dict) -> None:
        """Keeps a ranking for the next start. Raises InputError as ``set`` does."""
        self._write(f"ranking.{self._own}.json", ranking)

    def _write(self, name: str, data: dict) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=self.folder)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(data, file, ensure_ascii=False, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o644)  # others of the pool shall see it; mkstemp makes files that only their owner reads
                os.replace(temporary, self.folder / name)
            finally:
                if os.path.exists(temporary):
                    os.remove(temporary)
        except OSError as error:
            raise InputError(
                _("How far the list is could not be written to {path} ({reason}), so it is not remembered.").format(
                    path=self.folder, reason=error.strerror or error
                )
            ) from error


def _fileName(annotator: str) -> str:
    """A name that any file system takes, and that no two annotators have."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", annotator).strip("-").lower()[:24] or "someone"
    return f"{plain}-{hashlib.sha256(annotator.encode()).hexdigest()[:8]}"


def _load(path: Path) -> dict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
