import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from raysearch.errors import DataError
from raysearch.evaluation import training_batches

X = torch.arange(22.0)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        return (X[i : i + 2] for i in range(0, 22, 2))


def samples(batches: Any) -> list[float]:
    return [float(v) for batch in batches for v in (batch if isinstance(batch, Tensor) else batch[0])]


SOURCES: dict[str, Any] = {
    "dataset": TensorDataset(X),
    "list": [X[i : i + 2] for i in range(0, 22, 2)],
    "loader": DataLoader(TensorDataset(X), batch_size=2),
    "shuffling loader": DataLoader(TensorDataset(X), batch_size=2, shuffle=True),
    "stream": Stream(),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_ranks_take_equally_many_batches_and_share_no_sample(source: str, world: int) -> None:
    parts = []
    for rank in range(world):
        torch.manual_seed(rank)  # ranks draw dropout apart; the order of the data must not follow
        parts.append(list(training_batches(SOURCES[source], 2, 5, rank, world)(0)))
    assert len({len(part) for part in parts}) == 1
    assert len(parts[0]) >= 11 // world
    every = list(itertools.chain.from_iterable(samples(part) for part in parts))
    # A Dataset is filled up to a multiple of the ranks with repeated samples.
    extra = -22 % world if source == "dataset" else 0
    assert len(set(every)) >= len(every) - extra
    if world == 1:
        assert sorted(every) == X.tolist()


@pytest.mark.parametrize("source", ["dataset", "shuffling loader"])
def test_the_order_changes_with_the_epoch_and_the_seed_and_nothing_else(source: str) -> None:
    def order(seed: int, epoch: int, rng: int) -> list[float]:
        torch.manual_seed(rng)
        return samples(training_batches(SOURCES[source], 2, seed, 0, 1)(epoch))

    assert order(5, 0, rng=1) == order(5, 0, rng=2)
    assert order(5, 0, rng=1) != order(5, 1, rng=1)
    assert order(5, 0, rng=1) != order(6, 0, rng=1)
    assert order(2**62 + 1, 0, rng=1) == order(2**62 + 1, 0, rng=3)


def test_one_function_serves_many_epochs_in_any_order() -> None:
    epochs = training_batches(SOURCES["dataset"], 2, 5, 0, 1)
    first = samples(epochs(0))
    samples(epochs(1))
    assert samples(epochs(0)) == first


def test_plain_batches_keep_their_order_in_every_epoch() -> None:
    epochs = training_batches(SOURCES["list"], 99, 5, 1, 2)
    expected = samples(SOURCES["list"][1:10:2])
    assert samples(epochs(0)) == samples(epochs(7)) == expected


def test_a_last_batch_of_one_sample_is_left_out() -> None:
    # BatchNorm raises on it in training mode.
    counts = [len(batch[0]) for batch in training_batches(TensorDataset(X[:21]), 4, 0, 0, 1)(0)]
    assert counts == [4] * 5
    assert [len(b[0]) for b in training_batches(TensorDataset(X[:1]), 4, 0, 0, 1)(0)] == [1]
    assert len(list(training_batches(TensorDataset(X[:3]), 1, 0, 0, 1)(0))) == 3


@pytest.mark.parametrize("data", [iter([X]), (X for _ in range(2)), zip([X], [X], strict=True)])
def test_what_can_be_read_only_once_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match="read only once"):
        training_batches(data, 2, 0, 0, 1)


def test_what_cannot_be_iterated_is_refused() -> None:
    with pytest.raises(DataError, match="the training data is a int"):
        training_batches(3, 2, 0, 0, 1)


def test_asking_does_not_start_the_loader() -> None:
    class Loader:
        started = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.started += 1
            yield X

    loader = Loader()
    batches = training_batches(loader, 2, 0, 0, 1)
    assert loader.started == 0
    list(batches(0))
    assert loader.started == 1
