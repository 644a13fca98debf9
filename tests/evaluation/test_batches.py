from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from raysearch.errors import DataError
from raysearch.evaluation import batch_size, materialise
from raysearch.evaluation.batches import is_changed, map_tensors, own_batch, tensors_of

X, Y = torch.arange(20.0).reshape(10, 2), torch.arange(10)


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield X[:4], Y[:4]
        yield X[4:], Y[4:]


class Records(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input": X[index], "labels": Y[index]}


def sizes(shards: list[Any]) -> list[int]:
    return [batch_size(shard) for shard in shards]


def joined(shards: list[Any]) -> Tensor:
    first = [next(tensors_of(shard))[1] for shard in shards]
    return torch.cat(first)


SOURCES: dict[str, tuple[Any, list[int]]] = {
    "dataset": (TensorDataset(X, Y), [3, 3, 3, 1]),
    "records": (Records(), [3, 3, 3, 1]),
    "loader": (DataLoader(TensorDataset(X, Y), batch_size=4), [3, 1, 3, 1, 2]),
    "list": ([(X[:5], Y[:5]), (X[5:], Y[5:])], [3, 2, 3, 2]),
    "tensors": ([X[:5], X[5:]], [3, 2, 3, 2]),
    "dicts": ([{"input": X[:5], "mask": Y[:5] > 0}, {"input": X[5:], "mask": Y[5:] > 0}], [3, 2, 3, 2]),
    "stream": (Stream(), [3, 1, 3, 3]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_everything_is_read_once_in_order_and_no_shard_crosses_a_batch(source: str) -> None:
    data, expected = SOURCES[source]
    shards = materialise(data, 0, 3, "calibration")
    assert sizes(shards) == expected
    assert torch.equal(joined(shards), X)
    for shard in shards:
        assert len({t.shape[0] for _, t in tensors_of(shard)}) == 1


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("count", [1, 4, 5, 7, 10, 99])
def test_the_count_may_cut_a_batch(source: str, count: int) -> None:
    shards = materialise(SOURCES[source][0], count, 3, "calibration")
    assert torch.equal(joined(shards), X[:count])
    assert max(sizes(shards)) <= 3


def test_a_generator_is_read_only_as_far_as_needed() -> None:
    read = []

    def batches() -> Iterator[Tensor]:
        for index in range(5):
            read.append(index)
            yield X[2 * index : 2 * index + 2]

    shards = materialise(batches(), 3, 8, "calibration")
    assert torch.equal(joined(shards), X[:3])
    assert read == [0, 1]


def test_shards_are_copies() -> None:
    buffer = torch.zeros(2, 2)

    def reuses() -> Iterator[Tensor]:
        for value in (1.0, 2.0):
            yield buffer.fill_(value)

    assert joined(materialise(reuses(), 0, 2, "calibration"))[:, 0].tolist() == [1, 1, 2, 2]


def test_a_shuffling_loader_gives_the_same_at_every_call_and_leaves_the_generator() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = joined(materialise(loader, 6, 4, "calibration"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert torch.equal(joined(materialise(loader, 6, 4, "calibration")), first)


def test_structures_and_what_is_no_tensor_survive() -> None:
    batch = {"pair": Pair(X, Y), "rest": [X, "text"], "scalar": torch.tensor(3.0), "n": None}
    (first, _) = materialise([batch], 0, 5, "calibration")
    assert isinstance(first["pair"], Pair)
    assert torch.equal(first["pair"].y, Y[:5])
    assert first["rest"][1] == "text"
    assert float(first["scalar"]) == 3
    assert first["n"] is None
    assert [path for path, _ in tensors_of(first)] == [
        "batch['pair'][0]",
        "batch['pair'][1]",
        "batch['rest'][0]",
        "batch['scalar']",
    ]
    assert float(map_tensors(first, lambda t: t * 0)["scalar"]) == 0


@pytest.mark.parametrize("data", [[], iter(()), TensorDataset(X[:0]), [X[:0]]])
def test_empty_data_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="the calibration data is empty"):
        materialise(data, 4, 2, "calibration")


def test_data_that_cannot_be_iterated_or_holds_no_tensor_is_refused() -> None:
    with pytest.raises(DataError, match="a int, which cannot be iterated"):
        materialise(3, 4, 2, "calibration")
    with pytest.raises(DataError, match="holds no tensor"):
        materialise([["text"]], 4, 2, "calibration")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named_with_its_place(value: float) -> None:
    bad = X.clone()
    bad[6, 1] = value
    with pytest.raises(DataError, match=r"validation data, batch 1, sample 1: batch\['input'\] holds"):
        materialise([{"input": bad[:5]}, {"input": bad[5:]}], 0, 4, "validation")
    assert joined(materialise([bad], 6, 4, "validation")).shape == (6, 2), "sample 6 is not taken"


def test_tensors_that_count_samples_differently_are_refused() -> None:
    with pytest.raises(DataError, match=r"batch\[0\] has 10, batch\[1\] has 3"):
        materialise([(X, torch.ones(3))], 0, 4, "calibration")


def test_what_was_changed_or_taken_out_of_a_batch_is_seen_and_what_was_added_is_not() -> None:
    x = torch.tensor([1.0, float("nan")])
    batch = {"x": x, "more": [torch.zeros(1), "text"]}
    before = own_batch(batch)
    batch["new"] = x
    assert not is_changed(batch, before)
    x[0] = 2
    assert is_changed(batch, before)
    assert is_changed({"x": before["x"]}, before)
    assert is_changed({**before, "x": before["x"].double()}, before)
    assert is_changed({**before, "x": before["x"][:1]}, before)
