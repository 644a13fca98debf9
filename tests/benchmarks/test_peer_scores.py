"""Scores of other tools, on a model whose scores can be written down."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.problems.peer_scores import first_order, higgs, importance, least
from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import PlacementConfig
from raysearch.evaluation import DataSet, Divergence, Replica
from raysearch.placement import place_quantizers
from raysearch.quantizer import point_levels
from raysearch.records import CostModel, parse_budgets
from raysearch.records.scheme import Scheme


class Words(nn.Module):
    """Logits of the next of three words."""

    def __init__(self):
        super().__init__()
        self.mlp, self.head = nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False)

    def forward(self, ids):
        return SimpleNamespace(logits=self.head(self.mlp(F.one_hot(ids, 3).float())))


IDS = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = Words().eval()
    settings = PlacementConfig(weight_bit_widths=(2, 4), activation_bit_widths=())
    setup = place_quantizers(model, (IDS,), settings)
    replica = Replica(model, lambda model, ids: model(ids), {DataSet.CALIBRATION: [IDS]}, Divergence())
    return model, setup, calibrate(setup, LocalPool(replica), 1)


def rounded(weight, point, given, scheme):
    least_code, most = point_levels(point.at(scheme), scheme.num_bits)
    scale = torch.from_numpy(given.scale)[:, None]
    return (weight / scale).round().clamp(least_code, most) * scale


def test_importance_is_of_size_depth_and_kind():
    attention = importance("model.layers.3.self_attn.q_proj.weight", 99)
    assert attention == pytest.approx(math.log(100) * 1.15 * 1.2)
    assert importance("model.layers.0.mlp.up_proj.weight", 99) == pytest.approx(math.log(100) * 0.9)


def test_weight_errors_are_means_times_importance(case):
    _, setup, _ = case
    effects = {option: SimpleNamespace(perturbation=24.0) for option in setup.options()}
    scores = higgs(setup, SimpleNamespace(effects=effects))
    assert scores["mlp.weight", Scheme.of(2)] == pytest.approx(2 * math.log(13) * 0.9)


def test_first_order_scores_are_of_gradients_where_all_is_quantized(case):
    model, setup, ranges = case
    two = Scheme.of(2)
    scores = first_order(model, setup, ranges, [IDS], two)
    first, second = (
        rounded(layer.weight, setup.points[name], ranges[name, two], two).detach().requires_grad_(True)
        for name, layer in (("mlp.weight", model.mlp), ("head.weight", model.head))
    )
    logits = F.one_hot(IDS, 3).float() @ first.T @ second.T
    F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    expected = (first.grad * (model.mlp.weight - first)).abs().sum().detach()
    assert scores["mlp.weight"] == pytest.approx(float(expected), rel=1e-4)


def test_the_least_sum_within_the_bytes_is_taken(case):
    _, setup, _ = case
    scores = {
        ("mlp.weight", 2): 1.0,
        ("mlp.weight", 4): 0.5,
        ("head.weight", 2): 3.0,
        ("head.weight", 4): 0.4,
    }
    scores = {(group, Scheme.of(bits)): score for (group, bits), score in scores.items()}
    chosen = least(setup, parse_budgets(["avg_bits<=3"]), scores)
    assert dict(chosen.bits) == {"mlp.weight": 2, "head.weight": 4}
    assert CostModel(setup).costs(chosen)["avg_bits"] <= 3
