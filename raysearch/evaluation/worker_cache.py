"""What a worker keeps between the units it runs; only ever saves time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from raysearch.evaluation.data_set import DataSet
from raysearch.evaluation.microbatch import MicrobatchState
from raysearch.evaluation.outputs import Judged, num_bytes

FLOAT_OUTPUTS_BYTES = 2**28
"""Float outputs that a worker keeps at once, beyond those of a single shard."""

_State = TypeVar("_State")


@dataclass
class FloatOutputs:
    """What the float model gave on the last shards.

    Attributes:
        by_shard: (data set, index of the shard) → judged output.
    """

    by_shard: dict[tuple[DataSet, int], Judged] = field(default_factory=dict)

    def keep(self, data: DataSet, index: int, outputs: Judged) -> None:
        """Take the output on a shard; those of earlier shards go where all exceed `FLOAT_OUTPUTS_BYTES`.

        Args:
            data: the data set that the shard belongs to.
            index: the shard.
            outputs: the judged output on all its samples.
        """
        total = sum(num_bytes(each) for each in (outputs, *self.by_shard.values()))
        # Units come shard by shard, so of large outputs the last shard's are enough.
        if total > FLOAT_OUTPUTS_BYTES:
            self.by_shard.clear()
        self.by_shard.setdefault((data, index), outputs)


@dataclass
class WorkerCache:
    """A worker's state, never shipped: a shipped replica begins with an empty one.

    What any stage needs is a field. What one stage alone keeps is an object of that stage's own class, asked
    for by the class (`of`), so that this room knows no stage and the object is typed nevertheless.

    Attributes:
        microbatches: kind of work ("forward", "gradients", …) → how many samples of it fit at once.
        float_outputs: of the float model.

    Example:
        >>> @dataclass
        ... class Counter:
        ...     count: int = 0
        >>> cache = WorkerCache()
        >>> cache.of(Counter).count += 1
        >>> cache.of(Counter)
        Counter(count=1)
    """

    microbatches: dict[str, MicrobatchState] = field(default_factory=dict)
    float_outputs: FloatOutputs = field(default_factory=FloatOutputs)
    _states: dict[type[Any], Any] = field(default_factory=dict)

    def of(self, kind: type[_State]) -> _State:
        """The one object of a class that is kept here; made without arguments when first asked for."""
        if kind not in self._states:
            self._states[kind] = kind()
        return cast(_State, self._states[kind])
