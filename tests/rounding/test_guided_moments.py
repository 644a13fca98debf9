"""Guided second moments: for every kind of layer, against gradients by hand, and in any order of work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.errors import DataError, TaskError
from raysearch.evaluation import Divergence, Replica, default_forward
from raysearch.evaluation.curvature.joint_factor import objective_factor
from raysearch.rounding import guided_moments
from raysearch.rounding.guided_moments import LEAST_SHARE, observe_guided_moments
from raysearch.rounding.second_moments import Moments, merge_moments
from raysearch.seeding import derive_seed
from tests.support.moments import quadratic, values_of
from tests.support.reading_layers import LAYERS

SEED = 5
ROWS_AXIS = {"product from the left": 1, "batched from the left": 2, "einsum": 1, "einsum of a list": 1}
"""Where the output has the weight's rows; else behind the samples of a convolution, and last of others."""

NOT_APART = {"two calls", "chunks", "batched"}
"""Where one factor does not say what each output counts; or samples cannot be taken one by one."""


def replica_of(model, batches, divergence=None):
    return Replica(
        model.double(), default_forward, {"calibration": list(batches)}, divergence or Divergence("mse")
    )


def guided_of(replica, names, first=0, last=None):
    last = len(replica.shards["calibration"]) if last is None else last
    return Moments.from_value(observe_guided_moments(replica, names, SEED, first, last))


class Scaled(nn.Module):
    """A layer whose outputs count as much as a factor says, alike for all rows of its weight."""

    def __init__(self, layer, factor):
        super().__init__()
        self.layer = layer
        self.register_buffer("factor", factor)

    def forward(self, x):
        return self.layer(x) * self.factor


@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("name", sorted(LAYERS.keys() - NOT_APART))
def test_the_quadratic_form_is_the_squared_change_of_the_output_where_it_counts(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    output = layer(x)
    is_convolution = layer.weight.ndim > 2 and not name.startswith(("batched", "bilinear"))
    axis = ROWS_AXIS.get(name, 1 if is_convolution else -1)
    sizes = list(output.shape)
    sizes[axis] = 1
    factor = torch.rand(sizes, dtype=torch.float64) + 0.01
    moments = guided_of(replica_of(Scaled(layer, factor), [x]), ["layer.weight"])
    delta = torch.randn_like(layer.weight.detach())
    with torch.no_grad():
        layer.weight.copy_(delta)
        change = layer(x)
    # The Hessian of the mean squared error is I over the number of outputs, and so is every draw's square.
    counting = factor.square() / output[0].numel()
    floored = counting.clamp_min(LEAST_SHARE * counting.mean())
    assert bool((floored > counting).any()) or factor.numel() < 8
    expected = float((floored * change.square()).sum())
    assert float(quadratic(moments, "layer.weight", delta)) == pytest.approx(expected, rel=1e-12)
    assert all(reader.is_guided for readers in moments.sums for reader in readers)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.conv, self.head = nn.Embedding(7, 2), nn.Conv1d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, ids):
        # In place behind the layer: the gradient is to be that of the layer's own output.
        return self.head(self.conv(self.table(ids).mT).relu_().amax(2))


def make_classifier(num_shards=2, samples=6):
    torch.manual_seed(1)
    batches = [torch.randint(0, 7, (samples, 5)) for _ in range(num_shards)]
    return replica_of(Classifier(), batches, Divergence("kl"))


NAMES = ["table.weight", "conv.weight", "head.weight"]


def test_it_is_what_gradients_by_hand_give():
    replica = make_classifier()
    moments = guided_of(replica, NAMES)
    net = replica.model
    expected = dict.fromkeys(NAMES, 0)
    for index, ids in enumerate(replica.shards["calibration"]):
        looked_up = net.table(ids)
        convolved = net.conv(looked_up.mT)
        pooled = convolved.relu().amax(2)
        output = net.head(pooled)
        factor = objective_factor(output.detach(), replica.divergence)
        generator = torch.Generator().manual_seed(derive_seed(SEED, "guided-moments", index, 0))
        signs = torch.stack([torch.randint(0, 2, (1, 3), generator=generator) for _ in ids]) * 2.0 - 1
        cotangent = factor.apply(signs.double())[:, 0]
        gradients = torch.autograd.grad(output, [looked_up, convolved, output], cotangent)
        counts = [gradients[0].square().mean(2), gradients[1].square().mean(1), gradients[2].square().mean(1)]
        counts = [count.clamp_min(LEAST_SHARE * count.mean()) for count in counts]
        expected["table.weight"] += torch.bincount(ids.flatten(), counts[0].flatten(), minlength=7)
        windows = looked_up.mT.unfold(2, 3, 1)
        expected["conv.weight"] += torch.einsum("np,ncpk,ndpl->ckdl", counts[1], windows, windows)
        expected["head.weight"] += torch.einsum("n,nc,nd->cd", counts[2], pooled, pooled)
    for name in NAMES:
        ((reader, values),) = values_of(moments, name)
        assert reader.is_guided
        assert torch.allclose(values.flatten(), expected[name].detach().flatten(), rtol=1e-11, atol=1e-15)


def test_shards_merge_to_the_same_bits_and_other_seeds_differ():
    replica = make_classifier(num_shards=3)
    together = guided_of(replica, NAMES)
    parts = [guided_of(replica, NAMES, index, index + 1) for index in (2, 0, 1)]
    merged = merge_moments([parts[1], parts[2], parts[0]])
    for readers, moment in together.sums.items():
        assert np.array_equal(merged.sums[readers].values, moment.values)
    other = Moments.from_value(observe_guided_moments(replica, NAMES, SEED + 1, 0, 3))
    assert not np.array_equal(values_of(other, "conv.weight")[0][1], values_of(together, "conv.weight")[0][1])


@pytest.mark.slow
def test_pieces_draw_what_the_shard_draws(monkeypatch):
    replica = make_classifier()
    monkeypatch.setattr(guided_moments, "LEAST_SHARE", 0.0)
    together = guided_of(replica, NAMES)
    monkeypatch.setattr(guided_moments, "SAMPLES_AT_ONCE", 4)
    failures = iter([True, False, False, False, False, False, False])
    plain = guided_moments.mean_squares

    def sometimes_out_of_memory(call, cotangent):
        if next(failures, False):
            raise torch.OutOfMemoryError
        return plain(call, cotangent)

    monkeypatch.setattr(guided_moments, "mean_squares", sometimes_out_of_memory)
    pieces = guided_of(replica, NAMES)
    assert replica.microbatches("gradients").num_samples == 2
    assert pieces.num_samples == together.num_samples == 12
    for readers, moment in together.sums.items():
        assert np.allclose(pieces.sums[readers].values, moment.values, rtol=1e-12, atol=1e-18)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head, self.unused = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        h = self.rnn(x)[0][:, -1]
        self.unused(h)
        return self.head(h)


def test_without_gradients_moments_are_plain_and_known_as_such():
    torch.manual_seed(0)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    names = ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "head.weight", "unused.weight"]
    moments = guided_of(replica_of(Recurrent(), [x]), names)
    guided = {reader.weight: reader.is_guided for readers in moments.sums for reader in readers}
    assert guided == {name: name == "head.weight" for name in names}
    ((_, values),) = values_of(moments, "rnn.weight_ih_l0")
    rows = x.reshape(-1, 3)
    assert torch.allclose(values[0], rows.T @ rows, rtol=1e-12)


def test_an_input_that_is_overwritten_is_refused_by_name():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

        def forward(self, x):
            x = x + 0
            y = self.a(x).detach()
            return self.b(y + x.mul_(2))

    model = InPlace()
    with pytest.raises(TaskError, match=r"'a\.weight' reads is overwritten.*rounding\.guided"):
        guided_of(replica_of(model, [torch.randn(3, 4, dtype=torch.float64)]), ["a.weight", "b.weight"])


def test_an_output_that_is_not_finite_is_refused_by_shard():
    batch = torch.full((2, 4), torch.inf, dtype=torch.float64)
    replica = replica_of(nn.Sequential(nn.Linear(4, 2)), [torch.ones_like(batch), batch])
    with pytest.raises(DataError, match="not finite on shard 1 of the calibration data"):
        guided_of(replica, ["0.weight"])


def test_nothing_is_left_behind():
    replica = make_classifier()
    replica.model.train()
    replica.model.head.weight.requires_grad_(False)
    rng = torch.get_rng_state()
    guided_of(replica, NAMES)
    assert replica.model.training
    assert not replica.model.head.weight.requires_grad
    assert replica.model.conv.weight.requires_grad
    assert all(parameter.grad is None for parameter in replica.model.parameters())
    assert torch.equal(rng, torch.get_rng_state())
