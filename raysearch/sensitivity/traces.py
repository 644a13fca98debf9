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
from raysearch.config.sensitivity import PER_SAMPLE, TraceLoss
from raysearch.errors import ConfigError, DataError, StorageError
from raysearch.evaluation import DataSet, Replica, batch_size
from raysearch.records import QuantizerSetup, Trace
from raysearch.sensitivity.estimators import TraceEstimator, default_chunk, make_estimator
from raysearch.sensitivity.importance import TraceSample, draw_sample
from raysearch.sensitivity.stopping import rounds, unfinished

Draws = npt.NDArray[np.float64]


def measure_traces(
    setup: QuantizerSetup,
    pool: Pool,
    num_shards: int,
    *,
    estimator: str | TraceEstimator = "ggn",
    relative_error: float = 0.05,
    max_draws: int = 256,
    draw_chunk: int | None = None,
    loss: TraceLoss = "divergence",
    seed: int = 0,
    data: DataSet = DataSet.CALIBRATION,
    importance_draws: int = 0,
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
        estimator: a name, or an estimator.
        relative_error: wanted standard error over probes, relative to |trace|.
        max_draws: the most draws per weight and shard.
        draw_chunk: draws in a unit, part of the method; None: what suits the estimator.
        loss: what is differentiated.
        seed: the run's seed.
        data: the replica's data set.
        importance_draws: so many samples, drawn by importance, stand for the data; 0: all are measured.
            Their traces' errors over data are those of the drawn samples. See `importance.draw_sample`.

    Raises:
        ConfigError: the estimator is unknown or does not suit the loss; fewer than two draws are allowed;
            samples are to be drawn for an estimator that does not see single samples.
        DataError: a trace is not finite.
        StorageError: a resumed unit lacks a weight.
    """
    method = make_estimator(estimator) if isinstance(estimator, str) else estimator
    if max_draws < 2 and not method.deterministic:
        raise ConfigError(f"max_draws is {max_draws}; an error over probes takes at least 2 draws.")
    sample = TraceSample(data)
    if importance_draws:
        if not method.per_sample:
            raise ConfigError(
                f"importance_draws is {importance_draws}, but the estimator '{method.name}' does not see "
                f"single samples, which is needed to weigh them; take one of {', '.join(PER_SAMPLE)}."
            )
        sample = draw_sample(pool, data, num_shards, importance_draws, seed)
        num_shards = len(sample.weights)
    chunk = draw_chunk or default_chunk(method.name)
    names = tuple(setup.of_kind("weight"))
    tally = _Tally(setup, method, num_shards, sample)
    active = names
    for chunks in rounds(*((1, 1) if method.deterministic else (chunk, max_draws))):
        units: dict[Key, tuple[object, ...]] = {
            (shard, lo): (active, shard, lo, hi) for shard in range(num_shards) for lo, hi in chunks
        }
        got = dict(pool.run(draw_shard, units, (method, loss, seed, sample)))
        for key in units:
            tally.add(key, got[key], active)
        active = tally.close_round(relative_error)
        if not active:
            break
    return {name: tally.traces[name] for name in names}


class _Tally:
    """All draws so far, and the estimates they give."""

    def __init__(
        self, setup: QuantizerSetup, method: TraceEstimator, num_shards: int, sample: TraceSample
    ) -> None:
        self._setup, self._method, self._num_shards, self._sample = setup, method, num_shards, sample
        self._draws: dict[tuple[str, int], list[Draws]] = {}
        self._sizes: dict[int, float] = {}
        self._fresh: dict[str, None] = {}
        self.traces: dict[str, Trace] = {}

    def add(self, key: Key, value: UnitValue, active: tuple[str, ...]) -> None:
        """Take a unit; the units of a round come in the order of their keys."""
        missing = [name for name in active if name not in value]
        if missing:
            raise StorageError(
                f"the stored unit {key} of the traces lacks '{missing[0]}': it was made by another method. "
                f"Start the run anew."
            )
        shard = int(key[0])
        self._sizes[shard] = float(value["num_samples"])
        self._fresh = dict.fromkeys(active)
        for name in active:
            self._draws.setdefault((name, shard), []).append(self._sample.weigh(shard, value[name]))

    def close_round(self, relative_error: float) -> tuple[str, ...]:
        """Estimate anew what has new draws; the weights that need more."""
        sizes = np.array([self._sizes[shard] for shard in range(self._num_shards)])
        for name in self._fresh:
            draws = [np.concatenate(self._draws[name, shard]) for shard in range(self._num_shards)]
            per_weight = [part / self._setup.points[name].num_elements for part in draws]
            self.traces[name] = reduce_trace(name, self._method, per_weight, sizes)
        open_ = unfinished(self.traces, self._setup, relative_error, self._num_shards)
        self.traces = {n: replace(t, converged=n not in open_) for n, t in self.traces.items()}
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
    within = np.array([shard.var(ddof=1) if num_draws > 1 else 0.0 for shard in by_draw])
    probe = float(np.sqrt((weights**2 * within / num_draws).sum()))
    total = math.nan
    if method.per_sample and sizes.sum() > 1:
        samples = np.concatenate([shard.mean(axis=0) for shard in draws])
        total = float(samples.std(ddof=1) / math.sqrt(len(samples)))
    elif not method.per_sample and len(draws) > 1:
        total = float(np.sqrt((weights**2 * (means - value) ** 2).sum() / (1 - (weights**2).sum())))
    data = math.nan if math.isnan(total) else math.sqrt(max(total**2 - probe**2, 0.0))
    return Trace(
        point=name,
        value=value,
        stderr=probe if math.isnan(total) else max(total, probe),
        probe_stderr=probe,
        data_stderr=data,
        num_draws=num_draws,
        num_samples=int(sizes.sum()),
        estimator=method.name,
        converged=method.deterministic,
    )


def draw_shard(
    replica: Replica,
    method: TraceEstimator,
    loss: TraceLoss,
    seed: int,
    sample: TraceSample,
    weights: tuple[str, ...],
    shard: int,
    lo: int,
    hi: int,
) -> UnitValue:
    """Unit: Tr(H_ll) of some weights by draws lo … hi−1 on one shard, and the shard's size."""
    replica = sample.view(replica)
    size = batch_size(replica.shard(DataSet.CALIBRATION, shard))
    result = {"num_samples": np.array(float(size))}
    for name, values in method.draw(replica, weights, loss, seed, shard, lo, hi).items():
        result[name] = np.asarray(values, dtype=np.float64)
        if not np.isfinite(values).all():
            raise DataError(
                f"the trace of '{name}' is not finite on calibration shard {shard}: the model's output "
                f"or its second derivative is not. Mend the data, or leave the layer float "
                f"(placement.ignored_scopes)."
            )
    return result
