"""A model as a chain of blocks, and what lies outside of them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.errors import TaskError

OUTSIDE = -1
"""The part of a model that lies in no block: embedding, last norm, head."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a block; None stands where the hidden state goes."""


@dataclass(frozen=True)
class Chain:
    """The blocks of a model that run one after the other, each on the hidden state that the last one gave.

    Attributes:
        blocks: their names, in the order of their calls.
        slot: which argument of a block the hidden state is, by position or by name.
        tuple_size: values in the tuple that a block gives, the hidden state first and None behind it; 0: it
            gives the hidden state by itself.
    """

    blocks: tuple[str, ...]
    slot: int | str
    tuple_size: int = 0

    @property
    def parts(self) -> tuple[int, ...]:
        """`OUTSIDE`, then the blocks by number."""
        return (OUTSIDE, *range(len(self.blocks)))

    def part_of(self, parameter: str) -> int:
        """The number of the block that a parameter lies in, or `OUTSIDE`."""
        for index, block in enumerate(self.blocks):
            if parameter.startswith(f"{block}."):
                return index
        return OUTSIDE

    def without_hidden(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The arguments of a call without the hidden state."""
        if isinstance(self.slot, int):
            return (*args[: self.slot], None, *args[self.slot + 1 :]), kwargs
        return args, {**kwargs, self.slot: None}

    def with_hidden(self, arguments: Arguments, hidden: Tensor) -> Arguments:
        """The arguments of a call with a hidden state."""
        args, kwargs = arguments
        if isinstance(self.slot, int):
            return (*args[: self.slot], hidden, *args[self.slot + 1 :]), kwargs
        return args, {**kwargs, self.slot: hidden}

    def hidden_in(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The hidden state among the arguments of a call."""
        hidden: Tensor = args[self.slot] if isinstance(self.slot, int) else kwargs[self.slot]
        return hidden

    def hidden_of(self, output: Any) -> Tensor:
        """The hidden state in what a block gave."""
        hidden: Tensor = output[0] if self.tuple_size else output
        return hidden

    def as_output(self, hidden: Tensor) -> Any:
        """A hidden state as a block gives it."""
        return (hidden, *[None] * (self.tuple_size - 1)) if self.tuple_size else hidden


@dataclass(frozen=True)
class _Call:
    block: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


def find_chain(model: nn.Module, blocks: Sequence[str], run: Callable[[], Any]) -> Chain:
    """The chain that a model's blocks are, found by running the model once.

    Args:
        model: the float model.
        blocks: names of its repeated blocks.
        run: runs the model on some samples, without gradients.

    Raises:
        TaskError: the blocks are no chain; says which and why.
    """
    if len(blocks) < 2:
        raise _refusal(f"{type(model).__name__} has no repeated blocks")
    _check_parameters(model, blocks)
    calls = _record(model, blocks, run)
    names = tuple(call.block for call in calls)
    if len(set(names)) != len(names) or set(names) != set(blocks):
        raise _refusal("its blocks are not called once each")
    slots = [_slot(before, call) for before, call in pairwise(calls)]
    chain = Chain(names, slots[0], _tuple_size(calls[0].output))
    for call, slot in zip(calls[1:], slots, strict=True):
        if slot != chain.slot or _tuple_size(call.output) != chain.tuple_size:
            raise _refusal(f"'{call.block}' is called in another way than the blocks before it")
    for call in calls:
        _check_arguments(call, chain)
    return chain


def _check_parameters(model: nn.Module, blocks: Sequence[str]) -> None:
    """Each parameter lies in one part, so that a part is read without the others."""
    parts = Chain(tuple(blocks), 0)
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if parts.part_of(other) != parts.part_of(name):
            raise _refusal(f"'{other}' and '{name}' are one parameter, in two parts of the model")


def _record(model: nn.Module, blocks: Sequence[str], run: Callable[[], Any]) -> list[_Call]:
    calls: list[_Call] = []

    def recorder(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.append(_Call(name, args, kwargs, output))

        return hook

    with ExitStack() as stack:
        for name in blocks:
            handle = model.get_submodule(name).register_forward_hook(recorder(name), with_kwargs=True)
            stack.callback(handle.remove)
        run()
    return calls


def _tuple_size(output: Any) -> int:
    return len(output) if isinstance(output, tuple) else 0


def _slot(before: _Call, call: _Call) -> int | str:
    """Which argument of a call is the hidden state that the block before gave."""
    output = before.output
    if isinstance(output, tuple):
        others = [value for value in output[1:] if value is not None]
        if others:
            raise _refusal(f"'{before.block}' gives more than a hidden state")
        output = output[0]
    if not isinstance(output, Tensor):
        raise _refusal(f"'{before.block}' gives a {type(output).__name__}")
    for index, value in enumerate(call.args):
        if value is output:
            return index
    for name, value in call.kwargs.items():
        if value is output:
            return name
    raise _refusal(f"'{call.block}' is not given what '{before.block}' gave")


def _check_arguments(call: _Call, chain: Chain) -> None:
    """What a block is given besides can be written and read without running code."""
    rest = chain.without_hidden(call.args, call.kwargs)
    try:
        load_arguments(dump_arguments([rest]))
    except (pickle.PickleError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise _refusal(f"'{call.block}' is given what cannot be stored ({reason})") from error


def dump_arguments(arguments: Sequence[Arguments]) -> bytes:
    """The arguments of all blocks as bytes; a tensor that several share is stored once."""
    stream = io.BytesIO()
    torch.save(list(arguments), stream)
    return stream.getvalue()


def load_arguments(data: bytes) -> list[Arguments]:
    """Read what `dump_arguments` gave: tensors and plain values alone, no code."""
    arguments: list[Arguments] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return arguments


def _refusal(reason: str) -> TaskError:
    return TaskError(
        f"cluster.replica is 'block', but the model is no chain of blocks: {reason}. Set cluster.replica to "
        f"'whole'."
    )
