"""Weights of many inputs: float32 moments, a factor in their own buffer, rows in several units."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysearch.cluster.pool import LocalPool
from raysearch.rounding.round_weights import in_waves, take_moments
from raysearch.rounding.row_slices import RowSlice
from raysearch.rounding.second_moments import Moments, merge_moments, observe_moments
from tests.rounding.test_round_weights import WIDTHS, make_problem, round_all, settings
from tests.support.shuffled_pool import ShuffledPool


class Wide(nn.Module):
    """Two layers that read the same, one that reads what they give, and a product, whose rows are columns."""

    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(12, 20), nn.Linear(12, 20)
        self.down = nn.Linear(20, 7)
        self.product = nn.Parameter(torch.randn(7, 5))

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x)) @ self.product


def problem(**placement):
    data = torch.randn(48, 12, generator=torch.Generator().manual_seed(1))
    return make_problem(Wide(), list(data.split(12)), ignored_scopes=["*input*"], **placement)


@pytest.fixture
def is_large(monkeypatch):
    """All layers count as of many inputs, and a unit has few rows."""
    monkeypatch.setattr("raysearch.rounding.second_moments.FLOAT32_FROM", 4)
    monkeypatch.setattr("raysearch.rounding.row_slices.ROW_BYTES", 8 * 12 * 9)
    monkeypatch.setattr("raysearch.rounding.factors.compact.NUM_COLUMNS", 5)


class CountingPool(LocalPool):
    """Notes what is run."""

    keys: list

    def run(self, function, units, shared=()):
        self.keys = [*getattr(self, "keys", []), *units]
        return super().run(function, units, shared)


@pytest.mark.parametrize("schemes", [WIDTHS, ("2g4", "3", "4g4a")])
def test_the_codes_are_as_good_as_those_of_whole_weights_in_float64(schemes, is_large, monkeypatch):
    large = problem(weight_schemes=schemes)
    table = round_all(large)
    monkeypatch.undo()
    whole = round_all(large)
    assert {str(scheme) for _, scheme in table} >= set(map(str, schemes))
    assert list(table) == list(whole)
    alike = 0
    for key, rounded in table.weights.items():
        expected = whole[key]
        assert rounded.scale.shape == expected.scale.shape
        assert rounded.mean_moment == pytest.approx(expected.mean_moment, rel=1e-5)
        assert rounded.error_nearest == pytest.approx(expected.error_nearest, rel=1e-3)
        assert rounded.error == pytest.approx(expected.error, rel=0.02)
        assert rounded.error <= rounded.error_nearest
        alike += np.array_equal(rounded.codes, expected.codes)
    assert alike >= 0.9 * len(whole)


def test_units_have_some_of_the_rows_and_any_order_gives_the_same_bits(is_large):
    large = problem()
    pool = CountingPool(large[0])
    digest = round_all(large, lambda _: pool).digest()
    keys = [key for key in pool.keys if key[0] == "weights"]
    assert ("weights", "gate.weight") in keys
    assert ("weights", "gate.weight", 6) in keys
    assert ("weights", "up.weight", 13) in keys
    assert round_all(large, lambda replica: ShuffledPool(LocalPool(replica), 1)).digest() == digest


def test_a_table_of_words_is_cut_and_keeps_its_codes(monkeypatch):
    words = torch.randint(0, 30, (8, 6), generator=torch.Generator().manual_seed(2))
    net = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 5))
    table = make_problem(
        net, list(words.split(2)), weight_schemes=(*WIDTHS, "3g4a"), ignored_scopes=["*input*"]
    )
    whole = round_all(table)
    monkeypatch.setattr("raysearch.rounding.row_slices.TABLE_BYTES", 8 * 8 * 11)
    pool = CountingPool(table[0])
    cut = round_all(table, lambda _: pool)
    assert [key for key in pool.keys if key[:2] == ("weights", "0.weight")] == [
        ("weights", "0.weight"), ("weights", "0.weight", 10), ("weights", "0.weight", 20),
    ]  # fmt: skip
    for key, rounded in cut.weights.items():
        expected = whole[key]
        assert np.array_equal(rounded.codes, expected.codes)
        assert np.array_equal(rounded.scale, expected.scale)
        assert np.array_equal(rounded.zero_point, expected.zero_point)
        assert rounded.error == pytest.approx(expected.error, rel=1e-12)


@pytest.mark.parametrize("schemes", [WIDTHS, ("2g4", "3", "4g4a")])
def test_rows_are_rounded_a_few_at_a_time_to_the_same_codes(schemes, monkeypatch):
    small = problem(weight_schemes=schemes)
    whole = round_all(small)
    monkeypatch.setattr("raysearch.rounding.row_slices.PIECE_BYTES", 8 * 12 * 7)
    pool = CountingPool(small[0])
    pieces = round_all(small, lambda _: pool)
    # No more units, since a unit's rows share their factor.
    assert all(len(key) == 2 for key in pool.keys)
    for key, rounded in pieces.weights.items():
        expected = whole[key]
        assert np.array_equal(rounded.codes, expected.codes)
        assert np.array_equal(rounded.scale, expected.scale)
        assert np.array_equal(rounded.zero_point, expected.zero_point)
        assert rounded.mean_moment == expected.mean_moment
        assert rounded.error == pytest.approx(expected.error, rel=1e-12)
        assert rounded.error_nearest == pytest.approx(expected.error_nearest, rel=1e-12)


def test_waves_give_the_same_bits(monkeypatch):
    small = problem()
    replica, setup, _ = small
    expected = round_all(small).digest()
    monkeypatch.setattr(sys.modules[in_waves.__module__], "MOMENT_BYTES", 8 * 2 * 12**2)
    waves = in_waves(setup.of_kind("weight"))
    assert waves == [("gate.weight", "up.weight"), ("down.weight",), ("product",)]
    pool = CountingPool(replica)
    assert round_all(small, lambda _: pool).digest() == expected
    assert ("moments", 0, "gate.weight") in pool.keys
    assert ("moments", 2, "down.weight") in pool.keys


def test_a_scale_for_the_whole_weight_keeps_its_rows_together(is_large):
    large = problem(overrides={"*": {"granularity": "per_tensor"}})
    pool = CountingPool(large[0])
    round_all(large, lambda _: pool)
    assert {key for key in pool.keys if key[0] == "weights"} == {
        ("weights", "gate.weight"),
        ("weights", "down.weight"),
        ("weights", "product"),
    }


def test_sums_in_float32_are_within_the_stated_error(is_large, monkeypatch):
    replica, setup, _ = problem()
    names = tuple(setup.of_kind("weight"))
    single = take_moments(LocalPool(replica), names, 4, settings(), seed=0)
    monkeypatch.undo()
    exact = Moments.from_value(observe_moments(replica, names, 0, 4))
    for readers, moment in single.sums.items():
        assert moment.values.dtype == np.float32
        expected = exact.sums[readers].matrices()[0]
        sizes = np.sqrt(expected.diagonal())
        # One call and piece a shard, two shards a unit, two units.
        assert (np.abs(moment.matrices()[0] - expected) <= 5 * 2.0**-24 * np.outer(sizes, sizes)).all()


def test_a_slice_of_all_rows_is_the_weight():
    assert RowSlice("w").of("anything") == "anything"


def test_merging_adds_to_the_first():
    replica = problem()[0]
    parts = [Moments.from_value(observe_moments(replica, ["down.weight"], i, i + 1)) for i in range(2)]
    (first,), (second,) = (part.sums.values() for part in parts)
    expected = first.values + second.values
    (merged,) = merge_moments(parts).sums.values()
    assert merged.values is first.values
    assert np.array_equal(merged.values, expected)
