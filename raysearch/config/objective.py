"""The label-free objective."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from raysearch.config.section import Section


class ObjectiveConfig(Section):
    """The label-free objective: how far outputs are from the float model's.

    Attributes:
        divergence: how an output is compared; "auto": class logits by "kl", other outputs by "nmse".
        class_dim: dimension of the classes, or of the vectors; None: the last one, where outputs have at most
            three dimensions.
        output_weights: output → what it counts among several; 1 for those not named, 0 leaves one out.
    """

    divergence: Literal["auto", "kl", "mse", "nmse", "cosine"] = "auto"
    class_dim: int | None = None
    output_weights: dict[str, float] = Field(default_factory=dict)

    @field_validator("output_weights")
    @classmethod
    def _are_weights(cls, value: Any) -> Any:
        for name, weight in value.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of {name!r} is {weight}; it must be a number of at least 0")
        return value
