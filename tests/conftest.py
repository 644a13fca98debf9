"""Fixtures that several parts of the suite share."""

from __future__ import annotations

import gc
import os
import platform
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.support.object_store import ObjectStore, started_store
from tests.support.patience import started_ray
from tests.support.process_watch import ProcessWatch
from tests.support.ray_head import Head, started_head

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


# Ray's workers run at niceness 15: beside other test processes an actor's start would take twenty seconds.
os.environ.setdefault("RAY_worker_niceness", "0")

# Python asks `uname` and `file` for these once and remembers; whichever test came first would be blamed.
platform.processor()
platform.architecture()
PROCESSES = ProcessWatch()

# What is imported and collected lives to the end. To look through it for garbage took a sixth of the time.
gc.disable()
gc.set_threshold(10_000, 20, 20)


def pytest_collection_finish() -> None:
    """From here on garbage is looked for again, among what the tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _garbage_goes_with_its_file() -> Iterator[None]:
    """What a file leaves behind, such as modules, is not looked through again for every later one."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _processes_are_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """What starts a process says so, for `make quick` leaves it out."""
    yield
    started = PROCESSES.take()
    markers = {marker.name for marker in request.node.iter_markers()}
    assert not started or markers & {"ray", "process"}, f"mark it `ray` or `process`: it starts {started}"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Which tests ran before in the same process differs from run to run, and must not matter."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU its tests are skipped, and say so."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="there is no GPU that torch can use")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


class TogetherScheduling(LoadScopeScheduling):
    """With several test processes: all files that use a Ray in one of them, and any file in one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "ray" if _uses_ray(self.config.rootpath / file) else file


@cache
def _uses_ray(file: Path) -> bool:
    return re.search(r"\bray_(cluster|head)\b", file.read_text()) is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """What each process gets: a whole file at a time, so that its fixtures are made once."""
    return TogetherScheduling(config, log)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One embedded Ray with eight logical CPUs, for the whole suite: starting one takes ten seconds.

    No test needs more than four. So a CPU that Ray has not yet taken back from an actor that a test killed is
    in nobody's way: a group of training workers waits for CPUs without end.
    """
    with started_ray("local", 2, num_train_workers=5, object_store_bytes=80 << 20):
        yield


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """An S3 server with one bucket, in this process, for the whole suite."""
    with started_store() as store:
        yield store


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    """A cluster of its own that jobs are submitted to, for the whole suite."""
    with started_head() as head:
        yield head
