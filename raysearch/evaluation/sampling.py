"""A random sample of a data set, in random order: any first part of it stands for the whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from raysearch.evaluation.batches import Batch, batch_size, map_tensors, take, tensors_of


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
    if not _is_uniform(batches):
        kept: list[Batch] = []
        count = 0
        for index in torch.randperm(len(batches), generator=generator).tolist():
            kept.append(batches[index])
            count += batch_size(batches[index])
            if num_samples and count >= num_samples:
                break
        return kept, False
    columns = [torch.cat(parts) for parts in zip(*(_tensors(batch) for batch in batches), strict=True)]
    total = len(columns[0])
    order = torch.randperm(total, generator=generator)[: num_samples or total]
    chosen = iter([column[order] for column in columns])
    whole = map_tensors(batches[0], lambda _: next(chosen))
    starts = range(0, len(order), shard_size)
    # Cloned, so that a shard does not carry the whole sample's memory to the workers.
    return [map_tensors(take(whole, i, i + shard_size), torch.clone) for i in starts], True


def _tensors(batch: Batch) -> list[torch.Tensor]:
    return [tensor for _, tensor in tensors_of(batch)]


def _is_uniform(batches: Sequence[Batch]) -> bool:
    def form(batch: Batch) -> object:
        parts = tuple((path, tensor.dtype, tensor.shape[1:]) for path, tensor in tensors_of(batch))
        return type(batch), parts

    return all(
        form(batch) == form(batches[0])
        and all(tensor.ndim and len(tensor) == batch_size(batch) for tensor in _tensors(batch))
        and _only_tensors(batch)
        for batch in batches
    )


def _only_tensors(batch: Batch) -> bool:
    if isinstance(batch, dict):
        return all(_only_tensors(value) for value in batch.values())
    if isinstance(batch, tuple | list):
        return all(_only_tensors(value) for value in batch)
    return isinstance(batch, torch.Tensor)
