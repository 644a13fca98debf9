"""Chains of layers of random sizes, random sensitivity tables of them, and assignments of known value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from raysearch.records import (
    BitAssignment,
    Granularity,
    LatencyProfile,
    LiveTensor,
    OptionEffect,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    SensitivityTable,
    Site,
    Trace,
)

RANK = 12
WIDTH_PAIRS = tuple(product((2, 4, 8), (4, 8)))
LEVELS = ("float", "8", "4", "w2a4", "w4a8")


def layer_chain(
    num_layers: int, weight_bits: tuple[int, ...], activation_bits: tuple[int, ...], seed: int
) -> QuantizerSetup:
    """A chain of layers, each weight and each input a group of its own; the first input is float.

    Args:
        num_layers: how many weights; there is one activation less.
        weight_bits: the widths that each weight may take.
        activation_bits: the widths that each activation may take.
        seed: of the sizes and operations of the layers.
    """
    rng = np.random.default_rng(seed)
    points: list[QuantizationPoint] = []
    for layer in range(num_layers):
        name, source = f"layer{layer}", ""
        if layer:
            source = f"{name}.input"
            width = int(rng.integers(1, 40))
            points.append(QuantizationPoint(source, "activation", (Site(name, "input"),), (width,)))
        site = Site(name, "parameter", "weight")
        shape = (int(rng.integers(1, 30)), int(rng.integers(1, 30)))
        macs = int(rng.integers(1, 10_000))
        rows = Granularity.per_channel(0)
        points.append(QuantizationPoint(f"{name}.weight", "weight", (site,), shape, rows, macs, source))
    widths = {"weight": weight_bits, "activation": activation_bits}
    groups = {p.id: QuantizerGroup(p.id, (p.id,), widths[p.kind]) for p in points}
    return QuantizerSetup({p.id: p for p in points}, groups)


def hardware_layers(num_layers: int, seed: int, has_pairs: bool) -> QuantizerSetup:
    """Layers on a made-up device: shared inputs, forbidden width pairs, measured times, live tensors.

    Times are not monotone: some kernels are slower at fewer bits. The pairs may forbid all groups at their
    lowest widths, and always allow all at their widest.
    """
    rng = np.random.default_rng(seed)
    chain = layer_chain(num_layers, (2, 4, 8), (4, 8), seed)
    points = dict(chain.points)
    inputs = [p for p in points if points[p].kind == "activation"]
    weights = [p for p in points if points[p].kind == "weight"]
    for name in weights[2:]:
        if rng.random() < 0.4:  # reads what an earlier layer reads
            points[name] = replace(points[name], input_point=str(rng.choice(inputs)))
    pairs = {}
    for name in weights if has_pairs else ():
        if points[name].input_point and rng.random() < 0.7:
            pairs[name] = tuple(p for p in WIDTH_PAIRS if p == (8, 8) or rng.random() < 0.5)
    seconds = {}
    for name in weights:
        seconds[name] = {level: float(rng.integers(1, 2000)) * 1e-6 for level in LEVELS}
    tensors = []
    for step in range(num_layers + 1):
        point = str(rng.choice([*inputs, ""])) if inputs else ""
        last_step = step + int(rng.integers(0, 3))
        tensors.append(LiveTensor(f"t{step}", int(rng.integers(1, 90)), point, step, last_step))
    profile = LatencyProfile(seconds, 1e-4)
    return QuantizerSetup(points, chain.groups, pairs, tensors=tuple(tensors), latency=profile)


def random_table(setup: QuantizerSetup, seed: int = 0, coupling: float = 0.5) -> SensitivityTable:
    """Responses that shrink by 4 a bit, with a Gram matrix of rank 12.

    Args:
        setup: whose options get a row each.
        seed: of all draws.
        coupling: how much of one direction, common to all groups, is in every perturbation.
    """
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(RANK)
    directions = {group: rng.standard_normal(RANK) for group in setup.groups}
    scales = {group: float(np.exp(rng.normal(0, 0.8))) for group in setup.groups}
    rows = []
    for group, scheme in setup.options():
        direction = directions[group] + coupling * common + 0.3 * rng.standard_normal(RANK)
        rows.append(scales[group] * 2.0**-scheme.num_bits * direction)
    perturbations = np.array(rows)
    gram = perturbations @ perturbations.T
    effects = {}
    for (group, scheme), square in zip(setup.options(), gram.diagonal().tolist(), strict=True):
        kind, response = setup.group_kind(group), 0.5 * square
        error = 4.0**-scheme.num_bits * float(rng.uniform(0.5, 2)) if kind == "weight" else 0.0
        trace_term = error * scales[group] ** 2
        measured = response * float(rng.uniform(0.8, 1.2))
        effects[group, scheme] = OptionEffect(group, scheme, kind, error, trace_term, response, measured)
    traces = {}
    for point in setup.of_kind("weight"):
        traces[point] = Trace(point, float(rng.uniform(0.1, 2)), 0.05, 0.01, 0.049, 8, 64, "ggn", True)
    return SensitivityTable(traces, effects, gram, f"table-{seed}")


class DisturbedForm:
    """Half the table's quadratic form, bent and disturbed by fixed random factors: what gets 'measured'."""

    def __init__(self, table: SensitivityTable, disturbance: float) -> None:
        assert isinstance(table.gram, np.ndarray)
        self._gram = table.gram
        self._rows = {option: row for row, option in enumerate(table.effects)}
        draws = np.random.default_rng(0).standard_normal(len(self._rows))
        self._factors = np.exp(disturbance * draws)

    def value(self, assignment: BitAssignment) -> float:
        """log(1 + ½ fᵀGf) over the rows of the assignment's options."""
        rows = [self._rows[option] for option in assignment.schemes.items()]
        factors = self._factors[rows]
        return float(np.log1p(0.5 * (factors @ self._gram[np.ix_(rows, rows)] @ factors)))


def every_assignment(setup: QuantizerSetup) -> Iterator[BitAssignment]:
    """All that the groups' widths allow, forbidden pairs among them."""
    for widths in product(*(group.bit_widths for group in setup.groups.values())):
        yield BitAssignment(dict(zip(setup.groups, widths, strict=True)))
