"""Estimators against the dense Gauss-Newton matrix and Hessian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from raysearch.errors import ConfigError, TaskError
from raysearch.evaluation import Divergence
from raysearch.evaluation.curvature import graphs
from raysearch.evaluation.curvature.output_factor import EigenFactor, SoftmaxFactor, SphereFactor
from raysearch.sensitivity.estimators.gauss_newton import ExactGaussNewton, GaussNewton
from tests.contracts.estimator_contract import EstimatorContract, state_of
from tests.support.dense_matrices import gauss_newton, hessian
from tests.support.small_replicas import make_replica, make_setup
from tests.support.trace_draws import draw
from tests.support.weight_use_models import build, weights_of

SMALL = ["linear", "relu", "conv", "depthwise", "tied", "embedding", "attention", "unreached"]


def weights_in(name, replica):
    return tuple(make_setup(name, replica).of_kind("weight"))


def exact(replica, weights, loss="divergence", **options):
    return draw(ExactGaussNewton(**options), replica, weights, loss)


def wide_relu(classes, size):
    replica = make_replica("relu", sizes=(size,))
    torch.manual_seed(0)
    replica.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, classes)).eval()
    return replica


class TestGaussNewton(EstimatorContract):
    name = "ggn"


class TestTwoExactDirections(EstimatorContract):
    name = "ggn-top"


class TestExactGaussNewton(EstimatorContract):
    name = "ggn-exact"


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize("name", SMALL)
def test_exact_is_the_trace_of_the_dense_matrix(name, kind):
    replica = make_replica(name, kind=kind, sizes=(5,))
    weights = weights_in(name, replica)
    found = exact(replica, weights, chunk_size=3)
    for weight in weights:
        truth = float(torch.trace(gauss_newton(replica, weight, 0)))
        assert found[weight].shape == (1, 5)
        assert found[weight].mean() == pytest.approx(truth, rel=1e-5), weight


@pytest.mark.parametrize("name", ["relu", "conv", "depthwise"])
def test_for_piecewise_linear_networks_it_is_the_hessian(name):
    replica = make_replica(name, sizes=(5,))
    for loss in ("divergence", "loss"):
        weights = weights_in(name, replica)
        found = exact(replica, weights, loss)
        for weight in weights:
            truth = float(torch.trace(hessian(replica, weight, 0, loss).double()))
            assert found[weight].mean() == pytest.approx(truth, rel=1e-5), (weight, loss)


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize("case", ["dense", "language", "attention", "transposed", "conv3d"])
def test_other_layers_and_dense_outputs(case, kind):
    # At the float weights the Hessian of the divergence is its Gauss-Newton matrix.
    replica = build(case, sizes=(3,), kind=kind)
    weights = weights_of(replica)
    found = exact(replica, weights)
    for weight in weights:
        if weight in ("words.weight", "head.weight") and case == "language":
            continue  # two names of one tensor, which `dense` would change one of
        truth = float(torch.trace(hessian(replica, weight, 0, "divergence").double()))
        assert found[weight].mean() == pytest.approx(truth, rel=2e-5), weight


LOSSES = {
    "mean": lambda z, batch: F.cross_entropy(z, batch[1]),
    "sum": lambda z, batch: F.cross_entropy(z, batch[1], reduction="sum"),
    "weighted": lambda z, batch: F.cross_entropy(z, batch[1], torch.tensor([1.0, 2.0, 0.5, 3.0])),
    "squares": lambda z, batch: (z - F.one_hot(batch[1], 4)).square().mean(),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_the_tasks_own_loss(kind):
    replica = make_replica("relu", sizes=(5,))
    replica.loss = LOSSES[kind]
    weights = weights_in("relu", replica)
    found = exact(replica, weights, "loss")
    for weight in weights:
        truth = float(torch.trace(hessian(replica, weight, 0, "loss").double()))
        assert found[weight].mean() == pytest.approx(truth, rel=1e-5)


def test_the_tasks_own_loss_over_a_dense_output():
    replica = build("dense", sizes=(2,))
    replica.shards = {"calibration": [(torch.randn(2, 2, 5, 5), torch.randint(0, 4, (2, 5, 5)))]}
    replica.loss = LOSSES["mean"]
    found = draw(GaussNewton(), replica, weights_of(replica), "loss", draws=range(150))
    for weight in weights_of(replica):
        truth = float(torch.trace(hessian(replica, weight, 0, "loss").double()))
        draws = found[weight].mean(1)
        assert abs(draws.mean() - truth) <= 5 * draws.std(ddof=1) / 150**0.5


@pytest.mark.parametrize(("loss", "message"), [
    (lambda z, batch: -z.square().mean(), "not convex"),
    (lambda z, batch: z.mean(0).square().sum(), "couples samples"),
    (lambda z, batch: z.square(), "must be a scalar"),
    (lambda z, batch: torch.tensor(1.0), "alone"),
    (None, "no loss"),
])  # fmt: skip
def test_a_loss_without_a_gauss_newton_trace_is_refused(loss, message):
    replica = make_replica("relu")
    replica.loss = loss
    before = state_of(replica.model)
    with pytest.raises(TaskError, match=message):
        draw(GaussNewton(), replica, ("0.weight",), "loss")
    assert state_of(replica.model) == before


ESTIMATORS = {
    "ggn": GaussNewton(),
    "ggn-top": GaussNewton("ggn-top"),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_draws_are_unbiased_and_cover_the_truth(name):
    replica = wide_relu(7, size=8)
    weights = weights_of(replica)
    truth = exact(replica, weights)
    runs = 200
    draws = draw(ESTIMATORS[name], replica, weights, draws=range(runs * 8), seed=11)
    for weight in weights:
        t = truth[weight].mean()
        values = draws[weight].mean(1).reshape(runs, 8)
        spread = values.std() / values.size**0.5
        if weight == "2.weight":
            # ‖U √λ ε‖² = Σ λ: the last layer's draws are exact.
            assert values == pytest.approx(t, rel=1e-5)
            continue
        assert spread > 1e-5 * t
        assert abs(values.mean() - t) <= 5 * spread
        errors = values.std(1, ddof=1) / 8**0.5
        # Student's t of 7 degrees covers 95 %; .89 is four standard deviations of 200 runs below.
        assert np.mean(np.abs(values.mean(1) - t) <= 2.365 * errors) >= 0.89


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_draws_over_many_positions_are_unbiased(kind):
    replica = build("dense", sizes=(3,), kind=kind)
    weights = weights_of(replica)
    truth = exact(replica, weights)
    draws = draw(GaussNewton(), replica, weights, draws=range(400), seed=2)
    for weight in weights:
        values = draws[weight].mean(1)
        assert abs(values.mean() - truth[weight].mean()) <= 5 * values.std() / 20


def test_a_pair_varies_less_than_plain_signs_and_two_exact_directions_less_still():
    replica = make_replica("conv", sizes=(16,))
    weights = weights_in("conv", replica)
    plain, pair, top = (GaussNewton(num_exact=k) for k in (0, 1, 2))
    spread = {}
    for key, estimator in (("plain", plain), ("pair", pair), ("top", top)):
        found = draw(estimator, replica, weights, draws=range(60), seed=4)
        spread[key] = np.array([found[w].mean(1).std() / found[w].mean() for w in weights])
    assert (spread["pair"] < 0.6 * spread["plain"]).all()
    assert (spread["top"] < 0.6 * spread["pair"]).all()


@pytest.mark.parametrize("estimator", ["ggn", "ggn-top"])
@pytest.mark.parametrize("case", ["dense", "grouped, strided", "hidden"])
def test_a_draw_is_the_same_whatever_it_is_computed_with(case, estimator):
    weights = weights_of(build(case))

    together = draw(ESTIMATORS[estimator], build(case), weights, draws=range(5), seed=7)
    replica = build(case)
    for lo, hi in ((3, 5), (0, 1), (1, 3)):
        part = draw(ESTIMATORS[estimator], replica, weights, draws=range(lo, hi), seed=7)
        for weight in weights:
            assert (part[weight] == together[weight][lo:hi]).all()
    if estimator == "ggn":
        # Of four classes Λ has rank 3: beyond two exact directions one is left, whose sign changes nothing.
        assert any((together[w][0] != together[w][1]).any() for w in weights)


def test_the_chunk_of_samples_changes_rounding_only():
    replica = build("grouped, strided", sizes=(7,))
    weights = weights_of(replica)
    one, other = (draw(GaussNewton(chunk_size=size), replica, weights, draws=range(2)) for size in (2, 7))
    for weight in weights:
        assert one[weight] == pytest.approx(other[weight], rel=1e-4)


def test_large_outputs_are_taken_by_fewer_samples(monkeypatch):
    replica = wide_relu(70, size=6)
    weights = weights_of(replica)
    whole = draw(GaussNewton(), replica, weights, draws=range(2))
    monkeypatch.setattr(graphs, "MAX_OUTPUTS", 150)
    sizes, forward = [], replica.forward
    replica.forward = lambda model, batch: (sizes.append(len(batch[0])), forward(model, batch))[1]
    found = draw(GaussNewton(), replica, weights, draws=range(2))
    assert sizes == [1, 2, 2, 2]
    for weight in weights:
        assert found[weight] == pytest.approx(whole[weight], rel=1e-4)


def test_the_factor_without_decomposition_is_one_of_the_same_matrix():
    p = torch.randn(3, 2, 6, dtype=torch.float64).mul(2).softmax(-1)
    p[0, 0] = torch.eye(6, dtype=torch.float64)[2]  # certain: no curvature at all
    matrix = (torch.diag_embed(p) - p[..., :, None] * p[..., None, :]) / 2
    for factor in (SoftmaxFactor(p, 0.5), EigenFactor(matrix)):
        columns = torch.stack([factor.apply(row.expand(3, 2, 6)) for row in torch.eye(6).double()], -1)
        assert torch.allclose(columns @ columns.mT, matrix, atol=1e-12)
        assert torch.allclose(factor.trace(), matrix.diagonal(dim1=2, dim2=3).sum((1, 2)))
        basis = factor.leading(2)
        assert torch.allclose(basis.mT @ basis, torch.eye(2).double().expand(3, 2, 2, 2), atol=1e-9)
        largest = torch.linalg.eigvalsh(matrix)[..., -1]
        assert (columns @ basis[..., :1]).square().sum((2, 3))[1:].numpy() == pytest.approx(
            largest[1:].numpy(), rel=1e-2
        )


def zipf(samples, positions, classes):
    """Peaked and flat distributions over many classes."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(samples, positions, classes, generator=generator, dtype=torch.float64)
    slopes = torch.linspace(0.5, 2, samples, dtype=torch.float64)[:, None, None]
    return (noise - slopes * torch.arange(1, classes + 1).double().log()).softmax(-1)


def test_leading_directions_over_a_vocabulary_are_eigenvectors():
    p = zipf(4, 2, 500)
    p[0, 0] = torch.eye(500, dtype=torch.float64)[7]  # certain: no curvature at all
    factor = SoftmaxFactor(p, 0.5)
    basis = factor.leading(2)
    assert torch.allclose(basis.mT @ basis, torch.eye(2).double().expand(4, 2, 2, 2), atol=1e-9)
    found = torch.stack([factor.apply(basis[..., i]) for i in range(2)], -1).square().sum(2)
    largest = torch.linalg.eigvalsh((torch.diag_embed(p) - p[..., :, None] * p[..., None, :]) / 2)
    largest = largest.flip(-1)[..., :2].clamp(min=0)
    assert torch.allclose(found, largest, rtol=2e-2, atol=1e-12)


class Passes(TorchDispatchMode):
    """Counts the operations whose result is as large as all outputs together."""

    def __init__(self, least):
        super().__init__()
        self.least, self.count = least, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() >= self.least and not func.is_view:
            self.count += 1
        return result


def test_leading_directions_over_a_vocabulary_take_a_few_passes():
    factor = SoftmaxFactor(zipf(2, 3, 2000), 1.0)
    with Passes(2 * 3 * 2000) as passes:
        factor.leading(1)
    assert passes.count <= 12


def test_many_classes_without_decomposition():
    replica = wide_relu(70, size=6)
    weights = weights_of(replica)
    truth = exact(replica, weights, max_outputs=70)
    draws = draw(GaussNewton(), replica, weights, draws=range(300))
    for weight in weights:
        values = draws[weight].mean(1)
        assert abs(values.mean() - truth[weight].mean()) <= 5 * values.std() / 300**0.5
    with pytest.raises(ConfigError, match=r"70 outputs .* 'ggn' or 'ggn-top'"):
        exact(replica, weights)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="chunk_size"):
        GaussNewton(chunk_size=0)


@pytest.mark.parametrize("kind", ["nmse", "cosine"])
def test_outputs_that_are_no_logits(kind):
    replica = make_replica("relu", sizes=(5,))
    replica.divergence = Divergence(kind).fitted(replica.float_outputs("calibration", 0))
    weights = weights_in("relu", replica)
    found = exact(replica, weights)
    draws = draw(GaussNewton(), replica, weights, draws=range(200))
    for weight in weights:
        truth = float(torch.trace(gauss_newton(replica, weight, 0)))
        assert found[weight].mean() == pytest.approx(truth, rel=1e-5)
        means = draws[weight].mean(1)
        assert abs(means.mean() - truth) < 5 * means.std(ddof=1) / 200**0.5 + 1e-6 * truth


def test_the_factor_of_the_sphere_needs_no_decomposition():
    vectors = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factor = SphereFactor(vectors, 0.5)
    columns = torch.stack([factor.apply(torch.eye(5).double()[i].expand(3, 2, 5)) for i in range(5)], -1)
    square = vectors.square().sum(-1)[..., None, None]
    dense = 0.5 * (torch.eye(5) - vectors[..., :, None] * vectors[..., None, :] / square) / square
    assert torch.allclose(columns @ columns.mT, dense)
    assert torch.allclose(factor.trace(), dense.diagonal(dim1=-2, dim2=-1).sum((1, 2)))
    basis = factor.leading(2)
    assert torch.allclose(basis.mT @ basis, torch.eye(2, dtype=torch.float64).expand(3, 2, 2, 2))
