"""Targets say what they do not hold before anything is computed."""

from dataclasses import replace

import pytest

from raysearch.errors import ConfigError
from raysearch.export import TARGETS, check_targets
from raysearch.export.onnx_qdq.storage import choose_containers
from raysearch.export.targets.capability import CAPABILITIES, Capability
from raysearch.records import Granularity, QuantizationPoint, QuantizerGroup, QuantizerSetup, QuantizerSpec


def setup_of(widths, spec=None, axis=0):
    weight = QuantizationPoint("fc.weight", "weight", (), (4, 4), Granularity(axis), 16, "fc.input", spec)
    given = QuantizationPoint("fc.input", "activation", (), (4,))
    groups = {
        "fc.weight": QuantizerGroup("fc.weight", ("fc.weight",), widths),
        "fc.input": QuantizerGroup("fc.input", ("fc.input",), (4, 8)),
    }
    return QuantizerSetup({"fc.weight": weight, "fc.input": given}, groups)


def test_every_target_has_an_entry_and_holds_all_widths():
    assert tuple(CAPABILITIES) == TARGETS
    # The extra `openvino` is not part of `dev`.
    installed = [name for name in TARGETS if not CAPABILITIES[name].missing()]
    assert {"packed", "onnx", "pt2"} <= set(installed)
    check_targets(setup_of((2, 3, 4, 5, 6, 7, 8), QuantizerSpec("asymmetric")), installed)


@pytest.mark.parametrize(
    ("limits", "setup", "text"),
    [
        ({"weights": {4: 4, 8: 8}}, setup_of((2, 3, 8)), r"2, 3 bits \(it holds 4, 8\): 'fc.weight'"),
        ({"activations": (8,)}, setup_of((8,)), r"4 bits \(it holds 8\): 'fc.input'"),
        ({"weight_modes": ("symmetric",)}, setup_of((8,), QuantizerSpec("asymmetric")), "asymmetric weights"),
        ({"weight_granularity": ("per_channel",)}, setup_of((8,), axis=None), "per_tensor scales"),
        ({"missing": lambda: ["thing"], "extra": "x"}, setup_of((8,)), r"needs thing; .*raysearch\[x\]"),
    ],
)
def test_what_a_target_does_not_hold_is_named(limits, setup, text):
    limited = {"chip": replace(Capability({8: 8, 4: 4, 3: 3, 2: 2}), **limits)}
    with pytest.raises(ConfigError, match=text):
        check_targets(setup, ["chip"], limited)


def test_the_stated_container_is_the_one_that_large_weights_get():
    for target, streams in (("onnx", True), ("openvino", False)):
        for width, stored in CAPABILITIES[target].weights.items():
            assert choose_containers({"w": (10**6, width)}, streams=streams)["w"].num_bits == stored
