"""Records that every part shares: volumes, geometry, cases, rationales and evidence. Needs numpy only."""

from .geometry import Geometry, PlaneView, acquisition_plane
from .records import (
    PARTS,
    WELL_COVERED,
    Case,
    Coverage,
    Evidence,
    Prediction,
    Rationale,
    Reference,
    Rejection,
    Statement,
    Volume,
)

__all__ = [
    "PARTS",
    "WELL_COVERED",
    "Case",
    "Coverage",
    "Evidence",
    "Geometry",
    "PlaneView",
    "Prediction",
    "Rationale",
    "Reference",
    "Rejection",
    "Statement",
    "Volume",
    "acquisition_plane",
]
