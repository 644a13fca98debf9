"""The optimizer gives the numbers of torch's AdamW with one group a scale."""

from __future__ import annotations

import pytest
import torch

from raysearch.errors import StorageError
from raysearch.training.optimizer import Optimizer, ScaleAdam
from tests.support.training_recipes import make_recipe


def gradients(scales, step):
    """Some, and of every third step none for the first scale."""
    generator = torch.Generator().manual_seed(step)
    for place, scale in enumerate(scales):
        scale.grad = None if place == 0 and step % 3 == 2 else torch.randn(scale.shape, generator=generator)


def test_scales_move_as_by_adamw_with_a_group_each():
    sizes = [(1,), (7, 1), (1, 5, 1)]
    mine = [torch.rand(size, generator=torch.Generator().manual_seed(1)).requires_grad_() for size in sizes]
    torchs = [scale.detach().clone().requires_grad_() for scale in mine]
    rates = [0.1, 0.02, 3e-4]
    adam = ScaleAdam(mine, rates)
    groups = [{"params": [scale], "lr": rate} for scale, rate in zip(torchs, rates, strict=True)]
    reference = torch.optim.AdamW(groups, weight_decay=0.0)
    for step in range(9):
        adam.factor = 1 - step / 9
        for group, rate in zip(reference.param_groups, rates, strict=True):
            group["lr"] = rate * adam.factor
        gradients(mine, step)
        gradients(torchs, step)
        adam.step()
        reference.step()
        for scale, expected in zip(mine, torchs, strict=True):
            assert torch.equal(scale, expected)


def stepped(optimizer, steps):
    for step in steps:
        for place, parameter in enumerate(optimizer.parameters):
            generator = torch.Generator().manual_seed(100 * step + place)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.set_factor(0.5)
        optimizer.step()
    return optimizer


def test_its_state_is_put_back_bit_for_bit():
    recipe = make_recipe()
    controllers = [recipe.build() for _ in range(2)]
    first, second = (Optimizer(controller, recipe.settings) for controller in controllers)
    stepped(first, range(2))
    tensors = first.tensors()
    assert {name.rpartition("|")[2] for name in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    assert len(tensors) == 3 * len(first.parameters)
    controllers[1].model.load_state_dict(controllers[0].model.state_dict())
    second.load(tensors)
    stepped(first, range(2, 4))
    stepped(second, range(2, 4))
    for one, other in zip(first.parameters, second.parameters, strict=True):
        assert torch.equal(one, other)


def test_a_state_of_another_setup_is_refused_by_name():
    recipe = make_recipe()
    optimizer = Optimizer(recipe.build(), recipe.settings)
    with pytest.raises(StorageError, match=r"has 'tail.weight\|exp_avg'.*another setup"):
        optimizer.load({"tail.weight|exp_avg": torch.zeros(2)})
    with pytest.raises(StorageError, match=r"has 'head.bias\|exp_avg' of shape \(2,\)"):
        optimizer.load({"head.bias|exp_avg": torch.zeros(2)})
