import numpy as np

from raysearch.export.verification.flip_counts import FlipCounts
from raysearch.records import LayerFlips


def bytes_of(*values):
    return np.array(values, np.uint8)


def test_codes_are_summed_over_batches_and_the_greatest_step_is_kept():
    counts = FlipCounts()
    counts.add("b", bytes_of(0, 255, 7), bytes_of(255, 0, 7))
    counts.add("a", bytes_of(1), bytes_of(1))
    counts.add("b", bytes_of(4), bytes_of(5))
    assert counts.layers() == (LayerFlips("b", 3, 4, 255), LayerFlips("a", 0, 1, 0))


def test_a_layer_without_codes_is_listed_where_it_is_named_beforehand():
    counts = FlipCounts(["a"])
    assert counts.layers() == (LayerFlips("a", 0, 0, 0),)
    counts.add("a", bytes_of(), bytes_of())
    assert counts.layers() == (LayerFlips("a", 0, 0, 0),)
