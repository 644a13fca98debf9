"""Refinement: the best on validation data is kept, and codes stand still while the rest is tuned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysearch.cluster.pool import LocalPool
from raysearch.config.rounding import RoundingConfig
from raysearch.errors import DataError, PlacementError
from raysearch.evaluation import DataSet, Divergence, Replica
from raysearch.hooks import put_floats
from raysearch.records import BitAssignment, Candidate
from raysearch.records.refinement import PLAIN
from raysearch.records.winner import Winner
from raysearch.refinement import refine
from raysearch.refinement.judging import make_model
from raysearch.refinement.tuning import Work, candidate_from, terms_of, tune
from raysearch.rounding import round_weights
from tests.support.padded_sentences import PerToken, padded, positions, run
from tests.support.shuffled_pool import ShuffledPool
from tests.support.small_replicas import inputs_of, make_ranges, make_replica, make_setup

SETTINGS = RoundingConfig(refine=("tune",), refine_steps=60, refine_learning_rate=1e-2)
NUM_SHARDS = {DataSet.CALIBRATION: 3, DataSet.SEARCH: 2}
PLAIN_ALONE = (Candidate(PLAIN),)


@pytest.fixture(scope="module")
def case():
    """A replica with data for the search, and the winner: weights at 2 bits."""
    replica = make_replica("conv", (16, 16, 8))
    validation = [(inputs_of("conv", 12, seed), torch.zeros(12, dtype=torch.long)) for seed in (70, 71)]
    replica.shards = {**replica.shards, DataSet.SEARCH: validation}
    setup = make_setup("conv", replica, weight_bit_widths=[2], activation_bit_widths=[8])
    ranges = make_ranges(setup, replica)
    table = round_weights(setup, ranges, LocalPool(replica), 3, RoundingConfig())
    bits = {name: min(group.bit_widths) for name, group in setup.groups.items()}
    return replica, Winner(setup, table.put_into(ranges), BitAssignment(bits))


def objective(replica, winner, candidate):
    """Mean error of what the norms and the head give on the calibration shards, from the float model's."""
    modules = ("norm1", "norm2", "head")
    model = make_model(replica.model, winner, candidate)
    values = []
    for index in range(NUM_SHARDS[DataSet.CALIBRATION]):
        with torch.no_grad():
            values.append(terms_of(replica, model, modules, replica.shard(DataSet.CALIBRATION, index)))
    return float(torch.stack(values).mean(0)[1])


def test_tuning_comes_nearer_to_the_float_model_and_leaves_codes_and_model_as_they_are(case):
    replica, winner = case
    before = {name: value.clone() for name, value in replica.model.state_dict().items()}
    work = Work(winner, SETTINGS, 3, 0)
    # A start with something to mend: an offset that the float model does not have.
    start = Candidate("shifted", {}, {"norm1.bias": np.full(4, 0.5, "f4")})
    tuned = candidate_from(tune(replica, work, start))
    assert tuned.name == "shifted, tuned"
    norms = {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}
    assert set(tuned.floats) == {*norms, "head.bias"}
    schemes = winner.assignment.per_point(winner.setup)
    assert set(tuned.ranges) == set(schemes.items())
    for (name, scheme), value in tuned.ranges.items():
        earlier = winner.ranges[name, scheme]
        assert np.array_equal(value.zero_point, earlier.zero_point)
        assert not np.array_equal(value.scale, earlier.scale)
        if earlier.codes is not None:
            assert np.array_equal(value.codes, earlier.codes)
    assert objective(replica, winner, tuned) < 0.85 * objective(replica, winner, start)
    assert all(torch.equal(value, before[name]) for name, value in replica.model.state_dict().items())
    assert not any(hasattr(module, "parametrizations") for module in replica.model.modules())


def test_the_best_on_validation_data_is_kept_and_is_the_same_on_any_pool(case):
    replica, winner = case
    record = refine(winner, PLAIN_ALONE, LocalPool(replica), NUM_SHARDS, SETTINGS)
    assert list(record.divergences) == ["plain", "plain, tuned"]
    assert record.divergences[record.best.name] == min(record.divergences.values())
    assert record.num_samples == 24
    again = refine(winner, PLAIN_ALONE, ShuffledPool(LocalPool(replica), 2), NUM_SHARDS, SETTINGS)
    assert again.digest() == record.digest()
    another = refine(winner, PLAIN_ALONE, LocalPool(replica), NUM_SHARDS, SETTINGS, seed=1)
    assert another.digest() != record.digest()


def test_what_is_worse_on_validation_data_is_not_kept(case):
    replica, winner = case
    worse = Candidate("shifted", {}, {"head.bias": np.array([9, 0, 0, 0], "f4")})
    record = refine(winner, [*PLAIN_ALONE, worse], LocalPool(replica), NUM_SHARDS, RoundingConfig(refine=()))
    assert record.best.name == PLAIN
    assert record.divergences["shifted"] > record.divergences["plain"]
    assert "none improved on the plain codes" in record.describe()
    assert record.put_into(winner.ranges).digest() == winner.ranges.digest()


def test_outputs_that_are_not_finite_never_win(case):
    replica, winner = case
    bad = Candidate("bad", {}, {"head.bias": np.full(4, np.nan, "f4")})
    record = refine(winner, [*PLAIN_ALONE, bad], LocalPool(replica), NUM_SHARDS, RoundingConfig(refine=()))
    assert record.best.name == PLAIN
    with pytest.raises(DataError, match="NaN or infinity on the validation data"):
        refine(winner, [bad], LocalPool(replica), NUM_SHARDS, RoundingConfig(refine=()))
    work = Work(winner, SETTINGS, 3, 0)
    with pytest.raises(DataError, match=r"lower rounding\.refine_learning_rate"):
        tune(replica, work, bad)


def test_values_of_another_model_are_refused_and_nothing_is_written(case):
    model = make_replica("conv").model
    before = model.head.bias.clone()
    with pytest.raises(PlacementError, match=r"'nose\.bias' of shape \(3,\)"):
        put_floats(model, {"head.bias": np.zeros(4, "f4"), "nose.bias": np.zeros(3, "f4")})
    assert torch.equal(model.head.bias, before)


def test_what_stands_in_padding_tunes_nothing():
    torch.manual_seed(0)
    replica = Replica(PerToken(), run, {}, Divergence(positions=positions))
    model, batch = PerToken(), padded()
    other = {**batch, "ids": torch.where(positions(batch), batch["ids"], 0)}
    assert not torch.equal(other["ids"], batch["ids"])
    terms = terms_of(replica, model, ["hidden"], batch)
    assert terms[1] > 0
    assert torch.allclose(terms_of(replica, model, ["hidden"], other), terms, rtol=1e-12)
