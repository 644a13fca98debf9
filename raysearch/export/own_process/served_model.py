"""A model that is loaded in a fresh process, as a module of this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysearch.errors import ConfigError, ExportError, StorageError
from raysearch.export.outputs import NamedOutputs
from raysearch.export.own_process.protocol import receive, send

LIMIT_VARIABLE = "RAYSEARCH_RUNTIME_SECONDS"
"""Names the variable with the seconds that a process may take to load its model, and for each call."""

LIMIT_SECONDS = 3600.0
"""Where the variable is not set: many times what the largest models take."""

_LAST_WORDS = 300


class ServedModel(nn.Module):
    """Runs each call in a process that knows nothing but the file; see `answer_calls`.

    The process ends when the module is no longer used, and is ended where it takes longer to load or to
    answer than `limit_seconds` allows. It computes on the CPU, with as many threads as this process.

    Args:
        path: what is loaded.
        runtime: what loads it, as a word for messages.
        command: the module that calls `answer_calls`, and its arguments; the number of threads is added.
        environment: variables that the process has besides those of this one.

    Raises:
        StorageError: it cannot be loaded.
        ConfigError: the limit cannot be read.
    """

    def __init__(
        self, path: Path, runtime: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        super().__init__()
        self._limit = limit_seconds()
        self._is_late = False
        self._path = path
        self._runtime = runtime
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=_environment(environment),
        )
        self._close = weakref.finalize(self, _end, self._process, self._said)
        assert self._process.stdout is not None
        try:
            with self._limited():
                answer = receive(self._process.stdout)
        except EOFError as error:
            advice = "" if self._is_late else " Export it again."
            raise StorageError(f"{self._death('loaded')}.{advice}") from error
        if "error" in answer:
            self._close()
            raise StorageError(answer["error"])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives: tensors in tuples, lists and dicts.

        Raises:
            ExportError: it cannot run the call, or ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            with self._limited():
                send(self._process.stdin, {"args": _detached(args), "kwargs": _detached(kwargs)})
                answer = receive(self._process.stdout)
        except (OSError, EOFError) as error:
            raise ExportError(self._death("ran")) from error
        if "error" in answer:
            raise ExportError(answer["error"])
        outputs = answer["outputs"]
        return NamedOutputs(outputs) if isinstance(outputs, dict) else outputs

    def close(self) -> None:
        """End the process."""
        self._close()

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        """End the process where it takes too long: whoever waits for its answer then sees that it ended."""
        timer = threading.Timer(self._limit, self._end_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end_late(self) -> None:
        self._is_late = True
        self._process.kill()

    def _death(self, doing: str) -> str:
        """How the process ended, with the last that it printed, as a statement."""
        status = self._process.wait()
        how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        if self._is_late:
            how = f"no answer in {self._limit:g} seconds, the limit that {LIMIT_VARIABLE} sets"
        self._said.seek(0)
        words = self._said.read().decode(errors="replace").strip()[-_LAST_WORDS:]
        return f"the process of {self._runtime} ended while it {doing} {self._path} ({how}): {words}"


def limit_seconds() -> float:
    """The seconds that a process may take to load its model, and for each call.

    Raises:
        ConfigError: the variable holds no number above 0.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(LIMIT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise ConfigError(
            f"{LIMIT_VARIABLE} is {text!r}; it must be a number of seconds above 0, such as "
            f"{LIMIT_SECONDS:g}."
        )
    return seconds


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment, "PYTHONPATH": path}


def _detached(value: Any) -> Any:
    """Containers as plain ones, which the other process may read, and tensors without their graphs."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _detached(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return tuple(map(_detached, value))
    return value


def _end(process: subprocess.Popen[bytes], said: Any) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, said):
        if stream is not None:
            # A call that a dead process did not read is still in the buffer.
            with contextlib.suppress(BrokenPipeError):
                stream.close()
