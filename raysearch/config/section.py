"""What every section of the settings is, and the types that several share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysearch.errors import ConfigError

Width = Annotated[int, Field(ge=2, le=8)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySection = TypeVar("AnySection", bound=Section)


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
            f"{'.'.join(map(str, entry['loc']))} is {entry['input']!r}: {entry['msg'].lower()}"
            for entry in error.errors()
        ]
        raise ConfigError(f"{where}: {'; '.join(parts)}.") from error
