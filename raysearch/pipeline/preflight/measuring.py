"""What calibration and sensitivity do to the float model, tried on a few samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from raysearch.cluster.pool import LocalPool
from raysearch.config.estimators import NO_TRACES
from raysearch.errors import ConfigError, UnitError
from raysearch.evaluation import Batch, DataSet, Replica, batch_size
from raysearch.evaluation.batches import take
from raysearch.evaluation.half_precision import in_float32
from raysearch.evaluation.model.copies import reading_copy
from raysearch.evaluation.outputs import values_per_sample
from raysearch.pipeline.inputs import Inputs
from raysearch.pipeline.preflight.float_model import run_checked
from raysearch.pipeline.user_code import failed
from raysearch.sensitivity.responses import check_room
from raysearch.sensitivity.traces import measure_traces

FEW = 2
"""Samples that derivatives are tried on."""


def check_derivatives(inputs: Inputs) -> None:
    """Draw once what the traces are made of, which every run differentiates the float model for.

    Raises:
        TaskError: the outputs have no gradient, or not the derivatives that the estimator takes.
        DataError: a derivative is not finite.
    """
    settings = inputs.config.sensitivity
    if settings.estimator == NO_TRACES:
        return
    shard = (inputs.samples.traces or inputs.samples.calibration)[0]
    few = take(shard, 0, min(batch_size(shard), FEW))
    model, data = in_float32(reading_copy(inputs.task.model), {DataSet.CALIBRATION: [few]})
    replica = Replica(model, inputs.task.run, data, inputs.divergence, inputs.task.loss)
    # One round, whatever its error.
    once = settings.model_copy(update={"relative_error": 1e9, "importance_draws": 0})
    advice = (
        "The search differentiates the outputs by the weights: take `torch.no_grad`, `torch.inference_mode`, "
        "`.detach()`, numpy and torch.compile out of the model's forward, give norms "
        "running statistics instead of the batch's; or try another sensitivity.estimator."
    )
    with (
        unit_errors(f"taking derivatives of the float model ('{settings.estimator}')", advice),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        measure_traces(inputs.setup, LocalPool(replica), 1, once, seed=inputs.config.seed)


def check_responses(inputs: Inputs) -> None:
    """Refuse responses that would take too much memory; warns where that depends on what rounding comes to.

    Cost: a forward of a few samples.

    Raises:
        ConfigError: they would, and what to lower.
    """
    samples, settings = inputs.samples, inputs.config.sensitivity
    few = take(samples.calibration[0], 0, min(batch_size(samples.calibration[0]), FEW))
    outputs = run_checked(inputs, few, "shard 0 of the calibration data")
    num_values = values_per_sample(inputs.divergence.judged(outputs))
    num_options = len(inputs.setup.options())

    def check(shards: Sequence[Batch]) -> None:
        check_room(num_options, [batch_size(shard) for shard in shards], num_values, settings)

    check(samples.responses or samples.calibration)
    if samples.responses or inputs.config.rounding.method == "nearest":
        return
    if others := samples.other_than_calibration():
        try:
            check(others)
        except ConfigError as error:
            warnings.warn(
                f"where a weight reads fewer calibration vectors than it has inputs, responses are measured "
                f"on validation samples, and the run would then end before the search: {error}",
                stacklevel=2,
            )


@contextmanager
def unit_errors(what: str, advice: str) -> Iterator[None]:
    """Turn a failed unit into an error of the task that says what was tried, where, and what to do.

    Args:
        what: the subject of the sentence.
        advice: what to do, a sentence.

    Raises:
        TaskError: a unit failed.
    """
    try:
        yield
    except UnitError as error:
        raise failed(what, advice, error.__cause__ or error) from error
