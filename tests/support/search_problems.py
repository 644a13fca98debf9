"""Small synthetic setups and sensitivity tables; the measured value is a known function of the widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from raysearch.config import load_config
from raysearch.records import (
    BitAssignment,
    Budget,
    Granularity,
    LatencyProfile,
    LiveTensor,
    OptionEffect,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    SearchResult,
    SensitivityTable,
    Site,
    Trace,
)
from raysearch.search import PlainEvaluator, Race, TrialLog, search_assignment


def make_setup(
    num_layers: int = 4,
    weight_bits: tuple[int, ...] = (2, 4, 8),
    activation_bits: tuple[int, ...] = (8,),
    seed: int = 0,
) -> QuantizerSetup:
    """A chain of layers with random sizes; the first layer's input is float."""
    rng = np.random.default_rng(seed)
    points: dict[str, QuantizationPoint] = {}
    groups: dict[str, QuantizerGroup] = {}
    for layer in range(num_layers):
        name, fed = f"layer{layer}", ""
        if layer:
            fed = f"{name}.input"
            shape = (int(rng.integers(1, 40)),)
            points[fed] = QuantizationPoint(fed, "activation", (Site(name, "input"),), shape)
            groups[fed] = QuantizerGroup(fed, (fed,), activation_bits)
        weight = f"{name}.weight"
        points[weight] = QuantizationPoint(
            weight,
            "weight",
            (Site(name, "parameter", "weight"),),
            (int(rng.integers(1, 30)), int(rng.integers(1, 30))),
            granularity=Granularity.per_channel(0),
            macs=int(rng.integers(1, 10_000)),
            input_point=fed,
        )
        groups[weight] = QuantizerGroup(weight, (weight,), weight_bits)
    return QuantizerSetup(points, groups)


def make_table(
    setup: QuantizerSetup, seed: int = 0, coupling: float = 0.5, *, is_rounded: bool = False
) -> SensitivityTable:
    """Random responses that shrink by 4 a bit, with a Gram matrix of rank 12 and correlated rows.

    With `is_rounded` there are second moments too, of other proportions than Ω.
    """
    rng = np.random.default_rng(seed)
    options = setup.options()
    common, per_group = rng.standard_normal(12), {g: rng.standard_normal(12) for g in setup.groups}
    scale = {g: float(np.exp(rng.normal(0, 0.8))) for g in setup.groups}
    delta = np.array(
        [
            scale[g]
            * 2.0**-scheme.num_bits
            * (per_group[g] + coupling * common + 0.3 * rng.standard_normal(12))
            for g, scheme in options
        ]
    )
    gram = delta @ delta.T
    effects = {}
    for index, (g, scheme) in enumerate(options):
        kind, response = setup.group_kind(g), 0.5 * float(gram[index, index])
        error = 4.0**-scheme.num_bits * float(rng.uniform(0.5, 2)) if kind == "weight" else 0.0
        second_moment = error * scale[g] if is_rounded else math.nan
        effects[g, scheme] = OptionEffect(
            g,
            scheme,
            kind,
            error,
            error * scale[g] ** 2,
            response,
            response * float(rng.uniform(0.8, 1.2)),
            second_moment,
        )
    weights = setup.of_kind("weight")
    traces = {p: Trace(p, float(rng.uniform(0.1, 2)), 0.05, 0.01, 0.049, 8, 64, "ggn", True) for p in weights}
    return SensitivityTable(traces, effects, gram, f"table-{seed}")


def make_hardware_setup(num_layers: int = 3, seed: int = 0, with_pairs: bool = True) -> QuantizerSetup:
    """Layers that may share an input, forbidden width pairs, measured times, and tensors that are kept.

    Times are not monotone: some kernels are slower at fewer bits. The pairs may forbid all groups at their
    lowest widths, and always allow all at their widest.
    """
    rng = np.random.default_rng(seed)
    plain = make_setup(num_layers, (2, 4, 8), (4, 8), seed)
    points = dict(plain.points)
    inputs = [p for p in points if points[p].kind == "activation"]
    weights = [p for p in points if points[p].kind == "weight"]
    for name in weights[2:]:
        if rng.random() < 0.4:  # reads what an earlier layer reads
            points[name] = replace(points[name], input_point=str(rng.choice(inputs)))
    every = [(w, a) for w in (2, 4, 8) for a in (4, 8)]
    pairs = {}
    for name in weights if with_pairs else ():
        if points[name].input_point and rng.random() < 0.7:
            pairs[name] = tuple(p for p in every if p == (8, 8) or rng.random() < 0.5)
    levels = ("float", "8", "4", "w2a4", "w4a8")
    seconds = {n: {lv: float(rng.integers(1, 2000)) * 1e-6 for lv in levels} for n in weights}
    tensors = []
    for step in range(num_layers + 1):
        point = str(rng.choice([*inputs, ""])) if inputs else ""
        last = step + int(rng.integers(0, 3))
        tensors.append(LiveTensor(f"t{step}", int(rng.integers(1, 90)), point, step, last))
    profile = LatencyProfile(seconds, 1e-4)
    return QuantizerSetup(points, plain.groups, pairs, tensors=tuple(tensors), latency=profile)


class Divergence:
    """Half the quadratic form, bent and disturbed by fixed pseudo-random terms: what gets 'measured'."""

    def __init__(self, table: SensitivityTable, disturbance: float = 0.0, seed: int = 0) -> None:
        self.table, self.calls = table, 0
        self.index = {option: i for i, option in enumerate(table.effects)}
        rng = np.random.default_rng(seed)
        self.factors = np.exp(disturbance * rng.standard_normal(len(self.index)))

    def value(self, assignment: BitAssignment) -> float:
        rows = [self.index[option] for option in assignment.schemes.items()]
        factor = self.factors[rows]
        form = factor @ self.table.gram[np.ix_(rows, rows)] @ factor
        return float(np.log1p(0.5 * form))

    def __call__(self, batch: Mapping[int, BitAssignment]) -> dict[int, float]:
        self.calls += len(batch)
        return {number: self.value(assignment) for number, assignment in batch.items()}


def every_assignment(setup: QuantizerSetup) -> list[BitAssignment]:
    """All of them, for brute force."""
    lists = [group.schemes for group in setup.groups.values()]
    return [BitAssignment(dict(zip(setup.groups, schemes, strict=True))) for schemes in product(*lists)]


def search(
    table: SensitivityTable,
    setup: QuantizerSetup,
    budgets: Sequence[Budget],
    evaluate: Any,
    **options: Any,
) -> SearchResult:
    """`search_assignment` with the settings spelled out: a function of values, or a race, and keywords.

    `seed`, `previous` and `on_batch` are arguments; the rest is settings, `enqueue` as assignments and
    `maximize` instead of a direction.
    """
    seed = options.pop("seed", 0)
    log = TrialLog(options.pop("previous", ()), options.pop("on_batch", None))
    if options.pop("maximize", False):
        options["direction"] = "maximize"
    if "enqueue" in options:
        options["enqueue"] = [dict(assignment.bits) for assignment in options["enqueue"]]
    settings = load_config(overrides={"search": options}).search
    evaluator = evaluate if isinstance(evaluate, Race) else PlainEvaluator(evaluate)
    return search_assignment(table, setup, budgets, evaluator, settings, seed=seed, log=log)
