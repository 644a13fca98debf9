"""Second moments leave out what layers read at positions that do not count."""

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.evaluation import DataSet, Divergence, Replica
from raysearch.rounding.drift import Deployed, drifts_from, observe_drift
from raysearch.rounding.guided_moments import observe_guided_moments
from raysearch.rounding.layers import Geometry, counted_vectors, where_counted
from raysearch.rounding.second_moments import Moments, observe_moments
from tests.support.padded_sentences import LENGTHS, PerToken, apart, padded, positions, run

NAMES = ("table.weight", "hidden.weight", "head.weight")


def replica_of(batches, is_masked):
    torch.manual_seed(0)
    divergence = Divergence(positions=positions if is_masked else None)
    return Replica(PerToken().double(), run, {DataSet.CALIBRATION: batches}, divergence)


def sums_of(moments):
    return {
        reader.weight: (moment.values, moment.num_vectors)
        for readers, moment in moments.sums.items()
        for reader in readers
    }


def test_moments_are_those_without_padding():
    got = sums_of(Moments.from_value(observe_moments(replica_of([padded()], True), NAMES, 0, 1)))
    expected = sums_of(Moments.from_value(observe_moments(replica_of(apart(), False), NAMES, 0, 4)))
    assert set(got) == set(NAMES)
    for name in NAMES:
        assert got[name][1] == expected[name][1] == sum(LENGTHS)
        assert np.triu(got[name][0]) == pytest.approx(np.triu(expected[name][0]), rel=1e-9)


def test_guided_moments_are_of_the_positions_that_count():
    def observed(is_masked):
        moments = Moments.from_value(
            observe_guided_moments(replica_of([padded()], is_masked), NAMES, 0, 0, 1)
        )
        assert all(reader.is_guided for readers in moments.sums for reader in readers)
        return sums_of(moments)

    masked, every = observed(True), observed(False)
    for name in NAMES:
        assert masked[name][1] == sum(LENGTHS)
        assert every[name][1] == len(LENGTHS) * max(LENGTHS)
    # A word that stands in the padding alone is never read.
    read = np.unique(padded()["ids"][positions(padded())])
    assert set(np.flatnonzero(masked["table.weight"][0])) == set(read)


def test_the_drift_of_inputs_is_that_without_padding(monkeypatch):
    monkeypatch.setattr("raysearch.rounding.drift._quantized_so_far", lambda replica, deployed: replica.model)

    def observed(batches, is_masked, seed=None):
        deployed = Deployed(None, (), guided_seed=seed)
        value = observe_drift(replica_of(batches, is_masked), deployed, NAMES[1], 0, len(batches))
        ((_, drift),) = drifts_from(value)[0].items()
        return drift

    got, expected = observed([padded()], True), observed(apart(), False)
    assert observed([padded()], True, seed=3).num_vectors == sum(LENGTHS)
    assert got.num_vectors == expected.num_vectors == sum(LENGTHS)
    assert got.own == pytest.approx(expected.own, rel=1e-9)
    assert got.cross == pytest.approx(expected.cross, rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "shape", "count"),
    [
        ("linear", (2, 3, 4), 4),
        ("product", (6, 4), 4),
        ("linear", (2, 3, 5, 4), 20),
        ("embedding", (2, 3), 4),
        ("embedding", (6,), 4),
        ("linear", (2, 4), None),
        # Positions first.
        ("linear", (3, 2, 4), 4),
        ("embedding", (3, 2), None),
        ("linear", (7, 4), None),
        ("embedding", (1, 3), None),
    ],
)
def test_which_inputs_have_such_positions(kind, shape, count):
    counts = torch.tensor([[True, True, False], [True, False, True]])
    values = torch.arange(torch.Size(shape).numel()).reshape(shape)
    rows = counted_vectors(Geometry(kind), values, counts)
    chosen = where_counted(Geometry(kind), values, counts)
    if count is None:
        assert rows is None
        assert chosen is values
        return
    assert int(rows.sum()) == count
    vectors = values.reshape(len(rows), -1)
    assert torch.equal(chosen.reshape(count, -1), vectors[rows])


def test_convolutions_and_batched_weights_count_whole():
    counts = torch.ones(2, 3, dtype=torch.bool)
    for geometry in (
        Geometry("conv", kernel=(3,)),
        Geometry("batched", groups=2),
        Geometry("linear", axis=-2),
    ):
        assert counted_vectors(geometry, torch.zeros(2, 3, 4), counts) is None


def test_an_attention_with_a_mask_reads_only_what_counts():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0).double().eval()
    batch = {"x": torch.randn(4, 5, 6, dtype=torch.float64), "mask": padded()["mask"]}

    def forward(model, given):
        return model(given["x"], src_key_padding_mask=~given["mask"].bool())

    names = [name for name, value in layer.named_parameters() if value.ndim == 2]
    replica = Replica(layer, forward, {DataSet.CALIBRATION: [batch]}, Divergence("mse", positions=positions))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        moments = sums_of(Moments.from_value(observe_moments(replica, names, 0, 1)))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert {name: number for name, (_, number) in moments.items()} == dict.fromkeys(names, sum(LENGTHS))


def test_a_transposed_view_of_as_many_samples_as_positions_is_told_by_its_strides():
    counts = torch.tensor([[True, False], [True, True]])
    values = torch.randn(2, 2, 3)
    assert torch.equal(where_counted(Geometry("linear"), values, counts), values[counts])
    view = values.transpose(0, 1)
    assert torch.equal(where_counted(Geometry("linear"), view, counts), view[counts.T])
