"""The network: encoder, plain decoder, evidence decoder with MCAM. Importing this package does not import torch."""

from .tiny import tiny_model

__all__ = ["tiny_model"]
