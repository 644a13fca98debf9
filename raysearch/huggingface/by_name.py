"""A task of a model directory as a text, which a run's record keeps and a job's command carries."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from raysearch.errors import ConfigError
from raysearch.huggingface.kinds import TASK_KINDS
from raysearch.task import Task

FACTORY = "raysearch.huggingface.by_name:make_task"
_FLAGS = {"true": True, "false": False}


def spec_of(model: str, data: Sequence[str], kind: str, options: Sequence[str] = ()) -> str:
    """The text by which `load_task` makes the task of a directory; paths become absolute.

    Args:
        model: the directory.
        data: files or folders of its data.
        kind: one of `TASK_KINDS`.
        options: texts NAME=VALUE, arguments of the kind's function.

    Raises:
        ConfigError: the kind or an option is unknown, or there are no data.
    """
    if not data:
        raise ConfigError(f"--model '{model}' needs data to go with it; give --data FILE.")
    arguments = {"model": _absolute(model), "data": os.pathsep.join(map(_absolute, data)), "kind": kind}
    for path in data:
        if os.pathsep in path:
            raise ConfigError(
                f"--data '{path}' has a '{os.pathsep}' in its name, which parts paths in the name of a task; "
                f"rename it, or give a link to it."
            )
    known = option_names(kind)
    for text in options:
        name, separator, value = text.partition("=")
        if not separator or name not in known:
            raise ConfigError(
                f"--with '{text}' cannot be read; write NAME=VALUE with one of {', '.join(known)}."
            )
        is_file = name.endswith(("_text", "_data"))
        arguments[name] = _absolute(value) if is_file else value
    _values(arguments, kind)
    return f"{FACTORY}?{urlencode(arguments, safe='/')}"


def make_task(model: str, data: str, kind: str, **options: str) -> Task:
    """The task that a text of `spec_of` is of.

    Args:
        model: the directory.
        data: files or folders, joined as in a search path.
        kind: one of `TASK_KINDS`.
        **options: arguments of the kind's function.

    Raises:
        BadInputError: see the function of the kind.
    """
    builder = _builder(kind)
    paths = [Path(part) for part in data.split(os.pathsep)]
    task: Task = builder(model, paths if len(paths) > 1 else paths[0], **_values(options, kind))
    return task


def option_names(kind: str) -> tuple[str, ...]:
    """What a kind's function takes beside the directory and the data.

    Raises:
        ConfigError: the kind is unknown.
    """
    parameters = signature(_builder(kind)).parameters.values()
    return tuple(entry.name for entry in parameters if entry.kind is entry.KEYWORD_ONLY)


def _builder(kind: str) -> Any:
    if kind not in TASK_KINDS:
        raise ConfigError(f"--task '{kind}' is unknown; known: {', '.join(TASK_KINDS)}.")
    return TASK_KINDS[kind]


def _values(options: Mapping[str, str], kind: str) -> dict[str, Any]:
    """The options that are none of the three fixed arguments, each as what the function takes."""
    values: dict[str, Any] = {}
    for name in option_names(kind):
        if name not in options:
            continue
        text = options[name]
        if name.endswith(("_text", "_data")):
            values[name] = Path(text)
        elif name in ("trust_remote_code", "allow_pickle"):
            if text not in _FLAGS:
                raise ConfigError(f"--with {name}={text}: the value must be true or false.")
            values[name] = _FLAGS[text]
        else:
            try:
                values[name] = int(text)
            except ValueError as error:
                raise ConfigError(f"--with {name}={text}: the value must be a whole number.") from error
    return values


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
