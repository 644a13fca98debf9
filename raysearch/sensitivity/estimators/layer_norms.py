"""Per-sample squared norms of weight gradients, from a layer's input and the cotangent of its output.

The weight gradient of one sample is A Bᵀ: A (K × T) the unfolded input, B (O × T) the cotangent, T the
positions (tokens, pixels) over which the weight is used. Its squared norm is ‖A Bᵀ‖²_F, or ⟨AᵀA, BᵀB⟩ where
that is cheaper: T·K·O against T²·(K/2 + O) multiply-accumulates a cotangent, AᵀA being shared by two. The
gradient of a batch is never formed. Source: Goodfellow 2015, arXiv:1510.01799; Li et al. 2021,
arXiv:2110.05679, section 4 (T > 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from raysearch.sensitivity.estimators.captured_calls import Call
from raysearch.sensitivity.estimators.sample_layout import Layout

MAX_ELEMENTS = 2**21
"""Elements of the largest temporary tensor; samples are taken in parts that keep it (8 MiB of float32)."""

Use = tuple[Call, Layout]


def squared_norms(uses: Sequence[Use], cotangents: Sequence[Sequence[Tensor]], num_samples: int) -> Tensor:
    """Squared norms of one weight's gradients.

    Gradients of several uses of the same part of the weight are added before they are squared; those of
    different parts (of an attention's `in_proj_weight`) after.

    Args:
        uses: the calls that read the weight, with the layout of their samples.
        cotangents: of each column the cotangents of the calls' outputs.
        num_samples: N.

    Returns:
        [columns, N], float64.
    """
    parts: dict[Any, list[int]] = {}
    for index, (call, _) in enumerate(uses):
        parts.setdefault(call.part, []).append(index)
    total = torch.zeros(len(cotangents), num_samples, dtype=torch.float64)
    for indices in parts.values():
        ours = [uses[index] for index in indices]
        rows = [[column[index] for index in indices] for column in cotangents]
        total += _part_norms(ours, rows, num_samples)
    return total


def can_add(uses: Sequence[Use]) -> bool:
    """Whether the uses of each part are of kinds whose gradients this module can add."""
    for part in {call.part for call, _ in uses}:
        kinds = {
            (call.kind, len(call.part[1]), call.settings.get("groups", 1))
            for call, _ in uses
            if call.part == part
        }
        names = {kind for kind, _, _ in kinds}
        if len(kinds) > 1 and names != {"linear", "embedding"}:
            return False
    return True


def _part_norms(uses: list[Use], cotangents: list[list[Tensor]], num_samples: int) -> Tensor:
    tables = [index for index, (call, _) in enumerate(uses) if call.kind == "embedding"]
    others = [index for index in range(len(uses)) if index not in tables]
    total = torch.zeros(len(cotangents), num_samples, dtype=torch.float64)
    products = [uses[index] for index in others]
    if products:
        rows = [[column[index] for index in others] for column in cotangents]
        total += _product_norms(products, rows, num_samples)
    if not tables:
        return total
    looked_up = [uses[index] for index in tables]
    tokens = _tokens(looked_up, num_samples)
    for number, column in enumerate(cotangents):
        d = _embedded([column[index] for index in tables], looked_up, tokens, num_samples)
        total[number] += _table_norms(tokens, d).cpu()
        if products:
            cross = _cross_terms(products, [column[index] for index in others], tokens, d, num_samples)
            total[number] += 2 * cross.cpu()
    return total


def _product_norms(uses: list[Use], cotangents: list[list[Tensor]], num_samples: int) -> Tensor:
    inputs = [_wide(layout.arrange(call.input, num_samples)) for call, layout in uses]
    outputs = [
        [_wide(layout.arrange(d, num_samples)) for d, (_, layout) in zip(column, uses, strict=True)]
        for column in cotangents
    ]
    norms = torch.zeros(len(cotangents), num_samples, dtype=torch.float64)
    for cut in _sample_parts(uses, num_samples):
        a = _side_by_side([_input_side(call, x[cut]) for (call, _), x in zip(uses, inputs, strict=True)])
        gram: Tensor | None = None
        for number, column in enumerate(outputs):
            b = _side_by_side([_output_side(call, d[cut]) for (call, _), d in zip(uses, column, strict=True)])
            if prefers_gram(a.shape[2], b.shape[2], a.shape[3]):
                gram = a.transpose(2, 3) @ a if gram is None else gram
                value = (gram * (b.transpose(2, 3) @ b)).sum((1, 2, 3)).clamp(min=0)
            else:
                value = (a @ b.transpose(2, 3)).square().sum((1, 2, 3))
            norms[number, cut] = value.double().cpu()
    return norms


def _wide(x: Tensor) -> Tensor:
    """In at least float32: squares of half precision over- and underflow."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _side_by_side(sides: list[Tensor]) -> Tensor:
    """Several uses of one weight as one: A Bᵀ of the positions of all is the sum of their gradients."""
    return torch.cat(sides, 3) if len(sides) > 1 else sides[0]


def prefers_gram(num_inputs: int, num_outputs: int, num_positions: int) -> bool:
    """Whether ⟨AᵀA, BᵀB⟩ takes fewer multiply-accumulates than ‖A Bᵀ‖².

    Args:
        num_inputs: rows of A.
        num_outputs: rows of B.
        num_positions: columns of both.

    Example:
        >>> prefers_gram(576, 64, 64), prefers_gram(144, 16, 1024)
        (True, False)
    """
    return num_positions * (num_inputs / 2 + num_outputs) < num_inputs * num_outputs


def _sample_parts(uses: list[Use], num_samples: int) -> Iterator[slice]:
    largest = 1
    for call, _ in uses:
        weight, groups = call.part[1], int(call.settings.get("groups", 1))
        rows = weight[0] // groups if call.kind != "conv_transpose" else weight[1]
        columns = int(torch.Size(weight).numel()) // (rows * groups)
        features = weight[0] if call.kind == "linear" else call.shape[1]
        if call.kind == "conv_transpose":
            count = call.input.numel() // call.input.shape[1]
        else:
            count = int(torch.Size(call.shape).numel()) // features
        positions = -(-count // num_samples)
        square = positions**2 if prefers_gram(columns, rows, positions) else rows * columns
        largest = max(largest, groups * max(columns * positions, square))
    step = max(1, MAX_ELEMENTS // largest)
    for start in range(0, num_samples, step):
        yield slice(start, min(start + step, num_samples))


def _input_side(call: Call, x: Tensor) -> Tensor:
    """[n, groups, K, T] of an input [n, k, …]."""
    if call.kind == "linear":
        return x.reshape(len(x), 1, -1, x.shape[-1]).transpose(2, 3)
    if call.kind == "conv":
        return _windows(call, x, None)
    return _channels(call, x)


def _output_side(call: Call, d: Tensor) -> Tensor:
    """[n, groups, O, T] of an output's cotangent [n, k, …]."""
    if call.kind == "linear":
        return d.reshape(len(d), 1, -1, d.shape[-1]).transpose(2, 3)
    if call.kind == "conv":
        return _channels(call, d)
    # The adjoint of a convolution: input and output change places.
    return _windows(call, d, tuple(call.input.shape[2:]))


def _channels(call: Call, x: Tensor) -> Tensor:
    groups = call.settings.get("groups", 1)
    n, k = x.shape[:2]
    return x.reshape(n, k, groups, x.shape[2] // groups, -1).permute(0, 2, 3, 1, 4).flatten(3)


def _windows(call: Call, x: Tensor, positions: tuple[int, ...] | None) -> Tensor:
    """The values that each weight of a kernel meets, [n, groups, channels·kernel, k·positions]."""
    kernel = call.part[1][2:]
    rank, groups = len(kernel), call.settings.get("groups", 1)
    stride, dilation = (_each(call.settings.get(name, 1), rank) for name in ("stride", "dilation"))
    n, k = x.shape[:2]
    view = F.pad(x.flatten(0, 1), _padding(call, kernel, dilation))
    for axis in range(rank):
        view = view.unfold(2 + axis, (kernel[axis] - 1) * dilation[axis] + 1, stride[axis])
        if positions is not None:
            view = view.narrow(2 + axis, 0, positions[axis])
        view = view[..., :: dilation[axis]]
    # [n·k, C, positions…, kernel…] → [n, groups, C/groups · kernel…, k · positions…]
    view = view.reshape(n, k, groups, -1, *view.shape[2:])
    spatial, taps = range(4, 4 + rank), range(4 + rank, 4 + 2 * rank)
    view = view.permute(0, 2, 3, *taps, 1, *spatial)
    num_weights = x.shape[2] // groups * int(torch.Size(kernel).numel())
    windows: Tensor = view.reshape(n, groups, num_weights, -1)
    return windows


def _padding(call: Call, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    padding = call.settings.get("padding", 0)
    if padding == "valid":
        padding = 0
    ends: list[int] = []
    for axis in reversed(range(len(kernel))):
        if padding == "same":
            total = dilation[axis] * (kernel[axis] - 1)
            ends += [total // 2, total - total // 2]
        else:
            ends += [_each(padding, len(kernel))[axis]] * 2
    return ends


def _each(value: Any, rank: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) if len(value) == rank else (int(value[0]),) * rank


def _tokens(uses: list[Use], num_samples: int) -> Tensor:
    """[N, T]; −1 where the padding token stands, which has no gradient."""
    parts = []
    for call, layout in uses:
        tokens = layout.arrange(call.input, num_samples).reshape(num_samples, -1)
        padding = call.settings.get("padding_idx")
        if padding is not None:
            tokens = tokens.masked_fill(tokens == padding % call.part[1][0], -1)
        parts.append(tokens)
    return torch.cat(parts, 1)


def _embedded(column: list[Tensor], uses: list[Use], tokens: Tensor, num_samples: int) -> Tensor:
    d = [_wide(layout.arrange(x, num_samples)) for x, (_, layout) in zip(column, uses, strict=True)]
    every = torch.cat([x.reshape(num_samples, -1, x.shape[-1]) for x in d], 1)
    return every.masked_fill((tokens < 0)[..., None], 0)


def _table_norms(tokens: Tensor, d: Tensor) -> Tensor:
    """Σ_v ‖Σ_{t: token t is v} d_t‖² = Σ_{t, u: equal tokens} ⟨d_t, d_u⟩."""
    norms = []
    for words, rows in zip(tokens, d, strict=True):
        _, places = words.unique(return_inverse=True)
        summed = rows.new_zeros(len(words), rows.shape[-1]).index_add_(0, places, rows)
        norms.append(summed.double().square().sum())
    return torch.stack(norms)


def _cross_terms(
    uses: list[Use], column: list[Tensor], tokens: Tensor, d: Tensor, num_samples: int
) -> Tensor:
    """⟨gradient as a table, gradient as a linear layer⟩ = Σ_{t, s} ⟨d_t, a_s⟩ b_s[token of t]."""
    total = torch.zeros(num_samples, dtype=torch.float64, device=d.device)
    for (call, layout), cotangent in zip(uses, column, strict=True):
        a = _wide(layout.arrange(call.input, num_samples)).reshape(num_samples, -1, call.input.shape[-1])
        b = _wide(layout.arrange(cotangent, num_samples)).reshape(num_samples, -1, cotangent.shape[-1])
        places = tokens.clamp(min=0)[:, None].expand(-1, b.shape[1], -1)
        total += ((a @ d.transpose(1, 2)) * b.gather(2, places)).double().sum((1, 2))
    return total
