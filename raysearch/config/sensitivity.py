"""How traces and responses are measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raysearch.config.estimators import PER_SAMPLE, EstimatorName
from raysearch.config.section import Section

TraceLoss = Literal["divergence", "loss"]
"""What is differentiated: the label-free divergence (its Hessian at the float weights is the Gauss-Newton
matrix), or the task's loss."""


class SensitivityConfig(Section):
    """How traces and responses are measured.

    Attributes:
        estimator: how traces are drawn; "none": there are none, and nothing is differentiated. Surrogates
            that are made of traces cannot be used then.
        relative_error: a weight's draws end when its standard error over probes is this share of its trace.
        max_draws: the most draws per weight and shard.
        draw_chunk: draws in a unit of work; part of the method, not of the cluster. None: what suits the
            estimator.
        option_chunk: options in a unit of work.
        response_shards: shards that responses are measured on, the first ones; 0: all of them.
            Each costs a forward an option, where one more for ranges and rounding costs a forward or two.
        response_samples: samples that responses are measured on, those that follow the calibration's in its
            data, so that rounding was not fitted to them; 0: those of the calibration, or as many of
            validation where a weight reads fewer calibration vectors than it has inputs.
        sketch_size: values that are kept of a sample's response; longer ones are projected at random.
        trace_loss: what is differentiated.
        trace_samples: samples that traces are measured on; 0: those of the calibration.
        importance_draws: so many samples, drawn by importance, stand for all of those; 0: all are measured.
            The traces' errors over data are then those of the drawn samples.
    """

    estimator: EstimatorName = "ggn"
    relative_error: float = Field(0.05, gt=0, allow_inf_nan=False)
    max_draws: int = Field(256, ge=2)
    draw_chunk: int | None = Field(None, ge=1)
    option_chunk: int = Field(8, ge=1)
    response_shards: int = Field(0, ge=0)
    response_samples: int = Field(0, ge=0)
    sketch_size: int = Field(4096, ge=16)
    trace_loss: TraceLoss = "divergence"
    trace_samples: int = Field(0, ge=0)
    importance_draws: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _suits_the_loss(self) -> SensitivityConfig:
        if self.estimator == "xnystrace" and self.trace_loss == "loss":
            raise ValueError(
                "the estimator 'xnystrace' is for the divergence, whose blocks are positive semi-definite; "
                "take 'xtrace' or trace_loss 'divergence'"
            )
        if self.importance_draws and self.estimator not in PER_SAMPLE:
            raise ValueError(
                f"importance_draws is {self.importance_draws}, but the estimator '{self.estimator}' does not "
                f"see single samples, which is needed to weigh them; take one of {', '.join(PER_SAMPLE)}, or "
                f"set importance_draws to 0"
            )
        return self
