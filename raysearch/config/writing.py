"""Settings as text, which `--set` reads back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raysearch.config.sections import Config

INLINE_TABLES = ("search.latency_profile",)
"""Settings whose own keys are names with dots: they travel as one inline table."""


def settings_as_text(config: Config) -> list[str]:
    """Every setting that was set, also to its default, as `key=value` that `--set` reads.

    TOML has no None, which is a default wherever it may be set.
    """

    def flatten(prefix: str, value: Any) -> Iterator[str]:
        if isinstance(value, Mapping) and prefix not in INLINE_TABLES:
            for key, inner in value.items():
                name = f"{prefix}.{key}" if prefix else str(key)
                yield from flatten(name, inner)
        elif value is not None:
            yield f"{prefix}={_toml(value)}"

    return list(flatten("", config.model_dump(mode="json", exclude_unset=True)))


def settings_as_toml(config: Config) -> str:
    """Every setting, defaults included, as a TOML file that `load_config` reads back as the same settings.

    A setting that is open (None) has no form in TOML: it stands in a comment.
    """
    top: list[str] = []
    tables: list[str] = []
    for name, value in config.model_dump(mode="json").items():
        if not isinstance(value, Mapping):
            top.append(_line(name, value))
            continue
        lines = [_line(key, inner) for key, inner in value.items()]
        tables.append("\n".join([f"[{name}]", *lines]))
    return "\n\n".join(["\n".join(top), *tables]) + "\n"


def _line(name: str, value: Any) -> str:
    return f"# {name} is open" if value is None else f"{name} = {_toml(value)}"


def _toml(value: Any) -> str:
    # Before int, which a bool is in Python and not in TOML.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        items = ", ".join(_toml(item) for item in value)
        return f"[{items}]"
    if isinstance(value, Mapping):
        filled = {key: item for key, item in value.items() if item is not None}
        entries = [f"{_toml(str(key))} = {_toml(item)}" for key, item in filled.items()]
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
