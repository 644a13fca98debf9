"""The quantized model on the validation data, shared over the ranks."""

from __future__ import annotations

from torch import nn

from raysearch.evaluation.measure import Measures, ShardMetrics, evaluate_shards, over_samples
from raysearch.training.context import Context
from raysearch.training.recipe import Recipe
from raysearch.training.step import place


def validate(recipe: Recipe, context: Context, model: nn.Module, teacher: nn.Module) -> dict[str, float]:
    """Means over the validation samples: each rank judges every `world`-th shard, and all sum all of them.

    Summed in the order of the shards, so the bits do not depend on how many ranks there are.

    Args:
        recipe: its validation shards, and how they are judged.
        context: this rank.
        model: alike on all ranks, buffers included.
        teacher: the float model.
    """
    indices = range(context.rank, len(recipe.validation), context.world)
    # One at a time: all validation samples together need not fit on a GPU.
    shards = (place(recipe.validation[index], context.device) for index in indices)
    measures = Measures(recipe.forward, recipe.divergence, teacher, recipe.loss, recipe.metrics)
    judged = evaluate_shards(model, shards, measures)
    by_index: dict[int, ShardMetrics] = {}
    for rank, values in enumerate(context.gather(judged)):
        by_index.update(zip(range(rank, len(recipe.validation), context.world), values, strict=True))
    in_order = [by_index[index] for index in sorted(by_index)]
    return over_samples(in_order, recipe.metrics).values
