"""Running a model part by part, by its own forward: with all blocks passed over, or one block alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.blockwise.chain import Arguments, Chain


@dataclass(frozen=True)
class Entered:
    """What a model does to a batch before its first block.

    Attributes:
        hidden: what enters the first block.
        arguments: what else each block is given.
    """

    hidden: Tensor
    arguments: Sequence[Arguments]


class _Stopped(BaseException):
    """Leaves a model's forward behind its last block; no model's `except Exception` takes it."""


def enter(model: nn.Module, chain: Chain, run: Callable[[], Any]) -> Entered:
    """Run what comes before the first block.

    The blocks hand on what they are given, so the code between them runs as ever; it may look at the shape of
    the hidden state, not at its values.

    Args:
        model: what lies outside of its blocks has weights.
        chain: its blocks.
        run: runs the model on a batch.
    """
    entering: list[Tensor] = []
    arguments: list[Arguments] = []

    def passed_over(index: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            entering.append(chain.hidden_in(args, kwargs))
            arguments.append(chain.without_hidden(args, kwargs))
            if index + 1 == len(chain.blocks):
                raise _Stopped
            return chain.as_output(entering[-1])

        return forward

    with _replaced(model, chain, passed_over), torch.no_grad(), suppress(_Stopped):
        run()
    return Entered(entering[0], arguments)


def leave(model: nn.Module, chain: Chain, run: Callable[[], Any], hidden: Tensor) -> Any:
    """What a model makes of the hidden state behind its last block: its outputs.

    Args:
        model: what lies outside of its blocks has weights.
        chain: its blocks.
        run: runs the model on a batch.
        hidden: what the last block gave on that batch.
    """

    def passed_over(index: int) -> Callable[..., Any]:
        is_last = index + 1 == len(chain.blocks)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return chain.as_output(hidden if is_last else chain.hidden_in(args, kwargs))

        return forward

    with _replaced(model, chain, passed_over), torch.no_grad():
        return run()


def run_block(model: nn.Module, chain: Chain, index: int, hidden: Tensor, arguments: Arguments) -> Tensor:
    """What a block makes of a hidden state.

    Args:
        model: the block has weights.
        chain: its blocks.
        index: of the block.
        hidden: what enters it.
        arguments: what else it is given.
    """
    args, kwargs = chain.with_hidden(arguments, hidden)
    with torch.no_grad():
        return chain.hidden_of(model.get_submodule(chain.blocks[index])(*args, **kwargs))


StandIn = Callable[[int], Callable[..., Any]]
"""Number of a block → the forward that takes the place of its own."""


@contextmanager
def _replaced(model: nn.Module, chain: Chain, stand_in: StandIn) -> Iterator[None]:
    """Other forwards in place of those of the blocks."""
    before: list[tuple[nn.Module, Any]] = []
    for index, name in enumerate(chain.blocks):
        block = model.get_submodule(name)
        before.append((block, block.__dict__.get("forward")))
        # As an attribute of the block it hides the method of its class.
        block.__dict__["forward"] = stand_in(index)
    try:
        yield
    finally:
        for block, forward in before:
            del block.__dict__["forward"]
            if forward is not None:
                block.__dict__["forward"] = forward
