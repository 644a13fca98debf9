"""BatchNorm adaptation: running statistics taken anew, without touching anything else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raysearch.errors import DataError, StorageError
from raysearch.evaluation import Batch, Forward, batch_size, default_forward
from raysearch.evaluation.batches import map_tensors, take
from raysearch.evaluation.forward import frozen_eval

_FIELDS = ("running_mean", "running_var", "num_batches_tracked")


def adapt_batch_norm(
    model: nn.Module,
    batches: Iterable[Batch],
    forward: Forward = default_forward,
    num_samples: int = 2000,
    *,
    cumulative: bool = False,
) -> dict[str, Tensor]:
    """The running statistics that every BatchNorm would have after the first `num_samples` samples.

    Only BatchNorm modules are in train mode; dropout and all others keep to eval. Quantizers act as they
    are switched now, so a model whose quantizers are switched later must be adapted again then. Per batch
    with mean μ_B and unbiased variance σ²_B:

        running ← (1 − m)·running + m·(μ_B, σ²_B)      m the module's own momentum
        running = mean over batches of (μ_B, σ²_B)      with `cumulative`: the start is forgotten

    The last batch is cut so that exactly `num_samples` are read; a rest of one sample is left out, since it
    has no variance. The model is left as found, also by an exception: buffers, flags, momenta and the
    global generator. Cost: one forward a batch, and a copy of the buffers.

    Args:
        model: any model; usually with its quantizers attached and on.
        batches: in the order they are read.
        forward: (model, batch) → outputs.
        num_samples: how many samples are read; 0 means none, and the present statistics come back.
        cumulative: the plain mean over batches instead of the modules' own momentum.

    Returns:
        Name in the state dict → new value, on the CPU, of every BatchNorm that tracks statistics;
        `apply_batch_norm` writes them.

    Raises:
        DataError: there are fewer than two samples, or a statistic becomes NaN or infinite; names the layer.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    }
    with _restored_buffers(model), frozen_eval(model), _training(norms.values(), cumulative), torch.no_grad():
        if norms and num_samples:
            _feed(model, batches, forward, num_samples)
        statistics = {
            f"{name}.{field}" if name else field: getattr(module, field).detach().cpu().clone()
            for name, module in norms.items()
            for field in _FIELDS
        }
    for name, value in statistics.items():
        if not bool(torch.isfinite(value).all()):
            raise DataError(
                f"adapting the BatchNorm statistics makes '{name}' NaN or infinite; mend the data or the "
                f"weights before that layer."
            )
    return statistics


def apply_batch_norm(model: nn.Module, statistics: Mapping[str, Tensor]) -> None:
    """Write what `adapt_batch_norm` returned into a model, all of it or nothing.

    Raises:
        StorageError: the model lacks a buffer, or has it in another shape; names it.
    """
    buffers = dict(model.named_buffers())
    for name, value in statistics.items():
        if name not in buffers or buffers[name].shape != value.shape:
            raise StorageError(
                f"the model has no BatchNorm statistic '{name}' of shape {tuple(value.shape)}: the "
                f"statistics are of another model. Adapt them anew."
            )
    with torch.no_grad():
        for name, value in statistics.items():
            buffers[name].copy_(value)


def _feed(model: nn.Module, batches: Iterable[Batch], forward: Forward, num_samples: int) -> None:
    first = next(model.parameters(), None)
    left = num_samples
    num_read = 0
    for batch in batches:
        size = min(batch_size(batch), left)
        if size > 1:
            part = take(batch, 0, size)
            if first is not None:
                device = first.device
                part = map_tensors(part, lambda tensor, to=device: tensor.to(to))  # type: ignore[misc]
            forward(model, part)
            num_read += size
        left -= size
        if left <= 0:
            break
    if not num_read:
        raise DataError(
            "BatchNorm statistics cannot be adapted: there is no batch of at least two samples. Give larger "
            "batches, or set the number of samples to 0."
        )


@contextmanager
def _training(norms: Iterable[_BatchNorm], cumulative: bool) -> Iterator[None]:
    momenta = [(norm, norm.momentum) for norm in norms]
    try:
        for norm, _ in momenta:
            norm.training = True
            if cumulative:
                norm.reset_running_stats()
                norm.momentum = None
        yield
    finally:
        # The flags are put back by `frozen_eval`, the buffers by `_restored_buffers`.
        for norm, momentum in momenta:
            norm.momentum = momentum


@contextmanager
def _restored_buffers(model: nn.Module) -> Iterator[None]:
    # Objects and values: a forward may write into a buffer, or put another tensor in its place.
    saved = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in saved:
                if buffer is not None and value is not None:
                    buffer.copy_(value)
                module._buffers[name] = buffer
