"""A task's latency profile: its model, quantized to 8 bits throughout, and timed."""

from __future__ import annotations

from dataclasses import replace

from raysearch.calibration import calibrate_model
from raysearch.config import CalibrationConfig, Config, with_defaults
from raysearch.controller import create_controller
from raysearch.determinism import pinned_threads, plain_modes, process_as_found, seeded
from raysearch.errors import ConfigError
from raysearch.evaluation.model.copies import private_copy
from raysearch.export import profile_onnxruntime
from raysearch.placement import place_quantizers
from raysearch.records import (
    BitAssignment,
    LatencyProfile,
    QuantizerSetup,
    Scheme,
)
from raysearch.seeding import derive_seed
from raysearch.task import Task, load_task, private_task

PROFILE_TARGETS = ("onnxruntime",)
NUM_SAMPLES = 8
"""Calibration samples: ranges decide the codes, not the time they take."""


def measure_latency(
    task: Task | str,
    config: Config | None = None,
    *,
    target: str = "onnxruntime",
    batch: int = 1,
    threads: int = 1,
    rounds: int = 20,
) -> tuple[LatencyProfile, QuantizerSetup]:
    """Time a task's model in float and at 8 bits, layer by layer, on this machine.

    There is no time below 8 bits: runtimes on CPUs compute in 8 bits what is stored in fewer, so narrower
    weights save bytes, not time.

    Args:
        task: a `Task`, or `path/to/file.py:factory`, or `package.module:factory`.
        config: settings; those of `placement` decide which layers get an integer kernel.
        target: the runtime, one of `PROFILE_TARGETS`.
        batch: samples in one forward.
        threads: of the runtime.
        rounds: how often each model runs; the least time counts.

    Returns:
        The profile, and the setup whose layers it times.

    Raises:
        ConfigError: the target is unknown, a number is below 1, or the model fixes another batch size.
        ExportError: the extra `onnx` is missing, or the model cannot be exported.
        BadInputError: the task, its model or its data is not usable.
    """
    if target not in PROFILE_TARGETS:
        raise ConfigError(f"the target '{target}' cannot be timed; known: {', '.join(PROFILE_TARGETS)}.")
    settings = config or Config()
    seed = derive_seed(settings.seed, "task")
    with process_as_found(), pinned_threads(settings.cluster.threads), seeded(seed):
        loaded = load_task(task)
        settings = with_defaults(settings, loaded.settings)
        with plain_modes(), pinned_threads(settings.cluster.threads):
            own = private_task(loaded)
            setup = place_quantizers(own.model, own.example_inputs, settings.placement)
            eight = _at_eight_bits(setup)
            calibration = CalibrationConfig(
                num_samples=NUM_SAMPLES, shard_size=NUM_SAMPLES, weights="min_max", activations="min_max"
            )
            ranges = calibrate_model(own.model, eight, own.calibration, calibration, forward=own.run)
            assignment = BitAssignment(dict.fromkeys(eight.groups, 8))
            # On a copy: the task's model is never changed.
            model = private_copy(own.model)
            stripped = create_controller(model, eight, ranges, assignment).strip_model()
            profile = profile_onnxruntime(
                stripped, eight, own.example_inputs, batch=batch, threads=threads, rounds=rounds
            )
    return profile, setup


def _at_eight_bits(setup: QuantizerSetup) -> QuantizerSetup:
    """The setup with 8 bits as every group's only width: all narrower ones run the same kernels."""
    groups = {name: replace(group, schemes=(Scheme(8),)) for name, group in setup.groups.items()}
    return replace(setup, groups=groups, pairs={})
