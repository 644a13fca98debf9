"""Everything that is checked before compute is spent: the model, the data, the budgets, the settings."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from raysearch.blockwise import Chain
from raysearch.calibration import choose_rules
from raysearch.config import Config, SearchConfig
from raysearch.errors import BudgetError, RaysearchError, TaskError
from raysearch.evaluation import Batch, Objective
from raysearch.evaluation.batches import is_changed, own_batch, tensors_of
from raysearch.evaluation.calls.model_calls import (
    CallForm,
    OpenDims,
    find_call_form,
    record_calls,
)
from raysearch.evaluation.forward import OnOwnBatch, check_finite_forward, frozen_eval
from raysearch.evaluation.half_precision import half_type, in_float32, widened_batch
from raysearch.evaluation.model.copies import reading_copy
from raysearch.evaluation.model.model_hash import hash_model
from raysearch.evaluation.model.model_source import ModelSource
from raysearch.evaluation.positions import counted
from raysearch.export import check_model, check_targets
from raysearch.pipeline.blockwise import chain_of, check_block_settings
from raysearch.pipeline.direction import measured_direction
from raysearch.pipeline.fingerprints import hash_batches
from raysearch.pipeline.objective import fit_objective, objective_fingerprint
from raysearch.pipeline.samples import Samples, check_form, largest_shard, read_samples
from raysearch.pipeline.settings_checks import check_against_task
from raysearch.pipeline.user_code import failed, user_code
from raysearch.placement import place_quantizers
from raysearch.records import (
    FLOAT_BITS,
    BitAssignment,
    Budget,
    CostModel,
    LatencyProfile,
    QuantizerSetup,
    excesses,
    parse_budgets,
)
from raysearch.search import check_budgets, check_minimized
from raysearch.simulation import CACHE_BYTES
from raysearch.task import Task, private_task

FORWARD_ADVICE = (
    "Give Task(forward=...) a function (model, batch) that runs such a batch, or data that the model takes."
)


LEAST_CACHE_BYTES = 2**26
"""What a worker may keep between forwards at least, however small a language model is."""


@dataclass(frozen=True)
class Inputs:
    """A task that was found fit, and what was read of it.

    Attributes:
        task: the user's, with a model of raysearch's own; see `private_task`.
        config: the settings.
        budgets: parsed and achievable; none where the least cost is asked for.
        setup: placed quantizers.
        samples: the data.
        divergence: the label-free objective.
        fingerprints: hashes of the model, the samples and the setup.
        notes: what a reader of the result should know of how it was judged.
        open_dims: dimensions of the example inputs, besides the batch, whose size differs between batches.
        chain: the model's blocks, where workers hold one of them at a time.
    """

    task: Task
    config: Config
    budgets: tuple[Budget, ...]
    setup: QuantizerSetup
    samples: Samples
    divergence: Objective
    fingerprints: Mapping[str, str]
    notes: tuple[str, ...] = ()
    open_dims: OpenDims = field(default_factory=dict)
    chain: Chain | None = None

    @property
    def source(self) -> ModelSource | None:
        """Where workers get the model from; None: it is shipped to them."""
        task = self.task
        if task.factory is None:
            return None
        return ModelSource(task.factory, task.example_inputs, self.fingerprints["model"])

    @property
    def search(self) -> SearchConfig:
        """The study's settings, with the direction in force in place of "auto"."""
        search = self.config.search
        return search.model_copy(update={"direction": measured_direction(self.task.metrics, search)})

    @property
    def cache_bytes(self) -> int:
        """What a worker may keep between forwards: as set, or of a language model a quarter of its weights.

        Weights are most of such a model, and fake-quantized ones are as large; of its outputs before the
        quantized layer one tensor a block is enough, see `PrefixCache`.
        """
        limit = self.config.cluster.cache_bytes
        if limit is not None:
            return limit
        if self.samples.largest_shard is None:
            return CACHE_BYTES
        # As workers hold them, in float32.
        num_bytes = 4 * sum(parameter.numel() for parameter in self.task.model.parameters())
        return min(CACHE_BYTES, max(LEAST_CACHE_BYTES, num_bytes // 4))


def place_task(task: Task, config: Config) -> QuantizerSetup:
    """The placement of a task's model, with the measured times of its layers if there are any.

    Raises:
        ConfigError: the latency profile lacks a layer.
    """
    return _place(private_task(task), config)


def _place(task: Task, config: Config) -> QuantizerSetup:
    setup = place_quantizers(task.model, task.example_inputs, config.placement)
    times = config.search.latency_profile
    return setup if times is None else replace(setup, latency=_latency_profile(times, setup))


def check_inputs(task: Task, config: Config, budgets: Sequence[str]) -> Inputs:
    """Read and check everything; costs one capture and two forwards.

    Args:
        task: what the user handed over.
        config: the settings.
        budgets: expressions such as "avg_bits<=4".

    Raises:
        BudgetError: a budget cannot be read or met.
        ConfigError: settings that contradict the task.
        CaptureError: the model cannot be captured.
        PlacementError: a pin or scope fits nothing.
        DataError: data is empty or not finite, or the model's output on it is not.
    """
    # From cheap to dear, so that a mistake is told before a long wait: texts, the graph, the data, a forward.
    parsed = _read_budgets(budgets, config.search)
    check_against_task(task, config)
    task = private_task(task)
    check_model(task.model, config.export.targets)
    setup = _place(task, config)
    _check_setup(setup, parsed, config, task.model)
    check_block_settings(task, setup, config)
    samples = read_samples(task, config)
    check_form(task, samples.calibration[0], "calibration")
    samples = samples.cut(largest_shard(task, samples.calibration[0], config.objective))
    with user_code("the task's forward on the first samples of the data", FORWARD_ADVICE):
        form = _call_form(task, samples)
    if form.example_inputs is not task.example_inputs:
        task = replace(task, example_inputs=form.example_inputs)
    task = _checked_forward(task, samples.calibration[0])
    _counted(task, samples.calibration[:1])
    objective = fit_objective(task, config.objective, samples.calibration[0])
    chain = chain_of(task, config, objective.divergence, samples.calibration[0])
    fingerprints = _make_fingerprints(task, samples, setup, config.search)
    detail = objective_fingerprint(objective.divergence, config.objective)
    if detail:
        fingerprints["objective"] = detail
    return Inputs(
        task,
        config,
        parsed,
        setup,
        samples,
        objective.divergence,
        fingerprints,
        objective.notes,
        form.open_dims,
        chain,
    )


def _read_budgets(texts: Sequence[str], search: SearchConfig) -> tuple[Budget, ...]:
    """Parse the budgets; only the search for the least cost needs none."""
    if search.minimized_kind is not None and not texts:
        return ()
    return parse_budgets(texts)


def _check_setup(setup: QuantizerSetup, budgets: Sequence[Budget], config: Config, model: nn.Module) -> None:
    """What can be said of the settings once the quantizers are placed."""
    search = config.search
    check_budgets(budgets, setup)
    for text in broken_promises(budgets, setup):
        warnings.warn(text, stacklevel=4)
    if search.minimized_kind is not None:
        check_minimized(search.minimized_kind, budgets, setup)
    # The default targets hold every width; the export notes which of them it leaves out.
    check_targets(setup, config.export.targets, model=model)
    for index, bits in enumerate(search.enqueue):
        _check_enqueued(index, BitAssignment(bits), budgets, setup)
    choose_rules(setup, config.calibration)


def broken_promises(budgets: Sequence[Budget], setup: QuantizerSetup) -> tuple[str, ...]:
    """What budgets of mean widths leave out, as sentences: weights that stay float, if they are many."""
    if setup.coverage is None:
        return ()
    means = [budget for budget in budgets if budget.kind in ("avg_bits", "bpw", "effective")]
    texts = [setup.coverage.broken_promise(budget.text) for budget in means]
    return tuple(text for text in texts if text)


def _checked_forward(task: Task, batch: Batch) -> Task:
    """The task, whose forward runs a batch and leaves it as it is; costs one forward."""
    own = own_batch(batch)
    try:
        check_finite_forward(task.model, task.run, own)
    except RaysearchError:
        raise
    except (Exception, SystemExit) as error:
        if "same device" not in str(error):
            shapes = ", ".join(f"{path} {tuple(t.shape)} {t.dtype}" for path, t in tensors_of(batch))
            raise failed(
                f"the task's forward on the first calibration shard ({shapes})", FORWARD_ADVICE, error
            ) from error
        raise TaskError(
            f"the task's forward puts tensors on a device of its own choice: {error}. Copies of the model "
            f"run on the host and on the workers' devices; move a batch to the device of the model's "
            f"parameters, or leave moving to raysearch."
        ) from error
    if is_changed(own, batch):
        # The model, the task's forward or what it calls works in place; each is given a copy from here on.
        task = replace(task, forward=OnOwnBatch(task.run))
    _check_in_float32(task, batch)
    return task


def _check_in_float32(task: Task, batch: Batch) -> None:
    """Run a half-precision model once as it will be measured."""
    half = half_type(task.model)
    if half is None:
        return
    model, _ = in_float32(reading_copy(task.model), {})
    try:
        with frozen_eval(model), torch.no_grad():
            task.run(model, widened_batch(batch))
    except RuntimeError as error:
        raise TaskError(
            f"the model is {half}, and is measured in float32, in which it does not run: {error}. In its "
            f"forward take types from the weights (`x.to(self.weight.dtype)`), or give a model in float32."
        ) from error


def _call_form(task: Task, samples: Samples) -> CallForm:
    """The form of call that is exported, found from the calls that all data make; the model is not run."""
    batches = [*samples.calibration, *samples.validation, *samples.traces, *samples.responses]
    batches += samples.test
    calls = record_calls(task.model, task.run, batches)
    return find_call_form(task.model, task.example_inputs, calls)


def _make_fingerprints(
    task: Task, samples: Samples, setup: QuantizerSetup, search: SearchConfig
) -> dict[str, str]:
    fingerprints = {
        "model": hash_model(task.model),
        "calibration": hash_batches(samples.calibration),
        "validation": hash_batches(samples.validation),
        "setup": setup.fingerprint(),
    }
    # The name is left out where there is no such sample: runs of before it existed stay the same.
    if samples.traces:
        fingerprints["traces"] = hash_batches(samples.traces)
    if samples.responses:
        fingerprints["responses"] = hash_batches(samples.responses)
    if samples.test:
        fingerprints["test"] = hash_batches(samples.test)
    if task.positions is not None:
        # Of what is not judged otherwise nothing speaks.
        counts = _counted(task, [*samples.calibration, *samples.validation])
        fingerprints["positions"] = hash_batches(counts)
    # Metrics once were taken for more-is-better unless the settings said otherwise: such trials are not gone
    # on with.
    direction = measured_direction(task.metrics, search)
    if (direction == "maximize") != search.maximize:
        fingerprints["direction"] = direction
    return fingerprints


def _counted(task: Task, batches: Iterable[Batch]) -> list[Batch]:
    """Which positions of batches count; none where all do."""
    if task.positions is None:
        return []
    with user_code("the task's positions", "It is given a batch, and gives a bool tensor [samples, …]."):
        return [counted(batch, task.positions) for batch in batches]


def _latency_profile(times: Mapping[str, Any], setup: QuantizerSetup) -> LatencyProfile:
    """The profile, found to have every layer of a setup."""
    profile = LatencyProfile.from_dict(times)
    for name in setup.of_kind("weight"):
        profile.picoseconds(name, FLOAT_BITS, FLOAT_BITS)
    return profile


def _check_enqueued(
    index: int, assignment: BitAssignment, budgets: Sequence[Budget], setup: QuantizerSetup
) -> None:
    assignment.check(setup)
    model = CostModel(setup)
    excess = excesses(budgets, model, model.costs(assignment))
    exceeded = [text for text, amount in excess.items() if amount > 0]
    if exceeded:
        raise BudgetError(
            f"search.enqueue[{index}] exceeds the budget {', '.join(exceeded)}; lower some of its widths or "
            "leave it out."
        )
