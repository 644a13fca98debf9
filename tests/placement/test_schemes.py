"""Schemes that weights may take: by default, by override and pin, and by profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raysearch.config import load_config
from raysearch.errors import ConfigError, PlacementError
from raysearch.placement import place_quantizers
from raysearch.placement.schemes import stored_as
from raysearch.records import QuantizerSetup

MODEL = nn.Sequential(
    nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 67), nn.ReLU(), nn.Linear(67, 10)
).eval()
INPUTS = (torch.zeros(2, 8, 4, 4),)


def place(**settings: Any) -> QuantizerSetup:
    return place_quantizers(MODEL, INPUTS, load_config(overrides={"placement": settings}).placement)


def schemes(setup: QuantizerSetup) -> dict[str, list[str]]:
    return {name: list(map(str, setup.group_of(name).schemes)) for name in setup.of_kind("weight")}


def test_widths_are_the_short_form_of_plain_schemes():
    assert place(weight_bit_widths=[2, 4]).to_json() == place(weight_schemes=["4", 2]).to_json()
    both = place(weight_bit_widths=[2, 4], weight_schemes=["2g16", "4", "4a"])
    assert schemes(both)["3.weight"] == ["2g16", "4", "4a"]


def test_options_that_come_to_the_same_thing_are_one():
    setup = place(weight_schemes=["2g16a", "3g40", "4g36", "4g40", 4, 8])
    assert schemes(setup) == {
        # A channel has 9 positions: 36 inputs are 4 of 8 channels, as many as of 40.
        "0.weight": ["2g16a", "3g40", "4", "4g40", "8"],
        "3.weight": ["2g16a", "3g40", "4", "4g40", "8"],
        "5.weight": ["2a", "3", "4", "8"],
    }
    texts = stored_as(
        setup, load_config(overrides={"placement": {"weight_schemes": ["4g36", "4g40"]}}).placement
    )
    assert texts["0.weight"]["4g40"] == texts["0.weight"]["4g36"] == "groups of 36 of 72 inputs"
    assert texts["3.weight"]["3g40"] == "groups of 32 of 64 inputs"
    assert texts["5.weight"]["4g40"] == "per channel: 67 inputs have no divisor between 20 and 40"
    assert QuantizerSetup.from_json(setup.to_json()) == setup


def test_overrides_and_pins_take_schemes():
    setup = place(overrides={"0": {"bits": ["4g36a", 8]}, "5": {"pinned": "3a"}}, pins={"3": "4g32"})
    assert schemes(setup) == {"0.weight": ["4g36a", "8"], "3.weight": ["4g32"], "5.weight": ["3a"]}
    assert stored_as(place(), load_config().placement) == {}


def test_a_profile_says_which_schemes_it_takes(tmp_path: Path):
    path = tmp_path / "own.toml"
    path.write_text('[conv]\nweight_granularity = ["per_channel"]\n[linear]\ngroup_sizes = [32]\n')
    setup = place(weight_schemes=["4g16", "4g32", 4, 8], profile=str(path))
    assert schemes(setup) == {"0.weight": ["4", "8"], "3.weight": ["4", "4g32", "8"], "5.weight": ["4", "8"]}
    with pytest.raises(PlacementError, match=r"no weight at the scheme '4g16': .*groups of 32 inputs"):
        place(weight_schemes=["4g16"], profile=str(path), target_scopes=["3"])


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (
            {"weight_schemes": ["4g1000", 4]},
            "'4g1000' fits none of 3.*'0.weight' is per channel: a row",
        ),
        (
            {"pins": {"5": "3g16"}},
            "'3g16' fits none of 1.*67 inputs have no divisor between 8 and 16",
        ),
        ({"weight_schemes": ["4g16a", 4], "profile": "npu-like"}, "'npu-like' takes no weight.*'4g16a'"),
        ({"pins": {"3.input": "4g2"}}, "pins.*'3.input' to 4g2; an activation takes a bit-width"),
        ({"overrides": {"3.input": {"bits": ["8a"]}}}, "overrides.*'3.input' to 8a; an activation"),
        ({"overrides": {"3": {"bits": [4, 8], "pinned": "4g32"}}}, "the scheme 4g32, but bits allows 4, 8"),
    ],
)
def test_a_scheme_that_does_not_fit_is_refused_by_name(settings: dict[str, Any], part: str):
    with pytest.raises(PlacementError, match=part):
        place(**settings)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"weight_schemes": ["4h64"]}, "'placement.weight_schemes.0' is '4h64'.*no scheme.*4g64"),
        ({"weight_schemes": ["4G64"]}, r"'4G64': '4G64' is no scheme\. Write a bit-width"),
        ({"weight_schemes": "4g64"}, "'placement.weight_schemes' is '4g64': input should be a list"),
        ({"activation_bit_widths": ["4g64"]}, "activation_bit_widths.0' is '4g64': .* is for weights"),
        ({"weight_schemes": ["4g16"], "weight_bit_widths": [3]}, "are 3, but weight_schemes are 4g16"),
        ({"pins": {"5": "9g16"}}, "2–8"),
        ({"overrides": {"5": {"bits": [True]}}}, "no scheme"),
    ],
)
def test_what_is_no_scheme_is_refused(settings: dict[str, Any], part: str):
    with pytest.raises(ConfigError, match=part):
        load_config(overrides={"placement": settings})


def test_settings_without_schemes_are_recorded_as_before():
    assert "weight_schemes" not in load_config().fixed()["placement"]
    config = load_config(overrides={"placement": {"weight_schemes": ["2g32a", "8"]}})
    assert config.fixed()["placement"]["weight_schemes"] == ["2g32a", 8]
    assert load_config(overrides=config.model_dump(mode="json")) == config


def test_rows_without_the_blocks_of_a_type_have_the_next_one_of_small_blocks():
    model = nn.Sequential(nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 256)).eval()
    wished = {"weight_schemes": ["q3_k", "q5_0", "q6_k"], "activation_bit_widths": []}
    settings = load_config(overrides={"placement": wished}).placement
    setup = place_quantizers(model, (torch.zeros(2, 256),), settings)
    assert schemes(setup) == {"0.weight": ["q3_k", "q5_0", "q6_k"], "2.weight": ["q4_0", "q5_0", "q8_0"]}
    texts = stored_as(setup, settings)
    assert texts["0.weight"]["q6_k"] == "blocks of 256 inputs, 6.5625 bits a weight"
    assert texts["2.weight"]["q6_k"] == "q8_0: 96 inputs hold no blocks of 256"
    assert QuantizerSetup.from_json(setup.to_json()) == setup


def test_rows_that_hold_no_blocks_at_all_are_refused_by_name():
    with pytest.raises(PlacementError, match=r"'0\.weight' has .* no blocks of the types q4_0, q8_0"):
        place(weight_schemes=["q4_0", "q8_0"])
