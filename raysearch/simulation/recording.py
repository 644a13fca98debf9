"""One float forward, written down call by call and replayed up to a cut; see `prefix_cache.py`."""

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
        if not self.is_valid:
            return 0
        return min((self.first_read.get(name, 0) for name in points), default=0)

    def required(self, cut: int) -> list[int]:
        """The outermost reusable calls that ended before a cut."""
        indices = []
        index = 0
        while index < len(self.calls) and self.calls[index].enter <= cut:
            call = self.calls[index]
            if call.is_reusable and call.leave <= cut:
                indices.append(index)
                # Calls inside one that is not run are not run either.
                index = call.last
            index += 1
        return indices

    def required_by_all(self, options: Iterable[Iterable[str]]) -> set[int]:
        """The calls whose outputs the options need, each option given by its points."""
        required: set[int] = set()
        for points in options:
            required.update(self.required(self.cut(points)))
        return required

    def between(self, indices: Iterable[int], blocks: set[int]) -> set[int]:
        """Those of some calls that were not made inside a block: of a decoder its residual stream.

        Args:
            indices: of calls.
            blocks: identities of the modules that are blocks.
        """
        inside: set[int] = set()
        for index, call in enumerate(self.calls):
            if id(call.module) in blocks and call.is_reusable:
                inside.update(range(index + 1, call.last + 1))
        return set(indices) - inside

    def follows(self, calls: Sequence[Call]) -> bool:
        """Whether it made the same calls, which gave what may be handed out alike."""
        return len(calls) == len(self.calls) and all(
            one.module is other.module and one.is_reusable == other.is_reusable
            for one, other in zip(calls, self.calls, strict=True)
        )


class Record:
    """Writes down one forward.

    Args:
        keep: indices of the calls whose outputs are kept.
        copied: indices of those among them that are overwritten later, and so are kept as copies.
        modules: all modules of the model; one whose state a call changes cannot be skipped.

    Attributes:
        recording: what was written down so far.
        clock: ticks when a call is entered and when it is left.
    """

    def __init__(self, keep: set[int], copied: set[int], modules: Sequence[nn.Module]) -> None:
        self.recording = Recording(copied=set(copied))
        self.clock = 0
        self._keep = keep
        self._modules = modules
        self._uncopied: dict[int, list[tuple[Tensor, int]]] = {}
        self._before = [_state(module) for module in modules]

    def call(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of a module.

        Args:
            module: what is called.
            original: runs the call.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        self.clock += 1
        index = len(self.recording.calls)
        call = Call(module, self.clock)
        self.recording.calls.append(call)
        inputs: list[Tensor] = []
        is_plain = _gather((args, kwargs), inputs)
        versions = [tensor._version for tensor in inputs] if is_plain else []
        output = original(*args, **kwargs)
        self.clock += 1
        call.leave = self.clock
        call.last = len(self.recording.calls) - 1
        results: list[Tensor] = []
        if is_plain and _gather(output, results):
            is_unwritten = versions == [tensor._version for tensor in inputs]
            call.is_reusable = is_unwritten and not _share_memory(inputs, results)
            call.size_bytes = sum(tensor.untyped_storage().nbytes() for tensor in results)
        if call.is_reusable and index in self._keep:
            self._take(index, output, results)
        return output

    def finish(self, *, is_valid: bool) -> Recording:
        """What was recorded, without what turned out to be unsafe."""
        for index, tensors in self._uncopied.items():
            if any(tensor._version != version for tensor, version in tensors):
                # The kept tensor was overwritten since; the next recording copies it in time.
                self.recording.copied.add(index)
                del self.recording.outputs[index]
        before_and_after = zip(self._modules, self._before, strict=True)
        changed = {id(module) for module, before in before_and_after if not _is_same(before, _state(module))}
        for index, call in enumerate(self.recording.calls):
            if id(call.module) in changed:
                self._refuse_callers(index)
        self.recording.is_valid = is_valid
        return self.recording

    def _refuse_callers(self, index: int) -> None:
        """A call that changed its module has to be run again, and so have all calls it was made in."""
        calls = self.recording.calls
        for outer in range(index + 1):
            if calls[outer].last >= index:
                calls[outer].is_reusable = False
                self.recording.outputs.pop(outer, None)

    def _take(self, index: int, output: Any, tensors: list[Tensor]) -> None:
        if index in self.recording.copied:
            output = map_tensors(output, torch.clone)
        else:
            self._uncopied[index] = [(tensor, tensor._version) for tensor in tensors]
        self.recording.outputs[index] = map_tensors(output, _same_tensor)


class Replay:
    """Gives recorded outputs instead of running calls, until the cut is reached.

    Args:
        recording: of the same input.
        cut: the clock at the first change; see `Recording.cut`.

    Attributes:
        has_strayed: whether the model made another call than recorded; its output is then of no use.
    """

    def __init__(self, recording: Recording, cut: int) -> None:
        self._recording = recording
        self._cut = cut
        self._end = sum(call.enter <= cut for call in recording.calls)
        self._next = 0
        self.has_strayed = False

    def call(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of a module.

        Args:
            module: what is called.
            original: runs the call, where nothing recorded can stand for it.
            args: its positional arguments.
            kwargs: its keyword arguments.
        """
        index = self._next
        if index >= self._end:
            return original(*args, **kwargs)
        call = self._recording.calls[index]
        if call.module is not module:
            self.has_strayed = True
            self._next = self._end
            return original(*args, **kwargs)
        if call.leave <= self._cut and index in self._recording.outputs:
            self._next = call.last + 1
            output = self._recording.outputs[index]
            if index in self._recording.copied:
                # The model overwrites this output, so it gets a copy of its own each time.
                return map_tensors(output, torch.clone)
            return map_tensors(output, _same_tensor)
        self._next += 1
        return original(*args, **kwargs)


def _same_tensor(tensor: Tensor) -> Tensor:
    # For `map_tensors`, which builds the containers anew: a model may change those it was given.
    return tensor


def _share_memory(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether a tensor of one list lies in the memory of one of the other."""
    # Tensors without elements all have the address 0, and share nothing.
    addresses = {tensor.untyped_storage().data_ptr() for tensor in ones} - {0}
    return any(tensor.untyped_storage().data_ptr() in addresses for tensor in others)


def _gather(value: Any, tensors: list[Tensor]) -> bool:
    """Collect the tensors of a value; False where it holds something whose changes cannot be noticed."""
    if isinstance(value, Tensor):
        tensors.append(value)
        is_plain = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
        return is_plain and not value.is_inference()
    if isinstance(value, _PLAIN):
        return True
    if type(value) is dict:
        return all(_gather(entry, tensors) for entry in value.values())
    if type(value) is list or isinstance(value, tuple):
        return all(_gather(entry, tensors) for entry in value)
    return False


@dataclass(frozen=True)
class _State:
    """What a module holds besides its parameters and children.

    Attributes:
        fields: its attributes.
        buffers: name, tensor, and how often it was written, of each buffer.
    """

    fields: dict[str, Any]
    buffers: list[tuple[str, Tensor | None, int]]


def _state(module: nn.Module) -> _State:
    buffers = []
    for name, tensor in module._buffers.items():
        version = 0
        # Inference tensors do not count how often they are written.
        if tensor is not None and not tensor.is_inference():
            version = tensor._version
        buffers.append((name, tensor, version))
    return _State(dict(module.__dict__), buffers)


def _is_same(before: _State, after: _State) -> bool:
    if before.fields.keys() != after.fields.keys() or len(before.buffers) != len(after.buffers):
        return False
    if any(value is not after.fields[name] for name, value in before.fields.items()):
        return False
    return all(
        name == other_name and tensor is other and version == other_version
        for (name, tensor, version), (other_name, other, other_version) in zip(
            before.buffers, after.buffers, strict=True
        )
    )
