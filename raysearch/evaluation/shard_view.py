"""One shard of a data set as a worker sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raysearch.evaluation.batches import Batch
from raysearch.evaluation.data_set import DataSet, shard_name
from raysearch.evaluation.outputs import Judged
from raysearch.evaluation.replica import Replica


@dataclass(frozen=True)
class ShardView:
    """One shard, with the model that is run on it.

    Attributes:
        replica: holds the float model and the data.
        data: the data set.
        index: of the shard in it; random draws are seeded by it.
    """

    replica: Replica
    data: DataSet
    index: int

    @property
    def name(self) -> str:
        """What messages call the shard, such as "shard 3 of the calibration data"."""
        return shard_name(self.data, self.index)

    @property
    def all_shards(self) -> Sequence[Batch]:
        """Every shard of the data set, where it is kept (not on the worker's device)."""
        return self.replica.shards[self.data]

    def batch(self) -> Batch:
        """The samples, on the worker's device."""
        return self.replica.shard(self.data, self.index)

    def float_outputs(self) -> Judged:
        """The float model's judged output on the samples; see `Replica.float_outputs`."""
        return self.replica.float_outputs(self.data, self.index)
