import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fleet_simulation.py"


@pytest.fixture(scope="module")
def fleet():
    spec = importlib.util.spec_from_file_location("fleet_simulation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@given(num_units=st.integers(1, 60), num_workers=st.integers(1, 20), startup=st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_equal_units_without_trouble_take_the_closed_form(fleet, num_units, num_workers, startup):
    model = fleet.FleetModel(num_workers, startup_seconds=(startup, startup))
    outcome = fleet.simulate([2.0] * num_units, model)
    assert outcome.seconds == startup + 2.0 * math.ceil(num_units / num_workers)
    assert (outcome.deaths, outcome.repeated_units) == (0, 0)


def test_tiny_units_are_bound_by_the_driver(fleet):
    outcome = fleet.simulate([1e-9] * 500, fleet.FleetModel(50, driver_seconds=0.01))
    assert outcome.seconds == pytest.approx(5.0, rel=1e-6)


def test_units_that_travel_together_spare_the_driver(fleet):
    # A driver of 1 ms a message and .2 ms a unit gives 833 units a second one by one, and 1,000 are wanted.
    options = {"driver_seconds": 0.0002, "message_seconds": 0.001}
    outcome = fleet.simulate([1.0] * 20_000, fleet.FleetModel(1000, **options))
    assert outcome.efficiency > 0.85


def test_depth_two_hides_the_driver_and_depth_one_does_not(fleet):
    hidden = fleet.simulate([1.0] * 40, fleet.FleetModel(1, depth=2, driver_seconds=0.25))
    shown = fleet.simulate([1.0] * 40, fleet.FleetModel(1, depth=1, driver_seconds=0.25))
    assert hidden.seconds == pytest.approx(40.25)
    assert shown.seconds == pytest.approx(50.0)


def test_slow_nodes_take_fewer_units(fleet):
    alone = fleet.simulate([1.0] * 8, fleet.FleetModel(1, slow_share=1.0, slow_factor=1.5))
    assert alone.seconds == 12.0
    # Half of sixteen workers at half speed: 8 + 4 units' worth a second.
    mixed = fleet.simulate([1.0] * 1200, fleet.FleetModel(16, slow_share=0.5, slow_factor=2.0))
    assert mixed.seconds == pytest.approx(100.0, abs=3.0)


def test_deaths_repeat_units_and_lose_none(fleet):
    units = np.random.default_rng(0).uniform(5, 15, 400).tolist()
    model = fleet.FleetModel(10, startup_seconds=(20.0, 40.0), failures_per_hour=20.0, detection_seconds=3.0)
    outcome = fleet.simulate(units, model, seed=1)
    calm = fleet.simulate(units, fleet.FleetModel(10, startup_seconds=(20.0, 40.0)), seed=1)
    # 20 deaths an hour on each of ten workers: each costs about 30 s of start-up and 10 s of lost work.
    expected = 10 * 20 * outcome.seconds / 3600
    assert outcome.deaths == pytest.approx(expected, rel=0.5)
    assert 0 < outcome.repeated_units <= 2 * outcome.deaths
    assert outcome.seconds > calm.seconds
    assert outcome == fleet.simulate(units, model, seed=1)
    assert 0 < outcome.efficiency < calm.efficiency < 1
