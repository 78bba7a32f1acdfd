"""From a volume node to a segmentation node with evidence, through the worker. Knows no widget."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator

import numpy as np
from slicer.i18n import tr as _

from cers.errors import Cancelled, CersError, InputError

from . import Correction, SegmentationResult, VolumeInput, Words
from .EvidenceModel import EvidenceModel
from .Parameter import Parameter, modelInUse
from .Signal import Signal
from .Task import Call, Task, WorkerError
from .WorkerClient import STOPPED, WorkerClient

IDLE, RUNNING, CANCELLING = "idle", "running", "cancelling"
INFO, GOOD, WARNING, ERROR = "info", "good", "warning", "error"


class SegmentationLogic:
    """Runs one thing at a time.

    Signals:
        stateChanged(state), progressed(fraction, words), said(kind, sentence), finished(EvidenceModel), sliceChanged(key): a re-run is in,
        kept(): the result before a re-run was kept, because a person had changed it,
        added(volume, kept): a correction is in the pool, its whole mask in the file ``kept``, '' if there is none,
        missingPackages(): the worker cannot start without further packages.
    """

    def __init__(self, worker: WorkerClient | None = None):
        self.worker = worker or WorkerClient()
        self.stateChanged, self.progressed, self.said = Signal(), Signal(), Signal()
        self.finished, self.sliceChanged, self.added, self.missingPackages = Signal(), Signal(), Signal(), Signal()
        self.kept = Signal()
        self.state = IDLE
        self._task: Task | None = None
        self._stopReason = ""
        self._loaded: tuple = ()  # what the running worker has loaded: (generation, state of its files, model, device, threads)
        self._pool: tuple = ()  # (generation, folder)
        self._session: tuple = ()  # (generation, evidence model) of the volume whose features the worker holds
        self._cases: dict[tuple, dict] = {}
        self._waiting: dict[tuple, list[Callable]] = {}
        self._counter = 0
        self._nodes: list = []  # what the run reads; it stops when one of them goes

    # segment

    def segment(self, parameter: Parameter) -> bool:
        """Starts a run; False, with a sentence said, when it cannot start."""
        if self.state != IDLE:
            return False
        volume, output = parameter.inputVolume, parameter.outputSegmentation
        problem = VolumeInput.reject(volume) or rejectFolders(parameter)
        if problem:
            self.said.emit(ERROR, problem)
            return False
        settings = {"planes": parameter.planes, "text": parameter.text.strip() or None}
        origin = VolumeInput.origin(volume)
        settings.update(
            name=volume.GetName(),
            spacing_known=VolumeInput.spacingKnown(volume),
            patient_id=origin["patient_id"],
            modality=parameter.modality or origin["modality"],
            body_site=parameter.bodySite or None,
        )
        model = modelOf(parameter)
        self._nodes = [volume]
        self._begin(self._segment(volume, output, settings, model, parameter.poolFolder), self._onSegmented)
        return True

    def _segment(self, volume, output, settings: dict, model: tuple, pool: str) -> Generator[object, object, EvidenceModel]:
        self.progressed.emit(0.01, _("Reading the volume"))
        yield
        self._counter += 1
        path = os.path.join(self.worker.privateFolder(), f"input-{self._counter}.npy")
        image, looks, geometry = volume.GetImageData(), VolumeInput.looks(volume), VolumeInput.worldGeometry(volume)
        yield from VolumeInput.write(volume, path)
        yield from self.prepare(model, pool)
        self._session = ()  # the worker lets go of the volume before, whatever comes of this one
        try:
            result = yield Call("segment", {**settings, "image": path, "ijkToRAS": geometry.ijkToRAS.tolist()})
        finally:
            if os.path.exists(path):
                os.remove(path)
        self.progressed.emit(0.96, _("Writing the segmentation"))
        yield
        labelmap, box = yield from SegmentationResult.read(result["labelmap"])
        if volume.GetScene() is None or volume.GetImageData() is not image:
            raise InputError(_("The input volume was removed or replaced during the run; nothing was changed."))
        if VolumeInput.looks(volume) != looks:
            raise InputError(
                _("The input volume was changed during the run, so the mask is not of what it shows now. Press Segment again.")
            )
        if labelmap.shape != geometry.shape:
            raise CersError(
                _("The worker's result does not fit the volume; nothing was changed. Try again, and report this if it happens again.")
            )
        labels = {int(value): name for value, name in result["labels"].items()}
        if output is None or output.GetScene() is None:
            segmentation = yield from SegmentationResult.make(volume, labelmap, box, labels)
        else:
            segmentation, before = output, SegmentationResult.held(output)
            self._nodes.append(segmentation)
            try:
                yield from SegmentationResult.fill(segmentation, volume, labelmap, box, labels)
            except Exception:
                SegmentationResult.putBack(segmentation, before)
                raise
            SegmentationResult.keepPrevious(segmentation, before)
        evidence = EvidenceModel(result, labelmap, geometry, volume, segmentation, box, pool)
        self._session = (self.worker.generation, evidence)
        return evidence

    def prepare(self, model: tuple, pool: str) -> Generator[object, object, None]:
        """Brings worker, model and pool to what is asked for."""
        if self.worker.state == STOPPED:
            self.progressed.emit(0.05, _("Starting the worker (the first start takes some seconds)"))
        yield Call("hello", {"protocol": 1})
        path, device, threads = model
        wanted = filesOf(path), *model
        if self._loaded != (self.worker.generation, *wanted):
            self.progressed.emit(0.1, _("Loading the model"))
            self._loaded, self._session = (), ()  # stopped from here on, nobody knows which one the worker has
            yield Call("load_model", {"path": path, "device": device, "threads": threads})
            self._loaded = (self.worker.generation, *wanted)
        if self._pool != (self.worker.generation, pool):
            self.progressed.emit(0.15, _("Opening the pool") if pool else _("Working without a pool"))
            self._pool, self._session = (), ()  # as above
            yield Call("open_pool", {"path": pool or None})
            self._pool, self._cases = (self.worker.generation, pool), {}

    def _onSegmented(self, evidence: EvidenceModel) -> None:
        self._setState(IDLE)
        sizes = evidence.summary
        if any(sizes["pixels"].values()):
            found = ", ".join(f"{name} {Words.amount(sizes, name)}" for name, count in sizes["pixels"].items() if count)
            seconds = (
                sum(evidence.summary.get("seconds", {}).values())
                if "total" not in evidence.summary.get("seconds", {})
                else evidence.summary["seconds"]["total"]
            )
            words = _("Found {found} in {seconds:.1f} s.").format(found=found, seconds=seconds)
            self.said.emit(GOOD, f"{words} {Words.references(evidence)}" if evidence.pool else words)
        else:
            left = sum(bool(entry.get("left_out")) for entry in evidence.slices.values())
            words = _("No lesion was found in this volume.")
            if left:
                words += " " + (
                    _("One slice shows something that the planes together do not bear out: look at it (N).")
                    if left == 1
                    else _("{count} slices show something that the planes together do not bear out: look at them (N).").format(count=left)
                )
            self.said.emit(WARNING, words)
        self.finished.emit(evidence)

    # one slice again

    def rerun(self, evidence: EvidenceModel, key: tuple[str, int]) -> bool:
        """Segments one slice again with the user's choice of references."""
        if self.state != IDLE:
            return False
        if not evidence.alive:
            self.said.emit(ERROR, _("The volume or its segmentation is gone; press Segment to start anew."))
            return False
        if self._session != (self.worker.generation, evidence) or self.worker.state == STOPPED:
            self.said.emit(WARNING, _("The worker no longer holds this volume. Press Segment once more, then change the references."))
            return False
        if set(evidence.labels.values()) - set(SegmentationResult.ownSegments(evidence.segmentation)):
            words = _("A segment of this result was removed, so the slice could not be shown. Press Segment once more.")
            self.said.emit(WARNING, words)
            return False
        if not Correction.onGrid(evidence.segmentation, evidence.volume):
            self.said.emit(
                WARNING,
                _(
                    "The volume or its segmentation was moved since, so the slice would be written to a wrong place. Press Segment once "
                    "more, then change the references."
                ),
            )
            return False
        self._nodes = [evidence.volume, evidence.segmentation]
        self._begin(self._rerun(evidence, key), self._onRerun)
        return True

    def _rerun(self, evidence: EvidenceModel, key) -> Generator[object, object, tuple[tuple[str, int], bool, str]]:
        choice = evidence.choice(key)
        ids = {"pinned": sorted(choice.pinned), "dropped": sorted(choice.dropped)}  # the user may choose on while this runs
        self.progressed.emit(0.1, _("Segmenting this slice with your references"))
        held, self._session = self._session, ()  # from its answer on the worker holds another slice than is shown, until it is taken over
        try:
            result = yield Call("resegment", {"plane": key[0], "index": key[1], **ids})
        except WorkerError:
            self._session = held
            raise
        mask = np.load(result["mask"], allow_pickle=False)
        if not evidence.alive:
            raise InputError(_("The volume or its segmentation was removed during the run; nothing was changed."))
        corrected = evidence.edited(key)
        if corrected:
            SegmentationResult.keepPrevious(evidence.segmentation)
        part, start = evidence.apply(key, mask, result["evidence"], result["crossed"])
        SegmentationResult.replaceSlice(evidence.segmentation, evidence.volume, part, start, evidence.labels)
        self._session = held
        (evidence.rerun.add if any(ids.values()) else evidence.rerun.discard)(key)
        return key, corrected, Words.rerun(evidence, key, any(ids.values()))

    def _onRerun(self, outcome: tuple[tuple[str, int], bool, str]) -> None:
        key, corrected, words = outcome
        self._setState(IDLE)
        if corrected:
            words += " " + _("It had been changed by hand: Bring back previous result has it as it was.")
            self.kept.emit()
        self.said.emit(WARNING if corrected else GOOD, words)
        self.sliceChanged.emit(key)

    # what a person made of the result

    def addToPool(self, parameter: Parameter, evidence: EvidenceModel | None, annotator: str, keep: str = "") -> bool:
        """Keeps the corrected result as reference cases; False, with a sentence said, when that cannot start.

        Args:
            evidence: of the run that proposed the result, None if it is not known any more.
            keep: file (.seg.nrrd) for the whole mask, '' for none; the pool itself keeps some slices of it.
        """
        if self.state != IDLE:
            return False
        segmentation = parameter.outputSegmentation
        volume = Correction.volumeOf(segmentation)
        if problem := rejectAdding(parameter, annotator):
            self.said.emit(ERROR, problem)
            return False
        origin = VolumeInput.origin(volume)
        image = evidence.summary.get("provenance", {}).get("image") if evidence is not None else None
        settings = {
            "annotator": annotator.strip(),
            **({"made_for": image} if image and evidence.segmentation is segmentation else {}),
            "spacing_known": VolumeInput.spacingKnown(volume),
            "patient_id": origin["patient_id"],
            "modality": parameter.modality or origin["modality"],
            "body_site": parameter.bodySite or None,
            "keep": keep or None,
        }
        model = modelOf(parameter)
        self._nodes = [volume, segmentation]
        if evidence is not None and evidence.segmentation is not segmentation:
            evidence = None
        self._begin(self._addToPool(volume, segmentation, evidence, settings, model, parameter.poolFolder), self._onAdded)
        return True

    def _addToPool(self, volume, segmentation, evidence: EvidenceModel | None, settings: dict, model: tuple, pool: str) -> Generator:
        self.progressed.emit(0.01, _("Reading the corrected segmentation"))
        yield
        own = SegmentationResult.ownSegments(segmentation)
        labels = evidence.labels if evidence is not None else dict(enumerate(own, start=1))
        names = SegmentationResult.namesNow(segmentation, labels)
        mask = yield from Correction.read(segmentation, volume, labels)
        proposed = evidence.labelmap if evidence is not None and evidence.labelmap.shape == mask.shape else None
        # the volume stays known as what it was
        geometry = evidence.geometry if proposed is not None else VolumeInput.worldGeometry(volume)
        self._counter += 1
        paths = {name: os.path.join(self.worker.privateFolder(), f"{name}-{self._counter}.npy") for name in ("image", "mask", "proposed")}
        try:
            yield from VolumeInput.write(volume, paths["image"])
            yield from VolumeInput.save(mask, paths["mask"])
            if proposed is not None:
                yield from VolumeInput.save(proposed, paths["proposed"])
            else:
                del paths["proposed"]
            yield from self.prepare(model, pool)
            self.progressed.emit(0.3, _("Adding the case to the pool"))
            self._stopped = _("Stopped. Slices that were in the pool by then stay there; add the result again for the rest.")
            result = yield Call(
                "add_case",
                {
                    **settings,
                    **paths,
                    "ijkToRAS": geometry.ijkToRAS.tolist(),
                    "labels": {str(value): name for value, name in names.items()},
                },
            )
        finally:
            for path in paths.values():
                if os.path.exists(path):
                    os.remove(path)
        result["renamed"] = [name for value, name in names.items() if name != labels[value]]
        return result, Correction.foreignSegments(segmentation), volume, settings["keep"] or ""

    def _onAdded(self, outcome: tuple) -> None:
        self._setState(IDLE)
        result, others, volume, kept = outcome
        self.said.emit(GOOD if result["added"] or result["replaced"] else INFO, Words.added(result, others))
        self.added.emit(volume, kept)

    # pictures and report

    def case(self, identifier: str, pool: str, receiver: Callable[[dict | None], None]) -> None:
        """Gives a case of the pool in folder ``pool`` to ``receiver``: its metadata with "image" and "mask" (rows, columns) uint8.

        None if unreadable. For a result that was loaded with a scene the worker is started and the pool opened."""
        place = (pool, identifier)
        if place in self._cases:
            receiver(self._cases[place])
        elif place in self._waiting:
            self._waiting[place].append(receiver)
        elif not self._reachable(pool):
            receiver(None)
        else:
            self._waiting[place] = [receiver]
            self.worker.request(
                "case",
                {"id": identifier},
                onResult=lambda result: self._onCase(place, result),
                onError=lambda _code, _sentence: self._onCase(place, None),
            )

    def _reachable(self, pool: str) -> bool:
        """Whether the worker can be asked for cases of a pool; has it opened, for reading, where that is not done yet."""
        if self.worker.state != STOPPED and self._pool[:2] == (self.worker.generation, pool):
            return True
        if self.state != IDLE or not os.path.isdir(pool):
            return False

        def refused(_code: str, sentence: str) -> None:
            self._pool = ()
            self.said.emit(WARNING, sentence)

        self.worker.request("open_pool", {"path": pool, "read_only": True}, onError=refused)
        self._pool, self._session = (self.worker.generation, pool, "for reading"), ()  # a run opens it anew
        return True

    def _onCase(self, place: tuple, result: dict | None) -> None:
        if result is not None:
            try:
                result = {**result, **{name: np.load(result[name], allow_pickle=False) for name in ("image", "mask")}}
                self._cases[place] = result
            except (OSError, ValueError, KeyError):  # the worker's folder went away with it
                result = None
        for receiver in self._waiting.pop(place, []):
            receiver(result)

    def exportReport(self, evidence: EvidenceModel, path: str) -> bool:
        """Writes the HTML report of the last run."""
        if self.state != IDLE:
            return False
        if self._session != (self.worker.generation, evidence) or self.worker.state == STOPPED:
            self.said.emit(WARNING, _("The worker no longer holds this volume. Press Segment once more, then export the report."))
            return False

        def steps():
            self.progressed.emit(0.3, _("Writing the report"))
            changed = yield from evidence.changed()
            note = _("The segmentation was changed by hand since. This report shows the result before.") if changed else None
            written = yield Call("export_report", {"path": path, "note": note})
            return changed, written.get("warning", "")

        def done(outcome):
            changed, warning = outcome
            self._setState(IDLE)
            words = _("Report written to {path}.").format(path=path)
            if changed:
                words += " " + _("It shows the result before it was changed by hand, and says so.")
            if warning:
                words += " " + warning
            self.said.emit(WARNING if changed or warning else GOOD, words)

        self._nodes = [evidence.volume, evidence.segmentation]
        self._begin(steps(), done)
        return True

    # control

    def run(self, steps: Generator, onDone: Callable, nodes: list | None = None) -> bool:
        """Runs the steps of a task as the one thing that is done; False where another is running. Errors are said as of a segmentation.

        Args:
            onDone: called with what the steps return. nodes: the task is stopped when one of them leaves the scene.
        """
        if self.state != IDLE:
            return False

        def done(value) -> None:
            self._setState(IDLE)
            onDone(value)

        self._nodes = nodes or []
        self._begin(steps, done)
        return True

    def cancel(self, reason: str = "") -> None:
        """Stops what runs. Answers at once; the worker is killed if it does not follow within two seconds."""
        if self._task is not None and self._task.running and self.state == RUNNING:
            self._stopReason = reason
            self._setState(CANCELLING)
            self._task.cancel()

    def checkNodes(self) -> None:
        """Stops a run whose volume or segmentation was removed from the scene."""
        gone = [node for node in self._nodes if node.GetScene() is None]
        if self.state == RUNNING and gone:
            self.cancel(
                _("The segmentation was removed from the scene, so the run was stopped.")
                if gone[0].IsA("vtkMRMLSegmentationNode")
                else _("The volume was removed from the scene, so the run was stopped.")
            )

    def shutdown(self) -> None:
        """Stops everything and ends the worker; for when the module or the application ends."""
        self.cancel()
        self.worker.close()

    def _begin(self, generator: Generator, onDone: Callable) -> None:
        self._stopReason, self._stopped = "", _("Stopped. Nothing was changed.")
        self._setState(RUNNING)
        self._task = Task(generator, self.worker, onDone, self._onError, self._onProgress)

    def _onProgress(self, fraction: float, words: str) -> None:
        if self.state == RUNNING:
            self.progressed.emit(0.2 + 0.75 * min(max(fraction, 0.0), 1.0), words)

    def _onError(self, error: Exception) -> None:
        self._setState(IDLE)
        if isinstance(error, Cancelled):
            self.said.emit(WARNING if self._stopReason else INFO, self._stopReason or self._stopped)
        elif isinstance(error, CersError):
            # it may have been replaced: opened anew for the next run; until then pictures and re-runs need the one that is open
            self._pool = (*self._pool[:2], "after an error")
            self.said.emit(ERROR, str(error))
            if isinstance(error, WorkerError) and error.code in ("worker", "packages", "missing"):
                self.missingPackages.emit()
        elif isinstance(error, OSError):
            self.said.emit(
                ERROR,
                _("A temporary file could not be written or read: {reason}. Free some disk space and try again.").format(reason=error),
            )
        else:
            self.said.emit(ERROR, _("Something unexpected went wrong; nothing was changed. The details are in the error log."))
            import logging

            logging.error("CERS Segment", exc_info=error)

    def _setState(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.stateChanged.emit(state)


def modelOf(parameter: Parameter) -> tuple:
    """(folder or None, device, threads or None) as ``prepare`` takes it: of the model in use where the panel names none."""
    try:
        folder = parameter.modelFolder or modelInUse()[0]
    except CersError:  # the worker says it, as the answer to the request that needs the model
        folder = ""
    return folder or None, parameter.device, parameter.threads or None


def rejectAdding(parameter: Parameter, annotator: str) -> str:
    """One sentence on why the result cannot be kept as reference cases, '' if nothing speaks against it."""
    problem = Correction.reject(parameter.outputSegmentation) or rejectFolders(parameter)
    if not problem and not parameter.poolFolder:
        problem = _("No pool is chosen. Choose the folder of the pool that the corrected case shall go to.")
    if not problem and not annotator.strip():
        problem = _("Write your name beside the button: it is kept with the case.")
    return problem or VolumeInput.reject(Correction.volumeOf(parameter.outputSegmentation))


def filesOf(folder: str | None) -> tuple:
    """What tells whether a model's files are still the same: a training that goes on writes a better model into the folder of its run."""
    from cers.inference.store import CONFIG, WEIGHTS

    def state(name: str) -> tuple | None:
        try:
            found = os.stat(os.path.join(folder, name))
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    return (state(WEIGHTS), state(CONFIG)) if folder else ()


def rejectFolders(parameter: Parameter) -> str:
    if parameter.poolFolder and not os.path.isdir(parameter.poolFolder):
        return _("The pool folder '{path}' does not exist. Choose a pool, or leave the field empty to segment without references.").format(
            path=parameter.poolFolder
        )
    if parameter.modelFolder and not os.path.isdir(parameter.modelFolder):
        return _("The model folder '{path}' does not exist. Choose a model, or leave the field empty for the one in use.").format(
            path=parameter.modelFolder
        )
    return ""
