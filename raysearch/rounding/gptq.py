"""GPTQ with several candidate scales: all schemes of a weight in one pass over its columns.

G  convolution groups    R  rows of a group    d  inputs of a row    K  scale groups along a row    S  scales
C  candidates    B  bundles of scales that are chosen together
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysearch.config.rounding import RoundingConfig
from raysearch.quantizer import scale_steps, storable
from raysearch.records.granularity import Granularity
from raysearch.records.rounding import RoundedWeight
from raysearch.records.scheme import Scheme
from raysearch.rounding.candidates import Steps, Weight, first_candidates
from raysearch.rounding.compensation import Grid, Solution, solve
from raysearch.rounding.joint_fit import jointly_fitted_scale
from raysearch.rounding.minima import round_with_minima
from raysearch.rounding.nearest import round_nearest
from raysearch.rounding.problem import Block, Problem, Target
from raysearch.rounding.scales import fitted_scale
from raysearch.rounding.sharing import Sharing

NEIGHBOURS = (0.97, 1.0, 1.03)
"""Multiples of a fitted scale that are tried with it."""

NUM_SETTLING = 4
"""How often a logarithmic scale is taken to its logarithm and back until it stays."""

CANDIDATE_BYTES = 2**28
"""Rows of candidates that are rounded at once; what does not fit is done in turn, with the same results."""


ScaleKind = tuple[Granularity, str]
"""Which elements share a scale, and the form in which it is stored."""


def round_gptq(problem: Problem, settings: RoundingConfig) -> dict[Scheme, RoundedWeight]:
    """Every scheme of a weight: codes by `compensation.solve` at several scales, the best kept per scale.

    `first_candidates` says where scales and zero points come from. Where a row has several scales they act on
    each other, so rows are kept whole, and one more candidate takes for each scale the one whose columns had
    the least part in the error. Then the scales are fitted to the codes that were chosen, those of a row
    jointly, and tried again with their neighbours, `settings.refits` times. What is kept for each bundle (a
    row, or the tensor) has the least error after rounding, by H, damped. It never has more by H itself than
    the nearest codes at the calibrated scale, which are the last candidate.

    A weight without inputs, or whose scales run across its rows, is rounded to nearest. Schemes with minima
    are rounded by `round_with_minima`.

    Cost: 2·rows·d² flops a candidate; memory about 32 bytes a weight and candidate, `CANDIDATE_BYTES` at
    most, or one candidate.
    """
    inputs = problem.inputs
    if inputs is None:
        return round_nearest(problem)
    if any(target.start.minimum is not None for target in problem.targets):
        return round_with_minima(problem, partial(round_gptq, settings=settings))
    weights: dict[ScaleKind, Weight] = {}
    rows_grd = inputs.layout.rows(problem.weight).double()
    # Of targets with the same scales in the same form, those that are integers of something have one width.
    for (granularity, scale_format), target in {_scale_kind(t): t for t in problem.targets}.items():
        places = inputs.layout.scale_places(problem.point.shape, granularity)
        if places is None:
            continue
        num_scales = granularity.num_scales(problem.point.shape)
        places = places.to(problem.weight.device)
        step_s = scale_steps(torch.from_numpy(target.start.scale), scale_format)
        if step_s is not None:
            step_s = step_s.to(problem.weight.device)
        sharing = Sharing(places, num_scales, inputs.row_weights, scale_format, step_s)
        weights[granularity, scale_format] = Weight(rows_grd, inputs, sharing)
    by_inputs = [target for target in problem.targets if _scale_kind(target) in weights]
    others = [target for target in problem.targets if _scale_kind(target) not in weights]
    rounded: dict[Scheme, RoundedWeight] = {}
    if by_inputs:
        rounded |= _Search(replace(problem, targets=tuple(by_inputs)), weights, settings).run()
    if others:
        note = "rows with several scales, or scales across rows, rounded to nearest"
        notes = (*problem.notes, note)
        rounded |= round_nearest(replace(problem, targets=tuple(others), notes=notes))
    return {target.scheme: rounded[target.scheme] for target in problem.targets}


@dataclass(frozen=True)
class _Candidate:
    """Steps to try for one target."""

    target: int
    steps: Steps


@dataclass
class _Best:
    """The best so far of one target.

    Attributes:
        error_b: damped error.
        steps: its steps.
        codes_grd: codes less the zero point.
        part_s: the least part in the error that the columns of each scale had.
        parts: the steps with which they had it.
    """

    error_b: Tensor
    steps: Steps
    codes_grd: Tensor
    part_s: Tensor
    parts: Steps


class _Search:
    """All targets of a weight, whose rows go through the columns together."""

    def __init__(self, problem: Problem, weights: dict[ScaleKind, Weight], settings: RoundingConfig) -> None:
        self._problem, self._settings = problem, settings
        self._weights = [weights[_scale_kind(target)] for target in problem.targets]
        self._rows_grd, self._inputs = self._weights[0].rows_grd, self._weights[0].inputs
        self._through_grd = self._inputs.times_moments(self._rows_grd)
        self._best: dict[int, _Best] = {}

    def run(self) -> dict[Scheme, RoundedWeight]:
        self._try_all(self._first_candidates())
        self._try_all(self._assembled_candidates())
        for _ in range(self._settings.refits):
            self._try_all(self._refitted_candidates())
        return {target.scheme: self._finish(index) for index, target in enumerate(self._problem.targets)}

    def _first_candidates(self) -> list[_Candidate]:
        candidates: list[_Candidate] = []
        for index, target in enumerate(self._problem.targets):
            steps = first_candidates(
                self._weights[index],
                self._start(target),
                target.levels,
                target.point.grid_spec.mode,
                self._settings.scale_factors,
            )
            candidates.extend(_Candidate(index, each) for each in steps)
        return candidates

    def _assembled_candidates(self) -> list[_Candidate]:
        return [
            _Candidate(index, best.parts)
            for index, best in self._best.items()
            if self._weights[index].sharing.has_groups
        ]

    def _refitted_candidates(self) -> list[_Candidate]:
        candidates: list[_Candidate] = []
        for index, best in self._best.items():
            fitted = Steps(self._fitted(index, best)[0], best.steps.zero_s)
            weight = self._weights[index]
            candidates.extend(_Candidate(index, weight.times(fitted, factor)) for factor in NEIGHBOURS)
        return candidates

    def _try_all(self, candidates: Sequence[_Candidate]) -> None:
        """Round at every candidate and keep what is better than the best so far."""
        at_once = max(1, CANDIDATE_BYTES // (32 * self._rows_grd.numel()))
        for start in range(0, len(candidates), at_once):
            part = candidates[start : start + at_once]
            alike: dict[Granularity, list[_Candidate]] = {}
            for candidate in part:
                granularity = self._problem.targets[candidate.target].point.granularity
                alike.setdefault(granularity, []).append(candidate)
            for listed, (codes_cgrd, error_cgrk) in zip(
                alike.values(), self._solve(list(alike.values())), strict=True
            ):
                sharing = self._weights[listed[0].target].sharing
                parts_cs, errors_cb = sharing.sums(error_cgrk), sharing.bundle_sums(error_cgrk)
                for candidate, codes_grd, part_s, error_b in zip(
                    listed, codes_cgrd, parts_cs, errors_cb, strict=True
                ):
                    self._keep_better(candidate, codes_grd, part_s, error_b)

    def _finish(self, index: int) -> RoundedWeight:
        """The best of one target, with its scale fitted; or nearest codes, where those miss less by H."""
        problem, target, best = self._problem, self._problem.targets[index], self._best[index]
        sharing = self._weights[index].sharing
        scale_s, error_b = self._fitted(index, best)[::2]
        nearest = self._nearest(index)
        nearest_error_b = self._fitted(index, nearest)[1]
        is_nearest_b = nearest_error_b < error_b
        steps = Steps(scale_s, best.steps.zero_s).where(is_nearest_b[sharing.bundle_of_s], nearest.steps)
        is_nearest_gr1 = is_nearest_b[sharing.bundle_of_gr][..., None]
        relative_grd = torch.where(is_nearest_gr1, nearest.codes_grd, best.codes_grd)
        codes_grd = relative_grd + sharing.of_columns(steps.zero_s).to(relative_grd.dtype)
        dtype = torch.int8 if target.start.signed else torch.uint8
        codes = self._inputs.layout.weight(codes_grd.to(dtype), problem.point.shape)
        error = float(torch.minimum(error_b, nearest_error_b).sum()) / problem.num_samples
        return RoundedWeight(
            codes=codes.cpu().numpy(),
            scale=self._held_scale(target, steps.scale_s),
            zero_point=steps.zero_s.cpu().numpy().astype(np.int32),
            signed=target.start.signed,
            granularity=target.point.granularity,
            error_nearest=float(nearest_error_b.sum()) / problem.num_samples,
            error=error,
            method="gptq",
            mean_moment=self._inputs.mean_moment() / problem.num_samples,
            notes=problem.notes,
        )

    def _solve(self, alike: Sequence[Sequence[_Candidate]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Of candidates whose scales lie alike: codes less the zero point, and damped errors.

        The codes are [C, G, R, d]; the errors are in the parts of each scale group, [C, G, R, K].
        """
        solutions: list[list[Solution]] = []
        grids = [self._grid(candidates) for candidates in alike]
        for block in self._inputs.blocks:
            rows_grd = self._rows_grd[:, block.first : block.last]
            narrow = [grid.narrowed(self._rows_grd.shape[1], block.first, block.last) for grid in grids]
            solutions.append(self._solve_block(rows_grd, narrow, block))
        for index, candidates in enumerate(alike):
            codes, errors = [], []
            for parts in solutions:
                solution = parts[index]
                codes.append(_apart(solution.codes_gmd, len(candidates)))
                errors.append(_apart(solution.error_gkm.transpose(1, 2), len(candidates)))
            yield torch.cat(codes, 2), torch.cat(errors, 2)

    def _solve_block(self, rows_grd: Tensor, grids: Sequence[Grid], block: Block) -> list[Solution]:
        if block.factor is not None:
            return solve(rows_grd, grids, block.factor, self._settings.block_size)
        solutions = []
        for grid in grids:
            # One candidate at a time: they have no factor to share.
            codes, errors = [], []
            for each in grid.of_candidates(rows_grd.shape[1]):
                codes_grd = each.nearest(rows_grd)
                missed_grd = codes_grd * each.of_columns(each.scale_gkm) - rows_grd
                codes.append(codes_grd.to(torch.int16))
                errors.append(each.shares(missed_grd.square().transpose(1, 2)))
            solutions.append(Solution(torch.cat(codes, 1), torch.cat(errors, 2)))
        return solutions

    def _grid(self, candidates: Sequence[_Candidate]) -> Grid:
        """The levels of all rows, candidate after candidate."""
        sharing = self._weights[candidates[0].target].sharing
        levels = [self._problem.targets[candidate.target].levels for candidate in candidates]
        scale_cs = torch.stack([candidate.steps.scale_s for candidate in candidates])
        zero_cs = torch.stack([candidate.steps.zero_s for candidate in candidates])
        ends_c12 = torch.tensor(levels, dtype=torch.float64, device=scale_cs.device)
        tables = (scale_cs, ends_c12[:, :1] - zero_cs, ends_c12[:, 1:] - zero_cs)
        scale, low, high = (_stacked(sharing.spread(table)) for table in tables)
        return Grid(scale, low, high, sharing.places.group_of_d)

    def _keep_better(self, candidate: _Candidate, codes_grd: Tensor, part_s: Tensor, error_b: Tensor) -> None:
        best, steps = self._best.get(candidate.target), candidate.steps
        if best is None:
            self._best[candidate.target] = _Best(error_b, steps, codes_grd.clone(), part_s, steps)
            return
        sharing = self._weights[candidate.target].sharing
        is_better_b = error_b < best.error_b
        best.error_b = torch.where(is_better_b, error_b, best.error_b)
        best.steps = best.steps.where(is_better_b[sharing.bundle_of_s], steps)
        best.codes_grd = torch.where(is_better_b[sharing.bundle_of_gr][..., None], codes_grd, best.codes_grd)
        best.parts = best.parts.where(part_s < best.part_s, steps)
        best.part_s = torch.minimum(part_s, best.part_s)

    def _fitted(self, index: int, best: _Best) -> tuple[Tensor, Tensor, Tensor]:
        """The scale that fits its codes best; the errors by H before and after that."""
        sharing, codes_grd = self._weights[index].sharing, best.codes_grd.double()
        if sharing.has_groups:
            return jointly_fitted_scale(codes_grd, self._rows_grd, self._inputs, sharing, best.steps.scale_s)
        return fitted_scale(
            codes_grd, self._rows_grd, self._through_grd, self._inputs, sharing, best.steps.scale_s
        )

    def _nearest(self, index: int) -> _Best:
        target, sharing = self._problem.targets[index], self._weights[index].sharing
        quantizer = self._problem.quantizer(target)
        with torch.no_grad():
            codes = quantizer.codes(self._problem.weight)
        start = self._start(target)
        codes_grd = self._inputs.layout.rows(codes).to(torch.int16)
        relative_grd = codes_grd - sharing.of_columns(start.zero_s).to(torch.int16)
        nothing_s = torch.zeros_like(start.scale_s)
        return _Best(nothing_s, start, relative_grd, nothing_s, start)

    def _held_scale(self, target: Target, scale_s: Tensor) -> npt.NDArray[np.float32]:
        """The scale as the quantizer holds it: one that is stored as a logarithm comes back a little off."""
        scale_s = scale_s.float()
        if target.point.grid_spec.logarithm_scale:
            for _ in range(NUM_SETTLING):
                scale_s = scale_s.log().exp()
            scale_s = storable(scale_s, target.point.scale_format)
        stored_scale: npt.NDArray[np.float32] = scale_s.cpu().numpy()
        return stored_scale

    def _start(self, target: Target) -> Steps:
        """The calibrated steps."""
        arrays = (target.start.scale.reshape(-1), target.start.zero_point.reshape(-1))
        scale_s, zero_s = (torch.from_numpy(array.copy()).to(self._rows_grd.device) for array in arrays)
        return Steps(scale_s.double(), zero_s.double())


def _scale_kind(target: Target) -> ScaleKind:
    return target.point.granularity, target.point.scale_format


def _apart(values_gmx: Tensor, count: int) -> Tensor:
    """Rows of so many candidates, [C, G, R, …] of [G, C·R, …]."""
    num_groups, _, num_columns = values_gmx.shape
    return values_gmx.reshape(num_groups, count, -1, num_columns).transpose(0, 1)


def _stacked(values_cgrk: Tensor) -> Tensor:
    """As rows of one call, [G, K, C·R]."""
    return values_cgrk.permute(1, 3, 0, 2).flatten(2)
