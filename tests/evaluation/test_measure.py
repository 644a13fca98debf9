import copy
import math
import pickle
import statistics

import pytest
import torch
from torch import Tensor, nn

from raysearch.evaluation import (
    Divergence,
    Measures,
    Metric,
    Replica,
    WorkerCache,
    default_forward,
    evaluate_model,
)
from raysearch.evaluation.measure import over_samples
from tests.support import model_zoo

X, Y = torch.randn(7, 1, 8, 8), torch.arange(7)
BATCHES = [(X[:4], Y[:4]), (X[4:6], Y[4:6]), (X[6:], Y[6:])]


def loss(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(outputs, batch[1])


def accuracy(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> float:
    return float((outputs.argmax(1) == batch[1]).float().mean())


def other() -> nn.Module:
    model = model_zoo.build("digits")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_batches_weigh_by_their_size() -> None:
    model, reference = other(), model_zoo.build("digits")
    model.train()
    divergence = Divergence()
    measures = Measures(default_forward, divergence, reference, loss, {"accuracy": accuracy})
    got = evaluate_model(model, BATCHES, measures).values
    assert model.training
    model.eval()
    with torch.no_grad():
        z, target = model(X), reference(X)
    assert list(got) == ["divergence", "agreement", "loss", "accuracy"]
    assert got["divergence"] == pytest.approx(float(divergence.per_sample(z, target).mean()), rel=1e-5)
    assert got["agreement"] == pytest.approx(divergence.agreement(z, target))
    assert got["loss"] == pytest.approx(float(loss(z, (X, Y))), rel=1e-5)
    assert got["accuracy"] == pytest.approx(accuracy(z, (X, Y)))


def test_what_is_known_of_each_sample_has_a_standard_error() -> None:
    def nll(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch[1], reduction="none")

    model, reference, divergence = other(), model_zoo.build("digits"), Divergence()
    metrics = {"accuracy": accuracy, "perplexity": Metric(nll, per_sample=True, of_mean=math.exp)}
    got = evaluate_model(model, BATCHES, Measures(default_forward, divergence, reference, metrics=metrics))
    with torch.no_grad():
        z, target = model(X), reference(X)
    each = divergence.per_sample(z, target)
    losses = nll(z, (X, Y)).double()
    assert set(got.errors) == {"divergence", "perplexity"}
    assert got.errors["divergence"] == pytest.approx(float(each.std() / 7**0.5), rel=1e-4)
    # Of the mean over all samples, and not the mean of the batches' perplexities.
    assert got.values["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    slope = got.values["perplexity"] * float(losses.std() / 7**0.5)
    assert got.errors["perplexity"] == pytest.approx(slope, rel=0.05)
    alone = evaluate_model(model, [(X[:1], Y[:1])], Measures(default_forward, divergence))
    assert alone.errors == {}


def test_a_batch_that_does_not_fit_is_judged_whole() -> None:
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = other()
            self.fits = 99

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return self.inner(x)

    def total(outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch[1], reduction="sum")

    model, known = Greedy(), {}
    for model.fits in (99, 2):
        measures = Measures(
            default_forward, Divergence(), model_zoo.build("digits"), total, {"accuracy": accuracy}
        )
        known[model.fits] = evaluate_model(model, BATCHES, measures).values
    assert known[2] == pytest.approx(known[99], rel=1e-5)


def test_without_a_reference_there_is_no_divergence_and_without_batches_nothing() -> None:
    model = model_zoo.build("digits")
    measures = Measures(default_forward, Divergence(), loss=loss)
    assert list(evaluate_model(model, BATCHES, measures).values) == ["loss"]
    assert evaluate_model(model, [], measures).values == {}


def test_a_number_a_batch_has_an_error_over_batches_where_they_are_many():
    means = (0.5, 0.75, 0.25, 0.5, 1.0)
    shards = [(4, {"accuracy": mean}) for mean in means]
    got = over_samples(shards, {"accuracy": accuracy})
    assert got.values["accuracy"] == pytest.approx(statistics.mean(means))
    assert got.errors["accuracy"] == pytest.approx(statistics.stdev(means) / 5**0.5)
    assert over_samples(shards[:4], {"accuracy": accuracy}).errors == {}


def replica() -> Replica:
    return Replica(
        model_zoo.build("digits"), default_forward, {"calibration": [b for b, _ in BATCHES]}, Divergence()
    )


def test_a_replica_runs_without_gradient_and_remembers_float_outputs() -> None:
    held = replica()
    first = held.float_outputs("calibration", 1)
    assert not first.requires_grad
    assert held.float_outputs("calibration", 1) is first
    with torch.no_grad():
        assert torch.equal(first, held.model(X[4:6]))


def test_a_shipped_replica_leaves_its_cache_behind() -> None:
    held = replica()
    expected = held.float_outputs("calibration", 0)
    twin: Replica = pickle.loads(pickle.dumps(held))
    assert twin.cache == WorkerCache()
    assert not any(m.training for m in twin.model.modules())
    assert torch.equal(twin.float_outputs("calibration", 0), expected)
    assert held.cache != WorkerCache()


def test_the_device_auto_is_one_that_is_there() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    shards = {"calibration": [X]}
    model = copy.deepcopy(model_zoo.build("digits"))
    assert Replica(model, default_forward, shards, Divergence(), device="auto").place().device == expected
