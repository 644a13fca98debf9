"""What the stages of a run are given, made of its inputs."""

from dataclasses import replace

import pytest
import torch

from raysearch.calibration import calibrate_model
from raysearch.config import load_config
from raysearch.errors import ConfigError, DataError
from raysearch.pipeline.inputs import check_inputs
from raysearch.pipeline.stages import evaluate_both, make_recipe, make_replica, strip_checkpoint
from raysearch.records import BitAssignment
from raysearch.training import fine_tune
from tests.support.toy_task import make_untrained_task


def recipe_with(samples: int):
    config = load_config(overrides={"calibration": {"batch_norm_samples": samples}})
    inputs = check_inputs(make_untrained_task(), config, ["avg_bits<=4"])
    ranges = calibrate_model(
        inputs.task.model, inputs.setup, inputs.samples.calibration, forward=inputs.task.run
    )
    lowest = BitAssignment.extreme(inputs.setup, 0)
    return inputs, ranges, lowest, make_recipe(inputs, ranges, lowest)


def test_a_run_adapts_batch_norm_to_its_assignment_and_leaves_the_teacher_alone():
    inputs, ranges, assignment, recipe = recipe_with(96)
    own = inputs.task.model.norm
    assert torch.equal(recipe.model.norm.running_var, own.running_var)
    built = recipe.build().model.norm
    assert not torch.equal(built.running_mean, own.running_mean)
    assert not torch.equal(built.running_var, own.running_var)
    # A run that goes on, or another driver, gets the same.
    again = make_recipe(inputs, ranges, assignment).floats
    assert all(torch.equal(again[name], value) for name, value in recipe.floats.items())
    saved = {}
    fine_tune(recipe, saved.__setitem__, on_ray=False)
    stripped = strip_checkpoint(inputs, ranges, assignment, *saved.values())
    assert torch.equal(stripped.norm.running_var, built.running_var)


def test_a_replica_reads_the_weights_of_the_run_where_they_are():
    inputs = check_inputs(make_untrained_task(), load_config(), ["avg_bits<=4"])
    replica = make_replica(inputs, [])
    assert replica.model is not inputs.task.model
    for one, other in zip(replica.model.parameters(), inputs.task.model.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()


def test_batch_norm_is_left_alone_by_default_and_reads_no_more_than_there_is():
    inputs, _, _, recipe = recipe_with(0)
    assert recipe.floats == {}
    assert torch.equal(recipe.build().model.norm.running_mean, inputs.task.model.norm.running_mean)
    config = load_config(assignments=["calibration.num_samples=8", "calibration.batch_norm_samples=9"])
    with pytest.raises(ConfigError, match=r"batch_norm_samples is 9, and calibration\.num_samples only 8"):
        check_inputs(make_untrained_task(), config, ["avg_bits<=4"])


def test_traces_can_have_a_larger_sample_of_their_own():
    settings = {
        "calibration": {"num_samples": 32},
        "sensitivity": {"trace_samples": 80, "importance_draws": 20},
    }
    inputs = check_inputs(make_untrained_task(), load_config(overrides=settings), ["avg_bits<=4"])
    sizes = [
        sum(len(batch[0]) for batch in part) for part in (inputs.samples.calibration, inputs.samples.traces)
    ]
    assert sizes == [32, 80]
    assert set(make_replica(inputs, search=[]).shards) == {"calibration", "responses", "search", "traces"}
    own = check_inputs(make_untrained_task(), load_config(), ["avg_bits<=4"])
    assert own.samples.traces == []
    assert set(inputs.fingerprints) - set(own.fingerprints) == {"traces"}


def test_responses_can_have_samples_that_rounding_was_not_fitted_to():
    settings = {
        "calibration": {"num_samples": 40, "shard_size": 32},
        "sensitivity": {"response_samples": 50, "trace_samples": 10},
    }
    inputs = check_inputs(make_untrained_task(), load_config(overrides=settings), ["avg_bits<=4"])
    samples = inputs.samples
    assert [len(batch[0]) for batch in samples.responses] == [24, 26]
    every = check_inputs(
        make_untrained_task(), load_config(overrides={"calibration": {"num_samples": 90}}), ["avg_bits<=4"]
    ).samples.calibration
    joined = torch.cat([batch[0] for batch in (*samples.calibration, *samples.responses)])
    assert torch.equal(joined, torch.cat([batch[0] for batch in every]))
    assert set(make_replica(inputs, search=[]).shards) == {"calibration", "responses", "search", "traces"}
    assert "responses" in inputs.fingerprints


def test_samples_for_responses_that_do_not_exist_are_refused():
    settings = {"calibration": {"num_samples": 10**9}, "sensitivity": {"response_samples": 8}}
    with pytest.raises(DataError, match=r"response_samples is 8, but calibration\.num_samples takes all"):
        check_inputs(make_untrained_task(), load_config(overrides=settings), ["avg_bits<=4"])


def test_a_run_knows_its_test_data_and_which_positions_count():
    task = make_untrained_task()
    own = check_inputs(task, load_config(), ["avg_bits<=4"])

    def first(batch):
        return torch.arange(2).expand(len(batch[0]), -1) == 0

    given = replace(task, test=task.validation, positions=first)
    inputs = check_inputs(given, load_config(), ["avg_bits<=4"])
    assert set(inputs.fingerprints) - set(own.fingerprints) == {"test", "positions"}
    assert inputs.divergence.positions is first
    metrics = evaluate_both(inputs, inputs.task.model)
    assert metrics["test_float"] == metrics["float"]
    assert metrics["test_quantized"]["divergence"] == 0
    assert set(evaluate_both(own, own.task.model)) == {
        "float", "float_stderr", "quantized", "quantized_stderr",
    }  # fmt: skip
    with pytest.raises(DataError, match=r"gives a tensor of torch.int64"):
        check_inputs(replace(task, positions=lambda batch: batch[1]), load_config(), ["avg_bits<=4"])


def test_second_moments_are_not_asked_of_nearest_rounding():
    settings = {"search": {"surrogate": "second-moment"}, "rounding": {"method": "nearest"}}
    with pytest.raises(ConfigError, match=r"rounding\.method is 'nearest'.*surrogate to 'hawq'"):
        check_inputs(make_untrained_task(), load_config(overrides=settings), ["avg_bits<=4"])


@pytest.mark.parametrize("surrogate", ["hawq", "second-moment"])
def test_surrogates_made_of_traces_need_traces(surrogate):
    settings = {"search": {"surrogate": surrogate}, "sensitivity": {"estimator": "none"}}
    with pytest.raises(ConfigError, match=rf"'{surrogate}', which is made of traces.*'response'"):
        check_inputs(make_untrained_task(), load_config(overrides=settings), ["avg_bits<=4"])
