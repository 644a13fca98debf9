"""The loops of examples/own_loop: what was cut goes on to the same integer model."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from raysearch.controller.scheduler import StagedScheduler

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULES = ("start", "digits", "train", "plain", "hugging_face", "lightning_module")

pytestmark = pytest.mark.slow


class Killed(Exception):
    """What ends a training between two epochs."""


@pytest.fixture
def small(monkeypatch):
    """Few digits, and a net that has just learned them; the examples can be imported."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES / "own_loop"), str(EXAMPLES / "digits"), *sys.path])
    torch.manual_seed(0)
    start, digits = import_module("start"), import_module("digits")
    train, validation = start.load_data()
    net = digits.DigitsNet()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    images, labels = train[:128]
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    state = net.state_dict()

    def float_net():
        model = digits.DigitsNet()
        model.load_state_dict(state)
        return model.eval()

    monkeypatch.setattr(start, "float_net", float_net)
    monkeypatch.setattr(
        start, "load_data", lambda: (TensorDataset(*train[:128]), TensorDataset(*validation[:64]))
    )
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


# Lightning warns of what its own code calls, and of how many processes load data.
@pytest.mark.filterwarnings("ignore::FutureWarning:pytorch_lightning")
@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")
@pytest.mark.parametrize("name", ["plain", "hugging_face", "lightning_module"])
def test_a_loop_that_was_cut_goes_on_to_the_same_model(small, tmp_path, monkeypatch, name):
    if name == "lightning_module":
        pytest.importorskip("pytorch_lightning", reason="the package pytorch-lightning is not installed")
    loop = import_module(name)
    if name == "plain":
        # As torchrun has it; two ranks are shown equal in tests/controller.
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    began, kills = [], [1]
    epoch_step = StagedScheduler.epoch_step

    def step_or_die(scheduler, epoch=None):
        began.append(epoch)
        if epoch in kills:
            kills.remove(epoch)
            raise Killed
        epoch_step(scheduler, epoch)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(StagedScheduler, "epoch_step", step_or_die)
            with pytest.raises(Killed):
                loop.train(tmp_path / "cut", 2)
            model, reached = loop.train(tmp_path / "cut", 2)
            assert began == [0, 1, 1]
            expected, _ = loop.train(tmp_path / "whole", 2)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    states = [sorted(part.state_dict().items()) for part in (model, expected)]
    for (key, value), (_, other) in zip(*states, strict=True):
        assert torch.equal(value, other), key
    assert 0.1 < reached <= 1
