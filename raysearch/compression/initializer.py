"""What a controller's ranges and widths are found by: the stages, in this process, on the user's data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysearch.calibration import adapt_batch_norm, apply_batch_norm, calibrate, choose_rules
from raysearch.cluster.pool import LocalPool
from raysearch.config import CalibrationConfig
from raysearch.config.precision import HawqRequest, PrecisionRequest, SearchRequest
from raysearch.errors import ConfigError, DataError
from raysearch.evaluation import (
    DataSet,
    Divergence,
    Forward,
    Loss,
    Objective,
    Replica,
    default_forward,
    materialise,
    output_tensor,
)
from raysearch.evaluation.batches import tensors_of
from raysearch.evaluation.divergence import check_outputs
from raysearch.evaluation.fit_divergence import DENSE_NDIM, Wish, fit_divergence
from raysearch.evaluation.forward import frozen_eval
from raysearch.evaluation.half_precision import in_float32
from raysearch.evaluation.model.copies import private_copy
from raysearch.evaluation.outputs import named_outputs
from raysearch.evaluation.sampling import random_shards
from raysearch.records import (
    BitAssignment,
    Option,
    QuantizerGroup,
    QuantizerSetup,
    RangeTable,
    parse_budgets,
)
from raysearch.records.typed_json import parsed, shown
from raysearch.search import Race, check_budgets, check_ratio, search_assignment, solve_ratio
from raysearch.seeding import derive_seed
from raysearch.sensitivity import measure_sensitivity
from raysearch.sensitivity.perturbation import measure_perturbations
from raysearch.sensitivity.stopping import trace_warnings
from raysearch.sensitivity.traces import measure_traces
from raysearch.simulation import Judgement, MeasuredObjective
from raysearch.unknown_keys import refuse_unknown

CHANCE = 0.98
"""Share of the greatest entropy above which outputs count as guesses."""


@dataclass
class ModelInitializer:
    """Runs calibration, sensitivity and search on a float copy of a model; see `controller.Initializer`.

    Attributes:
        model: the float copy; it is given the present weights before every use.
        data: what is calibrated on: a data set, a loader or batches; None: nothing is known.
        forward: (model, batch) → outputs.
        loss: (outputs, batch) → scalar, for traces of the task's loss.
        settings: how ranges are found where `init_range` is given nothing else, the samples of one forward,
            and the samples that BatchNorm is adapted on (0: its statistics are left alone).
    """

    model: nn.Module
    data: Any
    forward: Forward = default_forward
    loss: Loss | None = None
    settings: CalibrationConfig = field(default_factory=CalibrationConfig)

    def find_ranges(
        self,
        model: nn.Module,
        setup: QuantizerSetup,
        points: Collection[str],
        params: Mapping[str, Any] | None,
    ) -> RangeTable:
        """Ranges of some quantizers at every width their groups admit; see `Initializer.find_ranges`.

        Args:
            model: the quantized model; its weights as they are now are calibrated.
            setup: all quantizers of the model.
            points: ids of the quantizers to calibrate.
            params: settings as in NNCF's `initializer.range`; None: the initializer's own.

        Raises:
            ConfigError: a key of `params` is unknown, or an estimator does not exist.
            DataError: there is no data.
        """
        self._take_weights(model)
        settings = _range_settings(self.settings, params or {})
        rules = choose_rules(setup, settings)
        part = _part_of(setup, set(points))
        num_samples = int((params or {}).get("num_init_samples", settings.num_samples))
        replica, num_shards = self._replica(num_samples)
        # By id: a scope that fits one quantizer may fit none of those that are calibrated anew.
        overrides = {name: rules[name].estimator for name in part.points}
        settings = settings.model_copy(update={"overrides": overrides})
        return calibrate(part, LocalPool(replica, deterministic=False), num_shards, settings)

    def find_precision(
        self, model: nn.Module, setup: QuantizerSetup, ranges: RangeTable, request: PrecisionRequest
    ) -> BitAssignment:
        """The assignment of "hawq" or "search"; see `Initializer.find_precision`.

        Args:
            model: the quantized model; its weights as they are now are judged.
            setup: all quantizers, and the widths that are left to each group.
            ranges: their calibrated ranges.
            request: "hawq" or "search" with its parameters.

        Raises:
            BudgetError: the ratio or the budgets cannot be met; told before anything is computed.
            ConfigError: there is no budget.
            DataError: there is no data.
        """
        if isinstance(request, HawqRequest):
            check_ratio(setup, request.compression_ratio, request.bitwidth_assignment_mode)
            self._take_weights(model)
            return self._solve_hawq(setup, ranges, request)
        if isinstance(request, SearchRequest):
            if not request.budget:
                raise ConfigError("init_precision('search') needs the key 'budget', such as 'avg_bits<=4'.")
            check_budgets(parse_budgets(request.budget), setup)
            self._take_weights(model)
            return self._search(setup, ranges, request)
        raise ConfigError(f"init_precision('{request.kind}') is not measured; known: hawq, search.")

    def adapt_batch_norm(self, model: nn.Module) -> None:
        """Take BatchNorm statistics anew, with the model as it is quantized now, where that was set.

        Raises:
            DataError: there is no data.
        """
        num_samples = self.settings.batch_norm_samples
        if not num_samples:
            return
        if self.data is None:
            raise DataError("no data is known to adapt BatchNorm on; give create_compressed_model data.")
        batches = materialise(self.data, num_samples, self.settings.shard_size, "BatchNorm adaptation")
        apply_batch_norm(model, adapt_batch_norm(model, batches, self.forward, num_samples))

    def _take_weights(self, model: nn.Module) -> None:
        """Give the float copy the present weights and buffers of a quantized model."""
        present: dict[str, torch.Tensor] = {}
        for name, value in model.state_dict().items():
            if isinstance(value, torch.Tensor):
                # A parametrized weight is kept as `parametrizations.weight.original`.
                plain = name.replace(".original", "").replace("parametrizations.", "")
                present[plain] = value.detach()
        own = self.model.state_dict()
        self.model.load_state_dict({name: present.get(name, value) for name, value in own.items()})

    def _solve_hawq(self, setup: QuantizerSetup, ranges: RangeTable, request: HawqRequest) -> BitAssignment:
        replica, num_shards = self._sensed(request.num_data_points)
        pool = LocalPool(replica, deterministic=False)
        if request.traces is None:
            traces = self._measure_traces(setup, pool, num_shards, request)
        else:
            traces = read_traces(request.traces, setup)
        negative = [name for name, value in traces.items() if value < 0]
        if negative:
            warnings.warn(f"negative traces count as 0: {', '.join(negative)}", stacklevel=4)
        # A floor far below every trace: among equals the wider width is then the better one.
        floor = 1e-9 * max((value for value in traces.values() if value > 0), default=1.0)
        errors = measure_perturbations(setup, ranges, pool)
        omegas: dict[Option, float] = {}
        for group in setup.groups.values():
            if setup.group_kind(group.id) == "weight":
                for scheme in group.schemes:
                    terms = (max(traces[name], floor) * errors[name, scheme] for name in group.points)
                    omegas[group.id, scheme] = sum(terms)
        return solve_ratio(setup, omegas, request.compression_ratio, request.bitwidth_assignment_mode)

    def _measure_traces(
        self, setup: QuantizerSetup, pool: LocalPool, num_shards: int, request: HawqRequest
    ) -> dict[str, float]:
        settings = request.sensitivity
        measured = measure_traces(setup, pool, num_shards, settings, seed=request.seed)
        for text in trace_warnings(measured, settings.relative_error):
            warnings.warn(text, stacklevel=5)
        return {name: trace.value for name, trace in measured.items()}

    def _search(self, setup: QuantizerSetup, ranges: RangeTable, request: SearchRequest) -> BitAssignment:
        search, seed = request.search, request.seed
        replica, num_shards = self._sensed(request.num_data_points)
        pool = LocalPool(replica, deterministic=False)
        table = measure_sensitivity(
            setup,
            ranges,
            lambda part: pool,
            {DataSet.CALIBRATION: num_shards},
            request.sensitivity,
            seed=seed,
        )
        # In random order, as a race needs them: its first samples stand for all.
        drawn, per_sample = random_shards(
            replica.shards[DataSet.CALIBRATION],
            0,
            self.settings.shard_size,
            derive_seed(seed, "search-samples"),
        )
        replica.shards = {**replica.shards, DataSet.SEARCH: drawn}
        measure = MeasuredObjective(setup, ranges, pool, Judgement(per_sample=per_sample))
        result = search_assignment(
            table,
            setup,
            parse_budgets(request.budget),
            Race(measure, len(drawn), search.racing_error),
            search,
            seed=seed,
        )
        return result.best.assignment

    def _sensed(self, num_samples: int) -> tuple[Replica, int]:
        """The replica and its number of shards, with a warning where nothing can be sensed."""
        replica, num_shards = self._replica(num_samples)
        if replica.divergence.kind == "kl":
            outputs = next(tensors_of(replica.float_outputs(DataSet.CALIBRATION, 0)))[1]
            p = outputs.double().softmax(-1)
            entropy = float(-(p * p.clamp_min(1e-300).log()).sum(-1).mean())
            if entropy > CHANCE * math.log(outputs.shape[-1]):
                warnings.warn(
                    "the float model's outputs are at chance level, so the measured sensitivity is noise; "
                    "train it first",
                    stacklevel=5,
                )
        return replica, num_shards

    def _replica(self, num_samples: int) -> tuple[Replica, int]:
        if self.data is None:
            raise DataError("no data is known to calibrate on; give create_compressed_model(..., data=...).")
        shards = materialise(self.data, num_samples, self.settings.shard_size, "calibration")
        divergence = Divergence("kl")
        model, samples = in_float32(private_copy(self.model), {DataSet.CALIBRATION: shards})
        first = next(model.parameters(), None)
        device = "cpu" if first is None else str(first.device)
        replica = Replica(model, self.forward, samples, divergence, self.loss, device)
        replica.place()
        replica.divergence = _fit(replica, divergence)
        replica.cache.float_outputs.by_shard.clear()
        return replica, len(shards)


def _fit(replica: Replica, divergence: Divergence) -> Objective:
    """The objective for the model's outputs: all of several; of one "kl" for [N, C], else "mse"."""
    batch = replica.shard(DataSet.CALIBRATION, 0)
    with frozen_eval(replica.model), torch.no_grad():
        outputs = replica.forward(replica.model, batch)
    first = output_tensor(outputs)
    if len(named_outputs(outputs)) > 1:
        is_map = first.ndim >= DENSE_NDIM
        return fit_divergence(outputs, batch, Wish("nmse" if is_map else "auto")).divergence
    return Divergence("mse") if first.ndim != 2 or check_outputs(first, divergence) else divergence


def _range_settings(settings: CalibrationConfig, params: Mapping[str, Any]) -> CalibrationConfig:
    """The settings with what NNCF's `initializer.range` sets: one estimator for all, and percentiles."""
    refuse_unknown(params, ("num_init_samples", "type", "params"), "initializer.range")
    percentiles = dict(params.get("params", {}))
    refuse_unknown(percentiles, ("min_percentile", "max_percentile"), "initializer.range.params")
    low, high = settings.percentiles
    bounds = (percentiles.get("min_percentile", low), percentiles.get("max_percentile", high))
    changes: dict[str, Any] = {"percentiles": bounds}
    if "type" in params:
        changes.update(weights=params["type"], activations=params["type"], overrides={})
    # Not validated here: `choose_rules` names an estimator that does not exist.
    return settings.model_copy(update=changes)


def _part_of(setup: QuantizerSetup, names: Collection[str]) -> QuantizerSetup:
    """The setup of some quantizers alone, at all widths of their groups."""
    points = {name: point for name, point in setup.points.items() if name in names}
    groups: dict[str, QuantizerGroup] = {}
    for group in setup.groups.values():
        members = tuple(name for name in group.points if name in points)
        if members:
            groups[group.id] = QuantizerGroup(group.id, members, group.schemes)
    return QuantizerSetup(points, groups)


def read_traces(source: Mapping[str, float] | Path, setup: QuantizerSetup) -> dict[str, float]:
    """Weight → trace, as it is given or from a JSON file.

    Args:
        source: of the traces.
        setup: every weight of which needs one.

    Raises:
        ConfigError: the file cannot be read, or a trace is missing, unknown or no number.
    """
    values: Any = source
    if isinstance(source, Path):
        try:
            values = parsed(source.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"the file of traces '{source}' cannot be read: {error!s:.200}.") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"traces is {shown(values)}; give a mapping of weights to numbers.")
    names = setup.of_kind("weight")
    refuse_unknown(values, names, "traces")
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(f"traces has no value for {', '.join(missing)}.")
    for name in names:
        if not isinstance(values[name], int | float) or not math.isfinite(values[name]):
            raise ConfigError(f"traces has {shown(values[name])} for '{name}'; give a finite number.")
    return {name: float(values[name]) for name in names}
