"""What every section of the settings is, and the types that several share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Width = Annotated[int, Field(ge=2, le=8)]
Percent = Annotated[float, Field(ge=0, le=100)]


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)
