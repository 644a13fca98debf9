"""Additions: the captured graph and the eager run must number the same ones alike, at any batch size."""

import copy
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from raysearch.hooks.call_taps import CallTap, tap_calls
from raysearch.placement import place_quantizers
from raysearch.placement.capture import capture
from raysearch.placement.graph import read_graph
from tests.support import model_zoo


class Record(nn.Module):
    """Adds a constant to what passes, and keeps it."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.offset = offset
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return x.mul(1) - (-self.offset)


class Many(nn.Module):
    """What counts, `c`, among what does not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.inner = model_zoo.Residual()
        self.register_buffer("mask", torch.zeros(4, 1))
        self.position = nn.Parameter(torch.ones(1, 4, 4))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        x = x + 1.0 + torch.tensor(2.0)
        x = x + self.position
        ids = ids + ids
        scores = x + self.mask
        y = scores + self.fc(x)
        total = y.sum() + x.sum()
        z = self.inner(y)
        z += x
        return (1 + z) * ids[:, None, None] + total


def run_tapped(model: nn.Module, args: tuple[Any, ...], taps: dict[Any, nn.Module]) -> Any:
    tap = CallTap(taps)
    handles = tap_calls(model, tap)
    try:
        return model(*args), tap
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("captured_batch", [1, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_scalars_masks_integers_and_sums_are_not_counted(captured_batch: int, batch: int) -> None:
    model = Many()
    args = torch.randn(captured_batch, 4, 4), torch.ones(captured_batch, dtype=torch.long)
    reads = read_graph(capture(model, args), {"fc", "inner.fc"})
    # In the root: the position table (0), the residual (1), the in-place one (2).
    assert Counter({k[0]: n for k, n in reads.counts.items() if k[1] == "add"}) == Counter(
        {"": 3, "inner": 1}
    )
    assert [(a.owner, s.site.occurrence) for a, s in zip(reads.additions, _firsts(reads), strict=True)] == [
        ("", 1),
        ("inner", 0),
        ("", 2),
    ]
    args = torch.randn(batch, 4, 4), torch.ones(batch, dtype=torch.long)
    with torch.no_grad():
        _, tap = run_tapped(model, args, {})
    assert tap.seen == reads.counts


def _firsts(reads: Any) -> list[Any]:
    return [r for r in reads.tensors if r.site.role == "add" and r.site.argument == 0]


@pytest.mark.parametrize("batch", [1, 5])
def test_a_tap_reaches_the_operand_that_its_number_says(batch: int) -> None:
    model, taps = (
        Many(),
        {("", "add", 1, 1): Record(), ("", "add", 2, 0): Record(), ("inner", "add", 0, 1): Record()},
    )
    outputs: dict[str, Tensor] = {}
    model.fc.register_forward_hook(lambda m, a, out: outputs.update(fc=out))
    model.inner.fc.register_forward_hook(lambda m, a, out: outputs.update(inner_fc=out))
    model.inner.register_forward_hook(lambda m, a, out: outputs.update(inner=out.clone()))
    args = torch.randn(batch, 4, 4), torch.ones(batch, dtype=torch.long)
    with torch.no_grad():
        expected = model(*args)
        got, _ = run_tapped(model, args, taps)
    assert torch.equal(got, expected)
    assert torch.equal(taps["", "add", 1, 1].seen[0], outputs["fc"])
    assert torch.equal(taps["", "add", 2, 0].seen[0], outputs["inner"])
    assert torch.equal(taps["inner", "add", 0, 1].seen[0], outputs["inner_fc"])


def test_a_module_that_runs_twice_counts_anew_each_time() -> None:
    model, record = model_zoo.build("twice"), Record()
    run_tapped(model, model_zoo.inputs("twice"), {("step", "add", 0, 0): record})
    assert len(record.seen) == 2


@pytest.mark.parametrize("grad", [True, False])
def test_an_in_place_sum_is_seen_by_whoever_holds_the_tensor(grad: bool) -> None:
    class Aliased(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            target = x * 1
            alias = target
            target.add_(y)
            alias += alias
            return target, alias

    record = Record(10.0)
    x, y = torch.ones(2, 3).requires_grad_(grad), torch.ones(2, 3)
    with torch.set_grad_enabled(grad):
        (target, alias), _ = run_tapped(
            Aliased(), (x, y), {("", "add", 0, 0): record, ("", "add", 1, 1): record}
        )
    assert target is alias
    # (1 + 10) + 1 = 12, then 12 + (12 + 10).
    assert target.tolist() == [[34.0] * 3] * 2
    if grad:
        target.sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [[2.0] * 3] * 2


def test_alpha_and_keyword_arguments_pass_through() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.add(x, y, alpha=3)

    got, _ = run_tapped(Scaled(), (torch.ones(1, 2), torch.ones(1, 2)), {("", "add", 0, 1): Record(1.0)})
    assert got.tolist() == [[7.0, 7.0]]


class Breaks(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error: type[BaseException] | None = error
        self.inner = model_zoo.Residual()

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.inner(x)
        if self.error is not None:
            raise self.error("stop")
        return y + x


def test_after_an_exception_no_mode_stays_active_and_the_next_run_is_right() -> None:
    model = Breaks(ValueError)
    record = Record()
    tap = CallTap({("", "add", 1, 1): record})
    handles = tap_calls(model, tap)
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="stop"):
        model(x)
    assert _get_current_function_mode_stack() == []
    model.error = None
    model(x)
    assert len(record.seen) == 1
    for handle in handles:
        handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_failing_hook_of_the_users_does_not_unbalance_the_tap() -> None:
    def fail(module: nn.Module, args: Any) -> None:
        raise ValueError("users hook")

    model = Breaks(ValueError)
    model.error = None
    handle = model.inner.register_forward_pre_hook(fail)
    tap_calls(model, CallTap({}))
    with pytest.raises(ValueError, match="users hook"):
        model(torch.randn(2, 4))
    assert _get_current_function_mode_stack() == []
    handle.remove()
    model(torch.randn(2, 4))


def test_an_interrupted_run_does_not_count_twice_later() -> None:
    model = Breaks(KeyboardInterrupt)
    record = Record()
    tap_calls(model, CallTap({("", "add", 1, 1): record}))
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(2, 4))
    model.error = None
    try:
        model(torch.randn(2, 4))
        model(torch.randn(2, 4))
        assert len(record.seen) == 2
    finally:
        # torch runs no hook on an interrupt, so one mode is left behind; it must be inert, not gone.
        while _get_current_function_mode_stack():
            torch.overrides._pop_mode()


def test_a_deep_copy_has_a_tap_of_its_own() -> None:
    model, record = model_zoo.build("in_place"), Record()
    model.add_module("record", record)
    tap_calls(model, CallTap({("", "add", 0, 1): record}))
    twin = copy.deepcopy(model)
    twin(*model_zoo.inputs("in_place"))
    assert not record.seen
    assert len(twin.get_submodule("record").seen) == 1  # type: ignore[arg-type]


def test_additions_that_the_eager_run_does_not_show_stay_float_with_a_warning() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                return self.a(x) + self.b(x * 2)

    with pytest.warns(UserWarning, match="Hidden.*stay float"):
        setup = place_quantizers(Hidden(), (torch.randn(2, 3),))
    assert list(setup.of_kind("activation")) == ["a.input", "b.input"]
    assert all(len(group.points) == 1 for group in setup.groups.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        place_quantizers(model_zoo.build("encoder"), model_zoo.inputs("encoder"))
