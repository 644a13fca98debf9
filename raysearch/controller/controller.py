"""The QuantizationController: holds a model's quantizers, sets their widths, strips them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from raysearch.config.precision import ManualRequest, MeasuredRequest
from raysearch.controller.adjacent import AdjacentGroups
from raysearch.controller.by_hand import NonWeightQuantizer, WeightQuantizer, ranges_of, setup_of
from raysearch.controller.initializer import Initializer, NoInitializer, RangeReport
from raysearch.controller.losses import DistillationLoss, ZeroLoss
from raysearch.controller.manual import assign_by_scope, read_entries, to_entries
from raysearch.controller.precision import narrow, read_request
from raysearch.controller.quantizer_set import CompressionStage, QuantizerSet
from raysearch.controller.readiness import ExportReadiness, check_exportable
from raysearch.controller.scheduler import Kind, Scheduler, StagedScheduler
from raysearch.controller.settings import read_schedule
from raysearch.controller.state import ControllerState
from raysearch.controller.statistics import Statistics, count, memory, quantized_edges
from raysearch.controller.stripped import check_same, strip
from raysearch.errors import ConfigError, PlacementError
from raysearch.evaluation import Objective
from raysearch.hooks import place_latent_weights
from raysearch.quantizer import Quantizer
from raysearch.records import BitAssignment, QuantizerSetup, RangeTable, compression_ratio

Observer = Callable[[str, Mapping[str, Any]], None]
"""Told of every change: ("apply", {...}), ("switch", {...}), ("init_range", {...})."""


class QuantizationController:
    """All quantizers of one model, keyed by quantizer id in graph order, weights first.

    Made by `create_controller` or `create_compressed_model`, seldom by hand. Its members mean what they meant
    in NNCF's controller of the same name; docs/from-nncf.md tells the differences.

    Args:
        target_model: the model that holds the quantizers.
        config: NNCF's configuration or its quantization section; read here: `params`, the staged schedule.
        debug_interface: told of every change; None costs nothing.
        weight_quantizers: weight id → quantizer, owner, sites.
        non_weight_quantizers: activation id → quantizer, sites.
        groups_of_adjacent_quantizers: what feeds the same operations; None computes it.
        quantizers_input_shapes: id → shape of the weight, or of one sample of the activation.
        build_time_metric_info: "wq" and "aq", how many quantizers there could be; None: those there are.
        build_time_range_init_params: settings that `init_range()` uses when it is given none.
        setup: where the quantizers are; None derives one without MACs, each at its present width only.
        ranges: calibrated ranges; None takes what the quantizers hold.
        initializer: finds ranges and widths; `create_compressed_model` supplies it.
        stages: the former name of `initializer`.

    Attributes:
        model: the quantized model.
        non_weight_quantizers: activation id → quantizer, sites.
        groups_of_adjacent_quantizers: what feeds the same operations.
        initializer: finds ranges and widths.
        scheduler: counts steps and epochs; starts kinds at their epochs when it is staged.
        loss: scalar to add to the task's loss; 0 unless `distil` was called.
    """

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
        initializer: Initializer | None = None,
        stages: Initializer | None = None,
    ) -> None:
        self.model = target_model
        self.config = dict(config or {})
        self._weight_parts = weight_quantizers
        self.non_weight_quantizers = non_weight_quantizers
        self.quantizers_input_shapes = dict(quantizers_input_shapes)
        quantizers = {name: part.quantizer for name, part in weight_quantizers.items()}
        quantizers |= {name: part.quantizer for name, part in non_weight_quantizers.items()}
        if setup is None:
            adjacent = groups_of_adjacent_quantizers or AdjacentGroups((), {})
            setup = setup_of(
                weight_quantizers, non_weight_quantizers, adjacent.weight_inputs, quantizers_input_shapes
            )
        self.groups_of_adjacent_quantizers = groups_of_adjacent_quantizers or AdjacentGroups.of(setup)
        self._set = QuantizerSet(target_model, quantizers, setup, ranges or ranges_of(quantizers))
        self.initializer: Initializer = initializer or stages or NoInitializer()
        self.loss: ZeroLoss = ZeroLoss(target_model)
        self._observer = debug_interface
        self._potential = dict(build_time_metric_info or {})
        self._range_params = build_time_range_init_params
        self._loaded: set[str] = set()
        self.scheduler: Scheduler = self._make_scheduler()

    @property
    def all_quantizations(self) -> dict[str, Quantizer]:
        """Quantizer id → quantizer, weights first."""
        return self._set.quantizers

    @property
    def weight_quantizers(self) -> dict[str, WeightQuantizer]:
        """Weight id → quantizer, owner, sites; another scheme may bring another quantizer."""
        parts, quantizers = self._weight_parts, self._set.quantizers
        return {name: replace(part, quantizer=quantizers[name]) for name, part in parts.items()}

    @property
    def setup(self) -> QuantizerSetup:
        """Where the quantizers are, and the widths they may have."""
        return self._set.setup

    @property
    def ranges(self) -> RangeTable:
        """Calibrated ranges, by quantizer and width."""
        return self._set.ranges

    @property
    def assignment(self) -> BitAssignment:
        """The bit assignment in force."""
        return self._set.assignment

    @property
    def stages(self) -> Initializer:
        """The former name of `initializer`."""
        return self.initializer

    @stages.setter
    def stages(self, initializer: Initializer) -> None:
        self.initializer = initializer

    def apply(self, assignment: BitAssignment) -> None:
        """Set every width and its calibrated range; groups that are not named are disabled.

        Learned scales are overwritten by the calibrated ones, and weights with chosen codes move to where
        those come out (`place_latent_weights`). A kind that has not started stays off. A scheme with other
        groups or mode brings another quantizer: make an optimizer, and load a state dict, afterwards.

        Raises:
            PlacementError: a group is unknown, the width is not one of its own, or its range is missing;
                nothing was changed.
        """
        self._set.apply(assignment)
        place_latent_weights(self.model, self.setup, self.ranges, self.all_quantizations, assignment)
        self._follow_schedule()
        self._notify("apply", assignment=assignment)

    apply_new_quantizer_setup = apply

    def init_range(
        self,
        range_init_params: Mapping[str, Any] | None = None,
        *,
        points: Iterable[str] | None = None,
        force: bool = False,
    ) -> RangeReport:
        """Calibrate anew, for the weights as they are now; switches and `requires_grad` stay as found.

        Args:
            range_init_params: settings as in `initializer.range`; None: those of build time.
            points: quantizer ids; None: all of the assignment.
            force: also those whose ranges were loaded from a state.

        Raises:
            PlacementError: no data is known, or a name is no quantizer of the assignment.
        """
        schemes = self._set.schemes()
        names = list(schemes) if points is None else list(points)
        for name in names:
            if name not in schemes:
                raise PlacementError(f"init_range names '{name}', which the assignment does not quantize.")
        loaded = set() if force else self._loaded
        report = RangeReport(
            initialised=tuple(name for name in names if name not in loaded),
            loaded=tuple(name for name in names if name in loaded),
        )
        if report.initialised:
            params = self._range_params if range_init_params is None else range_init_params
            ranges = self.initializer.find_ranges(self.model, self.setup, report.initialised, params)
            self._set.take_ranges(ranges, report.initialised)
        self._notify("init_range", report=report)
        return report

    def init_precision(
        self,
        precision_init_type: str,
        precision_init_params: Mapping[str, Any] | None = None,
        precision_constraints: Mapping[str, Iterable[int]] | None = None,
    ) -> BitAssignment:
        """Choose a width for every group; the controller is unchanged until the result is applied.

        Args:
            precision_init_type: "hawq", "manual" or "search".
            precision_init_params: see docs/from-nncf.md for the keys of each type.
            precision_constraints: quantizer id, layer or glob → widths it may take.

        Raises:
            ConfigError: the type or a key is unknown, or a value does not fit.
            PlacementError: no width is left for a group, or a scope fits nothing.
            BudgetError: no assignment meets the ratio or the budget; told before anything is computed.
        """
        request = read_request(precision_init_type, precision_init_params or {})
        bits = request.bits if isinstance(request, MeasuredRequest) else None
        setup = narrow(self.setup, bits, precision_constraints or {})
        if isinstance(request, ManualRequest):
            if request.bitwidth_per_scope is None:
                raise ConfigError("init_precision('manual') needs the key 'bitwidth_per_scope'.")
            return assign_by_scope(setup, self.assignment, read_entries(request.bitwidth_per_scope))
        return self.initializer.find_precision(self.model, setup, self.ranges, request)

    def adapt_batch_norm(self) -> None:
        """Take BatchNorm statistics anew, where the initializer is set to, with the quantizers as they are.

        Nothing is done while no quantizer is on: the float model's own statistics are right then.
        """
        if self._set.enabled():
            self.initializer.adapt_batch_norm(self.model)

    def bitwidth_per_scope(self) -> list[list[Any]]:
        """The present widths in NNCF's file format, `[[bits, scope], …]`; "manual" reads it."""
        return to_entries(self.setup, self.assignment)

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
        return self._set.stage()

    @property
    def compression_rate(self) -> float:
        """NNCF's compression ratio R of the present widths; all at 8 bits gives 1."""
        return compression_ratio(self.setup, self.assignment)

    def disable_scheduler(self) -> None:
        """Quantize everything now, and only count from here on."""
        self.scheduler = Scheduler()
        self._set.switch(self._set.schemes(), True)

    def distil(
        self,
        teacher: nn.Module,
        *,
        weight: float = 1.0,
        blocks: Sequence[str] = (),
        feature_weight: float = 1.0,
        divergence: Objective | None = None,
    ) -> None:
        """Make `loss` the distance to a float teacher; see `DistillationLoss` for the arguments."""
        self.loss.close()
        self.loss = DistillationLoss(
            self.model,
            teacher,
            weight=weight,
            blocks=blocks,
            feature_weight=feature_weight,
            divergence=divergence,
        )

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:
        """Counts, bit histograms, costs and R; printed, a table.

        Args:
            quickly_collected_only: leave out `memory` and `quantized_edges`, which walk the setup.
        """
        statistics = count(self.all_quantizations, self.setup, self.assignment, self._potential)
        statistics["compression_stage"] = self.compression_stage().name
        if not quickly_collected_only:
            statistics["memory"] = memory(self.setup, self.assignment)
            statistics["quantized_edges"] = quantized_edges(self.model, self.setup, self.all_quantizations)
        return statistics

    def prepare_for_export(self) -> ExportReadiness:
        """Fix all ranges, and tell what is left out and what cannot be exported."""
        return check_exportable(self.all_quantizations)

    def distributed(self) -> None:
        """Give all ranks the widths, ranges, signs and switches of rank 0, and verify that they are equal.

        Raises:
            ConfigError: there is no process group.
            PlacementError: the ranks hold different setups.
            RunError: a quantizer differs afterwards.
        """
        self._set.broadcast()

    def get_compression_state(self) -> dict[str, Any]:
        """Everything but learned values (those are in the model's state dict), as plain JSON values."""
        return ControllerState(
            setup=self.setup,
            assignment=self.assignment,
            ranges=self.ranges,
            scheduler=self.scheduler.get_state(),
            loss=self.loss.get_state(),
            compression_stage=self.compression_stage().name,
            frozen=tuple(self.frozen_ranges()),
            enabled=tuple(self._set.enabled()),
        ).to_json()

    get_state = get_compression_state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put a state back, before or after the model's state dict; learned ranges of equal schemes are kept.

        A state dict fits only where the schemes have its groups and modes: load it afterwards if they change.

        Raises:
            StorageError: it is damaged, or of another setup; names the quantizer. Nothing was changed.
        """
        saved = ControllerState.from_json(state)
        saved.check_setup(self.setup)
        self._set.restore(saved.assignment, saved.ranges, saved.frozen)
        self._loaded = set(self._set.schemes())
        self._follow_schedule()
        self.loss.load_state(saved.loss)
        if not self.scheduler.staged:  # else the epoch says what is on
            self._set.switch_to(saved.enabled)
        self.scheduler.load_state(saved.scheduler)
        saved.compare_stage(self.compression_stage().name)

    def frozen_ranges(self) -> list[str]:
        """Quantizers whose range parameters the user froze."""
        return self._set.frozen()

    def strip_model(
        self,
        model: nn.Module | None = None,
        do_copy: bool = False,
        form: Literal["integer", "float"] = "integer",
    ) -> nn.Module:
        """Replace fake-quantizers by what they stand for; outputs in eval mode stay equal bit for bit.

        Args:
            model: the model to strip; default the controller's own. A wrapper of
                `DistributedDataParallel` or `torch.compile` is taken off.
            do_copy: strip a copy and leave the model trainable.
            form: "integer" keeps weights as int8 codes with float32 scales that are multiplied in the
                forward, no float weight left; "float" gives plain parameters on their grid, which pickle.

        Returns:
            The stripped module, in eval mode; activation quantizers are fixed.

        Raises:
            PlacementError: the model is not the one this controller was created for, or was stripped before.
        """
        if model is not None:
            check_same(model, self.model)
        if not do_copy:
            self.loss.close()
        return strip(self.model, self.setup, do_copy=do_copy, form=form)

    def _switch(self, kind: Kind, enabled: bool) -> None:
        self._set.switch(self._set.names(kind), enabled)
        self._notify("switch", kind=kind, enabled=enabled)

    def _make_scheduler(self) -> Scheduler:
        params = read_schedule(self.config)
        if params is None:
            return Scheduler()
        return StagedScheduler(params, self._switch, self._initialise_kind, self._adapt_after_start)

    def _follow_schedule(self) -> None:
        if isinstance(self.scheduler, StagedScheduler):
            self.scheduler.sync()

    def _initialise_kind(self, kind: Kind) -> None:
        # Without data the ranges of build time stay; they are calibrated ones.
        if not isinstance(self.initializer, NoInitializer):
            self.init_range(points=self._set.names(kind), force=True)

    def _adapt_after_start(self) -> None:
        # What the layers before a BatchNorm give has changed at a stroke.
        if not isinstance(self.initializer, NoInitializer):
            self.adapt_batch_norm()

    def _notify(self, event: str, **details: Any) -> None:
        if self._observer is not None:
            self._observer(event, details)
