"""The surrogate by second moments, against dense second derivatives of one linear layer."""

import math

import pytest
import torch
from torch import nn

from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import PlacementConfig, SensitivityConfig
from raysearch.config.rounding import RoundingConfig
from raysearch.evaluation import DataSet, Divergence, Replica, default_forward
from raysearch.placement import place_quantizers
from raysearch.records import SensitivityTable
from raysearch.rounding import round_weights
from raysearch.sensitivity import measure_sensitivity

WIDTHS = (2, 3, 4, 8)
NAME = "0.weight"


def measure(x):
    """A linear layer that reads x: its replica, its rounding and its sensitivity."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 3)).eval()
    replica = Replica(model, default_forward, {"calibration": list(x.split(8))}, Divergence("mse"))
    num_shards = len(replica.shards["calibration"])
    setup = place_quantizers(model, (x[:2],), PlacementConfig(weight_bit_widths=WIDTHS))
    pool = LocalPool(replica)
    calibrated = calibrate(setup, pool, num_shards)
    rounding = round_weights(setup, calibrated, pool, num_shards, RoundingConfig())
    table = measure_sensitivity(
        setup,
        rounding.put_into(calibrated),
        lambda part: pool,
        {DataSet.CALIBRATION: num_shards},
        SensitivityConfig(relative_error=0.3),
    )
    return replica, rounding, table


def test_second_moments_are_the_second_order_loss_of_a_linear_layer():
    x = torch.randn(40, 6) @ torch.randn(6, 6)
    replica, rounding, table = measure(x)
    layer = replica.model[0]
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    outputs = x.double() @ weight.T + bias

    def loss(weight):
        return replica.divergence.per_sample(x.double() @ weight.T + bias, outputs).mean()

    hessian = torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), -1)
    trace = float(hessian.diagonal().mean())
    moments = x.double().T @ x.double() / len(x)
    for bits in WIDTHS:
        effect = table.effects[NAME, bits]
        delta = torch.from_numpy(rounding[NAME, bits].values()).double() - weight
        error = float((delta @ moments * delta).sum() / moments.diagonal().mean())
        assert effect.second_moment == pytest.approx(table.traces[NAME].value * error, rel=1e-5)
        # With the exact trace it is twice the loss, which has no terms of higher order here.
        exact = effect.second_moment * trace / table.traces[NAME].value
        assert exact == pytest.approx(2 * float(loss(weight + delta)), rel=1e-5)
        assert exact == pytest.approx(2 * effect.response, rel=1e-4)
    inputs = [effect.second_moment for effect in table.effects.values() if effect.kind == "activation"]
    assert inputs == [0.0] * len(inputs)


def test_inputs_that_are_alike_give_hawqs_omega():
    unit = 1.5 * torch.eye(6)
    replica, rounding, table = measure(torch.cat([unit, -unit] * 4))
    weight = replica.model[0].weight.detach().double()
    for bits in WIDTHS:
        delta = torch.from_numpy(rounding[NAME, bits].values()).double() - weight
        omega = table.traces[NAME].value * float(delta.square().sum())
        assert table.effects[NAME, bits].second_moment == pytest.approx(omega, rel=1e-5)


def test_second_moments_are_written_where_there_are_any():
    _, _, table = measure(torch.randn(24, 6))
    parts = (table.traces_table(), table.effects_table(), table.gram_table())
    assert SensitivityTable.from_tables(*parts).effects == table.effects
    earlier = SensitivityTable.from_tables(parts[0], parts[1].drop_columns(["second_moment"]), parts[2])
    assert all(math.isnan(effect.second_moment) for effect in earlier.effects.values())
    assert "second_moment" not in earlier.effects_table().column_names
    assert earlier.effects_table().schema.metadata == parts[1].schema.metadata
