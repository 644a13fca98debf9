"""How many workers train together."""

import pytest

from raysearch.config import load_config
from raysearch.errors import ConfigError
from raysearch.training.launch import group_size


def settings(**changes):
    return load_config(
        overrides={"training": {"num_workers": 4, "global_batch_size": 24, **changes}}
    ).training


def test_a_group_may_change_its_size_between_two_numbers():
    assert group_size(settings()) == 4
    assert group_size(settings(min_workers=4)) == 4
    assert group_size(settings(min_workers=2)) == (2, 4)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"min_workers": 5}, "min_workers is 5, more than num_workers, 4"),
        ({"min_workers": 2, "global_batch_size": None}, "set global_batch_size, so that a step stays"),
        ({"min_workers": 2, "global_batch_size": 32}, "is 32, which 3 workers cannot share alike"),
    ],
)
def test_steps_that_could_not_stay_the_same_are_refused(changes, text):
    with pytest.raises(ConfigError, match=text):
        settings(**changes)
