"""A worker's quantized twin of its float model: built once, switched from option to option."""

from __future__ import annotations

import copy
from hashlib import blake2b

from torch import Tensor

from raysearch.controller import QuantizationController, create_controller
from raysearch.evaluation import Replica
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable


def quantized_twin(replica: Replica, setup: QuantizerSetup, ranges: RangeTable) -> QuantizationController:
    """The controller of a copy of the replica's model, all quantizers off; cached per setup and ranges."""
    key = setup.fingerprint() + blake2b(ranges.to_bytes(), digest_size=8).hexdigest()
    cached = replica.cache.get("twin")
    if cached is None or cached[0] != key:
        controller = create_controller(copy.deepcopy(replica.model), setup, ranges, BitAssignment({}))
        replica.cache["twin"] = cached = (key, controller)
    found: QuantizationController = cached[1]
    return found


def quantized_outputs(
    replica: Replica, controller: QuantizationController, assignment: BitAssignment, data: str, index: int
) -> Tensor:
    """Judged outputs of the twin under an assignment on one shard; unnamed groups stay float."""
    controller.apply(assignment)
    return replica.run(controller.model, replica.shard(data, index))
