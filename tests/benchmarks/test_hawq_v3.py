"""The search's exact solver on the instances that HAWQ-V3 published."""

import numpy as np
import pytest

from benchmarks.problems.hawq_v3 import instances

PUBLISHED = {instance.name: instance for instance in instances()}


def test_all_are_there():
    assert len(PUBLISHED) == 18


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_instances_are_solved_to_their_optimum(name):
    instance = PUBLISHED[name]
    solution = instance.solve()
    rows = np.arange(len(instance.sizes))
    assert instance.sizes[rows, solution.choices].sum() <= instance.capacity
    assert solution.value == pytest.approx(instance.costs[rows, solution.choices].sum(), rel=1e-12)
    assert solution.gap == 0.0
    assert solution.value == pytest.approx(instance.solve_by_milp(), rel=1e-6)


def test_a_smaller_value_than_what_was_published_is_feasible():
    assert PUBLISHED["resnet50 size .25"].solve().value == pytest.approx(0.07495, abs=5e-6)
