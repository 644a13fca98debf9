"""Everything raysearch raises on purpose.

    RaysearchError
    ├── BadInputError               what was asked cannot be done; exit code 2, nothing was computed
    │   ├── ConfigError             a setting: unknown, wrong type, contradictory
    │   ├── TaskError               the task file, its factory, or what it returned
    │   ├── DataError               empty, unreadable or non-finite data
    │   ├── CaptureError            the model cannot be captured as a graph
    │   ├── PlacementError          a pin or scope that matches nothing, a width that is not allowed
    │   ├── BudgetError             a budget that cannot be read or cannot be met
    │   └── StorageError            a run folder that is missing, foreign or damaged
    │       └── DamagedFileError    a file of a run that is not as it was written
    └── RunError                    something failed while it ran; exit code 1, what was done is kept
        ├── UnitError               one unit of work failed, by its key
        ├── PoolError               the workers could not be started or kept alive
        ├── TrainingError           QAT failed
        ├── ExportError             a target could not be written, or differs from the stripped module
        └── JobError                a Ray job could not be submitted, reached or finished

A message names the layer or quantizer, the value, what is allowed, and what to do next.
"""


class RaysearchError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class BadInputError(RaysearchError):
    """What was asked cannot be done; raised before compute is spent."""

    exit_code = 2


class ConfigError(BadInputError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class TaskError(BadInputError):
    """The task cannot be found, or is not what a task must be."""


class DataError(BadInputError):
    """Data is empty, unreadable or not finite."""


class CaptureError(BadInputError):
    """The model cannot be captured as a graph."""


class PlacementError(BadInputError):
    """A scope, pin or bit-width does not fit the model."""


class BudgetError(BadInputError):
    """A budget cannot be read, or no assignment meets it."""


class StorageError(BadInputError):
    """A run folder is missing, belongs to another run, or is damaged."""


class DamagedFileError(StorageError):
    """A file of a run is not as it was written.

    Attributes:
        files: names of the damaged files within the run's folder.
    """

    def __init__(self, message: str, files: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.files = files


class RunError(RaysearchError):
    """Something failed while it ran; finished work is kept."""


class UnitError(RunError):
    """One unit of work failed; the message names its key."""


class PoolError(RunError):
    """Workers could not be started, or died too often."""


class TrainingError(RunError):
    """Quantization-aware training failed."""


class ExportError(RunError):
    """An export target could not be written or differs from the stripped module."""


class JobError(RunError):
    """A Ray job could not be submitted, reached, or did not finish."""
