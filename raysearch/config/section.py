"""What every section of the settings is, and the types that several share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from raysearch.errors import ConfigError, PlacementError
from raysearch.records.scheme import Scheme


def _width(value: Any) -> Any:
    """Refuse the text of a scheme, which pydantic would call no integer."""
    if isinstance(value, str) and not value.isdecimal():
        raise ValueError(
            "a bit-width is a number of 2–8; a scheme such as 4g64 is for weights, in "
            "placement.weight_schemes"
        )
    return value


Width = Annotated[int, BeforeValidator(_width), Field(ge=2, le=8)]
"""A bit-width."""


def _scheme(value: Any) -> int | str:
    """A scheme in its JSON form."""
    try:
        return Scheme.of(value).as_json
    except PlacementError as error:
        # What pydantic tells as an error of the setting.
        raise ValueError(str(error).rstrip(".")) from error


def _one_or_several(value: Any) -> int | str | tuple[int | str, ...]:
    if not isinstance(value, list | tuple):
        return _scheme(value)
    if not value:
        raise ValueError("list should have at least 1 item")
    return tuple(map(_scheme, value))


SchemeValue = Annotated[int | str, BeforeValidator(_scheme)]
"""A bit-width, or the text of a scheme, such as "4g64"."""

SchemeValues = Annotated[int | str | tuple[int | str, ...], BeforeValidator(_one_or_several)]
"""One of them, or a list."""

Percent = Annotated[float, Field(ge=0, le=100)]


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySection = TypeVar("AnySection", bound=Section)


def complaint(entry: Mapping[str, Any]) -> str:
    """What pydantic says of one setting, to stand behind its name and value."""
    if entry["type"] == "value_error":
        # Our own words, which pydantic would put "Value error" before.
        return str(entry["ctx"]["error"])
    if entry["type"] == "tuple_type":
        return "input should be a list"
    text = str(entry["msg"])
    return text[0].lower() + text[1:]


def read_section(section_type: type[AnySection], values: Mapping[str, Any], where: str) -> AnySection:
    """A section from plain values; `where` names them in messages.

    Args:
        section_type: the section's class.
        values: key → plain value, as a settings file has it.
        where: what messages call the place of the values.

    Raises:
        ConfigError: a value does not fit; names its key.
    """
    try:
        return section_type.model_validate(values)
    except ValidationError as error:
        parts = [
            f"{'.'.join(map(str, entry['loc']))} is {entry['input']!r}: {complaint(entry)}"
            for entry in error.errors()
        ]
        raise ConfigError(f"{where}: {'; '.join(parts)}.") from error
