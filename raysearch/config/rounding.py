"""How weights are rounded to the codes that will be deployed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysearch.config.section import Section

RoundingMethodName = Literal["gptq", "nearest"]
"""What `rounding.method` may say."""

RefinementName = Literal["sequential", "tune"]
"""What `rounding.refine` may hold."""

Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RoundingConfig(Section):
    """The rounding of weights.

    Attributes:
        method: "gptq" chooses codes and scales by what the layers read on the calibration data; "nearest"
            takes the nearest code at the calibrated range.
        damping: added to the diagonal of the second moments, as a share of its mean; the more, the less is
            made up for by other columns.
        block_size: columns whose errors are handed on at once; changes time and last digits only.
        act_order: whether columns are rounded in the order of falling second moment.
        scale_factors: the scales tried, as multiples of that of least squared weight error.
        refits: how often the chosen scale is fitted anew to its codes and tried with its neighbours.
        unit_shards: calibration shards whose moments are summed in one unit of work.
        guided: whether inputs count with the squared gradients of what is made of them, drawn as those of the
            Gauss-Newton traces are.
        refine: what is tried on the winner of the search, to be kept where it measures better on validation
            data: "sequential" rounds its weights anew, each layer making up for those before it; "tune" lets
            scales, norms and biases follow the float model's outputs. Empty: nothing.
        refine_steps: steps of tuning, a calibration shard each.
        refine_learning_rate: of tuning, relative to the size of each parameter; falls to 0.
    """

    method: RoundingMethodName = "gptq"
    damping: float = Field(0.01, gt=0, le=1)
    block_size: int = Field(128, ge=1)
    act_order: bool = True
    scale_factors: tuple[Factor, ...] = Field(
        (0.8, 0.87, 0.94, 1.0, 1.06, 1.14, 1.23, 1.34, 1.47, 1.62, 1.8), min_length=1
    )
    refits: int = Field(1, ge=0)
    unit_shards: int = Field(4, ge=1)
    guided: bool = False
    refine: tuple[RefinementName, ...] = ("sequential", "tune")
    refine_steps: int = Field(200, ge=1)
    refine_learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _guides_something(self) -> RoundingConfig:
        if self.guided and self.method == "nearest":
            raise ValueError(
                "guided is for the second moments that 'gptq' takes, but method is 'nearest'; set method to "
                "'gptq', or guided to false"
            )
        return self
