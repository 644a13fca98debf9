"""A metric and which way it gets better."""

import math
import pathlib
import re

import pytest
import torch

from raysearch import Metric
from raysearch.errors import TaskError
from raysearch.evaluation.metric import WELL_KNOWN, as_metric, direction_of


def plain(outputs, batch):
    return 0.25


def test_a_stated_direction_wins_over_the_name():
    assert direction_of("accuracy", Metric(plain, direction="minimize")) == "minimize"
    assert Metric(plain, "minimize")(None, None) == 0.25


@pytest.mark.parametrize("attribute", ["higher_is_better", "greater_is_better"])
def test_a_function_may_carry_its_direction(attribute):
    def distance(outputs, batch):
        return 1.0

    setattr(distance, attribute, False)
    assert direction_of("similarity", distance) == "minimize"
    setattr(distance, attribute, None)
    assert as_metric(distance).direction is None


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        *(
            ("rmse", "minimize"),
            ("val_RMSE", "minimize"),
            ("eval/loss", "minimize"),
            ("focal_loss", "minimize"),
        ),
        *(("accuracy", "maximize"), ("top5", "maximize"), ("acc@1", "maximize"), ("f1_macro", "maximize")),
        *(("neg_mean_squared_error", None), ("score", None), ("1-accuracy", None), ("distance", None)),
    ],
)
def test_only_well_known_names_speak(name, direction):
    assert direction_of(name, plain) == direction


def test_the_page_lists_every_well_known_name():
    page = pathlib.Path(__file__).parents[2].joinpath("docs/configuration.md").read_text()
    section = page.split("## Which way a metric gets better")[1]
    listed = {
        "maximize": section.split("- more is better:")[1].split("- less is better:")[0],
        "minimize": section.split("- less is better:")[1].split("\n\n")[0],
    }
    for name, direction in WELL_KNOWN.items():
        assert f"`{name}`" in re.sub(r"\s+", " ", listed[direction]), name


@pytest.mark.parametrize(
    ("arguments", "said"), [((3,), "must be a function"), ((plain, "min"), "'minimize'")]
)
def test_what_is_no_metric_is_refused(arguments, said):
    with pytest.raises(TaskError, match=said):
        Metric(*arguments)


def test_a_metric_of_single_samples_is_of_their_mean():
    perplexity = Metric(lambda outputs, batch: outputs, "minimize", per_sample=True, of_mean=math.exp)
    assert perplexity(torch.tensor([1.0, 3.0]), torch.zeros(2)) == pytest.approx(math.exp(2))
    with pytest.raises(TaskError, match=r"gives a tensor of shape \(3,\) for a batch of 2 samples"):
        perplexity(torch.zeros(3), torch.zeros(2))
    with pytest.raises(TaskError, match=r"gives 0.5 for a batch of 2"):
        perplexity(0.5, torch.zeros(2))
