"""From a model and a configuration to a controller, and from a controller to files, in one call each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from raysearch.compression.initializer import ModelInitializer
from raysearch.compression.nncf_config import NncfConfig, read_nncf_config
from raysearch.config import CalibrationConfig, Config, ExportConfig
from raysearch.controller import ControllerState, QuantizationController, create_controller
from raysearch.errors import ConfigError, ExportError
from raysearch.evaluation import Batch, Forward, Loss, default_forward
from raysearch.evaluation.batches import on_device, own_batch
from raysearch.evaluation.model.copies import private_copy
from raysearch.evaluation.model.plain_weights import make_plain_weights
from raysearch.evaluation.model.private_model import note_changing_buffers
from raysearch.export import StrippedModel, export_model
from raysearch.placement import place_quantizers
from raysearch.records import (
    PER_TENSOR,
    BitAssignment,
    ExportManifest,
    QuantizationPoint,
    QuantizerSetup,
    QuantizerSpec,
)
from raysearch.records.point import Mode


def create_compressed_model(
    model: nn.Module,
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    example_inputs: tuple[Any, ...] = (),
    *,
    data: Any = None,
    forward: Forward = default_forward,
    loss: Loss | None = None,
    compression_state: Mapping[str, Any] | None = None,
) -> tuple[QuantizationController, nn.Module]:
    """Place, calibrate and attach quantizers; choose widths where the configuration says how.

    Every group starts at its widest admissible width. The model is quantized in place, and handed back.

    Args:
        model: the float model; it is modified.
        config: raysearch's `Config`, of which `placement` and `calibration` are read, or NNCF's
            configuration as a mapping or the path of its JSON file.
        example_inputs: positional arguments of the forward; NNCF's `input_info` makes them where they are
            left out.
        data: what is calibrated on: a data set, a loader, or batches. Not needed with a state.
        forward: (model, batch) → outputs.
        loss: (outputs, batch) → scalar, for traces of the task's loss.
        compression_state: what `controller.get_compression_state()` gave: nothing is calibrated or chosen;
            load the model's state dict afterwards.

    Returns:
        The controller and the model.

    Raises:
        ConfigError: a key is unknown or not supported, or there are no example inputs.
        PlacementError: a scope fits nothing, or no width is left.
        BudgetError: the compression ratio or the budget cannot be met.
        DataError: there is no data to calibrate on.
        StorageError: the state is damaged, or of another model or configuration; names the quantizer.
    """
    make_plain_weights(model)
    if isinstance(config, Config):
        return _typed(model, config, example_inputs, data, forward, loss, compression_state)
    source = config if isinstance(config, Mapping) else Path(config)
    settings = read_nncf_config(source)
    inputs = _required(model, example_inputs or settings.inputs)
    placed = place_quantizers(model, inputs, settings.placement)
    setup = _with_kinds(placed, settings)
    calibration = CalibrationConfig(batch_norm_samples=settings.norm_samples)
    initializer = ModelInitializer(private_copy(model), data, forward, loss, calibration)
    options = {"params": settings.params}
    controller = _attach(model, setup, initializer, settings.ranges, options, compression_state)
    kind, params = settings.precision
    if compression_state is None:
        if kind:
            controller.apply(controller.init_precision(kind, params))
        controller.adapt_batch_norm()
    return controller, model


def export_compressed_model(
    controller: QuantizationController,
    example_inputs: tuple[Any, ...],
    directory: str | os.PathLike[str],
    *,
    targets: Sequence[str] | None = None,
    batches: Iterable[Batch] = (),
    forward: Forward = default_forward,
) -> ExportManifest:
    """What NNCF's `controller.export_model` did: fix the ranges, strip a copy, write and verify the files.

    Args:
        controller: its model is left quantized, with fixed ranges.
        example_inputs: positional arguments of the forward; dimension 0 is the batch.
        directory: the model folder; see `raysearch.export.export_model`, also for what follows.
        targets: some of `raysearch.export.TARGETS`; None means those that are written by default and whose
            packages are installed.
        batches: what the files are verified on; none means the example inputs.
        forward: (model, batch) → outputs.

    Raises:
        ExportError: a range or a width cannot be exported (names the quantizer), or see `export_model`.
    """
    for name, reason in controller.prepare_for_export().not_exportable.items():
        raise ExportError(f"the quantizer '{name}' cannot be exported: {reason}.")
    # Files are written and verified on the CPU, wherever the model is trained.
    stripped = controller.strip_model(do_copy=True).cpu()
    example_inputs = on_device(example_inputs, "cpu")
    batches = (on_device(batch, "cpu") for batch in batches)
    model = StrippedModel(stripped, controller.setup, controller.assignment, example_inputs)
    # The caller chose the batches, so all of them count.
    settings = ExportConfig(targets=None if targets is None else tuple(targets), num_samples=sys.maxsize)
    return export_model(model, directory, settings, batches=batches, forward=forward)


def _typed(
    model: nn.Module,
    config: Config,
    example_inputs: tuple[Any, ...],
    data: Any,
    forward: Forward,
    loss: Loss | None,
    state: Mapping[str, Any] | None,
) -> tuple[QuantizationController, nn.Module]:
    setup = place_quantizers(model, _required(model, example_inputs), config.placement)
    initializer = ModelInitializer(private_copy(model), data, forward, loss, config.calibration)
    controller = _attach(model, setup, initializer, {}, {}, state)
    if state is None:
        controller.adapt_batch_norm()
    return controller, model


def _required(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The example inputs where the model is, which is run on them, to know the buffers that it changes."""
    if not inputs:
        raise ConfigError(
            "no example inputs: pass example_inputs=(...,), or input_info in the configuration."
        )
    first = next(model.parameters(), None)
    if first is not None and isinstance(inputs, tuple):
        inputs = on_device(inputs, first.device)
        note_changing_buffers(model, own_batch(inputs))
    return inputs


def _attach(
    model: nn.Module,
    setup: QuantizerSetup,
    initializer: ModelInitializer,
    range_params: Mapping[str, Any],
    config: Mapping[str, Any],
    state: Mapping[str, Any] | None,
) -> QuantizationController:
    if state is None:
        ranges = initializer.find_ranges(model, setup, setup.points, range_params)
        assignment = BitAssignment.extreme(setup, -1)
    else:
        saved = ControllerState.from_json(state)
        saved.check_setup(setup)
        ranges, assignment = saved.ranges, saved.assignment
    controller = create_controller(
        model,
        setup,
        ranges,
        assignment,
        config=config,
        initializer=initializer,
        range_init_params=range_params,
    )
    if state is not None:
        controller.load_state(state)
    return controller


def _with_kinds(setup: QuantizerSetup, settings: NncfConfig) -> QuantizerSetup:
    """What the sections `weights` and `activations` say of all quantizers that no override changed."""
    if settings.kinds["activation"].get("per_channel"):
        raise ConfigError(
            "activations.per_channel is not supported for all activations: integer kernels take one scale "
            "per tensor; set it by scope_overrides.activations where a target has them."
        )
    points: dict[str, QuantizationPoint] = {}
    for name, point in setup.points.items():
        values = settings.kinds[point.kind]
        spec, granularity = point.spec, point.granularity
        if spec is None and {"mode", "signed", "logarithm_scale"} & set(values):
            spec = _spec(point, values)
        if point.kind == "weight" and not values.get("per_channel", True):
            granularity = PER_TENSOR
        points[name] = replace(point, spec=spec, granularity=granularity)
    return replace(setup, points=points)


def _spec(point: QuantizationPoint, values: Mapping[str, Any]) -> QuantizerSpec:
    default = point.grid_spec
    mode: Mode = values.get("mode", default.mode)
    signed = values.get("signed", default.signed) if mode == "symmetric" else None
    return QuantizerSpec(mode=mode, signed=signed, logarithm_scale=bool(values.get("logarithm_scale", False)))
