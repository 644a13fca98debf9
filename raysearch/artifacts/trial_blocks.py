"""The trials of a search that still runs, in files of which only the last one is written again."""

from __future__ import annotations

from collections.abc import Callable

from raysearch.artifacts.codecs import Codec, trials_codec
from raysearch.artifacts.run_store import RunStore
from raysearch.errors import DamagedFileError
from raysearch.records import SearchTrial

FOLDER = "units/trials"
BLOCK_TRIALS = 512
"""Trials of a file: what a batch of a long search writes, whatever came before it."""

Trials = tuple[SearchTrial, ...]


class TrialBlocks:
    """Keeps the trials of a search batch by batch, and gives them back to a search that goes on.

    Work: each batch writes the trials of its own block, `BLOCK_TRIALS` at most. So what a search writes grows
    with its trials, not with their square.

    Args:
        store: the run.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        # Trials that are on disk as they are now; of an earlier attempt nothing is known.
        self._num_saved = 0

    def save(self, trials: Trials) -> None:
        """Keep the trials so far: those that were saved before, and new ones behind them.

        Raises:
            StorageError: a file cannot be written.
        """
        if not self._num_saved:
            self.clear()
        first = self._num_saved // BLOCK_TRIALS
        for index in range(first, -(-len(trials) // BLOCK_TRIALS)):
            block = trials[index * BLOCK_TRIALS : (index + 1) * BLOCK_TRIALS]
            self._store.save(_codec(index), block)
        self._num_saved = len(trials)

    def load(self, on_damage: Callable[[Codec[Trials], DamagedFileError], None]) -> Trials:
        """The trials of an interrupted search, up to the first block that is missing or damaged.

        Args:
            on_damage: is told of the block that is damaged.

        Raises:
            StorageError: the storage cannot be reached.
        """
        trials: list[SearchTrial] = []
        index = 0
        while self._store.has(_codec(index)):
            try:
                block = self._store.load(_codec(index))
            except DamagedFileError as error:
                on_damage(_codec(index), error)
                break
            trials.extend(block)
            index += 1
        return tuple(trials)

    def clear(self) -> None:
        """Forget all of them."""
        self._store.delete_folder(FOLDER)


def _codec(index: int) -> Codec[Trials]:
    return trials_codec(f"{FOLDER}/{index:06d}.parquet")
