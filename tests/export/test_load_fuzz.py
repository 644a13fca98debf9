import contextlib
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysearch.errors import RaysearchError
from raysearch.export import load_model
from tests.support.damaged_folders import damage, small_folder, small_network


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_folder(tmp_path_factory.mktemp("small"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**40), with_factory=st.booleans())
def test_a_damaged_folder_loads_or_gives_an_error_of_raysearch(source, tmp_path, seed, with_factory):
    damage(source, tmp_path / "damaged", random.Random(seed))
    with contextlib.suppress(RaysearchError):
        load_model(tmp_path / "damaged", small_network if with_factory else None)
