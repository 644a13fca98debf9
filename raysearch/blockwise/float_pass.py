"""The float model's hidden states on every shard, block by block."""

from __future__ import annotations

import numpy as np

from raysearch.blockwise.chain import OUTSIDE, Chain
from raysearch.blockwise.files import BlockFiles
from raysearch.blockwise.replica import BlockReplica
from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.evaluation import DataSet


def pass_blocks(pool: Pool, chain: Chain, files: BlockFiles, data: DataSet, num_shards: int) -> None:
    """Have every hidden state of the float model on a data set in the files; what is there stays.

    Units are (block, shard), a wave of all shards after the other: a worker reads each block once. A unit
    writes one hidden state, and gives nothing back.

    Args:
        pool: its replicas are `BlockReplica`s with the same files.
        chain: the blocks.
        files: take the hidden states.
        data: the data set.
        num_shards: its shards.
    """
    for passed, shards in files.missing_states(chain, data, num_shards).items():
        units: dict[Key, tuple[object, ...]] = {
            (str(data), passed, index): (data, passed, index) for index in shards
        }
        for _ in pool.run(pass_block, units):
            pass


def pass_block(replica: BlockReplica, data: DataSet, passed: int, index: int) -> UnitValue:
    """Unit: write the hidden state of one shard behind so many blocks; behind none, also their arguments.

    Args:
        replica: holds one part.
        data: the data set.
        passed: blocks that the hidden state is behind.
        index: the shard.
    """
    if passed == 0:
        replica.use(OUTSIDE)
        entered = replica.enter(data, index)
        # The arguments first: where the hidden state is, they are.
        replica.files.write_arguments(data, index, entered.arguments)
        hidden = entered.hidden
    else:
        block = passed - 1
        replica.use(block)
        arguments = replica.arguments(data, index)[block]
        hidden = replica.run_block(block, replica.state(data, index, block), arguments)
    replica.files.write_state(data, index, passed, hidden)
    return {"bytes": np.array(hidden.nbytes)}
