"""The QuantizationController: holds a model's quantizers, sets their widths, strips them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from raysearch.controller.by_hand import NoStages
from raysearch.controller.distribution import broadcast_quantizers
from raysearch.controller.manual import assign_by_scope, read_entries, to_entries
from raysearch.controller.precision import check_request, narrow
from raysearch.controller.quantizer_set import HeldQuantizers
from raysearch.controller.readiness import ExportReadiness, check_exportable
from raysearch.controller.scheduler import Kind
from raysearch.controller.state import put_state, take_state
from raysearch.controller.statistics import Statistics, count, memory, quantized_edges
from raysearch.controller.stripped import strip
from raysearch.errors import ConfigError, PlacementError
from raysearch.records import BitAssignment, RangeTable


@dataclass(frozen=True)
class RangeReport:
    """Quantizer ids that `init_range` initialised, and those that kept their loaded ranges."""

    initialised: tuple[str, ...]
    kept: tuple[str, ...]


class QuantizationController(HeldQuantizers):
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
        stages: finds ranges and widths; `create_compressed_model` supplies it.

    Attributes:
        model: the quantized model.
        setup: where the quantizers are.
        all_quantizations: quantizer id → quantizer, weights first.
        assignment: the bit assignment in force.
        scheduler: counts steps and epochs; starts kinds at their epochs when it is staged.
        loss: scalar to add to the task's loss; 0 unless `distil` was called.
    """

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
        widths = self.assignment.per_point(self.setup)
        names = list(widths) if points is None else list(points)
        for name in names:
            if name not in widths:
                raise PlacementError(f"init_range names '{name}', which the assignment does not quantize.")
        kept = () if force else tuple(n for n in names if n in self._loaded)
        wanted = tuple(n for n in names if n not in kept)
        if wanted:
            params = self._range_params if range_init_params is None else range_init_params
            found = self.stages.find_ranges(self, wanted, params)
            self.ranges = RangeTable({**self.ranges.ranges, **found.ranges})
            for name in wanted:
                self.all_quantizations[name].set_range(widths[name], found[name, widths[name]])
        report = RangeReport(wanted, kept)
        self._tell("init_range", report=report)
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
            ConfigError: the type or a key is unknown.
            PlacementError: no width is left for a group, or a scope fits nothing.
            BudgetError: no assignment meets the ratio or the budget; told before anything is computed.
        """
        params = dict(precision_init_params or {})
        check_request(precision_init_type, params)
        setup = narrow(self.setup, params.pop("bits", None), precision_constraints or {})
        if precision_init_type == "manual":
            if "bitwidth_per_scope" not in params:
                raise ConfigError("init_precision('manual') needs the key 'bitwidth_per_scope'.")
            return assign_by_scope(setup, self.assignment, read_entries(params["bitwidth_per_scope"]))
        return self.stages.find_precision(precision_init_type, self, setup, params)

    def bitwidth_per_scope(self) -> list[list[Any]]:
        """The present widths in NNCF's file format, `[[bits, scope], …]`; "manual" reads it."""
        return to_entries(self.setup, self.assignment)

    def statistics(self, quickly_collected_only: bool = False) -> Statistics:
        """Counts, bit histograms, costs and R; printed, a table.

        Args:
            quickly_collected_only: leave out `memory` and `quantized_edges`, which walk the setup.
        """
        found = count(self.all_quantizations, self.setup, self.assignment, self._potential)
        found["compression_stage"] = self.compression_stage().name
        if not quickly_collected_only:
            found["memory"] = memory(self.setup, self.assignment)
            found["quantized_edges"] = quantized_edges(self.model, self.setup, self.all_quantizations)
        return found

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
        self.assignment = broadcast_quantizers(self.all_quantizations, self.setup, self.assignment)
        self._switches.refresh()

    def get_compression_state(self) -> dict[str, Any]:
        """Everything but learned values (those are in the model's state dict), as plain JSON values."""
        return take_state(self)

    get_state = get_compression_state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put a state back, before or after the model's state dict.

        Raises:
            StorageError: it is damaged, or of another setup; names the quantizer. Nothing was changed.
        """
        put_state(self, state)

    def frozen_ranges(self) -> list[str]:
        """Quantizers whose range parameters the user froze."""
        return self._switches.frozen()

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
        wrapped = (getattr(model, name, None) for name in ("module", "_orig_mod"))
        if model is not None and self.model is not model and all(m is not self.model for m in wrapped):
            raise PlacementError(
                f"strip_model was given a {type(model).__name__} that this controller was not created for; "
                f"pass the model that create_controller changed, or none."
            )
        if not do_copy:
            self.loss.close()
        return strip(self.model, self.setup, do_copy=do_copy, form=form)

    def _start(self, kind: Kind) -> None:
        # Without data the ranges of build time stay; they are calibrated ones.
        if not isinstance(self.stages, NoStages):
            names = [n for n in self.assignment.per_point(self.setup) if self.setup.points[n].kind == kind]
            self.init_range(points=names, force=True)

    def _adapt(self) -> None:
        # What the layers before a BatchNorm give has changed at a stroke.
        if not isinstance(self.stages, NoStages):
            self.stages.adapt_norms(self)
