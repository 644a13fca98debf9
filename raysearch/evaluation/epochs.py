"""A rank's batches of every epoch: each sample of the data once an epoch, on one of the ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from raysearch.errors import DataError
from raysearch.evaluation.batches import (
    Batch,
    RayBatches,
    as_batches,
    batch_size,
    is_map_style,
    is_ray_data,
    join,
    own_generators,
    pick,
    seeded_torch,
)
from raysearch.seeding import derive_seed

LEAST = 2
"""Samples of a rank's batch, where that can be had: BatchNorm cannot train on a single one."""

SHUFFLED_STEPS = 16
"""Optimizer steps of a stream whose samples are shuffled among each other."""

Turn = list[Batch]
"""What a rank gets at its turn: a batch; at the last one maybe another, of what is left over."""


@dataclass(frozen=True)
class TrainingBatches:
    """A rank's batches of every epoch.

    Attributes:
        of_epoch: epoch → its batches, by turns; all ranks have equally many turns.
        num_turns: how many of them there are in an epoch; None where the data does not tell.
    """

    of_epoch: Callable[[int], Iterable[Turn]]
    num_turns: int | None

    def __call__(self, epoch: int) -> Iterable[Turn]:
        """The batches of an epoch."""
        return self.of_epoch(epoch)


def training_batches(
    data: Any, size: int, seed: int, rank: int, world: int, share: int | None = None
) -> TrainingBatches:
    """A rank's batches of each epoch; over all ranks they hold every sample of the data exactly once.

    A `Dataset` is shuffled by (seed, epoch) and cut into optimizer steps, whose samples the ranks share
    alike. Where steps are equally large, each has the same samples for any number of ranks, but for the end
    of an epoch: what is left over is a smaller step, or belongs to the one before it where a rank would get
    fewer than `LEAST` samples. A data set of Ray Data is cut in the same way, while every rank reads it in
    the order of its rows, shuffled within `SHUFFLED_STEPS` steps.

    An iterable of batches is taken in its own order, every `world`-th batch from `rank` on; batches behind
    the last whole round go to the first ranks, beside those of that round. A loader that shuffles, by torch's
    global generator or one of its own, does so from (seed, epoch), alike on all ranks.

    Args:
        data: a `Dataset`, a loader, a data set of Ray Data, or another iterable of batches.
        size: samples in a rank's batch of a `Dataset`; iterables come in batches of their own.
        seed: of the order.
        rank: this process.
        world: how many processes train together.
        share: samples of an optimizer step and rank, which batches of a `Dataset` never cross; None: a batch.

    Raises:
        DataError: the data cannot be iterated, or only once.
    """
    if is_map_style(data):
        order = Order(len(data), share or size, seed, rank, world)

        def shuffled(epoch: int) -> Iterator[Turn]:
            loader: DataLoader[Any] = DataLoader(data, batch_sampler=order.batches(epoch, size))
            return ([batch] for batch in loader)

        return TrainingBatches(shuffled, order.num_batches(size))
    if isinstance(data, Iterator):
        raise DataError(
            f"the training data is a {type(data).__name__} that can be read only once, and training reads it "
            f"every epoch; pass a list of batches, a DataLoader or a Dataset."
        )
    if is_ray_data(data):
        stream = Stream(data, share or size, seed, rank, world)
        return TrainingBatches(lambda epoch: ([batch] for batch in stream.batches(epoch, size)), None)
    source = as_batches(data, size, "training")
    length = _length(source)
    return TrainingBatches(
        lambda epoch: _seeded_turns(source, rank, world, derive_seed(seed, "shuffle", epoch)),
        None if length is None else length // world,
    )


class Order:
    """Which samples of a data set a rank takes, and when.

    Args:
        num_samples: of the data set.
        share: samples of an optimizer step and rank.
        seed: of the order.
        rank: this process.
        world: how many processes train together.
    """

    def __init__(self, num_samples: int, share: int, seed: int, rank: int, world: int) -> None:
        self._num_samples = num_samples
        self._share = share
        self._seed = seed
        self._rank = rank
        self._world = world

    def batches(self, epoch: int, size: int) -> list[list[int]]:
        """The indices of this rank's batches.

        Args:
            epoch: by which they are shuffled.
            size: samples in a batch; each step is cut into as many as a whole step needs at most.
        """
        # Far below what torch takes.
        generator = torch.Generator().manual_seed(self._seed % 2**31 + epoch)
        order = torch.randperm(self._num_samples, generator=generator).tolist()
        batches: list[list[int]] = []
        for start, stop in self._steps():
            indices = order[start + self._rank : stop : self._world]
            least = min(self._share, (stop - start) // self._world)
            batches.extend(indices[part] for part in parts_of(len(indices), least, size))
        return batches

    def num_batches(self, size: int) -> int:
        """How many batches of a size there are, where the last step has as many as the others."""
        # Not `_steps`, which lists them: a data set may say that it has any number of samples.
        num_whole, rest = divmod(self._num_samples, self._share * self._world)
        is_added = num_whole and rest < LEAST * self._world
        num_steps = num_whole + (not is_added and rest >= self._world)
        return num_steps * len(parts_of(self._share, self._share, size))

    def _steps(self) -> list[tuple[int, int]]:
        """The first place of each step in the order, and the one behind its last."""
        step_size = self._share * self._world
        num_whole, rest = divmod(self._num_samples, step_size)
        stops = [step_size * (index + 1) for index in range(num_whole)]
        if rest and num_whole and rest < LEAST * self._world:
            stops[-1] += rest
        elif rest >= self._world:
            stops.append(self._num_samples)
        return list(itertools.pairwise([0, *stops]))


def parts_of(num_samples: int, least: int, size: int) -> list[slice]:
    """Where a rank's samples of a step are cut into batches alike, as many as on every other rank.

    Args:
        num_samples: of this rank.
        least: that every rank has.
        size: the most samples in a batch; the last one is larger by what this rank has more than the least.
    """
    num_parts = max(1, -(-least // size))
    length = -(-least // num_parts)
    bounds = [length * index for index in range(num_parts)]
    return [slice(*pair) for pair in itertools.pairwise([*bounds, num_samples])]


class Stream:
    """What a rank takes of a data set of Ray Data, which is read by every rank and held by none.

    Args:
        data: of Ray Data.
        share: samples of an optimizer step and rank.
        seed: of the order.
        rank: this process.
        world: how many processes train together.
    """

    def __init__(self, data: Any, share: int, seed: int, rank: int, world: int) -> None:
        self._data = data
        self._share = share
        self._seed = seed
        self._rank = rank
        self._world = world

    def batches(self, epoch: int, size: int) -> Iterator[Batch]:
        """This rank's batches.

        Args:
            epoch: by which steps are shuffled among each other.
            size: samples in a batch.
        """
        for step in self._steps(derive_seed(self._seed, "shuffle", epoch) % 2**32):
            rows = range(self._rank, batch_size(step), self._world)
            least = min(self._share, batch_size(step) // self._world)
            for part in parts_of(len(rows), least, size):
                yield pick(step, rows[part])

    def _steps(self, seed: int) -> Iterator[Batch]:
        """The samples of each step, over all ranks."""
        step_size = self._share * self._world
        earlier: Batch | None = None
        for batch in RayBatches(
            self._data,
            batch_size=step_size,
            local_shuffle_buffer_size=SHUFFLED_STEPS * step_size,
            local_shuffle_seed=seed,
        ):
            if earlier is None:
                earlier = batch
            elif batch_size(batch) < LEAST * self._world:
                # The last one, too small to be shared.
                earlier = join([earlier, batch])
            else:
                yield earlier
                earlier = batch
        if earlier is not None and batch_size(earlier) >= self._world:
            yield earlier


def _length(data: Any) -> int | None:
    """How many batches there are; None where the data does not tell."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        # Of a loader of an iterable that has no length.
        return None


def _seeded_turns(data: Iterable[Batch], rank: int, world: int, seed: int) -> Iterator[Turn]:
    # A shuffling loader draws its order with its first batch; ranks that drew apart would share samples.
    with seeded_torch(seed), own_generators(data, seed):
        source = iter(data)
        first = list(itertools.islice(source, world))
    yield from _turns(itertools.chain(first, source), rank, world)


def _turns(batches: Iterable[Batch], rank: int, world: int) -> Iterator[Turn]:
    """A rank's batches; where fewer than a round of batches are left, the first ranks have one more."""
    source = iter(batches)
    if world == 1:
        yield from ([batch] for batch in source)
        return
    # A round is handed out when it is known whether another whole one follows.
    turn: Turn = []
    while len(following := list(itertools.islice(source, world))) == world:
        if turn:
            yield turn
        turn = [following[rank]]
    if turn:
        yield turn + following[rank : rank + 1]
