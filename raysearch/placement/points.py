"""Quantization points from what the graph reads: one per weight, one per tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

from torch import nn

from raysearch.placement.fusion import Fusion
from raysearch.placement.graph import GraphReads, TensorRead, WeightUse
from raysearch.records import Granularity, QuantizationPoint, Site
from raysearch.records.components import connected_components
from raysearch.records.scale_format import SCALE_FORMATS


@dataclass(frozen=True)
class PointTable:
    """All points of a model, and what reads them.

    Attributes:
        points: id → point, weights first, in graph order.
        kinds: id → kinds of the operations that read it.
        partners: pairs of activation ids that must share a width: one addition, or one weight, reads both.
        fusions: weights that the target fuses.
    """

    points: Mapping[str, QuantizationPoint]
    kinds: Mapping[str, set[str]]
    partners: tuple[tuple[str, str], ...]
    fusions: tuple[Fusion, ...] = ()


def make_points(model: nn.Module, reads: GraphReads) -> PointTable:
    """Points of all weights and of all tensors that are read at a site."""
    classes = _tensor_classes(reads)
    activations = _activation_points(reads.tensors, classes)
    points: dict[str, QuantizationPoint] = {}
    kinds: dict[str, set[str]] = {}
    partners: list[tuple[str, str]] = []
    for use in reads.weights.values():
        sources = list(dict.fromkeys(classes.get(each.root, "") for each in use.inputs))
        source = ""
        if sources and "" not in sources:
            # A weight that reads several tensors has one input width, since they share theirs.
            source = activations[sources[0]].id
            partners.extend((source, activations[other].id) for other in sources[1:])
        points[use.parameter] = _weight_point(model, use, source)
        kinds[use.parameter] = set(use.kinds)
    for point in activations.values():
        points[point.id] = point
    for read in reads.tensors:
        kinds.setdefault(activations[classes[read.root]].id, set()).add(read.kind)
    for addition in reads.additions:
        a, b = (activations[classes[root]].id for root in addition.roots)
        partners.append((a, b))
    return PointTable(points, kinds, tuple(partners))


def _weight_point(model: nn.Module, use: WeightUse, input_point: str) -> QuantizationPoint:
    parameter = model.get_parameter(use.parameter)
    # By module, not by name: a module that is registered twice is one place with two names.
    sites = tuple(
        Site(path, "parameter", name)
        for path, module in model.named_modules()
        for name, value in module.named_parameters(recurse=False, remove_duplicate=False)
        if value is parameter
    )
    return QuantizationPoint(
        id=use.parameter,
        kind="weight",
        sites=sites,
        shape=tuple(parameter.shape),
        granularity=Granularity.per_channel(use.axis),
        macs=use.macs,
        input_point=input_point,
    )


def with_scale_formats(
    points: Mapping[str, QuantizationPoint], model: nn.Module, scale_dtype: str
) -> dict[str, QuantizationPoint]:
    """The points with the form in which the scales of weights are stored.

    Args:
        points: id → point.
        model: that they are of.
        scale_dtype: one of `SCALE_FORMATS`, or "model": the type of each weight, float32 of any other.
    """
    result: dict[str, QuantizationPoint] = {}
    for name, point in points.items():
        scale_format = scale_dtype if point.kind == "weight" else "float32"
        if scale_format == "model":
            own = str(model.get_parameter(name).dtype).removeprefix("torch.")
            scale_format = own if own in SCALE_FORMATS else "float32"
        result[name] = replace(point, scale_format=scale_format)
    return result


def _tensor_classes(reads: GraphReads) -> dict[str, str]:
    """Root tensor → representative: tensors that must share a quantizer.

    Those are the ones that one site reads in turn, and the parts of a concatenation that is read: a part has
    the scale of the whole, so that the concatenation is one of codes.
    """
    roots = dict.fromkeys(read.root for read in reads.tensors)
    pairs: list[tuple[str, str]] = []
    first_at: dict[Site, str] = {}
    for read in reads.tensors:
        pairs.append((first_at.setdefault(read.site, read.root), read.root))
    # Last first: a part may be a concatenation of its own.
    for concatenation, parts in reversed(reads.concatenations):
        if concatenation in roots:
            roots.update(dict.fromkeys(parts))
            pairs.extend((concatenation, part) for part in parts)
    return {name: members[0] for members in connected_components(roots, pairs) for name in members}


def _activation_points(
    reads: Iterable[TensorRead], classes: Mapping[str, str]
) -> dict[str, QuantizationPoint]:
    sites: dict[str, list[Site]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for read in reads:
        name = classes[read.root]
        listed = sites.setdefault(name, [])
        if read.site not in listed:
            listed.append(read.site)
        # The point has the largest shape: a concatenation holds its parts, and a pooled tensor is a part.
        if name not in shapes or prod(read.shape) > prod(shapes[name]):
            shapes[name] = read.shape
    return {
        name: QuantizationPoint(_site_id(places[0]), "activation", tuple(places), shapes[name])
        for name, places in sites.items()
    }


def _site_id(site: Site) -> str:
    tail = "input"
    if site.role != "input":
        tail = f"{site.name or 'add'}{site.occurrence}.input{site.argument}"
    return f"{site.module}.{tail}" if site.module else tail
