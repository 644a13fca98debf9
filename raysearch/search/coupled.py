"""Weights and the activations that feed them: which widths they may take together, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from raysearch.records import Option, QuantizerSetup
from raysearch.records.setup import FLOAT_BITS


@dataclass(frozen=True)
class Component:
    """Groups that are tied through the activations which feed weights; activations may be none."""

    weights: tuple[str, ...]
    activations: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """Widths of all groups of a component: Σ MACs·max(w, a), Ω, and the widths."""

    cost: int
    omega: float
    bits: Mapping[str, int]


def components(setup: QuantizerSetup) -> list[Component]:
    """The connected components of weight and activation groups, in group order."""
    parent = {name: name for name in setup.groups}
    group_of = {p: g.id for g in setup.groups.values() for p in g.points}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for name, point in setup.of_kind("weight").items():
        if point.input_point in group_of:
            parent[find(group_of[name])] = find(group_of[point.input_point])
    members: dict[str, list[str]] = {}
    for name in setup.groups:
        members.setdefault(find(name), []).append(name)
    return [
        Component(
            tuple(n for n in names if setup.group_kind(n) == "weight"),
            tuple(n for n in names if setup.group_kind(n) == "activation"),
        )
        for names in members.values()
    ]


def strict_choices(
    setup: QuantizerSetup, component: Component, omegas: Mapping[Option, float]
) -> list[Choice]:
    """Every width that all groups of the component admit; none when they have none in common."""
    names = (*component.weights, *component.activations)
    common = sorted(set.intersection(*(set(setup.groups[n].bit_widths) for n in names)))
    active = component.activations
    return [
        Choice(
            sum(weight_cost(setup, w, bits, dict.fromkeys(active, bits)) for w in component.weights),
            sum(omegas.get((w, bits), 0.0) for w in component.weights),
            dict.fromkeys(names, bits),
        )
        for bits in common
        if not setup.broken_pairs(dict.fromkeys(names, bits))
    ]


def liberal_choices(
    setup: QuantizerSetup, component: Component, omegas: Mapping[Option, float]
) -> list[Choice]:
    """Every combination that no other of the same activation widths beats in both cost and Ω.

    The activations' widths are fixed in turn; then the costs of the weights add up, and what is left to
    hold is that the weights make each activation take that width.
    """
    found: list[Choice] = []
    for rules in product(*(_rules(setup, component, name) for name in component.activations)):
        active = {rule.activation: rule.bits for rule in rules}
        found.extend(_combine(setup, component, omegas, active, rules))
    return found


def weight_cost(setup: QuantizerSetup, group: str, bits: int, active: Mapping[str, int]) -> int:
    """Σ MACs·max(w, a) over the weights of a group; an activation that is not there counts 32 bits."""
    cost = 0
    group_of = {p: name for name in active for p in setup.groups[name].points}
    for name in setup.groups[group].points:
        point = setup.points[name]
        feeding = active.get(group_of.get(point.input_point, ""), FLOAT_BITS)
        cost += point.macs * max(bits, feeding)
    return cost


@dataclass(frozen=True)
class _Rule:
    """What weights must do for an activation to take `bits`: avoid some widths, and one of them be `bits`."""

    activation: str
    bits: int
    feeds: frozenset[str]
    forbidden: frozenset[int]
    needed: bool


def _rules(setup: QuantizerSetup, component: Component, activation: str) -> Iterator[_Rule]:
    group = setup.groups[activation]
    widths = group.bit_widths
    feeds = frozenset(
        w
        for w in component.weights
        if any(setup.points[p].input_point in group.points for p in setup.groups[w].points)
    )
    if len(widths) == 1 or not feeds:
        yield _Rule(activation, widths[-1], feeds, frozenset(), False)
        return
    for bits in widths:
        yield _Rule(activation, bits, feeds, frozenset(b for b in widths if b < bits), True)
    yield _Rule(activation, widths[0], feeds, frozenset(widths), False)


def _combine(
    setup: QuantizerSetup,
    component: Component,
    omegas: Mapping[Option, float],
    active: Mapping[str, int],
    rules: Sequence[_Rule],
) -> list[Choice]:
    wanted = sum(1 << i for i, rule in enumerate(rules) if rule.needed)
    partial: dict[int, list[Choice]] = {0: [Choice(0, 0.0, dict(active))]}
    for group in component.weights:
        own = [(i, rule) for i, rule in enumerate(rules) if group in rule.feeds]
        grown: dict[int, list[Choice]] = {}
        for bits in setup.groups[group].bit_widths:
            if any(bits in rule.forbidden for _, rule in own) or setup.broken_pairs({**active, group: bits}):
                continue
            met = sum(1 << i for i, rule in own if rule.needed and rule.bits == bits)
            cost, omega = weight_cost(setup, group, bits, active), omegas.get((group, bits), 0.0)
            for mask, choices in partial.items():
                grown.setdefault(mask | met, []).extend(
                    Choice(c.cost + cost, c.omega + omega, {**c.bits, group: bits}) for c in choices
                )
        partial = {mask: _undominated(choices) for mask, choices in grown.items()}
    return partial.get(wanted, [])


def _undominated(choices: list[Choice]) -> list[Choice]:
    # The dearest one is kept as well: the greatest cost tells the low end of the feasible ratios.
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.cost, c.omega)):
        if not kept or choice.omega < kept[-1].omega:
            kept.append(choice)
    dearest = max(choices, key=lambda c: c.cost)
    return kept if kept[-1].cost == dearest.cost else [*kept, dearest]
