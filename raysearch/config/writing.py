"""Settings as text, which `--set` reads back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raysearch.config.sections import Config

WHOLE = ("search.latency_profile",)
"""Settings whose own keys are names with dots: they travel as one inline table."""


def settings_as_text(config: Config) -> list[str]:
    """Every setting that differs from its default, as `key=value` that `--set` reads."""

    def flatten(prefix: str, value: Any) -> Iterator[str]:
        if isinstance(value, Mapping) and prefix not in WHOLE:
            for key, inner in value.items():
                yield from flatten(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            yield f"{prefix}={_toml(value)}"

    return list(flatten("", config.model_dump(mode="json", exclude_defaults=True)))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_toml(str(key))} = {_toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
