"""The callbacks of a run: found by name, and told of it without being able to end it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from raysearch.callbacks.protocol import Callback
from raysearch.errors import ConfigError

_log = logging.getLogger(__name__)

NAMED: Mapping[str, str] = {
    "mlflow": "raysearch.callbacks.mlflow:MLflowCallback",
    "tensorboard": "raysearch.callbacks.tensorboard:TensorBoardCallback",
    "wandb": "raysearch.callbacks.wandb:WandbCallback",
}
"""Callbacks that have a name of their own."""


class Followers:
    """Tells callbacks of a run; what one of them raises is logged, and it is told nothing more.

    Args:
        callbacks: in the order in which they are told.
    """

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self._callbacks = list(callbacks)

    def add(self, callback: Callback) -> None:
        """Tell one more."""
        self._callbacks.append(callback)

    def tell(self, event: str, *values: Any) -> None:
        """Call a method of `Callback` by its name."""
        for callback in list(self._callbacks):
            try:
                getattr(callback, event)(*values)
            except Exception as error:
                name = type(callback).__name__
                _log.warning("%s.%s failed, and the run goes on without it: %r", name, event, error)
                self._callbacks.remove(callback)

    @contextmanager
    def told_of_end(self) -> Iterator[None]:
        """Tell how what is done meanwhile ends."""
        try:
            yield
        except KeyboardInterrupt:
            self.tell("on_end", "cancelled", "stopped from outside")
            raise
        except BaseException as error:
            self.tell("on_end", "failed", str(error))
            raise
        self.tell("on_end", "done")


def find_callback(name: str) -> Callback:
    """A callback of a name of its own, or of the "module:factory" of a user's own.

    Raises:
        ConfigError: there is none, or its package is not installed.
    """
    module, _, factory = NAMED.get(name, name).partition(":")
    try:
        make: Callable[[], Callback] = getattr(import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"'{name}' is no callback: neither one of {', '.join(NAMED)} nor a 'module:factory' that can be "
            f"imported: {error}."
        ) from error
    return make()


def need(package: str, extra: str) -> None:
    """Refuse a callback whose package is not there.

    Raises:
        ConfigError: names the command that installs it.
    """
    try:
        import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"this callback needs {package}, which is not installed: pip install 'raysearch[{extra}]'."
        ) from error
