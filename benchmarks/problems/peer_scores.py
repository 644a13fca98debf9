"""What other tools for language models score an option by, with the weights that a run deploys.

- `higgs`: llm-compressor (entrypoints/higgs): the mean squared weight error, times log(1 + size), times
  1 + depth/20, times 1.2 for attention or 0.9 for a multilayer perceptron. No data.
- `first_order`: AutoRound's AutoScheme (auto_scheme/delta_loss.py): Σ |gradient ⊙ (W − Q(W))|, the gradient
  of the next-token loss with all weights at that scheme.

Either tool then takes the assignment of least sum within its budget.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raysearch.controller import create_controller
from raysearch.records import (
    BitAssignment,
    Budget,
    CostModel,
    Option,
    QuantizationPoint,
    QuantizerSetup,
    RangeTable,
    Scheme,
    SensitivityTable,
)
from raysearch.search import BudgetSolver, OptionSpace, make_limits


def least(setup: QuantizerSetup, budgets: Sequence[Budget], scores: dict[Option, float]) -> BitAssignment:
    """The assignment of least Σ score within the budgets, exactly."""
    space = OptionSpace(setup)
    costs = np.zeros(space.valid.shape)
    costs[space.valid] = [scores[option] for option in setup.options()]
    solver = BudgetSolver(space, make_limits(space, budgets, CostModel(setup)))
    return space.assignment(solver.exact(costs).choices)


def higgs(setup: QuantizerSetup, table: SensitivityTable) -> dict[Option, float]:
    """Option → score."""
    scores = {}
    for (group, scheme), effect in table.effects.items():
        points = setup.groups[group].points
        sizes = [math.prod(setup.points[point].shape) for point in points]
        mean = effect.perturbation / sum(sizes)
        scores[group, scheme] = mean * sum(map(importance, points, sizes))
    return scores


def importance(name: str, size: int) -> float:
    """What llm-compressor multiplies a layer's mean squared error with."""
    depth = re.search(r"layers\.(\d+)\.", name)
    kind = 1.2 if "attn" in name else 0.9
    return math.log(size + 1) * (1 + 0.05 * int(depth.group(1) if depth else 0)) * kind


def first_order(
    model: nn.Module, setup: QuantizerSetup, ranges: RangeTable, batches: Sequence[Tensor], scheme: Scheme
) -> dict[str, float]:
    """Quantizer id → score at a scheme; a forward and a backward of every batch.

    Args:
        model: the float model.
        setup: its quantizers.
        ranges: with the codes that a run deploys.
        batches: token ids.
        scheme: of all weights; one that lacks it takes its nearest.
    """
    points = setup.of_kind("weight")
    weights = deployed_weights(model, setup, ranges, BitAssignment.uniform(setup, scheme))
    scored = copy_to_quantize(model, setup).requires_grad_(False)
    parameters = {}
    for name, point in points.items():
        parameters[name] = weight_of(scored, point)
        parameters[name].copy_(weights[name])
        parameters[name].requires_grad_(True)
    totals = dict.fromkeys(points, 0.0)
    for ids in batches:
        next_token_loss(scored(ids).logits, ids).mean().backward()
        for name, point in points.items():
            moved = weight_of(model, point).detach() - weights[name]
            gradient = parameters[name].grad
            assert gradient is not None
            totals[name] += float((gradient * moved).abs().sum())
            parameters[name].grad = None
    print(f"first-order scores of {scheme}", flush=True)
    return totals


def copy_to_quantize(model: nn.Module, setup: QuantizerSetup) -> nn.Module:
    """A copy with quantizable weights of its own; the others, of which an embedding is most, are shared."""
    changed = {id(weight_of(model, point)) for point in setup.of_kind("weight").values()}
    return copy.deepcopy(model, {id(p): p for p in model.parameters() if id(p) not in changed})


def deployed_weights(
    model: nn.Module, setup: QuantizerSetup, ranges: RangeTable, assignment: BitAssignment
) -> dict[str, Tensor]:
    """Quantizer id → the weight as it is deployed."""
    quantized = copy_to_quantize(model, setup)
    create_controller(quantized, setup, ranges, assignment)
    with torch.no_grad():
        return {name: weight_of(quantized, point).clone() for name, point in setup.of_kind("weight").items()}


def weight_of(model: nn.Module, point: QuantizationPoint) -> Tensor:
    """The weight as the model's layer reads it."""
    site = point.sites[0]
    weight: Tensor = getattr(model.get_submodule(site.module), site.name)
    return weight


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy of every token after the first, [windows, tokens − 1]."""
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return losses.reshape(len(ids), -1)
