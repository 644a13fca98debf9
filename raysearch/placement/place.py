"""Place quantizers: points, groups and allowed widths, from the captured graph and the scope rules."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from raysearch.errors import PlacementError
from raysearch.evaluation.forward import frozen_eval
from raysearch.placement.additions import AdditionTap, tap_additions
from raysearch.placement.capture import capture
from raysearch.placement.graph import Reading, Reads, WeightUse, read_graph
from raysearch.placement.scopes import check_widths, match, pinned_widths
from raysearch.records import QuantizationPoint, QuantizerGroup, QuantizerSetup, Site

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
) -> QuantizerSetup:
    """Decide where quantizers go in a model.

    Weights: every parameter that Conv1d/2d/3d, ConvTranspose1d/2d/3d, Linear or Embedding operations read,
    once even if it is tied or its module runs often; one scale per output channel (axis 1 of transposed
    convolutions, rows of an embedding). Activations: every tensor that such a module or a residual addition
    reads; one quantizer serves all readers of one tensor. The operands of an addition share a width.

    Cost: one capture and one forward of the example inputs. The model is left as it was.

    Args:
        model: the float model.
        example_inputs: positional arguments of its forward; dimension 0 is the batch.
        weight_bit_widths: widths a weight may take.
        activation_bit_widths: widths an activation may take.
        pins: name or glob of a layer or quantizer → its only width.
        ignored_scopes: names or globs that stay float.

    Raises:
        CaptureError: the model cannot be captured.
        PlacementError: a name fits nothing, a width is outside 2–8, pins contradict within a group, or
            nothing is left to quantize.
    """
    wide = check_widths(weight_bit_widths, "placement.weight_bit_widths")
    active = check_widths(activation_bit_widths, "placement.activation_bit_widths")
    graph = capture(model, example_inputs)
    leaves = {name for name, module in model.named_modules() if isinstance(module, LEAF_TYPES)}
    reads = read_graph(graph, leaves)
    readings = _reachable(model, example_inputs, reads)
    classes = _tensor_classes(readings)
    activations = _activation_points(readings, classes)
    weights = _weight_points(model, reads.weights, classes, activations)
    points = {**weights, **{point.id: point for point in activations.values()}}
    if not weights:
        raise PlacementError(
            f"{type(model).__name__} has no weight of a Conv, ConvTranspose, Linear or Embedding that its "
            f"forward reads; there is nothing to quantize."
        )
    pinned = pinned_widths(pins or {}, points)
    points = _without_ignored(points, ignored_scopes)
    partners = [
        (activations[classes[a]].id, activations[classes[b]].id)
        for a, b in (addition.roots for addition in reads.additions)
    ]
    return QuantizerSetup(points, _groups(points, partners, pinned, wide, active))


def _reachable(model: nn.Module, example_inputs: tuple[Any, ...], reads: Reads) -> list[Reading]:
    """Readings that the eager model can serve: additions inside composite functions are not seen there.

    Those additions are taken off `reads` as well.
    """
    tap = AdditionTap({})
    handles = tap_additions(model, set(reads.addition_counts), tap)
    try:
        with frozen_eval(model), torch.no_grad():
            model(*example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    hidden = {owner for owner, count in reads.addition_counts.items() if tap.seen[owner] != count}
    for owner in sorted(hidden):
        warnings.warn(
            f"the additions of '{owner or type(model).__name__}' are executed inside a composite function "
            f"and stay float",
            stacklevel=3,
        )
    reads.additions = [a for a in reads.additions if a.owner not in hidden]
    return [r for r in reads.readings if not (r.site.role == "add" and r.site.module in hidden)]


def _tensor_classes(readings: Iterable[Reading]) -> dict[str, str]:
    """Root tensor → representative: tensors that one site reads in turn share a quantizer."""
    parent: dict[str, str] = {}
    at_site: dict[Site, str] = {}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for reading in readings:
        parent.setdefault(reading.root, reading.root)
        first = at_site.setdefault(reading.site, reading.root)
        if find(first) != find(reading.root):
            parent[find(reading.root)] = find(first)
    return {name: find(name) for name in parent}


def _activation_points(
    readings: Iterable[Reading], classes: Mapping[str, str]
) -> dict[str, QuantizationPoint]:
    sites: dict[str, list[Site]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for reading in readings:
        name = classes[reading.root]
        known = sites.setdefault(name, [])
        if reading.site not in known:
            known.append(reading.site)
        shapes.setdefault(name, reading.shape)
    return {
        name: QuantizationPoint(_site_id(found[0]), "activation", tuple(found), shapes[name])
        for name, found in sites.items()
    }


def _site_id(site: Site) -> str:
    tail = "input" if site.role == "input" else f"add{site.occurrence}.input{site.argument}"
    return f"{site.module}.{tail}" if site.module else tail


def _weight_points(
    model: nn.Module,
    uses: Mapping[str, WeightUse],
    classes: Mapping[str, str],
    activations: Mapping[str, QuantizationPoint],
) -> dict[str, QuantizationPoint]:
    points: dict[str, QuantizationPoint] = {}
    for use in uses.values():
        parameter = model.get_parameter(use.parameter)
        # By module, not by name: a module that is registered twice is one place with two names.
        sites = tuple(
            Site(path, "parameter", name)
            for path, module in model.named_modules()
            for name, value in module.named_parameters(recurse=False, remove_duplicate=False)
            if value is parameter
        )
        feeding = {classes.get(root, "") for root in use.inputs}
        source = feeding.pop() if len(feeding) == 1 else ""
        points[use.parameter] = QuantizationPoint(
            id=use.parameter,
            kind="weight",
            sites=sites,
            shape=tuple(parameter.shape),
            axis=use.axis,
            macs=use.macs,
            input_point=activations[source].id if source else "",
        )
    return points


def _without_ignored(
    points: dict[str, QuantizationPoint], ignored: Sequence[str]
) -> dict[str, QuantizationPoint]:
    drop = {p.id for pattern in ignored for p in match(pattern, points.values(), "placement.ignored_scopes")}
    kept = {name: point for name, point in points.items() if name not in drop}
    if not any(point.kind == "weight" for point in kept.values()):
        raise PlacementError("placement.ignored_scopes leaves no weight to quantize; name fewer layers.")
    return {
        name: replace(point, input_point="") if point.input_point in drop else point
        for name, point in kept.items()
    }


def _groups(
    points: Mapping[str, QuantizationPoint],
    partners: Iterable[tuple[str, str]],
    pinned: Mapping[str, int],
    wide: tuple[int, ...],
    active: tuple[int, ...],
) -> dict[str, QuantizerGroup]:
    member_of = {name: [name] for name in points}
    for a, b in partners:
        if a in points and b in points and member_of[a] is not member_of[b]:
            merged = sorted({*member_of[a], *member_of[b]}, key=list(points).index)
            for name in merged:
                member_of[name] = merged
    groups: dict[str, QuantizerGroup] = {}
    for name, point in points.items():
        members = member_of[name]
        if members[0] != name:
            continue
        pins = {m: pinned[m] for m in members if m in pinned}
        if len(set(pins.values())) > 1:
            listing = ", ".join(f"{m} to {b}" for m, b in pins.items())
            raise PlacementError(f"placement.pins sets {listing}, but these must share one bit-width.")
        widths = (next(iter(pins.values())),) if pins else (wide if point.kind == "weight" else active)
        groups[name] = QuantizerGroup(name, tuple(members), widths)
    return groups
