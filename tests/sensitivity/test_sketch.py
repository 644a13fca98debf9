"""Projections of large outputs against exact inner products."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import PlacementConfig, SensitivityConfig
from raysearch.errors import ConfigError
from raysearch.evaluation import Divergence, Replica, default_forward
from raysearch.evaluation.vocabulary import positions
from raysearch.placement import place_quantizers
from raysearch.sensitivity import responses, rows
from raysearch.sensitivity.responses import measure_responses
from raysearch.sensitivity.sketch import Sketch, SketchSum, _turned_sum


def pair(n):
    """Two correlated vectors whose mass is uneven, as Λ^½ δ of a sure classifier is."""
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(n, generator=generator).double() * torch.linspace(0, 1, n).double() ** 4
    return a, 0.5 * a + 0.3 * torch.randn(n, generator=generator).double()


def test_up_to_the_size_nothing_is_changed():
    rows = torch.randn(3, 16).double()
    kept, variance = Sketch(16, 16, 0, 0).project(rows, 0)
    assert kept is rows
    assert not variance.any()


@pytest.mark.slow
def test_inner_products_are_right_in_the_mean_with_the_stated_variance():
    n, k, draws = 50, 16, 1500
    a, b = pair(n)
    kept = [Sketch(n, k, seed, 1).project(torch.stack([a, b]), 0) for seed in range(draws)]
    # Both rows by the signs of sample 0: so does a shard whose first sample is one and then the other.
    first = torch.stack([Sketch(n, k, seed, 1).project(a[None], 0)[0][0] for seed in range(draws)])
    second = torch.stack([Sketch(n, k, seed, 1).project(b[None], 0)[0][0] for seed in range(draws)])
    assert torch.equal(kept[0][0][0], first[0])
    blocks = [torch.nn.functional.pad(v, (0, 14)).reshape(4, k) for v in (a, b)]

    def expected_variance(x, y):
        total = (x.square().sum() * y.square().sum() + (x * y).sum() ** 2) / k
        within = x.square().sum(1) * y.square().sum(1) + (x * y).sum(1) ** 2
        return float(total - within.sum() / k)

    for x, y, u, v in ((first, first, 0, 0), (first, second, 0, 1)):
        products = (x * y).sum(1)
        exact = float((blocks[u] * blocks[v]).sum())
        variance = expected_variance(blocks[u], blocks[v])
        assert abs(float(products.mean()) - exact) < 4 * (variance / draws) ** 0.5
        assert float(products.var()) == pytest.approx(variance, rel=0.25)
    assert float(kept[0][1][0]) == pytest.approx(expected_variance(blocks[0], blocks[0]))


def test_a_sample_has_one_sketch_wherever_it_stands_in_a_chunk():
    rows = torch.randn(4, 40).double()
    sketch = Sketch(40, 16, 3, 2)
    whole, _ = sketch.project(rows, 0)
    late, _ = sketch.project(rows[2:], 2)
    assert torch.equal(whole[2:], late)
    equal = sketch.project(rows[:1].expand(2, -1), 0)[0]
    assert not torch.equal(equal[0], equal[1])
    for other in (Sketch(40, 16, 4, 2), Sketch(40, 16, 3, 1)):
        assert not torch.equal(other.project(rows, 0)[0], whole)


def test_pieces_of_a_row_add_up_to_its_sketch():
    sketch = Sketch(40, 16, 3, 2)
    row = torch.randn(40)
    expected, variance = sketch.project(row.double()[None], 0)
    signed = row * sketch.signs(0)
    for cuts in ((0, 40), (0, 5, 9, 40), (0, 16, 33, 40)):
        total = SketchSum(16, sketch.offsets(0))
        for lo, hi in pairwise(cuts):
            total.add(lo, signed[lo:hi])
        got, spread = total.finish()
        torch.testing.assert_close(got, expected[0], rtol=1e-5, atol=1e-5)
        assert spread == pytest.approx(float(variance), rel=1e-5)
    # On a GPU blocks are turned by an index.
    turned = _turned_sum(signed[:32].reshape(2, 16), sketch.offsets(0)[:2])
    line = SketchSum(16, sketch.offsets(0))
    line.add(0, signed[:32])
    torch.testing.assert_close(turned, line.finish()[0], rtol=1e-5, atol=1e-5)


def test_the_draw_of_a_sample_is_the_same_for_ever():
    signs, offsets = Sketch(40, 16, 0, 0)._draw(0)
    assert offsets.tolist() == [0, 13, 3]
    assert signs[:12].tolist() == [1, -1, -1, -1, -1, 1, -1, -1, -1, 1, -1, 1]


class Wide(torch.nn.Sequential):
    """Logits of 50 classes at 6 positions."""

    def forward(self, x):
        return super().forward(x).reshape(len(x), 6, 50)


@cache
def make_case():
    torch.manual_seed(0)
    model = Wide(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 300)).eval()
    shards = [torch.randn(size, 6) for size in (6, 6, 3)]
    replica = Replica(model, default_forward, {"calibration": shards}, Divergence())
    setup = place_quantizers(
        model, (shards[0],), PlacementConfig(weight_bit_widths=(2, 3), activation_bit_widths=(3,))
    )
    return replica, setup, calibrate(setup, LocalPool(replica), 3)


def test_sketched_responses_cover_the_exact_ones_by_the_stated_error():
    replica, setup, ranges = make_case()
    pool = LocalPool(replica)
    exact = measure_responses(setup, ranges, pool, 3, SensitivityConfig(option_chunk=3))
    assert exact.sketch_error == 0
    deviations = []
    for seed in range(20):
        got = measure_responses(
            setup, ranges, pool, 3, SensitivityConfig(option_chunk=3, sketch_size=64), seed=seed
        )
        assert np.linalg.eigvalsh(got.gram).min() >= -1e-12 * got.gram.max()
        assert got.divergence == pytest.approx(exact.divergence, rel=1e-12)
        assert 0 < got.sketch_error < 0.1
        deviations.append((np.diag(got.gram) - np.diag(exact.gram)) / got.sketch_stderr)
    spread = np.array(deviations)
    assert np.sqrt((spread**2).mean()) == pytest.approx(1, abs=0.35)
    assert (np.abs(spread) < 2).mean() > 0.9


def test_chunks_and_parts_of_a_shard_change_no_bit_of_a_sketch(monkeypatch):
    replica, setup, ranges = make_case()
    settings = {"sketch_size": 64}
    one = measure_responses(
        setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=2, **settings), seed=2
    )
    monkeypatch.setattr(rows, "_AT_ONCE", 400)
    other = measure_responses(
        setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=99, **settings), seed=2
    )
    assert one.gram.tobytes() == other.gram.tobytes()


@pytest.mark.parametrize("size", [64, 4096])
def test_rows_by_position_in_float32_are_those_of_float64(monkeypatch, size):
    replica, setup, ranges = make_case()
    settings = SensitivityConfig(option_chunk=3, sketch_size=size)
    exact = measure_responses(setup, ranges, LocalPool(replica), 3, settings, seed=4)
    monkeypatch.setattr(positions, "LARGE_OUTPUT", 1)
    # Four positions of six at a time: pieces end inside samples, and pieces of rows inside blocks.
    monkeypatch.setitem(positions._AT_ONCE, "cpu", 200)
    got = measure_responses(setup, ranges, LocalPool(replica), 3, settings, seed=4)
    assert got.gram.tobytes() != exact.gram.tobytes()
    assert got.gram == pytest.approx(exact.gram, rel=1e-5, abs=1e-7 * exact.gram.max())
    assert got.divergence == pytest.approx(exact.divergence, rel=1e-5)
    assert got.sketch_stderr == pytest.approx(exact.sketch_stderr, rel=1e-5)
    chunks = SensitivityConfig(option_chunk=99, sketch_size=size)
    again = measure_responses(setup, ranges, LocalPool(replica), 3, chunks, seed=4)
    assert again.gram.tobytes() == got.gram.tobytes()


def test_rows_beyond_the_limit_are_refused_with_what_to_change(monkeypatch):
    replica, setup, ranges = make_case()
    monkeypatch.setattr(responses, "ROWS_LIMIT_BYTES", 8 * len(setup.options()) * 6 * 64)
    measure_responses(setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=2, sketch_size=64))
    with pytest.raises(ConfigError, match=r"x 6 samples x 65 values.*sensitivity\.sketch_size"):
        measure_responses(
            setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=2, sketch_size=65)
        )
