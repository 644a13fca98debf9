"""One buffer of float32 holds what two whole matrices of float64 do."""

from __future__ import annotations

import pytest
import torch

from raysearch.rounding.compensation import solve
from raysearch.rounding.factors import factorise, factorise_compactly
from tests.rounding.test_compensation import grid_of, random_problem


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr("raysearch.rounding.factors.compact.NUM_COLUMNS", 4)
    monkeypatch.setattr("raysearch.rounding.factors.compact.PART_BYTES", 8 * 4 * 3)


def both(act_order=True, damping=0.01):
    """Weights, and the same moments (of numbers that float32 holds) factored in both ways."""
    weights, moments = random_problem(rows=6, columns=23, groups=2)
    moments = moments.float().double()
    dense = factorise(moments, damping, act_order=act_order)
    return weights, dense, factorise_compactly(moments.float(), damping, act_order=act_order)


@pytest.mark.parametrize("act_order", [True, False])
def test_it_says_what_the_whole_matrices_say(act_order):
    weights, dense, compact = both(act_order)
    assert torch.equal(compact.order_gd, dense.order_gd)
    assert torch.allclose(compact.added_gd, dense.added_gd, rtol=1e-14)
    assert (compact.damping, compact.num_dead) == (dense.damping, dense.num_dead)
    assert torch.equal(compact.moments_diagonal_gd, dense.moments_diagonal_gd)
    every = slice(None)
    assert torch.equal(compact.moments_of(every, every), dense.moments_of(every, every))
    assert torch.equal(compact.moments_of(slice(3, 9), every), dense.moments_of(slice(3, 9), every))
    assert torch.allclose(compact.times_moments(weights), dense.times_moments(weights), rtol=1e-12)
    assert torch.allclose(compact.diagonal_gd, dense.diagonal_gd, rtol=1e-6)
    assert torch.allclose(compact.upper(1, 5, 9), dense.upper(1, 5, 9), rtol=1e-4, atol=1e-5)
    assert torch.allclose(compact.divided(weights), dense.divided(weights), rtol=1e-4, atol=1e-5)


def test_its_product_is_the_damped_matrix_within_the_stated_error():
    _, dense, compact = both()
    damped = dense.moments_gdd + torch.diag_embed(dense.added_gd)
    for group in range(2):
        order = compact.order_gd[group]
        upper = compact.buffer_gdd[group].triu().double()
        expected = damped[group][order][:, order]
        sizes = expected.diagonal().sqrt()
        assert ((upper @ upper.T - expected).abs() <= 3 * 2**-24 * sizes[:, None] * sizes).all()


def test_it_rounds_to_the_same_codes():
    weights, dense, compact = both()
    grids = [grid_of(weights, 3), grid_of(weights, 2, scale_groups=3)]
    for one, other in zip(solve(weights, grids, dense), solve(weights, grids, compact), strict=True):
        assert torch.equal(one.codes_gmd, other.codes_gmd)
        assert torch.allclose(one.error_gkm, other.error_gkm, rtol=1e-4)


def test_what_does_not_factor_is_damped_and_the_moments_stay():
    x = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    moments = (x.T @ x)[None]
    compact = factorise_compactly(moments.clone(), 1e-30)
    assert 1e-6 <= compact.damping <= 1
    assert torch.equal(compact.moments_of(slice(None), slice(None)), moments.double())
    upper = compact.buffer_gdd[0].triu().double()
    order = compact.order_gd[0]
    damped = moments[0].double() + torch.diag(compact.added_gd[0])
    assert torch.allclose(upper @ upper.T, damped[order][:, order], rtol=1e-5, atol=1e-5)


def test_an_indefinite_matrix_falls_back_to_its_diagonal():
    moments = torch.tensor([[[1.0, 50.0], [50.0, 3.0]]])
    compact = factorise_compactly(moments.clone(), 0.01)
    assert compact.damping == 1
    assert torch.equal(compact.buffer_gdd[0].triu(1), torch.zeros(2, 2))
    # λ = 1 of a mean of 2, in the order of falling moments.
    assert compact.diagonal_gd[0].square().tolist() == pytest.approx([5, 3])
    assert torch.equal(compact.moments_of(slice(None), slice(None)), moments.double())
