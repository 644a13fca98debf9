"""What a forward leaves on a model is taken off again."""

from collections import deque

import torch
from torch import nn

from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.model.model_state import state_as_found


class Restless(nn.Module):
    """Leaves something of every kind behind."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.last = None
        self.seen: list[torch.Tensor] = []
        self.recent = deque([0], maxlen=2)
        self.by_name = {"a": 1}
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("none", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.fc(x)
        self.seen.append(self.last)
        self.recent.append(len(x))
        self.by_name.clear()
        self.mean = 0.5 * self.mean + self.last.detach().mean(0)
        self.none = torch.ones(1)
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.arange(2.0))
            self.extra = nn.Linear(1, 1)
            self.bias = nn.Parameter(torch.zeros(2))
        return self.last + self.table + self.bias


def test_attributes_buffers_parameters_and_containers_are_as_before():
    model = Restless()
    names, mean, recent = list(model.state_dict()), model.mean, model.recent
    with state_as_found(model):
        model(torch.ones(3, 2))
    assert list(model.state_dict()) == names
    assert model.mean is mean
    assert (model.last, model.seen, model.by_name, model.none) == (None, [], {"a": 1}, None)
    assert model.recent is recent
    assert list(recent) == [0]
    assert [name for name, _ in model.named_children()] == ["fc"]


def test_hooks_and_modules_that_were_put_in_place_before_stay():
    model = Restless()
    calls = []
    with frozen_eval(model):
        handle = model.fc.register_forward_hook(lambda *_: calls.append(1))
        model(torch.ones(3, 2))
    model(torch.ones(3, 2))
    handle.remove()
    assert len(calls) == 2
    assert model.training


def test_a_forward_that_fails_leaves_nothing_either():
    model = Restless()
    try:
        with frozen_eval(model):
            model.last = torch.ones(1)
            raise RuntimeError("stop")
    except RuntimeError:
        pass
    assert model.last is None
