"""Whether a folder lies on another computer: SQLite's write-ahead log needs memory that all writers share, and two computers have none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_NETWORK = {
    "nfs",
    "nfs3",
    "nfs4",
    "cifs",
    "smb",
    "smb2",
    "smb3",
    "smbfs",
    "afpfs",
    "webdav",
    "davfs",
    "davfs2",
    "ncpfs",
    "afs",
    "coda",
    "9p",
    "ceph",
    "glusterfs",
    "lustre",
    "gpfs",
    "beegfs",
    "panfs",
    "pvfs2",
    "orangefs",
    "ocfs2",
    "gfs2",
}
_THROUGH_FUSE = ("sshfs", "rclone", "s3fs", "gcsfuse", "davfs", "glusterfs", "ceph", "curlftpfs", "smb", "nfs", "gvfsd")


def on_network(folder: Path) -> bool:
    """Whether a folder, or the nearest one above it that exists, lies on a network drive; False where that cannot be told."""
    try:
        folder = Path(os.path.realpath(folder))
        if sys.platform == "win32":
            return _windows(folder)
        if sys.platform == "darwin":
            listed = subprocess.run(["/sbin/mount"], capture_output=True, text=True, timeout=5, check=False).stdout
            return is_network(kind_of(folder, macos_mounts(listed)))
        return is_network(kind_of(folder, linux_mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace"))))
    except (OSError, ValueError, subprocess.SubprocessError):
        return False


def is_network(kind: str) -> bool:
    """Whether files of a file system's kind lie on another computer."""
    kind = kind.lower()
    return kind in _NETWORK or (kind.startswith("fuse") and any(name in kind for name in _THROUGH_FUSE))


def linux_mounts(text: str) -> dict[str, str]:
    """Mount point -> kind of file system, of /proc/self/mountinfo; of several at one place the last counts."""
    out = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > 4 and after:
            out[fields[4].encode().decode("unicode_escape") if "\\" in fields[4] else fields[4]] = after.split()[0]  # \040 is a blank
    return out


def macos_mounts(text: str) -> dict[str, str]:
    """The same of the lines of ``mount``: //server/share on /Volumes/share (smbfs, nodev)."""
    out = {}
    for line in text.splitlines():
        place, _, kind = line.partition(" on ")[2].rpartition(" (")
        if place:
            out[place] = kind.split(",")[0].rstrip(")").strip()
    return out


def kind_of(folder: Path, mounts: dict[str, str]) -> str:
    """The file system on which a folder lies, "" if unknown."""
    for place in (folder, *folder.parents):
        if str(place) in mounts:
            return mounts[str(place)]
    return ""


def _windows(folder: Path) -> bool:
    import ctypes

    if str(folder).startswith("\\\\"):
        return True
    return bool(folder.drive) and ctypes.windll.kernel32.GetDriveTypeW(folder.drive + "\\") == 4  # DRIVE_REMOTE
