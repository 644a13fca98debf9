"""The order of what is tried before a run, from cheap to costly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from raysearch.calibration import calibrate_model
from raysearch.config import CalibrationConfig
from raysearch.determinism import seeded
from raysearch.errors import DataError
from raysearch.evaluation import Batch, batch_size
from raysearch.evaluation.batches import take
from raysearch.evaluation.half_precision import in_float32
from raysearch.evaluation.model.copies import reading_copy
from raysearch.pipeline.inputs import Inputs
from raysearch.pipeline.preflight.files import check_files
from raysearch.pipeline.preflight.float_model import check_float_model
from raysearch.pipeline.preflight.measuring import check_derivatives, check_responses, unit_errors
from raysearch.pipeline.preflight.training import check_training, trains
from raysearch.pipeline.stages import recipe_from
from raysearch.records import BitAssignment, RangeTable
from raysearch.seeding import derive_seed

STEPS = 4
CALIBRATED_SAMPLES = 16


def preflight(inputs: Inputs, tell: Callable[[int, int], None]) -> dict[str, Any]:
    """Try on a few samples what a run does: judging, derivatives, a training step, shipping, every file.

    The generators are left as found. Errors name what failed and what to do.

    Args:
        inputs: checked.
        tell: is given the steps done and all of them.

    Returns:
        The graphs that were captured for the files; nothing else is kept.

    Raises:
        TaskError: the task's forward, loss, metrics or data fail, or cannot be shipped to workers.
        ConfigError: an export target cannot hold the model, or responses would take too much memory.
        DataError: the calibration data gives a quantizer no range, or a derivative that is not finite.
    """
    with seeded(derive_seed(inputs.config.seed, "preflight")):
        tell(0, STEPS)
        check_float_model(inputs)
        check_responses(inputs)
        check_derivatives(inputs)
        tell(1, STEPS)
        assignment = BitAssignment({group.id: group.schemes[0] for group in inputs.setup.groups.values()})
        recipe = recipe_from(inputs, _rough_ranges(inputs), assignment, {})
        if trains(inputs):
            check_training(inputs, recipe)
        tell(2, STEPS)
        if inputs.config.cluster.num_workers:
            check_travel(inputs)
        tell(3, STEPS)
        stripped = recipe.build().strip_model(do_copy=False)
        graphs = check_files(inputs, stripped, assignment)
        tell(STEPS, STEPS)
    return graphs


def _rough_ranges(inputs: Inputs) -> RangeTable:
    """Ranges of a few samples; of all that a run calibrates on where those do not pass every quantizer."""
    shard = inputs.samples.calibration[0]
    few = take(shard, 0, min(batch_size(shard), CALIBRATED_SAMPLES))
    try:
        return _extremes(inputs, [few])
    except DataError:
        return _extremes(inputs, inputs.samples.calibration)


def _extremes(inputs: Inputs, batches: list[Batch]) -> RangeTable:
    num_samples = sum(batch_size(batch) for batch in batches)
    settings = CalibrationConfig(num_samples=num_samples, weights="min_max", activations="min_max")
    model, data = in_float32(reading_copy(inputs.task.model), {"": batches})
    advice = "It is run there with observers at what its layers read."
    with unit_errors("the model's calibration", advice), warnings.catch_warnings():
        # What is to be said of ranges is said where the run calibrates.
        warnings.simplefilter("ignore")
        return calibrate_model(model, inputs.setup, data[""], settings, forward=inputs.task.run)


def check_travel(inputs: Inputs) -> None:
    """Pack what workers are sent.

    Raises:
        TaskError: names what cannot be packed.
    """
    # It imports Ray, which a run in this process does without.
    from raysearch.cluster.shipping import dumps

    task = inputs.task
    model = task.factory or task.model
    parts = {"forward": task.forward, "loss": task.loss, "metrics": dict(task.metrics), "model": model}
    if trains(inputs):
        parts["train"] = task.train
    for name, part in parts.items():
        dumps(part, f"Task({name}=...)")
    if inputs.source is not None:
        # Whether a second call gives the same weights, as every worker needs.
        inputs.source.make()
