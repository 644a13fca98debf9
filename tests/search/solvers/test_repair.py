import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.search.solvers.repair import State

from .test_budget_solver import instances, parts


@given(instances(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_after_any_moves_it_is_what_the_limits_say(instance, seed):
    setup, model, budgets, _ = instance
    space, solver = parts(setup, model, budgets)
    rng = np.random.default_rng(seed)
    counts = space.valid.sum(axis=1)
    state = State(space, solver.limits, np.array([rng.integers(count) for count in counts]))
    for _ in range(6):
        row = int(rng.integers(len(counts)))
        before = [change.copy() for change in state.changes]
        touched = state.move(row, int(rng.integers(counts[row])))
        others = np.setdiff1d(space.rows, touched)
        fits, violations = np.ones(space.valid.shape, dtype=bool), np.zeros(space.valid.shape)
        for limit, change, old in zip(solver.limits, state.changes, before, strict=True):
            fresh = limit.changes(state.choices)
            assert (change == fresh)[space.valid].all()
            assert (change == old)[others].all()
            room = limit.capacity - int(limit.use(state.choices))
            fits &= fresh <= room
            violations += np.maximum(fresh - room, 0) / max(limit.capacity, 1)
            assert limit.parts(state.choices).sum() == limit.use(state.choices)
        assert (state.fits() == fits)[space.valid].all()
        assert (state.violations() == violations)[space.valid].all()
        assert (state.violation() == 0) == solver.is_feasible(state.choices)
