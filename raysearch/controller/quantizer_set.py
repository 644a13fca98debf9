"""What a controller holds and switches: the quantizers, their assignment, the schedule, the loss."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from raysearch.controller.by_hand import (
    AdjacentGroups,
    NonWeightQuantizer,
    NoStages,
    Stages,
    WeightQuantizer,
    ranges_of,
    setup_of,
)
from raysearch.controller.losses import DistillationLoss, ZeroLoss
from raysearch.controller.scheduler import Kind, ScheduleParams, Scheduler, StagedScheduler
from raysearch.controller.settings import read_schedule
from raysearch.controller.switches import Switches
from raysearch.evaluation import Divergence
from raysearch.quantizer import Quantizer
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable, compression_ratio
from raysearch.records.applicable import check_assignment

Observer = Callable[[str, Mapping[str, Any]], None]
"""Told of every change: ("apply", {...}), ("switch", {...}), ("init_range", {...})."""


class CompressionStage(enum.Enum):
    """How much of what is to be quantized is quantized now."""

    UNCOMPRESSED = 0
    PARTIALLY_COMPRESSED = 1
    FULLY_COMPRESSED = 2


class HeldQuantizers:
    """The part of a `QuantizationController` that needs no data; the arguments are described there."""

    def __init__(
        self,
        target_model: nn.Module,
        config: Mapping[str, Any] | None,
        debug_interface: Observer | None,
        weight_quantizers: Mapping[str, WeightQuantizer],
        non_weight_quantizers: Mapping[str, NonWeightQuantizer],
        groups_of_adjacent_quantizers: AdjacentGroups | None,
        quantizers_input_shapes: Mapping[str, tuple[int, ...]],
        build_time_metric_info: Mapping[str, int] | None = None,
        build_time_range_init_params: Mapping[str, Any] | None = None,
        *,
        setup: QuantizerSetup | None = None,
        ranges: RangeTable | None = None,
        stages: Stages | None = None,
    ) -> None:
        self.model = target_model
        self.config = dict(config or {})
        self.weight_quantizers, self.non_weight_quantizers = weight_quantizers, non_weight_quantizers
        self.all_quantizations: dict[str, Quantizer] = {
            **{name: part.quantizer for name, part in weight_quantizers.items()},
            **{name: part.quantizer for name, part in non_weight_quantizers.items()},
        }
        adjacent = groups_of_adjacent_quantizers or AdjacentGroups((), {})
        shapes = quantizers_input_shapes
        self.setup = setup or setup_of(weight_quantizers, non_weight_quantizers, adjacent, shapes)
        self.groups_of_adjacent_quantizers = groups_of_adjacent_quantizers or AdjacentGroups.of(self.setup)
        self.quantizers_input_shapes = dict(shapes)
        self.ranges = ranges or ranges_of(self.all_quantizations)
        self.stages: Stages = stages or NoStages()
        self.loss: ZeroLoss = ZeroLoss(target_model)
        self._observer = debug_interface
        self._potential = dict(build_time_metric_info or {})
        self._range_params = build_time_range_init_params
        self._loaded: set[str] = set()
        self._switches = Switches(self.all_quantizations)
        groups = self.setup.groups.values()
        enabled = {n: q.num_bits for n, q in self.all_quantizations.items() if q.enabled}
        self.assignment = BitAssignment(
            {g.id: enabled[g.points[0]] for g in groups if g.points[0] in enabled}
        )
        self.scheduler: Scheduler = self._make_scheduler()

    def apply(self, assignment: BitAssignment) -> None:
        """Set every width and its calibrated range; groups that are not named are disabled.

        Learned scales are overwritten by the calibrated ones. A kind that has not started stays off.

        Raises:
            PlacementError: a group is unknown, the width is not one of its own, or its range is missing;
                nothing was changed.
        """
        check_assignment(self.setup, self.ranges, assignment)
        self._adopt(assignment, keep_equal=False)
        self._tell("apply", assignment=assignment)

    apply_new_quantizer_setup = apply

    def adopt(self, assignment: BitAssignment, ranges: RangeTable, frozen: Iterable[str]) -> None:
        """Take what a state holds: quantizers that have the width already keep their learned ranges."""
        check_assignment(self.setup, ranges, assignment)
        self.ranges = ranges
        self._adopt(assignment, keep_equal=True)
        self._switches.freeze(frozen)
        self._loaded = set(assignment.per_point(self.setup))

    def switch_to(self, enabled: Iterable[str]) -> None:
        """Turn on the named quantizers of the assignment, and off the others."""
        wanted = set(enabled)
        for name in self.assignment.per_point(self.setup):
            self._switches.set(name, name in wanted)

    def enable_weight_quantization(self) -> None:
        """Let the weight quantizers of the assignment act."""
        self._switch("weight", True)

    def disable_weight_quantization(self) -> None:
        """Pass weights through unquantized."""
        self._switch("weight", False)

    def enable_activation_quantization(self) -> None:
        """Let the activation quantizers of the assignment act."""
        self._switch("activation", True)

    def disable_activation_quantization(self) -> None:
        """Pass activations through unquantized."""
        self._switch("activation", False)

    def compression_stage(self) -> CompressionStage:
        """How much of the assignment is in force, by the quantizers' own flags."""
        flags = [self.all_quantizations[n].enabled for n in self.assignment.per_point(self.setup)]
        if flags and all(flags):
            return CompressionStage.FULLY_COMPRESSED
        return CompressionStage.PARTIALLY_COMPRESSED if any(flags) else CompressionStage.UNCOMPRESSED

    @property
    def compression_rate(self) -> float:
        """NNCF's compression ratio R of the present widths; all at 8 bits gives 1."""
        return compression_ratio(self.setup, self.assignment)

    def disable_scheduler(self) -> None:
        """Quantize everything now, and only count from here on."""
        self.scheduler = Scheduler()
        for name in self.assignment.per_point(self.setup):
            self._switches.set(name, True)

    def distil(
        self,
        teacher: nn.Module,
        *,
        weight: float = 1.0,
        blocks: Sequence[str] = (),
        feature_weight: float = 1.0,
        divergence: Divergence | None = None,
    ) -> None:
        """Make `loss` the distance to a float teacher; see `DistillationLoss`."""
        self.loss.close()
        self.loss = DistillationLoss(
            self.model,
            teacher,
            weight=weight,
            blocks=blocks,
            feature_weight=feature_weight,
            divergence=divergence,
        )

    def _adopt(self, assignment: BitAssignment, keep_equal: bool) -> None:
        widths = assignment.per_point(self.setup)
        for name, quantizer in self.all_quantizations.items():
            self._switches.set(name, name in widths)
            if name in widths and not (keep_equal and quantizer.num_bits == widths[name]):
                quantizer.set_range(widths[name], self.ranges[name, widths[name]])
        self.assignment = assignment
        if isinstance(self.scheduler, StagedScheduler):
            self.scheduler.sync()

    def _switch(self, kind: Kind, enabled: bool) -> None:
        for name in self.assignment.per_point(self.setup):
            if self.setup.points[name].kind == kind:
                self._switches.set(name, enabled)
        self._tell("switch", kind=kind, enabled=enabled)

    def _start(self, kind: Kind) -> None:
        """Called when a kind starts after training began."""

    def _adapt(self) -> None:
        """Called once after the kinds of an epoch have started."""

    def _make_scheduler(self) -> Scheduler:
        params = read_schedule(self.config)
        if isinstance(params, ScheduleParams):
            return StagedScheduler(params, self._switch, self._start, self._adapt)
        return Scheduler()

    def _tell(self, event: str, **details: Any) -> None:
        if self._observer is not None:
            self._observer(event, details)
