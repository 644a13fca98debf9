"""The study: what it measures, minimises and starts from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from raysearch.config.section import SchemeValue, Section
from raysearch.errors import ConfigError
from raysearch.records import COST_KINDS, LatencyProfile, MaxDrop, parse_max_drop
from raysearch.records.typed_json import parsed

SurrogateName = Literal["response", "hawq", "fisher", "second-moment", "weight-error", "single-loss"]
"""What predicts the loss of an assignment; `raysearch.search` says how each does."""

SAMPLERS = ("auto", "thompson", "tpe", "nsga2", "gp", "random", "brute")
"""The samplers that `raysearch.search.samplers` makes."""

NO_KIND = "none"
"""Stands in `front` and `minimize` for no kind of cost."""


def minimizable_kinds() -> list[str]:
    """The kinds of cost that `search.front` and `search.minimize` take."""
    return [kind.name for kind in COST_KINDS.values() if kind.can_be_minimized]


def _check_kind(name: str) -> str:
    known = [NO_KIND, *minimizable_kinds()]
    if name not in known:
        raise ValueError(f"no cost that can be minimised; known: {', '.join(known)}")
    return name


def _check_sampler_name(name: str) -> str:
    if name not in SAMPLERS and re.fullmatch(r"[\w.]+:[\w.]+", name) is None:
        raise ValueError(f"no sampler; known: {', '.join(SAMPLERS)}, or module:Class for your own")
    return name


SamplerName = Annotated[str, AfterValidator(_check_sampler_name)]
"""One of `SAMPLERS`, or "module:Class"."""

MinimizedKind = Annotated[str, AfterValidator(_check_kind)]
"""A kind of cost that can be minimised, or "none"."""


class SearchConfig(Section):
    """The study, what it measures and on how many validation samples (0: all of them)."""

    num_trials: int = Field(64, ge=1)
    batch_size: int = Field(8, ge=1)
    surrogate: SurrogateName = "response"
    sampler: SamplerName = "auto"
    enqueue: tuple[dict[str, SchemeValue], ...] = ()
    num_samples: int = Field(512, ge=0)
    shard_size: int = Field(64, ge=1)
    objective: str = "divergence"
    direction: Literal["auto", "minimize", "maximize"] = "auto"
    racing_error: float = Field(0.05, ge=0, lt=1)
    num_finalists: int = Field(4, ge=0)
    finalists_trained: int = Field(0, ge=0)
    finalists_epochs: int = Field(1, ge=1)
    finalists_steps: int | None = Field(None, ge=1)
    front: MinimizedKind = NO_KIND
    minimize: MinimizedKind = NO_KIND
    max_drop: str | None = None
    latency_profile: dict[str, Any] | None = None
    storage: str | None = None

    @field_validator("enqueue", mode="before")
    @classmethod
    def _read_files(cls, value: Any) -> Any:
        # Read here, so that a record of the settings holds the widths and not the name of a file.
        return [_assignment(item) for item in value] if isinstance(value, list | tuple) else value

    @field_validator("latency_profile", mode="before")
    @classmethod
    def _read_profile(cls, value: Any) -> Any:
        # As `enqueue`; so the measured times also travel to a cluster.
        return _profile(value) if isinstance(value, str | Path | Mapping) else value

    @field_validator("max_drop", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            if len(value) != 1:
                raise ValueError("name one metric, such as {'accuracy': 0.01}")
            value = "=".join(str(part) for part in next(iter(value.items())))
        return parse_max_drop(value).text if isinstance(value, str) else value

    @model_validator(mode="after")
    def _asks_one_question(self) -> SearchConfig:
        if (self.minimized_kind is None) != (self.max_drop is None):
            raise ValueError(
                "minimize (a cost) and max_drop (METRIC=AMOUNT) are one question; give both or neither"
            )
        if self.minimized_kind is not None and self.front_kind is not None:
            raise ValueError("minimize and front are two questions; leave one of them out")
        if self.minimized_kind is not None and self.finalists_trained:
            raise ValueError(
                "finalists_trained compares assignments within the budgets after training, and minimize asks "
                "for the least cost before it; leave one of them out"
            )
        if self.finalists_trained == 1:
            raise ValueError("one finalist has nothing to be compared with; give 2 or more, or 0 for none")
        if self.drop is not None and self.objective not in ("divergence", self.drop.metric):
            raise ValueError(f"objective is {self.objective!r}, but max_drop measures {self.drop.metric!r}")
        return self

    @property
    def front_kind(self) -> str | None:
        """The cost that is minimised as a second objective, if any."""
        return None if self.front == NO_KIND else self.front

    @property
    def minimized_kind(self) -> str | None:
        """The cost whose least is asked for while `drop` holds, if any."""
        return None if self.minimize == NO_KIND else self.minimize

    @property
    def drop(self) -> MaxDrop | None:
        """What may drop while `minimize` is minimised; None for a search within budgets alone."""
        return None if self.max_drop is None else parse_max_drop(self.max_drop)

    @property
    def measured(self) -> str:
        """What is measured of every assignment: the objective, or what may drop."""
        return self.objective if self.drop is None else self.drop.metric

    @property
    def maximize(self) -> bool:
        """Whether more of what is measured is better, as far as the settings alone say."""
        if self.direction == "auto":
            return self.measured not in ("divergence", "loss")
        return self.direction == "maximize"


def _profile(value: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A latency profile as plain values, from them or from the path of its JSON file."""
    if isinstance(value, Mapping):
        return LatencyProfile.from_dict(value).as_dict()
    try:
        return LatencyProfile.from_json(Path(value).expanduser().read_text("utf-8")).as_dict()
    except (OSError, ValueError, RuntimeError) as error:
        # The last two of a name that no file can have, and of a home that nobody has.
        raise ConfigError(
            f"search.latency_profile: the file '{value}' cannot be read: {error!s:.200}."
        ) from error


def _assignment(item: Any) -> Any:
    """Group → width; a text is the path of a JSON file with it, or of a run's best.json."""
    if not isinstance(item, str):
        return item
    try:
        data = parsed(Path(item).expanduser().read_bytes())
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"the assignment file '{item}' cannot be read: {error}") from error
    return data["assignment"] if isinstance(data, dict) and "assignment" in data else data
