"""Half precision is measured in float32, and nothing else is touched."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.cluster.pool import LocalPool
from raysearch.cluster.shipping import dumps, loads
from raysearch.config import SensitivityConfig
from raysearch.evaluation import DataSet
from raysearch.evaluation.batches import on_device
from raysearch.evaluation.half_precision import half_type, in_float32, widened_batch
from raysearch.sensitivity.responses import measure_responses
from tests.support.small_replicas import make_ranges, make_replica, make_setup


def test_a_float32_model_and_its_batches_stay_the_same_objects() -> None:
    model = nn.Linear(2, 2)
    data = {DataSet.CALIBRATION: [torch.ones(1, 2)]}
    same_model, same_data = in_float32(model, data)
    assert half_type(model) is None
    assert same_model is model
    assert same_data is data


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_ties_and_integers_stay_what_they_are(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).to(dtype)
    model[1].weight = model[0].weight
    before = copy.deepcopy(model.state_dict())
    batch = {"x": torch.ones(2, 3, dtype=dtype), "ids": torch.ones(2, dtype=torch.int32), "text": "a"}
    wide, data = in_float32(model, {DataSet.CALIBRATION: [batch]})
    assert wide[1].weight is wide[0].weight
    for name, value in wide.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name].float())
    (shard,) = data[DataSet.CALIBRATION]
    assert (shard["x"].dtype, shard["ids"].dtype, shard["text"]) == (torch.float32, torch.int32, "a")
    assert batch["x"].dtype == dtype
    assert widened_batch(shard) is shard


def test_responses_of_a_bfloat16_model_are_those_of_its_weights_in_float32() -> None:
    """Judged in bfloat16 the rounding of the output was 9 to 19 times what 8 bits do to it."""
    replica = make_replica("conv")
    setup = make_setup("conv", replica, weight_bit_widths=(8,))
    replica.model.to(torch.bfloat16)
    exact = copy.deepcopy(replica)
    exact.model.float()
    ranges = make_ranges(setup, exact)
    shards = [(x.to(torch.bfloat16), labels) for x, labels in replica.shards["calibration"]]
    replica.model, replica.shards = in_float32(replica.model, {DataSet.CALIBRATION: shards})
    exact.shards = replica.shards
    one, other = (
        measure_responses(setup, ranges, LocalPool(each), len(shards), SensitivityConfig())
        for each in (replica, exact)
    )
    assert np.array_equal(one.gram, other.gram)


def test_a_half_precision_model_is_widened_where_it_is_unpacked() -> None:
    replica = make_replica("relu")
    replica.model.to(torch.bfloat16)
    values = copy.deepcopy(replica.model.state_dict())
    shipment = dumps(replica)
    assert {form.dtype for form in shipment.forms if form and form.is_parameter} == {torch.bfloat16}
    for name, value in loads(shipment).model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, values[name].float())


def test_a_batch_that_is_where_it_should_be_is_not_copied() -> None:
    batch = (torch.ones(2), "text")
    assert on_device(batch, "cpu") is batch
    moved = on_device(batch, "meta")
    assert (moved[0].device.type, moved[1]) == ("meta", "text")
