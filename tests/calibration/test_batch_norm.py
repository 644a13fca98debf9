"""BatchNorm adaptation against plain training mode, and the model left as found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raysearch.calibration import adapt_batch_norm, apply_batch_norm
from raysearch.errors import DataError, StorageError
from raysearch.evaluation.model.model_hash import hash_model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, momentum=0.3)
        self.drop, self.head, self.last = nn.Dropout(0.5), nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        assert not self.drop.training
        return self.last(self.head(self.drop(self.norm(self.a(x)).relu().mean((2, 3)))))


def batches(sizes=(8, 8, 8)):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(n, 2, 6, 6, generator=generator) * 2 + 1 for n in sizes]


def make():
    torch.manual_seed(0)
    return Net().eval()


def expected(sizes):
    model = make()
    model.norm.train()
    model.last.train()
    with torch.no_grad():
        for batch in sizes:
            model(batch)
    return {
        name: value for name, value in model.state_dict().items() if "running" in name or "tracked" in name
    }


def test_statistics_are_those_of_train_mode_of_the_norms_alone():
    model = make()
    before = hash_model(model), [m.training for m in model.modules()], torch.get_rng_state()
    found = adapt_batch_norm(model, batches(), num_samples=24)
    wanted = expected(batches())
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert hash_model(model) == before[0]
    assert [m.training for m in model.modules()] == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    apply_batch_norm(model, found)
    assert torch.equal(model.norm.running_var, wanted["norm.running_var"])


def test_exactly_the_samples_asked_for_are_read():
    found = adapt_batch_norm(make(), batches(), num_samples=13)
    first = batches()
    wanted = expected([first[0], first[1][:5]])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    # A rest of one sample has no variance.
    found = adapt_batch_norm(make(), batches(), num_samples=9)
    assert all(torch.equal(found[name], value) for name, value in expected(first[:1]).items())


def test_cumulative_is_the_plain_mean_over_batches():
    model = make()
    model.norm.running_mean += 100
    found = adapt_batch_norm(model, batches(), cumulative=True)
    with torch.no_grad():
        means = torch.stack([model.a(batch).mean((0, 2, 3)) for batch in batches()])
    torch.testing.assert_close(found["norm.running_mean"], means.mean(0))
    assert model.norm.momentum == 0.3
    assert float(model.norm.running_mean.mean()) == 100


def test_the_model_is_left_as_found_by_a_failure():
    model = make().train()
    before = hash_model(model)

    def forward(model, batch):
        with torch.no_grad():
            model.norm(model.a(batch))
        raise RuntimeError("fault")

    with pytest.raises(RuntimeError, match="fault"):
        adapt_batch_norm(model, batches(), forward, cumulative=True)
    assert hash_model(model) == before
    assert all(m.training for m in model.modules())
    assert model.norm.momentum == 0.3


def test_what_cannot_be_is_refused():
    with pytest.raises(DataError, match="at least two samples"):
        adapt_batch_norm(make(), batches((1, 1)))
    bad = batches()
    bad[1][0] = float("nan")
    with pytest.raises(DataError, match=r"'norm\.running_mean' NaN"):
        adapt_batch_norm(make(), bad)
    with pytest.raises(StorageError, match=r"'norm\.running_mean' of shape \(3,\)"):
        apply_batch_norm(nn.Linear(2, 2), adapt_batch_norm(make(), batches()))
    assert adapt_batch_norm(nn.Linear(2, 2), [torch.ones(4, 2)]) == {}
    assert float(adapt_batch_norm(make(), [], num_samples=0)["norm.running_mean"].sum()) == 0
