"""GPTQ with several candidate scales: all schemes of a weight in one pass over its columns.

G  convolution groups    R  rows of a group    d  inputs of a row    S  scales    C  candidates
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysearch.config.rounding import RoundingConfig
from raysearch.records.rounding import RoundedWeight
from raysearch.records.scheme import Scheme
from raysearch.rounding.compensation import Grid, solve
from raysearch.rounding.nearest import round_nearest
from raysearch.rounding.problem import Inputs, Problem, Target
from raysearch.rounding.scales import Sharing, as_deployed, fitted_scale, least_squares_scale

NEIGHBOURS = (0.97, 1.0, 1.03)
"""Multiples of a fitted scale that are tried with it."""

NUM_SETTLING = 4
"""How often a logarithmic scale is taken to its logarithm and back until it stays."""

CANDIDATE_BYTES = 2**28
"""Rows of candidates that are rounded at once; what does not fit is done in turn, with the same results."""


def round_gptq(problem: Problem, settings: RoundingConfig) -> dict[Scheme, RoundedWeight]:
    """Every scheme of a weight: codes by `compensation.solve` at several scales, the best kept per scale.

    Candidates are the calibrated scale and `settings.scale_factors` times that of least squared weight
    error; asymmetric grids try each with the zero point one lower and higher too. Then the scale is fitted
    to the codes that were chosen, and tried again with its neighbours, `settings.refits` times. What is kept
    for each scale (a row, or the tensor) has the least error after rounding, by H, damped. It never has more
    by H itself than the nearest codes at the calibrated scale, which are the last candidate.

    A weight without inputs, or whose scales run across its rows, is rounded to nearest.

    Cost: 2·rows·d² flops a candidate; memory about 32 bytes a weight and candidate, `CANDIDATE_BYTES` at
    most, or one candidate.
    """
    inputs = problem.inputs
    if inputs is None:
        return round_nearest(problem)
    ids_gr = inputs.layout.scale_ids(problem.point.shape, problem.point.granularity)
    if ids_gr is None:
        note = "rows with several scales, or scales across rows, rounded to nearest"
        return round_nearest(replace(problem, notes=(*problem.notes, note)))
    sharing = Sharing(ids_gr.to(problem.weight.device), problem.point.num_scales, inputs.row_weights)
    search = _Search(problem, inputs, sharing, settings)
    search.try_all(search.first_candidates())
    for _ in range(settings.refits):
        search.try_all(search.refitted_candidates())
    return {target.scheme: search.finish(index) for index, target in enumerate(problem.targets)}


@dataclass
class _Candidate:
    """A scale and zero point to try for one target, [S] each."""

    target: int
    scale_s: Tensor
    zero_s: Tensor


@dataclass
class _Best:
    """The best so far of one target; codes are less the zero point."""

    error_s: Tensor
    scale_s: Tensor
    zero_s: Tensor
    codes_grd: Tensor


class _Search:
    def __init__(self, problem: Problem, inputs: Inputs, sharing: Sharing, settings: RoundingConfig) -> None:
        self._problem, self._inputs, self._sharing, self._settings = problem, inputs, sharing, settings
        self._rows_grd = inputs.layout.rows(problem.weight).double()
        self._best: dict[int, _Best] = {}

    def first_candidates(self) -> list[_Candidate]:
        candidates = []
        for index, target in enumerate(self._problem.targets):
            start_s = self._tensor(target.start.scale).double()
            zero_s = self._tensor(target.start.zero_point).double()
            low, high = target.levels
            base_s = least_squares_scale(self._rows_grd, self._sharing, start_s, low - zero_s, high - zero_s)
            candidates.append(_Candidate(index, start_s, zero_s))
            shifts = (0, -1, 1) if self._problem.point.grid_spec.mode == "asymmetric" else (0,)
            for shift in shifts:
                shifted_s = (zero_s + shift).clamp(low, high)
                for factor in self._settings.scale_factors:
                    candidates.append(_Candidate(index, as_deployed(base_s * factor), shifted_s))
        return candidates

    def refitted_candidates(self) -> list[_Candidate]:
        candidates = []
        for index, best in self._best.items():
            fitted_s = self._fitted(best)[0]
            for factor in NEIGHBOURS:
                candidates.append(_Candidate(index, as_deployed(fitted_s * factor), best.zero_s))
        return candidates

    def try_all(self, candidates: Sequence[_Candidate]) -> None:
        """Round at every candidate and keep what is better than the best so far."""
        at_once = max(1, CANDIDATE_BYTES // (32 * self._rows_grd.numel()))
        for start in range(0, len(candidates), at_once):
            part = candidates[start : start + at_once]
            codes_cgrd, error_cgr = self._solve(part)
            error_cs = self._sharing.sums(error_cgr)
            for candidate, codes_grd, error_s in zip(part, codes_cgrd, error_cs, strict=True):
                self._keep_better(candidate, codes_grd, error_s)

    def finish(self, index: int) -> RoundedWeight:
        """The best of one target, with its scale fitted; or nearest codes, where those miss less by H."""
        problem, target, best = self._problem, self._problem.targets[index], self._best[index]
        scale_s, error_s = self._fitted(best)
        nearest = self._nearest(target)
        _, nearest_error_s = self._fitted(nearest, keep_scale=True)
        is_nearest_s = nearest_error_s < error_s
        scale_s = torch.where(is_nearest_s, nearest.scale_s, scale_s)
        zero_s = torch.where(is_nearest_s, nearest.zero_s, best.zero_s)
        is_nearest_gr1 = is_nearest_s[self._sharing.ids_gr][..., None]
        relative_grd = torch.where(is_nearest_gr1, nearest.codes_grd, best.codes_grd)
        codes_grd = relative_grd + zero_s[self._sharing.ids_gr][..., None].to(relative_grd.dtype)
        dtype = torch.int8 if target.start.signed else torch.uint8
        codes = self._inputs.layout.weight(codes_grd.to(dtype), problem.point.shape)
        error = float(torch.minimum(error_s, nearest_error_s).sum()) / problem.num_samples
        return RoundedWeight(
            codes=codes.cpu().numpy(),
            scale=self._held_scale(scale_s),
            zero_point=zero_s.cpu().numpy().astype(np.int32),
            signed=target.start.signed,
            granularity=problem.point.granularity,
            error_nearest=float(nearest_error_s.sum()) / problem.num_samples,
            error=error,
            method="gptq",
            mean_moment=self._inputs.mean_moment() / problem.num_samples,
            notes=problem.notes,
        )

    def _solve(self, candidates: Sequence[_Candidate]) -> tuple[Tensor, Tensor]:
        """Codes less the zero point, [C, G, R, d], and damped errors, [C, G, R]."""
        levels = [self._problem.targets[candidate.target].levels for candidate in candidates]
        scale_cs = torch.stack([candidate.scale_s for candidate in candidates])
        zero_cs = torch.stack([candidate.zero_s for candidate in candidates])
        ends_c12 = torch.tensor(levels, dtype=torch.float64, device=scale_cs.device)
        tables = (scale_cs, ends_c12[:, :1] - zero_cs, ends_c12[:, 1:] - zero_cs)
        scale_cgr, low_cgr, high_cgr = (self._sharing.spread(table) for table in tables)
        codes, errors = [], []
        for block in self._inputs.blocks:
            part = slice(block.first, block.last)
            rows_grd = self._rows_grd[:, part]
            grid = Grid(
                _stacked(scale_cgr[..., part]), _stacked(low_cgr[..., part]), _stacked(high_cgr[..., part])
            )
            if block.factor is None:
                rows_gmd = rows_grd.repeat(1, len(candidates), 1)
                codes_gmd = grid.nearest(rows_gmd)
                values_gmd = codes_gmd * grid.of_columns(grid.scale_gkm)
                error_gm = (values_gmd - rows_gmd).square().sum(2)
                codes_gmd = codes_gmd.to(torch.int16)
            else:
                codes_gmd, error_gm = solve(rows_grd, grid, block.factor, self._settings.block_size)
            apart = (len(rows_grd), len(candidates), rows_grd.shape[1])
            codes.append(codes_gmd.reshape(*apart, -1).transpose(0, 1))
            errors.append(error_gm.reshape(apart).transpose(0, 1))
        return torch.cat(codes, 2), torch.cat(errors, 2)

    def _keep_better(self, candidate: _Candidate, codes_grd: Tensor, error_s: Tensor) -> None:
        best = self._best.get(candidate.target)
        if best is None:
            self._best[candidate.target] = _Best(
                error_s, candidate.scale_s, candidate.zero_s, codes_grd.clone()
            )
            return
        is_better_s = error_s < best.error_s
        best.error_s = torch.where(is_better_s, error_s, best.error_s)
        best.scale_s = torch.where(is_better_s, candidate.scale_s, best.scale_s)
        best.zero_s = torch.where(is_better_s, candidate.zero_s, best.zero_s)
        is_better_gr1 = is_better_s[self._sharing.ids_gr][..., None]
        best.codes_grd = torch.where(is_better_gr1, codes_grd, best.codes_grd)

    def _fitted(self, best: _Best, *, keep_scale: bool = False) -> tuple[Tensor, Tensor]:
        """The scale that fits its codes best, and the error by H that is left."""
        codes_cgrd = best.codes_grd[None].double()
        scale_cs, before_cs, after_cs = fitted_scale(
            codes_cgrd, self._rows_grd, self._inputs, self._sharing, best.scale_s[None]
        )
        return (best.scale_s, before_cs[0]) if keep_scale else (scale_cs[0], after_cs[0])

    def _nearest(self, target: Target) -> _Best:
        quantizer = self._problem.quantizer(target)
        with torch.no_grad():
            codes = quantizer.codes(self._problem.weight)
        zero_s = self._tensor(target.start.zero_point).double()
        codes_grd = self._inputs.layout.rows(codes).to(torch.int16)
        relative_grd = codes_grd - zero_s[self._sharing.ids_gr][..., None].to(torch.int16)
        scale_s = self._tensor(target.start.scale).double()
        return _Best(torch.zeros_like(scale_s), scale_s, zero_s, relative_grd)

    def _held_scale(self, scale_s: Tensor) -> npt.NDArray[np.float32]:
        """The scale as the quantizer holds it: one that is stored as a logarithm comes back a little off."""
        scale_s = scale_s.float()
        if self._problem.point.grid_spec.logarithm_scale:
            for _ in range(NUM_SETTLING):
                scale_s = scale_s.log().exp()
        stored_scale: npt.NDArray[np.float32] = scale_s.cpu().numpy()
        return stored_scale

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.copy()).to(self._rows_grd.device)


def _stacked(values_cgr: Tensor) -> Tensor:
    """[C, G, R] as rows of one call, [G, 1, C·R]."""
    groups = values_cgr.shape[1]
    return values_cgr.transpose(0, 1).reshape(groups, 1, -1)
