"""The float model on a batch of each data set, with the task's loss and metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from raysearch.determinism import seeded
from raysearch.errors import TaskError
from raysearch.evaluation import Batch, batch_size
from raysearch.evaluation.batches import is_changed, own_batch, tensors_of
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.outputs import named_outputs
from raysearch.pipeline.inputs import FORWARD_ADVICE, Inputs
from raysearch.pipeline.samples import one_of_each_form
from raysearch.pipeline.stages import search_shards
from raysearch.pipeline.user_code import user_code


def check_float_model(inputs: Inputs) -> None:
    """Run the float model, the loss and every metric on a batch of each form in each data set.

    Cost: two forwards a form, and two more; where trials are judged by a metric or the loss, one forward of
    every sample of the search, which is less than a trial.

    Raises:
        TaskError: one of them fails, gives no scalar or no row a sample, or is not finite where the search is
            to follow it.
    """
    shards, _ = search_shards(inputs)
    data = {
        "calibration": inputs.samples.calibration,
        "validation": inputs.samples.validation,
        "search": shards,
        "test": inputs.samples.test,
    }
    for name, batches in data.items():
        if not batches:
            continue
        for index, batch in _differing(batches):
            run_checked(inputs, batch, f"shard {index} of the {name} data")
    _tell_random(inputs, inputs.samples.calibration[0])
    for name in ("validation", "test"):
        for index, batch in one_of_each_form(data[name]):
            _check_judged(inputs, batch, f"shard {index} of the {name} data")
    if inputs.config.search.measured != "divergence":
        _check_measured(inputs, shards)


def run_checked(inputs: Inputs, batch: Batch, name: str) -> Any:
    """What the float model returns of a batch: at least one row a sample of every judged output.

    Args:
        inputs: the run's.
        batch: what it is run on.
        name: what messages call the batch.

    Raises:
        TaskError: the forward fails, or an output has not one row a sample.
    """
    size = batch_size(batch)
    what = f"the task's forward on {name} ({size} samples)"
    with user_code(what, FORWARD_ADVICE), frozen_eval(inputs.task.model), torch.no_grad():
        outputs = inputs.task.run(inputs.task.model, batch)
    judged = inputs.divergence.judged(outputs) if named_outputs(outputs) else ()
    parts = judged if isinstance(judged, tuple) else (judged,)
    shapes = [tuple(part.shape) for part in parts]
    if not shapes or any(not shape or shape[0] != size for shape in shapes):
        text = f"an output of shape {shapes[0]}" if shapes else "no floating-point output with a dimension"
        raise TaskError(
            f"the task's forward gives {text} on {name}, which has {size} samples; dimension 0 must count "
            f"them. A `squeeze()` without a dimension takes it away from a batch of one sample: write "
            f"`squeeze(-1)`, or give Task(forward=...) that returns one row a sample."
        )
    return outputs


def number(value: object, what: str) -> float:
    """A loss or a metric as a number.

    Args:
        value: what it gave.
        what: the loss or metric, for messages.

    Raises:
        TaskError: it is no number and no tensor with one element.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise TaskError(
                f"{what} has shape {tuple(value.shape)}; it must be a scalar, a mean over the batch "
                f"(`reduction='mean'`, or `.mean()`)."
            )
        value = value.detach()
    try:
        return float(value)  # type: ignore[arg-type]
    # The last two of a complex tensor or one without values, and of a whole number that no float holds.
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TaskError(
            f"{what} gives a {type(value).__name__}; it must give a number, a mean over the batch."
        ) from error


def _tell_random(inputs: Inputs, batch: Batch) -> None:
    """Warn of a float model that draws at random in eval mode too."""
    judged: list[list[Tensor]] = []
    for seed in (0, 1):
        with seeded(seed):
            outputs = run_checked(inputs, batch, "shard 0 of the calibration data")
        judged.append([tensor for _, tensor in tensors_of(inputs.divergence.judged(outputs))])
    pairs = zip(*judged, strict=True)
    if all(torch.allclose(one, other, rtol=1e-3, atol=1e-5) for one, other in pairs):
        return
    warnings.warn(
        "the float model draws at random in eval mode too: outputs of a batch differ from call to call, and "
        "so does all that is measured of it. Draw in training only (`F.dropout(x, p, self.training)`), "
        "or make the noise an input.",
        stacklevel=3,
    )


def _differing(batches: list[Batch]) -> list[tuple[int, Batch]]:
    """A batch of each form, and the last one where it has another size."""
    differing = one_of_each_form(batches)
    last = len(batches) - 1
    if batch_size(batches[0]) != batch_size(batches[last]):
        differing.append((last, batches[last]))
    return differing


def _functions(inputs: Inputs) -> Mapping[str, Callable[[Any, Batch], object]]:
    """The task's loss and metrics by what messages call them."""
    functions: dict[str, Callable[[Any, Batch], object]] = {}
    if inputs.task.loss is not None:
        functions["the task's loss"] = inputs.task.loss
    for name, metric in inputs.task.metrics.items():
        functions[f"the metric '{name}'"] = metric
    return functions


def _check_judged(inputs: Inputs, batch: Batch, name: str) -> None:
    outputs = run_checked(inputs, batch, name)
    for what, function in _functions(inputs).items():
        advice = "It is given what the forward returns, and the batch."
        own = own_batch(batch)
        seen = own_batch(named_outputs(outputs))
        with user_code(f"{what} on {name}", advice), torch.no_grad():
            value = number(function(outputs, own), what)
            again = number(function(outputs, own), what)
        if is_changed(own, batch) or is_changed(named_outputs(outputs), seen):
            raise TaskError(
                f"{what} changes the outputs or the batch that it is given, which others read after it. "
                f"Let it work on copies (`outputs.clone()`, no `add_`, `zero_`, `pop` and the like)."
            )
        if math.isfinite(value):
            if again != value:
                warnings.warn(
                    f"{what} gives {value:.6g} and then {again:.6g} for the same outputs: it keeps something "
                    f"between its calls, or draws at random, so values of two models do not compare. Give a "
                    f"function of its arguments alone.",
                    stacklevel=2,
                )
            continue
        text = f"{what} is {value} for the float model on {name}"
        if what == "the task's loss":
            raise TaskError(f"{text}. Mend the loss or the data: quantization cannot.")
        warnings.warn(f"{text}; so is its mean over the whole data.", stacklevel=2)


def _check_measured(inputs: Inputs, shards: list[Batch]) -> None:
    """What trials are judged by must be a number for the float model, on every shard of the search."""
    measured = inputs.config.search.measured
    function = inputs.task.loss if measured == "loss" else inputs.task.metrics[measured]
    if function is None:
        return
    for index, batch in enumerate(shards):
        name = f"shard {index} of the search data"
        outputs = run_checked(inputs, batch, name)
        with user_code(f"'{measured}' on {name}"), torch.no_grad():
            value = number(function(outputs, batch), f"'{measured}'")
        if not math.isfinite(value):
            raise TaskError(
                f"'{measured}', by which trials are judged, is {value} for the float model on {name} "
                f"({batch_size(batch)} samples), so no bit-width can be told from another. Make it a number "
                f"there (0/0 where a class is missing, say), or raise search.shard_size until every shard "
                f"has what it counts."
            )
