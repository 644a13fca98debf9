"""NNCF's compression ratio: the reference's golden values, and the exact optimum against brute force."""

import itertools
import math

import numpy as np
import pytest

from raysearch.errors import BudgetError, PlacementError
from raysearch.records import (
    BitAssignment,
    Granularity,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    Site,
    compression_ratio,
)
from raysearch.search import check_ratio, solve_ratio


def make_setup(layers, weight_widths=(2, 4, 8), activation_widths=(8,), shared=()):
    """layers: name → MACs, each with an input of its own; `shared`: layer → layer whose input it reads."""
    shared = dict(shared)
    points, groups = {}, {}
    for name, macs in layers.items():
        source = f"{shared.get(name, name)}.input"
        site = (Site(name, "parameter", "weight"),)
        points[f"{name}.weight"] = QuantizationPoint(
            f"{name}.weight",
            "weight",
            site,
            (2, 2),
            Granularity(0),
            macs,
            "" if source == "none.input" else source,
        )
        groups[f"{name}.weight"] = QuantizerGroup(f"{name}.weight", (f"{name}.weight",), tuple(weight_widths))
    for name in layers:
        if name not in shared:
            points[f"{name}.input"] = QuantizationPoint(
                f"{name}.input", "activation", (Site(name, "input"),), (2,)
            )
            groups[f"{name}.input"] = QuantizerGroup(
                f"{name}.input", (f"{name}.input",), tuple(activation_widths)
            )
    return QuantizerSetup(points, groups)


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ((4, 4, 4, 4), 2), ((4, 4, 4, 8), 1.25), ((4, 4, 8, 8), 1.25), ((4, 8, 4, 4), 1.4285714),
        ((8, 4, 8, 4), 1),
    ],
)  # fmt: skip
def test_golden_26_to_30_the_ratio(widths, expected):
    setup = make_setup({"conv": 36, "fc": 54})
    names = ("conv.input", "conv.weight", "fc.input", "fc.weight")
    found = compression_ratio(setup, BitAssignment(dict(zip(names, widths, strict=True))))
    assert found == pytest.approx(expected, rel=1e-7)


def test_golden_31_the_ratio_of_quantized_layers_only():
    setup = make_setup({"conv": 36})
    assert compression_ratio(setup, BitAssignment({"conv.input": 4, "conv.weight": 4})) == 2
    assert compression_ratio(setup, BitAssignment({"conv.input": 4, "conv.weight": 8})) == 1


def test_a_float_partner_counts_32_bits_and_no_macs_have_no_ratio():
    assert (
        compression_ratio(make_setup({"a": 5}, shared={"a": "none"}), BitAssignment({"a.weight": 8})) == 0.25
    )
    assert math.isnan(compression_ratio(make_setup({"a": 0}), BitAssignment({})))


@pytest.mark.parametrize(
    ("num_layers", "widths", "count"), [(4, (2, 4, 8), 15), (6, (4, 8), 7), (5, (2, 4, 6, 8), 56)]
)
def test_golden_32_to_34_the_exact_optimum_is_never_worse_than_the_monotone_sequences(
    num_layers, widths, count
):
    """What the reference enumerates; its count is golden, and its best must not beat ours."""
    rng = np.random.default_rng(count)
    layers = {f"l{i}": int(m) for i, m in enumerate(rng.integers(1, 50, num_layers))}
    setup = make_setup(layers, widths, widths)
    traces = rng.uniform(0.1, 5, num_layers)
    noise = {b: 4.0**-b for b in widths}
    scale = rng.uniform(0.1, 9, num_layers)
    omegas = {(f"l{i}.weight", b): traces[i] * scale[i] * noise[b] for i in range(num_layers) for b in widths}
    order = np.argsort(traces)
    sequences = list(itertools.combinations_with_replacement(widths, num_layers))
    assert len(sequences) == count
    target, reached = 1.3, []
    for sequence in sequences:
        bits = {f"l{order[i]}": b for i, b in enumerate(sequence)}
        both = BitAssignment({f"{n}.{k}": b for n, b in bits.items() for k in ("weight", "input")})
        if compression_ratio(setup, both) >= target:
            reached.append(sum(omegas[f"{n}.weight", b] for n, b in bits.items()))
    ours = solve_ratio(setup, omegas, target)
    assert compression_ratio(setup, ours) >= target
    assert sum(omegas.get(o, 0.0) for o in ours.bits.items()) <= min(reached) * (1 + 1e-12)


def choose(ratios, omegas, target):
    """The reference's choice among listed candidates: least Ω with R ≥ target, the first one on a tie."""
    feasible = [index for index, ratio in enumerate(ratios) if ratio >= target * (1 - 1e-9)]
    if not feasible:
        raise BudgetError(f"no candidate reaches the ratio {target}; the most is {max(ratios)}.")
    return min(feasible, key=lambda index: omegas[index])


RATIOS, OMEGAS = [1, 2, 2, 3, 4, 6], [5, 1, 6, 3, 2, 4]


@pytest.mark.parametrize(("target", "index"), [(1, 1), (2, 1), (3, 4), (4, 4), (5, 5), (6, 5)])
def test_golden_35_and_36_the_choice(target, index):
    assert choose(RATIOS, OMEGAS, target) == index


def test_golden_37_a_tie_never_violates_the_ratio():
    assert choose([1, 2, 3], [1, 2, 1], 3) == 2
    with pytest.raises(BudgetError, match="the most is 3"):
        choose([1, 2, 3], [1, 2, 1], 4)


def liberal(setup, weights):
    """Activation widths by the reference's rule, in its own words."""
    bits = dict(weights)
    for name, group in setup.groups.items():
        if setup.group_kind(name) == "weight":
            continue
        fed = {
            weights[g.id]
            for g in setup.groups.values()
            for p in g.points
            if setup.points[p].input_point in group.points
        }
        allowed = set(group.bit_widths)
        if len(allowed) == 1 or not fed:
            bits[name] = max(allowed)
        else:
            bits[name] = min(allowed & fed or allowed)
    return BitAssignment(bits)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("activations", [(8,), (4, 8), (3, 8), (2, 4, 8)])
def test_liberal_mode_is_the_optimum_of_all_combinations(seed, activations):
    rng = np.random.default_rng(seed)
    names = ["a", "b", "c", "d", "e"]
    shared = {"b": "a", "e": "d"} if seed % 2 else {"b": "a", "c": "a", "e": "none"}
    setup = make_setup(
        dict(zip(names, map(int, rng.integers(1, 40, 5)), strict=True)), (2, 4, 8), activations, shared
    )
    weights = [g for g in setup.groups if setup.group_kind(g) == "weight"]
    omegas = {(g, b): float(rng.uniform(0, 1)) for g in weights for b in (2, 4, 8)}
    every = [
        liberal(setup, dict(zip(weights, bits, strict=True)))
        for bits in itertools.product((2, 4, 8), repeat=5)
    ]
    ratios = [compression_ratio(setup, a) for a in every]
    values = [sum(omegas.get(o, 0.0) for o in a.bits.items()) for a in every]
    for target in np.linspace(min(ratios), max(ratios), 6):
        found = solve_ratio(setup, omegas, float(target))
        assert found == liberal(setup, {g: found.bits[g] for g in weights})
        assert compression_ratio(setup, found) >= target * (1 - 1e-9)
        best = values[choose(ratios, values, float(target))]
        assert sum(omegas.get(o, 0.0) for o in found.bits.items()) == pytest.approx(best, rel=1e-12)


def test_strict_mode_gives_a_weight_and_its_activation_one_width():
    setup = make_setup({"a": 3, "b": 5, "c": 7}, (2, 4, 8), (4, 8), {"b": "a"})
    omegas = {(f"{n}.weight", b): v * 2.0**-b for n, v in (("a", 1), ("b", 9), ("c", 2)) for b in (2, 4, 8)}
    found = solve_ratio(setup, omegas, 1.5, "strict").bits
    assert found["a.weight"] == found["b.weight"] == found["a.input"]
    assert found["c.weight"] == found["c.input"]
    assert compression_ratio(setup, BitAssignment(found)) >= 1.5
    with pytest.raises(PlacementError, match=r"'a\.weight'.*none in common"):
        check_ratio(make_setup({"a": 3}, (2, 4), (8,)), 1, "strict")


def test_a_ratio_that_cannot_be_met_states_the_interval():
    with pytest.raises(BudgetError, match=r"2\.5 cannot be met; feasible with the admissible widths: 1 to 2"):
        check_ratio(make_setup({"a": 3}, (4, 8), (4, 8)), 2.5)
    with pytest.raises(BudgetError, match="holds none"):
        check_ratio(make_setup({"a": 0}), 1)


def test_many_layers_are_solved_exactly_and_fast():
    """54 layers at five widths: 424 270 sequences for the reference."""
    rng = np.random.default_rng(0)
    layers = {f"l{i}": int(m) for i, m in enumerate(rng.integers(10**5, 10**8, 54))}
    setup = make_setup(layers, (2, 3, 4, 6, 8), (2, 3, 4, 6, 8))
    omegas = {
        (f"{n}.weight", b): float(rng.lognormal(0, 2)) * 4.0**-b for n in layers for b in (2, 3, 4, 6, 8)
    }
    found = solve_ratio(setup, omegas, 1.8)
    assert compression_ratio(setup, found) >= 1.8
