"""The validation sample."""

from __future__ import annotations

from pydantic import Field

from raysearch.config.section import Section


class ValidationConfig(Section):
    """Samples for float and quantized metrics, and what is measured on them.

    Attributes:
        num_samples: so many are read; 0 means all.
        shard_size: batch size when the validation data is a `Dataset`.
        baselines: whether the best uniform assignment within the budgets, and the answer with rounded weights
            alone, are measured too; a pass over the samples each.
    """

    num_samples: int = Field(0, ge=0)
    shard_size: int = Field(256, ge=1)
    baselines: bool = True
