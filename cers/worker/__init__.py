"""The worker: CERS as a process that answers JSON lines. Protocol: PROTOCOL.md. Importing this needs the standard library only."""

from .server import PROTOCOL, serve

__all__ = ["PROTOCOL", "serve"]
