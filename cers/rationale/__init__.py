"""Rationales of lesions: measured, imported, compared and embedded. Importing this package needs neither torch nor transformers."""

from .descriptors import DESCRIPTORS, measure
from .embed import TextEmbedder
from .parse import CoTRow, ParsedCoT, parse_cot, read_cot_csv, to_rationale
from .writer import THRESHOLDS, beside, contradictions, describe, without_place, write_measured

__all__ = [
    "DESCRIPTORS",
    "THRESHOLDS",
    "CoTRow",
    "ParsedCoT",
    "TextEmbedder",
    "beside",
    "contradictions",
    "describe",
    "measure",
    "parse_cot",
    "read_cot_csv",
    "to_rationale",
    "without_place",
    "write_measured",
]
