"""Quantization points from what the graph reads: one per weight, one per tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

from torch import nn

from raysearch.placement.graph import Reading, Reads
from raysearch.records import Granularity, QuantizationPoint, Site


@dataclass
class Points:
    """All points of a model, and what reads them.

    Attributes:
        every: id → point, weights first, in graph order.
        kinds: id → kinds of the operations that read it.
        partners: pairs of activation ids that must share a width: one addition, or one weight, reads both.
    """

    every: dict[str, QuantizationPoint] = field(default_factory=dict)
    kinds: dict[str, set[str]] = field(default_factory=dict)
    partners: list[tuple[str, str]] = field(default_factory=list)


def make_points(model: nn.Module, reads: Reads) -> Points:
    """Points of all weights and of all tensors that are read at a site."""
    classes = _tensor_classes(reads)
    activations = _activation_points(reads.readings, classes)
    found = Points()
    for use in reads.weights.values():
        parameter = model.get_parameter(use.parameter)
        # By module, not by name: a module that is registered twice is one place with two names.
        sites = tuple(
            Site(path, "parameter", name)
            for path, module in model.named_modules()
            for name, value in module.named_parameters(recurse=False, remove_duplicate=False)
            if value is parameter
        )
        feeding = list(dict.fromkeys(classes.get(root, "") for root in use.inputs))
        # A weight that reads several tensors has one input width, since they share theirs.
        source = feeding[0] if feeding and "" not in feeding else ""
        if source:
            found.partners.extend((activations[source].id, activations[other].id) for other in feeding[1:])
        found.every[use.parameter] = QuantizationPoint(
            id=use.parameter,
            kind="weight",
            sites=sites,
            shape=tuple(parameter.shape),
            granularity=Granularity.per_channel(use.axis),
            macs=use.macs,
            input_point=activations[source].id if source else "",
        )
        found.kinds[use.parameter] = set(use.kinds)
    for point in activations.values():
        found.every[point.id] = point
    for reading in reads.readings:
        found.kinds.setdefault(activations[classes[reading.root]].id, set()).add(reading.kind)
    for addition in reads.additions:
        a, b = (activations[classes[root]].id for root in addition.roots)
        found.partners.append((a, b))
    return found


def _tensor_classes(reads: Reads) -> dict[str, str]:
    """Root tensor → representative: tensors that must share a quantizer.

    Those are the ones that one site reads in turn, and the parts of a concatenation that is read: a part has
    the scale of the whole, so that the concatenation is one of codes.
    """
    parent: dict[str, str] = {}
    at_site: dict[Site, str] = {}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    def join(a: str, b: str) -> None:
        if find(a) != find(b):
            parent[find(b)] = find(a)

    for reading in reads.readings:
        parent.setdefault(reading.root, reading.root)
        join(at_site.setdefault(reading.site, reading.root), reading.root)
    # Last first: a part may be a concatenation of its own.
    for whole, parts in reversed(reads.concatenations):
        if whole in parent:
            for part in parts:
                parent.setdefault(part, part)
                join(whole, part)
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
        # Of several shapes the largest: a concatenation holds all its parts, a pooled tensor is a part.
        if name not in shapes or prod(reading.shape) > prod(shapes[name]):
            shapes[name] = reading.shape
    return {
        name: QuantizationPoint(_site_id(found[0]), "activation", tuple(found), shapes[name])
        for name, found in sites.items()
    }


def _site_id(site: Site) -> str:
    call = f"{site.name or 'add'}{site.occurrence}."
    tail = "input" if site.role == "input" else f"{call}input{site.argument}"
    return f"{site.module}.{tail}" if site.module else tail
