"""The validation sample."""

from __future__ import annotations

from pydantic import Field

from raysearch.config.section import Section


class ValidationConfig(Section):
    """Samples for float and quantized metrics; 0 means all."""

    num_samples: int = Field(0, ge=0)
    shard_size: int = Field(256, ge=1)
