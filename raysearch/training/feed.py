"""The batches of each optimizer step, and what is drawn at random in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch

from raysearch.evaluation import Batch, batch_size
from raysearch.seeding import derive_seed


class Draws:
    """Seeds of one rank's epoch: whatever it draws follows from (run's seed, epoch, rank, batch).

    So a loop that goes on in the middle of an epoch draws what an uninterrupted one draws.

    Args:
        run_seed: of the run.
        epoch: the epoch.
        rank: this process.
    """

    def __init__(self, run_seed: int, epoch: int, rank: int) -> None:
        self._path = (run_seed, "training", epoch)
        self._rank = rank

    def for_reading(self, index: int) -> None:
        """Seed what reading a batch draws.

        A loader that shuffles draws its order when the first batch is asked for: all ranks must draw the
        same one, or their shares would overlap.
        """
        if index == 0:
            torch.manual_seed(derive_seed(*self._path))
        else:
            torch.manual_seed(derive_seed(*self._path, self._rank, index, "read"))

    def for_computing(self, index: int) -> None:
        """Seed what dropout and the like draw, which must differ between ranks."""
        torch.manual_seed(derive_seed(*self._path, self._rank, index))


def drawn(batches: Iterable[Batch], draws: Draws, first: int = 0) -> Iterator[Batch]:
    """The batches from `first` on; those before it are read, and thrown away.

    Args:
        batches: of an epoch.
        draws: seeds what reading them draws.
        first: index of the first batch that is given.
    """
    draws.for_reading(0)
    source = iter(batches)
    for index in itertools.count():
        if index:
            draws.for_reading(index)
        batch = next(source, None)
        if batch is None:
            return
        if index >= first:
            yield batch


def in_steps(batches: Iterator[Batch], share: int | None) -> Iterator[list[Batch]]:
    """The batches of each optimizer step.

    Every step but the last has as many batches as the first one of the epoch needs to reach the share: all
    ranks must take equally many, and a count of samples might differ between them.

    Args:
        batches: of an epoch.
        share: samples of a step that this rank sees; None: one batch.
    """
    num_batches = 1
    for batch in batches:
        if share is not None and num_batches == 1:
            num_batches = max(1, -(-share // batch_size(batch)))
        yield [batch, *itertools.islice(batches, num_batches - 1)]
