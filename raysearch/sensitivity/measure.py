"""The sensitivity stage: traces, perturbations and responses, joined into one table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

from raysearch.cluster.pool import Pool
from raysearch.config.estimators import NO_TRACES
from raysearch.config.sensitivity import SensitivityConfig
from raysearch.evaluation import DataSet
from raysearch.records import OptionEffect, QuantizerSetup, RangeTable, Scheme, SensitivityTable, Trace
from raysearch.records.low_rank import diagonal
from raysearch.sensitivity.perturbation import measure_perturbations
from raysearch.sensitivity.responses import measure_responses
from raysearch.sensitivity.stopping import trace_warnings
from raysearch.sensitivity.traces import measure_traces
from raysearch.simulation import CACHE_BYTES


def measure_sensitivity(
    setup: QuantizerSetup,
    ranges: RangeTable,
    pool: Callable[[str], Pool],
    num_shards: Mapping[DataSet, int],
    settings: SensitivityConfig,
    *,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
) -> SensitivityTable:
    """Measure the float model once, for every budget to come.

    Cost: per calibration shard the estimator's draws, each weight's until its error over probes is small
    enough, and one forward an option.

    Args:
        setup: points, groups and their widths.
        ranges: calibrated ranges.
        pool: the fleet by name of the part ("traces", "perturbations", "responses"), so that units of
            each part can be kept apart on disk.
        num_shards: shards of the calibration data; and of the data for traces and for responses, where they
            have their own.
        settings: how traces and responses are measured.
        seed: the run's seed.
        cache_bytes: what a worker may keep between forwards.

    Returns:
        The table, without a fingerprint: what it is of is known to the caller.
    """
    traces: dict[str, Trace] = {}
    if settings.estimator != NO_TRACES:
        data = DataSet.TRACES if num_shards.get(DataSet.TRACES) else DataSet.CALIBRATION
        traces = measure_traces(setup, pool("traces"), num_shards[data], settings, data=data, seed=seed)
    for text in trace_warnings(traces, settings.relative_error):
        warnings.warn(text, stacklevel=2)
    # Ω is of nearest codes, as HAWQ has it: codes that make up for each other lie further from the weights.
    perturbations = measure_perturbations(setup, ranges.calibrated, pool("perturbations"))
    response_data = DataSet.RESPONSES if num_shards.get(DataSet.RESPONSES) else DataSet.CALIBRATION
    num_response_shards = num_shards[response_data]
    responses = measure_responses(
        setup,
        ranges,
        pool("responses"),
        min(settings.response_shards or num_response_shards, num_response_shards),
        settings,
        data=response_data,
        seed=seed,
        cache_bytes=cache_bytes,
    )
    effects = {}
    own = diagonal(responses.gram)
    for index, (group, scheme) in enumerate(setup.options()):
        weights = [point for point in setup.groups[group].points if (point, scheme) in perturbations]
        effects[group, scheme] = OptionEffect(
            group=group,
            scheme=scheme,
            kind=setup.group_kind(group),
            perturbation=sum((perturbations[point, scheme] for point in weights), 0.0),
            omega=_omega(traces, perturbations, weights, scheme),
            second_moment=_second_moment(traces, ranges, weights, scheme),
            response=0.5 * float(own[index]),
            divergence=float(responses.divergence[index]),
        )
    return SensitivityTable(traces, effects, responses.gram, "", responses.sketch_error)


def _omega(
    traces: Mapping[str, Trace],
    perturbations: Mapping[tuple[str, Scheme], float],
    weights: Sequence[str],
    scheme: Scheme,
) -> float:
    """HAWQ-V2's Ω of an option: Σ over its weights of t_l ‖Q(W_l) − W_l‖²; NaN without traces."""
    if weights and not traces:
        return math.nan
    # A negative trace is noise or negative curvature; rounding a weight never lowers the loss for sure.
    return sum((max(traces[point].value, 0.0) * perturbations[point, scheme] for point in weights), 0.0)


def _second_moment(
    traces: Mapping[str, Trace], ranges: RangeTable, weights: Sequence[str], scheme: Scheme
) -> float:
    """Ω of the codes that rounding chose, each direction of an error weighed by what is read along it.

    NaN where nothing was rounded, or of a weight of which nothing is known and that the loss depends on; or
    without traces.
    """
    if not ranges.rounded or (weights and not traces):
        return math.nan
    total = 0.0
    for point in weights:
        # What the data never reach has no second moments, and no trace either.
        if traces[point].value > 0:
            total += traces[point].value * ranges[point, scheme].second_moment
    return total
