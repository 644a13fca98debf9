"""The functions whose operands a quantizer may reach: their names in eager torch and in a captured graph.

Both sides count calls by kind, so that the n-th call of a kind in one module is the same one on both. What
counts is decided by `counts`, from what both sides know: dtypes and shapes without the batch dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

IN_PLACE: frozenset[Callable[..., Any]] = frozenset({torch.Tensor.add_, torch.Tensor.__iadd__})

_Tensor = torch.Tensor
_Names = tuple[tuple[str, ...], ...]
_EAGER: tuple[tuple[str, tuple[int, ...], _Names, tuple[Callable[..., Any], ...]], ...] = (
    (
        "add",
        (0, 1),
        (("input",), ("other",)),
        (torch.add, _Tensor.add, _Tensor.__add__, _Tensor.__radd__, _Tensor.add_, _Tensor.__iadd__),
    ),
    (
        "matmul",
        (0, 1),
        (("input", "self"), ("other", "mat2", "tensor2")),
        (
            torch.matmul, _Tensor.matmul, _Tensor.__matmul__,
            torch.bmm, _Tensor.bmm, torch.mm, _Tensor.mm,
        ),
    ),
    ("matmul", (1, 2), (("batch1",), ("batch2",)), (torch.baddbmm, _Tensor.baddbmm)),
    ("matmul", (1, 2), (("mat1",), ("mat2",)), (torch.addmm, _Tensor.addmm)),
    ("bilinear", (0, 1), (("input1",), ("input2",)), (F.bilinear,)),
    (
        "attention",
        (0, 1, 2),
        (("query",), ("key",), ("value",)),
        (F.scaled_dot_product_attention,),
    ),
    ("linear", (0,), (("input",),), (F.linear,)),
    (
        "conv",
        (0,),
        (("input",),),
        (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    ),
    (
        "pool",
        (0,),
        (("input",),),
        (
            F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
            F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
            torch.mean, _Tensor.mean,
        ),
    ),
)  # fmt: skip

_ATEN_NAMES = {
    "add": "add add_",
    "matmul": "matmul bmm mm",
    "attention": "scaled_dot_product_attention",
    "linear": "linear",
    "bilinear": "bilinear",
    "conv": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    "pool": "mean avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
}


class Call:
    """What is known of a function: its kind, and where its operands stand.

    Attributes:
        kind: "add", "matmul", "attention", "linear", "bilinear", "conv", "pool" or "einsum".
        positions: index of each operand among the positional arguments.
        keywords: names under which each operand may come instead.
    """

    def __init__(self, kind: str, positions: tuple[int, ...], keywords: Sequence[Sequence[str]]) -> None:
        self.kind = kind
        self.positions = positions
        self.keywords = keywords

    def slots(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[int | str] | None:
        """Where this call has its operands: an index into `args` or a key of `kwargs`; None if one lacks."""
        slots: list[int | str] = []
        for position, names in zip(self.positions, self.keywords, strict=True):
            if position < len(args):
                slots.append(position)
            else:
                name = next((n for n in names if n in kwargs), None)
                if name is None:
                    return None
                slots.append(name)
        return slots


class EinsumCall(Call):
    """`torch.einsum`, whose operands follow its equation, one by one or as a list; those of two count."""

    def __init__(self) -> None:
        super().__init__("einsum", (1, 2), ())

    def slots(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[int | str] | None:
        """Where the operands are, once `plain_arguments` has spread them."""
        return [1, 2] if len(args) == 3 and isinstance(args[0], str) else None


EAGER_CALLS: dict[Callable[..., Any], Call] = {
    function: Call(kind, positions, keywords)
    for kind, positions, keywords, functions in _EAGER
    for function in functions
}
EAGER_CALLS[torch.einsum] = EinsumCall()


def plain_arguments(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The positional arguments of a call, with the operands of einsum one by one."""
    if function is torch.einsum and len(args) == 2 and isinstance(args[1], list | tuple):
        return (args[0], *args[1])
    return args


_POSITIONS = {kind: positions for kind, positions, _, _ in reversed(_EAGER)}
ATEN_CALLS: dict[str, tuple[str, tuple[int, ...]]] = {
    f"aten.{name}": (kind, _POSITIONS[kind]) for kind, names in _ATEN_NAMES.items() for name in names.split()
}
# Their first operand is what the product is added to.
ATEN_CALLS["aten.baddbmm"] = ATEN_CALLS["aten.addmm"] = ("matmul", (1, 2))


def counts(kind: str, shapes: Sequence[tuple[int, ...]], are_float: bool) -> bool:
    """Whether a call with such operands is counted.

    Additions count when the shapes agree in all but the batch dimension. That one is left out because the
    example's batch may be 1: then `x + position` has equal shapes at capture and unequal ones later, and
    every index after it would shift.

    Args:
        kind: of the call, see `Call`.
        shapes: of its operands.
        are_float: whether all operands are floating-point tensors.
    """
    if not are_float:
        return False
    if kind == "add":
        return same_features(*shapes)
    return all(shape for shape in shapes)


def same_features(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes have as many dimensions, at least one, and agree in all but the first."""
    return 0 < len(a) == len(b) and a[1:] == b[1:]


def _opened(function: Any) -> Callable[..., Any] | None:
    # A Python function of torch hands itself over to a function mode as a whole, and what it calls is not
    # seen. The same code with its own check answered "no" calls on, under the mode. It is torch's code, of
    # whatever version, not a second version of it.
    if not isinstance(function, FunctionType) or "has_torch_function" not in function.__code__.co_names:
        return None
    names = {**function.__globals__, "has_torch_function": _is_no_override}
    twin = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def _is_no_override(tensors: Any) -> bool:
    return False


_OPENED: dict[Callable[..., Any], Callable[..., Any]] = {
    function: twin
    for function in (F.multi_head_attention_forward,)
    if (twin := _opened(function)) is not None
}
"""Composite functions → the same code, whose inner calls a function mode sees."""


class CallMode(TorchFunctionMode):
    """A torch function mode whose `on_call` sees the calls within composite functions one by one."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Open a composite function; hand on what is none."""
        kwargs = kwargs or {}
        if func in _OPENED:
            with self:
                return _OPENED[func](*args, **kwargs)
        return self.on_call(func, args, kwargs)

    def on_call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call gives; here what the function does.

        Args:
            func: as torch's override protocol passes it.
            args: positional arguments of the call.
            kwargs: keyword arguments of the call.
        """
        return func(*args, **kwargs)
