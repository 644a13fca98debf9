"""Second moments where a worker holds one part of the model: from the hidden states that enter it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from raysearch.blockwise import OUTSIDE, BlockReplica, Chain
from raysearch.cluster.pool import UnitValue
from raysearch.evaluation import DataSet, batch_size
from raysearch.records import QuantizationPoint
from raysearch.rounding.second_moments import Moments, MomentTap, merge_moments


def by_part(chain: Chain, points: Mapping[str, QuantizationPoint]) -> list[tuple[str, ...]]:
    """The weights of each part, what lies outside of the blocks first."""
    names: dict[int, list[str]] = {part: [] for part in chain.parts}
    for name in points:
        names[chain.part_of(name)].append(name)
    return [tuple(of_part) for of_part in names.values() if of_part]


def observe_block_moments(replica: BlockReplica, weights: Sequence[str], first: int, last: int) -> UnitValue:
    """Unit: as `observe_moments`, of weights of one part; shards are not cut into pieces.

    Memory: the part, a hidden state, and what `observe_moments` says of so many weights.

    Args:
        replica: its files hold the float model's hidden states on the calibration shards.
        weights: names of the parameters, all of one part.
        first: first shard.
        last: the shard behind the last.
    """
    part = replica.chain.part_of(weights[0])
    replica.use(part)
    parameters = {name: replica.weight(name) for name in weights}
    total = Moments()
    for index in range(first, last):
        batch = replica.shard(DataSet.CALIBRATION, index)
        tap = MomentTap(parameters, replica.counted(batch))
        with torch.no_grad(), tap:
            _run_part(replica, part, index)
        total = merge_moments([total, tap.finish(batch_size(batch))])
    return total.to_value()


def _run_part(replica: BlockReplica, part: int, index: int) -> None:
    if part == OUTSIDE:
        behind = replica.state(DataSet.CALIBRATION, index, len(replica.chain.blocks))
        replica.leave(DataSet.CALIBRATION, index, behind)
        return
    hidden = replica.state(DataSet.CALIBRATION, index, part)
    arguments = replica.arguments(DataSet.CALIBRATION, index)
    replica.run_block(part, hidden, arguments[part])
