"""Batches: a tensor, a tuple, a list or a dict of tensors; counted, cut into shards, checked."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import length_hint
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from raysearch.errors import DataError

Batch = Any
"""A tensor, or a tuple, list or dict that holds tensors; dimension 0 of each counts samples."""


def map_tensors(batch: Batch, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """The same structure with every tensor replaced; other values stay."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {name: map_tensors(value, function) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, function) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map_tensors(value, function) for value in batch)
    return batch


def on_device(batch: Batch, device: torch.device | str) -> Batch:
    """A batch with every tensor on a device; the batch itself where all are there."""
    target = torch.device(device)
    if all(tensor.device == target for _, tensor in tensors_of(batch)):
        return batch
    return map_tensors(batch, lambda tensor: tensor.to(target))


def own_batch(batch: Batch) -> Batch:
    """A batch with copies of its tensors, where they are; containers are new too, other values the same."""
    return map_tensors(batch, torch.clone)


def is_changed(batch: Batch, before: Batch) -> bool:
    """Whether a tensor of a batch was changed or taken out since a copy was made; new ones do not count.

    Args:
        batch: as it is now.
        before: the copy.
    """
    present = dict(tensors_of(batch))
    for path, tensor in tensors_of(before):
        now = present.get(path)
        if now is None or now.dtype != tensor.dtype or now.shape != tensor.shape:
            return True
        if not bool(torch.isclose(now, tensor, rtol=0, atol=0, equal_nan=True).all()):
            return True
    return False


def host_copy(batch: Batch) -> Batch:
    """A batch with copies of its tensors in the host's memory, without history."""
    return map_tensors(batch, lambda tensor: tensor.detach().to("cpu", copy=True))


def tensors_of(batch: Batch, path: str = "batch") -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) of every tensor in a batch."""
    if isinstance(batch, torch.Tensor):
        yield path, batch
    elif isinstance(batch, Mapping):
        for name, value in batch.items():
            yield from tensors_of(value, f"{path}[{name!r}]")
    elif isinstance(batch, tuple | list):
        for index, value in enumerate(batch):
            yield from tensors_of(value, f"{path}[{index}]")


def batch_size(batch: Batch) -> int:
    """Samples in a batch: dimension 0 of its first tensor.

    Raises:
        DataError: it holds no tensor with a dimension.
    """
    for _, tensor in tensors_of(batch):
        if tensor.ndim:
            return int(tensor.shape[0])
    raise DataError(
        f"a batch of type {type(batch).__name__} holds no tensor; a batch is a tensor, or a tuple, list or "
        f"dict of tensors whose dimension 0 counts samples."
    )


def take(batch: Batch, start: int, stop: int) -> Batch:
    """Samples start … stop−1 of a batch.

    Args:
        batch: tensors whose dimension 0 counts samples; tensors without dimensions stay as they are.
        start: first sample.
        stop: the sample behind the last.
    """
    return map_tensors(batch, lambda tensor: tensor[start:stop] if tensor.ndim else tensor)


def pick(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some samples of a batch, in the order given; one may come more than once."""
    return map_tensors(batch, lambda t: t[torch.tensor(rows, device=t.device)] if t.ndim else t)


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of the samples of several, which must have one `joinable_form`.

    Example:
        >>> join([{"x": torch.zeros(2)}, {"x": torch.ones(1)}])
        {'x': tensor([0., 0., 1.])}
    """
    columns = zip(*([tensor for _, tensor in tensors_of(batch)] for batch in batches), strict=True)
    joined = iter([torch.cat(column) for column in columns])
    return map_tensors(batches[0], lambda _: next(joined))


def joinable_form(batch: Batch) -> str:
    """What two batches must agree in to be joined sample by sample: structure, types, other dimensions.

    Empty where a batch cannot be joined at all: it holds something else than tensors, or a tensor whose
    dimension 0 does not count samples.

    Example:
        >>> joinable_form((torch.zeros(3, 2), "text")), joinable_form(torch.zeros(3, 2))
        ('', "Tensor [('batch', torch.float32, (2,))]")
    """
    size = batch_size(batch)
    tensors = list(tensors_of(batch))
    if not _only_tensors(batch) or not all(t.ndim and len(t) == size for _, t in tensors):
        return ""
    parts = [(path, tensor.dtype, tuple(tensor.shape[1:])) for path, tensor in tensors]
    return f"{type(batch).__name__} {parts}"


def _only_tensors(batch: Batch) -> bool:
    if isinstance(batch, dict):
        return all(_only_tensors(value) for value in batch.values())
    if isinstance(batch, tuple | list):
        return all(_only_tensors(value) for value in batch)
    return isinstance(batch, torch.Tensor)


def materialise(data: Any, num_samples: int, shard_size: int, name: str) -> list[Batch]:
    """Read the first samples of a data set once, as shards of a fixed size.

    A map-style `Dataset` is read sample by sample in index order; anything else is an iterable of batches,
    read in its own order. A shard never crosses a batch, so its content does not depend on how many workers
    there are. Tensors are copied into the host's memory, so that a loader that reuses its buffers cannot
    change them. A loader that shuffles by torch's global generator does so from a fixed seed, and all
    generators are left as found.

    Args:
        data: a data set, a loader, a list or any iterable of batches.
        num_samples: how many samples are taken; 0 means all.
        shard_size: samples in a shard; the last of each batch may be smaller.
        name: what the data is for, for messages.

    Raises:
        DataError: no sample, tensors that count samples differently, or a value that is not finite (its
            place is named); or data that never ends, of which all is asked for.
    """
    shards: list[Batch] = []
    num_read = 0
    if not num_samples and _is_endless(data):
        raise DataError(
            f"the {name} data is an itertools.{type(data).__name__}, which has no end; set "
            f"validation.num_samples to how many samples are read, or pass a list, a DataLoader or a Dataset."
        )
    with seeded_torch(0), own_generators(data):
        for index, batch in enumerate(as_batches(data, shard_size, name)):
            where = f"the {name} data, batch {index}"
            _check_sizes(batch, where)
            size = batch_size(batch)
            if num_samples:
                size = min(size, num_samples - num_read)
            check_finite(take(batch, 0, size), where)
            for start in range(0, size, shard_size):
                part = take(batch, start, min(start + shard_size, size))
                shards.append(host_copy(part))
            num_read += size
            if num_samples and num_read >= num_samples:
                break
    if not num_read:
        raise DataError(
            f"the {name} data is empty: no batch came out of the {type(data).__name__}. A generator that was "
            f"read before is empty too; pass a list, a DataLoader or a Dataset."
        )
    return shards


def _is_endless(data: Any) -> bool:
    """Whether it is known to have no end; of a generator nobody knows."""
    if isinstance(data, itertools.repeat):
        return length_hint(data, -1) < 0
    return isinstance(data, itertools.cycle)


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Seed torch's global generator alone, and put it back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def own_generators(data: Any, seed: int | None = None) -> Iterator[None]:
    """A loader's own generators as they were afterwards; inside, seeded where a seed is given."""
    owners = (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None))
    generators = [getattr(owner, "generator", None) for owner in owners]
    own = [generator for generator in generators if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in own]
    for generator in own:
        if seed is not None:
            generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)


def as_batches(data: Any, size: int, name: str) -> Iterable[Batch]:
    """The data as an iterable of batches, in its own order.

    Args:
        data: whatever a task may have.
        size: samples in a batch, where the data does not say.
        name: what the data is for, for messages.

    Raises:
        DataError: it cannot be iterated.
    """
    if is_map_style(data):
        return DataLoader(data, batch_size=size, shuffle=False)
    if is_ray_data(data):
        return RayBatches(data, batch_size=size)
    if isinstance(data, Iterable):
        return data
    raise DataError(
        f"the {name} data is a {type(data).__name__}, which cannot be iterated; pass a Dataset, a DataLoader "
        f"or a list of batches."
    )


def is_ray_data(data: Any) -> bool:
    """Whether it is a `ray.data.Dataset`, which is not imported here."""
    return type(data).__module__.startswith("ray.data.") and hasattr(data, "iter_torch_batches")


class RayBatches:
    """Batches of a data set of Ray Data, whose blocks come in their order, in memory that may be written.

    Args:
        data: of Ray Data.
        options: of its `iter_torch_batches`.
    """

    def __init__(self, data: Any, **options: Any) -> None:
        self._data = data
        self._options = options

    def __iter__(self) -> Iterator[Batch]:
        self._data.context.execution_options.preserve_order = True
        batches = iter(self._data.iter_torch_batches(**self._options))
        while True:
            with warnings.catch_warnings():
                # Blocks lie in the memory that Ray's processes share; a copy is handed out.
                warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
                batch = next(batches, None)
            if batch is None:
                return
            yield own_batch(batch)


def is_map_style(data: Any) -> bool:
    """Whether it has a length and items that are samples."""
    if isinstance(data, Dataset):
        return not isinstance(data, IterableDataset)
    # A data set of Hugging Face has a length and items, and is no torch Dataset.
    from_hugging_face = any(base.__module__.split(".")[0] == "datasets" for base in type(data).__mro__)
    return from_hugging_face and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def check_dense(batch: Batch, where: str) -> None:
    """Refuse tensors that are sparse, nested or quantized, or have no values.

    Raises:
        DataError: names the tensor.
    """
    for path, tensor in tensors_of(batch):
        is_odd = tensor.is_nested or tensor.is_quantized or tensor.layout is not torch.strided
        if tensor.is_meta or is_odd:
            what = "on the meta device" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}"
            if tensor.is_nested:
                what = "a nested tensor"
            raise DataError(f"{where}: {path} is {what}; give dense tensors with values (`.to_dense()`).")


def _check_sizes(batch: Batch, where: str) -> None:
    check_dense(batch, where)
    sizes = {path: int(tensor.shape[0]) for path, tensor in tensors_of(batch) if tensor.ndim}
    if len(set(sizes.values())) > 1:
        listing = ", ".join(f"{path} has {size}" for path, size in sizes.items())
        raise DataError(
            f"{where}: dimension 0 of every tensor counts samples, but {listing}. Repeat what all samples "
            f"share, or keep it in the model."
        )


def check_finite(batch: Batch, where: str) -> None:
    """Refuse a batch with a value that is not finite.

    Raises:
        DataError: names the sample and the tensor.
    """
    for path, tensor in tensors_of(batch):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            flat = torch.isfinite(tensor).reshape(tensor.shape[0], -1).all(1) if tensor.ndim else None
            sample = "" if flat is None else f", sample {int((~flat).nonzero()[0])}"
            raise DataError(f"{where}{sample}: {path} holds NaN or infinity. Remove or repair that sample.")
