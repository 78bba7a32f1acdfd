"""Choices that several commands offer."""

from __future__ import annotations

from enum import Enum


class Planes(str, Enum):
    auto = "auto"
    acquisition = "acquisition"
    three = "three"


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"
