"""Place quantizers: points, groups and allowed widths, from the graph, the scope rules and the profile."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from raysearch.config.placement import PlacementConfig
from raysearch.errors import PlacementError
from raysearch.evaluation.batches import on_device, own_batch
from raysearch.evaluation.calls.call_form import exportable
from raysearch.evaluation.forward import frozen_eval
from raysearch.hooks.call_taps import CallTap, tap_calls
from raysearch.placement.capture import CapturedGraph, capture
from raysearch.placement.coverage import measure_coverage
from raysearch.placement.fusion import find_fusions
from raysearch.placement.graph import (
    GraphReads,
    WeightInput,
    WeightUse,
    producer_of,
    read_graph,
    read_network,
)
from raysearch.placement.left_out import left_out
from raysearch.placement.liveness import live_tensors
from raysearch.placement.overrides import read_overrides, share_overrides
from raysearch.placement.points import make_points, with_scale_formats
from raysearch.placement.profile import Profile, load_profile
from raysearch.placement.scopes import select
from raysearch.placement.stored_tensors import stored_tensors
from raysearch.placement.widths import WidthRules, check_placement, make_groups, with_specs
from raysearch.records import QuantizerSetup, Site

LEAF_TYPES = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear, nn.Embedding,
    nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip


def place_quantizers(
    model: nn.Module, example_inputs: tuple[Any, ...], settings: PlacementConfig | None = None
) -> QuantizerSetup:
    """Decide where quantizers go in a model.

    Weights: every parameter that a Conv1d/2d/3d, ConvTranspose1d/2d/3d, Linear, Embedding or Bilinear
    operation or an LSTM, GRU, RNN or cell of one reads, or that a matrix product (`matmul`, `mm`, `bmm`,
    `addmm`, `baddbmm`, `einsum` of two) multiplies an activation with; once even if it is tied or its module
    runs often. One scale per output channel (axis 1 of transposed convolutions and of weights that are
    [in, out], rows of an embedding and of gates, the largest axis that only the result has for an einsum).
    Activations: every tensor that such an operation, a residual addition, a product of two activations or a
    scaled dot-product attention reads; one quantizer serves all readers of one tensor, and the parts of a
    concatenation with it. The operands of an addition, and the tensors that one weight reads, share a width.
    Nothing is placed between an operation and the normalisation or activation that follows it.

    Left float: what recurrent layers compute between their steps, the softmax inside a fused attention, and
    everything else that is no such operation; all activations, where `activation_bit_widths` is empty.
    `QuantizerSetup.coverage` says which weights that are, and why.

    A scope is a name, a glob, or a regular expression after "re:"; `"fc"` means the weights of fc,
    `"fc.input"` its input.

    Cost: one capture and one forward of the example inputs. The model is left as it was.

    Args:
        model: the float model.
        example_inputs: positional arguments of its forward; dimension 0 is the batch.
        settings: widths, scopes, overrides and the hardware profile; None: the defaults.

    Raises:
        CaptureError: the model cannot be captured.
        PlacementError: a scope fits nothing, rules contradict within a group or with the profile, or nothing
            is left to quantize.
    """
    settings = settings or PlacementConfig()
    profile = load_profile(settings.profile)
    first = next(model.parameters(), None)
    if first is not None and isinstance(example_inputs, tuple):
        example_inputs = on_device(example_inputs, first.device)
    graph = capture(model, example_inputs)
    all_reads = _read_model(model, graph)
    reads = _keep_needed_pools(graph, all_reads, profile)
    reads = _drop_unreachable(model, example_inputs, reads)
    reads = _drop_float_activations(reads, settings, profile)
    if not reads.weights:
        raise PlacementError(
            f"{type(model).__name__} has no weight of a Conv, ConvTranspose, Linear, Embedding, recurrent "
            f"layer or matrix product that its forward reads; there is nothing to quantize. A weight that is "
            f"cast before it is read is none: leave torch.autocast out of the forward."
        )
    table = make_points(model, reads)
    table = replace(table, fusions=find_fusions(graph, profile.fusion))
    overrides = share_overrides(read_overrides(settings, table.points), table.fusions)
    rules = WidthRules(settings, overrides, profile)
    selected = select(table.points, settings.target_scopes, settings.ignored_scopes)
    floating_weights = left_out(model, table, selected, profile)
    selected = {name: point for name, point in selected.items() if name not in floating_weights}
    table = replace(table, points=selected)
    scale_dtype = settings.scale_dtype or profile.scale_dtype
    points = with_scale_formats(with_specs(table, rules), model, scale_dtype)
    groups, pairs = make_groups(table, points, rules)
    check_placement(table, points, profile)
    served = set(reads.tensors)
    floating = {read.root for read in all_reads.tensors if read not in served}
    return QuantizerSetup(
        points,
        groups,
        pairs,
        tensors=live_tensors(graph, reads, floating, points),
        stored=stored_tensors(model, points),
        coverage=measure_coverage(model, graph, floating_weights, points),
        network=read_network(graph, all_reads),
    )


def _read_model(model: nn.Module, graph: CapturedGraph) -> GraphReads:
    modules = dict(model.named_modules())
    leaves = {name for name, module in modules.items() if isinstance(module, LEAF_TYPES)}
    # Inside attention the batch is one dimension with the heads.
    folded = {name for name, module in modules.items() if isinstance(module, nn.MultiheadAttention)}
    return read_graph(graph, leaves, folded)


def _keep_needed_pools(graph: CapturedGraph, reads: GraphReads, profile: Profile) -> GraphReads:
    """Average pools read a quantized tensor only where the profile wants the result of a layer quantized."""
    required: dict[str, str] = {}
    for use in reads.weights.values():
        for kind, output in zip(use.kinds, use.outputs, strict=True):
            if profile.rules[kind].output:
                required[output] = use.parameter
    makers = {read.root: producer_of(graph, read.root) for read in reads.tensors}
    tensors = [read for read in reads.tensors if read.kind != "pool" or makers[read.root] in required]
    served = {makers[read.root] for read in tensors}
    floating = sorted({parameter for output, parameter in required.items() if output not in served})
    if floating:
        warnings.warn(
            f"the profile '{profile.name}' needs quantized results, but nothing that a quantizer reaches "
            f"reads those of {', '.join(floating)}: they stay float.",
            stacklevel=3,
        )
    return replace(reads, tensors=tensors)


def _drop_unreachable(model: nn.Module, example_inputs: tuple[Any, ...], reads: GraphReads) -> GraphReads:
    """The reads without those that the eager model cannot serve: calls inside composite functions."""
    tap = CallTap({})
    handles = tap_calls(model, tap)
    try:
        with frozen_eval(model), torch.no_grad(), exportable(model):
            model(*own_batch(example_inputs))
    finally:
        for handle in handles:
            handle.remove()
    hidden = {call for call, count in reads.counts.items() if tap.seen[call] != count}
    sites = {read.site for read in reads.tensors if _call_of(read.site) in hidden}
    for owner, kind in sorted({_call_of(site) for site in sites}):
        calls = "additions" if kind == "add" else f"'{kind}' calls"
        warnings.warn(
            f"the {calls} of '{owner or type(model).__name__}' are executed inside a composite function "
            f"and stay float",
            stacklevel=3,
        )
    return replace(
        reads,
        weights={name: _without_inputs(use, sites) for name, use in reads.weights.items()},
        tensors=[read for read in reads.tensors if read.site not in sites],
        additions=[addition for addition in reads.additions if (addition.owner, "add") not in hidden],
    )


def _drop_float_activations(reads: GraphReads, settings: PlacementConfig, profile: Profile) -> GraphReads:
    """The reads without those whose tensors the settings, or the profile, leave float.

    Raises:
        PlacementError: the settings want activations at other widths than the default, which the profile
            leaves float.
    """
    widths = settings.activation_bit_widths
    if widths and profile.is_weight_only:
        _tell_of_float_activations(settings, profile)
    floating = {kind for kind, rule in profile.rules.items() if not (widths and rule.activations)}
    weights = {}
    for name, use in reads.weights.items():
        is_float = not floating.isdisjoint(use.kinds)
        weights[name] = replace(use, inputs=[WeightInput()] * len(use.inputs)) if is_float else use
    return replace(
        reads,
        weights=weights,
        tensors=[read for read in reads.tensors if read.kind not in floating],
        additions=[] if "add" in floating else reads.additions,
    )


def _tell_of_float_activations(settings: PlacementConfig, profile: Profile) -> None:
    """Refuse widths of activations that a profile of weights alone takes none of; warn of a default set."""
    name = "activation_bit_widths"
    widths = ", ".join(map(str, settings.activation_bit_widths))
    if settings.activation_bit_widths != type(settings).model_fields[name].default:
        raise PlacementError(
            f"placement.{name} are {widths}, but the profile '{profile.name}' takes weights alone. Set them "
            f"to [], or choose another placement.profile."
        )
    # Not refused: a file of all settings, and the record of an earlier run, hold it though nobody chose it.
    if name in settings.model_fields_set:
        warnings.warn(
            f"placement.{name} are {widths}, but the profile '{profile.name}' takes weights alone: "
            f"activations stay float. Set them to [] to say so, or choose another placement.profile.",
            stacklevel=4,
        )


def _call_of(site: Site) -> tuple[str, str]:
    """The module, and the kind of its calls, that a tap counts a site among."""
    return site.module, site.name or site.role


def _without_inputs(use: WeightUse, sites: set[Site]) -> WeightUse:
    inputs = [WeightInput() if each.site in sites else each for each in use.inputs]
    return replace(use, inputs=inputs)
