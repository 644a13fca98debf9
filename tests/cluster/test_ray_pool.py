import contextlib
import logging
import time

import pytest
import ray

from raysearch.cluster.pool import LocalPool
from raysearch.cluster.ray_pool import RayPool
from raysearch.cluster.shipping import register_by_value
from raysearch.errors import ConfigError, PoolError, TaskError, UnitError
from tests.contracts.pool_contract import MakePool, PoolContract
from tests.support import pool_units

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
# As a task file is: code that workers have no name for.
register_by_value(pool_units)


@contextlib.contextmanager
def open_pool(replica, **options):
    with contextlib.closing(RayPool(replica, **{"num_workers": 1, **options})) as pool:
        yield pool


def as_lists(answers):
    return {key: value["probes"].tolist() for key, value in answers}


@pytest.fixture(scope="module")
def reference():
    pool = LocalPool(pool_units.small_model())
    return as_lists(pool.run(pool_units.trace, pool_units.trace_units(), (1.0,)))


class TestRayPool(PoolContract):
    @pytest.fixture
    def make_pool(self) -> MakePool:
        with contextlib.ExitStack() as stack:
            yield lambda replica: stack.enter_context(open_pool(replica))


@pytest.mark.parametrize(("num_workers", "depth"), [(1, 1), (2, 2), (3, 3)])
def test_the_number_of_workers_changes_nothing(reference, num_workers, depth):
    with open_pool(pool_units.small_model(), num_workers=num_workers, depth=depth) as pool:
        assert as_lists(pool.run(pool_units.trace, pool_units.trace_units(), (1.0,))) == reference


@pytest.mark.slow
def test_death_and_hang_change_nothing(reference, tmp_path, caplog):
    trouble = {("layer0", 2): "die", ("layer2", 0): "die", ("layer3", 4): "hang"}
    start = time.monotonic()
    with open_pool(pool_units.small_model(), num_workers=2, unit_timeout=4) as pool:
        shared = (1.0, trouble, str(tmp_path))
        answers = list(pool.run(pool_units.trace_with_trouble, pool_units.trace_units(), shared))
    assert as_lists(answers) == reference
    assert len(answers) == len(reference)
    assert time.monotonic() - start < 60
    assert caplog.text.count("is replaced") == 3


def test_a_slow_start_or_a_slow_caller_is_no_hang(caplog):
    with open_pool(pool_units.SlowModel(2.5), unit_timeout=2) as pool:
        answers = pool.run(pool_units.double, {(n,): (n,) for n in range(4)})
        next(answers)
        time.sleep(2.5)
        assert len(list(answers)) == 3
    assert "is replaced" not in caplog.text


@pytest.mark.slow
def test_a_poison_unit_is_named_and_its_neighbour_is_not():
    work = {("good", n): (False,) for n in range(3)} | {("bad",): (True,)} | {("behind",): (False,)}
    finished = []
    with open_pool(None, max_unit_retries=1) as pool:
        with pytest.raises(UnitError, match=r"^the unit \('bad',\) lost its worker 2 times"):
            finished += (key for key, _ in pool.run(pool_units.die_if, work))
        assert finished[:3] == [("good", 0), ("good", 1), ("good", 2)]


def test_a_broken_replica_shows_its_traceback():
    with open_pool(pool_units.BrokenReplica(is_fatal=False)) as pool, pytest.raises(PoolError) as caught:
        list(pool.run(pool_units.double, {("a",): (1,)}))
    assert "FloatingPointError: this replica never works" in str(caught.value)


@pytest.mark.slow
def test_a_replica_that_kills_its_worker_ends_at_the_bound():
    with (
        open_pool(pool_units.BrokenReplica(is_fatal=True), max_deaths=0) as pool,
        pytest.raises(PoolError, match="2 workers died in one run"),
    ):
        list(pool.run(pool_units.double, {("a",): (1,)}))


def test_an_impossible_request_says_what_there_is():
    with (
        open_pool(None, gpus_per_worker=50, startup_timeout=2) as pool,
        pytest.raises(PoolError, match=r"asked for 1 workers with .*'GPU': 50.*the cluster has \{'CPU': 4"),
    ):
        list(pool.run(pool_units.double, {("a",): (1,)}))


def test_goes_on_with_the_workers_there_are(caplog):
    with open_pool(None, num_workers=2, cpus_per_worker=3) as pool:
        assert len(list(pool.run(pool_units.double, {("a",): (1,)}))) == 1
        pool._fleet.startup_timeout = 0.2
        assert len(list(pool.run(pool_units.nap, {(n,): (0.3,) for n in range(3)}))) == 3
        assert "goes on with 1 of 2" in caplog.text


def test_every_kind_of_loss_is_one(monkeypatch, caplog):
    losses = [ray.exceptions.OutOfMemoryError("gone"), ray.exceptions.ObjectLostError("00", "", "")]
    real_get = ray.get

    def get(ref):
        value = real_get(ref)
        if isinstance(value, dict) and losses:
            raise losses.pop()
        return value

    with open_pool(None, num_workers=2) as pool:
        monkeypatch.setattr(ray, "get", get)
        assert len(list(pool.run(pool_units.nap, {(n,): (0.2,) for n in range(6)}))) == 6
        assert caplog.text.count("is replaced") == 2


def test_work_is_spread_and_a_death_between_runs_blames_no_unit(caplog):
    with open_pool(None, num_workers=2, threads=2, max_unit_retries=0) as pool:
        pool_units.wait_for_workers(pool, 2)
        answers = [value for _, value in pool.run(pool_units.nap, {(n,): (0.3,) for n in range(8)})]
        assert len({int(value["pid"]) for value in answers}) == 2
        assert {int(value["threads"]) for value in answers} == {2}
        assert all(value["is_deterministic"] and value["gpus"] == "" for value in answers)
        ray.kill(pool._fleet.members[0].actor)
        assert len(list(pool.run(pool_units.nap, {(n,): (0.3,) for n in range(4)}))) == 4
    assert caplog.text.count("working on None") == 1


def test_the_last_units_wait_for_whoever_is_free():
    """Two units for two workers: none may sit behind the other, in whatever order the workers get ready."""
    with open_pool(None, num_workers=2) as pool:
        pool_units.wait_for_workers(pool, 2)
        for _ in range(5):
            answers = [value for _, value in pool.run(pool_units.nap, {(n,): (0.5,) for n in range(2)})]
            assert len({int(value["pid"]) for value in answers}) == 2


def test_abandoned_work_does_not_delay_the_next_run():
    with open_pool(None) as pool:
        answers = pool.run(pool_units.nap, {("short",): (0.0,), ("long",): (300.0,), ("queued",): (300.0,)})
        assert next(answers)[0] == ("short",)
        answers.close()
        assert len(list(pool.run(pool_units.double, {("a",): (1,)}))) == 1


def test_one_run_at_a_time():
    with open_pool(None) as pool:
        first = pool.run(pool_units.double, {(n,): (n,) for n in range(5)})
        next(first)
        assert len(list(pool.run(pool_units.double, {("a",): (1,)}))) == 1
        with pytest.raises(PoolError, match="another run was started"):
            list(first)


def test_misuse_is_explained():
    with pytest.raises(ConfigError, match="num_workers is 0"):
        RayPool(None, num_workers=0)
    with pytest.raises(ConfigError, match="unit_timeout is 0"):
        RayPool(None, num_workers=1, unit_timeout=0)
    with pytest.raises(TaskError, match="the replica, a generator"):
        RayPool((n for n in range(3)), num_workers=1)
    with open_pool(None) as pool:
        with pytest.raises(TaskError, match=r"the arguments of the unit \('a',\)\[0\], a generator"):
            list(pool.run(pool_units.double, {("a",): ((n for n in range(3)),)}))
        pool.close()
        with pytest.raises(PoolError, match="closed"):
            list(pool.run(pool_units.double, {("a",): (1,)}))


@pytest.fixture(autouse=True)
def _see_warnings(caplog):
    caplog.set_level(logging.WARNING, logger="raysearch.cluster")
