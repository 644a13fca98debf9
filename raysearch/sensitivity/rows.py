"""Rows Λ^½ δ of one option on one shard, sketched while they are made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raysearch.evaluation import Divergence, Judged, Objective, Replica, batch_size
from raysearch.evaluation.batches import take
from raysearch.evaluation.outputs import difference
from raysearch.evaluation.positions import Masked, shares, values_of
from raysearch.evaluation.vocabulary.positions import judged_positions, roots
from raysearch.sensitivity.sketch import Sketch, SketchSum

_AT_ONCE = 2**22
"""Output values that are judged in one go, in float64."""


class RowJudge(Protocol):
    """Judges outputs on one shard against the float model's."""

    def judge(self, outputs: Judged) -> tuple[Tensor, float, float]:
        """Rows [samples, k] on the CPU, Σ variance of their squared norms, Σ divergence."""
        ...


def row_judge(replica: Replica, reference: Judged, sketch: Sketch) -> RowJudge:
    """How outputs of a calibration shard are judged; what is prepared for it is kept for the next unit.

    Args:
        replica: what the worker holds.
        reference: the float model's outputs on it.
        sketch: the projections of its samples.
    """
    divergence = replica.divergence
    if isinstance(divergence, Divergence) and divergence.is_by_position(reference, reference):
        return replica.cache.of(_Prepared).judge(reference, sketch)
    return _InDouble(divergence, reference, sketch)


@dataclass(frozen=True)
class _InDouble:
    """Some samples at a time, in float64."""

    divergence: Objective
    reference: Judged
    sketch: Sketch

    def judge(self, outputs: Judged) -> tuple[Tensor, float, float]:
        rows, variance, alone = [], 0.0, 0.0
        for lo, hi in _spans(batch_size(self.reference), self.sketch.num_outputs):
            judged = take(outputs, lo, hi)
            expected = take(self.reference, lo, hi)
            weighted = self.divergence.weighted(difference(judged, expected), expected)
            sketches, spread = self.sketch.project(weighted, lo)
            rows.append(sketches.cpu())
            variance += float(spread.sum())
            alone += float(self.divergence.per_sample(judged, expected).sum())
        return torch.cat(rows), variance, alone


class _ByPosition:
    """Some positions at a time, in float32; see `evaluation.vocabulary.positions`.

    What all options share is made once: the roots of the float model's probabilities, which take the signs
    of the sketch, so that rows come signed.

    Args:
        reference: the float model's logits [samples, positions…, classes].
        sketch: the projections.
    """

    def __init__(self, reference: Tensor | Masked, sketch: Sketch) -> None:
        logits, share = values_of(reference), shares(reference, -1)
        self._num_samples = len(logits)
        self._sketch = sketch
        self._reference = logits.reshape(-1, logits.shape[-1])
        self._positions = len(self._reference) // self._num_samples
        # What a position that counts weighs, in units of 1/positions; at others outputs are equal.
        self._weight_n = torch.ones(self._num_samples, dtype=torch.float64)
        if share is not None:
            self._weight_n = share.amax(1).cpu() * self._positions
        self._roots = torch.empty_like(self._reference, dtype=torch.float32)
        self._offsets: list[np.ndarray] = []
        for sample in range(self._num_samples):
            span = slice(sample * self._positions, (sample + 1) * self._positions)
            self._roots[span] = roots(self._reference[span])
            if not sketch.is_exact:
                self._offsets.append(sketch.offsets(sample))
                self._roots[span] *= sketch.signs(sample).to(logits.device).reshape(self._positions, -1)

    def judge(self, outputs: Judged) -> tuple[Tensor, float, float]:
        classes = self._reference.shape[1]
        logits = values_of(outputs).reshape(-1, classes)
        sums = self._rows()
        alone = 0.0
        weight_p = self._weight_n.to(logits.device).repeat_interleave(self._positions)
        for part in judged_positions(logits, self._reference, lambda lo, hi: self._roots[lo:hi]):
            count = len(part.divergences)
            alone += float((part.divergences * weight_p[part.first : part.first + count]).sum())
            for sample, lo, hi in self._samples(part.first, count):
                row = part.rows[lo - part.first : hi - part.first]
                sums[sample].add((lo - sample * self._positions) * classes, row.reshape(-1))
        rows, variances = zip(*(each.finish() for each in sums), strict=True)
        unit = 1 / self._positions
        weighted = torch.stack(rows) * math.sqrt(unit) * self._weight_n.sqrt()[:, None]
        weights = self._weight_n.tolist()
        variance = sum(each * weight**2 for each, weight in zip(variances, weights, strict=True))
        return weighted, variance * unit**2, alone * unit

    def _rows(self) -> list[SketchSum] | list[WholeRow]:
        if self._sketch.is_exact:
            return [WholeRow() for _ in range(self._num_samples)]
        return [SketchSum(self._sketch.size, offsets) for offsets in self._offsets]

    def _samples(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(sample, first position, end) of each sample that some positions belong to."""
        lo = first
        while lo < first + count:
            sample = lo // self._positions
            hi = min((sample + 1) * self._positions, first + count)
            yield sample, lo, hi
            lo = hi


class WholeRow:
    """One sample's row where nothing is projected; as `SketchSum`."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def add(self, first: int, values: Tensor) -> None:
        """Take the next values of the row, which begin at `first`."""
        self._parts.append(values.double().cpu())

    def finish(self) -> tuple[Tensor, float]:
        """All values, float64, and 0: they vary by nothing."""
        return torch.cat(self._parts), 0.0


class _Prepared:
    """What a worker keeps of the last shard; see `WorkerCache.of`."""

    def __init__(self) -> None:
        self._reference: Judged = None
        self._draw = (0, 0)
        self._judge: list[_ByPosition] = []

    def judge(self, reference: Tensor | Masked, sketch: Sketch) -> RowJudge:
        """The judge of a shard; the reference itself tells one shard from another."""
        draw = (sketch.size, sketch.seed)
        if self._reference is not reference or self._draw != draw:
            # Let go of the last shard's first: both at once would be twice the memory.
            self._judge.clear()
            self._reference, self._draw = reference, draw
            self._judge.append(_ByPosition(reference, sketch))
        return self._judge[0]


def _spans(num_samples: int, num_outputs: int) -> Iterator[tuple[int, int]]:
    step = max(1, _AT_ONCE // num_outputs)
    for lo in range(0, num_samples, step):
        yield lo, min(lo + step, num_samples)
