"""Models of which no worker holds a replica: one block at a time, and the hidden states that enter it."""

from raysearch.blockwise.chain import OUTSIDE, Chain, find_chain
from raysearch.blockwise.files import BlockFiles
from raysearch.blockwise.float_pass import pass_blocks
from raysearch.blockwise.ranges import StoredRanges
from raysearch.blockwise.replica import BlockReplica, without_weights

__all__ = [
    "OUTSIDE",
    "BlockFiles",
    "BlockReplica",
    "Chain",
    "StoredRanges",
    "find_chain",
    "pass_blocks",
    "without_weights",
]
