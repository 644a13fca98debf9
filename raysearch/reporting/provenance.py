"""How a run came about: its command, the settings that are not the defaults, versions and hashes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from raysearch.artifacts import DEFAULT_STORAGE, redact
from raysearch.artifacts.run_record import STARTED
from raysearch.config import Config
from raysearch.reporting.grids import Grid, Row

_NOTHING = object()


def changed_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted setting → value, of those that differ from this version's defaults.

    Args:
        config: of `run.json`: the settings, and what the run was started with.
    """
    defaults = dict(_leaves(Config().model_dump(mode="json"), ""))
    leaves = _leaves({name: value for name, value in config.items() if name not in STARTED}, "")
    return {name: value for name, value in leaves if defaults.get(name, _NOTHING) != value}


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def command_of(run_id: str, started: Mapping[str, Any], storage: str = DEFAULT_STORAGE) -> str:
    """The command line of a run; "" where it was started from Python, or its record does not say how.

    Args:
        run_id: the run.
        started: `run.json`.
        storage: where the run is.
    """
    config = started.get("config", {})
    task = str(config.get("task", ""))
    # A task that was no text is named by the model's class.
    if ":" not in task:
        return ""
    words = ["raysearch", "run", task]
    for text in config.get("budget", ()):
        words += ["--budget", str(text)]
    for name, value in changed_settings(config).items():
        # What follows from the machine, and what TOML cannot say: it is a default.
        if value is not None and name not in ("cluster.device", "training.use_gpu"):
            words += ["--set", f"{name}={json.dumps(value)}"]
    if storage != DEFAULT_STORAGE:
        words += ["--storage", storage]
    return shlex.join([*words, "--run-id", run_id])


def way_on(run_id: str, started: Mapping[str, Any], storage: str, workers: int | str = "auto") -> str:
    """How a run that was stopped goes on, as a line to paste; keys of its storage are not shown.

    Args:
        run_id: the run.
        started: `run.json`.
        storage: where the run is.
        workers: those in force; no record has them, since no result depends on them. "auto" is not said.
    """
    shown = redact(storage)
    command = command_of(run_id, started, shown)
    if command:
        told = "" if workers == "auto" else f" --workers {workers}"
        text = f"{command}{told} --resume"
    else:
        told = "" if workers == "auto" else f", workers={workers}"
        text = f"raysearch.run(task, …, storage={shown!r}, run_id={run_id!r}{told}, resume=True)"
    if shown != storage:
        text += "\n  with the keys and options of its storage, which are not shown"
    return text


def settings_grid(config: Mapping[str, Any]) -> Grid:
    """The settings that differ from the defaults."""
    rows = [Row(name, (settings_text(value),)) for name, value in changed_settings(config).items()]
    return Grid(("setting", "value"), tuple(rows))


def origins_grid(started: Mapping[str, Any]) -> Grid:
    """Versions of packages, and hashes of model and data."""
    rows = [Row(f"version of {name}", (str(value),)) for name, value in started.get("versions", {}).items()]
    rows += [Row(f"hash of {name}", (str(value),)) for name, value in started.get("fingerprints", {}).items()]
    return Grid(("", ""), tuple(rows))


def settings_text(value: Any) -> str:
    """A setting's value as a cell shows it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
