"""The exact optimum of HAWQ's Ω under NNCF's compression ratio R, in its liberal and its strict mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from raysearch.errors import BudgetError, PlacementError
from raysearch.records import BitAssignment, Option, QuantizerSetup
from raysearch.search.coupled import Choice, components, liberal_choices, strict_choices
from raysearch.search.problem.space import FloatArray, IntArray

RatioMode = Literal["liberal", "strict"]
SLACK = 1e-9
"""Relative slack of R ≥ target, so that a ratio of integers does not miss a rounded decimal."""


def choose(ratios: Sequence[float], omegas: Sequence[float], target: float) -> int:
    """Index of the least Ω among the candidates with R ≥ target; the first one on a tie.

    Raises:
        BudgetError: no candidate reaches the target.

    Example:
        >>> choose([1, 2, 3], [1, 2, 1], 3)
        2
    """
    feasible = [i for i, ratio in enumerate(ratios) if ratio >= target * (1 - SLACK)]
    if not feasible:
        raise BudgetError(f"no candidate reaches the compression ratio {target}; the most is {max(ratios)}.")
    return min(feasible, key=lambda i: omegas[i])


def check_ratio(setup: QuantizerSetup, target: float, mode: RatioMode = "liberal") -> None:
    """Refuse a compression ratio that no assignment reaches; costs no forward.

    Raises:
        BudgetError: states the feasible interval.
        PlacementError: in strict mode, a group has no width that all its members admit.
    """
    lists = _choices(setup, {}, mode)
    total = 8 * sum(point.macs for point in setup.of_kind("weight").values())
    if not total:
        raise BudgetError("the compression ratio weights layers by their MACs, and this setup holds none.")
    least = sum(min(c.cost for c in choices) for choices in lists)
    most = sum(max(c.cost for c in choices) for choices in lists)
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
    total = 8 * sum(point.macs for point in setup.of_kind("weight").values())
    lists = [_front(choices) for choices in _choices(setup, omegas, mode)]
    capacity = int(total / (target * (1 - SLACK)))
    picked = _least([np.array([c.cost for c in x]) for x in lists], [_omegas(x) for x in lists], capacity)
    bits: dict[str, int] = {}
    for choices, index in zip(lists, picked, strict=True):
        bits.update(choices[index].bits)
    return BitAssignment({name: bits[name] for name in setup.groups})


def _choices(setup: QuantizerSetup, omegas: Mapping[Option, float], mode: str) -> list[list[Choice]]:
    found = []
    for component in components(setup):
        choices = (strict_choices if mode == "strict" else liberal_choices)(setup, component, omegas)
        if not choices:
            widths = {g: setup.groups[g].bit_widths for g in (*component.weights, *component.activations)}
            raise PlacementError(
                f"strict mode wants one width for {', '.join(f'{g!r} ({w})' for g, w in widths.items())}, "
                f"and they have none in common; admit one, or use the liberal mode."
            )
        found.append(choices)
    return found


def _omegas(choices: Sequence[Choice]) -> FloatArray:
    return np.array([c.omega for c in choices], dtype=np.float64)


def _front(choices: Sequence[Choice]) -> list[Choice]:
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.cost, c.omega)):
        if not kept or choice.omega < kept[-1].omega:
            kept.append(choice)
    return kept


def _least(costs: Sequence[IntArray], omegas: Sequence[FloatArray], capacity: int) -> list[int]:
    """One option a list, least Σ omega with Σ cost ≤ capacity; exact.

    Partial solutions that another beats in both sums are dropped (Nemhauser and Ullmann 1969), and so are
    those whose Lagrangian bound exceeds a known solution.
    """
    price, known = _price(costs, omegas, capacity)
    bounds = [float((o + price * c).min()) for c, o in zip(costs, omegas, strict=True)]
    least = [int(c.min()) for c in costs]
    rest = np.concatenate([np.cumsum(bounds[::-1])[::-1], [0.0]])
    lowest = np.concatenate([np.cumsum(least[::-1])[::-1], [0]]).astype(np.int64)
    used, value = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[IntArray, IntArray]] = []
    for row, (cost, omega) in enumerate(zip(costs, omegas, strict=True)):
        new_used = (used[:, None] + cost).ravel()
        new_value = (value[:, None] + omega).ravel()
        bound = new_value + rest[row + 1] - price * (capacity - new_used)
        fits = new_used + lowest[row + 1] <= capacity
        index = np.flatnonzero(fits & (bound <= known + 1e-9 * (abs(known) + 1e-300)))
        index = index[np.lexsort((new_value[index], new_used[index]))]
        ordered = new_value[index]
        before = np.concatenate([[np.inf], np.minimum.accumulate(ordered)[:-1]])
        index = index[ordered < before]
        used, value = new_used[index], new_value[index]
        steps.append((index // len(cost), index % len(cost)))
    at = choose((capacity / np.maximum(used, 1)).tolist(), value.tolist(), 1.0)
    picks: list[int] = []
    for parent, option in reversed(steps):
        picks.append(int(option[at]))
        at = int(parent[at])
    return picks[::-1]


def _price(costs: Sequence[IntArray], omegas: Sequence[FloatArray], capacity: int) -> tuple[float, float]:
    """A price of cost near the best Lagrange multiplier, and the Ω of the solution it gives."""

    def solve(price: float) -> tuple[int, float]:
        picks = [int(np.argmin(o + price * c)) for c, o in zip(costs, omegas, strict=True)]
        used = sum(int(c[i]) for c, i in zip(costs, picks, strict=True))
        return used, sum(float(o[i]) for o, i in zip(omegas, picks, strict=True))

    cheapest = sum(float(o[int(np.argmin(c))]) for c, o in zip(costs, omegas, strict=True))
    low, high, known = 0.0, 1.0, cheapest
    used, value = solve(0.0)
    if used <= capacity:
        return 0.0, value
    for _ in range(200):
        used, value = solve(high)
        if used <= capacity:
            known = min(known, value)
            break
        high *= 4
    for _ in range(80):
        middle = (low + high) / 2
        used, value = solve(middle)
        if used <= capacity:
            high, known = middle, min(known, value)
        else:
            low = middle
    return high, known
