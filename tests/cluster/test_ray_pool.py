import contextlib
import itertools
import logging

import pytest
import ray

from raysearch.cluster import messages
from raysearch.cluster.by_value import register_by_value
from raysearch.cluster.pool import LocalPool
from raysearch.cluster.ray_pool import RayPool, Tolerance
from raysearch.config import ClusterConfig
from raysearch.errors import ConfigError, PoolError, TaskError, UnitError
from tests.contracts.pool_contract import MakePool, PoolContract
from tests.support import patience, pool_units
from tests.support.patience import SteppedClock, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
# As a task file is: code that workers have no name for.
register_by_value(pool_units)
register_by_value(patience)


USUAL = Tolerance()
AGES = 1e9
"""Seconds that no test waits: what is overdue is so by the test's own clock, or at once."""


@contextlib.contextmanager
def open_pool(replica, **settings):
    patient = {"workers": 1, "unit_timeout_seconds": AGES, "startup_timeout_seconds": AGES}
    names = ("depth", "tolerance", "clock", "idle_seconds", "tell")
    options = {name: settings.pop(name) for name in names if name in settings}
    pool = RayPool(replica, ClusterConfig(**{**patient, **settings}), **options)
    with contextlib.closing(pool):
        yield pool


def as_lists(answers):
    return {key: value["probes"].tolist() for key, value in answers}


@pytest.fixture(scope="module")
def reference():
    pool = LocalPool(pool_units.small_model())
    return as_lists(pool.run(pool_units.trace, pool_units.trace_units(), (1.0,)))


class TestRayPool(PoolContract):
    @pytest.fixture(scope="class")
    @classmethod
    def empty_pool(cls, ray_cluster):
        """One for all tests that need no replica: a worker's start takes longer than they do."""
        with open_pool(None) as pool:
            yield pool

    @pytest.fixture
    def make_pool(self, empty_pool) -> MakePool:
        with contextlib.ExitStack() as stack:
            yield lambda replica: empty_pool if replica is None else stack.enter_context(open_pool(replica))


def test_the_number_of_workers_changes_nothing(reference):
    """Of one worker, one message at a time, the test of units that travel together says it."""
    with open_pool(pool_units.small_model(), workers=3, depth=2) as pool:
        assert as_lists(pool.run(pool_units.trace, pool_units.trace_units(), (1.0,))) == reference


@pytest.mark.slow
def test_death_and_hang_change_nothing(reference, tmp_path, caplog):
    trouble = {("layer0", 2): "die", ("layer2", 0): "die", ("layer3", 4): "hang"}
    clock = SteppedClock()
    with open_pool(pool_units.small_model(), workers=2, unit_timeout_seconds=3600, clock=clock) as pool:
        work = pool_units.trace_units()
        run = pool.run(pool_units.trace_with_trouble, work, (1.0, trouble, str(tmp_path)))
        answers = list(itertools.islice(run, len(work) - 1))
        # Only the unit that hangs is left, so it alone can be overdue.
        wait_until((tmp_path / "layer3-4").exists)
        clock.leap(3601)
        answers += run
    assert as_lists(answers) == reference
    assert len(answers) == len(reference)
    assert caplog.text.count("is replaced") == 3


def test_a_slow_start_or_a_slow_caller_is_no_hang(tmp_path, caplog):
    class Clock(SteppedClock):
        def __call__(self):
            # An hour passes while the replica is on its way.
            if (tmp_path / "on its way").exists() and not (tmp_path / "may arrive").exists():
                self.leap(3600)
                (tmp_path / "may arrive").touch()
            return super().__call__()

    clock = Clock()
    with open_pool(pool_units.SlowModel(tmp_path), unit_timeout_seconds=3000, clock=clock) as pool:
        answers = pool.run(pool_units.double, {(n,): (n,) for n in range(4)})
        next(answers)
        assert clock.ahead == 3600
        # An hour passes while the caller works on what it got; the worker has long been done.
        (member,) = pool._fleet.members
        calls = [call.ref for call in member.calls]
        if calls:
            ray.wait(calls, num_returns=len(calls))
        clock.leap(3600)
        assert len(list(answers)) == 3
    assert "is replaced" not in caplog.text


@pytest.mark.slow
def test_a_poison_unit_is_named_and_its_neighbour_is_not():
    work = {("good", n): (False,) for n in range(3)} | {("bad",): (True,)} | {("behind",): (False,)}
    finished = []
    with open_pool(None, tolerance=Tolerance(unit_retries=1)) as pool:
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
        open_pool(pool_units.BrokenReplica(is_fatal=True), tolerance=Tolerance(deaths=0)) as pool,
        pytest.raises(PoolError, match="2 workers died in one run"),
    ):
        list(pool.run(pool_units.double, {("a",): (1,)}))


def test_an_impossible_request_says_what_there_is():
    # Nothing can answer, however long it is waited.
    impossible = {"gpus_per_worker": 50, "device": "cuda", "startup_timeout_seconds": 1}
    with (
        open_pool(None, **impossible) as pool,
        pytest.raises(PoolError, match=r"asked for 1 workers with .*'GPU': 50.*the cluster has \{'CPU': 8"),
    ):
        list(pool.run(pool_units.double, {("a",): (1,)}))


def test_a_model_that_no_worker_gets_ready_in_time_is_not_tried_again():
    with open_pool(None, gpus_per_worker=50, device="cuda", startup_timeout_seconds=1) as pool:
        batch = pool._start(pool_units.double, {("a",): (1,)}, ())
        (member,) = pool._fleet.members
        # As if its process were there.
        member.has_place = True
        member.clock -= 2
        with pytest.raises(PoolError, match=r"no worker was ready within 1 seconds.*takes long to build"):
            pool._receive(member, batch, set())


def test_a_fleet_takes_what_is_free_waits_for_more_and_gives_back_what_it_does_not_use(caplog):
    clock, told = SteppedClock(), []
    # All CPUs but one: there is room for a single worker.
    cpus = ray.cluster_resources()["CPU"] - 1
    big = {"cpus_per_worker": cpus, "startup_timeout_seconds": 3600, "clock": clock}
    work = {(n,): (n,) for n in range(4)}
    with open_pool(None, workers=2, idle_seconds=9000, **big) as first:
        answers = first.run(pool_units.double, work)
        next(answers)
        # There is a worker, and no room for the other, which is waited for however long it takes.
        clock.leap(3601)
        assert len(list(answers)) == 3
        assert len(first._fleet.members) == 2
        with open_pool(None, tell=told.append, **big) as second:
            # Another run begins when the first has had nothing to do for long enough.
            timer, number = first._timer, first._num_batches
            assert (timer.interval, timer.daemon) == (9000, True)
            waiting = second.run(pool_units.double, work)
            second._advance(batch := second._start(pool_units.double, work, ()))
            clock.leap(2)
            second._advance(batch)
            first._give_back(number)
            assert first._fleet.members == []
            assert len(list(waiting)) == 4
    assert told[-1] == ""
    assert told[0].startswith(
        f"waits for the first of 1 workers with {{'CPU': {cpus}}} each: the cluster has"
    )
    assert told[0].endswith("of which {'CPU': 1.0} are free")
    assert "is replaced" not in caplog.text


def test_every_kind_of_loss_is_one(monkeypatch, caplog):
    losses = [ray.exceptions.OutOfMemoryError("gone"), ray.exceptions.ObjectLostError("00", "", "")]
    real_get = ray.get

    def get(ref):
        value = real_get(ref)
        if isinstance(value, tuple) and losses:
            raise losses.pop()
        return value

    with open_pool(None, workers=2) as pool:
        monkeypatch.setattr(ray, "get", get)
        assert len(list(pool.run(pool_units.double, {(n,): (n,) for n in range(6)}))) == 6
        assert caplog.text.count("is replaced") == 2


def test_work_is_spread_and_a_death_between_runs_blames_no_unit(caplog):
    with open_pool(None, workers=2, threads=2, tolerance=Tolerance(unit_retries=0)) as pool:
        workers = pool_units.meet_workers(pool, 2)
        assert len({int(worker["pid"]) for worker in workers}) == 2
        assert {int(worker["threads"]) for worker in workers} == {2}
        assert all(worker["is_deterministic"] and worker["gpus"] == "" for worker in workers)
        ray.kill(pool._fleet.members[0].actor)
        # The one that is left cannot do the work of both, so the death must be seen.
        assert len(pool_units.meet_workers(pool, 2)) == 2
    assert caplog.text.count("working on None") == 1


def test_units_that_travel_together_answer_as_those_that_travel_alone(
    reference, tmp_path, monkeypatch, caplog
):
    # As on a fleet so large that each message must last.
    monkeypatch.setattr(messages, "MESSAGES_PER_SECOND", 1e-6)
    work = pool_units.trace_units()
    sent = []
    with open_pool(pool_units.small_model(), depth=1) as pool:
        send = pool._send
        monkeypatch.setattr(
            pool, "_send", lambda member, batch, keys: (sent.append(keys), send(member, batch, keys))
        )
        assert as_lists(pool.run(pool_units.trace, work, (1.0,))) == reference
        assert max(map(len, sent)) > 2
        # One of them kills its worker: all of its message then travel alone, and the others are not blamed.
        trouble = {("layer1", 0): "die"}
        again = pool.run(pool_units.trace_with_trouble, work, (1.0, trouble, str(tmp_path)))
        assert as_lists(again) == reference
        assert "working on one of" in caplog.text
        # One of them fails: those before it are kept, and it is named.
        finished = []
        numbers = {(n,): (n - 18, str(tmp_path)) for n in range(40)}
        with pytest.raises(UnitError, match=r"^the unit \(20,\) of raise_value_error failed"):
            finished += (key for key, _ in pool.run(pool_units.raise_value_error, numbers))
        assert finished == [(n,) for n in range(20)]


def test_the_last_units_wait_for_whoever_is_free():
    """Two units for two workers: none may sit behind the other, in whatever order the workers get ready."""
    with open_pool(None, workers=2) as pool:
        for _ in range(5):
            assert len({int(worker["pid"]) for worker in pool_units.meet_workers(pool, 2)}) == 2


def test_abandoned_work_does_not_delay_the_next_run():
    with open_pool(None) as pool:
        work = {("short",): (1,), ("long",): (None,), ("queued",): (None,)}
        answers = pool.run(pool_units.double_or_hang, work)
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
    with pytest.raises(ConfigError, match=r"cluster\.workers is 0"), open_pool(None, workers=0):
        pass
    with pytest.raises(ConfigError, match="depth is 0"), open_pool(None, depth=0):
        pass
    with pytest.raises(TaskError, match="the replica, a generator"), open_pool(n for n in range(3)):
        pass
    with open_pool(None) as pool:
        with pytest.raises(TaskError, match=r"the arguments of the unit \('a',\)\[0\], a generator"):
            list(pool.run(pool_units.double, {("a",): ((n for n in range(3)),)}))
        pool.close()
        with pytest.raises(PoolError, match="closed"):
            list(pool.run(pool_units.double, {("a",): (1,)}))


@pytest.fixture(autouse=True)
def _see_warnings(caplog):
    caplog.set_level(logging.WARNING, logger="raysearch.cluster")
