"""Where the curves of training go: one small protocol, and what speaks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from raysearch.artifacts import Storage
from raysearch.artifacts.tables import from_parquet, to_parquet
from raysearch.errors import ConfigError, StorageError
from raysearch.records import TrainingStatus
from raysearch.training.context import Tell

CURVES = "training.parquet"


class TrainingLogger(Protocol):
    """Is given every status of training, steps and validations alike."""

    def log(self, status: TrainingStatus) -> None:
        """Take in a status: a step where it has a loss, else a validation."""
        ...

    def close(self) -> None:
        """Training is over, or was cut."""
        ...


class ParquetLogger:
    """A row a step or validation in `training.parquet`; a training that goes on adds to the rows.

    Written after every validation and at the end. Nothing is computed from it, so where it cannot be written
    training goes on.

    Args:
        storage: the run's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._rows: list[dict[str, Any]] = []
        if storage.exists(CURVES):
            try:
                self._rows = from_parquet(storage.read_bytes(CURVES), CURVES).to_pylist()
            except StorageError:
                self._rows = []

    def log(self, status: TrainingStatus) -> None:
        """Add a row."""
        row: dict[str, Any] = {
            "epoch": status.epoch,
            "step": status.step,
            "loss": status.loss,
            "learning_rate": status.learning_rate,
        }
        if status.loss is None:
            row |= {f"validation_{name}": value for name, value in status.validation.items()}
        self._rows.append(row)
        if status.loss is None:
            self._write()

    def close(self) -> None:
        """Write the rows of steps behind the last validation as well."""
        if self._rows:
            self._write()

    def _write(self) -> None:
        """Write the rows; of steps that were taken twice the later ones."""
        latest = {(row["step"], row["loss"] is None): row for row in self._rows}
        rows = [latest[key] for key in sorted(latest)]
        names = sorted({name for row in rows for name in row if name.startswith("validation_")})
        columns = ["epoch", "step", "loss", "learning_rate", *names]
        table = pa.table({name: [row.get(name) for row in rows] for name in columns})
        with suppress(StorageError):
            self._storage.write_bytes(CURVES, to_parquet(table), durable=False)


class TensorBoardLogger:
    """Event files below the run's folder, for `tensorboard --logdir`.

    Args:
        storage: the run's folder; see `check`.
    """

    def __init__(self, storage: Storage) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(Path(storage.local_path("tensorboard"))))

    @staticmethod
    def check(storage: Storage) -> None:
        """Refuse what cannot be made.

        Raises:
            ConfigError: tensorboardX is not installed, or the run's folder is on no local disk.
        """
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "training.loggers names 'tensorboard', which needs tensorboardX: `pip install tensorboardX`."
            ) from error
        if not storage.is_local:
            raise ConfigError(
                "training.loggers names 'tensorboard', which writes to a local disk, and the run's folder is "
                "elsewhere; `training.parquet` has the same numbers."
            )

    def log(self, status: TrainingStatus) -> None:
        """Add the points of a step, or of a validation."""
        values: Mapping[str, float] = {
            f"validation/{name}": value for name, value in status.validation.items()
        }
        if status.loss is not None:
            values = {"training/loss": status.loss, "training/learning_rate": status.learning_rate}
        for name, value in values.items():
            self._writer.add_scalar(name, value, status.step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


LOGGERS: Mapping[str, Callable[[Storage], TrainingLogger]] = {"tensorboard": TensorBoardLogger}
"""Those that have a name of their own."""


def find_logger(name: str) -> Callable[[Storage], TrainingLogger]:
    """What makes a logger of a run's folder, by its name or by the "module:factory" of a user's own.

    Raises:
        ConfigError: there is none.
    """
    if name in LOGGERS:
        return LOGGERS[name]
    module, _, factory = name.partition(":")
    try:
        make: Callable[[Storage], TrainingLogger] = getattr(import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"training.loggers names '{name}', which is neither one of {', '.join(LOGGERS)} nor a "
            f"'module:factory' that can be imported: {error}."
        ) from error
    return make


def check_loggers(names: tuple[str, ...], storage: Storage) -> None:
    """Refuse, before a run, loggers that its training could not make.

    Args:
        names: see `training.loggers`.
        storage: the run's folder.

    Raises:
        ConfigError: there is no such logger, or it cannot write there.
    """
    for name in names:
        if find_logger(name) is TensorBoardLogger:
            TensorBoardLogger.check(storage)


@contextmanager
def logged(tell: Tell, names: tuple[str, ...], storage: Storage) -> Iterator[Tell]:
    """Pass statuses on to a listener, to `training.parquet` and to the loggers of the settings.

    Args:
        tell: the listener.
        names: see `training.loggers`.
        storage: the run's folder.
    """
    with ExitStack() as stack:
        loggers: list[TrainingLogger] = [ParquetLogger(storage)]
        loggers.extend(find_logger(name)(storage) for name in names)
        for logger in loggers:
            stack.callback(logger.close)

        def tell_all(status: TrainingStatus) -> None:
            tell(status)
            if not status.message:
                for logger in loggers:
                    logger.log(status)

        yield tell_all
