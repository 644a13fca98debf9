"""The user's own network as the stripped module of a model folder: their architecture, the stored tensors."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysearch.controller import create_controller, stripped_weights
from raysearch.errors import PlacementError, StorageError, TaskError
from raysearch.evaluation.model.plain_weights import make_plain_weights
from raysearch.export.model_config import ActivationQuantizer, ModelConfig, PackedWeight
from raysearch.export.program import tensor_slots
from raysearch.placement.stored_tensors import TORCH_DTYPES
from raysearch.records import (
    BitAssignment,
    Granularity,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerRange,
    QuantizerSetup,
    QuantizerSpec,
    RangeTable,
    Scheme,
    Site,
)

_PLACEHOLDER_BITS = 8


def restore_module(
    factory: str | Callable[[], nn.Module], config: ModelConfig, tensors: dict[str, Tensor]
) -> nn.Module:
    """Build the float network, quantize and strip it as the exported one was, and fill in the stored tensors.

    Args:
        factory: the function, or its name.
        config: says where quantizers act.
        tensors: every stored tensor under its name, codes as `<weight>.codes`.

    Raises:
        TaskError: the factory is not found or fails, or its network has other tensors; names them.
        StorageError: the configuration does not say where quantizers act.
    """
    model = _build(factory)
    if any(not entry.sites for entry in config.activations.values()):
        raise StorageError(
            "config.json does not say where its activation quantizers act. Export the model again, or load "
            "it without a factory."
        )
    _check_fit(model, config)
    try:
        setup, ranges, assignment = _recipe(config)
        stripped = create_controller(model, setup, ranges, assignment).strip_model()
    except (PlacementError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise TaskError(
            f"the factory's {type(model).__name__} does not take the quantizers of config.json: "
            f"{error!s:.300} Give the network that was quantized."
        ) from error
    _fill(stripped, setup, tensors)
    return stripped


def _build(factory: str | Callable[[], nn.Module]) -> nn.Module:
    function = _find(factory) if isinstance(factory, str) else factory
    try:
        model = function()
    except Exception as error:
        raise TaskError(f"the factory failed: {type(error).__name__}: {error!s:.300}") from error
    if not isinstance(model, nn.Module):
        raise TaskError(f"the factory returned a {type(model).__name__}; it must return a torch.nn.Module.")
    # What was quantized are the values of computed weights, see `with_plain_weights`.
    make_plain_weights(model)
    return model.cpu().eval()


def _find(name: str) -> Callable[[], Any]:
    location, _, attribute = name.rpartition(":")
    if not location or not attribute:
        raise TaskError(
            f"the factory '{name}' cannot be read; write package.module:function or path/to/file.py:function."
        )
    try:
        if location.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(location).stem, location)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(location)
        factory: Callable[[], Any] = getattr(module, attribute)
    except Exception as error:
        raise TaskError(f"the factory '{name}' cannot be found: {type(error).__name__}: {error}") from error
    return factory


def _check_fit(model: nn.Module, config: ModelConfig) -> None:
    """Compare names, shapes and types of a float network's tensors with those of the stored ones."""
    tensors = dict(tensor_slots(model, {}).values())
    required, optional = _expected_tensors(config)
    missing = sorted(set(required) - set(tensors) - optional)
    unexpected = sorted(set(tensors) - set(required))
    shapes, types = [], []
    for name in sorted(set(required) & set(tensors)):
        value = tensors[name]
        shape, dtype = required[name]
        if tuple(value.shape) != shape:
            shapes.append(f"'{name}' {list(value.shape)} instead of {list(shape)}")
        own_dtype = TORCH_DTYPES.get(value.dtype, str(value.dtype))
        if own_dtype != dtype:
            types.append(f"'{name}' {own_dtype} instead of {dtype}")
    if missing or unexpected or shapes or types:
        raise TaskError(
            f"the factory's {type(model).__name__} is not the exported {config.architecture}: missing "
            f"{missing[:5]} ({len(missing)} in all), unexpected {unexpected[:5]} ({len(unexpected)} in all), "
            f"of another shape: {'; '.join(shapes[:5]) or 'none'} ({len(shapes)} in all), of another type: "
            f"{'; '.join(types[:5]) or 'none'} ({len(types)} in all)."
            f"{' Give the network in the precision that was quantized.' if types else ''}"
        )


def _expected_tensors(config: ModelConfig) -> tuple[dict[str, tuple[tuple[int, ...], str]], set[str]]:
    """Shape and type of every tensor of the float network, and the names that may be missing.

    Tied weights have several names, of which a network shows the first alone: which that is depends on the
    order of its modules.
    """
    expected: dict[str, tuple[tuple[int, ...], str]] = {}
    tied: set[str] = set()
    for name, weight in config.weights.items():
        names = (name, *weight.aliases)
        expected.update(dict.fromkeys(names, (weight.shape, weight.dtype)))
        if weight.aliases:
            tied.update(names)
    for name, spec in config.tensors.items():
        if not _is_quantizers(name):
            expected[name] = (spec.shape, spec.dtype)
    return expected, tied


def _is_quantizers(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 1 and parts[-2].endswith("_quantizer")


def _recipe(config: ModelConfig) -> tuple[QuantizerSetup, RangeTable, BitAssignment]:
    """Points, placeholder ranges and widths; values come with the stored tensors."""
    points: dict[str, QuantizationPoint] = {}
    ranges: dict[tuple[str, Scheme], QuantizerRange] = {}
    bits: dict[str, int] = {}
    for name, weight in config.weights.items():
        points[name] = _weight_point(name, weight)
        ones = np.ones(weight.num_scales, np.float32)
        zeros = np.zeros(weight.num_scales, np.int32)
        minimum = np.zeros(weight.num_scales, np.float32) if weight.has_minima else None
        placeholder = QuantizerRange(ones, zeros, weight.zero_point == 0, minimum=minimum)
        ranges[name, Scheme(weight.bits)] = placeholder
        bits[name] = weight.bits
    for name, entry in config.activations.items():
        points[name] = QuantizationPoint(
            name, "activation", entry.sites, entry.shape, Granularity(entry.axis), spec=entry.spec
        )
        if entry.bits is not None:
            ranges[name, Scheme(entry.bits)] = _activation_range(entry)
            bits[name] = entry.bits
    groups = {n: QuantizerGroup(n, (n,), (bits.get(n, _PLACEHOLDER_BITS),)) for n in points}
    return QuantizerSetup(points, groups), RangeTable(ranges), BitAssignment(bits)


def _weight_point(name: str, weight: PackedWeight) -> QuantizationPoint:
    sites = []
    for alias in (name, *weight.aliases):
        module, _, parameter = alias.rpartition(".")
        sites.append(Site(module, "parameter", parameter))
    spec = None
    if weight.has_minima:
        spec = QuantizerSpec("minimum")
    elif weight.zero_point == "stored":
        spec = QuantizerSpec("asymmetric")
    elif weight.zero_point != 0:
        spec = QuantizerSpec("symmetric", signed=False)
    return QuantizationPoint(
        name,
        "weight",
        tuple(sites),
        weight.shape,
        weight.granularity,
        spec=spec,
        scale_format=weight.scale_format,
    )


def _activation_range(entry: ActivationQuantizer) -> QuantizerRange:
    scales = np.atleast_1d(np.asarray(entry.scale, np.float32))
    zeros = np.atleast_1d(np.asarray(entry.zero_point, np.int32))
    return QuantizerRange(scales, zeros, entry.signed)


def _fill(stripped: nn.Module, setup: QuantizerSetup, tensors: dict[str, Tensor]) -> None:
    slots = dict(tensor_slots(stripped, stripped_weights(stripped, setup)).values())
    wrong = sorted(set(slots) ^ set(tensors))
    wrong += sorted(n for n in slots if n in tensors and _kind(slots[n]) != _kind(tensors[n]))
    if wrong:
        raise TaskError(
            f"the factory's network, stripped, differs from the stored tensors in {wrong[:5]} ({len(wrong)} "
            f"in all): another name, shape or type. Give the network that was quantized."
        )
    with torch.no_grad():
        for name, value in slots.items():
            value.copy_(tensors[name])


def _kind(value: Tensor) -> tuple[torch.Size, torch.dtype]:
    return value.shape, value.dtype
