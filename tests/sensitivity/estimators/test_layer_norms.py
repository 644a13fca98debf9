"""Per-sample squared norms against gradients that autograd makes one sample at a time."""

from __future__ import annotations

import pytest
import torch

from raysearch.errors import TaskError
from raysearch.evaluation import DataSet, ShardView
from raysearch.evaluation.curvature.graphs import require_gradients
from raysearch.evaluation.forward import frozen_eval
from raysearch.sensitivity.estimators import layer_norms
from raysearch.sensitivity.estimators.captured_calls import Call
from raysearch.sensitivity.estimators.sample_gradients import Plans, SampleGradients
from raysearch.sensitivity.estimators.sample_layout import Layout
from tests.support.weight_use_models import CASES, build, weights_of


def by_loop(replica, weights, batch, columns):
    parameters = [replica.model.get_parameter(name) for name in weights]
    found = torch.zeros(len(weights), len(columns), len(batch[0]), dtype=torch.float64)
    for index in range(len(batch[0])):
        output = replica.model(batch[0][index : index + 1])
        for number, column in enumerate(columns):
            got = torch.autograd.grad(output, parameters, column[index : index + 1], retain_graph=True)
            found[:, number, index] = torch.stack([g.double().square().sum() for g in got])
    return found


def norms(replica, weights, batch, columns):
    with frozen_eval(replica.model):
        require_gradients(replica)
        gradients = SampleGradients(ShardView(replica, DataSet.CALIBRATION, 0), weights, batch)
        assert gradients.output.shape == columns[0].shape
        return gradients.squared_norms(columns)


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_norms_are_those_of_each_sample_alone(case, gram, monkeypatch):
    monkeypatch.setattr(layer_norms, "prefers_gram", lambda *sizes: gram)
    monkeypatch.setattr(layer_norms, "MAX_ELEMENTS", 600)
    replica = build(case)
    weights, batch = weights_of(replica), replica.shards["calibration"][0]
    columns = list(torch.randn(3, *replica.model(batch[0]).shape))
    expected = by_loop(replica, weights, batch, columns)
    found = norms(replica, weights, batch, columns)
    assert replica.cache.of(Plans).by_weights[DataSet.CALIBRATION, weights].looped == CASES[case][2]
    for name, truth in zip(weights, expected, strict=True):
        assert found[name].numpy() == pytest.approx(truth.numpy(), rel=2e-5, abs=1e-6 * float(truth.max())), (
            name
        )


def test_a_model_that_takes_another_way_for_a_batch_is_followed():
    class Moody(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) if x[0, 0, 0] > 0 else self.b(self.a(x))

    replica = build("merged")
    replica.model = Moody().eval()
    for sign in (1, -1):
        batch = (torch.randn(3, 2, 4).abs() * sign,)
        columns = [torch.randn(3, 2, 4)]
        found = norms(replica, ("a.weight",), batch, columns)
        assert found["a.weight"].numpy() == pytest.approx(
            by_loop(replica, ("a.weight",), batch, columns)[0].numpy(), rel=1e-5
        )
    assert not replica.cache.of(Plans).by_weights[DataSet.CALIBRATION, ("a.weight",)].looped


def test_an_output_without_a_row_a_sample_is_refused():
    replica = build("merged")
    replica.forward = lambda model, batch: model(batch[0]).flatten()
    batch = replica.shards["calibration"][0]
    with pytest.raises(TaskError, match="12 rows for 3 samples"):
        norms(replica, weights_of(replica), batch, [torch.randn(5, 4)])


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("size", [1e-4, 1e3])
def test_squares_of_half_precision_neither_overflow_nor_vanish(gram, size, monkeypatch):
    monkeypatch.setattr(layer_norms, "prefers_gram", lambda *sizes: gram)
    x = torch.full((2, 3, 4), size, dtype=torch.float16)
    call = Call("linear", "w", (0, (5, 4), (4, 1)), x, {}, None, (2, 3, 5), ())
    cotangent = torch.full((2, 3, 5), size, dtype=torch.float16)
    norms = layer_norms.squared_norms([(call, Layout(0))], [[cotangent]], 2)
    exact = 5 * 4 * 9 * float(x[0, 0, 0]) ** 4
    assert norms.tolist() == [[pytest.approx(exact, rel=1e-5)] * 2]
