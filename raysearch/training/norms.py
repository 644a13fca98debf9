"""BatchNorm in training: statistics over all workers, and statistics that stay."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.nn import functional as collectives
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The modules that normalise by the statistics of a batch in training."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def synchronise(model: nn.Module, world: int) -> None:
    """Let every BatchNorm take the statistics of all workers' samples, on any device.

    torch's own SyncBatchNorm runs on GPUs alone, and is another module, which has none of the hooks that
    quantizers sit on.

    Args:
        model: on every rank; changed in place.
        world: ranks that train together.
    """
    if world == 1:
        return
    for module in batch_norms(model):
        # As a plain attribute of this one instance it takes the place of the class's.
        object.__setattr__(module, "forward", partial(_forward, module, module.forward))


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """With every BatchNorm by the samples of this rank, which then waits for no other."""
    changed = [module for module in batch_norms(model) if "forward" in vars(module)]
    forwards = [vars(module).pop("forward") for module in changed]
    try:
        yield
    finally:
        for module, forward in zip(changed, forwards, strict=True):
            object.__setattr__(module, "forward", forward)


def _forward(module: _BatchNorm, plain: object, x: Tensor) -> Tensor:
    """The normalised batch.

    Args:
        module: whose parameters and statistics are used.
        plain: the module's own forward, for what needs no other rank.
        x: a batch, channels in dimension 1.
    """
    uses_batch = module.training or module.running_mean is None
    if not uses_batch:
        result: Tensor = plain(x)  # type: ignore[operator]
        return result
    others = [dim for dim in range(x.ndim) if dim != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    count = _summed(x.new_tensor(float(x.numel() // x.shape[1])))
    mean = _summed(x.sum(others)) / count
    centred = x - mean.reshape(shape)
    # In a second round: the difference of mean square and squared mean would cancel.
    variance = _summed(centred.square().sum(others)) / count
    _remember(module, mean.detach(), (variance * count / (count - 1)).detach())
    result = centred * (variance + module.eps).rsqrt().reshape(shape)
    if module.weight is not None:
        result = result * module.weight.reshape(shape) + module.bias.reshape(shape)
    return result


def _summed(value: Tensor) -> Tensor:
    """The sum over all ranks, with its gradient."""
    with warnings.catch_warnings():
        # torch tells of a later name of this function.
        warnings.filterwarnings("ignore", "torch.distributed.nn.functional.all_reduce", FutureWarning)
        result: Tensor = collectives.all_reduce(value)  # type: ignore[no-untyped-call]
    return result


@torch.no_grad()
def _remember(module: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards a batch's, as the module does by itself."""
    if not module.training or module.running_mean is None or module.running_var is None:
        return
    momentum = module.momentum
    if module.num_batches_tracked is not None:
        module.num_batches_tracked += 1
        if momentum is None:
            momentum = 1 / float(module.num_batches_tracked)
    module.running_mean.lerp_(mean, momentum or 0.0)
    module.running_var.lerp_(variance, momentum or 0.0)
