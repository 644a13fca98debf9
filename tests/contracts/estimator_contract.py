"""What every trace estimator must do; a test class inherits `EstimatorContract` and names its own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.config.estimators import PER_SAMPLE
from raysearch.errors import DataError
from raysearch.evaluation import Replica
from raysearch.sensitivity.estimators import TraceEstimator, TraceRequest, make_estimator
from raysearch.sensitivity.importance import TraceSample
from raysearch.sensitivity.traces import draw_shard
from tests.support.dense_matrices import gauss_newton
from tests.support.small_replicas import make_replica
from tests.support.trace_draws import draw

WEIGHTS = ("0.weight", "2.weight")
NUM_DRAWS = 120


class EstimatorContract:
    """The contract, on a small network with a ReLU, whose Hessian blocks are its Gauss-Newton matrices."""

    name: str
    """As in `sensitivity.estimator`."""

    @pytest.fixture
    def estimator(self) -> TraceEstimator:
        return make_estimator(self.name)

    @pytest.fixture
    def replica(self) -> Replica:
        replica = make_replica("relu", sizes=(5, 4))
        torch.manual_seed(0)
        # Weights too large to be taken by all their columns, and more classes than any estimator has exact
        # directions.
        replica.model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7)).eval()
        return replica

    def true_trace(self, replica: Replica, weight: str, shard: int) -> float:
        """Tr(H_ll) of the divergence on a shard, from the dense matrix."""
        return float(torch.trace(gauss_newton(replica, weight, shard)))

    def test_it_is_found_by_its_name_and_says_what_it_sees(self, estimator: TraceEstimator) -> None:
        assert estimator.name == self.name
        assert estimator.per_sample == (self.name in PER_SAMPLE)

    def test_draws_are_unbiased(self, estimator: TraceEstimator, replica: Replica) -> None:
        count = 2 if estimator.deterministic else NUM_DRAWS
        draws = draw(estimator, replica, WEIGHTS, draws=range(count), shard=1)
        assert list(draws) == list(WEIGHTS)
        for weight, values in draws.items():
            assert values.shape == (count, 4 if estimator.per_sample else 1)
            assert values.dtype == np.float64
            means = values.mean(axis=1)
            truth = self.true_trace(replica, weight, 1)
            stderr = means.std(ddof=1) / count**0.5
            assert abs(means.mean() - truth) <= 5 * stderr + 1e-4 * truth, weight
            if estimator.deterministic:
                assert stderr == 0

    def test_a_draw_is_the_same_whatever_it_is_computed_with(
        self, estimator: TraceEstimator, replica: Replica
    ) -> None:
        together = draw(estimator, copy.deepcopy(replica), WEIGHTS, draws=range(5), seed=7)
        for draws in (range(3, 5), range(1), range(1, 3)):
            part = draw(estimator, replica, WEIGHTS, draws=draws, seed=7)
            for weight in WEIGHTS:
                assert (part[weight] == together[weight][draws.start : draws.stop]).all()

    def test_seed_and_shard_decide_what_is_drawn(self, estimator: TraceEstimator, replica: Replica) -> None:
        if estimator.deterministic:
            pytest.skip("nothing is drawn")
        first = draw(estimator, replica, WEIGHTS, draws=range(2), seed=1)["0.weight"]
        assert (first != draw(estimator, replica, WEIGHTS, draws=range(2), seed=2)["0.weight"]).any()
        assert (first[0] != first[1]).any()

    def test_the_model_is_left_as_found(self, estimator: TraceEstimator, replica: Replica) -> None:
        replica.model.train()
        replica.model.get_parameter("0.weight").requires_grad_(False)
        before = state_of(replica.model)
        draw(estimator, replica, WEIGHTS, draws=range(2))
        assert state_of(replica.model) == before
        replica.forward = fail
        with pytest.raises(ZeroDivisionError):
            draw(estimator, replica, WEIGHTS, shard=1)
        assert state_of(replica.model) == before

    def test_a_trace_that_is_not_finite_is_refused(self, estimator: TraceEstimator, replica: Replica) -> None:
        replica.shards["calibration"][1][0][2] = float("nan")
        before = state_of(replica.model)
        request = TraceRequest(WEIGHTS, "divergence", 0, range(2))
        with pytest.raises(DataError, match="not finite on shard 1 of the calibration data"):
            draw_shard(replica, estimator, TraceSample(), request, 1)
        assert state_of(replica.model) == before


def fail(model: torch.nn.Module, batch: object) -> object:
    """A forward that cannot be run."""
    raise ZeroDivisionError


def state_of(model: torch.nn.Module) -> object:
    """Values, flags, hooks and gradients of a model, and the global generator."""
    values = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
    modules = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    gradients = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return values, modules, gradients, torch.get_rng_state().tolist()
