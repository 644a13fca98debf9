"""The loggers that the settings name: found, checked before a run, and told of its training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module

from raysearch.artifacts import Storage
from raysearch.errors import ConfigError
from raysearch.records import TrainingStatus
from raysearch.training.context import Tell
from raysearch.training.loggers.parquet import ParquetLogger
from raysearch.training.loggers.protocol import TrainingLogger
from raysearch.training.loggers.tensorboard import TensorBoardLogger

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
