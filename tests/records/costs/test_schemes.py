"""Costs of schemes: what codes, scales and zero points take, and that no cost trusts their order."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from raysearch.errors import BudgetError
from raysearch.records import (
    BitAssignment,
    CostModel,
    Granularity,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    Site,
    check_achievable,
    limiting_groups,
    parse_budget,
    parse_budgets,
)
from tests.support.scheme_setups import scheme_setups

DTYPES = {"F32": np.float32, "I64": np.int64}


def one_layer(*schemes: str) -> QuantizerSetup:
    point = QuantizationPoint(
        "w", "weight", (Site("w", "parameter", "weight"),), (10, 64), Granularity.per_channel(), 640
    )
    return QuantizerSetup({"w": point}, {"w": QuantizerGroup("w", ("w",), schemes)})


@pytest.mark.parametrize(
    ("scheme", "num_bytes"),
    [
        ("4", 320 + 4 * 10),
        ("4g16", 320 + 4 * 40),
        ("4g16a", 320 + 5 * 40),
        ("3g32a", 240 + 5 * 20),
        ("8a", 640 + 5 * 10),
    ],
)
def test_scales_and_zero_points_count_but_for_the_mean_width(scheme, num_bytes):
    model = CostModel(one_layer(scheme))
    costs = model.costs(BitAssignment({"w": scheme}))
    assert costs["size"] == num_bytes == model.weight_bytes(BitAssignment({"w": scheme}))
    assert costs["bpw"] == 8 * num_bytes / 640
    assert costs["avg_bits"] == int(scheme[0])


def test_the_extremes_are_those_of_the_cost_and_not_of_the_widths():
    model = CostModel(one_layer("2g4a", "3g16a", "4"))
    # 2 + 40/4, 3 + 40/16 and 4 + 32/64 bits.
    assert (model.lowest["bpw"], model.highest["bpw"]) == (4.5, 12)
    assert (model.lowest["avg_bits"], model.highest["avg_bits"]) == (2, 4)
    assert model.lowest["size"] == 360
    assert "'w' (4 bits, 100.0%)" in limiting_groups(model, "bpw")
    assert "'w' (the scheme 2g4a, 100.0%)" in limiting_groups(model, "avg_bits")
    check_achievable(parse_budgets(["bpw<=4.5"]), model)
    with pytest.raises(BudgetError, match=r"bpw is 4\.5\. Achievable: 4\.5 to 12"):
        check_achievable(parse_budgets(["bpw<=4.4"]), model)


def test_a_budget_of_bits_stored_is_a_number_of_bits():
    budget = parse_budget("bpw<=4.5")
    assert (budget.kind, budget.limit, budget.relative) == ("bpw", 4.5, False)
    for text in ("bpw>=4", "bpw<=40%", "bpw<=4B"):
        with pytest.raises(BudgetError):
            parse_budget(text)


def every_assignment(setup: QuantizerSetup) -> list[BitAssignment]:
    lists = [group.schemes for group in setup.groups.values()]
    return [BitAssignment(dict(zip(setup.groups, schemes, strict=True))) for schemes in product(*lists)]


@given(scheme_setups(max_layers=2))
@settings(max_examples=40)
def test_extremes_are_what_some_assignment_costs(setup):
    model = CostModel(setup)
    costs = [model.costs(assignment) for assignment in every_assignment(setup)]
    for kind in model.kinds:
        values = [cost[kind] for cost in costs]
        assert (model.lowest[kind], model.highest[kind]) == (min(values), max(values))


@given(scheme_setups(), st.data())
@settings(max_examples=60)
def test_the_size_is_that_of_the_file_written(setup, data):
    schemes = {g: data.draw(st.sampled_from(group.schemes)) for g, group in setup.groups.items()}
    assignment = BitAssignment(schemes)
    tensors: dict[str, np.ndarray] = {}
    for tensor in setup.stored or ():
        tensors[tensor.name] = np.zeros(tensor.shape, DTYPES[tensor.dtype])
    for name, point in setup.of_kind("weight").items():
        scheme = schemes[setup.group_of(name).id]
        effective = point.at(scheme)
        num_codes = (point.num_elements * scheme.num_bits + 7) // 8
        tensors[f"{name}.packed"] = np.zeros(num_codes, np.uint8)
        tensors[f"{name}.scale"] = np.zeros(effective.num_scales, np.float32)
        if effective.num_zero_points:
            tensors[f"{name}.zero_point"] = np.zeros(effective.num_zero_points, np.int8)
    weight_bytes = sum(array.nbytes for name, array in tensors.items() if name.startswith("w"))
    model = CostModel(setup)
    assert model.weight_bytes(assignment) == weight_bytes
    size = model.costs(assignment)["size"]
    if setup.stored is None:
        assert size == weight_bytes
    else:
        # At most the padding and some digits of offsets less.
        written = len(save(tensors, metadata={"format": "pt"}))
        assert 0 <= size - written <= 7 + 4 * len(tensors)
