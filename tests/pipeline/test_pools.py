"""The fleet of a run: opened by who needs it first, shared, closed once."""

import numpy as np

from raysearch.artifacts import RunStore, UnitLog
from raysearch.cluster.pool import LocalPool
from raysearch.config import load_config
from raysearch.pipeline.pools import Fleet, pool_session
from raysearch.pipeline.progress import Progress


class Opener:
    """Opens local pools, and counts them."""

    def __init__(self):
        self.pools = []

    def __call__(self):
        self.pools.append(LocalPool(10))
        return self.pools[-1]


def add(worker, number):
    return {"sum": np.array(worker + number)}


def open_fleet(tmp_path):
    store = RunStore(tmp_path, "run")
    statuses = []
    opener = Opener()
    return Fleet(opener, UnitLog(store), Progress(store, statuses.append)), opener, statuses


def test_a_fleet_is_opened_once_and_by_the_first_part_only(tmp_path):
    fleet, opener, statuses = open_fleet(tmp_path)
    assert opener.pools == []
    for part in ("traces", "responses"):
        results = dict(fleet.pool(part).run(add, {("a",): (1,), ("b",): (2,)}))
        assert {key: int(value["sum"]) for key, value in results.items()} == {("a",): 11, ("b",): 12}
    assert len(opener.pools) == 1
    assert [(s.stage, s.done) for s in statuses if s.done == s.total] == [("traces", 2), ("responses", 2)]
    fleet.close()


def test_units_of_a_part_are_read_by_the_next_fleet(tmp_path):
    fleet, _, _ = open_fleet(tmp_path)
    units = {("a",): (1,)}
    first = dict(fleet.pool("traces").run(add, units))
    again, _, _ = open_fleet(tmp_path)

    def fail(worker, number):
        raise AssertionError("computed although it is on disk")

    assert dict(again.pool("traces").run(fail, units)) == first


def test_a_fleet_that_nobody_needs_closes_without_a_pool(tmp_path):
    fleet, opener, _ = open_fleet(tmp_path)
    fleet.close()
    assert opener.pools == []


def test_without_workers_a_session_needs_no_ray():
    with pool_session(load_config(assignments=["cluster.workers=0"]), "nowhere:1") as session:
        assert callable(session.open_pool)
