"""XTrace and XNysTrace against matrices of known spectrum, and against dense Hessians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raysearch.errors import ConfigError
from raysearch.sensitivity.estimators.hutchinson import Hutchinson
from raysearch.sensitivity.estimators.products import gaussian, orthonormal
from raysearch.sensitivity.estimators.xnystrace import XNysTrace, xnystrace
from raysearch.sensitivity.estimators.xtrace import XTrace, xtrace
from tests.contracts.estimator_contract import EstimatorContract
from tests.support.dense_matrices import hessian
from tests.support.small_replicas import make_replica, make_setup
from tests.support.trace_draws import draw

CPU = torch.device("cpu")
SIZE = 32
SPECTRA = {
    "decaying": 0.7 ** torch.arange(SIZE).double(),
    "low rank": (torch.arange(SIZE) < 5).double(),
    "indefinite": torch.linspace(-1, 2, SIZE).double(),
}


def matrix(spectrum):
    basis = orthonormal(SIZE, SIZE, 1, CPU)
    return basis * SPECTRA[spectrum] @ basis.T


def product_of(a, precision=torch.float32):
    """As a Hessian-vector product rounds: single precision in, double out."""
    return lambda v: (a.to(precision) @ v.to(precision)).double()


def nystrom_draw(a, m, seed):
    omega = orthonormal(SIZE, m, seed, CPU)
    return xnystrace(omega, product_of(a)(omega), 1.2e-7)


def basis_draw(a, m, seed):
    omega = gaussian(SIZE, m // 2, seed, CPU)
    y = product_of(a)(omega)
    q, r = torch.linalg.qr(y)
    return xtrace(omega, y, q, r, product_of(a)(q))


class TestXNysTrace(EstimatorContract):
    name = "xnystrace"


class TestXTrace(EstimatorContract):
    name = "xtrace"


@pytest.mark.parametrize(
    ("draw", "spectrum", "limit"),
    [
        (nystrom_draw, "decaying", 0.12),
        (basis_draw, "decaying", 0.25),
        (nystrom_draw, "low rank", 1e-4),
        (basis_draw, "indefinite", 0.35),
    ],
)
def test_the_mean_of_draws_is_the_trace(draw, spectrum, limit):
    a = matrix(spectrum)
    truth = float(a.trace())
    found = np.array([draw(a, 8, seed) for seed in range(300)])
    assert abs(found.mean() - truth) <= 4 * found.std() / math.sqrt(300) + 1e-5 * truth
    assert found.std() <= limit * truth


@pytest.mark.parametrize("spectrum", ["decaying", "low rank"])
def test_it_is_exact_where_the_columns_span_the_range(spectrum):
    a = matrix(spectrum)
    assert nystrom_draw(a, SIZE, 0) == pytest.approx(float(a.trace()), rel=1e-5)
    assert basis_draw(a, 2 * SIZE, 0) == pytest.approx(float(a.trace()), rel=1e-5)
    if spectrum == "low rank":
        assert nystrom_draw(a, 8, 0) == pytest.approx(5, rel=1e-4)
        assert basis_draw(a, 16, 0) == pytest.approx(5, rel=1e-4)


def test_a_block_of_zeros_has_trace_zero():
    zero = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    assert nystrom_draw(zero, 4, 0) == 0


@pytest.mark.parametrize("name", ["conv", "attention"])
@pytest.mark.parametrize(
    ("make", "loss"), [(XNysTrace, "divergence"), (XTrace, "divergence"), (XTrace, "loss")]
)
def test_draws_of_a_model_lie_around_the_dense_trace(name, make, loss):
    replica = make_replica(name)
    names = tuple(make_setup(name, replica).of_kind("weight"))
    got = draw(make(6), replica, names, loss, draws=range(25), shard=1)
    one = draw(Hutchinson(), replica, names, loss, draws=range(25), shard=1)
    for weight_id in names:
        truth = float(torch.trace(hessian(replica, weight_id, 1, loss)))
        values = got[weight_id][:, 0]
        assert abs(values.mean() - truth) <= 4 * values.std(ddof=1) / math.sqrt(25) + 1e-4 * abs(truth)
        if make is XNysTrace:
            # Six products shared cleverly beat six averaged probes.
            assert values.std() < one[weight_id].std() / math.sqrt(6)


@pytest.mark.parametrize("make", [XNysTrace, XTrace])
def test_a_small_weight_is_exact(make):
    replica = make_replica("attention")
    got = draw(make(16), replica, ("head.weight", "qkv.weight"), draws=range(3, 5))
    truth = float(torch.trace(hessian(replica, "head.weight", 0, "divergence")))
    assert got["head.weight"].tolist() == [[pytest.approx(truth, rel=1e-5)]] * 2
    assert got["qkv.weight"][0] != got["qkv.weight"][1]


@pytest.mark.parametrize("make", [XNysTrace, XTrace])
def test_an_unreached_weight_has_trace_zero(make):
    replica = make_replica("unreached")
    got = draw(make(4), replica, ("used.weight", "idle.weight"), draws=range(2))
    assert (got["idle.weight"] == 0).all()
    assert (got["used.weight"] > 0).all()


def test_what_does_not_suit_is_refused():
    replica = make_replica("linear")
    with pytest.raises(ConfigError, match="take 'xtrace'"):
        draw(XNysTrace(), replica, ("0.weight",), "loss")
    with pytest.raises(ConfigError, match="at least 2 products a draw, not 1"):
        XNysTrace(1)
    with pytest.raises(ConfigError, match="even number of products a draw from 4 on, not 7"):
        XTrace(7)
