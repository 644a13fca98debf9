"""The batches of each optimizer step, and what is drawn at random in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from raysearch.determinism import seed_torch
from raysearch.evaluation import Batch, batch_size
from raysearch.evaluation.batches import join, joinable_form
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
            seed_torch(derive_seed(*self._path))
        else:
            seed_torch(derive_seed(*self._path, self._rank, index, "read"))

    def for_computing(self, index: int) -> None:
        """Seed what dropout and the like draw, which must differ between ranks."""
        seed_torch(derive_seed(*self._path, self._rank, index))


def drawn(turns: Iterable[list[Batch]], draws: Draws) -> Iterator[list[Batch]]:
    """The batches of each turn, read with seeds of their own.

    Args:
        turns: of an epoch.
        draws: seeds what reading them draws.
    """
    draws.for_reading(0)
    source = iter(turns)
    for index in itertools.count():
        if index:
            draws.for_reading(index)
        turn = next(source, None)
        if turn is None:
            return
        yield turn


def in_one(turns: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
    """A single batch at each turn: all ranks then run the model equally often, as synchronised norms must.

    What is left over for some ranks, and cannot be joined with their batch, is left out.

    Args:
        turns: of an epoch.
    """
    for turn in turns:
        forms = {joinable_form(batch) for batch in turn}
        if len(turn) == 1:
            yield turn
        elif len(forms) == 1 and "" not in forms:
            yield [join(turn)]
        else:
            yield turn[:1]


def in_steps(turns: Iterator[list[Batch]], share: int | None) -> Iterator[list[Batch]]:
    """The batches of each optimizer step.

    Every step but the last has as many turns as the first one of the epoch needs to reach the share: all
    ranks must take equally many, and a count of samples might differ between them.

    Args:
        turns: of an epoch.
        share: samples of a step that this rank sees; None: one turn.
    """
    num_turns = 1
    for turn in turns:
        if share is not None and num_turns == 1:
            num_turns = max(1, -(-share // batch_size(turn[0])))
        step = [*turn]
        for more in itertools.islice(turns, num_turns - 1):
            step.extend(more)
        yield step
