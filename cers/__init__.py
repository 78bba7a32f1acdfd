"""CERS: lesion segmentation that shows its evidence.

The science behind the 3D Slicer extension of the same name, also usable alone (``cers`` command, ``cers serve`` worker).
Importing this package is cheap: torch, faiss and transformers are imported only by the parts that need them.
"""

__version__ = "0.1.0"
