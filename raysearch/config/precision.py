"""What `init_precision` may be given: NNCF's keys of "hawq" and "manual", and those of "search"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, field_validator

from raysearch.config.search import SearchConfig
from raysearch.config.section import Section, complaint
from raysearch.config.sensitivity import SensitivityConfig
from raysearch.errors import ConfigError
from raysearch.unknown_keys import refuse_unknown


class PrecisionRequest(Section):
    """The parameters of one type of `init_precision`.

    NNCF's parameters are flat. Those that set the same as a section of a run are kept in that section, so
    that their defaults and limits stand once.

    Attributes:
        kind: the type's name.
        SECTION_KEYS: key → the section and the field of it that the key sets.
    """

    kind: ClassVar[str]
    SECTION_KEYS: ClassVar[Mapping[str, tuple[str, str]]] = {}

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys that may be given."""
        sections = {section for section, _ in cls.SECTION_KEYS.values()}
        own = [name for name in cls.model_fields if name not in sections]
        return (*own, *cls.SECTION_KEYS)

    @classmethod
    def read(cls, params: Mapping[str, Any], where: str) -> Self:
        """Read and check flat parameters; `where` names them in messages.

        Raises:
            ConfigError: a key is unknown, or a value does not fit.
        """
        refuse_unknown(params, cls.keys(), where)
        values: dict[str, Any] = {}
        for key, value in params.items():
            if key in cls.SECTION_KEYS:
                section, name = cls.SECTION_KEYS[key]
                values.setdefault(section, {})[name] = value
            else:
                values[key] = value
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(cls._explain(error, where)) from error

    @classmethod
    def _explain(cls, error: ValidationError, where: str) -> str:
        names = {field: key for key, field in cls.SECTION_KEYS.items()}
        parts = []
        for entry in error.errors():
            place = tuple(str(part) for part in entry["loc"])
            in_section = names.get((place[0], place[1])) if len(place) > 1 else None
            key = in_section or ".".join(place)
            parts.append(f"{key} is {entry['input']!r}: {complaint(entry)}")
        return f"{where}: {'; '.join(parts)}."


class ManualRequest(PrecisionRequest):
    """Widths by scope.

    Attributes:
        bitwidth_per_scope: `[[bits, scope], …]`, bits a width or a scheme as "4g64"; or the path of a JSON
            file of it.
    """

    kind: ClassVar[str] = "manual"

    bitwidth_per_scope: Any = None


class MeasuredRequest(PrecisionRequest):
    """What the types that measure sensitivity have in common.

    Attributes:
        bits: widths that weights, and activations with a choice, may take; None leaves what the setup admits.
        seed: of all draws.
        sensitivity: how sensitivity is measured.
    """

    bits: tuple[int, ...] | None = None
    seed: int = Field(0, ge=0)
    sensitivity: SensitivityConfig = SensitivityConfig()

    @field_validator("sensitivity", mode="before")
    @classmethod
    def _draw_twice(cls, value: Any) -> Any:
        # NNCF takes a single iteration; a standard error needs two.
        if isinstance(value, Mapping) and value.get("max_draws") == 1:
            return {**value, "max_draws": 2}
        return value


class HawqRequest(MeasuredRequest):
    """HAWQ's criterion under NNCF's compression ratio.

    Attributes:
        compression_ratio: the least R.
        bitwidth_assignment_mode: "strict" gives a weight and its activation one width.
        num_data_points: samples that traces are measured on.
        traces: quantizer id → trace, or a JSON file of it; None measures them.
    """

    kind: ClassVar[str] = "hawq"
    SECTION_KEYS: ClassVar[Mapping[str, tuple[str, str]]] = {
        "iter_number": ("sensitivity", "max_draws"),
        "estimator": ("sensitivity", "estimator"),
        "relative_error": ("sensitivity", "relative_error"),
        "trace_loss": ("sensitivity", "trace_loss"),
    }

    compression_ratio: float = 1.5
    bitwidth_assignment_mode: Literal["liberal", "strict"] = "liberal"
    num_data_points: int = Field(100, ge=1)
    traces: dict[str, float] | Path | None = None


class SearchRequest(MeasuredRequest):
    """The search of a run, in this process.

    Attributes:
        budget: limits that must all hold, such as "avg_bits<=4".
        num_data_points: samples that sensitivity and trials are measured on.
        search: how assignments are searched.
    """

    kind: ClassVar[str] = "search"
    SECTION_KEYS: ClassVar[Mapping[str, tuple[str, str]]] = {
        "estimator": ("sensitivity", "estimator"),
        "relative_error": ("sensitivity", "relative_error"),
        "max_draws": ("sensitivity", "max_draws"),
        "trace_loss": ("sensitivity", "trace_loss"),
        "num_trials": ("search", "num_trials"),
        "batch_size": ("search", "batch_size"),
        "surrogate": ("search", "surrogate"),
        "sampler": ("search", "sampler"),
        "racing_error": ("search", "racing_error"),
    }

    budget: tuple[str, ...] = ()
    num_data_points: int = Field(256, ge=1)
    search: SearchConfig = SearchConfig()

    @field_validator("budget", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


REQUESTS: Mapping[str, type[PrecisionRequest]] = {
    request.kind: request for request in (HawqRequest, ManualRequest, SearchRequest)
}
"""Type of `init_precision` → its parameters."""
