"""One float forward, written down call by call, and handed out again up to a cut; see `prefix.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.evaluation.batches import map_tensors

_PLAIN = (int, float, complex, str, bytes, slice, torch.dtype, torch.device, type(None))


@dataclass
class Call:
    """One call of a module in a recorded forward.

    Attributes:
        module: whose forward ran.
        enter: the clock when it began.
        leave: the clock when it ended.
        last: index of the last call made inside it, or its own.
        is_reusable: whether its output may be handed out instead of running it.
        size_bytes: of its output.
    """

    module: nn.Module
    enter: int
    leave: int = 0
    last: int = 0
    is_reusable: bool = False
    size_bytes: int = 0


@dataclass
class Recording:
    """One float forward: its calls in the order of entry, what is kept of them, and who was read when.

    Attributes:
        calls: every call.
        outputs: index of a call → its output.
        copied: calls whose output is overwritten later.
        first_read: quantizer id → the clock when it, or its weight, was first read.
        is_valid: False where handing out is unsafe as a whole: the forward draws random numbers.
    """

    calls: list[Call] = field(default_factory=list)
    outputs: dict[int, Any] = field(default_factory=dict)
    copied: set[int] = field(default_factory=set)
    first_read: dict[str, int] = field(default_factory=dict)
    is_valid: bool = True

    def cut(self, points: Iterable[str]) -> int:
        """The clock at the first read of any point; 0 where one was never seen to be read."""
        return min((self.first_read.get(name, 0) for name in points), default=0) if self.is_valid else 0

    def wanted(self, cut: int) -> list[int]:
        """The outermost reusable calls that ended before a cut."""
        found, index = [], 0
        while index < len(self.calls) and self.calls[index].enter <= cut:
            call = self.calls[index]
            if call.is_reusable and call.leave <= cut:
                found.append(index)
                index = call.last
            index += 1
        return found

    def wanted_by(self, options: Iterable[Iterable[str]]) -> set[int]:
        """What the options need, each given by its points."""
        return {index for points in options for index in self.wanted(self.cut(points))}

    def follows(self, calls: Sequence[Call]) -> bool:
        """Whether it made the same calls, which gave what may be handed out alike."""
        return len(calls) == len(self.calls) and all(
            one.module is other.module and one.is_reusable == other.is_reusable
            for one, other in zip(calls, self.calls, strict=True)
        )


class Record:
    """Writes down one forward."""

    def __init__(self, keep: set[int], copied: set[int], modules: Sequence[nn.Module]) -> None:
        self.found, self.clock = Recording(copied=set(copied)), 0
        self._keep, self._modules = keep, modules
        self._held: dict[int, list[tuple[Tensor, int]]] = {}
        self._before = [_state(module) for module in modules]

    def call(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of a module."""
        self.clock += 1
        index, call = len(self.found.calls), Call(module, self.clock)
        self.found.calls.append(call)
        given: list[Tensor] = []
        is_known = _gather((args, kwargs), given)
        versions = [tensor._version for tensor in given] if is_known else []
        output = original(*args, **kwargs)
        self.clock += 1
        call.leave, call.last = self.clock, len(self.found.calls) - 1
        made: list[Tensor] = []
        if is_known and _gather(output, made):
            places = {tensor.untyped_storage().data_ptr() for tensor in given} - {0}
            call.is_reusable = versions == [tensor._version for tensor in given] and not any(
                tensor.untyped_storage().data_ptr() in places for tensor in made
            )
            call.size_bytes = sum(tensor.untyped_storage().nbytes() for tensor in made)
        if call.is_reusable and index in self._keep:
            self._take(index, output, made)
        return output

    def finish(self, *, is_valid: bool) -> Recording:
        """What was recorded, without what turned out to be unsafe."""
        calls = self.found.calls
        for index, tensors in self._held.items():
            if any(tensor._version != version for tensor, version in tensors):
                # What is held is no longer what was given; the next recording copies it in time.
                self.found.copied.add(index)
                del self.found.outputs[index]
        changed = {
            id(m)
            for m, before in zip(self._modules, self._before, strict=True)
            if not _same(before, _state(m))
        }
        for inner, call in enumerate(calls):
            if id(call.module) in changed:
                for outer in range(inner + 1):
                    if calls[outer].last >= inner:
                        calls[outer].is_reusable = False
                        self.found.outputs.pop(outer, None)
        self.found.is_valid = is_valid
        return self.found

    def _take(self, index: int, output: Any, tensors: list[Tensor]) -> None:
        if index in self.found.copied:
            output = map_tensors(output, torch.clone)
        else:
            self._held[index] = [(tensor, tensor._version) for tensor in tensors]
        self.found.outputs[index] = map_tensors(output, lambda tensor: tensor)


class Replay:
    """Hands out what was recorded until the cut is reached."""

    def __init__(self, recording: Recording, cut: int) -> None:
        self._recording, self._cut = recording, cut
        self._end = sum(call.enter <= cut for call in recording.calls)
        self._next = 0
        self.has_strayed = False

    def call(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of a module."""
        index = self._next
        if index >= self._end:
            return original(*args, **kwargs)
        call = self._recording.calls[index]
        if call.module is not module:
            self.has_strayed, self._next = True, self._end
            return original(*args, **kwargs)
        if call.leave <= self._cut and index in self._recording.outputs:
            self._next = call.last + 1
            output = self._recording.outputs[index]
            is_copied = index in self._recording.copied
            return map_tensors(output, torch.clone if is_copied else lambda tensor: tensor)
        self._next += 1
        return original(*args, **kwargs)


def _gather(value: Any, found: list[Tensor]) -> bool:
    """Collect the tensors of a value; False where it holds something that cannot be seen through."""
    if isinstance(value, Tensor):
        found.append(value)
        plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
        return plain and not value.is_inference()
    if isinstance(value, _PLAIN):
        return True
    if type(value) is dict:
        return all(_gather(entry, found) for entry in value.values())
    if type(value) is list or isinstance(value, tuple):
        return all(_gather(entry, found) for entry in value)
    return False


def _state(module: nn.Module) -> tuple[dict[str, Any], list[tuple[str, Tensor | None, int]]]:
    """Attributes, and buffers with how often they were written."""
    buffers = [
        (name, tensor, 0 if tensor is None or tensor.is_inference() else tensor._version)
        for name, tensor in module._buffers.items()
    ]
    return dict(module.__dict__), buffers


def _same(before: tuple[dict[str, Any], Any], after: tuple[dict[str, Any], Any]) -> bool:
    fields, buffers = zip(before, after, strict=True)
    if fields[0].keys() != fields[1].keys() or len(buffers[0]) != len(buffers[1]):
        return False
    return all(value is fields[1][name] for name, value in fields[0].items()) and all(
        one == other and old is new and written == rewritten
        for (one, old, written), (other, new, rewritten) in zip(*buffers, strict=True)
    )
