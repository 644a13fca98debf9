"""Work on a batch that may not fit in memory: in one piece, or in the largest pieces that do."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from raysearch.errors import TaskError, UnitError
from raysearch.evaluation.batches import Batch, batch_size, take

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_ALLOCATORS_SAY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    # What cuDNN says where no algorithm fits into the memory that is left for its workspace.
    "unable to find an engine",
    "Unable to find a valid cuDNN algorithm",
)


@dataclass
class MicrobatchState:
    """The largest number of samples that is tried at once; None while everything has fitted."""

    num_samples: int | None = None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the host had no memory left.

    torch raises its own `OutOfMemoryError` only for a GPU. Its allocator of host memory raises a plain
    `RuntimeError`, as do libraries of the GPU that could not get their workspace.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATORS_SAY)


def run_in_microbatches(
    function: Callable[[Batch], _Result],
    batch: Batch,
    state: MicrobatchState,
    *,
    combine: Callable[[Sequence[_Result]], _Result] | None = None,
    name: str = "a batch",
) -> _Result:
    """Apply a function to a batch; where memory does not suffice, to halves of it, quarters, and so on.

    A piece that fits is not computed again. The size that fitted stays in `state`, so that later batches
    begin with it instead of failing first.

    Precision: with one piece the result is the function's own. With more, each sample goes through the
    same operations, but a kernel may sum in another order for another number of samples (matrix products
    do), so rows equal those of the whole batch up to float32 rounding and not always bit for bit. A warning
    says so; a `shard_size` of the size it names makes all workers cut alike.

    Args:
        function: batch → result; it must treat samples independently, as a model in eval mode does.
        batch: what is worked on; dimension 0 of its tensors counts samples.
        state: remembers the size, for one kind of work on one device.
        combine: puts the results of the pieces, in order, together. Default: tensors are concatenated along
            dimension 0, also inside tuples, lists, dicts and objects with `logits`. For sums over samples:
            `sum`.
        name: what the batch is, for messages.

    Raises:
        UnitError: one sample alone does not fit.
        TaskError: with the default `combine`: a result has not one row a sample.

    Work: one call of `function` per piece, and one failed call per halving.

    Example:
        >>> run_in_microbatches(lambda part: part * 2, torch.arange(3), MicrobatchState(2)).tolist()
        [0, 2, 4]
    """
    total = batch_size(batch)
    if state.num_samples is None or state.num_samples >= total:
        try:
            return function(batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = repr(error)
        _shrink(state, total, name, reason)
    results: list[_Result] = []
    sizes: list[int] = []
    while (start := sum(sizes)) < total:
        stop = min(start + (state.num_samples or total), total)
        try:
            results.append(function(take(batch, start, stop)))
            sizes.append(stop - start)
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = repr(error)
        # After the handler: while it runs, the traceback keeps the failed attempt's tensors alive.
        _shrink(state, stop - start, name, reason)
    if combine is not None:
        return combine(results)
    joined: _Result = _concatenated(results, sizes, name)
    return joined


def _shrink(state: MicrobatchState, num_samples: int, name: str, reason: str) -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if num_samples == 1:
        raise UnitError(
            f"one sample of {name} alone does not fit in memory: {reason}. Give each worker more: fewer "
            f"workers on a node, or a larger share of a GPU (cluster.gpus_per_worker); or compute on the "
            f"host (cluster.device='cpu'), or use smaller samples."
        )
    state.num_samples = (num_samples + 1) // 2
    _log.warning(
        "%d samples of %s do not fit in memory (%s); this worker goes on with %d at a time. Results equal "
        "those of whole shards up to rounding; a shard_size of %d makes them equal on all workers",
        num_samples,
        name,
        reason,
        state.num_samples,
        state.num_samples,
    )


def _concatenated(results: Sequence[Any], sizes: Sequence[int], name: str) -> Any:
    first = results[0]
    if isinstance(first, Tensor):
        if any(not part.ndim or len(part) != size for part, size in zip(results, sizes, strict=True)):
            raise TaskError(
                f"{name} does not fit in memory at once, and results of its pieces cannot be put together: "
                f"{sizes[0]} samples gave a tensor of shape {tuple(first.shape)}, not one row a sample. "
                f"Lower shard_size to {max(sizes)}."
            )
        return torch.cat(list(results))
    if isinstance(first, Mapping):
        entries = {key: _concatenated([part[key] for part in results], sizes, name) for key in first}
        # Outputs of transformers are mappings with attributes of the same names.
        return entries if type(first) is dict else type(first)(**entries)
    if isinstance(first, tuple | list):
        joined = [_concatenated(parts, sizes, name) for parts in zip(*results, strict=True)]
        return type(first)(*joined) if hasattr(first, "_fields") else type(first)(joined)
    if hasattr(first, "logits"):
        # An output object of a model's own; see `output_tensor`.
        combined = copy.copy(first)
        for key in vars(first):
            # Past a frozen dataclass's own setter: the copy is not yet anyone's.
            object.__setattr__(
                combined, key, _concatenated([vars(part)[key] for part in results], sizes, name)
            )
        return combined
    return first
