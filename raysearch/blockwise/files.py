"""What travels to workers and between them: weights, ranges, and the hidden states of the float model."""

from __future__ import annotations

from collections.abc import Sequence

from safetensors.torch import load, save
from torch import Tensor, nn

from raysearch.artifacts import Storage, hashed, without_hash
from raysearch.blockwise.chain import OUTSIDE, Arguments, Chain, dump_arguments, load_arguments
from raysearch.errors import DamagedFileError, StorageError
from raysearch.evaluation import DataSet


class BlockFiles:
    """A folder that every worker reads, with a file a weight, a hidden state, and the ranges of a part.

    Files are written whole or not at all, with a hash behind them; a unit that is run again writes the same.

    Args:
        storage: the folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def write_weights(self, model: nn.Module) -> None:
        """Write the weights that are not there yet, as they are, one at a time."""
        present = set(self._storage.list(_WEIGHTS))
        for name, parameter in model.named_parameters():
            if _weight_name(name) not in present:
                self._write(_weight_name(name), save({"weight": _plain(parameter)}))

    def read_weight(self, name: str) -> Tensor:
        """A weight by the first name of its parameter."""
        return load(self._read(_weight_name(name)))["weight"]

    def has_ranges(self, digest: str, part: int) -> bool:
        """Whether the ranges of a part are there; the digest is that of the whole table."""
        return self._storage.exists(_ranges_name(digest, part))

    def write_ranges(self, digest: str, part: int, content: bytes) -> None:
        """Keep the ranges of a part.

        Args:
            digest: of the whole table.
            part: whose they are.
            content: what is kept.
        """
        self._write(_ranges_name(digest, part), content)

    def read_ranges(self, digest: str, part: int) -> bytes:
        """What `write_ranges` wrote."""
        return self._read(_ranges_name(digest, part))

    def missing_states(self, chain: Chain, data: DataSet, num_shards: int) -> dict[int, list[int]]:
        """Blocks passed → shards whose hidden state behind so many blocks is not there yet.

        Args:
            chain: the blocks.
            data: the data set.
            num_shards: its shards.
        """
        present = set(self._storage.list(_folder(data)))
        return {
            passed: [i for i in range(num_shards) if _state_name(data, i, passed) not in present]
            for passed in range(len(chain.blocks) + 1)
        }

    def write_state(self, data: DataSet, index: int, passed: int, hidden: Tensor) -> None:
        """Keep a hidden state of the float model.

        Args:
            data: the data set.
            index: the shard.
            passed: blocks that the hidden state is behind.
            hidden: the hidden state.
        """
        content = save({"hidden": _plain(hidden)})
        self._write(_state_name(data, index, passed), content)

    def read_state(self, data: DataSet, index: int, passed: int) -> Tensor:
        """A hidden state of the float model; arguments as `write_state` has them."""
        return load(self._read(_state_name(data, index, passed)))["hidden"]

    def write_arguments(self, data: DataSet, index: int, arguments: Sequence[Arguments]) -> None:
        """Keep what else the blocks are given on a shard: masks, positions.

        Args:
            data: the data set.
            index: the shard.
            arguments: of each block.
        """
        self._write(_arguments_name(data, index), dump_arguments(arguments))

    def read_arguments(self, data: DataSet, index: int) -> list[Arguments]:
        """What `write_arguments` wrote."""
        return load_arguments(self._read(_arguments_name(data, index)))

    def _read(self, name: str) -> bytes:
        try:
            data = self._storage.read_bytes(name)
        except StorageError as error:
            raise StorageError(
                f"{error} With cluster.replica='block' workers read weights and hidden states from the run's "
                f"storage: a folder that all of them share, or an object store."
            ) from error
        try:
            return without_hash(data, self._storage.shown(name))
        except DamagedFileError as error:
            raise DamagedFileError(
                f"{error} Delete the folder {self._storage.shown()} and go on with --resume, which writes it "
                "anew."
            ) from error

    def _write(self, name: str, content: bytes) -> None:
        self._storage.write_bytes(name, hashed(content))


def _plain(tensor: Tensor) -> Tensor:
    """A tensor of its own memory on the CPU, as safetensors writes it."""
    return tensor.detach().cpu().contiguous().clone()


_WEIGHTS = "weights"


def _weight_name(name: str) -> str:
    return f"{_WEIGHTS}/{name}.safetensors"


def _ranges_name(digest: str, part: int) -> str:
    return f"ranges/{digest}/{'outside' if part == OUTSIDE else part}.safetensors"


def _folder(data: DataSet) -> str:
    return f"states/{data.name.lower()}"


def _state_name(data: DataSet, index: int, passed: int) -> str:
    return f"{_folder(data)}/{index}/{passed}.safetensors"


def _arguments_name(data: DataSet, index: int) -> str:
    return f"{_folder(data)}/{index}/arguments.pt"
