"""The Gauss-Newton trace by per-sample gradient norms along a factor of the output Hessian.

With Λ = Σ_k (F w_k)(F w_k)ᵀ per sample and J the Jacobian of its outputs in a weight, Tr(Jᵀ Λ J) =
Σ_k ‖Jᵀ F w_k‖²: squared norms of per-sample gradients for known output cotangents. One backward serves all
layers, and stops at their outputs. Piecewise-linear networks are linear in one layer's own weights, so that
this is the trace of the Hessian's block; for others it is its positive semi-definite part.

Source: Schraudolph 2002 (Gauss-Newton products); Dangel et al. 2022, arXiv:2106.02624 (ViViT: per-sample
factors); Hutchinson 1990 (random signs).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from raysearch.config.estimators import PER_SAMPLE
from raysearch.errors import ConfigError, DataError
from raysearch.evaluation import Judged, ShardView, batch_size
from raysearch.evaluation.batches import map_tensors
from raysearch.evaluation.curvature.graphs import samples_at_once
from raysearch.evaluation.curvature.joint_factor import as_cotangent, objective_factor
from raysearch.evaluation.curvature.output_factor import (
    EigenFactor,
    OutputFactor,
    random_signs,
)
from raysearch.evaluation.outputs import flat_rows
from raysearch.seeding import derive_seed
from raysearch.sensitivity.estimators.loss_at_outputs import is_one_position, loss_curvature
from raysearch.sensitivity.estimators.protocol import TraceRequest
from raysearch.sensitivity.estimators.sample_gradients import (
    CHUNK_SIZE,
    COLUMNS_PER_PASS,
    SampleGradients,
    measure_in_chunks,
)

MAX_EXACT_OUTPUTS = 64
"""Most outputs of a sample for `ExactGaussNewton`, which takes a backward for each."""

Column = tuple[Tensor, range]
"""A cotangent by position, [n, P, C], and the rows of the request's draws that it counts for."""


class _GaussNewton(ABC):
    """What the estimators share: columns of Λ's factor in, traces per sample out."""

    name: str
    deterministic: bool
    per_sample: bool

    def __init__(self, chunk_size: int = CHUNK_SIZE) -> None:
        if chunk_size < 1:
            raise ConfigError(
                f"chunk_size of the estimator '{self.name}' is {chunk_size}; it must be at least 1."
            )
        self.chunk_size = chunk_size
        self.per_sample = self.name in PER_SAMPLE

    def draw(self, view: ShardView, request: TraceRequest) -> Mapping[str, np.ndarray]:
        """The requested draws, sample by sample; see `TraceEstimator`.

        Raises:
            TaskError: see `loss_curvature`; or the output has not one row a sample.
            DataError: the model's output is not finite.
        """
        curvature = _Curvature(view, request)
        generators = [
            torch.Generator().manual_seed(derive_seed(request.seed, "ggn", view.index, index))
            for index in request.draws
        ]
        samples = torch.arange(curvature.num_samples)
        step = samples_at_once(view, curvature.batch_of(samples[:1]), self.chunk_size)
        return measure_in_chunks(
            view,
            samples,
            step,
            lambda part: self._measure(curvature, request.weights, part, generators),
        )

    @abstractmethod
    def _columns(self, factor: OutputFactor, generators: list[torch.Generator]) -> Iterator[Column]:
        """Cotangents whose squared gradient norms, summed over those that count for a draw, are the draw."""

    def _measure(
        self,
        curvature: _Curvature,
        weights: tuple[str, ...],
        samples: Tensor,
        generators: list[torch.Generator],
    ) -> dict[str, np.ndarray]:
        """Weight → [draws, samples]; where it fails, the generators are as before."""
        draws = {name: np.zeros((len(generators), len(samples))) for name in weights}
        before = [generator.get_state() for generator in generators]
        try:
            gradients = SampleGradients(curvature.view, weights, curvature.batch_of(samples))
            outputs = gradients.judged
            columns = self._columns(curvature.factor(outputs, samples), generators)
            while part := list(islice(columns, COLUMNS_PER_PASS)):
                cotangents = [curvature.as_cotangent(column, outputs) for column, _ in part]
                norms = gradients.squared_norms(cotangents)
                for name, values in norms.items():
                    for value, (_, rows) in zip(values.numpy(), part, strict=True):
                        draws[name][rows.start : rows.stop] += value
        except Exception:
            # Out of memory, perhaps: the halves of the chunk must draw what the whole would have drawn.
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)
            raise
        return draws


class GaussNewton(_GaussNewton):
    """Leading eigenvectors exact, and one random-sign draw of the rest.

    A draw is Σ_{i≤k} ‖Jᵀ v_i‖² + ‖Jᵀ r‖², v_i = F w_i, r = F (I − WWᵀ) ε with random signs ε. For k = 1 it is
    the mean of ‖Jᵀ s‖² over the pair s = r ± v_1: the same signs, but the leading eigenvector's flipped,
    which cancels every cross term with it. With several positions a sample, v_i is a random-sign sum over
    them.

    Work for a shard: one forward and, where a sample has one position, k + (hi − lo) backwards to the layers'
    outputs; else (k + 1)(hi − lo).

    Args:
        name: "ggn" (k = 1, the default) or "ggn-top" (k = 2).
        num_exact: k; taken from the name where it is not given.
        chunk_size: samples whose graph is held at once; it changes rounding only.
    """

    deterministic = False

    def __init__(
        self,
        name: str = "ggn",
        *,
        num_exact: int | None = None,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        self.name = name
        super().__init__(chunk_size)
        if num_exact is None:
            num_exact = 2 if name == "ggn-top" else 1
        self.num_exact = num_exact

    def _columns(self, factor: OutputFactor, generators: list[torch.Generator]) -> Iterator[Column]:
        _, positions, size = factor.shape
        count = min(self.num_exact, size)
        basis = factor.leading(count)
        if positions == 1:
            for index in range(count):
                yield factor.apply(basis[..., index]), range(len(generators))
        for draw, generator in enumerate(generators):
            signs = random_signs(factor.shape, count, generator).to(basis)
            if positions > 1:
                for index in range(count):
                    of_positions = signs[..., size + index, None]
                    yield factor.apply(basis[..., index] * of_positions), range(draw, draw + 1)
            if factor.rank > count:
                rest = signs[..., :size, None]
                # (I − WWᵀ)ε: what the exact directions account for is not drawn again.
                rest = rest - basis @ (basis.mT @ rest)
                yield factor.apply(rest[..., 0]), range(draw, draw + 1)


class ExactGaussNewton(_GaussNewton):
    """All columns of the factor: the trace itself. Work: one backward a column, C − 1 for "kl".

    Args:
        max_outputs: most outputs of a sample.
        chunk_size: samples whose graph is held at once; it changes rounding only.
    """

    name = "ggn-exact"
    deterministic = True

    def __init__(self, *, max_outputs: int = MAX_EXACT_OUTPUTS, chunk_size: int = CHUNK_SIZE) -> None:
        super().__init__(chunk_size)
        self.max_outputs = max_outputs

    def _columns(self, factor: OutputFactor, generators: list[torch.Generator]) -> Iterator[Column]:
        n, positions, size = factor.shape
        if positions * size > self.max_outputs:
            raise ConfigError(
                f"the estimator 'ggn-exact' takes one backward for each of {positions * size} outputs of a "
                f"sample (at most {self.max_outputs}). Set sensitivity.estimator to 'ggn' or 'ggn-top'."
            )
        for position in range(positions):
            for index in range(factor.num_columns):
                unit = torch.zeros(n, positions, size, dtype=torch.float64)
                unit[:, position, index] = 1
                yield factor.apply(unit.to(factor.trace())), range(len(generators))


class _Curvature:
    """Λ of the samples of one shard: of the divergence, or of the task's loss.

    Args:
        view: the shard.
        request: what is differentiated.

    Raises:
        TaskError: see `loss_curvature`.
    """

    def __init__(self, view: ShardView, request: TraceRequest) -> None:
        self.view = view
        self._batch = view.batch()
        self.num_samples = batch_size(self._batch)
        # The divergence's Λ follows from a chunk's own outputs; the loss is known of whole batches only.
        self._matrices = loss_curvature(view.replica, self._batch) if request.loss == "loss" else None

    def batch_of(self, samples: Tensor) -> object:
        """The batch of some samples, given by their rows."""
        return map_tensors(self._batch, lambda t: t[samples.to(t.device)] if t.ndim else t)

    def factor(self, outputs: Judged, samples: Tensor) -> OutputFactor:
        """The factor of Λ for some samples with these outputs."""
        if not bool(torch.isfinite(flat_rows(outputs)).all()):
            raise DataError(
                f"the model's output is not finite on {self.view.name}, so no trace is. Mend the data or the "
                f"model."
            )
        if self._matrices is None:
            return objective_factor(outputs, self.view.replica.divergence)
        return EigenFactor(self._matrices[samples.to(self._matrices.device)])

    def as_cotangent(self, column: Tensor, outputs: Judged) -> Tensor:
        """A column of the factor, [n, P, C], in the shape of `flat_rows` of the outputs."""
        rows = flat_rows(outputs)
        if self._matrices is not None and is_one_position(rows):
            return column.reshape(rows.shape).to(rows)
        return as_cotangent(column, outputs, self.view.replica.divergence)
