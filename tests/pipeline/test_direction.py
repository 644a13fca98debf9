"""Which way a run's measured value gets better."""

import dataclasses

import pytest

from raysearch import Metric
from raysearch.config import SearchConfig, load_config
from raysearch.errors import ConfigError
from raysearch.pipeline.direction import measured_direction, unlikely_gain
from raysearch.pipeline.inputs import check_inputs
from tests.support import toy_task


def plain(outputs, batch):
    return 0.0


@pytest.mark.parametrize(
    ("metric", "settings", "direction"),
    [
        (plain, {"objective": "divergence"}, "minimize"),
        (Metric(plain, "minimize"), {"objective": "score"}, "minimize"),
        (Metric(plain, "maximize"), {"minimize": "size", "max_drop": "score=1%"}, "maximize"),
        (plain, {"objective": "score", "direction": "minimize"}, "minimize"),
    ],
)
def test_a_direction_comes_from_the_metric_or_the_settings(metric, settings, direction):
    assert measured_direction({"score": metric}, SearchConfig(**settings)) == direction


def test_a_well_known_name_gives_way_to_the_settings():
    search = SearchConfig(objective="accuracy", direction="minimize")
    assert measured_direction({"accuracy": plain}, search) == "minimize"


@pytest.mark.parametrize(
    ("metric", "settings", "said"),
    [
        (plain, {"objective": "score"}, r"'score'.*raysearch\.Metric\(function.*search\.direction"),
        (plain, {"minimize": "size", "max_drop": "score=5%"}, r"metric 'score'.*direction='minimize'"),
        (Metric(plain, "minimize"), {"objective": "score", "direction": "maximize"}, "of 'score' less"),
        (plain, {"direction": "maximize"}, "of 'divergence' less is better"),
    ],
)
def test_a_direction_that_is_missing_or_contradicted_is_asked_for(metric, settings, said):
    with pytest.raises(ConfigError, match=said):
        measured_direction({"score": metric}, SearchConfig(**settings))


def test_the_inputs_hold_the_direction_in_force_and_a_fingerprint_of_what_is_new():
    task = dataclasses.replace(toy_task.make_task(), metrics={"score": Metric(plain, "minimize")})
    config = load_config(assignments=["search.objective=score", "calibration.num_samples=8"])
    inputs = check_inputs(task, config, ["avg_bits<=4"])
    assert inputs.search.direction == "minimize"
    assert not inputs.search.maximize
    assert inputs.config.search.direction == "auto"
    assert inputs.fingerprints["direction"] == "minimize"
    more = dataclasses.replace(task, metrics={"score": Metric(plain, "maximize")})
    assert "direction" not in check_inputs(more, config, ["avg_bits<=4"]).fingerprints


def test_a_model_that_beats_the_float_one_is_noticed():
    note = unlikely_gain("rmse", 0.552, 0.073, "maximize")
    assert "'rmse' is 0.552" in note
    assert "direction='minimize'" in note
    assert not unlikely_gain("rmse", 0.552, 0.073, "minimize")
    assert not unlikely_gain("accuracy", 0.83, 0.8, "maximize")
    assert not unlikely_gain("accuracy", float("nan"), 0.8, "maximize")
