"""The number of workers where nobody says it."""

import pytest
import torch
from torch import nn

from raysearch import Task
from raysearch.config import ClusterConfig, load_config
from raysearch.pipeline import workers
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.workers import machine_workers, with_workers

CORES = {0, 1, 2, 3}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Four cores, much memory, no GPU."""
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: CORES, raising=False)
    monkeypatch.setattr(workers, "machine_bytes", lambda: 2**40)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def make_inputs(forward=None, **settings):
    task = Task(nn.Linear(4, 2), (torch.zeros(2, 4),), calibration=[torch.randn(8, 4)], forward=forward)
    return check_inputs(task, load_config(overrides=settings), ["avg_bits<=4"])


def count(inputs, address="local"):
    return with_workers(inputs, address).config.cluster.workers


def test_short_work_stays_in_this_process_and_a_cluster_gets_one():
    inputs = make_inputs()
    assert (count(inputs), count(inputs, "head:6379")) == (0, 1)
    assert count(make_inputs(cluster={"workers": 3})) == 3, "a number is what somebody chose"
    assert count(make_inputs(training={"num_workers": 2})) == 1, "Ray Train needs a Ray"


def test_long_work_has_an_actor_a_core_unless_it_cannot_be_sent(monkeypatch):
    monkeypatch.setattr(workers, "forward_seconds", lambda inputs: 10.0)
    assert count(make_inputs()) == len(CORES)
    connection = (value for value in ())
    assert count(make_inputs(lambda model, batch: (connection, model(batch))[1])) == 0


@pytest.mark.parametrize(
    ("seconds", "num_bytes", "number"),
    [(119.0, 1, 0), (120.0, 1, 2), (1e6, 1, 4), (1e6, 2**38, 2), (1e6, 2**39, 0)],
)
def test_actors_need_work_and_memory(seconds, num_bytes, number):
    assert machine_workers(seconds, ClusterConfig(), num_bytes) == number
    assert machine_workers(seconds, ClusterConfig(threads=4), num_bytes) == 0
