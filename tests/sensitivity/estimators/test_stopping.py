"""When draws end: the rule itself, and that nothing but the draws decides."""

from __future__ import annotations

import pytest

from raysearch.cluster.pool import LocalPool
from raysearch.cluster.resuming import ResumingPool
from raysearch.config import SensitivityConfig
from raysearch.errors import StorageError
from raysearch.records import QuantizationPoint, QuantizerGroup, QuantizerSetup, Site, Trace
from raysearch.sensitivity.estimators.hutchinson import Hutchinson
from raysearch.sensitivity.estimators.joint import JointHutchinson
from raysearch.sensitivity.stopping import rounds, trace_warnings, unfinished, widening
from raysearch.sensitivity.traces import measure_traces
from tests.support.shuffled_pool import ShuffledPool
from tests.support.small_replicas import make_replica, make_setup

METHOD = {"relative_error": 0.12, "draw_chunk": 2, "max_draws": 400}


class Memory:
    """A unit log in memory."""

    def __init__(self):
        self.units = {}

    def read(self, stage):
        return dict(self.units)

    def append(self, stage, key, value):
        self.units[key] = value


class DyingPool:
    """Breaks off after so many units in all."""

    def __init__(self, inner, budget):
        self.inner, self.left = inner, budget

    def run(self, function, units, shared=()):
        for pair in self.inner.run(function, units, shared):
            if not self.left:
                raise ConnectionError("the cluster is gone")
            self.left -= 1
            yield pair


class Watched(LocalPool):
    """Notes which weights each unit measures."""

    def __init__(self, replica):
        super().__init__(replica)
        self.seen = {}

    def run(self, function, units, shared=()):
        self.seen |= {key: arguments[0].weights for key, arguments in units.items()}
        return super().run(function, units, shared)


def measure(pool, estimator=None):
    setup = make_setup("conv", make_replica("conv"))
    return measure_traces(
        setup, pool, 3, SensitivityConfig(**METHOD), estimator=estimator or Hutchinson(), seed=4
    )


def test_weights_leave_when_they_are_known_and_not_before():
    pool = Watched(make_replica("conv"))
    traces = measure(pool)
    draws = {name: trace.num_draws for name, trace in traces.items()}
    assert len(set(draws.values())) > 1, "the case should stop layers at different rounds"
    assert max(draws.values()) < 400
    for (shard, lo), names in pool.seen.items():
        assert set(names) == {name for name, count in draws.items() if lo < count}, (shard, lo)
    # All rounds cover all shards.
    assert {shard for shard, _ in pool.seen} == {0, 1, 2}
    assert len(pool.seen) == 3 * max(draws.values()) / 2


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [Hutchinson(), JointHutchinson(), Hutchinson(probe_per_sample=True)])
def test_the_order_in_which_units_finish_changes_nothing(estimator):
    expected = measure(LocalPool(make_replica("conv")), estimator)
    for seed in range(2):
        assert measure(ShuffledPool(LocalPool(make_replica("conv")), seed), estimator) == expected


@pytest.mark.parametrize("budget", [0, 7, 23])
def test_a_resumed_run_stops_where_an_undisturbed_one_does(budget):
    replica = make_replica("conv")
    watched = Watched(replica)
    expected = measure(watched)
    assert len(watched.seen) > 23
    log = Memory()
    dying = DyingPool(ShuffledPool(LocalPool(replica), budget), budget)
    with pytest.raises(ConnectionError):
        measure(ResumingPool(dying, log, "traces", lambda done, total: None))
    assert len(log.units) == budget
    rest = Watched(replica)
    assert measure(ResumingPool(rest, log, "traces", lambda done, total: None)) == expected
    assert log.units.keys() == watched.seen.keys()
    assert len(rest.seen) == len(watched.seen) - budget


def test_a_stored_unit_of_another_method_is_refused():
    log = Memory()
    pool = ResumingPool(LocalPool(make_replica("conv")), log, "traces", lambda done, total: None)
    measure(pool)
    log.units[1, 0] = {k: v for k, v in log.units[1, 0].items() if k != "stem.weight"}
    with pytest.raises(StorageError, match=r"\(1, 0\) of the traces lacks 'stem.weight'"):
        measure(pool)


def weights(**sizes):
    points = [
        QuantizationPoint(n, "weight", (Site(n, "parameter", "weight"),), (s,)) for n, s in sizes.items()
    ]
    groups = [QuantizerGroup(f"g{n}", (n,), (4, 8)) for n in sizes]
    return QuantizerSetup({p.id: p for p in points}, {g.id: g for g in groups})


def trace(name, value, error, num_draws=1001, converged=False):
    return Trace(name, value, error, error, 0.0, num_draws, 8, "hutchinson", converged)


def test_the_rule():
    setup = weights(large=10, low=10, wide=10_000, none=10)
    found = {
        "large": trace("large", -100.0, 4.9),
        "low": trace("low", 0.01, 0.0049),
        "wide": trace("wide", 1e-3, 1e-4),
        "none": trace("none", 0.0, 0.0),
    }
    # The whole traces are 1000, 0.1, 10 and 0: the floor is 1, so "low" may err by 0.05 in all and "wide",
    # whose average is the smaller one, by 5 % of its own 10.
    assert unfinished(found, setup, 0.05, 1) == {"wide"}
    assert unfinished(found | {"low": trace("low", 0.01, 0.0051)}, setup, 0.05, 1) == {"wide", "low"}
    assert unfinished(found | {"large": trace("large", -100.0, 5.1)}, setup, 0.05, 1) == {"wide", "large"}
    assert unfinished(found, setup, 0.2, 1) == set()
    # Known from one draw a shard, from two of one shard, from two of eight.
    assert unfinished({"none": trace("none", 0.0, 0.0, num_draws=1)}, setup, 0.05, 8) == {"none"}
    few = {"large": trace("large", 1.0, 0.04, num_draws=2)}
    assert unfinished(few, setup, 0.05, 1) == {"large"}
    assert unfinished(few, setup, 0.05, 8) == set()
    # Who has left stays out, however the largest trace moves.
    assert unfinished({"low": trace("low", 1.0, 1.0, converged=True)}, setup, 0.05, 1) == set()


def test_a_warning_names_the_worst_first():
    found = {n: trace(n, 1.0, e) for n, e in {"a": 0.1, "b": 0.4, "c": 0.2, "d": 0.3}.items()}
    found["e"] = trace("e", 1.0, 0.9, converged=True)
    (text,) = trace_warnings(found, 0.05)
    assert "4 of 5 traces did not reach a standard error of 5%" in text
    assert "the worst: 'b' (40%), 'd' (30%), 'c' (20%)." in text


@pytest.mark.parametrize(("degrees", "quantile"), [(3, 3.1824), (7, 2.3646), (30, 2.0423)])
def test_the_widening_is_that_of_the_t_distribution(degrees, quantile):
    assert widening(degrees) == pytest.approx(quantile / 1.959964, rel=0.01)


@pytest.mark.parametrize(("chunk", "cap"), [(1, 1), (8, 256), (3, 100), (400, 7)])
def test_rounds_cover_all_draws_once(chunk, cap):
    found = list(rounds(chunk, cap))
    flat = [span for part in found for span in part]
    assert [k for lo, hi in flat for k in range(lo, hi)] == list(range(cap))
    assert all(hi - lo == chunk for lo, hi in flat[:-1])
    done = 0
    for part in found:
        assert len(part) <= max(1, done // 4)
        done += len(part)
