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


class TrainingError(CersError):
    """A training run cannot go on; what it has saved is kept."""

    code = "training"


class ProtocolError(CersError):
    """A request to the worker is malformed."""

    code = "protocol"


class WriterError(CersError):
    """A rationale writer gave no usable answer.

    transient: worth another try, after ``retry_after`` seconds if that is known. fatal: no further case would fare better.
    """

    code = "writer"

    def __init__(self, message: str, *, transient: bool = False, fatal: bool = False, retry_after: float | None = None):
        super().__init__(message)
        self.transient, self.fatal, self.retry_after = transient, fatal, retry_after


class Cancelled(CersError):
    """The user asked to stop; nothing was written."""

    code = "cancelled"

    def __init__(self, message: str = "Cancelled."):
        super().__init__(message)
