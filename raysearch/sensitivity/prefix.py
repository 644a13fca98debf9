"""Running only what comes after a change: outputs of module calls that ended before it are handed out.

While the float twin runs a shard, every module call is recorded: when it was entered and left, on a clock
that ticks at both; what it gave; and when each quantizer or quantized weight was first read. A model in
which only some quantizers act is equal to the float one up to the first read of any of them, the cut. So a
call that ended before the cut gives what it gave then, and its whole subtree need not run. Hooks cannot skip
a module, so the instances' `forward` are wrapped, once, for good; only a private copy is treated so.

A call is run again, though what is below it may be handed out, when it
- changed a tensor that it was given (an in-place ReLU), or gave a view of it (`nn.Flatten`, `nn.Identity`);
- took or gave something other than tensors, numbers, strings and plain containers of them;
- changed an attribute or a buffer of a module.
An output that is overwritten later is kept as a copy and handed out as a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
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


class Prefix:
    """Records the float forwards of one model and replays them from a cut on.

    Args:
        model: a private copy; its modules' `forward` and parameter tables are wrapped.
        weights: quantizer id → (module, parameter name) of each site.
        quantizers: activation quantizers by id; their first call is their first read.
        limit_bytes: of outputs kept at once.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, Sequence[tuple[nn.Module, str]]],
        quantizers: Mapping[str, nn.Module],
        limit_bytes: int,
    ) -> None:
        self._model, self._limit = model, limit_bytes
        self._key: object = None
        self._recording = Recording()
        self._run: _Record | _Replay | None = None
        own = {id(part): name for name, module in quantizers.items() for part in module.modules()}
        self._modules = [m for m in model.modules() if id(m) not in own]
        for module in self._modules:
            if not isinstance(module, torch.jit.ScriptModule):
                module.__dict__["forward"] = self._wrapped(module, module.forward)
        for name, quantizer in quantizers.items():
            quantizer.__dict__["forward"] = self._noted(name, quantizer.forward)
        names: dict[int, dict[str, str]] = {}
        owners = {id(module): module for sites in weights.values() for module, _ in sites}
        for name, sites in weights.items():
            for module, parameter in sites:
                names.setdefault(id(module), {})[parameter] = name
        for key, module in owners.items():
            module.__dict__["_parameters"] = _Watched(module._parameters, names[key], self._note)

    def record(
        self,
        key: object,
        run: Callable[[], Any],
        now: Sequence[Sequence[str]],
        every: Sequence[Sequence[str]],
    ) -> None:
        """Record the float forward that `run` makes, unless the recording at hand serves already.

        Kept is what the options of the whole setup need; where that is more than the limit, what those of
        this unit need; and of that, where it is still too much, the smallest outputs.

        Work: one forward a key, or one a call where the limit is met; the first of all takes up to four.

        Args:
            key: names the input of `run`.
            run: runs the model on it with all quantizers off.
            now: points of each option of this unit.
            every: points of each option of the setup.
        """
        if not self._recording.calls:
            self._once(run, set(), set())
        keep, is_whole = self._plan(now, every)
        if key == self._key and (is_whole or keep <= set(self._recording.outputs)):
            return
        copied = set(self._recording.copied)
        for _ in range(3):
            known = set(copied)
            self._once(run, keep, copied)
            copied |= self._recording.copied
            if copied == known:
                break
            keep, _ = self._plan(now, every)
        self._key = key

    def replay(self, key: object, run: Callable[[], Any], points: Sequence[str]) -> Any:
        """What `run` gives while the quantizers of some points act, with what comes before handed out.

        A forward that calls its modules in another order than recorded is run in full.
        """
        cut = self._recording.cut(points) if key == self._key else 0
        if not cut:
            return run()
        state = _Replay(self._recording, cut)
        self._run = state
        try:
            found = run()
        finally:
            self._run = None
        return run() if state.has_strayed else found

    def depth(self, points: Sequence[str]) -> int:
        """The clock at the first read of some points, in the last recording; 0 when not known."""
        return self._recording.cut(points)

    def _plan(self, now: Sequence[Sequence[str]], every: Sequence[Sequence[str]]) -> tuple[set[int], bool]:
        record = self._recording
        for options, is_whole in ((every, True), (now, False)):
            keep = {index for points in options for index in record.wanted(record.cut(points))}
            if sum(record.calls[index].size_bytes for index in keep) <= self._limit:
                return keep, is_whole
        total, kept = 0, set()
        for index in sorted(keep, key=lambda index: (record.calls[index].size_bytes, index)):
            total += record.calls[index].size_bytes
            if total > self._limit:
                break
            kept.add(index)
        return kept, False

    def _once(self, run: Callable[[], Any], keep: set[int], copied: set[int]) -> None:
        # Let go of what was kept before: two recordings at once would double the memory.
        self._recording = Recording()
        self._key = None
        state = _Record(keep, copied, self._modules)
        rng = torch.get_rng_state()
        self._run = state
        try:
            run()
            drew = not torch.equal(rng, torch.get_rng_state())
        finally:
            self._run = None
            torch.set_rng_state(rng)
        self._recording = state.finish(is_valid=not drew)

    def _note(self, name: str) -> None:
        if isinstance(self._run, _Record):
            self._run.found.first_read.setdefault(name, self._run.clock)

    def _noted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._note(name)
            return original(*args, **kwargs)

        return forward

    def _wrapped(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._run is None:
                return original(*args, **kwargs)
            return self._run.call(module, original, args, kwargs)

        return forward


class _Watched(dict[str, nn.Parameter | None]):
    """A module's parameters; tells when one of some names is read, however it is used then."""

    def __init__(
        self, values: Mapping[str, nn.Parameter | None], names: Mapping[str, str], note: Callable[[str], None]
    ) -> None:
        super().__init__(values)
        self._names, self._note = names, note

    def __getitem__(self, key: str) -> nn.Parameter | None:
        if key in self._names:
            self._note(self._names[key])
        return super().__getitem__(key)


class _Record:
    """Writes down one forward."""

    def __init__(self, keep: set[int], copied: set[int], modules: Sequence[nn.Module]) -> None:
        self.found, self.clock = Recording(copied=set(copied)), 0
        self._keep, self._modules = keep, modules
        self._held: dict[int, list[tuple[Tensor, int]]] = {}
        self._before = [_state(module) for module in modules]

    def call(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
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


class _Replay:
    """Hands out what was recorded until the cut is reached."""

    def __init__(self, recording: Recording, cut: int) -> None:
        self._recording, self._cut = recording, cut
        self._end = sum(call.enter <= cut for call in recording.calls)
        self._next = 0
        self.has_strayed = False

    def call(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
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
