"""Copies of a model, whatever it holds."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raysearch.errors import TaskError


class _DetachedCopies(TorchFunctionMode):
    """While active, a tensor with a history is copied without it, where torch refuses to copy it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return func(args[0].detach(), *args[1:])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def private_copy(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy of a model, also of one that holds tensors with a history (features of its last forward).

    Args:
        model: it is left as it is.
        memo: as `copy.deepcopy` takes it: id → what stands for the object in the copy.

    Raises:
        TaskError: something in the model cannot be copied; names the module that holds it.
    """
    memo = {} if memo is None else memo
    try:
        with _DetachedCopies():
            twin: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:
        raise TaskError(
            f"{_holder(model)} cannot be copied: {type(error).__name__}: {error}. raysearch works on copies; "
            f"keep what cannot be copied (files, locks, connections, generators) out of the model."
        ) from error
    return twin


def reading_copy(model: nn.Module, own: Collection[str] = ()) -> nn.Module:
    """A private copy that reads its weights where the model's are, for whoever only runs it.

    Its parameters are objects of its own, so their flags and gradients are too; only the memory is shared.
    Weights of an embedding that are scaled down while it is read (`max_norm`) are copied.

    Args:
        model: it is left as it is.
        own: names of parameters that the copy may write into.
    """
    written = {id(parameter) for name, parameter in model.named_parameters() if name in own}
    for module in model.modules():
        if getattr(module, "max_norm", None) is not None:
            written.update(id(parameter) for parameter in module.parameters(recurse=False))
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter and id(parameter) not in written:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return private_copy(model, memo)


def _holder(model: nn.Module) -> str:
    """The innermost module that cannot be copied by itself, as text."""
    deepest = ""
    for name, module in model.named_modules():
        try:
            with _DetachedCopies():
                copy.deepcopy(module)
        except Exception:
            deepest = name
    if not deepest:
        return f"the model ({type(model).__name__})"
    return f"'{deepest}', a {type(model.get_submodule(deepest)).__name__} of the model,"
