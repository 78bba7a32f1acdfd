"""Reading and writing of nodes and scenes, as ``slicer.util.load*`` and ``save*`` ask for it."""

from __future__ import annotations

import os

import slicer
import vtk

#: File name suffix -> kind of file, the longest suffix wins.
KINDS = {
    ".seg.nrrd": "SegmentationFile", ".nrrd": "VolumeFile", ".nii.gz": "VolumeFile", ".nii": "VolumeFile", ".mha": "VolumeFile",
    ".mhd": "VolumeFile", ".vtk": "ModelFile", ".mrml": "SceneFile", ".mrb": "SceneFile", ".h5": "TransformFile",
    ".tfm": "TransformFile", ".txt": "TextFile", ".tsv": "TableFile", ".csv": "TableFile",
}  # fmt: skip
_NODES = {
    "SegmentationFile": "vtkMRMLSegmentationNode", "ModelFile": "vtkMRMLModelNode", "TextFile": "vtkMRMLTextNode",
    "TransformFile": "vtkMRMLLinearTransformNode", "TableFile": "vtkMRMLTableNode",
}  # fmt: skip


class CoreIOManager:
    """``slicer.app.coreIOManager()`` for the file kinds that the tests use."""

    def fileType(self, path: str) -> str:
        name = str(path).lower()
        return next((KINDS[s] for s in sorted(KINDS, key=len, reverse=True) if name.endswith(s)), "NoFile")

    def fileWriterFileType(self, node) -> str:
        return "NodeFile"

    def loadNodes(self, kind: str, properties: dict, loaded=None, messages=None) -> bool:
        path = str(properties["fileName"])
        if kind == "SceneFile":
            return self._load_scene(path, bool(properties.get("clear")))
        if not os.path.exists(path):
            if messages is not None:
                messages.AddMessage(vtk.vtkCommand.ErrorEvent, f"{path} does not exist")
            return False
        node = self._load_node(kind, path, properties)
        if node is None:
            return False
        if loaded is not None:
            loaded.AddItem(node)
        if kind == "VolumeFile" and properties.get("show", True) and slicer.app.layoutManager() is not None:
            slicer.util.setSliceViewerLayers(background=node, fit=True)
        return True

    def _load_node(self, kind: str, path: str, properties: dict):
        name = properties.get("name") or os.path.basename(path).partition(".")[0]
        if kind == "VolumeFile":
            return slicer.modules.volumes.logic().AddArchetypeVolume(path, name, int(bool(properties.get("labelmap"))))
        if kind not in _NODES:
            return None
        node = slicer.mrmlScene.AddNewNodeByClass(_NODES[kind], name)
        node.AddDefaultStorageNode(path)
        if not node.GetStorageNode().ReadData(node):
            slicer.mrmlScene.RemoveNode(node)
            return None
        if hasattr(node, "CreateDefaultDisplayNodes"):
            node.CreateDefaultDisplayNodes()
        return node

    def _load_scene(self, path: str, clear: bool) -> bool:
        scene = slicer.mrmlScene
        if path.endswith(".mrb"):
            return bool(scene.ReadFromMRB(path, clear))
        scene.SetURL(path)
        return bool(scene.Connect() if clear else scene.Import())

    def saveNodes(self, kind: str, properties: dict, messages=None) -> bool:
        scene, path = slicer.mrmlScene, str(properties["fileName"])
        if kind == "SceneFile":
            scene.SetURL(path)
            scene.SetRootDirectory(os.path.dirname(path))
            return bool(scene.WriteToMRB(path) if path.endswith(".mrb") else scene.Commit(path))
        node = scene.GetNodeByID(properties["nodeID"])
        node.AddDefaultStorageNode(path)
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        if "useCompression" in properties:
            storage.SetUseCompression(properties["useCompression"])
        return bool(storage.WriteData(node))
