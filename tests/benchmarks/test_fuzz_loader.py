"""A short run of what `benchmarks/fuzz_loader.py` does ten thousand times."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.problems.damaged_folders import OneLayer, damage, small_folder
from raysearch.errors import RaysearchError
from raysearch.export import load_model


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_folder(tmp_path_factory.mktemp("small"))


def test_the_folder_itself_loads(source):
    assert isinstance(load_model(source), nn.Module)
    assert isinstance(load_model(source, OneLayer), OneLayer)


def outcome(folder, factory):
    """What loads, or what raysearch says against it; any other exception goes on."""
    try:
        return type(load_model(folder, factory)).__name__
    except RaysearchError as error:
        return str(error)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**40), with_factory=st.booleans())
def test_a_damaged_folder_loads_or_gives_an_error_of_raysearch(source, tmp_path, seed, with_factory):
    damage(source, tmp_path / "damaged", random.Random(seed))
    assert outcome(tmp_path / "damaged", OneLayer if with_factory else None)
