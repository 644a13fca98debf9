"""A directory of `from_pretrained`, loaded in a fresh process, as a module of this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from raysearch.errors import ExportError, StorageError
from raysearch.export.file_names import CONFIG, WEIGHTS
from raysearch.export.outputs import NamedOutputs
from raysearch.export.pretrained.protocol import receive, send

_LAST_WORDS = 300


class ServedModel(nn.Module):
    """Runs each call in a process that knows nothing but the directory; see `serve`.

    The process ends when the module is no longer used. It computes on the CPU, with as many threads as this
    process, and reaches no network.

    Raises:
        StorageError: a file is missing or damaged, or transformers cannot load the directory.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        _check_files(directory)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        command = [sys.executable, "-m", "raysearch.export.pretrained.serve", str(directory)]
        self._process = subprocess.Popen(
            [*command, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=_environment(),
        )
        self._close = weakref.finalize(self, _end, self._process, self._said)
        answer = self._receive("could not be loaded")
        if "error" in answer:
            self._close()
            raise StorageError(f"transformers cannot load {directory}: {answer['error']}. Export it again.")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives: tensors in tuples, lists and dicts.

        Raises:
            ExportError: it cannot run the call.
        """
        assert self._process.stdin is not None
        try:
            send(self._process.stdin, {"args": _detached(args), "kwargs": _detached(kwargs)})
        except OSError as error:
            raise ExportError(f"the process of the model has ended: {self._last_words()}") from error
        answer = self._receive("ended while it ran")
        if "error" in answer:
            raise ExportError(answer["error"])
        outputs = answer["outputs"]
        return NamedOutputs(outputs) if isinstance(outputs, dict) else outputs

    def close(self) -> None:
        """End the process."""
        self._close()

    def _receive(self, what: str) -> Any:
        assert self._process.stdout is not None
        try:
            return receive(self._process.stdout)
        except EOFError as error:
            self._process.wait()
            raise StorageError(f"the model {what}: {self._last_words()}") from error

    def _last_words(self) -> str:
        self._said.seek(0)
        text = self._said.read().decode(errors="replace").strip()
        return f"exit status {self._process.poll()}, {text[-_LAST_WORDS:]}"


def _check_files(directory: Path) -> None:
    """Refuse what is damaged before a process is started for it."""
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise StorageError(f"{directory / name} is missing. Export it again.")
    try:
        json.loads((directory / CONFIG).read_text("utf-8"))
    except ValueError as error:
        raise StorageError(f"{directory / CONFIG} is damaged: {error}. Export it again.") from error
    try:
        with safe_open(directory / WEIGHTS, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{directory / WEIGHTS} is damaged: {error}. Export it again.") from error


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, sys.path))
    alone = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **alone, "PYTHONPATH": path}


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
            stream.close()
