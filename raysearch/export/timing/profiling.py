"""Latency profiles: seconds of every layer in onnxruntime, of a model in float and at 8 bits."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils import _pytree as pytree

from raysearch.controller import stripped_weights
from raysearch.errors import ConfigError
from raysearch.export.onnx_qdq.capture import capture
from raysearch.export.onnx_qdq.floats import float_again
from raysearch.export.onnx_qdq.packages import require_onnx
from raysearch.export.onnx_qdq.proto import finish
from raysearch.export.onnx_qdq.session import TRACED, load_session
from raysearch.export.outputs import tensor_leaves
from raysearch.export.timing.layer_nodes import LayerSeconds, label_layers, layer_seconds
from raysearch.export.timing.machine import describe_machine
from raysearch.records import FLOAT_BITS, LatencyProfile, QuantizerSetup
from raysearch.temporary import scratch_folder

FLOAT, EIGHT, HALF = "float", "8", "half"
SUFFIX = "_kernel_time"

Feed = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class _Variant:
    """One export: which points are quantized in it, and its file."""

    quantized: frozenset[str]
    path: Path


def profile_onnxruntime(
    stripped: nn.Module,
    setup: QuantizerSetup,
    example_inputs: tuple[Any, ...],
    *,
    batch: int = 1,
    threads: int = 1,
    rounds: int = 20,
) -> LatencyProfile:
    """Time every layer within the whole model, in float and at 8 bits.

    Layers alone would add up to too much (1.7 times, for MobileNetV2): fused neighbours are free. So the
    whole model runs, onnxruntime times its nodes, and of each the least of all rounds counts. A layer's time
    is that of the nodes that read its weight, and of what follows them until the next layer (activation
    functions, additions, changes between float and codes). What the two models have in common there is
    `other_seconds`. The time between nodes is spread over them, by their number.

    Work: one export, and 3·rounds forwards of three models.

    Args:
        stripped: a stripped module, integer form, whose weights and activations have 8 bits.
        setup: where its quantizers are.
        example_inputs: positional arguments of its forward; repeated or cut to `batch` samples.
        batch: samples in one forward.
        threads: of onnxruntime.
        rounds: how often each model runs for one figure.

    Returns:
        The profile. Its `checks` compare its sums with whole models that were timed again: float, 8 bits, and
        the first half of the layers at 8 bits, the rest in float, to which no time in it is fitted.

    Raises:
        ConfigError: `batch`, `threads` or `rounds` is below 1, or the model fixes another batch size.
        ExportError: the extra `onnx` is missing, or the model cannot be exported.
    """
    require_onnx()
    for name, value in {"batch": batch, "threads": threads, "rounds": rounds}.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; it is at least 1.")
    inputs = _of_batch(example_inputs, batch)
    with scratch_folder() as folder:
        sets = {FLOAT: frozenset[str](), EIGHT: frozenset(setup.points), HALF: _first_half(setup)}
        variants = {name: _Variant(points, folder / f"{name}.onnx") for name, points in sets.items()}
        unread = _write(stripped, setup, inputs, variants)
        feed = _feed(variants[FLOAT].path, inputs)
        totals = _whole_seconds(variants, feed, threads, rounds)
        times = {
            level: _layers(variants[level].path, feed, threads, rounds, totals[level])
            for level in (FLOAT, EIGHT)
        }
        measured = _whole_seconds(variants, feed, threads, rounds)
    profile = _profile(setup, times, unread, describe_machine(inputs, batch, threads))
    checks = {
        name: {"predicted": _predicted(profile, setup, each.quantized), "measured": measured[name]}
        for name, each in variants.items()
    }
    return LatencyProfile(**{**vars(profile), "checks": checks})


def _first_half(setup: QuantizerSetup) -> frozenset[str]:
    """Weights before the middle one, and activations up to what that one reads."""
    weights, activations = (list(setup.of_kind(kind)) for kind in ("weight", "activation"))
    if not weights:
        return frozenset()
    middle = len(weights) // 2
    read = setup.points[weights[middle]].input_point
    count = activations.index(read) + 1 if read else len(activations) // 2
    return frozenset([*weights[:middle], *activations[:count]])


def _of_batch(example_inputs: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    tensors = [t for t in pytree.tree_leaves(example_inputs) if isinstance(t, torch.Tensor) and t.ndim]
    size = tensors[0].shape[0] if tensors else 0

    def fit(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.ndim or tensor.shape[0] != size:
            return tensor
        return tensor[torch.arange(batch) % size]

    fitted: tuple[Any, ...] = pytree.tree_map_only(torch.Tensor, fit, example_inputs)
    return fitted


def _write(
    stripped: nn.Module, setup: QuantizerSetup, inputs: tuple[Any, ...], variants: Mapping[str, _Variant]
) -> list[str]:
    """Write the exports with labelled nodes; weights that no node was found to read."""
    weights = stripped_weights(stripped, setup)
    captured, fixed = capture(stripped, weights, inputs)
    size = _batch_size(inputs)
    if fixed is not None and fixed != size:
        raise ConfigError(f"the model fixes its batch size at {fixed}; give batch {fixed} instead of {size}.")
    unread: set[str] = set()
    for variant in variants.values():
        model = captured.clone()
        plain = [weight for name, weight in weights.items() if name not in variant.quantized]
        float_again(model, plain, set(setup.of_kind("activation")) - variant.quantized)
        proto = finish(model, weights)
        unread.update(label_layers(proto, setup.of_kind("weight")))
        variant.path.write_bytes(proto.SerializeToString())
    return [name for name in setup.of_kind("weight") if name in unread]


def _batch_size(inputs: tuple[Any, ...]) -> int:
    return next(int(t.shape[0]) for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor) and t.ndim)


def _feed(path: Path, inputs: tuple[Any, ...]) -> Feed:
    names = [entry.name for entry in load_session(str(path)).get_inputs()]
    arrays = [leaf.detach().cpu().contiguous().numpy() for value in inputs for leaf in tensor_leaves(value)]
    return dict(zip(names, arrays, strict=True))


def _whole_seconds(
    variants: Mapping[str, _Variant], feed: Feed, threads: int, rounds: int
) -> dict[str, float]:
    """Least seconds of a forward of each model, taken in turn, nothing else being timed.

    Of one thread it is CPU time, so that other work on the machine does not count.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    sessions = {name: load_session(str(each.path), threads=threads) for name, each in variants.items()}
    least = dict.fromkeys(variants, np.inf)
    for _ in range(rounds + 1):
        for name, session in sessions.items():
            start = clock()
            session.run(None, feed)
            least[name] = min(least[name], clock() - start)
    return least


def _layers(path: Path, feed: Feed, threads: int, rounds: int, total: float) -> dict[int, LayerSeconds]:
    """Least seconds of every layer's nodes, among which the time between nodes is spread.

    Args:
        path: a file with labelled nodes.
        feed: arrays by input name.
        threads: of onnxruntime.
        rounds: forwards, of which for each node the least time counts.
        total: seconds of a forward that is not traced.
    """
    import onnx

    folder = path.parent / path.stem
    folder.mkdir()
    session = load_session(str(path), threads=threads, trace=folder)
    for _ in range(rounds + 1):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    optimized = onnx.load(folder / TRACED)
    layers = layer_seconds(optimized, _least(events))
    between = total - sum(layer.kernel + layer.rest for layer in layers.values())
    # Timing itself takes time: where the nodes sum to more than the whole, all are that much shorter.
    factor = 1.0 if between >= 0 else total / (total - between)
    num_nodes = sum(layer.num_nodes for layer in layers.values())
    share = max(between, 0.0) / max(num_nodes, 1)
    for layer in layers.values():
        layer.kernel *= factor
        layer.rest = layer.rest * factor + share * layer.num_nodes
    return layers


def _least(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    least: dict[str, float] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(SUFFIX):
            node = name.removesuffix(SUFFIX)
            least[node] = min(least.get(node, np.inf), event["dur"] * 1e-6)
    return least


def _profile(
    setup: QuantizerSetup,
    times: Mapping[str, Mapping[int, LayerSeconds]],
    unread: list[str],
    machine: Mapping[str, str],
) -> LatencyProfile:
    layers: dict[str, dict[str, float]] = {}
    kernels: dict[str, dict[str, str]] = {}
    none = LayerSeconds()
    loose = [times[level].get(-1, none).rest + times[level].get(-1, none).kernel for level in times]
    other = min(loose)
    for index, name in enumerate(setup.of_kind("weight")):
        by_level = {level: times[level].get(index, none) for level in times}
        # What a layer takes beside its kernel in either model is not the layer's: no width changes it.
        common = min(layer.rest for layer in by_level.values())
        other += common
        layers[name] = {level: layer.kernel + layer.rest - common for level, layer in by_level.items()}
        kernels[name] = {level: layer.operation or "fused away" for level, layer in by_level.items()}
    for name in unread:
        kernels[name] = dict.fromkeys(times, "not found")
    packages = ("raysearch", "torch", "onnx", "onnxruntime")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return LatencyProfile(layers, other, machine, "onnxruntime CPU", versions, kernels)


def _predicted(profile: LatencyProfile, setup: QuantizerSetup, quantized: Collection[str]) -> float:
    """The sum of the profile where some points have 8 bits and the others are float."""

    def width(name: str) -> int:
        return 8 if name in quantized else FLOAT_BITS

    return profile.other_seconds + sum(
        profile.picoseconds(name, width(name), width(point.input_point)) * 1e-12
        for name, point in setup.of_kind("weight").items()
    )
