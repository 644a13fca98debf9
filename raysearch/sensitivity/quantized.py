"""A worker's quantized twin of its float model: built once, switched from option to option."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from hashlib import blake2b

from torch import Tensor

from raysearch.controller import QuantizationController, create_controller
from raysearch.evaluation import Replica
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable


@dataclass
class _Twin:
    setup: QuantizerSetup
    ranges: RangeTable
    key: str
    controller: QuantizationController


def quantized_twin(replica: Replica, setup: QuantizerSetup, ranges: RangeTable) -> QuantizationController:
    """The controller of a copy of the replica's model, all quantizers off; cached per setup and ranges.

    Cost: nothing for the objects of the last call, one hash for others with the same content, else one copy
    of the model.
    """
    twin: _Twin | None = replica.cache.get("twin")
    # A hash costs as much as a small forward, and most units of a call bring the same two objects.
    if twin is not None and twin.setup is setup and twin.ranges is ranges:
        return twin.controller
    key = setup.fingerprint() + blake2b(ranges.to_bytes(), digest_size=16).hexdigest()
    if twin is not None and twin.key == key:
        twin.setup, twin.ranges = setup, ranges
        return twin.controller
    controller = create_controller(copy.deepcopy(replica.model), setup, ranges, BitAssignment({}))
    replica.cache["twin"] = _Twin(setup, ranges, key, controller)
    return controller


def quantized_outputs(
    replica: Replica, controller: QuantizationController, assignment: BitAssignment, data: str, index: int
) -> Tensor:
    """Judged outputs of the twin under an assignment on one shard; unnamed groups stay float."""
    controller.apply(assignment)
    return replica.run(controller.model, replica.shard(data, index))
