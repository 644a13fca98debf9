"""Running only what comes after a change: calls that ended before it give their recorded outputs.

While the float model runs a shard, every module call is recorded: when it was entered and left, on a clock
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

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import nn

from raysearch.determinism import GeneratorStates
from raysearch.simulation.blocks import repeated_blocks
from raysearch.simulation.parameter_table import ParameterTable
from raysearch.simulation.recording import Record, Recording, Replay

_log = logging.getLogger(__name__)


class PrefixCache:
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
        self._model = model
        self._limit_bytes = limit_bytes
        self._blocks = repeated_blocks(model)
        self._key: object = None
        self._recording = Recording()
        self._run: Record | Replay | None = None
        own = {id(part): name for name, module in quantizers.items() for part in module.modules()}
        self._modules = [m for m in model.modules() if id(m) not in own]
        for module in self._modules:
            if not isinstance(module, torch.jit.ScriptModule):
                module.__dict__["forward"] = self._recordable(module, module.forward)
        for name, quantizer in quantizers.items():
            quantizer.__dict__["forward"] = self._noting_read(name, quantizer.forward)
        for name, sites in weights.items():
            for module, parameter in sites:
                ParameterTable.of(module).watch(parameter, partial(self._note_read, name))

    def record(
        self,
        key: object,
        run: Callable[[], Any],
        now: Sequence[Sequence[str]],
        every: Sequence[Sequence[str]],
        few: Callable[[], Any] | None = None,
        share: float = 1.0,
    ) -> None:
        """Record the float forward that `run` makes, unless the recording at hand serves already.

        Kept is what the options of the whole setup need; where that is more than the limit, of it what goes
        from block to block (of a decoder the residual stream, one tensor a block); where that is too much as
        well, what the options of this unit need; and of that the smallest outputs.

        Work: one forward a key, or one a call where the limit is met. The first of all takes two of `few`
        besides; without it, or where the model makes other calls for few samples, up to four forwards.

        Args:
            key: names the input of `run`.
            run: runs the model on it with all quantizers off.
            now: points of each option of this unit.
            every: points of each option of the setup.
            few: runs the model in the same way on a few of the samples.
            share: of the samples that `few` runs.
        """
        if not self._recording.calls:
            self._survey(run, every, few, share)
        keep, is_whole = self._plan(now, every)
        if key == self._key and (is_whole or keep <= set(self._recording.outputs)):
            return
        # A recording shows which outputs are overwritten later, and the next one copies them in time; those
        # copies may change what fits. Three rounds settle it, and whatever they leave is safe to replay.
        for _ in range(3):
            calls = self._recording.calls
            copied = set(self._recording.copied)
            self._once(run, keep, copied)
            if self._recording.copied == copied and self._recording.follows(calls):
                break
            keep, _ = self._plan(now, every)
        self._key = key

    def holds(self, key: object) -> bool:
        """Whether the forward at hand is that of an input."""
        return self._key is not None and key == self._key

    def forget(self) -> None:
        """Let go of what was recorded."""
        self._recording, self._key = Recording(), None

    def replay(self, key: object, run: Callable[[], Any], points: Sequence[str]) -> Any:
        """What `run` gives while the quantizers of some points act, with what comes before handed out.

        A forward that calls its modules in another order than recorded is run in full.

        Args:
            key: names the input of `run`, as for the recording.
            run: runs the model on it with the quantizers of `points` on.
            points: ids of the quantizers that act.
        """
        cut = self._recording.cut(points) if key == self._key else 0
        if not cut:
            return run()
        state = Replay(self._recording, cut)
        self._run = state
        try:
            output = run()
        finally:
            self._run = None
        # A forward that strayed may have mixed recorded outputs into calls they do not belong to.
        return run() if state.has_strayed else output

    def depth(self, points: Sequence[str]) -> int:
        """The clock at the first read of some points, in the last recording; 0 when not known."""
        return self._recording.cut(points)

    def _survey(
        self,
        run: Callable[[], Any],
        every: Sequence[Sequence[str]],
        few: Callable[[], Any] | None,
        share: float,
    ) -> None:
        """Learn which calls there are, what they give, and what is overwritten later."""
        try:
            if few is not None:
                self._once(few, set(), set())
                self._once(few, self._recording.required_by_all(every), set())
                for call in self._recording.calls:
                    call.size_bytes = int(call.size_bytes / share)
                return
        except Exception as error:
            # A model may take whole shards only; whatever else is wrong, the run of a shard says it too.
            _log.debug("a few samples of a shard cannot be run alone: %r", error)
        self._once(run, set(), set())

    def _plan(self, now: Sequence[Sequence[str]], every: Sequence[Sequence[str]]) -> tuple[set[int], bool]:
        """The calls to keep the outputs of, and whether they serve every option of the setup."""
        calls = self._recording.calls
        of_all = self._recording.required_by_all(every)
        required = self._recording.required_by_all(now)
        between = self._recording.between(of_all, self._blocks)
        # A forward that restarts at a block runs half of it for nothing; a recording a unit costs more.
        for indices, is_whole in ((of_all, True), (between, True), (required, False)):
            if sum(calls[index].size_bytes for index in indices) <= self._limit_bytes:
                return indices, is_whole
        smallest_first = sorted(required, key=lambda index: (calls[index].size_bytes, index))
        total_bytes = 0
        keep: set[int] = set()
        for index in smallest_first:
            total_bytes += calls[index].size_bytes
            if total_bytes > self._limit_bytes:
                break
            keep.add(index)
        return keep, False

    def _once(self, run: Callable[[], Any], keep: set[int], copied: set[int]) -> None:
        # Let go of what was kept before: two recordings at once would double the memory.
        self._recording = Recording()
        self._key = None
        state = Record(keep, copied, self._modules)
        generators = GeneratorStates.now()
        self._run = state
        try:
            run()
            drew = not generators.are_now()
        finally:
            self._run = None
            generators.restore()
        self._recording = state.finish(is_valid=not drew)

    def _note_read(self, name: str) -> None:
        if isinstance(self._run, Record):
            self._run.recording.first_read.setdefault(name, self._run.clock)

    def _noting_read(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._note_read(name)
            return original(*args, **kwargs)

        return forward

    def _recordable(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._run is None:
                return original(*args, **kwargs)
            return self._run.call(module, original, args, kwargs)

        return forward
