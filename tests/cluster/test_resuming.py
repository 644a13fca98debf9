import numpy as np
import pytest

from raysearch.cluster.pool import LocalPool
from raysearch.cluster.resuming import ResumingPool
from raysearch.errors import UnitError
from tests.support import pool_units


class MemoryLog:
    """A unit log that lives as long as the test."""

    def __init__(self):
        self.stages, self.reads = {}, 0

    def read(self, stage):
        self.reads += 1
        return dict(self.stages.get(stage, {}))

    def append(self, stage, key, value):
        assert key not in self.stages.setdefault(stage, {})
        self.stages[stage][key] = value


class CountingPool(LocalPool):
    def __init__(self, replica):
        super().__init__(replica)
        self.keys_of_runs = []
        self.is_closed = False

    def run(self, function, units, shared=()):
        self.keys_of_runs.append(list(units))
        return super().run(function, units, shared)

    def close(self):
        self.is_closed = True


def test_only_missing_units_run():
    log, model, work = MemoryLog(), pool_units.small_model(), pool_units.trace_units(2, 2)
    keys = list(work)
    reference = dict(LocalPool(model).run(pool_units.trace, work, (1.0,)))
    first = ResumingPool(LocalPool(model), log, "traces", lambda done, total: None).run(
        pool_units.trace, work, (1.0,)
    )
    stopped_after = [next(first)[0] for _ in range(3)]
    first.close()
    assert stopped_after == keys[:3]

    log.append("traces", ("layer9", 0), {"probes": np.zeros(2)})
    log.append("another", keys[3], {"probes": np.zeros(2)})
    inner, progress = CountingPool(model), []
    pool = ResumingPool(inner, log, "traces", lambda done, total: progress.append((done, total)))
    resumed = dict(pool.run(pool_units.trace, work, (1.0,)))
    assert inner.keys_of_runs == [keys[3:]]
    assert progress == [(3, 4), (4, 4)]
    assert {key: value["probes"].tolist() for key, value in resumed.items()} == {
        key: value["probes"].tolist() for key, value in reference.items()
    }

    assert dict(pool.run(pool_units.trace, work, (1.0,))).keys() == work.keys()
    assert len(inner.keys_of_runs) == 1
    pool.close()
    assert inner.is_closed


def test_what_finished_before_a_failure_is_kept(tmp_path):
    log = MemoryLog()
    work = {(number,): (number, str(tmp_path)) for number in range(4)}
    pool = ResumingPool(LocalPool(None), log, "s", lambda d, t: None)
    with pytest.raises(UnitError):
        list(pool.run(pool_units.raise_value_error, work))
    assert sorted(log.stages["s"]) == [(0,), (1,)]


def test_rounds_read_the_log_once_and_count_on():
    log, model, work = MemoryLog(), pool_units.small_model(), pool_units.trace_units(3, 2)
    keys = list(work)
    rounds = [{key: work[key] for key in part} for part in (keys[:2], keys[2:4], keys[4:])]
    for key, value in LocalPool(model).run(pool_units.trace, {**rounds[0], **rounds[1]}, (1.0,)):
        if key != keys[1]:
            log.append("traces", key, value)
    log.reads, progress = 0, []
    pool = ResumingPool(LocalPool(model), log, "traces", lambda done, total: progress.append((done, total)))
    values = {}
    for part in rounds:
        values |= dict(pool.run(pool_units.trace, part, (1.0,)))
    assert list(values) == keys
    assert log.reads == 1
    assert progress == [(1, 2), (2, 2), (4, 4), (4, 6), (5, 6), (6, 6)]
