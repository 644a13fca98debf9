import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from raysearch.errors import DataError
from raysearch.evaluation import training_batches
from raysearch.evaluation.epochs import LEAST, Order

X = torch.arange(22.0)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Tensor]:
        return (X[i : i + 2] for i in range(0, 22, 2))


def samples(turns: Any) -> list[float]:
    batches = itertools.chain.from_iterable(turns)
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
def test_all_ranks_take_equally_many_turns_and_every_sample_once(source: str, world: int) -> None:
    parts = []
    for rank in range(world):
        torch.manual_seed(rank)  # ranks draw dropout apart; the order of the data must not follow
        parts.append(list(training_batches(SOURCES[source], 2, 5, rank, world)(0)))
    assert len({len(part) for part in parts}) == 1
    assert len(parts[0]) >= 11 // world
    every = list(itertools.chain.from_iterable(samples(part) for part in parts))
    assert sorted(every) == X.tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("share", [1, 2, 5, 8])
def test_every_sample_is_taken_once_in_the_same_steps_whatever_the_ranks(world: int, share: int) -> None:
    for num_samples in range(world, 70):
        orders = [Order(num_samples, share, 5, rank, world) for rank in range(world)]
        # One batch a step.
        steps = list(zip(*(order.batches(3, 100) for order in orders), strict=True))
        every = [index for step in steps for batch in step for index in batch]
        assert sorted(every) == list(range(num_samples))
        whole = share * world
        alone = Order(num_samples, whole, 5, 0, 1).batches(3, 100)
        for step, expected in zip(steps[:-1], alone, strict=False):
            assert sorted(itertools.chain.from_iterable(step)) == sorted(expected)
        sizes = [len(batch) for batch in steps[-1]]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= min(LEAST, share, num_samples // world)
        # Cut finer, all ranks have as many batches.
        (num_batches,) = {len(order.batches(3, 2)) for order in orders}
        assert num_batches <= orders[0].num_batches(2)
    assert Order(world - 1, share, 5, 0, world).batches(0, 2) == []


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
    epochs = training_batches(SOURCES["list"], 99, 5, 0, 2)
    # Five rounds, and the batch that is left over.
    expected = torch.cat(SOURCES["list"][::2]).tolist()
    assert samples(epochs(0)) == samples(epochs(7)) == expected


def test_a_last_sample_goes_with_those_before_it() -> None:
    # BatchNorm raises on a batch of one in training mode.
    def counts(num_samples: int, size: int) -> list[int]:
        epochs = training_batches(TensorDataset(X[:num_samples]), size, 0, 0, 1)
        return [len(batch[0]) for (batch,) in epochs(0)]

    assert counts(21, 4) == [4, 4, 4, 4, 5]
    assert counts(22, 4) == [4, 4, 4, 4, 4, 2]
    assert counts(1, 4) == [1]
    assert counts(3, 1) == [1, 1, 1]


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
