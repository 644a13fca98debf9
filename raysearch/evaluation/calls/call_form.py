"""A model's forward as a function of positional arguments that gives plain containers, for an exporter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from raysearch.errors import TaskError
from raysearch.evaluation.outputs import plain

_NAMED = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


def argument_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the forward's arguments in order, keyword-only ones last; those of `*args` have none."""
    return tuple(parameter.name for parameter in _parameters(model))


def in_order(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], shown: str = "example_inputs"
) -> tuple[Any, ...]:
    """Positional and keyword arguments of one call in the order of the forward's arguments.

    What lies between them and is not given is the forward's own default.

    Args:
        model: its forward says the order.
        args: positional arguments.
        kwargs: keyword arguments.
        shown: what messages call them.

    Raises:
        TaskError: a name is none of the forward's, comes twice, or one before it has no default.
    """
    if not kwargs:
        return args
    parameters = _parameters(model)
    names = [parameter.name for parameter in parameters]
    for name in kwargs:
        if name not in names:
            raise TaskError(
                f"{shown} names '{name}', which is no argument of {type(model).__name__}.forward; its "
                f"arguments are {', '.join(names)}. What goes in by **kwargs cannot be exported: name it in "
                f"the forward."
            )
        if name in names[: len(args)]:
            raise TaskError(f"{shown} gives '{name}' twice: by its place and by its name.")
    last = max(names.index(name) for name in kwargs)
    values = list(args)
    for parameter in parameters[len(args) : last + 1]:
        if parameter.name in kwargs:
            values.append(kwargs[parameter.name])
        elif parameter.default is inspect.Parameter.empty:
            raise TaskError(f"{shown} lacks the argument '{parameter.name}' of the forward; give it too.")
        else:
            values.append(parameter.default)
    return tuple(values)


@contextmanager
def exportable(model: nn.Module) -> Iterator[nn.Module]:
    """The same model, whose forward takes keyword-only arguments by place and returns plain containers.

    For the time of the context the object itself has that forward, so that its modules keep their paths.
    """
    # `vars`, since a forward that was set on the object before is put back as it was.
    earlier = vars(model).get("forward")
    model.__dict__["forward"] = _adapted(model)
    try:
        yield model
    finally:
        del model.__dict__["forward"]
        if earlier is not None:
            model.__dict__["forward"] = earlier


def _adapted(model: nn.Module) -> Any:
    forward = model.forward
    parameters = _parameters(model)
    by_place = sum(parameter.kind is not inspect.Parameter.KEYWORD_ONLY for parameter in parameters)
    names = [parameter.name for parameter in parameters]

    @functools.wraps(forward)
    def adapted(*args: Any, **kwargs: Any) -> Any:
        if len(args) <= by_place or not _has_keyword_only(model, parameters):
            return plain(forward(*args, **kwargs))
        named = dict(zip(names[by_place:], args[by_place:], strict=False))
        return plain(forward(*args[:by_place], **named, **kwargs))

    if _has_keyword_only(model, parameters):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        plainly = [parameter.replace(kind=kind) for parameter in parameters]
        adapted.__signature__ = inspect.Signature(plainly)  # type: ignore[attr-defined]
    return adapted


def _has_keyword_only(model: nn.Module, parameters: list[inspect.Parameter]) -> bool:
    """Whether keyword-only arguments can be given by place: there are some, and no `*args` before them."""
    kinds = [parameter.kind for parameter in inspect.signature(model.__class__.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return False
    return any(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters)


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    parameters = inspect.signature(model.forward).parameters.values()
    return [parameter for parameter in parameters if parameter.kind in _NAMED]
