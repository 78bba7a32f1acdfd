"""Files appear whole or not at all; what Windows does otherwise is played."""

from __future__ import annotations

import errno
import os

import pytest

from cers import files
from cers.errors import InputError
from cers.training import runs


def test_what_is_open_for_reading_only_is_not_flushed(monkeypatch, tmp_path):
    fcntl, flush = pytest.importorskip("fcntl"), os.fsync

    def as_windows(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flush(handle)

    monkeypatch.setattr(os, "fsync", as_windows)
    with files.atomic_path(tmp_path / "mask.seg.nrrd") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "mask.seg.nrrd").read_text() == "whole"


def test_a_file_that_is_being_read_is_replaced_a_moment_later(monkeypatch, tmp_path):
    refused, replace, path = [], os.replace, tmp_path / "status.json"

    def as_windows(source, target):
        if len(refused) < 3:
            refused.append(target)
            raise PermissionError(errno.EACCES, "Access is denied")
        replace(source, target)

    path.write_text("old")
    monkeypatch.setattr(os, "replace", as_windows)
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    with pytest.raises(InputError, match="status.json' could not be written: Access is denied"), files.atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["status.json"]
    refused.clear()
    monkeypatch.setattr(files, "PATIENCE", 60.0)
    with files.atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    refused.clear()
    runs.write_record(path, {"state": "running"})
    assert '"running"' in path.read_text()
