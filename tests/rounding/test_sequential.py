"""Sequential rounding: each layer makes up for what the layers before it lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysearch.cluster.pool import LocalPool
from raysearch.config.rounding import RoundingConfig
from raysearch.controller import create_controller
from raysearch.errors import DataError
from raysearch.evaluation import DataSet
from raysearch.records import BitAssignment, RangeTable
from raysearch.records.winner import Winner
from raysearch.rounding import round_sequentially, round_weights
from raysearch.rounding.drift import Deployed, drifts_from, observe_drift, order_of_layers, steps_from
from raysearch.rounding.guided_moments import observe_guided_moments
from raysearch.rounding.problem import gather_inputs
from raysearch.rounding.second_moments import Moment, Moments, Reader
from raysearch.rounding.sequential import moved
from tests.support.shuffled_pool import ShuffledPool
from tests.support.small_replicas import make_ranges, make_replica, make_setup

SETTINGS = RoundingConfig(unit_shards=1, refits=0)
SIZES = (40, 40, 16)


class Case:
    """A small net, rounded, and the assignment that is rounded anew."""

    def __init__(self, name: str, **placement) -> None:
        self.replica = make_replica(name, SIZES)
        self.setup = make_setup(name, self.replica, weight_bit_widths=[2, 8], **placement)
        self.ranges = make_ranges(self.setup, self.replica)
        table = round_weights(self.setup, self.ranges, LocalPool(self.replica), len(SIZES), SETTINGS)
        self.plain = table.put_into(self.ranges)
        self.assignment = BitAssignment.uniform(self.setup, 2)

    def sequential(self, wrap=lambda pool: pool, **changes):
        pool = wrap(LocalPool(self.replica))
        winner = Winner(self.setup, self.plain, self.assignment)
        settings = RoundingConfig(**{**SETTINGS.model_dump(), **changes})
        return round_sequentially(winner, pool, len(SIZES), settings)

    def divergence(self, ranges: RangeTable) -> float:
        """Mean over the calibration samples."""
        model = make_replica("conv", SIZES).model
        create_controller(model, self.setup, ranges, self.assignment)
        values = []
        for index in range(len(SIZES)):
            shard = self.replica.shard(DataSet.CALIBRATION, index)
            outputs = self.replica.run(model, shard)
            reference = self.replica.float_outputs(DataSet.CALIBRATION, index)
            values.append(self.replica.divergence.per_sample(outputs, reference))
        return float(torch.cat(values).mean())


def test_many_inputs_are_as_good_in_float32(monkeypatch):
    case = Case("linear")
    expected = case.sequential()
    monkeypatch.setattr("raysearch.rounding.second_moments.FLOAT32_FROM", 2)
    monkeypatch.setattr("raysearch.rounding.factors.compact.NUM_COLUMNS", 3)
    monkeypatch.setattr("raysearch.rounding.sequential.PART_COLUMNS", 3)
    table = case.sequential()
    for key, rounded in table.weights.items():
        assert rounded.error == pytest.approx(expected[key].error, rel=0.05)
        assert (rounded.codes == expected[key].codes).mean() > 0.9


def test_guided_drifts_are_guided_moments_while_nothing_is_quantized():
    case = Case("linear", activation_bit_widths=[])
    name = next(iter(case.setup.of_kind("weight")))
    expected = Moments.from_value(observe_guided_moments(case.replica, [name], 5, 0, 3))
    deployed = Deployed(Winner(case.setup, case.plain, case.assignment), (), guided_seed=5)
    drifts, num_samples = drifts_from(observe_drift(case.replica, deployed, name, 0, 3))
    assert num_samples == expected.num_samples
    ((reader, drift),) = drifts.items()
    (moment,) = expected.sums.values()
    assert reader.is_guided
    upper = np.triu_indices(drift.own.shape[1])
    assert np.allclose(drift.own[0][upper], moment.matrices()[0][upper], rtol=1e-5)
    assert np.array_equal(drift.cross, drift.own)


def test_guided_layers_are_rounded_by_what_counts_in_any_order_of_units():
    case = Case("linear")
    guided = case.sequential(guided=True).digest()
    shuffled = case.sequential(lambda pool: ShuffledPool(pool, 1), guided=True).digest()
    assert shuffled == guided != case.sequential().digest()


def test_the_moved_weight_gives_the_float_outputs_best():
    case = Case("linear")
    point = next(iter(case.setup.of_kind("weight").values()))
    weight = case.replica.model.get_parameter(point.id).detach()
    x = torch.randn(200, 6, dtype=torch.float64)
    own = x + 0.3 * torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    reader = Reader(point.id, "linear", 1, (0, 4), (0, 6))
    moment = Moment((own.T @ own)[None].numpy(), 200)
    inputs, _ = gather_inputs(point, [(reader, moment)], RoundingConfig(damping=1e-9))
    result = moved(weight, inputs, [((x - own).T @ own)[None]])
    best = torch.linalg.lstsq(own, x @ weight.double().T).solution.T
    assert torch.allclose(result.double(), best, rtol=0, atol=1e-5)
    assert not torch.allclose(result, weight, rtol=0, atol=1e-2)
    # What lost nothing is not moved at all.
    assert torch.equal(moved(weight, inputs, [torch.zeros(1, 6, 6, dtype=torch.float64)]), weight)


def test_the_output_comes_nearer_to_the_float_one_and_the_codes_are_the_same_on_any_pool():
    case = Case("conv")
    table = case.sequential()
    assert set(table.points()) == {"stem.weight", "conv.weight", "head.weight"}
    refined = RangeTable(case.plain.ranges, {**case.plain.rounded, **table.put_into(RangeTable({})).rounded})
    assert case.divergence(refined) < 0.8 * case.divergence(case.plain)
    assert case.sequential(lambda pool: ShuffledPool(pool, 1)).digest() == table.digest()
    # The first layer reads what it always read, so that its codes are those of the plain table.
    if "stem.input" not in case.assignment.bits:
        weights_alone = Case("conv", activation_bit_widths=[])
        first = weights_alone.sequential()["stem.weight", 2]
        assert np.array_equal(first.codes, weights_alone.plain["stem.weight", 2].codes)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("tied", [["first.weight"], ["head.weight"]]),
        ("embedding", [["head.weight"]]),
        ("attention", [["qkv.weight"], ["head.weight"]]),
        ("unreached", [["idle.weight", "used.weight"]]),
    ],
)
def test_layers_come_as_the_forward_reads_them_and_tables_are_left_out(name, steps):
    case = Case(name)
    names = tuple(sorted(case.setup.of_kind("weight")))
    answers = dict(LocalPool(case.replica).run(order_of_layers, {("order",): ()}, (names,)))
    assert steps_from(answers["order",]) == steps
    table = case.sequential()
    assert sorted(table.points()) == sorted(name for step in steps for name in step)


def test_a_forward_that_depends_on_values_is_refused_with_the_weight():
    case = Case("relu")
    forward = case.replica.forward

    def other_way(model, batch):
        part = batch if model is case.replica.model else (batch[0][:1], batch[1])
        return forward(model, part)

    case.replica.forward = other_way
    with pytest.raises(DataError, match=r"'0\.weight'.*rounding\.refine"):
        case.sequential()
