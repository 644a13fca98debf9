"""`run.json`: what a run was started with, and the comparison with what it is resumed with."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from raysearch.artifacts.tables import from_json
from raysearch.errors import StorageError

SCHEMA_VERSION = 1

STARTED = ("task", "budget", "start_from")
"""What a run's configuration says beside its settings."""

_UNSET = object()
_WAY = "Copy the run again, or start it anew with another --run-id."


def run_record_bytes(
    run_id: str, config: Mapping[str, Any], fingerprints: Mapping[str, Any], versions: Mapping[str, Any]
) -> bytes:
    """The content of `run.json`; its values must be plain (`model_dump(mode="json")`).

    Args:
        run_id: the run.
        config: the settings.
        fingerprints: name → hash of what the settings point to.
        versions: package → version.
    """
    record = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "config": dict(config),
        "fingerprints": dict(fingerprints),
        "versions": dict(versions),
        "sealed": True,
    }
    return json.dumps(record, indent=1).encode()


def read_run_record(data: bytes, shown: str) -> dict[str, Any]:
    """Read `run.json`; `shown` names the file in messages.

    Raises:
        StorageError: it is damaged, is not raysearch's, or is of a newer schema.
    """
    try:
        record = from_json(data, shown)
    except StorageError as error:
        raise StorageError(f"{error} {_WAY}") from error
    version = record.get("schema_version")
    config = record.get("config")
    if type(version) is not int or not isinstance(config, dict):
        raise StorageError(
            f"{shown} was not written by raysearch: it lacks a schema version or a config. "
            "Check the storage and the run id."
        )
    if version > SCHEMA_VERSION:
        raise StorageError(
            f"{shown} has schema version {version}; this raysearch reads up to {SCHEMA_VERSION}. "
            "Update raysearch: pip install -U raysearch."
        )
    task, budget = config.get("task"), config.get("budget")
    is_budget = isinstance(budget, list) and all(isinstance(text, str) for text in budget)
    if not isinstance(task, str) or not is_budget:
        raise StorageError(
            f"{shown} is damaged: a run's config has its task, a text, and its budget, a list of texts; "
            f"these are {task!r:.60} and {budget!r:.60}. {_WAY}"
        )
    for name in ("fingerprints", "versions"):
        if not isinstance(record.get(name, {}), dict):
            raise StorageError(f"{shown} is damaged: {name} is {record[name]!r:.60}, no mapping. {_WAY}")
    return record


def first_difference(
    saved: Mapping[str, Any], new: Mapping[str, Any], ignore: Collection[str] = ()
) -> str | None:
    """The first field, in the new values' order, that differs: "search.seed is 0 in the run and 1 now".

    Args:
        saved: values of the run.
        new: values of now.
        ignore: dotted fields that may differ, each with everything below it.

    Example:
        >>> first_difference({"search": {"seed": 0}}, {"search": {"seed": 1}})
        'search.seed is 0 in the run and 1 now'
    """
    ignored = tuple(ignore)
    # Through JSON, because the saved values went through it: a tuple must equal its list.
    for path, was, now in _differences(_plain(saved), _plain(new), ""):
        if not any(path == name or path.startswith(f"{name}.") for name in ignored):
            return f"{path} is {_text(was)} in the run and {_text(now)} now"
    return None


def _plain(values: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(dict(values)))


def _differences(was: Any, now: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted path, old and new value of every leaf that differs, in the new values' order."""
    # Lists of one length are compared place by place; of two lengths they differ as a whole.
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        was = dict(enumerate(was))
        now = dict(enumerate(now))
    if isinstance(was, dict) and isinstance(now, dict):
        gone = [name for name in was if name not in now]
        for name in [*now, *gone]:
            below = f"{path}.{name}" if path else str(name)
            yield from _differences(was.get(name, _UNSET), now.get(name, _UNSET), below)
    elif was is _UNSET or now is _UNSET or _leaf_text(was) != _leaf_text(now):
        yield path, was, now


def _leaf_text(value: Any) -> str:
    # As text NaN equals itself, and true differs from 1.
    return json.dumps(value, sort_keys=True)


def _text(value: Any) -> str:
    return "not set" if value is _UNSET else json.dumps(value, ensure_ascii=False)
