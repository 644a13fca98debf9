"""Activation checkpoints in a model whose additions are quantized."""

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

from raysearch.hooks.call_taps import CallTap, tap_calls


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.use_reentrant = use_reentrant

    def block(self, x, *, scale=1.0):
        return torch.relu(x + self.fc(x) * scale)

    def forward(self, x):
        return checkpoint.checkpoint(self.block, x, use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_are_those_without_checkpoints(use_reentrant):
    torch.manual_seed(0)
    model = Checkpointed(use_reentrant)
    x = torch.randn(4, 3, requires_grad=True)
    torch_own = checkpoint.CheckpointFunction
    handles = tap_calls(model, CallTap({("", "add", 0, 0): Double()}))
    model(x).sum().backward()
    gradient = model.fc.weight.grad.clone()
    for handle in handles:
        handle.remove()
    assert checkpoint.CheckpointFunction is torch_own
    model.zero_grad()
    torch.relu(2 * x + model.fc(x)).sum().backward()
    assert torch.equal(gradient, model.fc.weight.grad)


def test_checkpoints_are_torchs_own_after_a_forward_that_fails():
    model = Checkpointed(False)
    torch_own = checkpoint._checkpoint_without_reentrant_generator
    tap_calls(model, CallTap({}))
    with pytest.raises(RuntimeError):
        model(torch.ones(1, 2))
    assert checkpoint._checkpoint_without_reentrant_generator is torch_own
