"""The exact optimum of HAWQ's Ω under NNCF's compression ratio R, in its liberal and its strict mode.

Weights and the activations that feed them fall into connected components. Within one, the combinations of
widths that the mode admits are listed (`Candidate`); across components they add up, so that the optimum is a
multiple-choice knapsack over the components' fronts, solved exactly (`solvers.dominance`).

NNCF's rule for activations: one width set is no choice; else an activation takes the least width that it
shares with a weight it feeds; else, with none in common, its least one; one that feeds nothing takes its
widest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from raysearch.errors import BudgetError, PlacementError
from raysearch.records import COST_KINDS, FLOAT_BITS, BitAssignment, Option, QuantizerSetup, Scheme
from raysearch.records.components import connected_components
from raysearch.records.costs.kinds import weighted_macs
from raysearch.search.pareto import pareto_front
from raysearch.search.solvers.dominance import solve_below
from raysearch.search.solvers.knapsack import lagrange

RatioMode = Literal["liberal", "strict"]
SLACK = 1e-9
"""Relative slack of R ≥ target, so that a ratio of integers does not miss a rounded decimal."""


@dataclass(frozen=True)
class _Component:
    """Groups that are tied through the activations which feed weights; activations may be none."""

    weights: tuple[str, ...]
    activations: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """Widths of all groups of a component.

    Attributes:
        cost: Σ MACs·max(w, a).
        omega: Σ Ω of the weights' options.
        bits: group → width.
    """

    cost: int
    omega: float
    bits: Mapping[str, int]


@dataclass(frozen=True)
class _Rule:
    """What weights must do for an activation to take `bits`.

    Attributes:
        activation: its group.
        bits: the width it takes.
        feeds: groups of the weights that it feeds.
        forbidden: widths that none of them may have.
        is_required: whether one of them must have the width `bits`.
    """

    activation: str
    bits: int
    feeds: frozenset[str]
    forbidden: frozenset[int]
    is_required: bool


def check_ratio(setup: QuantizerSetup, target: float, mode: RatioMode = "liberal") -> None:
    """Refuse a compression ratio that no assignment reaches; costs no forward.

    Args:
        setup: groups, widths, MACs.
        target: least R.
        mode: "liberal" or "strict".

    Raises:
        BudgetError: states the feasible interval.
        PlacementError: in strict mode, a group has no width that all its members admit.
    """
    candidates = _candidates(setup, {}, mode)
    total = COST_KINDS["effective"].formula(setup).dividend
    if not total:
        raise BudgetError("the compression ratio weights layers by their MACs, and this setup holds none.")
    least = sum(min(candidate.cost for candidate in component) for component in candidates)
    most = sum(max(candidate.cost for candidate in component) for component in candidates)
    if not target > 0 or target * (1 - SLACK) * least > total:
        raise BudgetError(
            f"the compression ratio {target} cannot be met; feasible with the admissible widths: "
            f"{total / most:.4g} to {total / least:.4g}. Lower the ratio or admit lower widths ('bits')."
        )


def solve_ratio(
    setup: QuantizerSetup,
    omegas: Mapping[Option, float],
    target: float,
    mode: RatioMode = "liberal",
) -> BitAssignment:
    """The assignment of least Ω = Σ omega with R ≥ target.

    Activation widths follow the weights. Liberal, for an activation with widths A that feeds weights of
    widths W: the only one if |A| = 1, else min(A ∩ W), else min(A); one that feeds no weight takes its
    widest. Strict: one common width for the activation and all weights it feeds.

    Args:
        setup: groups, widths, MACs.
        omegas: Ω of each weight option (group id, width).
        target: least R.
        mode: "liberal" or "strict".

    Raises:
        BudgetError: no assignment reaches the target.
        PlacementError: strict mode finds a group without a common width.
    """
    check_ratio(setup, target, mode)
    best = _best_schemes(setup, omegas)
    least: dict[Option, float] = {}
    for name, schemes in best.items():
        for width, scheme in schemes.items():
            least[name, Scheme(width)] = omegas.get((name, scheme), 0.0)
    fronts = []
    for candidates in _candidates(setup, least, mode):
        fronts.append(pareto_front(candidates, lambda candidate: (candidate.cost, candidate.omega)))
    use_at_target = COST_KINDS["effective"].formula(setup).use_at(target * (1 - SLACK))
    bits: dict[str, int] = {}
    for front, index in zip(fronts, _least_omega(fronts, int(use_at_target)), strict=True):
        bits.update(front[index].bits)
    return BitAssignment({name: best[name][bits[name]] for name in setup.groups})


def _best_schemes(setup: QuantizerSetup, omegas: Mapping[Option, float]) -> dict[str, dict[int, Scheme]]:
    """Group → width → its scheme of least Ω; R knows widths alone, so no other of that width is better."""
    best: dict[str, dict[int, Scheme]] = {}
    for name, group in setup.groups.items():
        descending = sorted(group.schemes, key=lambda scheme: -omegas.get((name, scheme), 0.0))
        best[name] = {scheme.num_bits: scheme for scheme in descending}
    return best


def _least_omega(fronts: Sequence[Sequence[Candidate]], capacity: int) -> list[int]:
    """One candidate a front, by index: least Σ Ω with Σ cost ≤ capacity; exact."""
    shape = len(fronts), max(map(len, fronts))
    costs = np.zeros(shape, dtype=np.int64)
    omegas = np.zeros(shape)
    valid = np.zeros(shape, dtype=bool)
    for row, front in enumerate(fronts):
        costs[row, : len(front)] = [candidate.cost for candidate in front]
        omegas[row, : len(front)] = [candidate.omega for candidate in front]
        valid[row, : len(front)] = True
    # Any feasible solution bounds the optimum; those at Lagrangian prices are mostly close to it.
    known_omega = lagrange(omegas, costs, valid, capacity).feasible_cost
    no_limit = 2**62
    solution = solve_below(costs, valid, capacity, omegas, known_omega, max_partial=no_limit)
    chosen: list[int] = solution.choices.tolist()
    return chosen


def _components(setup: QuantizerSetup) -> list[_Component]:
    """The connected components of weight and activation groups, in group order."""
    group_of = {point: group.id for group in setup.groups.values() for point in group.points}
    weights = setup.of_kind("weight").items()
    links = [(group_of[n], group_of[p.input_point]) for n, p in weights if p.input_point in group_of]
    components = []
    for members in connected_components(setup.groups, links):
        kinds = {name: setup.group_kind(name) for name in members}
        components.append(
            _Component(
                weights=tuple(name for name in members if kinds[name] == "weight"),
                activations=tuple(name for name in members if kinds[name] == "activation"),
            )
        )
    return components


def _candidates(setup: QuantizerSetup, omegas: Mapping[Option, float], mode: str) -> list[list[Candidate]]:
    """The candidates of each component; none is without one."""
    list_candidates = _strict_candidates if mode == "strict" else _liberal_candidates
    lists = []
    for component in _components(setup):
        candidates = list_candidates(setup, component, omegas)
        if not candidates:
            names = (*component.weights, *component.activations)
            widths = ", ".join(f"{name!r} ({setup.groups[name].bit_widths})" for name in names)
            raise PlacementError(
                f"strict mode wants one width for {widths}, and they have none in common; admit one, or use "
                "the liberal mode."
            )
        lists.append(candidates)
    return lists


def _strict_candidates(
    setup: QuantizerSetup, component: _Component, omegas: Mapping[Option, float]
) -> list[Candidate]:
    """Every width that all groups of the component admit; none when they have none in common."""
    names = (*component.weights, *component.activations)
    common = set(setup.groups[names[0]].bit_widths)
    for name in names:
        common &= set(setup.groups[name].bit_widths)
    candidates = []
    for width in sorted(common):
        bits = dict.fromkeys(names, width)
        if setup.broken_pairs(bits):
            continue
        inputs = dict.fromkeys(component.activations, width)
        cost = sum(_group_cost(setup, weight, width, inputs) for weight in component.weights)
        omega = sum(omegas.get((weight, Scheme(width)), 0.0) for weight in component.weights)
        candidates.append(Candidate(cost, omega, bits))
    return candidates


def _liberal_candidates(
    setup: QuantizerSetup, component: _Component, omegas: Mapping[Option, float]
) -> list[Candidate]:
    """Every combination that no other of the same activation widths beats in both cost and Ω.

    The activations' widths are fixed in turn; then the costs of the weights add up, and the weights have to
    be such that each activation takes that width.
    """
    rules_of = [_rules(setup, component, name) for name in component.activations]
    candidates: list[Candidate] = []
    for rules in product(*rules_of):
        candidates.extend(_combine(setup, component, omegas, rules))
    return candidates


def _group_cost(setup: QuantizerSetup, group: str, width: int, inputs: Mapping[str, int]) -> int:
    """Σ MACs·max(w, a) over the weights of a group; an activation that is not in `inputs` counts 32 bits."""
    group_of = {point: name for name in inputs for point in setup.groups[name].points}
    cost = 0
    for name in setup.groups[group].points:
        point = setup.points[name]
        input_width = inputs.get(group_of.get(point.input_point, ""), FLOAT_BITS)
        cost += weighted_macs(point, width, input_width)
    return cost


def _rules(setup: QuantizerSetup, component: _Component, activation: str) -> Iterator[_Rule]:
    """The widths that an activation can take, and what of the weights leads to each."""
    group = setup.groups[activation]
    widths = group.bit_widths
    members = set(group.points)
    feeds = frozenset(
        weight
        for weight in component.weights
        if any(setup.points[point].input_point in members for point in setup.groups[weight].points)
    )
    if len(widths) == 1 or not feeds:
        yield _Rule(activation, widths[-1], feeds, frozenset(), False)
        return
    for bits in widths:
        lower = frozenset(width for width in widths if width < bits)
        yield _Rule(activation, bits, feeds, lower, True)
    # No weight has a width in common with it: it takes its least one.
    yield _Rule(activation, widths[0], feeds, frozenset(widths), False)


def _combine(
    setup: QuantizerSetup, component: _Component, omegas: Mapping[Option, float], rules: Sequence[_Rule]
) -> list[Candidate]:
    """The undominated widths of the weights under which every rule holds.

    Weight groups are added one by one; partial combinations are kept by the set of rules that are met so far,
    as a bit mask, since only those of the same set can stand for each other.
    """
    inputs = {rule.activation: rule.bits for rule in rules}
    required = sum(1 << index for index, rule in enumerate(rules) if rule.is_required)
    partial: dict[int, list[Candidate]] = {0: [Candidate(0, 0.0, dict(inputs))]}
    for group in component.weights:
        own = [(index, rule) for index, rule in enumerate(rules) if group in rule.feeds]
        grown: dict[int, list[Candidate]] = {}
        for width in setup.groups[group].bit_widths:
            is_forbidden = any(width in rule.forbidden for _, rule in own)
            if is_forbidden or setup.broken_pairs({**inputs, group: width}):
                continue
            met = sum(1 << index for index, rule in own if rule.is_required and rule.bits == width)
            cost = _group_cost(setup, group, width, inputs)
            omega = omegas.get((group, Scheme(width)), 0.0)
            for mask, candidates in partial.items():
                into = grown.setdefault(mask | met, [])
                for candidate in candidates:
                    bits = {**candidate.bits, group: width}
                    into.append(Candidate(candidate.cost + cost, candidate.omega + omega, bits))
        partial = {mask: _undominated(candidates) for mask, candidates in grown.items()}
    return partial.get(required, [])


def _undominated(candidates: list[Candidate]) -> list[Candidate]:
    front = pareto_front(candidates, lambda candidate: (candidate.cost, candidate.omega))
    # The costliest one is kept as well: the greatest cost tells the low end of the feasible ratios.
    costliest = max(candidates, key=lambda candidate: candidate.cost)
    return front if front[-1].cost == costliest.cost else [*front, costliest]
