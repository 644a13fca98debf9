"""Average Hessian traces of all weights, with standard errors over probes and over data.

For one weight W_l with n_l elements and H_ll = ∂²(mean loss)/∂W_l² the trace is t_l = Tr(H_ll)/n_l. The
loss is the label-free divergence (its Hessian at the float weights is the Gauss-Newton matrix, positive
semi-definite), or the task's. How a draw is made is the estimators' matter; how many, that of `stopping`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from raysearch.cluster.pool import Key, Pool, UnitValue
from raysearch.config.estimators import PER_SAMPLE
from raysearch.config.sensitivity import SensitivityConfig
from raysearch.errors import ConfigError, DataError, StorageError
from raysearch.evaluation import DataSet, Replica, batch_size
from raysearch.records import QuantizerSetup, Trace
from raysearch.sensitivity.estimators import (
    TraceEstimator,
    TraceRequest,
    default_chunk,
    make_estimator,
)
from raysearch.sensitivity.importance import TraceSample, draw_sample
from raysearch.sensitivity.stopping import rounds, unfinished

Draws = npt.NDArray[np.float64]


def measure_traces(
    setup: QuantizerSetup,
    pool: Pool,
    num_shards: int,
    settings: SensitivityConfig,
    *,
    estimator: TraceEstimator | None = None,
    data: DataSet = DataSet.CALIBRATION,
    seed: int = 0,
) -> dict[str, Trace]:
    """Average Hessian traces of all weights over the shards of a data set.

    Draws are made in rounds over all shards. After each complete round the weights whose error over probes
    is small enough (`stopping.unfinished`) are left out of the next. A unit is (shard, first draw); which
    weights it measures follows from the units of the rounds before, so equal keys mean equal work on any
    number of workers and after a resume.

    Work per unit: `draw_chunk` draws of the estimator for the weights still measured. Bytes per unit:
    8 · L · draw_chunk back, times the samples of the shard where draws are known per sample.

    Args:
        setup: the weights.
        pool: the fleet.
        num_shards: shards of the data set.
        settings: estimator, errors and draws; see `SensitivityConfig`.
        estimator: takes the place of the one that the settings name.
        data: the replica's data set.
        seed: the run's seed.

    Raises:
        ConfigError: the estimator does not suit the loss; or samples are to be drawn for an estimator that
            does not see single samples.
        DataError: a trace is not finite.
        StorageError: a resumed unit lacks a weight.
    """
    method = make_estimator(settings.estimator) if estimator is None else estimator
    sample = TraceSample(data)
    if settings.importance_draws:
        if not method.per_sample:
            raise ConfigError(
                f"importance_draws is {settings.importance_draws}, but the estimator '{method.name}' does "
                f"not see single samples, which is needed to weigh them; take one of {', '.join(PER_SAMPLE)}."
            )
        sample = draw_sample(pool, data, num_shards, settings.importance_draws, seed)
        num_shards = len(sample.weights)
    chunk = settings.draw_chunk or default_chunk(method.name)
    max_draws = settings.max_draws
    if method.deterministic:
        chunk, max_draws = 1, 1
    names = tuple(setup.of_kind("weight"))
    tally = _Tally(setup, method, num_shards, sample)
    active = names
    for chunks in rounds(chunk, max_draws):
        units: dict[Key, tuple[object, ...]] = {}
        for shard in range(num_shards):
            for first, end in chunks:
                request = TraceRequest(active, settings.trace_loss, seed, range(first, end))
                units[shard, first] = (request, shard)
        answers = dict(pool.run(draw_shard, units, (method, sample)))
        for key in units:
            tally.add(key, answers[key], active)
        active = tally.close_round(settings.relative_error)
        if not active:
            break
    return {name: tally.traces[name] for name in names}


class _Tally:
    """All draws so far, and the estimates they give."""

    def __init__(
        self, setup: QuantizerSetup, method: TraceEstimator, num_shards: int, sample: TraceSample
    ) -> None:
        self._setup = setup
        self._method = method
        self._num_shards = num_shards
        self._sample = sample
        self._draws: dict[tuple[str, int], list[Draws]] = {}
        self._sizes: dict[int, float] = {}
        self._fresh: dict[str, None] = {}
        self.traces: dict[str, Trace] = {}

    def add(self, key: Key, value: UnitValue, active: tuple[str, ...]) -> None:
        """Take a unit; the units of a round come in the order of their keys.

        Args:
            key: (shard, first draw).
            value: the draws of every weight, and the shard's samples as "num_samples".
            active: weights that are still drawn.

        Raises:
            StorageError: a stored unit lacks a weight.
        """
        missing = [name for name in active if name not in value]
        if missing:
            raise StorageError(
                f"the stored unit {key} of the traces lacks '{missing[0]}': it was made by another method. "
                f"Start the run anew."
            )
        shard = int(key[0])
        self._sizes[shard] = float(value["num_samples"])
        # A dict keeps the order of the weights, which a set would not.
        self._fresh = dict.fromkeys(active)
        for name in active:
            self._draws.setdefault((name, shard), []).append(self._sample.weigh(shard, value[name]))

    def close_round(self, relative_error: float) -> tuple[str, ...]:
        """Estimate anew what has new draws; the weights that need more."""
        shards = range(self._num_shards)
        sizes = np.array([self._sizes[shard] for shard in shards])
        for name in self._fresh:
            num_elements = self._setup.points[name].num_elements
            draws = [np.concatenate(self._draws[name, shard]) / num_elements for shard in shards]
            self.traces[name] = reduce_trace(name, self._method, draws, sizes)
        open_ = unfinished(self.traces, self._setup, relative_error, self._num_shards)
        for name, trace in self.traces.items():
            self.traces[name] = replace(trace, converged=name not in open_)
        return tuple(name for name in self._fresh if name in open_)


def reduce_trace(name: str, method: TraceEstimator, draws: list[Draws], sizes: Draws) -> Trace:
    """Weighted mean over shards, and its errors.

    With shard means m_s of P draws and weights w_s = size_s/Σ size: value = Σ w_s m_s. The probe error is
    √(Σ w_s² σ_s²/P), σ_s² the variance over draws within a shard. The total error holds data and probe noise
    together: with draws per sample it is the standard deviation of the samples' means over √N, else
    √(Σ w_s² (m_s − value)² / (1 − Σ w_s²)) over shards; the divisor (1 − 1/S for equal shards) makes its
    square unbiased where Var m_s ∝ 1/size_s. The data error is what remains of the total:
    √(total² − probe²). With one shard, or one sample, only the probe error is known; the data error is NaN.

    Args:
        name: the weight.
        method: the estimator, for its name and what its draws are.
        draws: per shard [P, K] average traces, K the samples where known per sample, else 1.
        sizes: samples of each shard.
    """
    num_draws = len(draws[0])
    weights = sizes / sizes.sum()
    by_draw = [shard.mean(axis=1) for shard in draws]
    means = np.array([shard.mean() for shard in by_draw])
    value = float((weights * means).sum())
    within = np.zeros(len(draws))
    if num_draws > 1:
        within = np.array([shard.var(ddof=1) for shard in by_draw])
    probe = float(np.sqrt((weights**2 * within / num_draws).sum()))
    total = math.nan
    if method.per_sample and sizes.sum() > 1:
        samples = np.concatenate([shard.mean(axis=0) for shard in draws])
        total = float(samples.std(ddof=1) / math.sqrt(len(samples)))
    elif not method.per_sample and len(draws) > 1:
        total = float(np.sqrt((weights**2 * (means - value) ** 2).sum() / (1 - (weights**2).sum())))
    data = math.nan
    stderr = probe
    if not math.isnan(total):
        data = math.sqrt(max(total**2 - probe**2, 0.0))
        stderr = max(total, probe)
    return Trace(
        point=name,
        value=value,
        stderr=stderr,
        probe_stderr=probe,
        data_stderr=data,
        num_draws=num_draws,
        num_samples=int(sizes.sum()),
        estimator=method.name,
        converged=method.deterministic,
    )


def draw_shard(
    replica: Replica, method: TraceEstimator, sample: TraceSample, request: TraceRequest, shard: int
) -> UnitValue:
    """Unit: the requested draws of Tr(H_ll) on one shard, and the shard's size.

    Args:
        replica: what the worker holds.
        method: the estimator.
        sample: the samples that traces are measured on.
        request: weights and draws.
        shard: of the sample.

    Raises:
        DataError: a trace is not finite.
    """
    view = sample.view(replica, shard)
    result = {"num_samples": np.array(float(batch_size(view.batch())))}
    for name, values in method.draw(view, request).items():
        result[name] = np.asarray(values, dtype=np.float64)
        if not np.isfinite(values).all():
            raise DataError(
                f"the trace of '{name}' is not finite on {view.name}: the model's output or a derivative of "
                f"it is not. Mend the data, or leave the layer float (placement.ignored_scopes)."
            )
    return result
