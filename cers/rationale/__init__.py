"""Rationales of lesions: measured, imported, compared and embedded. Importing this package needs neither torch nor transformers."""

from .descriptors import DESCRIPTORS, measure
from .embed import TextEmbedder
from .writer import THRESHOLDS, contradictions, describe, write_measured

__all__ = ["DESCRIPTORS", "THRESHOLDS", "TextEmbedder", "contradictions", "describe", "measure", "write_measured"]
