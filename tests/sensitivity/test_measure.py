"""The whole sensitivity table: the same bits on any pool, and nothing left behind."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import pytest
import torch

from raysearch.calibration import calibrate
from raysearch.cluster.by_value import register_by_value
from raysearch.cluster.pool import LocalPool
from raysearch.cluster.ray_pool import RayPool
from raysearch.config import ClusterConfig, SensitivityConfig
from raysearch.errors import DataError
from raysearch.evaluation import DataSet, WorkerCache
from raysearch.evaluation.model.model_hash import hash_model
from raysearch.records import BitAssignment, SensitivityTable
from raysearch.sensitivity import measure_sensitivity
from raysearch.simulation import Judgement, MeasuredObjective
from tests.support import small_replicas
from tests.support.shuffled_pool import ShuffledPool
from tests.support.small_replicas import make_ranges, make_replica, make_setup

# As a task file is: code that workers have no name for.
register_by_value(small_replicas)

METHOD = {"relative_error": 0.3, "draw_chunk": 4, "option_chunk": 3}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_case(name="conv"):
    replica = make_replica(name)
    setup = make_setup(name, replica, activation_bit_widths=(4, 8))
    return replica, setup, make_ranges(setup, replica)


def bits_of(table):
    """Everything in a table, floats without rounding."""
    return (
        list(table.traces.items()),
        # As text: from Python 3.13 on a record with a NaN equals no other.
        repr(list(table.effects.items())),
        table.gram.tobytes(),
        table.fingerprint,
    )


def measure(setup, ranges, pool):
    return measure_sensitivity(
        setup, ranges, lambda part: pool, {DataSet.CALIBRATION: 3}, SensitivityConfig(**METHOD), seed=11
    )


@pytest.fixture(scope="module")
def local():
    """The case "conv", measured in this process: its setup, ranges and table, and what trials measured."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    replica, setup, ranges = make_case()
    pool = LocalPool(replica)
    table = measure(setup, ranges, pool)
    measured = MeasuredObjective(setup, ranges, pool, Judgement(data=DataSet.CALIBRATION))(
        trials_of(setup), range(3)
    )
    torch.set_num_threads(before)
    return setup, ranges, table, bytes_of(measured)


def trials_of(setup):
    return {0: BitAssignment.uniform(setup, 3), 1: BitAssignment.uniform(setup, 2)}


@pytest.mark.slow
def test_the_order_of_units_changes_nothing(local):
    setup, ranges, table, _ = local
    for seed in range(3):
        fresh, *_ = make_case()
        assert bits_of(measure(setup, ranges, ShuffledPool(LocalPool(fresh), seed))) == bits_of(table)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_actors_changes_nothing(local, num_workers):
    setup, ranges, table, values = local
    fresh, *_ = make_case()
    with contextlib.closing(RayPool(fresh, ClusterConfig(workers=num_workers))) as pool:
        assert ranges_bytes(calibrate(setup, pool, 3)) == ranges_bytes(ranges)
        assert bits_of(measure(setup, ranges, pool)) == bits_of(table)
        measured = MeasuredObjective(setup, ranges, pool, Judgement(data=DataSet.CALIBRATION))(
            trials_of(setup), range(3)
        )
        assert bytes_of(measured) == values


def bytes_of(measured):
    return {(n, s): values.tobytes() for n, shards in measured.items() for s, (values, _) in shards.items()}


def ranges_bytes(ranges):
    return {key: (r.scale.tobytes(), r.zero_point.tobytes(), r.signed) for key, r in ranges.ranges.items()}


def state_of(model):
    """What a stage must leave as it was."""
    return (
        hash_model(model),
        [(name, module.training) for name, module in model.named_modules()],
        [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()],
        [
            len(hooks)
            for m in model.modules()
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._forward_pre_hooks_with_kwargs)
        ],
        [type(module) for module in model.modules()],
    )


@pytest.mark.parametrize("name", ["conv", "attention", "tied"])
def test_the_model_and_the_rng_are_left_as_found(name):
    replica, setup, ranges = make_case(name)
    next(replica.model.parameters()).requires_grad_(False)
    before, rng = state_of(replica.model), torch.get_rng_state()
    measure(setup, ranges, LocalPool(replica))
    assert state_of(replica.model) == before
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_model_is_left_as_found_by_a_failure():
    replica, setup, ranges = make_case()
    replica.shards["calibration"][1][0][0, 0] = float("inf")
    before = state_of(replica.model)
    with pytest.raises(DataError, match="shard 1"):
        measure(setup, ranges, LocalPool(replica))
    assert state_of(replica.model) == before


def test_the_table_joins_its_parts(local):
    setup, _, table, _ = local
    assert list(table.effects) == list(setup.options())
    assert list(table.traces) == list(setup.of_kind("weight"))
    for index, ((group, bits), effect) in enumerate(table.effects.items()):
        assert effect.response == 0.5 * table.gram[index, index]
        assert effect.kind == setup.group_kind(group)
        if effect.kind == "activation":
            assert (effect.perturbation, effect.omega) == (0, 0)
        else:
            trace = table.traces[setup.groups[group].points[0]]
            assert effect.omega == pytest.approx(trace.value * effect.perturbation)
            assert effect.perturbation > table.effects[group, 8].perturbation or bits == 8
    again = SensitivityTable.from_tables(table.traces_table(), table.effects_table(), table.gram_table())
    assert bits_of(again) == bits_of(table)


def test_another_seed_draws_other_probes():
    replica, setup, ranges = make_case("relu")
    first = measure(setup, ranges, LocalPool(replica))
    other = measure_sensitivity(
        setup,
        ranges,
        lambda part: LocalPool(replica),
        {DataSet.CALIBRATION: 3},
        SensitivityConfig(**METHOD),
        seed=12,
    )
    assert first.traces != other.traces
    assert first.effects["0.weight", 2].divergence == other.effects["0.weight", 2].divergence


def test_responses_can_be_of_the_first_shards_alone():
    replica, setup, ranges = make_case("relu")
    pool = LocalPool(replica)
    every = measure(setup, ranges, pool)
    settings = SensitivityConfig(response_shards=1, **METHOD)
    few = measure_sensitivity(setup, ranges, lambda part: pool, {DataSet.CALIBRATION: 3}, settings, seed=11)
    first = measure_sensitivity(setup, ranges, lambda part: pool, {DataSet.CALIBRATION: 1}, settings, seed=11)
    assert few.traces == every.traces
    assert few.gram.tobytes() == first.gram.tobytes() != every.gram.tobytes()


def test_responses_can_be_of_samples_of_their_own():
    replica, setup, ranges = make_case("relu")
    calibration = replica.shards[DataSet.CALIBRATION]
    pool = LocalPool(replica)
    settings = SensitivityConfig(**METHOD)
    expected = measure_sensitivity(
        setup, ranges, lambda part: pool, {DataSet.CALIBRATION: 1}, settings, seed=11
    ).gram
    replica.shards = {DataSet.CALIBRATION: calibration[1:], DataSet.RESPONSES: calibration[:1]}
    num_shards = {DataSet.CALIBRATION: 2, DataSet.RESPONSES: 1}
    fresh = LocalPool(replace(replica, cache=WorkerCache()))
    table = measure_sensitivity(setup, ranges, lambda part: fresh, num_shards, settings, seed=11)
    assert table.gram.tobytes() == expected.tobytes()


def test_a_negative_trace_weighs_nothing():
    replica, setup, ranges = make_case("embedding")
    # A loss that is concave in the logits.
    replica.loss = lambda outputs, batch: -outputs.square().mean()
    table = measure_sensitivity(
        setup,
        ranges,
        lambda part: LocalPool(replica),
        {DataSet.CALIBRATION: 3},
        SensitivityConfig(trace_loss="loss", estimator="hutchinson", **METHOD),
        seed=11,
    )
    assert table.traces["head.weight"].value < 0
    assert all(table.effects["head.weight", bits].omega == 0 for bits in (2, 3, 4, 8))


def test_without_traces_the_rest_of_the_table_is_the_same(local):
    setup, ranges, table, _ = local
    pool = LocalPool(make_replica("conv"))
    settings = SensitivityConfig(**METHOD, estimator="none")
    bare = measure_sensitivity(setup, ranges, lambda part: pool, {DataSet.CALIBRATION: 3}, settings, seed=11)
    assert bare.traces == {}
    assert bare.gram.tobytes() == table.gram.tobytes()
    for option, effect in bare.effects.items():
        assert effect.perturbation == table.effects[option].perturbation
        assert math.isnan(effect.omega) == (effect.kind == "weight")
    again = SensitivityTable.from_tables(bare.traces_table(), bare.effects_table(), bare.gram_table())
    assert again.traces == {}
