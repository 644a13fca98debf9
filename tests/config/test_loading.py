import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysearch.config import Config, load_config, settings_as_text, settings_as_toml
from raysearch.errors import ConfigError
from raysearch.records import COST_KINDS


def test_later_sources_win(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text("seed = 3\n[search]\nnum_trials = 10\nbatch_size = 2\n")
    config = load_config(file, ["search.num_trials=20"], {"search": {"batch_size": 4}})
    assert (config.seed, config.search.num_trials, config.search.batch_size) == (3, 20, 4)


def test_values_are_read_as_toml_or_text():
    config = load_config(assignments=["search.sampler=tpe", "placement.weight_bit_widths=[2, 4]"])
    assert config.search.sampler == "tpe"
    assert config.placement.weight_bit_widths == (2, 4)


def test_a_pin_may_have_dots_in_its_name():
    assert load_config(assignments=["placement.pins.block.0.conv=8"]).placement.pins == {"block.0.conv": 8}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("serch.num_trials=1", "unknown"),
        ("search.num_trials=0", "search.num_trials"),
        ("placement.weight_bit_widths=[]", "placement.weight_bit_widths"),
        ("placement.weight_bit_widths=[9]", "placement.weight_bit_widths"),
        ("search.sampler=best", "search.sampler"),
        ("cluster.workers=-1", "cluster.workers"),
        ("sensitivity.estimator=hutchinsen", "sensitivity.estimator"),
        ("sensitivity.relative_error=0", "sensitivity.relative_error"),
        ("sensitivity.relative_error=inf", "sensitivity.relative_error"),
        ("sensitivity.max_draws=1", "sensitivity.max_draws"),
        ("sensitivity.draw_chunk=0", "sensitivity.draw_chunk"),
        ("training.learning_rate=inf", "training.learning_rate"),
    ],
)
def test_wrong_settings_are_named(text, part):
    with pytest.raises(ConfigError, match=part):
        load_config(assignments=[text])


def test_gpus_that_would_lie_idle_are_refused():
    with pytest.raises(ConfigError, match=r"cluster\.device is 'cpu'"):
        load_config(assignments=["cluster.device=cpu", "cluster.gpus_per_worker=0.5"])


def test_the_device_follows_the_machines_and_training_the_device():
    config = load_config(assignments=["cluster.gpus_per_worker=0.5"])
    on_gpus, on_cpus = config.settled(has_gpus=True), config.settled(has_gpus=False)
    assert (on_gpus.cluster.device, on_gpus.cluster.num_gpus(True), on_gpus.training.use_gpu) == (
        "cuda",
        0.5,
        True,
    )
    assert (on_cpus.cluster.device, on_cpus.cluster.num_gpus(False), on_cpus.training.use_gpu) == (
        "cpu",
        0.0,
        False,
    )
    assert on_gpus.settled(has_gpus=False) == on_gpus, "what was settled stays"
    fixed = load_config(assignments=["cluster.device=cpu", "training.use_gpu=true"]).settled(has_gpus=True)
    assert (fixed.cluster.device, fixed.training.use_gpu) == ("cpu", True)


def test_guidance_without_second_moments_is_refused():
    with pytest.raises(ConfigError, match="guided is for the second moments that 'gptq' takes"):
        load_config(assignments=["rounding.guided=true", "rounding.method=nearest"])


def test_an_estimator_that_does_not_suit_the_loss_is_refused():
    wanted = ["sensitivity.estimator=xnystrace", "sensitivity.trace_loss=loss"]
    with pytest.raises(ConfigError, match="take 'xtrace' or trace_loss 'divergence'"):
        load_config(assignments=wanted)
    assert load_config(assignments=wanted[:1]).sensitivity.estimator == "xnystrace"


def test_workers_are_no_part_of_a_run_but_threads_are():
    many = load_config(assignments=["cluster.workers=7"])
    assert many.fixed() == Config().fixed()
    assert load_config(assignments=["cluster.threads=2"]).fixed() != Config().fixed()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 2**40),
            "placement": st.fixed_dictionaries(
                {},
                optional={
                    "pins": st.dictionaries(
                        st.from_regex(r"[a-z0-9_.*]{1,12}", fullmatch=True), st.integers(2, 8)
                    ),
                    "weight_bit_widths": st.lists(st.integers(2, 8), min_size=1),
                    "ignored_scopes": st.lists(st.text(st.characters(codec="ascii", categories=["L", "P"]))),
                },
            ),
            "training": st.fixed_dictionaries(
                {}, optional={"learning_rate": st.floats(1e-9, 1), "use_gpu": st.booleans()}
            ),
        },
    )
)
def test_settings_survive_the_command_line_of_a_job(values):
    config = load_config(overrides=values)
    assert load_config(assignments=settings_as_text(config)) == config
    assert load_config(overrides=tomllib.loads(settings_as_toml(config))) == config


def test_overrides_are_read_and_a_misspelt_key_is_named():
    rules = "placement.overrides.re:^blocks\\.\\d+.bits=[2, 4]"
    config = load_config(assignments=[rules, "placement.overrides.block.conv.mode=asymmetric"])
    found = config.placement.overrides
    assert found["re:^blocks\\.\\d+"].bits == (2, 4)
    assert found["block.conv"].mode == "asymmetric"
    assert load_config(assignments=settings_as_text(config)) == config
    with pytest.raises(ConfigError, match=r"overrides.fc.bit' is unknown; .*'placement.overrides.fc.bits'"):
        load_config(overrides={"placement": {"overrides": {"fc": {"bit": 4}}}})
    with pytest.raises(ConfigError, match=r"profil' is unknown; .*'placement.profile'"):
        load_config(assignments=["placement.profil=any"])


def test_enqueued_assignments_are_read_from_files_and_travel_as_widths(tmp_path):
    plain, best = tmp_path / "plain.json", tmp_path / "best.json"
    plain.write_text('{"a.weight": 4, "b.0.weight": 8}')
    best.write_text('{"assignment": {"a.weight": 2, "b.0.weight": 8}, "trial": 3}')
    config = load_config(overrides={"search": {"enqueue": [str(plain), str(best), {"a.weight": 3}]}})
    expected = ({"a.weight": 4, "b.0.weight": 8}, {"a.weight": 2, "b.0.weight": 8}, {"a.weight": 3})
    assert config.search.enqueue == expected
    assert load_config(assignments=settings_as_text(config)) == config
    with pytest.raises(ConfigError, match=r"search\.enqueue.*none\.json' cannot be read"):
        load_config(overrides={"search": {"enqueue": [str(tmp_path / "none.json")]}})


def test_a_metric_is_maximised_unless_said_otherwise():
    def maximize(**search):
        return load_config(overrides={"search": search}).search.maximize

    assert not maximize()
    assert not maximize(objective="loss")
    assert maximize(objective="accuracy")
    assert not maximize(objective="error", direction="minimize")


def test_every_kind_of_cost_that_can_be_minimised_may_be_a_front():
    for kind in COST_KINDS.values():
        if kind.can_be_minimized:
            assert load_config(assignments=[f"search.front={kind.name}"]).search.front_kind == kind.name
    assert load_config().search.front_kind is None
    known = "known: none, avg_bits, act_bits, size"
    for name in ("effective", "energy"):
        with pytest.raises(ConfigError, match=f"search.front' is '{name}': .*{known}"):
            load_config(assignments=[f"search.front={name}"])


def test_a_run_from_before_a_setting_existed_goes_on_at_its_default():
    record = json.loads((Path(__file__).parents[1] / "data" / "old_run" / "run.json").read_text())["config"]
    # Of before there was a choice of rounding.
    now = load_config(assignments=["rounding.method=nearest"]).fixed()
    sections = {name: values for name, values in now.items() if isinstance(values, dict)}
    assert {name: set(values) - set(record[name]) for name, values in sections.items()} == {
        name: set() for name in sections
    }
    chosen = load_config(assignments=["sensitivity.response_shards=2"]).fixed()
    assert chosen["sensitivity"]["response_shards"] == 2
