"""The sensitivity stage: traces, perturbations and responses, joined into one table."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from raysearch.cluster.pool import Pool
from raysearch.config.sensitivity import TraceLoss
from raysearch.evaluation import DataSet
from raysearch.records import OptionEffect, QuantizerSetup, RangeTable, SensitivityTable, Trace
from raysearch.sensitivity.estimators import TraceEstimator
from raysearch.sensitivity.perturbation import measure_perturbations
from raysearch.sensitivity.responses import SKETCH_SIZE, measure_responses
from raysearch.sensitivity.stopping import trace_warnings
from raysearch.sensitivity.traces import measure_traces
from raysearch.simulation import CACHE_BYTES


def measure_sensitivity(
    setup: QuantizerSetup,
    ranges: RangeTable,
    pool: Callable[[str], Pool],
    num_shards: int,
    *,
    estimator: str | TraceEstimator = "ggn",
    relative_error: float = 0.05,
    max_draws: int = 256,
    draw_chunk: int | None = None,
    option_chunk: int = 8,
    sketch_size: int = SKETCH_SIZE,
    cache_bytes: int = CACHE_BYTES,
    trace_loss: TraceLoss = "divergence",
    seed: int = 0,
    fingerprint: str = "",
    num_trace_shards: int = 0,
    importance_draws: int = 0,
) -> SensitivityTable:
    """Measure the float model once, for every budget to come.

    Cost: per calibration shard the estimator's draws, each weight's until its error over probes is small
    enough, and one forward an option.

    Args:
        setup: points, groups and their widths.
        ranges: calibrated ranges.
        pool: the fleet by name of the part ("traces", "perturbations", "responses"), so that units of
            each part can be kept apart on disk.
        num_shards: calibration shards.
        estimator: how traces are drawn, by name or an object.
        relative_error: a weight's draws end when its standard error over probes is this share of its trace.
        max_draws: the most draws per weight and shard.
        draw_chunk: draws in a unit; part of the method, not of the cluster. None: what suits the estimator.
        option_chunk: options in a unit.
        sketch_size: values kept of a sample's response; see `measure_responses`.
        cache_bytes: what a worker may keep between forwards.
        trace_loss: "divergence" (label-free) or "loss" (the task's).
        seed: the run's seed.
        fingerprint: what the table is of; stored with it.
        num_trace_shards: shards of the replica's data set "traces", where traces have one of their own.
        importance_draws: see `measure_traces`.
    """
    traces = measure_traces(
        setup,
        pool("traces"),
        num_trace_shards or num_shards,
        estimator=estimator,
        relative_error=relative_error,
        max_draws=max_draws,
        draw_chunk=draw_chunk,
        loss=trace_loss,
        seed=seed,
        data=DataSet.TRACES if num_trace_shards else DataSet.CALIBRATION,
        importance_draws=importance_draws,
    )
    for text in trace_warnings(traces, relative_error):
        warnings.warn(text, stacklevel=2)
    perturbations = measure_perturbations(setup, ranges, pool("perturbations"))
    responses = measure_responses(
        setup,
        ranges,
        pool("responses"),
        num_shards,
        option_chunk=option_chunk,
        sketch_size=sketch_size,
        seed=seed,
        cache_bytes=cache_bytes,
    )
    effects = {}
    for index, (group, bits) in enumerate(setup.options()):
        weights = [p for p in setup.groups[group].points if p in traces]
        effects[group, bits] = OptionEffect(
            group=group,
            num_bits=bits,
            kind=setup.group_kind(group),
            perturbation=sum(perturbations[p, bits] for p in weights),
            omega=_omega(traces, perturbations, weights, bits),
            response=0.5 * float(responses.gram[index, index]),
            divergence=float(responses.divergence[index]),
        )
    return SensitivityTable(traces, effects, responses.gram, fingerprint, responses.sketch_error)


def _omega(
    traces: dict[str, Trace], perturbations: dict[tuple[str, int], float], weights: list[str], bits: int
) -> float:
    # A negative trace is noise or negative curvature; rounding a weight never lowers the loss for sure.
    return sum(max(traces[p].value, 0.0) * perturbations[p, bits] for p in weights)
