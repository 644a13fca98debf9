"""QAT on Ray Train workers."""

from __future__ import annotations

import pytest

from raysearch.cluster.shipping import register_by_value
from raysearch.training import fine_tune, load_checkpoint
from tests.support import training_recipes
from tests.support.training_recipes import RankSpy, make_recipe

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    # Ray Train sets deprecated attributes of its own data context.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
# As a task file is: code that workers have no name for.
register_by_value(training_recipes)


def run(recipe, on_ray, folder=""):
    saved = {}
    result = fine_tune(recipe, saved.__setitem__, on_ray=on_ray, run_name="qat", storage_path=str(folder))
    return result, saved


def test_one_worker_gives_the_bits_of_this_process(tmp_path):
    expected, saved = run(make_recipe(epochs=2), on_ray=False)
    found, saved_on_ray = run(make_recipe(epochs=2), True, tmp_path)
    assert found == expected
    assert saved_on_ray == saved


def test_two_workers_agree_and_finish(tmp_path):
    recipe = make_recipe(epochs=2, num_workers=2, forward=RankSpy(str(tmp_path)))
    result, saved = run(recipe, True, tmp_path / "runs")
    ranks = [(tmp_path / f"rank{rank}").read_text().splitlines() for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert len(set(ranks[0])) == 3
    assert [entry.epoch for entry in result.history] == [-1, 0, 1]
    assert result.history[-1].metrics["loss"] < result.history[0].metrics["loss"]
    load_checkpoint(recipe.build(), saved[result.checkpoint])
