"""Everything that is checked before compute is spent: the model, the data, the budgets, the settings."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from raysearch.calibration import choose_rules
from raysearch.config import Config, PlacementConfig
from raysearch.errors import BudgetError, ConfigError, DataError
from raysearch.evaluation import Batch, Divergence, materialise, output_tensor, training_batches
from raysearch.evaluation.batches import tensors_of
from raysearch.evaluation.divergence import check_outputs
from raysearch.evaluation.forward import check_finite_forward, frozen_eval
from raysearch.export import check_targets
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
from raysearch.search import check_budgets, check_minimized, check_sampler
from raysearch.task import Task


@dataclass(frozen=True)
class Inputs:
    """A task that was found fit, and what was read of it.

    Attributes:
        task: as the user gave it.
        config: the settings.
        budgets: parsed and achievable; none where the least cost is asked for.
        setup: placed quantizers.
        calibration: shards of the calibration sample.
        validation: shards of the validation data.
        traces: shards of the sample that traces are measured on; none where it is the calibration sample.
        divergence: the label-free objective.
        fingerprints: hashes of the model, the samples and the setup.
    """

    task: Task
    config: Config
    budgets: tuple[Budget, ...]
    setup: QuantizerSetup
    calibration: list[Batch]
    validation: list[Batch]
    traces: list[Batch]
    divergence: Divergence
    fingerprints: Mapping[str, str]


def place(model: nn.Module, example_inputs: tuple[Any, ...], settings: PlacementConfig) -> QuantizerSetup:
    """The placement stage, with a configuration's settings."""
    return place_quantizers(
        model,
        example_inputs,
        weight_bit_widths=settings.weight_bit_widths,
        activation_bit_widths=settings.activation_bit_widths,
        pins=settings.pins,
        ignored_scopes=settings.ignored_scopes,
        target_scopes=settings.target_scopes,
        overrides={scope: v.model_dump(exclude_none=True) for scope, v in settings.overrides.items()},
        profile=settings.profile,
    )


def place_task(task: Task, config: Config) -> QuantizerSetup:
    """The placement of a task's model, with the measured times of its layers if there are any.

    Raises:
        ConfigError: the latency profile lacks a layer.
    """
    setup = place(task.model, task.example_inputs, config.placement)
    times = config.search.latency_profile
    return setup if times is None else replace(setup, latency=_latency_profile(times, setup))


def check_inputs(task: Task, config: Config, budgets: Sequence[str]) -> Inputs:
    """Read and check everything; costs one capture and two forwards.

    Raises:
        BudgetError: a budget cannot be read or met.
        ConfigError: settings that contradict the task.
        CaptureError: the model cannot be captured.
        PlacementError: a pin or scope fits nothing.
        DataError: data is empty or not finite, or the model's output on it is not.
    """
    minimize = config.search.minimize
    parsed = () if minimize != "none" and not budgets else parse_budgets(budgets)
    _check_settings(task, config)
    setup = place_task(task, config)
    check_budgets(parsed, setup)
    if minimize != "none":
        check_minimized(minimize, parsed, setup)
    # The default targets hold every width; the export notes which of them it leaves out.
    check_targets(setup, config.export.targets or ())
    for index, bits in enumerate(config.search.enqueue):
        _check_enqueued(index, BitAssignment(bits), parsed, setup)
    ranges = config.calibration
    choose_rules(setup, ranges.weights, ranges.activations, ranges.overrides, ranges.percentiles)
    calibration = materialise(
        task.calibration, config.calibration.num_samples, config.calibration.shard_size, "calibration"
    )
    validation = calibration
    if task.validation is not None:
        sizes = config.validation
        validation = materialise(task.validation, sizes.num_samples, sizes.shard_size, "validation")
    traces: list[Batch] = []
    if count := config.sensitivity.trace_samples:
        traces = materialise(task.calibration, count, config.calibration.shard_size, "calibration")
    if task.train is not None:
        training_batches(task.train, 1, 0, 0, 1)
    check_finite_forward(task.model, task.run, calibration[0])
    divergence = Divergence(config.objective.divergence, config.objective.class_dim)
    with frozen_eval(task.model), torch.no_grad():
        outputs = output_tensor(task.run(task.model, calibration[0]))
    problem = check_outputs(outputs, divergence)
    if problem:
        raise DataError(
            f"{problem}, so objective.divergence '{divergence.kind}' has no meaning; set it to 'mse', or set "
            f"objective.class_dim, or give Task(forward=...) that returns logits."
        )
    divergence = divergence.fitted(outputs)
    marks = {
        "model": hash_model(task.model),
        "calibration": hash_batches(calibration),
        "validation": hash_batches(validation),
        "setup": setup.fingerprint(),
    }
    if traces:
        marks["traces"] = hash_batches(traces)
    return Inputs(task, config, parsed, setup, calibration, validation, traces, divergence, marks)


def versions() -> dict[str, str]:
    """What a result depends on besides its inputs."""
    packages = ("raysearch", "torch", "ray", "optuna", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def hash_model(model: nn.Module) -> str:
    """Hash of every parameter and buffer with its name, and of the class's name."""
    digest = blake2b(type(model).__name__.encode(), digest_size=16)
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            _feed(digest, name, value)
    return digest.hexdigest()


def hash_batches(batches: Sequence[Batch]) -> str:
    """Hash of every tensor of every shard with its place."""
    digest = blake2b(digest_size=16)
    for index, batch in enumerate(batches):
        for path, tensor in tensors_of(batch):
            _feed(digest, f"{index}:{path}", tensor)
    return digest.hexdigest()


def _feed(digest: Any, name: str, tensor: torch.Tensor) -> None:
    digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")


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
    over = [text for text, by in excesses(budgets, model, model.costs(assignment)).items() if by > 0]
    if over:
        raise BudgetError(
            f"search.enqueue[{index}] exceeds the budget {', '.join(over)}; lower some of its widths or "
            "leave it out."
        )


def _check_settings(task: Task, config: Config) -> None:
    check_sampler(config.search.sampler)
    objective, asked = config.search.measured, "objective" if config.search.drop is None else "max_drop"
    if objective not in ("divergence", "loss", *task.metrics):
        known = ", ".join(("divergence", "loss", *task.metrics))
        raise ConfigError(f"search.{asked} names '{objective}'; known for this task: {known}.")
    wanted_samples, samples = config.calibration.batch_norm_samples, config.calibration.num_samples
    if wanted_samples > samples:
        raise ConfigError(
            f"calibration.batch_norm_samples is {wanted_samples}, and calibration.num_samples only "
            f"{samples}; raise the latter."
        )
    wants_loss = {
        f"search.{asked}": objective == "loss",
        "training.objective": config.training.objective == "loss" and task.train is not None,
        "sensitivity.trace_loss": config.sensitivity.trace_loss == "loss",
        "sensitivity.estimator": config.sensitivity.estimator == "fisher",
    }
    estimator = config.sensitivity.estimator
    if config.search.surrogate == "fisher" and estimator != "fisher":
        raise ConfigError(
            f"search.surrogate is 'fisher', which needs traces of the Fisher matrix, but the traces are "
            f"measured by '{estimator}'. Set sensitivity.estimator to 'fisher', or search.surrogate to "
            f"'hawq'."
        )
    for key, wanted in wants_loss.items():
        if wanted and task.loss is None:
            value = "fisher" if key == "sensitivity.estimator" else "loss"
            raise ConfigError(
                f"{key} is '{value}', but the Task has no loss; give Task(loss=...) or change it."
            )
