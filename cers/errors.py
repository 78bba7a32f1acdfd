"""Errors that a user is meant to read: one clear sentence that says what is wrong and what to do."""


class CersError(Exception):
    """Base of every error whose message is fit for the screen. ``code`` names the kind for programs."""

    code = "error"


class InputError(CersError):
    """The image, mask or option given cannot be used as it is."""

    code = "input"


class PoolError(CersError):
    """The knowledge pool cannot be read or written, or one of its cases is damaged."""

    code = "pool"


class ModelError(CersError):
    """The model folder is missing, damaged or of another kind than expected."""

    code = "model"


class ProtocolError(CersError):
    """A request to the worker is malformed."""

    code = "protocol"


class Cancelled(CersError):
    """The user asked to stop; nothing was written."""

    code = "cancelled"

    def __init__(self, message: str = "Cancelled."):
        super().__init__(message)
