import math

import numpy as np
import pytest

from raysearch.errors import ConfigError, RunError
from raysearch.records import parse_budgets, trials_from_table, trials_to_table
from raysearch.search import Race
from raysearch.search.racing import log_wealth
from tests.support.search_problems import Divergence, make_setup, make_table, search

ERROR = 0.05
SETUP = make_setup(4, (2, 3, 4, 8), (4, 8))
TABLE = make_table(SETUP, coupling=1.0)
BUDGETS = parse_budgets(["avg_bits<=4.5"])
SIZES = (40, 40, 40, 40, 20)


class Shards:
    """Skewed values of single samples whose mean over all samples is the divergence of `problems`."""

    def __init__(self, per_sample=True):
        self.whole, self.units, self.per_sample = Divergence(TABLE, disturbance=0.4), 0, per_sample
        rng = np.random.default_rng(3)
        self.base = np.exp(rng.normal(0, 1, sum(SIZES)))

    def values(self, assignment):
        rng = np.random.default_rng(int(assignment.digest()[:8], 16))
        values = self.base * np.exp(rng.normal(0, 0.5, sum(SIZES)))
        return values / values.mean() * self.whole.value(assignment)

    def __call__(self, assignments, shards):
        found = {}
        for number, assignment in assignments.items():
            parts = np.split(self.values(assignment), np.cumsum(SIZES)[:-1])
            self.units += len(shards)
            if self.per_sample:
                found[number] = {s: (parts[s], np.ones(len(parts[s]))) for s in shards}
            else:
                found[number] = {
                    s: (parts[s].mean(keepdims=True), np.array([float(SIZES[s])])) for s in shards
                }
        return found


def run(measure, error=ERROR, **options):
    race = Race(measure, len(SIZES), error, options.get("maximize", False))
    return search(TABLE, SETUP, BUDGETS, race, **{"num_trials": 28, "batch_size": 4, **options})


@pytest.mark.parametrize("kind", ["independent", "proportional", "rare harm", "rare in the best"])
def test_an_equal_candidate_is_stopped_no_more_often_than_stated(kind):
    rng = np.random.default_rng(0)
    size, looks, repeats = 256, (32, 64, 128), 400
    best = np.exp(rng.normal(0, 1.5, size))
    if kind == "rare in the best":
        best = (np.arange(size) < 6).astype(float)
    candidate = {
        "independent": rng.permutation(best),
        "proportional": best * np.exp(rng.normal(0, 0.5, size)),
        "rare harm": np.where(np.arange(size) < 8, 100.0, best),
        "rare in the best": np.ones(size),
    }[kind]
    candidate = candidate * best.mean() / candidate.mean()
    stopped = 0
    for _ in range(repeats):
        order = rng.permutation(size)
        stopped += any(log_wealth(candidate[order[:n]], best[order]) >= -math.log(ERROR) for n in looks)
    assert stopped / repeats <= ERROR


def test_the_evidence_is_expected_not_to_grow_over_every_order():
    """E[W_n] ≤ 1 where the means are equal, by all 5! orders of five samples."""
    from itertools import permutations

    best, candidate = np.array([0.0, 1, 2, 3, 9]), np.array([4.0, 4, 3, 3, 1])
    assert best.sum() == candidate.sum()
    orders = [list(order) for order in permutations(range(5))]
    for n in (1, 2, 3, 4):
        wealth = np.array([math.exp(log_wealth(candidate[o[:n]], best[o])) for o in orders])
        for level in (1.5, 2, 3):
            assert (wealth >= level).mean() <= 1 / level


def test_a_worse_candidate_is_stopped_and_a_decided_race_is_certain():
    rng = np.random.default_rng(0)
    best = np.exp(rng.normal(0, 1, 256))
    assert log_wealth(4 * best[:64], best) >= -math.log(ERROR)
    assert log_wealth(0.5 * best[:64], best) < 1
    assert log_wealth(np.array([5.0, 5.0]), np.array([1.0, 1.0, 1.0])) == math.inf
    assert log_wealth(np.zeros(3), np.zeros(5)) == -math.inf


def test_the_race_saves_work_and_finds_what_the_whole_measurement_finds():
    raced, whole = Shards(), Shards()
    result, reference = run(raced), run(whole, error=0)
    assert raced.units < 0.85 * whole.units
    assert result.best.value == pytest.approx(reference.best.value, rel=0.02)
    stopped = [trial for trial in result.trials if trial.state == "PRUNED"]
    assert stopped
    assert all(trial.value > result.best.value for trial in stopped)
    assert all(0 < trial.num_samples < sum(SIZES) for trial in stopped)
    assert all(max(trial.rounds) == trial.num_samples for trial in stopped)
    for trial in result.trials:
        if trial.state == "COMPLETE":
            assert trial.num_samples == sum(SIZES)
            assert trial.value == pytest.approx(raced.whole.value(trial.assignment))


def test_no_warm_start_is_stopped_and_the_finalists_are_measured_whole():
    result = run(Shards())
    starts = [t for t in result.trials if t.source not in ("thompson", "finalist")]
    assert len(starts) >= 6
    assert {t.state for t in starts} == {"COMPLETE"}
    finalists = [t for t in result.trials if t.source == "finalist"]
    assert [t.number for t in finalists] == list(range(28, 28 + len(finalists)))
    assert len(finalists) == 4
    assert all(t.state == "COMPLETE" and t.num_samples == sum(SIZES) for t in finalists)
    stopped = {t.assignment.digest(): t.value for t in result.trials if t.state == "PRUNED"}
    chosen = [stopped[t.assignment.digest()] for t in finalists]
    assert chosen == sorted(stopped.values())[:4]
    assert all(margin >= 0 for margin in result.margins().values())


def test_a_race_goes_on_bit_for_bit():
    saved = []
    whole = run(Shards(), on_batch=saved.append)
    for trials in saved[3:9:5]:
        again = trials_from_table(trials_to_table(trials))
        assert run(Shards(), previous=again) == whole


def test_shards_without_single_samples_and_values_below_zero():
    coarse = run(Shards(per_sample=False))
    assert coarse.best.num_samples == sum(SIZES)

    class Negative(Shards):
        def values(self, assignment):
            return super().values(assignment) - 1

    assert not [t for t in run(Negative(), num_trials=20).trials if t.state == "PRUNED"]


def test_a_score_in_zero_to_one_is_raced_upwards():
    class Score(Shards):
        def values(self, assignment):
            return np.exp(-super().values(assignment))

    result = run(Score(), maximize=True, objective="score")
    done = [t.value for t in result.trials if t.state == "COMPLETE"]
    assert result.best.value == max(done)
    assert any(t.state == "PRUNED" for t in result.trials)
    assert all(t.value < result.best.value for t in result.trials if t.state == "PRUNED")
    assert result.best.value >= max(result.reasons.values())
    assert "better_by" in result.to_json()


def test_refusals_of_a_race():
    with pytest.raises(ConfigError, match=r"error rate is 1"):
        Race(Shards(), 3, 1.0)
    with pytest.raises(ConfigError, match="at least one shard"):
        Race(Shards(), 0)
    with pytest.raises(RunError, match="on shard 2"):
        run(
            lambda assignments, shards: {
                n: {0: (np.ones(2), np.ones(2)), 1: (np.ones(2), np.ones(2))} for n in assignments
            }
        )
