import pytest

from raysearch.config import PlacementConfig, load_config
from raysearch.errors import ConfigError, PlacementError
from raysearch.placement import place_quantizers, scopes
from raysearch.records import PER_TENSOR, BitAssignment, CostModel, QuantizerSetup, QuantizerSpec
from tests.support import model_zoo


def place(name: str = "digits", **rules: object) -> QuantizerSetup:
    return place_quantizers(model_zoo.build(name), model_zoo.inputs(name), PlacementConfig(**rules))  # type: ignore[arg-type]


def test_a_pin_by_layer_by_quantizer_and_by_glob() -> None:
    setup = place(pins={"block.*": 4, "stem": 8, "head.input": 5, "block.pointwise": 6})
    widths = {name: setup.group_of(name).bit_widths for name in setup.points}
    assert widths["stem.weight"] == (8,)
    assert widths["head.input"] == (5,)
    assert widths["head.weight"] == (2, 3, 4, 8)
    assert widths["block.depthwise.weight"] == (4,)
    assert widths["block.pointwise.weight"] == (6,), "later pins win"
    assert widths["block.add0.input1"] == (4,)
    assert widths["stem.input"] == (8,)


def test_a_pin_on_one_operand_holds_for_the_group_and_two_may_not_differ() -> None:
    setup = place(pins={"block.add0.input1": 6})
    assert setup.group_of("block.depthwise.input").bit_widths == (6,)
    with pytest.raises(PlacementError, match=r"block.add0.input1 to 6.*share one bit-width"):
        place(pins={"block.add0.input1": 6, "block.depthwise.input": 7})


def test_ignored_points_are_gone_and_what_they_fed_counts_as_float() -> None:
    setup = place(ignored_scopes=["stem", "down.input"])
    assert "stem.weight" not in setup.points
    assert "stem.input" in setup.points
    assert "down.input" not in setup.points
    assert setup.points["down.weight"].input_point == ""
    costs = CostModel(setup).costs(BitAssignment({"down.weight": 2}))
    assert costs["bops"] > 0


def test_an_ignored_operand_leaves_its_partner_alone() -> None:
    setup = place(ignored_scopes=["block.add0.input1"])
    assert setup.group_of("block.depthwise.input").points == ("block.depthwise.input",)


def test_a_tied_weight_answers_to_all_its_layers() -> None:
    for pattern in ("table", "head", "head.weight", "table.weight"):
        setup = place("tied", pins={pattern: 3})
        assert setup.group_of("table.weight").bit_widths == (3,)


@pytest.mark.parametrize("option", ["pins", "ignored_scopes"])
def test_a_name_that_fits_nothing_is_refused_with_the_nearest(option: str) -> None:
    rules = {"pins": {"blok.depthwise": 4}} if option == "pins" else {"ignored_scopes": ["blok.depthwise"]}
    with pytest.raises(PlacementError) as info:
        place(**rules)
    message = str(info.value)
    assert f"placement.{option}" in message
    assert "'blok.depthwise'" in message
    assert "block.depthwise" in message.split("Nearest:")[1]


def test_a_name_like_no_other_still_gets_examples() -> None:
    with pytest.raises(PlacementError, match=r"Nearest: \w"):
        place(ignored_scopes=["@@@@"])


def test_ignoring_every_weight_is_refused() -> None:
    with pytest.raises(PlacementError, match="leaves no weight"):
        place(ignored_scopes=["*"])


def test_target_scopes_leave_the_rest_float() -> None:
    setup = place(target_scopes=["block.*", "head"], ignored_scopes=["re:add0"])
    assert list(setup.points) == [
        "block.depthwise.weight",
        "block.pointwise.weight",
        "head.weight",
        "block.depthwise.input",
        "block.pointwise.input",
    ]
    assert setup.points["head.weight"].input_point == ""
    with pytest.raises(PlacementError, match=r"target_scopes leaves no weight.*name more"):
        place(target_scopes=["*.input"])


def test_a_scope_may_be_a_regular_expression() -> None:
    setup = place(pins={r"re:^block\.(depth|point)wise\.weight$": 4})
    pinned = [name for name in setup.points if setup.group_of(name).bit_widths == (4,)]
    assert pinned == ["block.depthwise.weight", "block.pointwise.weight"]
    with pytest.raises(PlacementError, match=r"placement.pins has 're:\('.*no regular expression"):
        place(pins={"re:(": 4})


def test_an_expression_that_takes_ages_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "SECONDS", 0.05)
    fits = scopes.matcher("re:(a|aa)+$", "placement.pins")
    assert fits("aa")
    assert not fits("b")
    with pytest.raises(
        PlacementError, match=r"placement.pins has 're:\(a\|aa\)\+\$', which has no answer for 'aaa"
    ):
        fits("a" * 100 + "!")


def test_overrides_set_widths_and_later_ones_win() -> None:
    setup = place(
        pins={"down": 8},
        overrides={"*.weight": {"bits": [3, 2]}, "stem": {"bits": 5}, "head": {"pinned": 3}},
    )
    widths = {name: setup.group_of(name).bit_widths for name in setup.of_kind("weight")}
    assert widths == {
        "stem.weight": (5,),
        "block.depthwise.weight": (2, 3),
        "block.pointwise.weight": (2, 3),
        "down.weight": (2, 3),
        "head.weight": (3,),
    }


def test_overrides_set_the_kind_of_quantizer() -> None:
    points = place(
        overrides={
            "stem": {"mode": "asymmetric"},
            "head": {"granularity": "per_tensor"},
            "down": {"mode": "symmetric", "signed": True, "granularity": "per_channel"},
            "down.input": {"mode": "symmetric", "signed": False},
            "head.input": {"mode": "symmetric"},
        }
    ).points
    assert points["stem.weight"].spec == QuantizerSpec("asymmetric")
    assert points["head.weight"].granularity == PER_TENSOR
    assert points["head.weight"].num_scales == 1
    assert points["down.weight"].spec is None, "that is the default"
    assert points["down.input"].spec == QuantizerSpec("symmetric", signed=False)
    assert points["head.input"].spec == QuantizerSpec("symmetric")
    assert points["block.depthwise.weight"].spec is None


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"bits": [2, 4], "pinned": 8}, "pins 'stem.weight' to 8 bits, but bits allows 2, 4"),
        ({"bits": 4, "pinned": 8}, "pins 'stem.weight' to 8 bits, but bits allows 4"),
        ({"granularity": "per_channel"}, "'stem.input' to per_channel.*one scale per tensor"),
        ({"mode": "asymmetric", "signed": True}, "signed of 'stem.weight', which is asymmetric"),
    ],
)
def test_overrides_that_contradict_themselves_are_told(values: dict[str, object], part: str) -> None:
    with pytest.raises(PlacementError, match=part):
        place(overrides={"stem*": values})


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"weight_bit_widths": [4, 9]}, r"'placement\.weight_bit_widths\.1' is 9: .*less than or equal to 8"),
        ({"weight_bit_widths": []}, r"'placement\.weight_bit_widths' is \[\]: .*at least 1 item"),
        ({"activation_bit_widths": [1]}, r"'placement\.activation_bit_widths\.0' is 1"),
        ({"pins": {"stem": 0}}, r"'placement\.pins\.stem' is 0"),
        ({"overrides": {"stem*": {"bit": 4}}}, r"unknown; the nearest known one is 'placement.*\.bits'"),
        ({"overrides": {"stem*": {"bits": [1]}}}, r"'placement\.overrides\.stem\*\.bits' is \[1\]: .*2–8"),
        ({"overrides": {"stem*": {"bits": []}}}, "at least 1 item"),
        ({"overrides": {"stem*": {"pinned": 9}}}, "is 9"),
        ({"overrides": {"stem*": {"mode": "sym"}}}, "'symmetric' or 'asymmetric'"),
        ({"overrides": {"stem*": {"granularity": "per_group"}}}, "'per_channel' or 'per_tensor'"),
        ({"overrides": {"stem*": {"signed": "maybe"}}}, "boolean"),
    ],
    ids=str,
)
def test_values_that_the_settings_do_not_allow_are_refused(values: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_config(overrides={"placement": values})


def test_an_override_that_fits_nothing_is_refused_with_the_nearest() -> None:
    with pytest.raises(PlacementError, match=r"placement.overrides names 'stm'.*Nearest: stem"):
        place(overrides={"stm": {"bits": 4}})


def test_overrides_of_one_group_may_not_contradict() -> None:
    rules = {"block.add0.input1": {"bits": [4, 6]}, "block.depthwise.input": {"bits": [6, 8]}}
    assert place(overrides=rules).group_of("block.add0.input1").bit_widths == (6,)
    rules["block.depthwise.input"] = {"bits": 8}
    with pytest.raises(PlacementError, match=r"add0.input1 to 4 or 6.*share one bit-width"):
        place(overrides=rules)
