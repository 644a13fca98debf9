"""Blocks that are run a second time in the backward pass, with their quantizers."""

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

from raysearch.errors import ConfigError
from raysearch.hooks.call_taps import CallTap, tap_calls
from raysearch.hooks.checkpointed_blocks import checkpoint_blocks, repeated_blocks


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(3, 3), nn.Dropout(0.5)
        self.runs = 0

    def forward(self, x, *, scale=1.0):
        self.runs += 1
        x = x + self.drop(self.fc(x)) * scale
        return x + checkpoint.checkpoint(torch.sigmoid, x, use_reentrant=False)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x, scale=0.5)
        return x + 1


def step(checkpointed, quantized=True):
    """Gradient of a step, and how often each block ran, in training and after it without gradients."""
    torch.manual_seed(0)
    model = Net()
    if quantized:
        tap_calls(model, CallTap({("blocks.1", "add", 1, 0): Double(), ("blocks.0", "add", 0, 1): Double()}))
    if checkpointed:
        assert checkpoint_blocks(model) == ("blocks.0", "blocks.1")
    torch_own = checkpoint._checkpoint_without_reentrant_generator
    model(torch.randn(4, 3)).square().sum().backward()
    assert checkpoint._checkpoint_without_reentrant_generator is torch_own
    runs = [block.runs for block in model.blocks]
    with torch.no_grad():
        model(torch.randn(4, 3))
    assert [block.runs for block in model.blocks] == [count + 1 for count in runs]
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), runs


@pytest.mark.parametrize("quantized", [False, True])
def test_gradients_are_the_same_bit_for_bit_and_blocks_run_twice(quantized):
    plain, once = step(False, quantized)
    gradient, twice = step(True, quantized)
    assert torch.equal(gradient, plain)
    assert (once, twice) == ([1, 1], [2, 2])


def test_a_quantizer_of_a_call_is_in_the_second_run_too():
    assert not torch.equal(step(True)[0], step(True, quantized=False)[0])


def test_blocks_keep_their_input_alone():
    def kept(checkpointed):
        sizes = []
        model = Net()
        if checkpointed:
            checkpoint_blocks(model)

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(4, 3))
        return sum(sizes)

    assert kept(True) < kept(False) / 2


def test_blocks_are_the_outermost_ones_without_batch_norm():
    inner = nn.Sequential(Net(), Net())
    normed = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(3)))
    model = nn.ModuleDict(
        {"a": nn.ModuleList([inner]), "b": normed, "c": nn.Sequential(nn.ReLU(), nn.ReLU())}
    )
    assert list(repeated_blocks(model)) == ["a.0.0", "a.0.1"]


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="is true, but Linear has no repeated blocks"):
        checkpoint_blocks(nn.Linear(2, 2))
