"""Hardware profiles: widths, pairs, modes, places; and what a user's own file may hold."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raysearch.config import PlacementConfig
from raysearch.errors import PlacementError
from raysearch.placement import place_quantizers
from raysearch.placement.profile import OPERATIONS, load_profile, shipped_profiles
from raysearch.records import (
    PER_TENSOR,
    BitAssignment,
    Granularity,
    QuantizationPoint,
    QuantizerSetup,
    Scheme,
)
from tests.support import model_zoo

WIDE = (2, 3, 4, 8)


def place(name: str = "digits", profile: str = "any", **rules: Any) -> QuantizerSetup:
    return place_quantizers(
        model_zoo.build(name), model_zoo.inputs(name), PlacementConfig(profile=profile, **rules)
    )


def own(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def widths(setup: QuantizerSetup) -> dict[str, tuple[int, ...]]:
    return {name: setup.group_of(name).bit_widths for name in setup.points}


def test_profiles_are_shipped_and_any_changes_nothing() -> None:
    assert shipped_profiles() == (
        "any", "auto-round", "llama.cpp", "npu-like", "onnxruntime-cpu", "openvino-cpu", "sglang",
        "tensorrt-like", "transformers", "vllm", "vllm-cpu",
    )  # fmt: skip
    for name in shipped_profiles():
        profile = load_profile(name)
        assert profile.description
        assert set(profile.rules) == set(OPERATIONS)
    assert place() == place_quantizers(model_zoo.build("digits"), model_zoo.inputs("digits"))
    assert place().pairs == {}


def test_users_widths_and_the_profiles_are_intersected() -> None:
    setup = place(profile="npu-like", weight_bit_widths=WIDE, activation_bit_widths=(4, 6, 8))
    found = widths(setup)
    assert found["stem.weight"] == (2, 4, 8)
    assert found["stem.input"] == (4, 8)
    assert found["block.depthwise.weight"] == (2, 4, 8)
    # The depthwise convolution reads 8 bits only, and the sum shares its tensor's width.
    assert found["block.depthwise.input"] == (8,)
    assert found["block.add0.input1"] == (8,)


def test_an_empty_intersection_says_both(tmp_path: Path) -> None:
    with pytest.raises(PlacementError) as info:
        place(profile="npu-like", weight_bit_widths=(3, 5))
    for part in ("'stem.weight'", "you allow 3, 5", "'npu-like' allows 2, 4, 8", "weight_bit_widths"):
        assert part in str(info.value)
    path = own(tmp_path, "[default]\npairs = [[4, 4], [8, 8]]\n")
    with pytest.raises(PlacementError, match=r"no pair.*'stem.weight'.*'stem.input'.*\(4, 4\), \(8, 8\)"):
        place(profile=path, weight_bit_widths=(4,), activation_bit_widths=(8,))


def test_a_pair_constraint_couples_a_weight_with_its_input() -> None:
    setup = place("functional", "npu-like", weight_bit_widths=WIDE, activation_bit_widths=(4, 8))
    allowed = ((2, 4), (2, 8), (4, 4), (4, 8), (8, 8))
    assert setup.pairs == dict.fromkeys(("kernel", "inner.0.weight", "matrix", "head.weight"), allowed)
    for which in (0, -1):
        BitAssignment.extreme(setup, which).check(setup)
    BitAssignment.uniform(setup, 2).check(setup)
    bits = {**BitAssignment.extreme(setup, -1).bits, "head.input": 4}
    with pytest.raises(PlacementError) as info:
        BitAssignment(bits).check(setup)
    for part in ("'head.weight' 8 bits", "'head.input' 4 bits", "(4, 4)"):
        assert part in str(info.value)
    BitAssignment({**bits, "head.weight": 4}).check(setup)
    del bits["head.weight"]
    BitAssignment(bits).check_pairs(setup)
    assert QuantizerSetup.from_json(setup.to_json()) == setup


def test_widths_without_a_partner_are_taken_away(tmp_path: Path) -> None:
    path = own(tmp_path, "[default]\npairs = [[2, 4], [4, 4], [8, 8]]\n")
    setup = place("functional", path, weight_bit_widths=WIDE, activation_bit_widths=(4,))
    assert {widths(setup)[name] for name in setup.of_kind("weight")} == {(2, 4)}
    assert setup.pairs == {}, "no combination of what is left is forbidden"


def test_a_profile_that_leaves_one_width_says_so_loudly() -> None:
    with pytest.warns(UserWarning, match=r"'tensorrt-like' leaves a single bit-width.*nothing to search"):
        setup = place(profile="tensorrt-like")
    assert set(widths(setup).values()) == {(8,)}
    for rules in ({"weight_bit_widths": (8,)}, {"pins": {"*": 8}}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            place(profile="tensorrt-like", **rules)


def test_modes_and_granularity_follow_the_profile(tmp_path: Path) -> None:
    setup = place(profile="tensorrt-like", weight_bit_widths=(8,))
    modes = {p.kind: p.spec and p.spec.mode for p in setup.points.values()}
    assert modes == {"weight": None, "activation": "symmetric"}
    path = own(tmp_path, '[linear]\nweight_granularity = ["per_tensor"]\n')
    points = place(profile=path).points
    assert points["head.weight"].granularity == PER_TENSOR
    assert points["stem.weight"].granularity.axis == 0
    with pytest.raises(PlacementError, match=r"mode of 'stem.weight' is asymmetric.*'tensorrt-like'.*symm"):
        place(profile="tensorrt-like", overrides={"stem": {"mode": "asymmetric"}})
    with pytest.raises(PlacementError, match=r"granularity of 'head.weight' is per_channel"):
        place(profile=path, overrides={"head": {"granularity": "per_channel"}})


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(4)])
def test_a_convolution_gets_a_quantizer_on_its_result_where_the_profile_wants_one(pool: nn.Module) -> None:
    conv, norm, relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
    model = nn.Sequential(conv, norm, relu, pool, nn.Flatten(), nn.Linear(4, 2)).eval()
    args = (torch.randn(2, 3, 4, 4),)
    usual = place_quantizers(model, args, PlacementConfig(profile="openvino-cpu")).points
    assert [p for p in usual if "pool" in p] == []
    points = place_quantizers(model, args, PlacementConfig(profile="onnxruntime-cpu")).points
    assert [(p.id, p.sites[0].module) for p in points.values() if "pool" in p.id] == [("3.pool0.input0", "3")]


def test_a_mean_in_the_forward_is_reached_as_well() -> None:
    points = place(profile="onnxruntime-cpu").points
    assert points["pool0.input0"].shape == (8, 4, 4)


def test_results_and_inputs_that_stay_float_are_told() -> None:
    with pytest.warns(UserWarning, match="onnxruntime-cpu.*quantized results.*out.weight"):
        place("wave", "onnxruntime-cpu")
    with pytest.warns(UserWarning, match="openvino-cpu.*quantized inputs.*down.weight"):
        place(profile="openvino-cpu", ignored_scopes=["down.input"])


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(PlacementError, match=r"'npu'.*any, auto-round.*Did you mean 'npu-like'"):
        load_profile("npu")
    with pytest.raises(PlacementError, match=r"missing\.toml"):
        load_profile("missing.toml")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[", "not TOML"),
        ("[cnov]\n", "'cnov'; the nearest known one is 'conv'"),
        ("[conv]\npair = [[8, 8]]\n", "'conv.pair'; the nearest known one is 'pairs'"),
        ("[conv]\npairs = [[8, 9]]\n", "2 to 8"),
        ("[conv]\npairs = [[8]]\n", "conv.pairs"),
        ("[conv]\npairs = 8\n", "conv.pairs"),
        ("[conv]\nweights = [1]\n", "conv.weights"),
        ("[conv]\ninput_multiple = 0\n", "conv.input_multiple"),
        ('fusion = ["qkv"]\n', "allowed: a list of parallel, experts"),
        ("[conv]\noutput = 1\n", "true or false"),
        ('[conv]\nweight_modes = ["sym"]\n', "symmetric, asymmetric"),
        ("conv = 3\n", "a section belongs"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(PlacementError, match=part):
        load_profile(own(tmp_path, text))


@pytest.mark.parametrize(
    ("setting", "of_profile", "formats"),
    [
        (None, "", {"float32"}),
        (None, 'scale_dtype = "bfloat16"\n', {"bfloat16"}),
        ("float16", 'scale_dtype = "bfloat16"\n', {"float16"}),
        ("model", "", {"float32", "float16"}),
    ],
)
def test_scales_are_stored_as_the_settings_say_else_the_profile(
    tmp_path: Path, setting: Any, of_profile: str, formats: set[str]
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).half())
    model.forward = lambda x: model[1](model[0](x).half())  # type: ignore[method-assign, assignment]
    settings = PlacementConfig(profile=own(tmp_path, of_profile), scale_dtype=setting)
    setup = place_quantizers(model, (torch.zeros(2, 4),), settings)
    assert {point.scale_format for point in setup.of_kind("weight").values()} == formats
    assert {point.scale_format for point in setup.of_kind("activation").values()} == {"float32"}


def test_a_profile_of_an_unknown_type_of_scales_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match=r"scale_dtype = 'float8'; allowed: float32, float16"):
        load_profile(own(tmp_path, 'scale_dtype = "float8"\n'))


class Tied(nn.Module):
    """An embedding that is the head too, a head of its own, and layers whose sizes suit no block."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.tied = nn.Embedding(40, 96), nn.Linear(96, 40, bias=False)
        self.tied.weight = self.table.weight
        self.positions = nn.Embedding(6, 96)
        self.wide, self.narrow, self.own = nn.Linear(96, 128), nn.Linear(128, 20), nn.Linear(20, 40)
        self.matrix = nn.Parameter(torch.randn(96, 96))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) + self.positions(torch.arange(ids.shape[1]))
        x = x + nn.functional.linear(x, self.matrix)
        return self.own(self.narrow(self.wide(x))) + self.tied(x)


def tied(profile: str, *schemes: Any) -> QuantizerSetup:
    torch.manual_seed(0)
    settings = {"weight_schemes": schemes} if schemes else {}
    ids = torch.arange(12).reshape(2, 6)
    return place_quantizers(Tied().eval(), (ids,), PlacementConfig(profile=profile, **settings))


LINEARS = {"wide.weight", "narrow.weight", "own.weight"}


@pytest.mark.parametrize(
    ("profile", "schemes", "weights", "options"),
    [
        ("vllm", ("2g32", "3", "4a", "8"), LINEARS, {"wide.weight": ["2g32", "3", "4a", "8"]}),
        ("vllm", ("4g32",), LINEARS, {"narrow.weight": ["4g32"], "own.weight": ["4"]}),
        ("sglang", (3, 4, 8), LINEARS, {"narrow.weight": ["4", "8"]}),
        ("vllm-cpu", ("4", "4g32"), {"wide.weight"}, {"wide.weight": ["4", "4g32"]}),
        ("transformers", ("2g20", "7", "4g32"), LINEARS, {"narrow.weight": ["2g20", "4g32", "7"]}),
        ("auto-round", ("3g32a", "4g32"), {"wide.weight"}, {"wide.weight": ["3g32a", "4g32"]}),
        (
            "llama.cpp", ("4g32", "8g32"),
            {"wide.weight", "narrow.weight", "table.weight", "positions.weight", "matrix"},
            {"table.weight": ["4g32", "8g32"], "narrow.weight": ["4g32", "8g32"]},
        ),
    ],
)  # fmt: skip
def test_a_runtime_leaves_what_it_can_hold(
    profile: str, schemes: tuple[Any, ...], weights: set[str], options: dict[str, list[str]]
) -> None:
    setup = tied(profile, *schemes)
    assert set(setup.points) == weights, "activations stay float"
    for name, texts in options.items():
        assert list(map(str, setup.group_of(name).schemes)) == texts
    coverage = setup.coverage
    assert coverage is not None
    reasons = {weight.name: weight for weight in coverage.floating}
    assert len(reasons) + len(weights) == 6
    for weight in reasons.values():
        assert f"profile '{profile}' takes" in weight.reason
        assert not weight.is_chosen, "a budget of weights tells what it leaves out"


@pytest.mark.parametrize(
    ("profile", "schemes", "parts"),
    [
        ("transformers", ("4g32a",), ("'4g32a'", "2, 3, 4, 5, 6, 7, 8 bits", "modes symmetric")),
        ("vllm", ("3a", 4), ("'3a'", "asymmetric 4, 8 bits alone")),
        ("sglang", ("3g32",), ("'3g32'", "4, 8 bits", "groups of 32, 64, 128 inputs")),
        ("vllm-cpu", ("8g32",), ("'8g32'", "4 bits")),
        ("llama.cpp", (4, 8), ("'4'", "granularities per_group", "groups of 16, 32 inputs")),
        ("vllm", ("4g16",), ("'4g16'", "groups of 32, 64, 128 inputs")),
    ],
)
def test_a_runtime_names_what_it_cannot_hold(
    profile: str, schemes: tuple[Any, ...], parts: tuple[str, ...]
) -> None:
    with pytest.raises(PlacementError) as info:
        tied(profile, *schemes)
    for part in (f"profile '{profile}' takes no weight at the scheme", *parts):
        assert str(info.value).count(part) == 1


def test_a_runtime_of_weights_alone_takes_no_widths_of_activations() -> None:
    settings = PlacementConfig(profile="vllm", activation_bit_widths=(4,))
    with pytest.raises(PlacementError, match=r"activation_bit_widths are 4.*'vllm' takes weights alone"):
        place_quantizers(Tied().eval(), (torch.zeros(2, 6, dtype=torch.long),), settings)


def test_a_runtime_of_weights_alone_tells_of_the_width_of_activations_that_is_set() -> None:
    example = (torch.zeros(2, 6, dtype=torch.long),)
    settings = PlacementConfig(profile="vllm", activation_bit_widths=(8,))
    with pytest.warns(UserWarning, match=r"activation_bit_widths are 8.*'vllm' takes weights alone"):
        told = place_quantizers(Tied().eval(), example, settings)
    assert told == place_quantizers(Tied().eval(), example, PlacementConfig(profile="vllm"))


def test_a_row_of_one_block_is_a_group() -> None:
    rule = load_profile("llama.cpp")
    for num_inputs, is_block in ((32, True), (64, False)):
        point = QuantizationPoint("w", "weight", (), (8, num_inputs), Granularity.per_channel())
        assert rule.takes(["linear"], point, Scheme(4)) is is_block
