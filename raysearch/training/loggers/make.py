"""The loggers that the settings name: found, checked before a run, and told of its training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

from raysearch.artifacts import Storage
from raysearch.errors import ConfigError
from raysearch.records import TrainingStatus
from raysearch.training.context import Tell
from raysearch.training.loggers.parquet import ParquetLogger
from raysearch.training.loggers.protocol import TrainingLogger
from raysearch.training.loggers.tensorboard import TensorBoardLogger

_log = logging.getLogger(__name__)

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

    A logger that fails is left out from then on, with a warning: nothing is computed from what it keeps.

    Args:
        tell: the listener.
        names: see `training.loggers`.
        storage: the run's folder.
    """
    loggers: dict[str, TrainingLogger] = {"training.parquet": ParquetLogger(storage)}
    for name in names:
        with _going_on(name):
            loggers[name] = find_logger(name)(storage)

    def tell_all(status: TrainingStatus) -> None:
        tell(status)
        if status.message:
            return
        for name, logger in list(loggers.items()):
            with _going_on(name, loggers):
                logger.log(status)

    try:
        yield tell_all
    finally:
        for name, logger in loggers.items():
            with _going_on(name):
                logger.close()


@contextmanager
def _going_on(name: str, loggers: dict[str, TrainingLogger] | None = None) -> Iterator[None]:
    """Go on where a logger fails.

    Args:
        name: of the logger.
        loggers: from which it is then taken.
    """
    try:
        yield
    except Exception as error:
        _log.warning("the training logger '%s' failed, and training goes on without it: %r", name, error)
        if loggers is not None:
            del loggers[name]
