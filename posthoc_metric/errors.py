"""One tree of errors and one of warnings.

Every message names the argument, says what was expected, what came, and what to do.
"""

from __future__ import annotations


class PosthocMetricError(Exception):
    """Base of every error this library raises on purpose."""


class InvalidArgumentError(PosthocMetricError, ValueError):
    """An argument has a wrong type, shape, value or range."""


class DecoderError(PosthocMetricError):
    """A decoder cannot be wrapped, or broke its promise while being called.

    Attributes:
        rows: the rows of the batch at fault, where the fault lies in rows; else empty.
    """

    def __init__(self, message: str, rows: tuple[int, ...] = ()):
        super().__init__(message)
        self.rows = tuple(rows)


class CheckpointError(PosthocMetricError):
    """A file cannot be read as what it was said to be."""


class UnsafeFileError(CheckpointError):
    """Reading the file would run code in it, and the caller has not said ``trust=True``."""


class OutputError(PosthocMetricError, OSError):
    """A result cannot be written where it was asked for."""


class MissingExtraError(PosthocMetricError, ImportError):
    """An optional package is needed; the message names the extra to install."""


class FitError(PosthocMetricError):
    """An uncertainty model could not be fitted or calibrated."""


class NotFittedError(PosthocMetricError, AttributeError):
    """A model is used before :meth:`fit`."""


class NumericalError(PosthocMetricError, ArithmeticError):
    """A computation gave NaN, infinity or a matrix that is not positive definite."""


class SecondDerivativeError(PosthocMetricError, NotImplementedError):
    """A gradient by latents is differentiated again."""


class WorkerError(PosthocMetricError, RuntimeError):
    """Workers of a parallel computation keep dying."""


class PosthocMetricWarning(UserWarning):
    """Base of every warning this library gives."""


class BatchWarning(PosthocMetricWarning):
    """A decoder takes one latent at a time, at many times the cost."""


class DerivativeWarning(PosthocMetricWarning):
    """Derivatives are finite differences, are not finite at some latents, or miss jumps of the output."""


class CalibrationWarning(PosthocMetricWarning):
    """The repair could not meet one of its own targets on held-out latents."""


class ConvergenceWarning(PosthocMetricWarning):
    """Some items of a batch did not converge; the solution's status says which."""
