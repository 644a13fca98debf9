"""What the weight of a layer is multiplied with: the vectors u of y = W u, one a position of the output.

N  samples    P  output positions    G  groups    d  inputs of one output channel, kernel positions included
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from raysearch.hooks.einsum import read_einsum
from raysearch.hooks.functions import EAGER_CALLS, Call, plain_arguments
from raysearch.hooks.layer_arguments import CONVOLUTIONS, LAYER_ARGUMENTS, TRANSPOSED

PATCH_BYTES = 2**26
"""Vectors that are held at once; more are made in pieces of whole samples, whose sums are added in order."""

LayerKind = Literal["linear", "product", "batched", "batched_product", "conv", "transposed", "embedding"]
"""A linear weight is [out, in], that of a product [in, out]; batched ones have one such matrix a group."""

_TURNED: Mapping[LayerKind, LayerKind] = {
    "linear": "product",
    "product": "linear",
    "batched": "batched_product",
    "batched_product": "batched",
}


@dataclass(frozen=True)
class Geometry:
    """All that decides which vectors a layer reads from its input.

    Attributes:
        kind: the operation.
        groups: convolution groups, or matrices of a batched weight; 1 of other layers.
        kernel: spatial sizes of the kernel.
        stride: per spatial dimension.
        dilation: per spatial dimension.
        padding: zeros before and after, per spatial dimension.
        axis: of a linear layer or a product, where the input has what one row reads.
    """

    kind: LayerKind
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    axis: int = -1

    def turned(self) -> Geometry | None:
        """The same for a weight that is given with its last two dimensions swapped; None of a convolution."""
        kind = _TURNED.get(self.kind)
        return None if kind is None else replace(self, kind=kind)


@dataclass(frozen=True)
class LayerCall:
    """One call of a function that reads a weight.

    Attributes:
        geometry: which vectors it reads.
        input: what it reads them from.
        weight: the weight, or a part or a view of one.
        order: of an einsum: the output's dimensions in the order of the input's, that of the rows last.
    """

    geometry: Geometry
    input: Tensor
    weight: Tensor
    order: tuple[int, ...] | None = None


def read_calls(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[LayerCall, ...]:
    """What a torch function may have read a weight for; of a product either factor may be the weight.

    Args:
        function: as torch's override protocol passes it.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
    """
    call = EAGER_CALLS.get(function)
    if call is not None and call.kind in ("matmul", "einsum", "bilinear"):
        return _products(call, plain_arguments(function, tuple(args)), dict(kwargs))
    kind = _LAYERS.get(function)
    if kind is None:
        return ()
    values = {**dict(zip(LAYER_ARGUMENTS[function], args, strict=False)), **kwargs}
    source, weight = values.get("input"), values.get("weight")
    if not isinstance(source, Tensor) or not isinstance(weight, Tensor):
        return ()
    if kind in ("linear", "embedding"):
        return (LayerCall(Geometry(kind), source, weight),)
    return (LayerCall(_convolution(kind, weight, values), source, weight),)


def _products(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[LayerCall, ...]:
    slots = call.slots(args, kwargs)
    if slots is None:
        return ()
    factors = [args[slot] if isinstance(slot, int) else kwargs[slot] for slot in slots]
    if not all(isinstance(factor, Tensor) and factor.ndim for factor in factors):
        return ()
    first, second = factors
    if call.kind == "bilinear":
        weight = args[2] if len(args) > 2 else kwargs["weight"]
        # Each row reads the products of all pairs of inputs.
        pairs = (first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2)
        return (LayerCall(Geometry("linear"), pairs, weight),)
    if call.kind == "einsum":
        return _einsum(args[0], first, second)
    calls = []
    if second.ndim > 1:
        calls.append(LayerCall(_product("product", "batched_product", second, -1), first, second))
    if first.ndim > 1 and second.ndim > 1:
        calls.append(LayerCall(_product("linear", "batched", first, -2), second, first))
    return tuple(calls)


def _product(plain: LayerKind, batched: LayerKind, weight: Tensor, axis: int) -> Geometry:
    """x·W, or W·x; a weight of three dimensions is a matrix for each entry of the first."""
    if weight.ndim == 2:
        return Geometry(plain, axis=axis)
    return Geometry(batched, groups=weight.shape[-3], axis=axis)


def _einsum(text: str, first: Tensor, second: Tensor) -> tuple[LayerCall, ...]:
    """The factors that are a matrix whose one dimension is summed over and whose other one the result has."""
    equation = read_einsum(text, (first.shape, second.shape))
    if equation is None:
        return ()
    calls = []
    factors = (first, second)
    for index, weight in enumerate(factors):
        labels, other = equation.operands[index], equation.operands[1 - index]
        summed = set(labels + other) - set(equation.result)
        if weight.ndim != 2 or len(summed) != 1 or not summed <= set(labels) & set(other):
            continue
        label = summed.pop()
        outer = labels.replace(label, "")
        if outer not in other:
            kind: LayerKind = "linear" if labels[1] == label else "product"
            axis = other.index(label) - len(other)
            order = tuple(map(equation.result.index, other.replace(label, "") + outer))
            calls.append(LayerCall(Geometry(kind, axis=axis), factors[1 - index], weight, order))
    return tuple(calls)


def counted_vectors(geometry: Geometry, values: Tensor, counted: Tensor | None) -> Tensor | None:
    """Which of the vectors that a layer reads count, bool [vectors]; None: all.

    All do where the input has no such positions, as that of a convolution or of a batched weight.

    Args:
        geometry: of the call.
        values: its input.
        counted: which positions of the samples count, bool [N, …]; None: all.
    """
    if counted is None or geometry.groups > 1 or geometry.kernel or geometry.axis != -1:
        return None
    places = values.shape if geometry.kind == "embedding" else values.shape[:-1]
    if _has_positions_first(values, counted):
        counted = counted.transpose(0, 1)
    # GPT-2's layers read the samples of a batch one after the other.
    elif places[: counted.ndim] != counted.shape and places != (counted.numel(),):
        return None
    each = max(1, places.numel()) // counted.numel()
    return counted.to(values.device).reshape(-1, 1).expand(-1, each).flatten()


def _has_positions_first(values: Tensor, counted: Tensor) -> bool:
    """Whether an input is [positions, samples, …], as torch's attention has it inside.

    With as many samples as positions the sizes do not tell, but a transposed view does.
    """
    samples, positions = counted.shape[:2]
    if values.ndim < 3 or values.shape[:2] != (positions, samples):
        return False
    return samples != positions or values.stride(0) < values.stride(1)


def where_counted(geometry: Geometry, values: Tensor, counted: Tensor | None) -> Tensor:
    """What a layer reads at the positions that count; see `counted_vectors`."""
    rows = counted_vectors(geometry, values, counted)
    if rows is None:
        return values
    return values.reshape(len(rows), *values.shape[values.ndim - (geometry.kind != "embedding") :])[rows]


def vectors(geometry: Geometry, source: Tensor) -> Iterator[Tensor]:
    """The vectors that a layer's weight is multiplied with, [G, d, vectors] a piece; float32, or the input's.

    Linear and products: the input's rows along `axis`, over all other axes. Convolution: patches of the
    padded input, channels first, per group. Transposed convolution: an output position reads those inputs
    whose kernel covers it, which are the patches of the input with stride − 1 zeros put between its values,
    under the kernel turned round; so d is again (channels of a group) · (kernel positions), as the weight
    has them.
    """
    if geometry.kind in _TURNED:
        yield _computable(_rows(geometry, source))
        return
    dims = len(geometry.kernel)
    samples = source if source.ndim == dims + 2 else source[None]
    size = (
        prod(samples.shape[2:]) if geometry.kind == "transposed" else prod(_output_sizes(geometry, samples))
    )
    stuffing = prod(geometry.stride) if geometry.kind == "transposed" else 1
    sample_bytes = 4 * samples.shape[1] * prod(geometry.kernel) * size * stuffing
    for part in torch.split(samples, max(1, PATCH_BYTES // max(1, sample_bytes))):
        yield _patches(geometry, part)


def _rows(geometry: Geometry, source: Tensor) -> Tensor:
    """[G, d, vectors] of the input of a linear layer or a product."""
    moved = (source if source.ndim > 1 else source[None]).movedim(geometry.axis, -1)
    num_inputs = moved.shape[-1]
    if geometry.groups == 1:
        return moved.reshape(1, -1, num_inputs).transpose(1, 2)
    # A matrix for each entry of the dimension before the last two; the input may have one row block for all.
    if moved.ndim == 2:
        moved = moved[None]
    spread = moved.expand(*moved.shape[:-3], geometry.groups, *moved.shape[-2:])
    return spread.movedim(-3, 0).reshape(geometry.groups, -1, num_inputs).transpose(1, 2)


def counts(source: Tensor, num_rows: int, counting: Tensor | None = None) -> Tensor:
    """How often each row of an embedding is read, float64, [rows].

    Args:
        source: the rows that are read.
        num_rows: how many there are.
        counting: what each read counts, float64; 1 where it is not given.
    """
    if counting is not None:
        counting = counting.reshape(-1)
    return torch.bincount(source.reshape(-1), counting, minlength=num_rows).double()


def _patches(geometry: Geometry, samples: Tensor) -> Tensor:
    """[N, channels, sizes…] → [G, d, N·P]."""
    stride, padding = geometry.stride, geometry.padding
    if geometry.kind == "transposed":
        samples = _stuffed(samples, stride)
        stride = (1,) * len(stride)
    # F.pad takes the last dimension first.
    amounts = [amount for pair in reversed(padding) for amount in pair]
    windows = F.pad(samples, amounts)
    for dim, (size, step, gap) in enumerate(zip(geometry.kernel, stride, geometry.dilation, strict=True)):
        windows = windows.unfold(2 + dim, gap * (size - 1) + 1, step)
        windows = windows[..., ::gap]
    dims = len(geometry.kernel)
    if geometry.kind == "transposed":
        windows = windows.flip(tuple(range(-dims, 0)))
    # [N, channels, P…, kernel…] → [channels, kernel…, N, P…]
    order = (1, *range(2 + dims, 2 + 2 * dims), 0, *range(2, 2 + dims))
    ordered = _computable(windows.permute(order))
    per_group = samples.shape[1] // geometry.groups * prod(geometry.kernel)
    return ordered.reshape(geometry.groups, per_group, -1)


def _computable(values: Tensor) -> Tensor:
    """Half precision as float32: sums of its products would lose what the damping does not cover."""
    return values.float() if values.element_size() < 4 else values


def _stuffed(samples: Tensor, stride: Sequence[int]) -> Tensor:
    """The samples with stride − 1 zeros between neighbours."""
    if all(step == 1 for step in stride):
        return samples
    sizes = [(size - 1) * step + 1 for size, step in zip(samples.shape[2:], stride, strict=True)]
    result = samples.new_zeros((*samples.shape[:2], *sizes))
    places = tuple(slice(None, None, step) for step in stride)
    result[(slice(None), slice(None), *places)] = samples
    return result


def _output_sizes(geometry: Geometry, samples: Tensor) -> list[int]:
    sizes = []
    for dim, size in enumerate(samples.shape[2:]):
        reach = geometry.dilation[dim] * (geometry.kernel[dim] - 1) + 1
        sizes.append((size + sum(geometry.padding[dim]) - reach) // geometry.stride[dim] + 1)
    return sizes


def _convolution(kind: LayerKind, weight: Tensor, values: Mapping[str, Any]) -> Geometry:
    kernel = tuple(weight.shape[2:])
    dims = len(kernel)
    stride = _each(values.get("stride", 1), dims)
    dilation = _each(values.get("dilation", 1), dims)
    reach = [gap * (size - 1) for gap, size in zip(dilation, kernel, strict=True)]
    padding_argument = values.get("padding", 0)
    if padding_argument == "valid":
        padding = [(0, 0)] * dims
    elif padding_argument == "same":
        # torch puts the odd zero behind.
        padding = [(total // 2, total - total // 2) for total in reach]
    else:
        padding = [(amount, amount) for amount in _each(padding_argument, dims)]
    if kind == "transposed":
        behind = _each(values.get("output_padding", 0), dims)
        padding = [
            (total - front, total - back + more)
            for total, (front, back), more in zip(reach, padding, behind, strict=True)
        ]
    return Geometry(kind, int(values.get("groups", 1)), kernel, stride, dilation, tuple(padding))


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """One number a dimension, of a number or of a tuple that may have one entry for all."""
    entries = tuple(value) if isinstance(value, Sequence) else (value,)
    return tuple(map(int, entries * dims if len(entries) == 1 else entries))


_LAYERS: dict[Callable[..., Any], LayerKind] = {
    F.linear: "linear",
    F.embedding: "embedding",
    torch.embedding: "embedding",
    **dict.fromkeys(CONVOLUTIONS, "conv"),
    **dict.fromkeys(TRANSPOSED, "transposed"),
}
"""Function → the operation."""
