"""The evidence of a result, kept in the scene beside its segmentation: saved and loaded with it.

Pictures of references stay in the pool.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Generator

import numpy as np
import slicer
from slicer.i18n import tr as _

from cers.case import Geometry
from cers.errors import InputError

from . import Correction
from .EvidenceModel import Choices, EvidenceModel
from .Later import Later

ROLE = "CERS.Evidence"  # segmentation node -> the text node; also the attribute that tells these text nodes from others
FORMAT = 1
DIGITS = 4  # of scores; more are not shown
SIZES = ("spacing_known", "pixels", "volume_ml", "area_mm2", "picture_share")  # how much was found (``Prediction.sizes``)


class Keeper:
    """Writes evidence into the scene in small portions between the application's events: a thousand slices take a fifth of a second."""

    def __init__(self):
        self._later, self._steps = Later(), None

    def keep(self, model: EvidenceModel) -> None:
        """Keeps the evidence of ``model``, soon; what was to be kept before and is not yet is left out."""
        self._steps = keeping(model)
        self._later.do(self, self._step)

    def forget(self, segmentation) -> None:
        """Takes the evidence of a segmentation out of the scene, what is still to be written included."""
        self.stop()
        forget(segmentation)

    def finish(self) -> None:
        """Does what is left."""
        while self._steps is not None:
            self._step()

    def stop(self) -> None:
        """Leaves out what is not kept yet."""
        self._steps = None
        self._later.stop()

    def _step(self) -> None:
        try:
            if self._steps is not None:
                next(self._steps)
                self._later.do(self, self._step)
        except StopIteration:
            self._steps = None


def keeping(model: EvidenceModel) -> Generator[None, None, None]:
    """Writes the evidence into the scene, in place of what was known of an earlier result of that segmentation; a slice at a time."""
    record = _pack(model)
    yield
    slices = []
    for entry in list(model.slices.values()):
        slices.append(_json(_short(entry)))
        yield
    if not model.alive:
        return
    node = model.segmentation.GetNodeReference(ROLE)
    if node is None or _shared(node):
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLTextNode")
        node.UnRegister(None)
        node.SetName(_("{name} evidence").format(name=model.segmentation.GetName()))
        node.SetHideFromEditors(True)
        node.SetAttribute(ROLE, str(FORMAT))
        node.SetForceCreateStorageNode(node.CreateStorageNodeNever)  # inside the scene file, so that no save dialog can leave it out
        node = slicer.mrmlScene.AddNode(node)
        model.segmentation.SetNodeReferenceID(ROLE, node.GetID())
    node.SetText(_json(record)[:-1] + ',"slices":[' + ",".join(slices) + "]}")


def _json(value) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def forget(segmentation) -> None:
    """Takes the evidence of a segmentation out of the scene."""
    node = segmentation.GetNodeReference(ROLE)
    segmentation.SetNodeReferenceID(ROLE, None)
    if node is not None and not _shared(node, by=0):
        slicer.mrmlScene.RemoveNode(node)


def _shared(node, by: int = 1) -> bool:
    """Whether more than ``by`` segmentations name this evidence: a clone keeps that of the result it was made of."""
    return sum(s.GetNodeReferenceID(ROLE) == node.GetID() for s in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) > by


def forgetOrphans() -> None:
    """Takes out the evidence of segmentations that are gone, so that it is not saved with the scene."""
    used = {node.GetNodeReferenceID(ROLE) for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")}
    for node in slicer.util.getNodesByClass("vtkMRMLTextNode"):
        if node.GetAttribute(ROLE) and node.GetID() not in used:
            slicer.mrmlScene.RemoveNode(node)


def restore(segmentation) -> EvidenceModel | None:
    """The evidence kept with a segmentation; None if there is none.

    Raises:
        InputError: it cannot be read, or the volume it belongs to is not in the scene.
    """
    node = segmentation.GetNodeReference(ROLE) if segmentation is not None else None
    if node is None:
        return None
    volume = Correction.volumeOf(segmentation)
    if volume is None:
        raise InputError(
            _("The volume of this result is not in the scene, so its evidence cannot be shown. Load the volume and segment it again.")
        )
    try:
        return _unpack(json.loads(node.GetText()), volume, segmentation)
    except (ValueError, KeyError, TypeError, IndexError, zlib.error) as error:  # edited by hand, or of a later version
        raise InputError(_("The evidence saved with this scene cannot be read. Press Segment to make it anew.")) from error


def _pack(model: EvidenceModel) -> dict:
    """All but the slices."""
    box = model.box
    part = model.labelmap[tuple(box)] if box is not None else np.zeros((0, 0, 0), np.uint8)
    bits = {str(value): base64.b64encode(zlib.compress(np.packbits(part == value).tobytes(), 1)).decode() for value in model.labels}
    return {
        "format": FORMAT,
        "labels": model.summary["labels"],
        **{name: model.summary[name] for name in SIZES if name in model.summary},
        "seconds": model.summary.get("seconds", {}),
        "provenance": model.summary.get("provenance", {}),
        "pool": model.pool,
        "ijkToRAS": model.geometry.ijkToRAS.tolist(),
        "shape": list(model.geometry.shape),
        "box": None if box is None else [[int(s.start), int(s.stop)] for s in box],
        "masks": bits,
        "rerun": [[*key, sorted(model.choice(key).pinned), sorted(model.choice(key).dropped)] for key in sorted(model.rerun)],
    }


def _short(entry: dict) -> dict:
    """The evidence of a slice without the numbers that are not shown."""
    rationale = entry.get("rationale")
    if rationale:
        rationale = {"statements": [{"part": s["part"], "text": s["text"]} for s in rationale["statements"]]}
    # of the first mask it is shown only whether it had words
    return _rounded({**entry, "rationale": rationale, "first_rationale": bool(entry.get("first_rationale"))})


def _rounded(value):
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(v) for name, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def _unpack(record: dict, volume, segmentation) -> EvidenceModel:
    if record["format"] != FORMAT:
        raise ValueError(record["format"])
    geometry = Geometry(np.array(record["ijkToRAS"], float), tuple(record["shape"]))
    labelmap = np.zeros(geometry.shape, np.uint8)
    box = None if record["box"] is None else [slice(*ends) for ends in record["box"]]
    if box is not None:
        part = labelmap[tuple(box)]
        for value, text in record["masks"].items():
            bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
            part[np.unpackbits(bits, count=part.size).reshape(part.shape) > 0] = int(value)
    model = EvidenceModel(record, labelmap, geometry, volume, segmentation, box, pool=str(record["pool"]))
    for key in model.slices:
        model.leftOut(key)  # raises where it is no part of the slice, now rather than when it is to be drawn
    for plane, index, pinned, dropped in record["rerun"]:
        model.rerun.add((plane, index))
        model.choices[plane, index] = Choices(set(pinned), set(dropped))
    return model
