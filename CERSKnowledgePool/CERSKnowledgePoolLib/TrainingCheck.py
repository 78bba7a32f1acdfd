"""Asks a process what a run would do, before it starts: the pictures, leaks, time and memory. The application stays free meanwhile."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from html import escape
from pathlib import Path

import qt
from CERSSegmentLib.WorkerClient import startSentence, workerCommand
from slicer.i18n import tr as _

from cers.errors import InputError
from cers.training import runs

from .TrainingLaunch import PICTURES

STAGES = {
    "Reading the pictures": lambda: _("Reading the pictures…"),
    "Looking for leaks": lambda: _("Looking for leaks…"),
    "Trying some steps": lambda: _("Trying some steps to see how long they take…"),
}


class TrainingCheck:
    """One check at a time.

    Args: onStage(words). onReport(settings, report). onError(sentence).
    """

    def __init__(self, onStage: Callable[[str], None], onReport: Callable[[dict, dict], None], onError: Callable[[str], None]):
        self._onStage, self._onReport, self._onError = onStage, onReport, onError
        self._process, self._ending, self._file = None, [], None
        self._out, self._err = b"", b""

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self, root: str, settings: dict) -> None:
        """Checks settings; pictures are prepared where runs of the folder ``root`` find them.

        Raises:
            InputError: the folder cannot be written, or there is no Python.
        """
        self.cancel()
        try:
            Path(root).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                _("The folder for runs '{root}' cannot be made ({reason}). Choose another one.").format(root=root, reason=error.strerror)
            ) from error
        file = Path(root) / f".check-{os.getpid()}.json"
        runs.write_record(file, settings)
        try:
            program, _serve, variables = workerCommand()
        except RuntimeError as error:
            file.unlink()
            raise InputError(str(error)) from error
        process = self._process = qt.QProcess()
        self._file, self._out, self._err = file, b"", b""
        environment = qt.QProcessEnvironment()
        for name, value in variables.items():
            environment.insert(name, value)
        process.setProcessEnvironment(environment)
        process.readyReadStandardOutput.connect(lambda: self._read(process))
        process.readyReadStandardError.connect(lambda: self._read(process))
        process.finished.connect(lambda code, *_status: self._onFinished(process, code))
        process.errorOccurred.connect(lambda error: self._onFinished(process, None) if error == qt.QProcess.FailedToStart else None)
        self._onStage(_("Starting the check…"))
        process.start(program, ["-m", "cers", "train", "--check", "--json", "--config", str(file), "--cache", str(Path(root) / PICTURES)])

    def cancel(self) -> None:
        """Ends the check; nothing is reported."""
        process, self._process = self._process, None
        if process is not None:
            self._ending.append(process)  # to delete it before it is gone would wait for it
            process.kill()
        self._tidy()

    def close(self) -> None:
        """Ends the check and waits until its process is gone; no event tells of it any more."""
        self.cancel()
        for process in self._ending:
            process.blockSignals(True)
            process.waitForFinished(2000)
        self._ending.clear()

    def _tidy(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None

    def _read(self, process) -> None:
        if process is not self._process:
            return
        self._out += process.readAllStandardOutput().data()
        before = self._err.count(b"\n")
        self._err += process.readAllStandardError().data()
        for line in self._err.decode(errors="replace").split("\n")[before:]:
            if line.strip() in STAGES:
                self._onStage(STAGES[line.strip()]())

    def _onFinished(self, process, code) -> None:
        if process in self._ending:
            qt.QTimer.singleShot(0, lambda: process in self._ending and self._ending.remove(process))
        if process is not self._process:
            return
        self._read(process)
        settings = self._settings()
        self._process = None
        self._ending.append(process)  # Python lets go of it when the event is over
        qt.QTimer.singleShot(0, lambda: process in self._ending and self._ending.remove(process))
        self._tidy()
        try:
            report = json.loads(self._out)
        except ValueError:
            report = None
        if code == 0 and isinstance(report, dict) and settings is not None:
            self._onReport(settings, report)
            return
        if code is None:
            self._onError(startSentence())
            return
        lines = [line.removeprefix("Error: ") for line in self._err.decode(errors="replace").splitlines() if line.startswith("Error: ")]
        self._onError(
            lines[-1]
            if lines
            else _(
                "The check ended without an answer. Perhaps there was not enough memory: choose smaller "
                "pictures or fewer groups, and try again."
            )
        )

    def _settings(self) -> dict | None:
        try:
            return json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError, AttributeError):
            return None


def html(report: dict) -> str:
    """A report for the panel."""
    counts, leaks, e = report["counts"], report["leaks"], report["estimate"]
    good, bad = "<span style='color:#2e9e5b'>✔</span> ", "<span style='color:#d64545'>✖</span> "
    rows = [
        good
        + escape(
            _(
                "{labelled} labelled and {unlabelled} unlabelled pictures of {groups} groups to train on, {held} held out. "
                "Labels: {labels}."
            ).format(
                labelled=f"{counts['labelled']:,}",
                unlabelled=f"{counts['unlabelled']:,}",
                groups=f"{report['groups']:,}",
                held=f"{counts['validation']:,}",
                labels=", ".join(report["labels"]) or "–",
            )
        )
    ]
    if not counts["validation"]:
        rows.append(bad + escape(_("Nothing is held out, so there will be no validation. Raise the held-out share, or add patients.")))
    if report.get("set_aside"):
        rows.append(good + escape(_("Left out, because they are held-out pictures or related to them: {n}.").format(n=report["set_aside"])))
    if report.get("joined"):
        words = _("Held out as well, because unlabelled pictures show them to be related to held-out ones: {n}.")
        rows.append(good + escape(words.format(n=report["joined"])))
    if report.get("too_small"):
        words = _("Slices in which a label is too small for the stored frame, and counts as not drawn: {n}.")
        rows.append(bad + escape(words.format(n=report["too_small"])))
    if leaks["found"]:
        rows.append(bad + escape(_("Leak: {words}. Figures of such a run would be too good.").format(words=leaks["words"])))
        for pair in ("train/validation", "train/test", "validation/test"):
            shown = leaks.get(pair, {}).get("examples", {})
            names = [str(x) for x in shown.get("shared_groups", [])]
            names += [" = ".join(map(str, x)) for kind in ("identical_files", "near_identical_pictures") for x in shown.get(kind, [])]
            if names:
                rows.append("&nbsp;&nbsp;&nbsp;" + escape(_("{pair}: for instance {names}").format(pair=pair, names="; ".join(names[:3]))))
    else:
        rows.append(good + escape(_("No leak: nothing is on two sides (split by {by}).").format(by=report["split_by"])))
    if e is not None and e.get("steps") is None:
        rows.append(bad + escape(_("There is not enough memory for this batch.")))
    elif e is not None:
        rows.append(
            good
            + escape(
                _(
                    "About {total} in all on {device}: {preparing} to prepare, {training} of training "
                    "({steps} steps of {pace} s), {validating} for validation."
                ).format(
                    total=duration(e["total"]),
                    device=e["device"],
                    preparing=duration(e["preparing"]),
                    training=duration(e["training"]),
                    steps=f"{e['steps']:,}",
                    pace=f"{e['seconds_per_step']:.2g}",
                    validating=duration(e["validating"]),
                )
            )
        )
        if e.get("memory") is not None:
            words = _("About {needed} GB of memory").format(needed=f"{e['memory'] / 1e9:.1f}")
            if e.get("memory_free") is not None:
                words += " " + _("({free} GB are free)").format(free=f"{e['memory_free'] / 1e9:.1f}")
            tight = e["fits"] is False
            rows.append((bad if tight else good) + escape(words + (_(": too little is free.") if tight else ".")))
    if e is not None and e.get("disk") and e.get("disk_free") is not None and e["disk_free"] < 2 * e["disk"]:
        rows.append(
            bad
            + escape(
                _("The disk has room for {free} MB; the run needs about {needed} MB.").format(
                    free=f"{e['disk_free'] / 1e6:,.0f}", needed=f"{e['disk'] / 1e6:,.0f}"
                )
            )
        )
    return "<br>".join(rows)


def duration(seconds: float | None) -> str:
    """A time in words that nobody needs to the second."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return _("{n} s").format(n=max(0, round(seconds)))
    if seconds < 5400:
        return _("{n} min").format(n=round(seconds / 60))
    return _("{n} h").format(n=f"{seconds / 3600:.1f}")


def batchWords(batch: dict) -> str:
    """A batch in words."""
    return _("{groups} groups of {members} + {unlabelled} pictures, {size} × {size}").format(
        groups=batch.get("groups"), members=batch.get("members"), unlabelled=batch.get("unlabelled_members"), size=batch.get("size")
    )
