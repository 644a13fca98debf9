"""Samplers that spread a front over the sizes."""

import pytest

from tests.contracts.sampler_contract import Problem, saved_and_loaded


@pytest.mark.parametrize("sampler", ["auto", "nsga2"])
def test_a_front_spreads_over_the_sizes(sampler):
    problem, batches = Problem.of_layers(5), []
    result = problem.search(sampler, front="size", on_batch=batches.append)
    single = problem.search(sampler)
    sizes = [trial.costs["size"] for trial in result.front]
    assert result.front_cost == "size"
    assert sizes == sorted(set(sizes))
    assert len(result.front) >= len(single.front)
    assert problem.search(sampler, front="size", previous=saved_and_loaded(batches[5])) == result
