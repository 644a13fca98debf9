"""Second moments against the outputs of the layer itself, for every kind of layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysearch.evaluation import Divergence, Replica, default_forward
from raysearch.rounding.second_moments import Moments, merge_moments, observe_moments
from tests.support.moments import quadratic, values_of
from tests.support.reading_layers import LAYERS


def moments_of(model, batches, weights=None, forward=default_forward):
    names = weights or [name for name, value in model.named_parameters() if value.ndim > 1]
    replica = Replica(model.double(), forward, {"calibration": list(batches)}, Divergence("mse"))
    return Moments.from_value(observe_moments(replica, names, 0, len(batches)))


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("name", LAYERS)
def test_the_quadratic_form_is_the_squared_change_of_the_output(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().double()
    batches = [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
    found = moments_of(layer, batches)
    weight = layer.weight.detach().clone()
    delta = torch.randn_like(weight)
    if name == "two calls":
        # Each call is judged with its own input as it is in the float model.
        inputs = [y for x in batches for y in (x, F.linear(x, weight).relu())]
        expected = sum(F.linear(x, delta).square().sum() for x in inputs)
    elif name == "chunks":
        expected = sum(
            F.linear(x * (i + 1), part).square().sum()
            for x in batches
            for i, part in enumerate(delta.chunk(3))
        )
    else:
        with torch.no_grad():
            layer.weight.copy_(delta)
            expected = sum(layer(x).square().sum() for x in batches)
    assert float(quadratic(found, "weight", delta)) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert found.num_samples == 2 * shape[0]


def test_pieces_of_a_large_input_give_the_same_sum(monkeypatch):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(7, 3, 6, 6, dtype=torch.float64)
    ((_, expected),) = values_of(moments_of(layer, [x], ["weight"]), "weight")
    monkeypatch.setattr("raysearch.rounding.layers.PATCH_BYTES", 2 * 8 * 3 * 9 * 36)
    ((_, pieces),) = values_of(moments_of(layer, [x], ["weight"]), "weight")
    assert torch.allclose(pieces, expected, rtol=1e-12, atol=1e-12)


class Attention(nn.Module):
    def __init__(self, width=8, other=None):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True, kdim=other, vdim=other)

    def forward(self, x, y=None):
        return self.attention(x, x if y is None else y, x if y is None else y, need_weights=False)[0]


def test_self_attention_reads_one_input_and_the_output_projection_another():
    torch.manual_seed(0)
    net = Attention()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    found = moments_of(net, [x], ["attention.in_proj_weight", "attention.out_proj.weight"])
    ((reader, matrix),) = values_of(found, "attention.in_proj_weight")
    assert reader.rows == (0, 24)
    rows = x.reshape(-1, 8)
    assert torch.allclose(matrix[0], rows.T @ rows, rtol=1e-12)
    ((_, after),) = values_of(found, "attention.out_proj.weight")
    assert after.shape == (1, 8, 8)
    assert after.trace() > 0 if after.ndim == 2 else after[0].trace() > 0


def test_attention_over_other_keys_splits_the_projection_by_rows():
    torch.manual_seed(0)
    net = Attention()
    x, y = torch.randn(3, 5, 8, dtype=torch.float64), torch.randn(3, 4, 8, dtype=torch.float64)
    found = moments_of(net, [(x, y)], ["attention.in_proj_weight"], lambda model, batch: model(*batch))
    parts = {reader.rows: matrix[0] for reader, matrix in values_of(found, "attention.in_proj_weight")}
    assert torch.allclose(parts[0, 8], x.reshape(-1, 8).T @ x.reshape(-1, 8), rtol=1e-12)
    assert torch.allclose(parts[8, 24], y.reshape(-1, 8).T @ y.reshape(-1, 8), rtol=1e-12)


def test_an_encoder_in_its_fast_path_is_seen():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    names = [f"{part}.weight" for part in ("self_attn.out_proj", "linear1", "linear2")] + [
        "self_attn.in_proj_weight"
    ]
    found = moments_of(layer, [torch.randn(2, 5, 8, dtype=torch.float64)], names)
    assert all(len(values_of(found, name)) == 1 for name in names)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.table(ids).tanh())


def test_an_embedding_counts_its_rows_and_a_tied_head_adds_its_own():
    torch.manual_seed(0)
    net = Tied()
    ids = torch.tensor([[0, 3, 3], [6, 3, 1]])
    found = moments_of(net, [ids, ids[:1]], ["table.weight"])
    by_kind = {reader.kind: matrix for reader, matrix in values_of(found, "table.weight")}
    assert by_kind["embedding"].tolist() == [2, 1, 0, 5, 0, 0, 1]
    rows = net.table(torch.cat([ids, ids[:1]])).tanh().reshape(-1, 4).detach()
    assert torch.allclose(by_kind["linear"][0], rows.T @ rows, rtol=1e-12)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.other = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return self.q(x) + self.k(x) * self.other(x + 0)


def test_weights_that_read_one_tensor_share_their_moment():
    torch.manual_seed(0)
    found = moments_of(Branches(), [torch.randn(3, 4, dtype=torch.float64)] * 2)
    shared = [tuple(reader.weight for reader in readers) for readers in found.sums]
    assert shared == [("q.weight", "k.weight"), ("other.weight",)]
    assert [moment.num_vectors for moment in found.sums.values()] == [6, 6]


def test_a_tensor_changed_in_place_between_two_readers_is_not_shared():
    class InPlace(Branches):
        def forward(self, x):
            x = x + 0
            y = self.q(x)
            return y + self.k(x.mul_(2))

    torch.manual_seed(0)
    found = moments_of(InPlace(), [torch.randn(3, 4, dtype=torch.float64)])
    (_, q), (_, k) = values_of(found, "q.weight") + values_of(found, "k.weight")
    assert torch.allclose(4 * q, k)


def test_shards_merge_in_order_to_the_same_bits():
    torch.manual_seed(0)
    net, batches = Branches(), [torch.randn(3, 4) for _ in range(5)]
    replica = Replica(net, default_forward, {"calibration": batches}, Divergence("mse"))
    names = ["q.weight", "k.weight"]
    whole = Moments.from_value(observe_moments(replica, names, 0, 5))
    parts = [Moments.from_value(observe_moments(replica, names, i, i + 1)) for i in range(5)]
    merged = merge_moments(parts)
    assert merged.num_samples == whole.num_samples == 15
    for readers, moment in whole.sums.items():
        assert np.array_equal(merged.sums[readers].values, moment.values)


def test_nothing_is_left_behind():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    state, rng = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    replica = Replica(net, default_forward, {"calibration": [torch.randn(3, 4)]}, Divergence("mse"))
    net.train()
    rng = torch.get_rng_state()
    observe_moments(replica, ["0.weight", "2.weight"], 0, 1)
    assert net.training
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
