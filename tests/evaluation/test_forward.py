from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raysearch.errors import DataError, TaskError
from raysearch.evaluation import default_forward, output_tensor
from raysearch.evaluation.forward import check_finite_forward, frozen_eval
from tests.support import model_zoo


def test_the_default_forward_knows_tensors_tuples_and_dicts() -> None:
    class Named(nn.Module):
        def forward(self, image: Tensor, scale: float = 1.0) -> Tensor:
            return image * scale

    x, model = torch.ones(2, 3), Named()
    assert torch.equal(default_forward(model, x), x)
    assert torch.equal(default_forward(model, (x, torch.zeros(2))), x)
    assert torch.equal(default_forward(model, [x]), x)
    assert torch.equal(default_forward(model, {"image": x, "scale": 2.0, "labels": x}), 2 * x)


def test_the_judged_tensor_is_the_logits_or_the_first() -> None:
    x, y = torch.ones(2, 3), torch.zeros(2, 3)
    for found in (x, (x, y), [x, y], {"hidden": y, "logits": x}, {"first": x, "second": y}):
        assert output_tensor(found) is x
    assert output_tensor(SimpleNamespace(logits=x)) is x


@pytest.mark.parametrize(
    "found", [None, "text", (), {}, torch.ones(2, dtype=torch.long), torch.tensor(1.0), ["a"]]
)
def test_anything_else_is_refused_with_a_remedy(found: Any) -> None:
    with pytest.raises(TaskError, match=r"Task\(forward=...\)"):
        output_tensor(found)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(3, 3) for _ in range(3))
        self.register_buffer("mask", torch.tensor([0.0, -float("inf"), 0.0]))
        self.register_buffer("steps", torch.tensor(0))
        self.outside = 1.0

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.first(x) + self.mask).softmax(-1)
        return self.third(self.second(weights)) * self.outside


def test_a_mask_of_infinities_is_no_defect() -> None:
    model = Layers()
    assert model.mask.isinf().any()
    check_finite_forward(model, default_forward, torch.randn(2, 3))
    assert not any(m._forward_hooks for m in model.modules())


def test_the_first_layer_that_gives_no_finite_value_is_named_and_no_hook_stays() -> None:
    model = Layers()
    with torch.no_grad():
        model.second.weight.fill_(3e38)
        model.second.bias.fill_(3e38)
    before = [m.training for m in model.modules()]
    with pytest.raises(DataError, match="first in the layer 'second'"):
        check_finite_forward(model, default_forward, torch.randn(2, 3))
    assert not any(m._forward_hooks for m in model.modules())
    assert [m.training for m in model.modules()] == before


def test_a_value_that_arises_in_no_layer_is_said_to() -> None:
    model = Layers()
    model.outside = float("inf")
    with pytest.raises(DataError, match="outside any layer"):
        check_finite_forward(model, default_forward, torch.randn(2, 3))


@pytest.mark.parametrize("name", ["second.weight", "mask"])
def test_damaged_weights_are_named(name: str) -> None:
    model = Layers()
    model.state_dict()[name].view(-1)[0] = float("nan")
    with pytest.raises(DataError, match=f"'{name}' holds NaN"):
        check_finite_forward(model, default_forward, torch.randn(2, 3))


def test_a_forward_that_raises_leaves_no_hook() -> None:
    model = Layers()
    with pytest.raises(RuntimeError):
        check_finite_forward(model, default_forward, torch.randn(2, 4))
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_eval_puts_everything_back(fails: bool) -> None:
    model = model_zoo.build("digits")
    model.train()
    model.get_submodule("block").eval()
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    flags, grads = [m.training for m in model.modules()], [p.requires_grad for p in parameters]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    torch.manual_seed(5)
    rng = torch.get_rng_state()
    try:
        with frozen_eval(model):
            assert not any(m.training for m in model.modules())
            torch.randn(3)
            model(*model_zoo.inputs("digits"))
            model.requires_grad_(False)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in parameters] == grads
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(buffers[name], value) for name, value in model.named_buffers())
