"""The module's parameters, kept in the scene so that they are saved and restored with it."""

from __future__ import annotations

import slicer

MODULE = "CERSSegment"
POOL_SETTING = "CERS/PoolFolder"  # the pool that a new scene begins with
ROLES = {"inputVolume": "InputVolume", "outputSegmentation": "OutputSegmentation"}
DEFAULTS = {
    "text": "",
    "poolFolder": "",
    "modelFolder": "",
    "device": "auto",
    "planes": "auto",
    "threads": "0",
    "modality": "",
    "bodySite": "",
}


class Parameter:
    """Typed view of the scene's parameter node.

    Attributes ``inputVolume`` and ``outputSegmentation`` are nodes or None. ``text``, ``poolFolder``, ``modelFolder``, ``device``
    ("auto", "cpu", "cuda", "mps"), ``planes`` ("auto", "acquisition", "three"), ``modality`` and ``bodySite`` ('' = as in the image)
    are strings. ``threads`` is an int, 0 = automatic.
    """

    def __init__(self, node):
        object.__setattr__(self, "node", node)

    def __getattr__(self, name: str):
        if name in ROLES:
            return self.node.GetNodeReference(ROLES[name])
        if name not in DEFAULTS:
            raise AttributeError(name)
        value = self.node.GetParameter(name)
        value = DEFAULTS[name] if value in (None, "") else value
        return _toInt(value) if name == "threads" else value

    def __setattr__(self, name: str, value) -> None:
        if name in ROLES:
            identifier = value.GetID() if value is not None else None
            if self.node.GetNodeReferenceID(ROLES[name]) != identifier:
                self.node.SetNodeReferenceID(ROLES[name], identifier)
        elif name in DEFAULTS:
            if self.node.GetParameter(name) != str(value):
                self.node.SetParameter(name, str(value))
        else:
            raise AttributeError(name)


def modelInUse() -> tuple[str, str]:
    """(folder, name) of the model that serves where the panel names none; the folder of the one that comes with CERS is ''.

    Raises:
        CersError: it is gone.
    """
    from cers.inference import store

    _identifier, folder, name = store.current()
    return folder, name


def _toInt(text: str) -> int:
    try:
        return max(0, int(text))
    except ValueError:  # a scene edited by hand
        return 0


def parameterNode():
    """The module's node in the present scene, made when it is not there yet."""
    node = slicer.mrmlScene.GetSingletonNode(MODULE, "vtkMRMLScriptedModuleNode")
    if node is None:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag(MODULE)
        node.SetModuleName(MODULE)
        node.SetName(MODULE)
        node.SetHideFromEditors(True)
        node = slicer.mrmlScene.AddNode(node)
    return node
