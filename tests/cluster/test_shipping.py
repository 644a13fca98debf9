import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.cluster.shipping import Shipment, dumps, loads
from raysearch.errors import TaskError

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int64,
    torch.bool, torch.complex64, torch.float64,
]  # fmt: skip


def read_only(shipment: Shipment) -> Shipment:
    """The shipment as it comes out of Ray's object store."""
    arrays = tuple(array.copy() for array in shipment.arrays)
    for array in arrays:
        array.flags.writeable = False
    return Shipment(shipment.payload, arrays, shipment.forms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)], ids=str)
def test_any_tensor_arrives_bit_for_bit(dtype, shape):
    tensor = torch.randint(0, 2, shape).to(dtype)
    arrived = loads(read_only(dumps(tensor)))
    assert arrived.dtype == dtype
    assert arrived.shape == tensor.shape
    assert arrived.double().tolist() == tensor.double().tolist() if not dtype.is_complex else True
    assert torch.equal(arrived.view(torch.uint8), tensor.view(torch.uint8)) if shape == (5,) else True


def test_strides_are_kept():
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert loads(dumps(image)).stride() == image.stride()
    pointwise = torch.randn(6, 3, 1, 1).to(memory_format=torch.channels_last)
    assert loads(dumps(pointwise)).stride() == pointwise.stride()
    assert loads(dumps(image.permute(3, 2, 0, 1))).stride() == image.permute(3, 2, 0, 1).stride()
    sliced = torch.arange(12.0)[::3]
    assert loads(dumps(sliced)).tolist() == sliced.tolist()
    assert len(dumps(sliced).arrays[0]) == 4
    expanded = torch.ones(1, 3).expand(2, 3)
    assert loads(dumps(expanded)).tolist() == expanded.tolist()


def test_a_model_arrives_whole():
    model = nn.Sequential(nn.Embedding(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 5, bias=False))
    model[2].weight = model[0].weight
    model[1].weight.requires_grad_(False)
    model[1].weight.note = "attributes too"
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrived = loads(read_only(dumps(model)))
    assert arrived[2].weight is arrived[0].weight
    assert not arrived.training
    assert [(name, type(p), p.requires_grad) for name, p in arrived.named_parameters()] == [
        (name, type(p), p.requires_grad) for name, p in model.named_parameters()
    ]
    assert arrived[1].weight.note == "attributes too"
    for name, value in model.state_dict().items():
        assert torch.equal(arrived.state_dict()[name], value)
    with torch.no_grad():
        arrived[0].weight.add_(1)
    assert not torch.equal(arrived[0].weight, model[0].weight)


def test_tensors_travel_beside_the_payload():
    shipment = dumps({"model": nn.Linear(1000, 100), "batches": [torch.zeros(1000)] * 2})
    assert len(shipment.payload) < 2000
    assert sorted(array.size for array in shipment.arrays) == [100, 1000, 100_000]


def test_rare_tensors_go_through_torch():
    sparse = torch.eye(3).to_sparse()
    arrived = loads(dumps([sparse, torch.empty(2, device="meta"), nn.Buffer(torch.ones(2))]))
    assert torch.equal(arrived[0].to_dense(), torch.eye(3))
    assert arrived[1].is_meta
    assert arrived[2].tolist() == [1, 1]


def test_functions_travel():
    factor = torch.tensor(3.0)
    assert loads(dumps(lambda x: factor * x))(2).item() == 6


def test_what_cannot_travel_is_named():
    model = nn.Sequential(nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(TaskError, match=r"the replica\._modules\['1'\].*remove_parametrizations"):
        dumps(model, "the replica")
    with pytest.raises(TaskError, match=r"shared\[1\]\['data'\], a generator.*a list"):
        dumps((1, {"data": (number for number in range(3))}), "shared")
    lock = threading.Lock()
    with pytest.raises(TaskError, match=r"lock in the object, a lock.*where it is first used"):
        dumps(lambda: lock)


def test_codes_stay_where_they_are_for_whoever_only_reads():
    codes = np.arange(2**16, dtype=np.int64).astype(np.int8)
    codes.flags.writeable = False
    shipment = dumps({"codes": codes, "again": codes, "small": codes[:8]})
    assert len(shipment.payload) < 1000
    arrived = loads(shipment, codes_in_place=True)
    assert arrived["codes"] is arrived["again"]
    assert np.shares_memory(arrived["codes"], codes)
    own = loads(shipment)["codes"]
    own[0] += 1
    assert np.array_equal(own[1:], codes[1:])


def test_numpy_rides_along():
    arrived = loads(dumps({"labels": np.arange(3)}))
    arrived["labels"][0] = 7
    assert arrived["labels"].tolist() == [7, 1, 2]
