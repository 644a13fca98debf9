"""What a controller asks the stages for: ranges and precision, in this process, on the user's data."""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysearch.calibration import adapt_batch_norm, apply_batch_norm, calibrate, choose_rules
from raysearch.cluster.pool import LocalPool
from raysearch.controller import QuantizationController, refuse_unknown
from raysearch.errors import ConfigError, DataError
from raysearch.evaluation import (
    DataSet,
    Divergence,
    Forward,
    Loss,
    Replica,
    default_forward,
    materialise,
    output_tensor,
)
from raysearch.evaluation.divergence import check_outputs
from raysearch.evaluation.sampling import random_shards
from raysearch.records import (
    BitAssignment,
    QuantizerGroup,
    QuantizerSetup,
    RangeTable,
    parse_budgets,
)
from raysearch.search import Race, check_budgets, check_ratio, search_assignment, solve_ratio
from raysearch.seeding import derive_seed
from raysearch.sensitivity import measure_sensitivity
from raysearch.sensitivity.perturbation import measure_perturbations
from raysearch.sensitivity.stopping import trace_warnings
from raysearch.sensitivity.traces import measure_traces
from raysearch.simulation import Judgement, MeasuredObjective

CHANCE = 0.98
"""Share of the greatest entropy above which outputs count as guesses."""


@dataclass
class ModelStages:
    """Runs calibration, sensitivity and search for one controller.

    Attributes:
        model: a float copy of the model; it is given the present weights before every use.
        data: what is calibrated on: a data set, a loader or batches; None: nothing is known.
        forward: (model, batch) → outputs.
        loss: (outputs, batch) → scalar, for traces of the task's loss.
        ranges: NNCF's `initializer.range`: `num_init_samples`, `type`, `params`.
        shard_size: samples in one forward.
        norm_samples: how many samples BatchNorm statistics are adapted on; 0: they are left alone.
        estimators: options of `calibrate` that hold where the `range` settings name no type.
    """

    model: nn.Module
    data: Any
    forward: Forward = default_forward
    loss: Loss | None = None
    shard_size: int = 32
    norm_samples: int = 0
    estimators: Mapping[str, Any] = field(default_factory=dict)

    def find_ranges(
        self, controller: QuantizationController, points: Iterable[str], params: Mapping[str, Any] | None
    ) -> RangeTable:
        """Ranges of some quantizers at every width their groups admit."""
        self.refresh(controller)
        wanted = set(points)
        kept = {n: p for n, p in controller.setup.points.items() if n in wanted}
        groups = {
            name: QuantizerGroup(name, members, group.bit_widths)
            for name, group in controller.setup.groups.items()
            if (members := tuple(p for p in group.points if p in kept))
        }
        return self.calibrate(QuantizerSetup(kept, groups), params or {}, controller.setup)

    def calibrate(
        self, setup: QuantizerSetup, params: Mapping[str, Any], whole: QuantizerSetup | None = None
    ) -> RangeTable:
        """Ranges of a setup on the float model; `params` as in `initializer.range`.

        Args:
            setup: the points to calibrate.
            params: samples, type and percentiles; a type given here is that of every point.
            whole: the setup that scopes of overrides are read against, where `setup` is a part of it.
        """
        options = self._range_options(whole or setup, params)
        options["overrides"] = {n: kind for n, kind in options["overrides"].items() if n in setup.points}
        replica, shards = self._replica(int(params.get("num_init_samples", 256)))
        return calibrate(setup, LocalPool(replica, deterministic=False), shards, **options)

    def find_precision(
        self, kind: str, controller: QuantizationController, setup: QuantizerSetup, params: Mapping[str, Any]
    ) -> BitAssignment:
        """The assignment of "hawq" or "search" within a setup's widths."""
        return (self._hawq if kind == "hawq" else self._search)(controller, setup, dict(params))

    def adapt_norms(self, controller: QuantizationController) -> None:
        """Take the controller's BatchNorm statistics anew, with its quantizers as they are switched.

        Nothing is done while no quantizer is on: the float model's own statistics are right then.
        """
        if self.norm_samples and any(q.enabled for q in controller.all_quantizations.values()):
            if self.data is None:
                raise DataError("no data is known to adapt BatchNorm on; give create_compressed_model data.")
            batches = materialise(self.data, self.norm_samples, self.shard_size, "BatchNorm adaptation")
            found = adapt_batch_norm(controller.model, batches, self.forward, self.norm_samples)
            apply_batch_norm(controller.model, found)

    def refresh(self, controller: QuantizationController) -> None:
        """Give the float copy the present weights and buffers of the controller's model."""
        state = {}
        for name, value in controller.model.state_dict().items():
            plain = name.replace(".original", "").replace("parametrizations.", "")
            if isinstance(value, torch.Tensor):
                state[plain] = value.detach()
        own = self.model.state_dict()
        self.model.load_state_dict({name: state.get(name, value) for name, value in own.items()})

    def _range_options(self, setup: QuantizerSetup, params: Mapping[str, Any]) -> dict[str, Any]:
        refuse_unknown(params, ("num_init_samples", "type", "params"), "initializer.range")
        percentiles = dict(params.get("params", {}))
        refuse_unknown(percentiles, ("min_percentile", "max_percentile"), "initializer.range.params")
        options: dict[str, Any] = {"weights": "mse", "activations": "mse", "overrides": {}}
        options.update(self.estimators)
        if "type" in params:
            options.update(weights=params["type"], activations=params["type"], overrides={})
        low, high = options.get("percentiles", (0.1, 99.9))
        bounds = percentiles.get("min_percentile", low), percentiles.get("max_percentile", high)
        rules = choose_rules(setup, options["weights"], options["activations"], options["overrides"])
        # By id: a scope that fits one quantizer may fit none of those that are calibrated anew.
        chosen = {name: rule.estimator for name, rule in rules.items()}
        return {**options, "overrides": chosen, "percentiles": bounds}

    def _hawq(
        self, controller: QuantizationController, setup: QuantizerSetup, params: dict[str, Any]
    ) -> BitAssignment:
        target = float(params.get("compression_ratio", 1.5))
        mode = params.get("bitwidth_assignment_mode", "liberal")
        if mode not in ("liberal", "strict"):
            raise ConfigError(f"bitwidth_assignment_mode is {mode!r}; known: liberal, strict.")
        check_ratio(setup, target, mode)
        self.refresh(controller)
        replica, shards = self._sensed(int(params.get("num_data_points", 100)))
        pool = LocalPool(replica, deterministic=False)
        given = params.get("traces")
        if given is not None:
            traces = _given_traces(given, setup)
        else:
            settings = _trace_settings(params, "iter_number")
            measured = measure_traces(
                setup,
                pool,
                shards,
                loss=params.get("trace_loss", "divergence"),
                seed=int(params.get("seed", 0)),
                **settings,
            )
            for text in trace_warnings(measured, settings["relative_error"]):
                warnings.warn(text, stacklevel=4)
            traces = {name: trace.value for name, trace in measured.items()}
        negative = [name for name, value in traces.items() if value < 0]
        if negative:
            warnings.warn(f"negative traces count as 0: {', '.join(negative)}", stacklevel=4)
        # A floor far below every trace: among equals the wider width is then the better one.
        floor = 1e-9 * max((v for v in traces.values() if v > 0), default=1.0)
        errors = measure_perturbations(setup, controller.ranges, pool)
        omegas = {
            (g.id, bits): sum(max(traces[p], floor) * errors[p, bits] for p in g.points)
            for g in setup.groups.values()
            if setup.group_kind(g.id) == "weight"
            for bits in g.bit_widths
        }
        return solve_ratio(setup, omegas, target, mode)

    def _search(
        self, controller: QuantizationController, setup: QuantizerSetup, params: dict[str, Any]
    ) -> BitAssignment:
        texts = params.pop("budget", None)
        if texts is None:
            raise ConfigError("init_precision('search') needs the key 'budget', such as 'avg_bits<=4'.")
        budgets = parse_budgets([texts] if isinstance(texts, str) else texts)
        check_budgets(budgets, setup)
        self.refresh(controller)
        seed = int(params.get("seed", 0))
        replica, shards = self._sensed(int(params.pop("num_data_points", 256)))
        pool = LocalPool(replica, deterministic=False)
        table = measure_sensitivity(
            setup,
            controller.ranges,
            lambda part: pool,
            shards,
            **_trace_settings(params, "max_draws"),
            trace_loss=params.pop("trace_loss", "divergence"),
            seed=seed,
        )
        # In random order, as a race needs them: its first samples stand for all.
        drawn, per_sample = random_shards(
            replica.shards[DataSet.CALIBRATION], 0, self.shard_size, derive_seed(seed, "search-samples")
        )
        replica.shards = {**replica.shards, DataSet.SEARCH: drawn}
        measure = MeasuredObjective(setup, controller.ranges, pool, Judgement(per_sample=per_sample))
        race = Race(measure, len(drawn), float(params.pop("racing_error", 0.05)))
        return search_assignment(table, setup, budgets, race, **params).best.assignment

    def _sensed(self, num_samples: int) -> tuple[Replica, int]:
        """The replica, with a warning where nothing can be sensed."""
        replica, shards = self._replica(num_samples)
        outputs = replica.float_outputs(DataSet.CALIBRATION, 0)
        if replica.divergence.kind == "kl":
            p = outputs.double().softmax(-1)
            entropy = float(-(p * p.clamp_min(1e-300).log()).sum(-1).mean())
            if entropy > CHANCE * math.log(outputs.shape[-1]):
                warnings.warn(
                    "the float model's outputs are at chance level, so the measured sensitivity is noise; "
                    "train it first",
                    stacklevel=5,
                )
        return replica, shards

    def _replica(self, num_samples: int) -> tuple[Replica, int]:
        if self.data is None:
            raise DataError("no data is known to calibrate on; give create_compressed_model(..., data=...).")
        shards = materialise(self.data, num_samples, self.shard_size, "calibration")
        divergence = Divergence("kl")
        replica = Replica(
            copy.deepcopy(self.model), self.forward, {DataSet.CALIBRATION: shards}, divergence, self.loss
        )
        outputs = output_tensor(replica.float_outputs(DataSet.CALIBRATION, 0))
        if outputs.ndim != 2 or check_outputs(outputs, divergence):
            replica.divergence = Divergence("mse")
        return replica, len(shards)


def _trace_settings(params: dict[str, Any], draws_key: str) -> dict[str, Any]:
    return {
        "estimator": params.pop("estimator", "ggn"),
        "relative_error": float(params.pop("relative_error", 0.05)),
        "max_draws": max(2, int(params.pop(draws_key, 256))),
    }


def _given_traces(given: Any, setup: QuantizerSetup) -> dict[str, float]:
    if isinstance(given, str | Path):
        given = json.loads(Path(given).read_text())
    names = setup.of_kind("weight")
    refuse_unknown(given, names, "traces")
    missing = [name for name in names if name not in given]
    if missing:
        raise ConfigError(f"traces has no value for {', '.join(missing)}.")
    return {name: float(given[name]) for name in names}
