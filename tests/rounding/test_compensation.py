"""The column loop against a literal one that inverts H, against brute force, and on singular moments."""

from __future__ import annotations

import itertools

import pytest
import torch

from raysearch.rounding.compensation import Grid, solve
from raysearch.rounding.factors import factorise


def random_problem(rows=5, columns=7, groups=1, samples=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(groups, columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(groups, samples, columns, generator=generator, dtype=torch.float64).relu() @ mixing
    return weights, inputs.transpose(1, 2) @ inputs


def grid_of(weights, num_bits, scale_groups=1):
    low, high = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
    columns = weights.shape[2]
    group_of_d = torch.arange(columns) * scale_groups // columns
    scales = []
    for group in range(scale_groups):
        scales.append(weights[:, :, group_of_d == group].abs().amax(2) / high)
    ends = (torch.full((1, 1, 1), end, dtype=torch.float64) for end in (low, high))
    return Grid(torch.stack(scales, 1), *ends, group_of_d if scale_groups > 1 else None)


def solve_one(weights, grid, factor, **options):
    """Codes and damped errors [G, M] of one grid."""
    (solution,) = solve(weights, [grid], factor, **options)
    return solution.codes_gmd, solution.error_gkm.sum(1)


def literal_gptq(row, damped, scale, low, high):
    """Optimal brain quantization with the next column fixed: H⁻¹ is inverted anew after every column.

    Frantar and Alistarh, 2022 (arXiv 2208.11580), equations 2 and 3: the error of column j over [H⁻¹]_jj
    times its row is taken from what is not yet rounded.
    """
    row, codes = row.clone(), []
    for column in range(len(row)):
        inverse = torch.linalg.inv(damped[column:, column:])
        code = torch.clamp(torch.round(row[column] / scale[column]), low, high)
        codes.append(int(code))
        miss = (row[column] - code * scale[column]) / inverse[0, 0]
        row[column:] -= miss * inverse[0]
    return codes


def damped_and_order(moments, damping, act_order=True):
    diagonal = moments.diagonal()
    order = (
        sorted(range(len(moments)), key=lambda i: -float(diagonal[i])) if act_order else range(len(moments))
    )
    order = torch.tensor(list(order))
    damped = moments + damping * diagonal.mean() * torch.eye(len(moments), dtype=torch.float64)
    return damped, order


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("scale_groups", [1, 3])
@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_codes_are_those_of_the_literal_loop(num_bits, scale_groups, act_order):
    weights, moments = random_problem(rows=6, columns=9, groups=2)
    grid = grid_of(weights, num_bits, scale_groups)
    factor = factorise(moments, 0.01, act_order=act_order)
    codes, error = solve_one(weights, grid, factor, block_size=4)
    low, high = -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1
    scales = grid.of_columns(grid.scale_gkm).expand_as(weights)
    for group in range(2):
        damped, order = damped_and_order(moments[group], 0.01, act_order)
        for row in range(6):
            expected = torch.empty(9, dtype=torch.int16)
            found = literal_gptq(
                weights[group, row][order], damped[order][:, order], scales[group, row][order], low, high
            )
            expected[order] = torch.tensor(found, dtype=torch.int16)
            assert codes[group, row].tolist() == expected.tolist()
            delta = expected * scales[group, row] - weights[group, row]
            assert float(error[group, row]) == pytest.approx(float(delta @ damped @ delta), rel=1e-11)


@pytest.mark.parametrize("block_size", [1, 2, 3, 7, 64])
def test_blocks_of_any_size_give_the_same_codes(block_size):
    weights, moments = random_problem(rows=20, columns=33)
    grid, factor = grid_of(weights, 3), factorise(moments, 0.01)
    expected, error = solve_one(weights, grid, factor, block_size=33)
    codes, found = solve_one(weights, grid, factor, block_size=block_size)
    assert torch.equal(codes, expected)
    assert torch.allclose(found, error, rtol=1e-12)


def test_rows_in_turn_give_the_same_bits(monkeypatch):
    weights, moments = random_problem(rows=20, columns=33)
    grid, factor = grid_of(weights, 3), factorise(moments, 0.01)
    grouped = grid_of(weights, 2, scale_groups=3)
    expected = solve(weights, [grid, grouped], factor)
    monkeypatch.setattr("raysearch.rounding.compensation.SOLVE_BYTES", 2 * 8 * 33 * 7)
    for solution, other in zip(solve(weights, [grid, grouped], factor), expected, strict=True):
        assert torch.equal(solution.codes_gmd, other.codes_gmd)
        assert torch.allclose(solution.error_gkm, other.error_gkm, rtol=1e-12)


def test_grids_of_any_groups_go_through_the_columns_together():
    weights, moments = random_problem(rows=6, columns=12, groups=2)
    factor = factorise(moments, 0.01)
    grids = [grid_of(weights, 3), grid_of(weights, 2, scale_groups=3), grid_of(weights, 4, scale_groups=4)]
    for solution, grid in zip(solve(weights, grids, factor), grids, strict=True):
        (alone,) = solve(weights, [grid], factor)
        assert torch.equal(solution.codes_gmd, alone.codes_gmd)
        assert torch.allclose(solution.error_gkm, alone.error_gkm, rtol=1e-12)


def test_it_lies_between_the_best_of_all_codes_and_nearest():
    # In total: it decides column by column, so a single row may do worse than nearest.
    choices = torch.tensor(list(itertools.product(range(-2, 2), repeat=4)), dtype=torch.float64)
    least = found = most = 0.0
    for seed in range(20):
        weights, moments = random_problem(rows=8, columns=4, seed=seed)
        grid = grid_of(weights, 2)
        codes, error = solve_one(weights, grid, factorise(moments, 1e-9))
        for row in range(8):
            delta = choices * grid.scale_gkm[0, 0, row] - weights[0, row]
            best = float(((delta @ moments[0]) * delta).sum(1).min())
            assert best <= float(error[0, row]) * (1 + 1e-6)
            least += best
        nearest = grid.nearest(weights) * grid.of_columns(grid.scale_gkm) - weights
        found += float(error.sum())
        most += float(((nearest @ moments) * nearest).sum())
        assert codes.min() >= -2
        assert codes.max() <= 1
    assert least < found < 0.75 * most


def test_one_factor_serves_many_stacked_candidates():
    weights, moments = random_problem(rows=4, columns=6)
    factor = factorise(moments, 0.01)
    grids = [grid_of(weights * share, bits) for share in (0.7, 1.0) for bits in (2, 4)]
    ends = [(grid.low_gkm.expand(1, 1, 4), grid.high_gkm.expand(1, 1, 4)) for grid in grids]
    stacked = Grid(
        torch.cat([grid.scale_gkm for grid in grids], 2),
        torch.cat([low for low, _ in ends], 2),
        torch.cat([high for _, high in ends], 2),
    )
    codes, error = solve_one(weights, stacked, factor)
    for index, grid in enumerate(grids):
        alone, its_error = solve_one(weights, grid, factor)
        assert torch.equal(codes[:, 4 * index : 4 * index + 4], alone)
        assert torch.allclose(error[:, 4 * index : 4 * index + 4], its_error, rtol=1e-12)


def test_a_singular_matrix_is_damped_until_it_factors():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, dtype=torch.float64)
    moments = x.transpose(1, 2) @ x
    factor = factorise(moments, 1e-30)
    assert 1e-6 <= factor.damping <= 1
    upper, order = factor.upper_gdd[0], factor.order_gd[0]
    damped = moments[0] + torch.diag(factor.added_gd[0])
    assert torch.allclose(upper @ upper.T, damped[order][:, order], rtol=1e-9, atol=1e-9)
    assert torch.equal(upper, upper.triu())


def test_an_indefinite_matrix_falls_back_to_its_diagonal():
    moments = torch.tensor([[[1.0, 50.0], [50.0, 1.0]], [[2.0, 0.5], [0.5, 1.0]]], dtype=torch.float64)
    factor = factorise(moments, 0.01)
    assert factor.damping == 1
    weights = torch.tensor([[[0.3, 0.8]], [[0.3, 0.8]]], dtype=torch.float64)
    grid = grid_of(weights, 2)
    codes, _ = solve_one(weights, grid, factor)
    assert torch.equal(codes[0], grid.nearest(weights)[0].to(torch.int16))


def test_dead_inputs_round_to_nearest_and_hand_nothing_on():
    weights, moments = random_problem(rows=5, columns=6)
    dead = torch.tensor([1, 4])
    moments[:, dead] = 0
    moments[:, :, dead] = 0
    grid = grid_of(weights, 2)
    factor = factorise(moments, 0.01)
    assert factor.num_dead == 2
    codes, _ = solve_one(weights, grid, factor)
    assert torch.equal(codes[..., dead], grid.nearest(weights)[..., dead].to(torch.int16))
    alive = torch.tensor([0, 2, 3, 5])
    # The same λ: the mean of the diagonal counts the dead inputs too.
    other = factorise(moments[:, alive][:, :, alive], 0.01 * 4 / 6)
    part = Grid(grid.scale_gkm, grid.low_gkm, grid.high_gkm)
    assert torch.equal(codes[..., alive], solve_one(weights[..., alive], part, other)[0])


def test_nothing_at_all_is_nearest():
    weights, _ = random_problem(rows=5, columns=6)
    grid = grid_of(weights, 3)
    factor = factorise(torch.zeros(1, 6, 6, dtype=torch.float64), 0.01)
    assert torch.equal(solve_one(weights, grid, factor)[0], grid.nearest(weights).to(torch.int16))
