"""The learning rate of each step, and when training ends."""

from __future__ import annotations

import math

import pytest

from raysearch.config import TrainingConfig
from raysearch.errors import ConfigError
from raysearch.training.schedule import Schedule


def factors(schedule, count):
    return [schedule.factor(step) for step in range(count)]


def test_the_rate_falls_along_a_cosine_step_by_step():
    schedule = Schedule(TrainingConfig(epochs=2), 5)
    assert factors(schedule, 10) == [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert schedule.factor(11) == 0


@pytest.mark.parametrize("warmup", [4, 0.4])
def test_it_rises_over_the_warm_up_first(warmup):
    schedule = Schedule(TrainingConfig(steps=10, warmup_steps=warmup), None)
    assert factors(schedule, 5) == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule.factor(7) == pytest.approx(0.5)


def test_data_without_a_length_is_learned_in_the_first_epoch():
    schedule = Schedule(TrainingConfig(epochs=2), None)
    assert factors(schedule, 4) == [1.0] * 4
    schedule.see_step_of(1)
    schedule.see_epoch_of(4)
    assert schedule.factor(4) == pytest.approx(0.5)


def test_accumulated_batches_are_one_step():
    schedule = Schedule(TrainingConfig(epochs=1), 7)
    schedule.see_step_of(2)
    assert schedule.total == 4


def test_steps_end_training_in_the_middle_of_an_epoch():
    schedule = Schedule(TrainingConfig(steps=3), 7)
    assert not schedule.is_over(9, 2)
    assert schedule.is_over(0, 3)
    assert schedule.ends_with(3)
    assert not Schedule(TrainingConfig(epochs=3), 7).ends_with(7)


def test_a_share_of_an_unknown_number_of_steps_is_refused():
    with pytest.raises(ConfigError, match=r"warmup_steps is 0\.1, a share of all steps.*has no length"):
        Schedule(TrainingConfig(warmup_steps=0.1), None)
