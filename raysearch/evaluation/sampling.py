"""A random sample of a data set, in random order: any first part of it stands for the whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raysearch.evaluation.batches import Batch, batch_size, join, joinable_form, map_tensors, take


def random_shards(
    batches: Sequence[Batch], num_samples: int, shard_size: int, seed: int
) -> tuple[list[Batch], bool]:
    """Shards of a random sample, drawn without replacement.

    Samples are drawn one by one where the batches allow it: all of one structure, every tensor with samples
    along dimension 0 and the same other dimensions, nothing but tensors in them. Otherwise (texts padded
    batch by batch, say) whole batches are drawn, and each is a shard.

    Args:
        batches: the data.
        num_samples: samples to draw; 0 means all. Whole batches are drawn until there are as many.
        shard_size: samples in a shard; the last one may be smaller.
        seed: of the order.

    Returns:
        The shards, and whether single samples are in random order, not only the shards.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    forms = {joinable_form(batch) for batch in batches}
    if len(forms) > 1 or "" in forms:
        chosen: list[Batch] = []
        count = 0
        for index in torch.randperm(len(batches), generator=generator).tolist():
            chosen.append(batches[index])
            count += batch_size(batches[index])
            if num_samples and count >= num_samples:
                break
        return chosen, False
    joined = join(batches)
    total = batch_size(joined)
    order = torch.randperm(total, generator=generator)[: num_samples or total]
    shuffled = map_tensors(joined, lambda tensor: tensor[order])
    starts = range(0, len(order), shard_size)
    # Cloned, so that a shard does not carry the whole sample's memory to the workers.
    return [map_tensors(take(shuffled, i, i + shard_size), torch.clone) for i in starts], True
