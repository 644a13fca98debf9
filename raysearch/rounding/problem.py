"""What the rounding of one weight starts from: the weight, its schemes, and what its rows read.

G  convolution groups    R  rows of a group    d  inputs of a row
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import Tensor

from raysearch.config.rounding import RoundingConfig
from raysearch.errors import DataError
from raysearch.quantizer import Quantizer, make_quantizer
from raysearch.records import QuantizationPoint, QuantizerRange
from raysearch.records.rounding import FEW_VECTORS
from raysearch.records.scheme import Scheme
from raysearch.rounding.factors import Factor, factorise, factorise_compactly
from raysearch.rounding.layout import Layout
from raysearch.rounding.second_moments import Moment, Reader, dtype_of_moments


@dataclass(frozen=True)
class Block:
    """Rows that read the same.

    Attributes:
        first: the first of them, in each group.
        last: one more than the last.
        factor: of their H; None for rows of an embedding, whose inputs are the unit vectors.
    """

    first: int
    last: int
    factor: Factor | None


@dataclass(frozen=True)
class Inputs:
    """What the rows of a weight are multiplied with.

    Attributes:
        layout: how the rows lie in the weight.
        blocks: all rows, in order.
        row_weights: how much the error of each row counts, [G, R]; of an embedding how often it is read.
        order_r: the rows of the weight in the order of the blocks; None: as they lie.
    """

    layout: Layout
    blocks: tuple[Block, ...]
    row_weights: Tensor
    order_r: Tensor | None = None

    def of_rows(self, first: int, last: int) -> Inputs:
        """Those of rows first … last−1 of each group."""
        blocks = []
        for block in self.blocks:
            start, stop = max(block.first, first), min(block.last, last)
            if start < stop:
                blocks.append(Block(start - first, stop - first, block.factor))
        return Inputs(self.layout, tuple(blocks), self.row_weights[:, first:last])

    def times_moments(self, rows: Tensor) -> Tensor:
        """Each row, […, G, R, d], times the H of its block."""
        parts = []
        for block in self.blocks:
            part = rows[..., block.first : block.last, :]
            parts.append(part if block.factor is None else block.factor.times_moments(part))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -2)

    def times_own_moments(self, rows_grd: Tensor, spans: Sequence[slice]) -> Tensor:
        """Each row times the H of its block, without what lies between columns of different spans.

        Args:
            rows_grd: the rows.
            spans: columns that belong together; all columns, in order.
        """
        if len(spans) == 1:
            return self.times_moments(rows_grd)
        parts = []
        for block in self.blocks:
            part = rows_grd[:, block.first : block.last]
            if block.factor is not None:
                through = [part[..., span] @ block.factor.moments_of(span, span) for span in spans]
                part = torch.cat(through, 2)
            parts.append(part)
        return torch.cat(parts, 1)

    def mean_moment(self) -> float:
        """The mean over all weights of what the square of each one's error counts alone: mean diag(H)."""
        total = torch.zeros((), dtype=torch.float64, device=self.row_weights.device)
        for block in self.blocks:
            rows_g = self.row_weights[:, block.first : block.last].double().sum(1)
            if block.factor is not None:
                rows_g = rows_g * block.factor.moments_diagonal_gd.mean(1)
            total += rows_g.sum()
        return float(total) / self.row_weights.numel()


@dataclass(frozen=True)
class Target:
    """One scheme that a weight is rounded to.

    Attributes:
        scheme: the scheme.
        point: the weight's point as the scheme has it.
        levels: lowest and highest code.
        start: the calibrated range.
    """

    scheme: Scheme
    point: QuantizationPoint
    levels: tuple[int, int]
    start: QuantizerRange


@dataclass(frozen=True)
class Problem:
    """One weight and all its schemes.

    Attributes:
        point: its quantization point.
        weight: the float weight.
        targets: the schemes.
        inputs: what its rows read; None where nothing is known of it.
        num_samples: samples that `inputs` is the sum over.
        notes: what happened on the way here.
    """

    point: QuantizationPoint
    weight: Tensor
    targets: tuple[Target, ...]
    inputs: Inputs | None = None
    num_samples: int = 1
    notes: tuple[str, ...] = ()

    def quantizer(self, target: Target) -> Quantizer:
        """The point's quantizer with the calibrated range of a target."""
        quantizer = make_quantizer(target.point).to(self.weight.device)
        quantizer.set_range(target.scheme.num_bits, target.start)
        return quantizer


def gather_inputs(
    point: QuantizationPoint,
    parts: Sequence[tuple[Reader, Moment]],
    settings: RoundingConfig,
    device: torch.device | str = "cpu",
) -> tuple[Inputs | None, tuple[str, ...]]:
    """Put together what all uses of a weight read, factored; and notes on what was out of the ordinary.

    The moments of several uses are added; uses of different rows leave blocks of rows with their own. An
    embedding that is tied to another layer adds to that layer's diagonal how often a row is looked up: rows
    that are looked up about as often make a block, and count with its mean. Of fewer vectors than inputs H is
    singular: the damping is raised by the ratio of the two, up to 1.

    Args:
        point: the weight.
        parts: every use: which part of the weight, and the sum over what it reads.
        settings: damping and order.
        device: where the weight is.

    Raises:
        DataError: an input is NaN or infinite; names the weight.
    """
    for _, moment in parts:
        if not np.isfinite(moment.values).all():
            raise DataError(
                f"what the weight '{point.id}' reads takes NaN or infinity on the calibration data; mend the "
                f"data, or leave the layer float (placement.ignored_scopes)."
            )
    if not parts:
        return None, ("no call of the calibration data reads it as a matrix, rounded to nearest",)
    tables = [(reader, moment) for reader, moment in parts if reader.kind == "embedding"]
    layers = [(reader, moment) for reader, moment in parts if reader.kind != "embedding"]
    layouts = {layout_of(reader) for reader, _ in layers} or {Layout()}
    layout = next(iter(layouts))
    has_parts = any(_is_part(reader, point.shape) for reader, _ in layers)
    if len(layouts) > 1 or (has_parts and (layout.groups > 1 or layout.is_batched)):
        return None, ("its uses lay its rows out in different ways, rounded to nearest",)
    counts = torch.zeros(point.shape[0], dtype=torch.float64, device=device)
    for reader, moment in tables:
        counts[slice(*reader.rows)] += torch.from_numpy(moment.values).to(device)
    if not layers:
        return Inputs(layout, (Block(0, point.shape[0], None),), counts[None]), ()
    sums = moments_of_rows(point.shape, layout, layers, device)
    alike = torch.ones(layout.groups, sums[-1][1], dtype=torch.float64, device=device)
    num_vectors = min(moment.num_vectors for _, moment in layers)
    num_inputs = sums[0][2].shape[1]
    damping = min(settings.damping * max(1.0, num_inputs / max(1, num_vectors)), 1.0)
    blocks = []
    order_r: Tensor | None = None
    if tables:
        sums, order_r = _with_counts(sums, counts, layout)
    for first, last, matrix in sums:
        is_large = matrix.dtype == torch.float32
        find = factorise_compactly if is_large else factorise
        factor: Factor = find(matrix, damping, act_order=settings.act_order)
        blocks.append(Block(first, last, factor))
    inputs = Inputs(layout, tuple(blocks), alike, order_r)
    return inputs, _notes(inputs, num_vectors, settings.damping, damping)


LOOKUP_SHARES = (1 / 8, 1.0, 8.0)
"""Bounds between rows of a tied table: how often one is looked up, over the mean of the layer's diagonal."""


def _with_counts(
    sums: list[tuple[int, int, Tensor]], counts_r: Tensor, layout: Layout
) -> tuple[list[tuple[int, int, Tensor]], Tensor | None]:
    """Blocks of rows with what a tied embedding adds to each, and the order of the rows in them.

    The sum over both uses has count·I beside the layer's H, which no two rows need have in common. Rows are
    told apart by the part that counts have in it, `LOOKUP_SHARES`, so that few matrices are factored; where
    these are float32, or rows of the table are no rows of the layer, all rows have the mean.
    """
    _, _, matrix_gdd = sums[0]
    is_large = matrix_gdd.dtype == torch.float32
    if len(sums) > 1 or is_large or layout.is_transposed or layout.groups > 1 or layout.is_batched:
        for _, _, each_gdd in sums:
            each_gdd.diagonal(dim1=1, dim2=2).add_(counts_r.mean())
        return sums, None
    bounds = matrix_gdd.diagonal(dim1=1, dim2=2).mean() * counts_r.new_tensor(LOOKUP_SHARES)
    classes_r = torch.bucketize(counts_r, bounds)
    # Rows of a block stay in the order in which they lie.
    order_r = torch.argsort(classes_r, stable=True)
    blocks = []
    first = 0
    for size in torch.bincount(classes_r).tolist():
        if size:
            rows = order_r[first : first + size]
            own_gdd = matrix_gdd.clone()
            own_gdd.diagonal(dim1=1, dim2=2).add_(counts_r[rows].mean())
            blocks.append((first, first + size, own_gdd))
            first += size
    return blocks, order_r if len(blocks) > 1 else None


def _notes(inputs: Inputs, num_vectors: int, least_damping: float, damping: float) -> tuple[str, ...]:
    factors = [block.factor for block in inputs.blocks if block.factor is not None]
    num_inputs = factors[0].order_gd.shape[1]
    notes = []
    if damping > least_damping:
        notes.append(
            f"{FEW_VECTORS}, damping raised ({num_vectors} for {num_inputs} inputs, "
            f"from {least_damping:g} to {damping:.3g})"
        )
    raised = max(factor.damping for factor in factors)
    if raised > damping:
        notes.append(f"the second moments are singular, damping raised (from {damping:.3g} to {raised:.3g})")
    num_dead = sum(factor.num_dead for factor in factors)
    if num_dead:
        total = sum(factor.order_gd.numel() for factor in factors)
        notes.append(
            f"inputs that are always 0, what reads them is rounded to nearest ({num_dead} of {total})"
        )
    return tuple(notes)


def moments_of_rows(
    shape: Sequence[int],
    layout: Layout,
    layers: Iterable[tuple[Reader, Moment]],
    device: torch.device | str,
) -> list[tuple[int, int, Tensor]]:
    """Blocks of rows, each with the sum over all that reads its rows, in arrays of their own.

    In float64, or of `FLOAT32_FROM` inputs and more in float32.

    Args:
        shape: of the weight.
        layout: how its rows lie in it.
        layers: every use: which part of the weight, and the sum over what it reads.
        device: where the weight is.
    """
    uses = []
    for reader, moment in layers:
        outputs, inputs = (
            (reader.columns, reader.rows) if layout.is_transposed else (reader.rows, reader.columns)
        )
        uses.append((outputs, inputs, moment))
    num_rows = layout.num_rows(shape)
    if layout.groups > 1 or layout.is_batched:
        total = _own_matrices(uses[0][2], device)
        for _, _, moment in uses[1:]:
            total += torch.from_numpy(moment.matrices()).to(device)
        return [(0, num_rows, total)]
    kernel = prod(shape[2:])
    num_inputs = prod(shape) // num_rows
    dtype = dtype_of_moments(num_inputs)
    edges = sorted({0, num_rows} | {edge for outputs, _, _ in uses for edge in outputs})
    blocks = []
    for first, last in pairwise(edges):
        own = [use for use in uses if use[0][0] <= first and last <= use[0][1]]
        if own and own[0][2].num_inputs == num_inputs:
            # Taken as it is: there may be no room for a second one.
            matrix = _own_matrices(own[0][2], device)
            own = own[1:]
        else:
            matrix = torch.zeros(1, num_inputs, num_inputs, dtype=dtype, device=device)
        for _, inputs, moment in own:
            span = slice(inputs[0] * kernel, inputs[1] * kernel)
            matrix[:, span, span] += torch.from_numpy(moment.matrices()).to(device)
        blocks.append((first, last, matrix))
    return blocks


def _own_matrices(moment: Moment, device: torch.device | str) -> Tensor:
    """H in memory that nothing else refers to."""
    matrices = torch.from_numpy(moment.matrices())
    moved = matrices.to(device)
    return moved.clone() if moved is matrices and not moment.is_packed else moved


def layout_of(reader: Reader) -> Layout:
    """How the rows lie in a weight that is read in such a way."""
    is_transposed = reader.kind in ("transposed", "product", "batched_product")
    return Layout(is_transposed, reader.groups, is_batched=reader.kind.startswith("batched"))


def _is_part(reader: Reader, shape: Sequence[int]) -> bool:
    return reader.rows != (0, shape[0]) or reader.columns != (0, shape[1])
