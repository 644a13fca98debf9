"""Settings as text, which `--set` reads back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raysearch.config.sections import Config

INLINE_TABLES = ("search.latency_profile",)
"""Settings whose own keys are names with dots: they travel as one inline table."""


def settings_as_text(config: Config) -> list[str]:
    """Every setting that differs from its default, as `key=value` that `--set` reads."""

    def flatten(prefix: str, value: Any) -> Iterator[str]:
        if isinstance(value, Mapping) and prefix not in INLINE_TABLES:
            for key, inner in value.items():
                name = f"{prefix}.{key}" if prefix else str(key)
                yield from flatten(name, inner)
        else:
            yield f"{prefix}={_toml(value)}"

    return list(flatten("", config.model_dump(mode="json", exclude_defaults=True)))


def _toml(value: Any) -> str:
    # Before int, which a bool is in Python and not in TOML.
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        items = ", ".join(_toml(item) for item in value)
        return f"[{items}]"
    if isinstance(value, Mapping):
        entries = [f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()]
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
