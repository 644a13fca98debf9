"""What the controller itself reads of a configuration: the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysearch.controller.scheduler import ScheduleParams
from raysearch.errors import ConfigError


def schedule_params(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`params` of the quantization section; empty means that everything is quantized from the start.

    `config` is NNCF's (`{"compression": {"algorithm": "quantization", "params": …}}`, where compression may
    be a list), or just the quantization section.

    Raises:
        ConfigError: `params` is no mapping, or a list holds no quantization section.
    """
    section: Any = config.get("compression", config)
    if isinstance(section, list):
        entries = [entry for entry in section if isinstance(entry, Mapping)]
        matches = [entry for entry in entries if entry.get("algorithm") == "quantization"]
        if len(matches) != 1:
            raise ConfigError(
                f"config.compression has {len(matches)} sections of the algorithm 'quantization'; give one."
            )
        section = matches[0]
    params = section.get("params", {}) if isinstance(section, Mapping) else None
    if not isinstance(params, Mapping):
        raise ConfigError(f"compression.params is {params!r}; a mapping is wanted.")
    return params


def read_schedule(config: Mapping[str, Any]) -> ScheduleParams | None:
    """The staged schedule; None where `params` is empty: everything is quantized from the start."""
    params = schedule_params(config)
    return ScheduleParams.read(params) if params else None
