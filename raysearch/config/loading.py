"""Settings from a TOML file, the command line and keyword arguments; errors name the nearest key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raysearch.config.placement import OverrideConfig
from raysearch.config.section import Section, complaint
from raysearch.config.sections import Config
from raysearch.errors import ConfigError
from raysearch.unknown_keys import nearest_names


def load_config(
    path: str | Path | None = None,
    assignments: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Defaults, then a TOML file, then `key=value` texts, then nested overrides.

    Args:
        path: a TOML file with the sections of `Config`.
        assignments: such as "search.num_trials=32"; the value is read as TOML, else as text.
        overrides: nested mapping of settings.

    Raises:
        ConfigError: the file cannot be read, a key is unknown (the nearest is named), a value does not fit.

    Example:
        >>> load_config(assignments=["search.num_trials=32"]).search.num_trials
        32
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(Path(path).read_bytes().decode())
        except OSError as error:
            raise ConfigError(f"the config file '{path}' cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"the config file '{path}' is no UTF-8, as TOML is: {error}. Save it in that encoding."
            ) from error
        # Of numbers of thousands of digits and of values nested as deep, Python says so in its own way.
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the config file '{path}' is not TOML: {error}.") from error
    for text in assignments:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"the setting '{text}' cannot be read; write section.key=value.")
        _merge(data, _nested(key.strip(), _value(value.strip())))
    _merge(data, dict(overrides or {}))
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error
    except UnicodeError as error:
        raise ConfigError(f"a setting is no text that UTF-8 can hold: {error}.") from error


def with_search(config: Config, **values: Any) -> Config:
    """The settings with others of the section `search`; those that are None stay as they are.

    Raises:
        ConfigError: they do not fit.

    Example:
        >>> from raysearch.config import Config
        >>> with_search(Config(), front="size", max_drop=None).search.front
        'size'
    """
    changes = {key: value for key, value in values.items() if value is not None}
    return load_config(overrides=_over(config.model_dump(exclude_unset=True), {"search": changes}))


def with_defaults(config: Config, defaults: Mapping[str, Any]) -> Config:
    """The settings with others in place of the defaults; whatever was set stays, also to its default.

    Args:
        config: the settings.
        defaults: nested mapping of settings.

    Raises:
        ConfigError: they do not fit.

    Example:
        >>> from raysearch.config import load_config
        >>> config = load_config(overrides={"search": {"num_trials": 8}})
        >>> search = with_defaults(config, {"search": {"num_trials": 4, "batch_size": 2}}).search
        >>> search.num_trials, search.batch_size
        (8, 2)
    """
    if not defaults:
        return config
    return load_config(overrides=_over(defaults, config.model_dump(exclude_unset=True)))


def _over(data: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Both, neither of them changed; where both say something the second counts."""
    merged: dict[str, Any] = {}
    _merge(merged, data)
    _merge(merged, more)
    return merged


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _nested(key: str, value: Any) -> dict[str, Any]:
    # A scope has dots of its own: placement.pins.block.conv=8 sets pins["block.conv"].
    parts = key.split(".")
    if key.startswith(
        ("placement.pins.", "placement.overrides.", "calibration.overrides.", "objective.output_weights.")
    ):
        parts = key.split(".", 2)
    if parts[:2] == ["placement", "overrides"] and len(parts) > 2:
        parts = [*parts[:2], *parts[2].rsplit(".", 1)]
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = _over(value, {}) if isinstance(value, Mapping) else value


def _explain(error: ValidationError) -> str:
    parts = []
    for entry in error.errors():
        path = [str(part) for part in entry["loc"]]
        where = ".".join(path)
        if entry["type"] == "extra_forbidden":
            near = nearest_names(where, _keys_beside(path))
            hint = f"; the nearest known one is '{near[0]}'" if near else ""
            parts.append(f"the setting '{where:.200}' is unknown{hint}")
        else:
            parts.append(f"the setting '{where:.200}' is {entry['input']!r:.200}: {complaint(entry)}")
    return "; ".join(parts) + "."


def _keys_beside(path: Sequence[str]) -> list[str]:
    """The keys that an unknown one may have been meant for: those of its override, else all settings."""
    if path[:2] == ["placement", "overrides"]:
        scope = ".".join(path[:-1])
        return [f"{scope}.{key}" for key in OverrideConfig.model_fields]
    keys: list[str] = []
    for name, info in Config.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys.extend(f"{name}.{key}" for key in section.model_fields)
        else:
            keys.append(name)
    return keys
