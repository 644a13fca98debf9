import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from raysearch.records import parse_budgets
from raysearch.search import SURROGATES, rank_correlation
from tests.support.search_problems import Divergence, make_setup, make_table, search


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20))
def test_rank_correlation_is_spearmans(pairs):
    one, other = (list(side) for side in zip(*pairs, strict=True))
    found = rank_correlation(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(float(spearmanr(one, other).statistic), abs=1e-12)


@pytest.mark.parametrize("maximize", [False, True])
def test_the_surrogate_that_is_measured_agrees_fully(maximize):
    setup = make_setup(4)
    table = make_table(setup, coupling=1.0)
    measure = Divergence(table)

    def evaluate(batch):
        return {n: -value if maximize else value for n, value in measure(batch).items()}

    result = search(table, setup, parse_budgets(["avg_bits<=5"]), evaluate, num_trials=24, maximize=maximize)
    # The table's traces are not of the Fisher matrix, and nothing in it was rounded.
    assert set(result.agreement) == set(SURROGATES) - {"fisher", "second-moment"}
    assert result.agreement["response"] == pytest.approx(1)
    assert all(value < 1 for name, value in result.agreement.items() if name != "response")
    space = np.array([trial.predicted for trial in result.trials])
    assert rank_correlation(space.tolist(), [abs(t.value) for t in result.trials]) == pytest.approx(1)
