"""Graphs from outputs back to layers: what requires gradients, where a layer is in them, how many at once."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from raysearch.evaluation.batches import Batch
from raysearch.evaluation.outputs import values_per_sample
from raysearch.evaluation.replica import Replica
from raysearch.evaluation.shard_view import ShardView

MAX_OUTPUTS = 2**20
"""Output values whose graph and float64 factors are held at once: 8 MiB each."""


def samples_at_once(view: ShardView, one: Batch, most: int) -> int:
    """At most `most` samples, and no more than have `MAX_OUTPUTS` values in all, as known from one sample.

    Args:
        view: the shard.
        one: a batch of one of its samples.
        most: the limit where outputs are small.

    Raises:
        UnitError: one sample alone does not fit in memory.
    """
    num_outputs = values_per_sample(view.replica.run(view.replica.model, one, view.name))
    return max(1, min(most, MAX_OUTPUTS // num_outputs))


def require_gradients(replica: Replica) -> None:
    """Let every parameter require gradients, so that all layers' outputs are in the graph."""
    for parameter in replica.model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())


def with_edge(output: Tensor) -> tuple[Tensor, GradientEdge]:
    """What a layer is to give in place of its output, and the edge of the graph that this leaves by."""
    if output._is_view():
        # An in-place operation on a view would leave the graph that the edge is taken from.
        output = output.clone()
    return output, get_gradient_edge(output)
