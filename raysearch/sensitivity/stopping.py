"""When a trace is known well enough: decided per weight, on complete rounds of draws only.

So the decision depends on nothing but the draws themselves: not on timing, the number of workers, or where a
resumed run was cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from raysearch.records import QuantizerSetup, Trace

FLOOR = 1e-3
"""Share of the largest trace below which a trace needs no better absolute error than one at this share."""

NORMAL_975 = 1.959964


def rounds(draw_chunk: int, max_draws: int) -> Iterator[list[tuple[int, int]]]:
    """The chunks (first draw, last draw + 1) of each round.

    A round adds a quarter of the chunks so far, at least one: few barriers, few looks at the data, and at
    most a quarter of the draws too many.

    Example:
        >>> [len(chunks) for chunks in rounds(8, 100)]
        [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1]
        >>> list(rounds(8, 12))
        [[(0, 8)], [(8, 12)]]
    """
    chunks = [(lo, min(lo + draw_chunk, max_draws)) for lo in range(0, max_draws, draw_chunk)]
    done = 0
    while done < len(chunks):
        size = max(1, done // 4)
        yield chunks[done : done + size]
        done += size


def unfinished(
    traces: Mapping[str, Trace], setup: QuantizerSetup, relative_error: float, num_shards: int
) -> set[str]:
    """Weights whose probe error is still too large.

    Let T_l = Tr(H_ll) be the whole trace of a weight and σ_l its standard error over probes. A weight is
    finished when f·σ_l ≤ relative_error · max(|T_l|, 1e-3 · max_k |T_k|), where f ≥ 1 widens an error known
    from few draws (`widening`). The floor is sound for what traces are used for: HAWQ's
    Ω_l = t_l ‖Q(W_l) − W_l‖² is T_l times the mean squared rounding error of one weight, so a layer below the
    floor adds less than a thousandth of Ω wherever rounding errors are alike.

    Args:
        traces: estimates of all weights, with their probe errors and numbers of draws.
        setup: for the weights' sizes.
        relative_error: largest standard error over |trace| of a finished weight.
        num_shards: shards that each estimate is a mean over.
    """
    sizes = {name: setup.points[name].num_elements for name in traces}
    totals = {name: abs(trace.value) * sizes[name] for name, trace in traces.items()}
    floor = FLOOR * max(totals.values(), default=0.0)
    names = set()
    for name, trace in traces.items():
        stderr = trace.probe_stderr * sizes[name]
        allowed = relative_error * max(totals[name], floor)
        degrees = num_shards * (trace.num_draws - 1)
        # What was finished stays so: its draws are over, though the floor may have moved since.
        if not trace.converged and not _is_small(stderr, allowed, degrees):
            names.add(name)
    return names


def _is_small(stderr: float, allowed: float, degrees: int) -> bool:
    # One draw a shard says nothing of its error, whatever the formula gives.
    return degrees > 0 and widening(degrees) * stderr <= allowed


def widening(degrees: int) -> float:
    """t₀.₉₇₅ with some degrees of freedom over its limit 1.96, by the Cornish-Fisher expansion.

    Without it a weight whose few draws happen to lie close together would stop at once. Within 1 % of the
    exact quotient from 3 degrees on (Abramowitz and Stegun, 26.7.5).

    Example:
        >>> round(widening(7), 3), round(widening(1000), 3)
        (1.206, 1.001)
    """
    z = NORMAL_975
    n = degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return 1.0 + (terms[0] / n + terms[1] / n**2 + terms[2] / n**3) / z


def trace_warnings(traces: Mapping[str, Trace], relative_error: float) -> list[str]:
    """What a user should know of measured traces: weights without curvature, and errors that stayed large."""
    texts = [
        f"the loss does not depend on '{name}', or only linearly; its trace is 0"
        for name in unreached(traces)
    ]
    late = [trace for trace in traces.values() if not trace.converged]
    if late:
        late.sort(key=_relative, reverse=True)
        worst = ", ".join(f"'{t.point}' ({_relative(t):.0%})" for t in late[:3])
        texts.append(
            f"{len(late)} of {len(traces)} traces did not reach a standard error of {relative_error:.0%} "
            f"over probes in {late[0].num_draws} draws; the worst: {worst}. Allow more draws or a larger "
            f"error, or take another estimator."
        )
    return texts


def unreached(traces: Mapping[str, Trace]) -> list[str]:
    """Weights whose trace is exactly 0 with no probe error: the loss has no curvature in them."""
    return [name for name, trace in traces.items() if trace.value == 0.0 and trace.probe_stderr == 0.0]


def _relative(trace: Trace) -> float:
    return trace.probe_stderr / abs(trace.value) if trace.value else math.inf
