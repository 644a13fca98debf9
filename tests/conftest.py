"""Fixtures that several parts of the suite share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.heads import Head, started_head


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One embedded Ray with four logical CPUs, for the whole suite: starting one takes ten seconds."""
    from raysearch.cluster.session import ray_session

    with ray_session("local", 2, num_train_workers=1, object_store_bytes=80 << 20):
        yield


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    """A cluster of its own that jobs are submitted to, for the whole suite."""
    with started_head() as head:
        yield head
