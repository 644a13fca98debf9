import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raysearch.errors import CaptureError
from raysearch.placement import place_quantizers
from raysearch.placement.capture import capture
from tests.support import model_zoo


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.fc(x)
        return -x


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("a sensor is missing")


def state_of(model: nn.Module) -> Any:
    """Everything that a stage must leave as it was."""
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()
    ]
    flags = [m.training for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    classes = [type(m) for m in model.modules()]
    return hooks, flags, grads, classes, values, torch.get_rng_state()


def same_state(a: Any, b: Any) -> bool:
    tensors = a[4].keys() == b[4].keys() and all(torch.equal(a[4][k], b[4][k]) for k in a[4])
    return bool(a[:4] == b[:4] and tensors and torch.equal(a[5], b[5]))


@pytest.mark.slow
def test_a_branch_on_data_is_named_with_its_line_and_a_remedy() -> None:
    with pytest.raises(CaptureError) as info:
        place_quantizers(DataDependent(), (torch.randn(2, 3),))
    message = str(info.value)
    assert "depends on the values of a tensor" in message
    assert "test_capture.py" in message
    assert "in forward" in message
    assert "torch.where" in message


@pytest.mark.parametrize(
    "example", [torch.randn(2, 3), (), (torch.randn(2, 3), torch.randn(2, 3)), [torch.randn(2, 3)]]
)
def test_example_inputs_that_do_not_fit_are_named(example: Any) -> None:
    with pytest.raises(CaptureError, match=r"example_inputs.*tuple of the positional arguments"):
        place_quantizers(nn.Linear(3, 3), example)


def test_the_models_own_error_is_passed_on() -> None:
    with pytest.raises(CaptureError, match="a sensor is missing"):
        place_quantizers(Untraceable(), (torch.randn(2, 3),))


@pytest.mark.parametrize("model", [DataDependent(), Untraceable()])
def test_after_an_exception_the_model_is_as_before(model: nn.Module) -> None:
    model.train()
    before = state_of(model)
    level = logging.getLogger("torch.export").level
    with pytest.raises(CaptureError):
        place_quantizers(model, (torch.randn(2, 3),))
    after = state_of(model)
    assert same_state((*before[:5], after[5]), after)
    assert logging.getLogger("torch.export").level == level


@pytest.mark.parametrize("name", ["digits", "encoder", "twice", "sequential_residual"])
@pytest.mark.parametrize("training", [True, False])
def test_placement_leaves_the_model_as_it_was(name: str, training: bool) -> None:
    model, example = model_zoo.build(name), model_zoo.inputs(name)
    model.train(training)
    next(iter(model.parameters())).requires_grad_(False)
    before = state_of(model)
    place_quantizers(model, example)
    assert same_state(before, state_of(model))


def test_a_forward_that_fails_only_when_it_really_runs_leaves_no_hook() -> None:
    class Fails(model_zoo.Residual):
        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_compiling():
                raise ValueError("only eager")
            return super().forward(x)

    model = Fails()
    with pytest.raises(ValueError, match="only eager"):
        place_quantizers(model, (torch.randn(2, 4),))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert len(torch.overrides._get_current_function_mode_stack()) == 0


def test_names_are_the_first_of_a_module_that_has_two() -> None:
    model = model_zoo.build("twice")
    graph = capture(model, model_zoo.inputs("twice"))
    assert set(graph.parameters.values()) == {"step.fc.weight", "step.fc.bias", "head.weight", "head.bias"}
    linears = [op for op in graph.operations.values() if op.op == "aten.linear"]
    assert [op.module for op in linears] == ["step.fc", "step.fc", "head"]
    assert len({op.call for op in linears}) == 3


def test_constants_are_what_no_input_reaches() -> None:
    graph = capture(model_zoo.build("encoder"), model_zoo.inputs("encoder"))
    ops = graph.operations.values()
    assert {op.name for op in ops if op.op == "input"} - graph.constants == {"x"}
    assert not any(op.op == "aten.linear" and op.name in graph.constants for op in ops)
