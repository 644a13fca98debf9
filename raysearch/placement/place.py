"""Place quantizers: points, groups and allowed widths, from the graph, the scope rules and the profile."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from raysearch.errors import PlacementError
from raysearch.evaluation.forward import frozen_eval
from raysearch.hooks.call_taps import CallTap, tap_calls
from raysearch.placement.capture import CapturedGraph, capture
from raysearch.placement.graph import Reads, producer_of, read_graph
from raysearch.placement.liveness import live_tensors
from raysearch.placement.overrides import read_overrides
from raysearch.placement.points import make_points
from raysearch.placement.profile import Profile, load_profile
from raysearch.placement.recurrent import recurrent_weights, refuse_recurrent
from raysearch.placement.scopes import check_widths, select
from raysearch.placement.stored_tensors import stored_tensors
from raysearch.placement.widths import WidthRules, check_placement, make_groups, of_kind
from raysearch.records import QuantizerSetup

LEAF_TYPES = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear, nn.Embedding,
)  # fmt: skip


def place_quantizers(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    *,
    weight_bit_widths: Sequence[int] = (2, 3, 4, 8),
    activation_bit_widths: Sequence[int] = (8,),
    pins: Mapping[str, int] | None = None,
    ignored_scopes: Sequence[str] = (),
    target_scopes: Sequence[str] = (),
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    profile: str = "any",
) -> QuantizerSetup:
    """Decide where quantizers go in a model.

    Weights: every parameter that Conv1d/2d/3d, ConvTranspose1d/2d/3d, Linear or Embedding operations read,
    once even if it is tied or its module runs often; one scale per output channel (axis 1 of transposed
    convolutions, rows of an embedding). Activations: every tensor that such an operation, a residual
    addition, a product of two activations or a scaled dot-product attention reads; one quantizer serves all
    readers of one tensor, and the parts of a concatenation with it. The operands of an addition, and the
    tensors that one weight reads, share a width. Nothing is placed between an operation and the normalisation
    or activation that follows it.

    Left float: the weights of LSTM, GRU and RNN (with a warning), the softmax inside a fused attention, and
    everything else that is no such operation.

    A scope is a name, a glob, or a regular expression after "re:"; `"fc"` means the weights of fc,
    `"fc.input"` its input.

    Cost: one capture and one forward of the example inputs. The model is left as it was.

    Args:
        model: the float model.
        example_inputs: positional arguments of its forward; dimension 0 is the batch.
        weight_bit_widths: widths a weight may take.
        activation_bit_widths: widths an activation may take.
        pins: scope → its only width.
        ignored_scopes: scopes that stay float.
        target_scopes: the only scopes that are quantized; none means all.
        overrides: scope → what is set there: "bits" (widths it may take), "mode" ("symmetric" or
            "asymmetric"), "granularity" ("per_channel" or "per_tensor"), "signed", "pinned" (its only
            width). Later ones win.
        profile: name of a hardware profile, or path of a TOML file; its widths are intersected with yours.

    Raises:
        CaptureError: the model cannot be captured.
        PlacementError: a scope fits nothing, a width is outside 2–8, rules contradict within a group or with
            the profile, or nothing is left to quantize.
    """
    wide = check_widths(weight_bit_widths, "placement.weight_bit_widths")
    active = check_widths(activation_bit_widths, "placement.activation_bit_widths")
    hardware = load_profile(profile)
    graph = capture(model, example_inputs)
    leaves = {name for name, module in model.named_modules() if isinstance(module, LEAF_TYPES)}
    recurrent = recurrent_weights(model)
    folded = {name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
    reads = read_graph(graph, leaves, recurrent, folded)
    everything = list(reads.readings)
    _keep_needed_pools(graph, reads, hardware)
    _drop_unreachable(model, example_inputs, reads)
    found = make_points(model, reads)
    if not reads.weights:
        besides = f" Recurrent weights stay float: {', '.join(recurrent)}." if recurrent else ""
        raise PlacementError(
            f"{type(model).__name__} has no weight of a Conv, ConvTranspose, Linear or Embedding that its "
            f"forward reads; there is nothing to quantize.{besides}"
        )
    wanted = {"target_scopes": target_scopes, "pins": pins or (), "overrides": overrides or ()}
    asked = [(f"placement.{key}", scope) for key, scopes in wanted.items() for scope in scopes]
    ignored = refuse_recurrent(recurrent, found.every.values(), asked, ignored_scopes)
    rules = WidthRules(wide, active, read_overrides(pins or {}, overrides or {}, found.every), hardware)
    found.every = select(found.every, target_scopes, ignored)
    points = of_kind(found, rules)
    groups, pairs = make_groups(found, points, rules)
    check_placement(found, points, hardware)
    ordered = {name: tuple(sorted(allowed)) for name, allowed in pairs.items()}
    floating = {reading.root for reading in everything if reading not in reads.readings}
    tensors = live_tensors(graph, reads, floating, points)
    return QuantizerSetup(
        points, groups, ordered, tuple(recurrent), tensors, stored=stored_tensors(model, points)
    )


def _keep_needed_pools(graph: CapturedGraph, reads: Reads, profile: Profile) -> None:
    """Average pools read a quantized tensor only where the profile wants the result of a layer quantized."""
    wanted = {
        output: use.parameter
        for use in reads.weights.values()
        for kind, output in zip(use.kinds, use.outputs, strict=True)
        if profile.rules[kind].output
    }
    makers = {reading.root: producer_of(graph, reading.root) for reading in reads.readings}
    reads.readings = [r for r in reads.readings if r.kind != "pool" or makers[r.root] in wanted]
    served = {makers[reading.root] for reading in reads.readings}
    floating = sorted({parameter for output, parameter in wanted.items() if output not in served})
    if floating:
        warnings.warn(
            f"the profile '{profile.name}' needs quantized results, but nothing that a quantizer reaches "
            f"reads those of {', '.join(floating)}: they stay float.",
            stacklevel=3,
        )


def _drop_unreachable(model: nn.Module, example_inputs: tuple[Any, ...], reads: Reads) -> None:
    """Take off `reads` what the eager model cannot serve: calls inside composite functions."""
    tap = CallTap({})
    handles = tap_calls(model, tap)
    try:
        with frozen_eval(model), torch.no_grad():
            model(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    hidden = {key for key, count in reads.counts.items() if tap.seen[key] != count}
    sites = {r.site for r in reads.readings if (r.site.module, r.site.name or r.site.role) in hidden}
    for owner, kind in sorted({(site.module, site.name or site.role) for site in sites}):
        what = "additions" if kind == "add" else f"'{kind}' calls"
        warnings.warn(
            f"the {what} of '{owner or type(model).__name__}' are executed inside a composite function "
            f"and stay float",
            stacklevel=3,
        )
    reads.additions = [a for a in reads.additions if (a.owner, "add") not in hidden]
    reads.readings = [r for r in reads.readings if r.site not in sites]
    for use in reads.weights.values():
        use.inputs = ["" if s in sites else root for s, root in zip(use.sites, use.inputs, strict=True)]
