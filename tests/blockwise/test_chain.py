"""Which models are chains of blocks, and running one part by part."""

import pytest
import torch
from torch import Tensor, nn

from raysearch.blockwise import OUTSIDE, Chain, find_chain
from raysearch.blockwise.running import enter, leave, run_block
from raysearch.errors import TaskError
from raysearch.evaluation import Divergence
from raysearch.pipeline.blockwise import checked_chain
from raysearch.task import Task

SAMPLES = torch.arange(12.0).reshape(4, 3)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, shift: Tensor, hidden: Tensor) -> tuple[Tensor, None]:
        return (hidden + torch.tanh(self.mix(hidden)) * shift, None)


class Net(nn.Module):
    """A chain, or what comes near it."""

    def __init__(self, kind: str = "chain", depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.embed = nn.Linear(3, 3)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.head = nn.Linear(3, 2)
        if kind == "shared":
            self.blocks[1].mix.weight = self.blocks[0].mix.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for index, block in enumerate(self.blocks):
            shift = torch.full((3,), 1.0 + index)
            if self.kind == "peeks":
                shift = shift + x.mean()
            (x, _) = block(shift, hidden=x)
            if self.kind == "between":
                x = x * 2
        if self.kind == "twice":
            (x, _) = self.blocks[0](torch.ones(3), hidden=x)
        return self.head(x)


def chain_of(net):
    names = [f"blocks.{index}" for index in range(len(net.blocks))]
    return find_chain(net, names, lambda: net(SAMPLES))


def test_a_chain_is_known_by_its_calls():
    chain = chain_of(Net())
    assert chain == Chain(("blocks.0", "blocks.1", "blocks.2"), "hidden", 2)
    parts = [chain.part_of(name) for name in ("head.weight", "blocks.1.mix.bias", "blocks.10.x")]
    assert parts == [OUTSIDE, 1, OUTSIDE]


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Net("twice"), "not called once each"),
        (Net("between"), r"'blocks\.1' is not given what 'blocks\.0' gave"),
        (Net("shared"), r"'blocks\.1\.mix\.weight' are one parameter, in two parts of the model"),
        (Net(depth=1), "Net has no repeated blocks"),
    ],
)
def test_what_is_no_chain_is_refused_by_name(net, reason):
    with pytest.raises(TaskError, match=rf"{reason}\. Set cluster\.replica to 'whole'"):
        chain_of(net)


def test_part_by_part_the_outputs_are_the_same_bits():
    net = Net()
    chain = chain_of(net)
    forwards = [block.__dict__.get("forward") for block in net.blocks]
    entered = enter(net, chain, lambda: net(SAMPLES))
    hidden = entered.hidden
    for index, arguments in enumerate(entered.arguments):
        hidden = run_block(net, chain, index, hidden, arguments)
    assert torch.equal(leave(net, chain, lambda: net(SAMPLES), hidden), net(SAMPLES))
    assert [block.__dict__.get("forward") for block in net.blocks] == forwards


def test_a_model_that_looks_at_its_hidden_state_is_refused():
    task = Task(Net("peeks"), (SAMPLES,), SAMPLES)
    with pytest.raises(TaskError, match="gives other outputs when its blocks are run one by one"):
        checked_chain(task, Divergence("mse"), SAMPLES)
